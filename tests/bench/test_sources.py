"""Hashes of the kernels' sources: prose does not count, code does."""

import pytest

from gdn_lab.bench import sources
from gdn_lab.bench.results import load
from gdn_lab.bench.sources import changed_since, kernel_hashes
from gdn_lab.report.recorded import DATA

KERNEL = '''"""A kernel."""
import triton
TILE = 32  # columns

@triton.jit
def kernel(x, n):
    """Negate x."""
    place = 3  # of the tile
    asm("mov.u64 $0, %globaltimer;", x)
    if n > 8:
        raise ValueError(f"n: expected at most 8, got {n}")
    return -x


class Thing:
    """Only prose."""

    variants = (Variant("vk", "a sentence", colour="#000000"),)
'''


def hashed(text=KERNEL, path="backends/triton/recurrent.py"):
    return sources._hashes({path: text})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# columns", "# rows"),
        ('"""Negate x."""', '"""Make x negative."""'),
        ('"""A kernel."""', ""),
        ("import triton", "import triton, os"),
        ("expected at most 8", "must not exceed 8"),
        ("a sentence", "another sentence"),
        ("#000000", "#ffffff"),
        ("n > 8:", "(n > 8):"),
    ],
)
def test_prose_does_not_count(old, new):
    assert old in KERNEL and hashed(KERNEL.replace(old, new)) == hashed()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("TILE = 32", "TILE = 64"),
        ("-x", "x"),
        ("n > 8", "n > 9"),
        ("mov.u64", "mov.u32"),
        ("kernel(x, n)", "kernel(x, m)"),
    ],
)
def test_code_counts(old, new):
    assert old in KERNEL and hashed(KERNEL.replace(old, new)) != hashed()


def test_a_definition_may_move_within_its_room():
    first, second = "A = 1\n", "B = 2\n"
    together = sources._hashes({"backends/triton_tokens.py": first + second})
    apart = sources._hashes({"backends/triton/device.py": second, "backends/triton/recurrent.py": first})
    assert together == apart and list(apart) == ["triton"]


@pytest.mark.parametrize(
    ("path", "room"),
    [
        ("backends/triton/verify.py", "triton"),
        ("backends/triton_tokens.py", "triton"),
        ("backends/gates.py", "triton"),
        ("backends/cutedsl_decode.py", "cutedsl"),
        ("backends/peers.py", "fla"),
        ("backends/fla.py", "fla"),
        ("layer/kernels/conv.py", "layer"),
        ("step/layer_kernels.py", "layer"),
        ("pool_kernels.py", "pool"),
        ("commit_kernels.py", "pool"),
        ("backends/base.py", None),
        ("backends/__init__.py", None),
        ("layer/step.py", None),
        ("ops.py", None),
    ],
)
def test_rooms(path, room):
    assert sources._room(path) == room


def test_rooms_of_this_checkout():
    assert {"cutedsl", "fla", "flashinfer", "layer", "pool", "torch", "triton"} <= set(kernel_hashes())


def test_what_has_changed():
    now = kernel_hashes()
    assert changed_since({"kernels": now}) == []
    assert changed_since({"kernels": now | {"triton": "0", "pool": "1", "gone": "2"}}) == ["pool", "triton"]
    assert changed_since({"kernels": {name: now[name] for name in ("triton", "pool")}}) == []


def test_a_run_without_hashes_is_compared_with_its_commit(monkeypatch):
    assert changed_since({"environment": {}}) is None
    assert changed_since({"environment": {"git_commit": "0" * 40, "git_dirty": False}}) is None
    monkeypatch.setattr(sources, "_hashes_of_commit", lambda commit: kernel_hashes() | {"pool": commit})
    assert changed_since({"environment": {"git_commit": "abc", "git_dirty": False}}) == ["pool"]
    assert changed_since({"environment": {"git_commit": "abc", "git_dirty": True}}) is None


def test_recorded_runs_are_compared_or_not_known():
    for path in DATA.glob("measured/*/*/run.json"):
        changed = changed_since(load(path.parent)[0])
        assert changed is None or set(changed) <= set(kernel_hashes())
