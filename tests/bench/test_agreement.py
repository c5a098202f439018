"""Disagreements of the two GPU timers are found, and gaps between kernels are none."""

import pytest

from gdn_lab.bench.agreement import CASE_FIELDS, disagreements
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
        (pair(7.0, 4.9), 0),
        (pair(4.9, 7.0), 0),
        (pair(5.0, 7.0), 1),
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


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("phase", "decode", "verify"),
        ("backend", "triton", "cutedsl"),
        ("variant", "kv32", "kv8"),
        ("indexing", "in_place", "gather_scatter"),
        ("mode", "update", "no update"),
        ("state_dtype", "bfloat16", "float32"),
        ("io_dtype", "bfloat16", "float16"),
        ("batch", 8, 64),
        ("tokens", 2, 4),
        ("length", 1024, 2048),
        ("ring_updates", 16, 32),
        ("num_k_heads", 2, 4),
        ("num_v_heads", 8, 16),
        ("model", "qwen3.5-35b-a3b", "qwen3-next-80b-a3b"),
        ("tp", 1, 2),
    ],
)
def test_only_rows_of_one_case_are_compared(field, one, other):
    """Each case agrees with itself and takes ten times as long as the other."""
    cases = [[row | {field: value} for row in pair(us, us, kernels=1)] for value, us in ((one, 100.0), (other, 1000.0))]
    assert field in CASE_FIELDS and disagreements(cases[0] + cases[1]) == []
    assert len(disagreements([cases[0][0], cases[0][1] | {"median_us": 90.0}])) == 1


def test_every_field_of_a_case_is_compared():
    (marks,) = (mark for mark in test_only_rows_of_one_case_are_compared.pytestmark if mark.name == "parametrize")
    assert [field for field, *_ in marks.args[1]] == list(CASE_FIELDS)


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
