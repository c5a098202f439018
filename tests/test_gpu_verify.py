"""verify() and commit() on an NVIDIA GPU: every backend, variant, layout, dtype and mode against the reference."""

import pytest
import torch
from against_reference import filled_pool, row_slots, same_bits
from on_gpu import BF16, FP32, GPU, RANK, pads_with_zero, serving, takes, with_dtypes
from tolerances import assert_close
from verify_against_reference import BOTH, INTERMEDIATE, OUTPUT, UPDATE, check_verify, inputs_of

from gdn_lab import GDNShape, decode, verify
from gdn_lab.backends.registry import VARIANTS, variant
from gdn_lab.ops import make_inputs

pytestmark = pytest.mark.gpu

ROUNDED_GATES = "flashinfer/wy"  # rounds A_log and dt_bias to bf16, outside the tolerance: it has a test of its own
VERIFYING = [v for v in serving("verify") if v.full_name != ROUNDED_GATES]
every_variant = with_dtypes(VERIFYING)


TOKENS = 6  # of most tests, since every number of tokens and mode is compiled; triton moves a bf16 state on at once


@every_variant
@pytest.mark.parametrize("mode", [UPDATE, INTERMEDIATE, OUTPUT])
def test_against_reference(variant, dtype, mode):
    """Strong decay, then nearly parallel keys; a padding row."""
    for kind in ("strong", "parallel"):
        pool = filled_pool(RANK, 9, layout=variant.layout, dtype=dtype, device=GPU)
        check_verify(
            pool, row_slots(6, 9, padding=[4], device=GPU), TOKENS, backend=variant.full_name, mode=mode,
            kind=kind, padding_is_zero=pads_with_zero(variant),
        )  # fmt: skip


def few_and_many(record):
    """(dtype, tokens) for a variant: few and many tokens in bf16, and in float32; of a peer few alone, to save time."""
    few = [(BF16, 2), (FP32, 2)] if record.role == "peer" else [(BF16, 2), (BF16, 16), (FP32, 16)]
    return [(dtype, tokens) for dtype, tokens in few if dtype in record.state_dtypes]


@pytest.mark.parametrize(
    "name, dtype, tokens",
    [(v.full_name, *case) for v in VERIFYING for case in few_and_many(v)],
    ids=str,
)
def test_few_and_many_tokens(name, dtype, tokens):
    """And more heads than in the other tests, for which kernels have other tiles."""
    for mode, kind in ((UPDATE, "strong"), (INTERMEDIATE, "parallel"), (OUTPUT, "strong")):
        pool = filled_pool(RANK, 36, layout=variant(name).layout, dtype=dtype, device=GPU)
        indices = row_slots(33, 36, padding=range(2, 30), device=GPU)  # to spare the reference time
        check_verify(
            pool, indices, tokens, backend=name, mode=mode, kind=kind, padding_is_zero=pads_with_zero(variant(name))
        )  # fmt: skip


@pytest.mark.parametrize("tokens, layout", [(2, "VK"), (4, "VK"), (16, "VK"), (16, "KV")])
def test_tiles_of_large_batches(tokens, layout):
    """Enough heads for the tiles that a full batch takes, in every mode; views, gaps and wide indices."""
    pool = filled_pool(RANK, 140, layout=layout, dtype=BF16, device=GPU)
    indices = row_slots(130, 140, padding=range(2, 127), dtype=torch.int64, device=GPU)  # to spare the reference time
    for mode in (OUTPUT, INTERMEDIATE, UPDATE, BOTH):
        check_verify(pool, indices, tokens, backend="triton", mode=mode, kind="parallel", reserved=tokens + 1)


@pytest.mark.parametrize(
    "dtype, io_dtype", [(BF16, torch.float16), (torch.float16, torch.float16), (BF16, FP32), (FP32, FP32)], ids=str
)
def test_other_input_dtypes(dtype, io_dtype):
    pool = filled_pool(RANK, 9, layout="VK", dtype=dtype, device=GPU)
    check_verify(
        pool, row_slots(3, 9, device=GPU), TOKENS, backend="triton", mode=BOTH, io_dtype=io_dtype, strides="odd"
    )


