"""Tensors of calls that are to be judged: pools, slots, strided inputs, and memory around what a kernel may write."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..bench.call_checks import guarded
from ..e4m3 import SMALLEST_SCALE
from ..hard_inputs import KINDS, inputs_of_kind
from ..ops import DecodeInputs, make_inputs
from ..pool import StatePool
from ..ring import store
from .trials import LIMITS, Trial

PADDING = -1
GUARD = 64  # elements before and behind `out`
GUARD_VALUE = -7.75  # exact in 16 bits
# Of a and b: beta of 0 and 1, softplus from nothing to far above its threshold.
GATE_LIMITS = (-80.0, -3.0, 0.0, 2.5, 6.0, 12.0, 19.5, 20.5, 80.0, 200.0)


@dataclass
class Made:
    """The tensors of one decode call.

    arguments: q, k, v, a, b, strided as asked. memory: the pool's state between two more slots. out_memory: `out`
    between GUARD elements; out is None if the call allocates it. live: the rows that are not padding; rows: the same on
    the device, int64. old: their states, [n, HV, V, K] float32.
    """

    trial: Trial
    pool: StatePool
    memory: Tensor
    indices: Tensor
    inputs: DecodeInputs
    arguments: tuple[Tensor, ...]
    out: Tensor | None
    out_memory: Tensor | None
    live: list[int]
    rows: Tensor
    old: Tensor

    @property
    def live_slots(self) -> Tensor:
        """The slots of the live rows. Indexing with a list instead copies it to the GPU, which waits for the stream."""
        return self.indices[self.rows]


def make(trial: Trial, layout: str, device) -> Made:
    """Make the tensors that a trial describes; the same on every device up to the pool's random state."""
    batch, slots = trial.batch, trial.slots
    pool = filled_pool(trial.shape, slots, layout=layout, dtype=trial.state_dtype, device=device, seed=trial.seed)
    inputs, state_std = _inputs(trial, device)
    if pool.scales is None:
        pool.state.mul_(state_std)
    else:
        pool.scales.mul_(state_std).clamp_(min=SMALLEST_SCALE)
    indices = row_slots(
        batch, slots, padding=trial.padding, dtype=trial.index_dtype, device=device, seed=trial.seed + 1
    )
    indices[indices < 0] = trial.padding_value
    live = [row for row in range(batch) if row not in trial.padding]
    named = {0, *indices[live].tolist()}
    if trial.poison:
        spoil(pool, [slot for slot in range(slots) if slot not in named])
    memory = guarded(pool)
    arguments = as_strided(inputs, trial.strides)
    out_memory = out = None
    if trial.out == "v":
        arguments = (*arguments[:2], arguments[2].contiguous().clone(), *arguments[3:])
        out = arguments[2]
    elif trial.out != "allocated":
        out_memory = inputs.v.new_full((inputs.v.numel() + 2 * GUARD,), GUARD_VALUE)
        out = out_memory[GUARD:-GUARD].view(inputs.v.shape)
        out.fill_(float(trial.out))
    rows = torch.tensor(live, dtype=torch.int64, device=device)
    old = pool.read(indices[rows])
    return Made(trial, pool, memory, indices, inputs, arguments, out, out_memory, live, rows, old)


def _inputs(trial: Trial, device) -> tuple[DecodeInputs, float]:
    """Return the inputs before they get their strides, and the standard deviation of the state."""
    options = {"device": device, "dtype": trial.io_dtype, "seed": trial.seed + 2}
    if trial.kind in KINDS:
        inputs, state_std = inputs_of_kind(trial.kind, trial.shape, trial.batch, **options)
    else:
        inputs = make_inputs(trial.shape, trial.batch, **options, strong_decay=trial.strong_decay)
        state_std = trial.state_std
    if trial.kind == LIMITS:
        rng = torch.Generator().manual_seed(trial.seed + 3)
        limits = torch.tensor(GATE_LIMITS, dtype=trial.io_dtype)
        for gate in (inputs.a, inputs.b):
            gate.copy_(limits[torch.randint(0, len(limits), gate.shape, generator=rng)])
        inputs.A_log.copy_(torch.empty(len(inputs.A_log)).uniform_(-6, 3, generator=rng))
    for x in (inputs.q, inputs.k):
        if not trial.l2norm:  # no longer than 1, so that the state stays bounded
            length = torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(trial.seed + 4)).to(x.device)
            x.copy_(torch.nn.functional.normalize(x.float(), dim=-1) * (0.3 + 0.7 * length[..., None]))
        elif trial.magnitude != 1.0:
            x.mul_(trial.magnitude)
    return inputs, state_std


def filled_pool(shape, slots, *, layout, dtype, device="cpu", seed=0) -> StatePool:
    """Make a pool whose every slot, the null slot too, holds random state, and every window random inputs."""
    pool = StatePool(shape, slots, layout=layout, dtype=dtype, device=device)
    rng = torch.Generator(device).manual_seed(seed)
    for slots_of_part in torch.arange(slots, device=device).split(64):
        part = torch.randn(len(slots_of_part), *pool.state.shape[1:], generator=rng, device=device)
        store(pool.state, pool.scales, slots_of_part, part)
    pool.conv.copy_(torch.randn(pool.conv.shape, generator=rng, device=device))
    return pool


def spoil(pool: StatePool, slots) -> None:
    """Put NaN into the state of slots, and into its scales if it has some."""
    pool.state[slots] = torch.nan
    if pool.scales is not None:
        pool.scales[slots] = torch.nan


def row_slots(batch, slots, *, padding=(), dtype=torch.int32, device="cpu", seed=0) -> Tensor:
    """Draw distinct slots from 1 up for `batch` rows, and make the rows in `padding` padding."""
    order = torch.randperm(slots - 1, generator=torch.Generator().manual_seed(seed))[:batch] + 1
    order[list(padding)] = PADDING
    return order.to(device, dtype)


def as_strided(inputs: DecodeInputs, kind: str) -> tuple[Tensor, ...]:
    """Return q, k, v, a, b with other strides. NaN around them: a read beside a tensor shows in the result.

    "packed": as they are, views of one mixed_qkv. "contiguous". "wide": rows 64 elements further apart. "odd": rows of
    odd stride that begin at an odd element. "apart": no two tensors of the same strides, heads apart too.
    """
    if kind == "packed":
        return inputs.arguments()
    if kind == "contiguous":
        return tuple(x.contiguous() for x in inputs.arguments())
    moved = []
    for n, x in enumerate(inputs.arguments()):
        if kind == "apart":
            B, heads, *dim = x.shape
            wide = x.new_full((B, heads + n, *(size + 16 * (n + 1) for size in dim)), torch.nan)
            view = wide[:, :heads, : dim[0]] if dim else wide[:, :heads]
        else:
            width = x.shape[1:].numel()
            before, row = (0, width + 64) if kind == "wide" else (3, width + 8 | 1)
            view = x.new_full((x.shape[0], row), torch.nan)[:, before : before + width].view(x.shape)
        moved.append(view.copy_(x))
    return tuple(moved)


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Tell whether two tensors are the same bit for bit: NaN equals itself, 0 differs from -0."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.dtype == y.dtype and torch.equal(x.contiguous().view(whole), y.contiguous().view(whole))
