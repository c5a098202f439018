"""Planted bugs that only a GPU shows, and the judge on a GPU."""

import pytest
from planted_kernels import PLANTED, Planted, planted

from gdn_lab.backends import author_files
from gdn_lab.judge import apart
from gdn_lab.judge.judging import FAIL, PASS, judge, verdict

pytestmark = pytest.mark.gpu

ADD = """
import triton
import triton.language as tl


@triton.jit
def add_half(halves, sums, total, N: tl.constexpr):
    i = tl.program_id(1) * N + tl.arange(0, N)
    part = tl.load(halves + tl.program_id(0) * total + i, mask=i < total)
    tl.store(sums + i, tl.load(sums + i, mask=i < total) + part, mask=i < total)
"""
COPY = """
import triton
import triton.language as tl


@triton.jit
def gather(state, slots, found, SLOT: tl.constexpr, N: tl.constexpr):
    i = tl.program_id(1) * N + tl.arange(0, N)
    slot = tl.load(slots + tl.program_id(0))
    tl.store(found + tl.program_id(0) * SLOT + i, tl.load(state + slot * SLOT + i))
"""
ON_GPU = {
    "race": planted(
        "reference",
        before=ADD,
        finish="""halves = torch.stack([torch.einsum("bhvk,bhk->bhv", S[..., n::2], qf[..., n::2]) for n in (0, 1)])
    sums = torch.zeros_like(o)
    add_half[(2, -(-o.numel() // 64))](halves, sums, o.numel(), 64)
    out.copy_(torch.where(live[:, None, None], sums, 0.0))""",
    ),
    "offsets of 32 bits, in Triton": planted(
        "64-bit offsets",
        before=COPY,
        gather="""torch.empty(B, *state.shape[1:], dtype=state.dtype, device=state.device)
    gather[(B, HV * V * K // 1024)](state, slots.int(), S, HV * V * K, 1024)
    S = S.float()""",
    ),
    "allocates": planted("no allocation", allocates="False"),
    "synchronises with the host": planted("no synchronisation", first="largest = int(indices.max())"),
    "waits for the GPU": planted("no synchronisation", first="torch.cuda.current_stream().synchronize()"),
    "on another stream": planted(
        "streams",
        before="side = torch.cuda.Stream()",
        finish="""side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(2_000_000)
        out.copy_(torch.where(live[:, None, None], o, 0.0))""",
    ),
    "reads on another stream": planted(
        "streams",
        before="side = torch.cuda.Stream()",
        first="""if not torch.cuda.is_current_stream_capturing():
        with torch.cuda.stream(side):
            q = q.clone()
        torch.cuda.current_stream().wait_stream(side)""",
    ),
    "does nothing in a CUDA graph": planted(
        "CUDA graph", first="if torch.cuda.is_current_stream_capturing():\n        return out.zero_()"
    ),
    "keeps the padding of its first call in a CUDA graph": planted(
        "CUDA graph", before="first = []", live="(first or first.append(indices >= 0) or first)[0] & (indices >= 0)"
    ),
}


@pytest.mark.parametrize("name", ON_GPU)
def test_a_bug_that_a_gpu_shows_is_found(name, kernel_file):
    fault = ON_GPU[name]
    (variant,) = author_files.load(kernel_file(fault.source()))
    found = judge(variant, "cuda", seconds=0.5, only=fault.checks)
    assert [finding.status for finding in found] == [FAIL] * len(fault.checks), found


def test_offsets_of_32_bits_are_found_in_a_process_of_their_own(kernel_file):
    """Indexing far outside ends a process's use of the GPU."""
    path = kernel_file(PLANTED["offsets of 32 bits"].source())
    request = {"judged": [str(path)], "kernels": [], "seed": 0, "only": ["64-bit offsets"]}
    found = list(apart.messages(request))
    statuses = [message["finding"]["status"] for message in found if "finding" in message]
    died = [message["during"] for message in found if "died" in message]
    assert statuses == [FAIL] or died == ["64-bit offsets"], found


def test_nothing_is_found_in_the_kernel_without_one(kernel_file):
    (variant,) = author_files.load(kernel_file(Planted((), {}).source()))
    found = judge(variant, "cuda", seconds=0.5)
    assert verdict(found) == "correct" and sum(finding.status == PASS for finding in found) >= 20, found
