"""NaN in one row, sequence or slot must not change a bit of another: one call clean, one spoilt, compared.

reached() says whether it did. Used for every backend and phase, on a CPU and on a GPU.
"""

import functools

import torch
from against_reference import filled_pool, row_slots, same_bits

from gdn_lab import decode, prefill, verify
from gdn_lab.backends import refusal
from gdn_lab.backends.base import VERIFY_MODES
from gdn_lab.e4m3 import draft_dtype
from gdn_lab.ops import make_inputs

LENGTHS = (70, 94, 5, 64, 33)  # of prefill sequences: most end within a chunk
SPOILT = (0, 2, 4)  # rows or sequences that hold NaN, one at a time; row 1 is padding
PADDING_ROW = 1
TOKENS = 3  # of a verify call


def reached(variant, phase, shape, dtype, device="cpu", io_dtype=torch.bfloat16) -> bool:
    """Whether NaN in the inputs and the slot of one row changed anything of another row, in any mode of `phase`."""
    calls = [
        Call(variant, phase, mode, shape, dtype, device, io_dtype)
        for mode in (VERIFY_MODES[:3] if phase == "verify" else (None,))
        if takes(variant, phase, mode, shape, dtype, device)
    ]
    assert calls, f"{variant.full_name} takes no {phase} call here"
    return any(call.reaches(row) for call in calls for row in (*SPOILT, PADDING_ROW))


def takes(variant, phase, mode, shape, dtype, device) -> bool:
    """Whether a variant serves calls of this mode here."""
    options = dict(layout=variant.layout, dtype=dtype, device=device, phase=phase, mode=mode)
    return refusal(variant.full_name, shape, **options) is None


class Call:
    """One call of five rows or sequences, the second of them padding, that can be repeated with one row spoilt."""

    def __init__(self, variant, phase, mode, shape, dtype, device, io_dtype):
        self.variant, self.phase, self.mode, self.device = variant, phase, mode, device
        rows, tokens = (
            (sum(LENGTHS), None) if phase == "prefill" else (len(LENGTHS), None if phase == "decode" else TOKENS)
        )
        self.inputs = make_inputs(shape, rows, tokens=tokens, device=device, dtype=io_dtype)
        self.pool = filled_pool(shape, 9, layout=variant.layout, dtype=dtype, device=device)
        self.pool.reserve_ring(variant.ring, key_dtype=io_dtype)
        self.pool.state[0] = 0  # the null slot, which padding rows may read
        self.indices = row_slots(len(LENGTHS), 9, padding=[PADDING_ROW], device=device)
        self.bounds = torch.tensor([0, *LENGTHS], device=device).cumsum(0).to(torch.int64)

    def tokens_of(self, row: int) -> slice:
        """Where row or sequence `row` lies in q, k, v, a, b and the output."""
        if self.phase != "prefill":
            return slice(row, row + 1)
        return slice(sum(LENGTHS[:row]), sum(LENGTHS[: row + 1]))

    def run(self, spoilt: int | None = None):
        """Return the output, the pool's state and the stored states (or None), with NaN in one row if asked."""
        pool, arguments = self.pool.to(), [x.clone() for x in self.inputs.arguments()]
        if spoilt is not None:
            for x in arguments:
                x[self.tokens_of(spoilt)] = torch.nan
            if self.indices[spoilt] >= 0:
                pool.state[self.indices[spoilt].long()] = torch.nan
        options = dict(**self.inputs.gates(), pool=pool, indices=self.indices, backend=self.variant.full_name)
        if self.phase == "decode":
            o = decode(*arguments, **options)
            pool.settle(torch.arange(1, pool.slots, device=self.device))
            return o, pool.state, None
        if self.phase == "prefill":
            return prefill(*arguments, **options, cu_seqlens=self.bounds), pool.state, None
        buffer = None
        if "intermediate" in self.mode:
            inner = pool.state.shape[1:]
            buffer = torch.zeros(len(LENGTHS), TOKENS, *inner, dtype=draft_dtype(pool.dtype), device=self.device)
        o = verify(*arguments, **options, intermediate_states=buffer, update_state="update" in self.mode)
        return o, pool.state, buffer

    @functools.cached_property
    def clean(self):
        """What run() returns with no row spoilt."""
        return self.run()

    def reaches(self, spoilt: int) -> bool:
        """Whether the live rows other than `spoilt`, or a slot that no row names, differ from those of a clean call."""
        clean, dirty = self.clean, self.run(spoilt)
        for row in range(len(LENGTHS)):
            if row in (spoilt, PADDING_ROW):
                continue
            where = self.tokens_of(row)
            slot = self.indices[row].long()
            pairs = [(clean[0][where], dirty[0][where]), (clean[1][slot], dirty[1][slot])]
            pairs += [] if clean[2] is None else [(clean[2][row], dirty[2][row])]
            if not all(same_bits(a, b) for a, b in pairs):
                return True
        unnamed = sorted(set(range(1, 9)) - set(self.indices.tolist()))
        return not same_bits(clean[1][unnamed], dirty[1][unnamed])