def test_flashinfers_wy_kernel_is_near():
    if not takes(VARIANTS[ROUNDED_GATES], phase="verify", mode="output"):
        return
    pool = filled_pool(RANK, 9, layout="VK", dtype=BF16, device=GPU)
    indices, x = row_slots(6, 9, device=GPU), make_inputs(RANK, 6, tokens=8, device=GPU)
    options = x.gates() | dict(pool=pool, indices=indices, update_state=False)
    near, exact = (verify(*x.arguments(), backend=name, **options).float() for name in (ROUNDED_GATES, "triton"))
    assert (near - exact).abs().max() < 0.02 * exact.abs().max()


@every_variant
def test_commit_equals_decoding_one_by_one(variant, dtype):
    """Every count of accepted tokens at once; captured in a CUDA graph, where nothing may synchronise."""
    tokens = TOKENS
    pool = filled_pool(RANK, 20, layout=variant.layout, dtype=dtype, device=GPU)
    rows = tokens + 2
    indices = row_slots(rows, 20, padding=[rows - 1], device=GPU)
    accepted = torch.arange(rows, device=GPU)
    x = inputs_of(RANK, rows, tokens, "strong", device=GPU)
    pool.reserve_drafts(rows, tokens)
    exact = pool.to(dtype=FP32)
    backend = variant.full_name
    verify(
        *x.arguments(), **x.gates(), pool=pool, indices=indices, backend=backend, update_state=False,
        intermediate_states=pool.intermediate_states,
    )  # fmt: skip
    pool.draft_inputs.normal_()
    before, conv = pool.state.clone(), pool.conv.clone()
    pool.commit(indices, torch.zeros_like(accepted))  # compiles, changes nothing
    assert same_bits(pool.state[1:], before[1:]) and same_bits(pool.conv[1:], conv[1:])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pool.commit(indices, accepted)
    graph.replay()

    for row in range(rows - 1):
        window = torch.cat([conv[indices[row].long()], pool.draft_inputs[row, :, :row]], dim=1)[:, -3:]
        assert same_bits(pool.conv[indices[row].long()], window)
        for t in range(row):
            arguments = (part[row : row + 1, t] for part in x.arguments())
            decode(*arguments, **x.gates(), pool=exact, indices=indices[row : row + 1])
    assert_close("state", pool.read(indices), exact.read(indices).double().cpu(), dtype)
    others = [slot for slot in range(1, 20) if slot not in indices.tolist() or slot == int(indices[0])]
    assert same_bits(pool.state[others], before[others]) and same_bits(pool.conv[others], conv[others])


def test_offsets_beyond_2_31_elements():
    """A pool and a buffer of more than 2^31 elements each."""
    shape = GDNShape(16, 64)
    pool = filled_pool(shape, 2100, layout="VK", dtype=BF16, device=GPU)
    indices = torch.tensor([2099, 1, 2050], dtype=torch.int32, device=GPU)
    pool.reserve_drafts(3, 700)
    assert pool.state.numel() > 2**31 and pool.intermediate_states.numel() > 2**31
    x, old = make_inputs(shape, 3, tokens=4, device=GPU), pool.read(indices)
    states = pool.intermediate_states[:, :4]
    verify(*x.arguments(), **x.gates(), pool=pool, indices=indices, intermediate_states=states, update_state=False)
    pool.commit(indices, torch.tensor([3, 0, 4], device=GPU))
    other = filled_pool(shape, 5, layout="VK", dtype=BF16, device=GPU)
    rows = torch.tensor([1, 2, 3], dtype=torch.int32, device=GPU)
    other.write(rows, old)
    other.reserve_drafts(3, 4)
    buffer = other.intermediate_states
    verify(*x.arguments(), **x.gates(), pool=other, indices=rows, intermediate_states=buffer, update_state=False)
    other.commit(rows, torch.tensor([3, 0, 4], device=GPU))
    assert same_bits(pool.state[indices.long()], other.state[rows.long()])
