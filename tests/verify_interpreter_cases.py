"""The Triton verify kernels in Triton's interpreter, against the reference. Run by test_triton_interpreter.py."""

from itertools import product

import numpy
import pytest
import torch
from against_reference import PADDING, filled_pool, row_slots, same_bits
from isolation import reached
from tolerances import assert_close
from verify_against_reference import BOTH, INTERMEDIATE, OUTPUT, UPDATE, check_verify

from gdn_lab import GDNShape, StatePool, pool_kernels, reference, verify
from gdn_lab.backends.base import State
from gdn_lab.backends.registry import VARIANTS
from gdn_lab.backends.triton import verify as triton_verify
from gdn_lab.backends.triton.recurrent import Tile
from gdn_lab.ops import make_inputs

assert triton_verify.INTERPRETED, "run under TRITON_INTERPRET=1"
SMALL = GDNShape(2, 4, 16, 32)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
both_layouts = pytest.mark.parametrize("layout", ["VK", "KV"])
FEW_TOKENS = product([(2, "strong", FP32), (5, "parallel", BF16)], [UPDATE, INTERMEDIATE, OUTPUT, BOTH], ["VK", "KV"])
# verify_kernel also updates the state here; the rest is the same lines as for few tokens, once or twice a mode
MOST_TOKENS = [
    ((16, "strong", BF16), UPDATE, "VK"),
    ((16, "parallel", BF16), UPDATE, "KV"),
    ((16, "parallel", FP32), UPDATE, "KV"),
    ((16, "parallel", FP32), OUTPUT, "VK"),
    ((16, "strong", BF16), OUTPUT, "KV"),
    ((16, "parallel", BF16), INTERMEDIATE, "VK"),
    ((16, "strong", FP32), BOTH, "KV"),
]


def check(pool, indices, tokens, **options):
    return check_verify(pool, indices, tokens, backend="triton", interpreted=True, **options)


@pytest.mark.parametrize("call, mode, layout", [*FEW_TOKENS, *MOST_TOKENS], ids=str)
def test_tokens(call, mode, layout):
    """A padding row in the middle, slots that nobody names, keys hard to tell apart, decay that forgets everything."""
    tokens, kind, io_dtype = call
    pool = filled_pool(SMALL, 6, layout=layout, dtype=FP32)
    check(pool, row_slots(3, 6, padding=[1]), tokens, mode=mode, kind=kind, io_dtype=io_dtype)


@both_layouts
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("io_dtype", [BF16, FP16], ids=str)
def test_dtypes(dtype, io_dtype, layout):
    pool = filled_pool(SMALL, 6, layout=layout, dtype=dtype)
    check(pool, row_slots(2, 6, dtype=torch.int64), 3, mode=BOTH, io_dtype=io_dtype)


@both_layouts
def test_strides_and_reserved_rows(layout):
    pool = filled_pool(SMALL, 6, layout=layout, dtype=FP32)
    check(pool, row_slots(3, 6), 3, mode=INTERMEDIATE, strides="odd", reserved=5)


def test_scale_and_no_norm():
    pool = filled_pool(SMALL, 3, layout="VK", dtype=FP32)
    out = torch.full((1, 4, 4, 32), torch.nan, dtype=FP32)
    o, _ = check(pool, row_slots(1, 3), 4, mode=BOTH, io_dtype=FP32, scale=0.5, use_qk_l2norm=False, out=out)
    assert o is out


@pytest.mark.parametrize("tile", [16, 32, 64])
@pytest.mark.parametrize("mode", [UPDATE, INTERMEDIATE, OUTPUT])
def test_other_tiles(monkeypatch, tile, mode):
    """And all value heads of a key head prepared by one program, as where a GPU is full."""
    monkeypatch.setattr(triton_verify, "SATURATED_HEADS", 1)
    for name in ("tiling", "verify_tile"):
        monkeypatch.setattr(triton_verify, name, lambda *_: Tile(tile, 1))
    pool = filled_pool(GDNShape(2, 6, 16, 64), 4, layout="VK", dtype=BF16)
    check(pool, row_slots(2, 4), 7, mode=mode)


def test_the_models_head_size():
    pool = filled_pool(GDNShape(1, 2), 3, layout="VK", dtype=BF16)
    check(pool, row_slots(1, 3), 4, mode=BOTH)


@both_layouts
def test_offsets_beyond_2_31_elements(layout):
    """Slots of 2^11 elements: slot 2^20 begins at element 2^31. The memory is there only where it is touched."""
    shape, slots = GDNShape(1, 2, 32, 32), 2**20 + 3
    pool = StatePool(shape, 2, layout=layout, dtype=BF16)
    pool.slots = slots
    pool.state = torch.from_numpy(numpy.zeros(slots * 2048, numpy.int16)).view(BF16).view(slots, 2, 32, 32)
    pool.launch_state = State(pool.state)
    indices = torch.tensor([2**20, PADDING, slots - 1], dtype=torch.int32)
    live = [0, 2]
    old = torch.randn(2, 2, 32, 32, generator=torch.Generator().manual_seed(0)).to(BF16)
    pool.write(indices[live], old)
    x = make_inputs(shape, 3, tokens=2)
    o = verify(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend="triton")
    expected_o, expected = reference.verify(*(t[live] for t in x.arguments()), **x.gates(), state=old)
    assert_close("o", o[live], expected_o, BF16, interpreted=True)
    assert_close("state", pool.read(indices[live]), expected[:, -1], BF16, interpreted=True)
    assert not pool.state[[0, 1, 2, 2**20 - 1, 2**20 + 1]].any()


@pytest.mark.parametrize("tokens", [2, 5])
@both_layouts
def test_commit_kernels_equal_torch(tokens, layout):
    """Every count, padding, more tokens reserved than used; what the kernels leave out goes to torch's null slot."""
    pool = filled_pool(GDNShape(1, 3, 16, 32), 10, layout=layout, dtype=BF16)
    rows = tokens + 2
    pool.reserve_drafts(rows + 1, tokens + 2)
    for drafts in (pool.intermediate_states, pool.draft_inputs):
        drafts.copy_(torch.randn(drafts.shape, generator=torch.Generator().manual_seed(0)))
    for dtype in (torch.int32, torch.int64):
        indices = row_slots(rows, 10, padding=[rows - 1], dtype=dtype)
        accepted = torch.arange(rows, dtype=dtype)
        other = pool.to()
        pool_kernels.commit(
            other.state, other.conv, indices, accepted, pool.intermediate_states[:rows], pool.draft_inputs[:rows]
        )
        pool.commit(indices, accepted)
        assert same_bits(other.state[1:], pool.state[1:]) and same_bits(other.conv[1:], pool.conv[1:])


@both_layouts
def test_isolation(layout, monkeypatch):
    """NaN in one row changes no bit of another, in any mode. Of VK two tiles of a head do; KV has one."""
    for name in ("tiling", "verify_tile") if layout == "VK" else ():
        monkeypatch.setattr(triton_verify, name, lambda *_: Tile(16, 1))
    name = "triton/vk" if layout == "VK" else "triton/kv32"
    assert not reached(VARIANTS[name], "verify", GDNShape(1, 2, 16, 32), FP32)
