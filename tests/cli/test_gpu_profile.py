"""A step recorded on a GPU by Kineto, and where nsys is there by Nsight Systems, whose own reports are met exactly."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from gdn_lab.bench.results import Run
from gdn_lab.cli import profile
from gdn_lab.studies.decode_step.record import EAGER, FILE, GRAPH, SQLITE, capture_step
from gdn_lab.studies.nsight_systems.analysis import agreement, analyse, part_times
from gdn_lab.trace import crosscheck, graphs, nvtx_range, read

pytestmark = [pytest.mark.gpu, pytest.mark.alone]  # what runs beside it would lengthen what it records
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[2])
from test_gpu_profile import record
record(sys.argv[1])
"""


def record(root) -> Run:
    """Three eager runs and five replays of two steps of three parts: an addition, a product, a softmax of that."""
    x, w = (torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    y, z = torch.empty_like(x), torch.empty_like(x)

    def step():
        with nvtx_range("decode step"):
            with nvtx_range("add"):
                torch.add(x, w, out=y)
            with nvtx_range("product"):
                torch.mm(y, w, out=z)
            with nvtx_range("softmax"):
                torch.softmax(z, -1)

    run = Run.create("x", {}, root=root)
    capture_step([step, step], run, eager=3, replays=5)
    return run


def check(of):
    assert of.step == "decode step" and of.modes == ["graph", "eager"] and not of.notes
    assert (of.steps["mode"] == "graph").sum() == 10 and (of.steps["mode"] == "eager").sum() == 6
    for mode in of.modes:
        times = part_times(of, mode)
        assert list(times.index) == ["add", "product", "softmax", "gaps"]
        assert times["product"] > times["add"] > 1
    kinds = {"add": "elementwise", "softmax": "softmax"}  # in the names of the kernels that torch has for them
    for part, names in of.kernels.groupby("part")["name"]:
        for word in kinds.values():
            assert names.str.contains(word, case=False).all() == (word == kinds.get(part)), (part, set(names))


@pytest.fixture(scope="module")
def kineto(tmp_path_factory):
    return record(tmp_path_factory.mktemp("kineto")).folder / FILE


def test_kineto(kineto):
    check(analyse(kineto))
    assert kineto.stat().st_size < 100_000


def test_nsight_systems(kineto, tmp_path):
    nsys = shutil.which("nsys")
    if nsys is None:  # not every machine with a GPU has it
        assert "so Kineto records the step" in profile._why_not_nsight(nsys)
        return
    report, here = tmp_path / "capture.nsys-rep", os.path.dirname(os.path.dirname(__file__))
    program = [sys.executable, "-c", PROGRAM, str(tmp_path), here]
    subprocess.run(
        [nsys, "profile", *profile.FLAGS, "--output", str(report), *program], check=True, cwd=profile.batch.ROOT
    )
    kept = tmp_path / "kept"
    kept.mkdir()
    profile.keep(nsys, report, kept)
    capture = read(kept / SQLITE)
    assert crosscheck.differences(capture, kept) == []
    assert graphs.has_captured(capture)
    of = analyse(kept / SQLITE)
    check(of)
    positions = graphs.by_position(capture, EAGER, GRAPH)
    replays = positions.kernels["path"].astype(str).str.startswith("graph")
    assert positions.kernels["path"][replays].astype(str).equals(of.unfolded.kernels["path"][replays].astype(str))
    assert agreement(of, analyse(kineto), 5.0)["difference %"].abs().max() < 10  # small kernels, two processes
