"""Cheats in a timed kernel: each is planted in a kernel that is right wherever it is checked before timing."""

import time

import pytest
import torch
from planted_kernels import planted

from gdn_lab import GDNShape
from gdn_lab.backends import author_files
from gdn_lab.bench.guards import REPLAYED
from gdn_lab.bench.roof import Roof
from gdn_lab.studies.decode_kernels.sweep import decode_sweep

SHAPE = GDNShape(1, 2, 16, 16)
ROOF = Roof(10.0, 9.0, 11.0, 20, 1 << 20, "a bandwidth for tests")
QUICK = dict(device="cpu", samples=3, roof=ROOF, progress=False, indexings=["in_place"])
OFTEN = """
seen = {}


def often(*tensors):
    \"\"\"Whether these very tensors have come three times before, as they do only where calls are timed.\"\"\"
    key = tuple(x.data_ptr() for x in tensors)
    seen[key] = seen.get(key, 0) + 1
    return seen[key] > 3
"""
CHEATS = {
    "an output kept by its pointer": planted(
        before=OFTEN + "kept = {}",
        first="""if often(q, out, indices):
        return out.copy_(kept[out.data_ptr()])""",
        finish="out.copy_(torch.where(live[:, None, None], o, 0.0))\n    kept[out.data_ptr()] = out.clone()",
    ),
    "no work at all once it is timed": planted(before=OFTEN, first="if often(q, out, indices):\n        return"),
    "an output late, from a thread": planted(
        before=OFTEN,
        finish="""def late(wait):
        time.sleep(wait)
        out.copy_(torch.where(live[:, None, None], o, 0.0))
    if often(q, out, indices):
        threading.Thread(target=late, args=(0.02,)).start()
    else:
        late(0.0)""",
    ),
    "an output one call late": planted(
        before=OFTEN + "waiting = []",
        finish="""if often(q, out, indices):
        if waiting:
            out.copy_(waiting.pop())
        waiting.append(torch.where(live[:, None, None], o, 0.0))
    else:
        out.copy_(torch.where(live[:, None, None], o, 0.0))""",
    ),
    "only the first rows of inputs that it has seen": planted(
        before=OFTEN,
        finish="""out.copy_(torch.where(live[:, None, None], o, 0.0))
    if often(q, out, indices):
        out[1:] = 0""",
    ),
}


def sweep(path, variants, **options):
    author_files.load(path)
    rows = decode_sweep(SHAPE, [4], variants=variants, **QUICK | options)
    return {row["backend"]: row for row in rows}


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_that_begins_when_it_is_timed_is_wrong(name, kernel_file):
    found = sweep(kernel_file(CHEATS[name].source()), ["torch/vk", "planted/vk"])
    assert found["planted"]["status"] == "wrong" and found["planted"]["wrong_on"] == [REPLAYED], found["planted"]
    assert found["torch"]["status"] == "ok" and "median_us" not in found["planted"]


def test_a_patched_timer_changes_no_time_and_is_an_error(kernel_file, monkeypatch):
    monkeypatch.setattr(time, "perf_counter_ns", time.perf_counter_ns)  # put back afterwards
    fault = planted(before="clock = time.perf_counter_ns\ntime.perf_counter_ns = lambda: clock() // 1000")
    path = kernel_file(fault.source())
    honest = decode_sweep(SHAPE, [4], variants=["torch/vk"], **QUICK)[0]["median_us"]
    found = sweep(path, ["torch/vk", "planted/vk"])
    assert found["planted"]["status"] == "error"
    assert found["planted"]["reason"].startswith("time.perf_counter_ns was replaced by a function of mine.py, line ")
    assert found["torch"]["status"] == "ok" and found["torch"]["median_us"] > honest / 50


def test_a_right_kernel_is_timed_on_inputs_that_change(kernel_file, monkeypatch):
    """Before each sample the inputs are drawn anew, from a seed that no kernel can know."""
    fault = planted(before="sums = []", first="sums.append(float(q.float().sum()))")
    path = kernel_file(fault.source())
    found = sweep(path, ["planted/vk"], samples=5)
    sums = author_files.sys.modules[f"gdn_lab_kernel_{path.stem}_1"].sums
    assert found["planted"]["status"] == "ok" and len(set(sums)) >= 5 + 2
    assert torch.isfinite(torch.tensor(sums)).all()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "fault",
    [
        planted(first="if torch.cuda.is_current_stream_capturing():\n        return"),
        planted(
            before="side = torch.cuda.Stream()",
            finish="""if torch.cuda.is_current_stream_capturing():
        with torch.cuda.stream(side):
            side.wait_stream(torch.cuda.default_stream())
        return
    out.copy_(torch.where(live[:, None, None], o, 0.0))""",
        ),
    ],
    ids=["nothing in a graph", "output left out in a graph"],
)
def test_a_cheat_in_a_cuda_graph_is_no_time(fault, kernel_file):
    (name,) = author_files.load(kernel_file(fault.source()))
    rows = decode_sweep(
        GDNShape(2, 8), [4], variants=[name], indexings=["in_place"], device="cuda", timers=["cuda_graph_replay"],
        progress=False, samples=10,
    )  # fmt: skip
    assert [row["status"] for row in rows] == ["wrong"] or "captured" in rows[0]["reason"], rows
