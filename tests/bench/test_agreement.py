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


def test_sentences():
    varies, unexplained = disagreements(pair(730, 690, spread=0.14) + pair(103, 100, batch=8))
    assert varies.sentence() == (
        "triton/kv32 at B = 64: 730 µs by CUDA-graph replay, 690 µs by CUPTI (+5.8%): its calls differ among "
        "themselves (642 to 738 µs, 20th to 80th percentile); a replay averages them."
    )
    assert unexplained.sentence().endswith("B = 8: 103 µs by CUDA-graph replay, 100 µs by CUPTI (+3.0%): unexplained.")


def test_recorded_runs():
    """Of what is recorded, only a kernel whose two programs share each cache line disagrees, and on one GPU alone."""
    found = {
        (path.parent.parent.name, one.name)
        for path in DATA.glob("measured/*/*/run.json")
        for one in disagreements(load(path.parent)[1])
    }
    assert found <= {("h200", "triton/kv32")}
