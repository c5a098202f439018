"""A step recorded on a GPU by Kineto, and by Nsight Systems if nsys is there, with numbers equal to its own reports."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from gdn_lab.bench.results import Run
from gdn_lab.cli import profile
from gdn_lab.studies.decode_step.record import KINETO_FILE, NSIGHT_FILE, record_step
from gdn_lab.studies.nsight_systems.analysis import agreement, part_times
from gdn_lab.trace import crosscheck, graphs, nvtx_range, read
from gdn_lab.trace.ranges import EAGER, GRAPH
from gdn_lab.trace.steps import read_steps

pytestmark = [pytest.mark.gpu, pytest.mark.alone]  # what runs at the same time would lengthen what it records
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
    record_step([step, step], run, eager=3, replays=5)
    return run


def check(trace):
    assert trace.step == "decode step" and trace.modes == ["graph", "eager"] and not trace.notes
    assert len(trace.steps_of("graph")) == 10 and len(trace.steps_of("eager")) == 6
    for mode in trace.modes:
        times = part_times(trace, mode)
        assert list(times.index) == ["add", "product", "softmax", "gaps"]
        assert times["product"] > times["add"] > 1
    kinds = {"add": "elementwise", "softmax": "softmax"}  # in the names of the kernels that torch has for them
    for part, names in trace.kernels.groupby("part")["name"]:
        for word in kinds.values():
            assert names.str.contains(word, case=False).all() == (word == kinds.get(part)), (part, set(names))


@pytest.fixture(scope="module")
def kineto(tmp_path_factory):
    return record(tmp_path_factory.mktemp("kineto")).folder / KINETO_FILE


def test_kineto(kineto):
    check(read_steps(kineto))
    assert kineto.stat().st_size < 100_000


def test_nsight_systems(kineto, tmp_path):
    nsys = shutil.which("nsys")
    if nsys is None:  # not every machine with a GPU has it
        pytest.skip("there is no nsys here")
    report, here = tmp_path / "capture.nsys-rep", os.path.dirname(__file__)
    program = [sys.executable, "-c", PROGRAM, str(tmp_path), here]
    subprocess.run(
        [nsys, "profile", *profile.FLAGS, "--output", str(report), *program], check=True, cwd=profile.batch.ROOT
    )
    kept = tmp_path / "kept"
    kept.mkdir()
    profile.keep(nsys, report, kept)
    trace = read(kept / NSIGHT_FILE)
    assert crosscheck.differences(trace, kept) == []
    assert graphs.has_graph_capture(trace)
    steps = read_steps(kept / NSIGHT_FILE)
    check(steps)
    positions = graphs.by_position(trace, EAGER, GRAPH)
    replays = positions.kernels["path"].astype(str).str.startswith("graph")
    assert positions.kernels["path"][replays].astype(str).equals(steps.unfolded.kernels["path"][replays].astype(str))
    assert agreement(steps, read_steps(kineto), 5.0)["difference %"].abs().max() < 10  # small kernels, two processes
