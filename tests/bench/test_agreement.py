"""Disagreements of the two GPU timers are found, and gaps between kernels are none."""

import pytest

from gdn_lab.bench.agreement import disagreements
from gdn_lab.bench.results import load
from gdn_lab.report.recorded import DATA


def pair(replay_us, kernel_us, *, spread=0.01, name="triton/kv32", indexing="in_place", phase="decode", **fields):
    backend, variant = name.split("/")
    case = {"status": "ok", "phase": phase, "backend": backend, "variant": variant, "indexing": indexing}
    case |= {"batch": 64, "tokens": 1} | fields
    low, high = kernel_us * (1 - spread / 2), kernel_us * (1 + spread / 2)
    return [
        case | {"timer": "cuda_graph_replay", "median_us": replay_us, "p20_us": replay_us, "p80_us": replay_us},
        case | {"timer": "cupti_kernel", "median_us": kernel_us, "p20_us": low, "p80_us": high},
    ]


@pytest.mark.parametrize(
    "rows, found",
    [
        (pair(100, 99), 0),
        (pair(110, 100), 1),
        (pair(97, 100), 1),
        (pair(8.4, 8.0), 0),  # the gap to the next kernel
        (pair(97.5, 100), 1),  # gaps make a replay longer, never shorter
        (pair(12.0, 10.0), 1),
        (pair(4.9, 4.0), 0),  # too short to say
        (pair(110, 100, name="torch/vk"), 0),  # an unknown number of kernels
        (pair(110, 100, indexing="gather_scatter"), 0),
        (pair(110, 100, indexing="gather_scatter", kernels=3), 1),
        (pair(110, 100, kernels=20), 0),
        (pair(110, 100)[:1], 0),
        (pair(110, 100)[1:], 0),
    ],
)
def test_what_counts(rows, found):
    assert len(disagreements(rows)) == found


def test_whether_single_calls_explain_it():
    varies, unexplained = disagreements(pair(103, 100, batch=8) + pair(730, 690, spread=0.14))
    assert varies.name == "triton/kv32" and varies.relative == pytest.approx(40 / 690) and varies.varies
    assert unexplained.replay["batch"] == 8 and not unexplained.varies


def test_recorded_runs():
    """Those that disagree make calls that differ: a ring is written in one of 17 (a median of calls leaves that out, a
    mean of replays does not), two programs of triton/kv32 share each cache line, and eager torch is many kernels."""
    found = {
        (path.parent.parent.name, one.name)
        for path in DATA.glob("measured/*/*/run.json")
        for one in disagreements(load(path.parent)[1])
    }
    names = ("triton/kv32", "triton/replay", "triton/replay-fp8", "torch/vk")
    assert found <= {("h200", name) for name in names}
