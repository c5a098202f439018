"""Checks of a decode kernel that need a GPU: CUDA graphs, allocations, synchronisation, streams, what was compiled."""

import dataclasses

import torch

from .attempt import Refused, Wrong, judge, kept, taken
from .candidate import Candidate
from .making import make

REPLAYS = 4
SPIN_CYCLES = 100_000_000  # of torch.cuda._sleep: about 50 ms
SPINS = (SPIN_CYCLES, 6 * SPIN_CYCLES)  # the longer one where the host is too slow for the first
SYNCHRONISES = (
    "DataDependentOutputException",  # .item(), .tolist(), bool()
    "DynamicOutputShapeException",  # nonzero(), x[mask]
)


def needs_gpu(candidate: Candidate) -> None:
    if candidate.device.type != "cuda":
        raise Refused("needs a GPU")


def cuda_graph(candidate: Candidate, seconds: float) -> str:
    """Captured once and replayed after inputs, indices and states have changed, each replay judged."""
    needs_gpu(candidate)
    if "decode" in candidate.record.host_sync:
        raise Refused("says that it synchronises with the host (host_sync)")
    made = candidate.make(candidate.usual(batch=7, padding=(2,)))
    graph = captured(lambda: candidate.run(made))
    for replay in range(REPLAYS):
        refill(made, candidate.seed + 50 + replay, padding=(replay,))
        before = kept(made)
        graph.replay()
        try:
            judge(candidate, made, before, *taken(made, made.out))
        except Wrong as error:
            raise Wrong(f"in replay {replay} of its CUDA graph, with new values: {error}") from None
    return f"{REPLAYS} replays"


def captured(call) -> torch.cuda.CUDAGraph:
    """Make a call once, then capture it in a CUDA graph. Wrong if it cannot be."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):  # restores the current stream, which a capture that fails does not
            call()
            stream.synchronize()
            with torch.cuda.graph(graph, stream=stream):
                call()
    except RuntimeError as error:
        raise Wrong(f"cannot be captured in a CUDA graph: {str(error).splitlines()[0]}") from error
    torch.cuda.current_stream().wait_stream(stream)
    return graph


def refill(made, seed: int, padding=()) -> None:
    """Put other inputs, indices and states into the tensors of a call."""
    trial = dataclasses.replace(made.trial, seed=seed, padding=padding, strides="packed")
    fresh = make(trial, made.pool.layout, made.pool.device)
    for x, new in zip(made.arguments, fresh.arguments, strict=True):
        x.copy_(new)
    made.indices.copy_(fresh.indices)
    made.pool.settle(torch.arange(1, made.pool.slots, device=made.pool.device))  # nothing stays pending in a ring
    made.memory.copy_(fresh.memory)
    if made.pool.scales is not None:
        made.pool.scales.copy_(fresh.pool.scales)
    made.pool.conv.copy_(fresh.pool.conv)
    made.inputs.A_log.copy_(fresh.inputs.A_log)
    made.inputs.dt_bias.copy_(fresh.inputs.dt_bias)
    made.live, made.rows, made.old, made.trial = fresh.live, fresh.rows, fresh.old, trial
    if made.out is not None:
        made.out.fill_(torch.nan)


def no_allocation(candidate: Candidate, seconds: float) -> str:
    """With out= a call allocates no GPU memory, at several batch sizes, once each has been called before."""
    needs_gpu(candidate)
    if candidate.record.allocates or candidate.record.copies:
        raise Refused("says that it allocates (allocates)")
    for batch in (1, 7, 33):
        made = candidate.make(candidate.usual(batch=batch))
        candidate.run(made)
        torch.cuda.synchronize()
        before = torch.cuda.memory_stats(candidate.device)["allocation.all.allocated"]
        for _ in range(3):
            candidate.run(made)
        torch.cuda.synchronize()
        more = torch.cuda.memory_stats(candidate.device)["allocation.all.allocated"] - before
        if more:
            raise Wrong(f"3 calls with out= made {more} allocations of GPU memory (B = {batch})")
    return "none at B = 1, 7 and 33"


def no_synchronisation(candidate: Candidate, seconds: float) -> str:
    """A call returns without waiting for the GPU."""
    if "decode" in candidate.record.host_sync:
        raise Refused("says that it synchronises with the host (host_sync)")
    if candidate.device.type != "cuda":
        return _fake_call(candidate)
    made = candidate.make(candidate.usual(batch=4, padding=(1,)))
    candidate.run(made)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        candidate.run(made)
    except RuntimeError as error:
        raise Wrong(f"synchronises with the host: {str(error).splitlines()[0]}") from error
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    torch.cuda._sleep(SPIN_CYCLES)
    idle = torch.cuda.Event()
    idle.record()
    candidate.run(made)
    if idle.query():
        raise Wrong("the call returned only after the work before it on its stream had ended")
    return "none"


def _fake_call(candidate: Candidate) -> str:
    """On a CPU: make a call with tensors that have no values, in which whatever reads one raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ..backends.base import State
    from ..backends.registry import Call, launch_for

    if candidate.uses_triton:
        raise Refused("on a CPU it can be told of plain PyTorch alone")
    made = candidate.make(candidate.usual(padding=(1,)))
    shape, state_dtype, io_dtype, index_dtype = candidate.usual_call()
    call = Call("decode", candidate.layout, state_dtype, io_dtype, index_dtype, shape, candidate.device)
    launch, mode = launch_for(candidate.name, call), FakeTensorMode()
    fake = [mode.from_tensor(x) for x in made.arguments]
    gates = {name: mode.from_tensor(x) for name, x in made.inputs.gates().items()}
    tensors = dict(
        state=State(mode.from_tensor(made.pool.state)),
        indices=mode.from_tensor(made.indices),
        out=mode.from_tensor(made.out.clone()),
    )
    try:
        with mode:
            launch(*fake, **gates, **tensors, scale=0.1, use_qk_l2norm=True)
    except Exception as error:
        if type(error).__name__ in SYNCHRONISES:
            raise Wrong(f"reads values of a tensor on the host ({error}), which on a GPU waits for it") from error
        raise Refused("on a CPU it can be told of plain PyTorch alone") from error
    return "none: no value is read on the host"


def streams(candidate: Candidate, seconds: float) -> str:
    """On the current stream and no other: after the work before it there, before the work after it.

    Refused if that work had ended before the call was made, however long it was: no order shows then.
    """
    needs_gpu(candidate)
    made = candidate.make(candidate.usual(batch=6, padding=(2,)))
    candidate.run(made)  # compiles
    for stream in (torch.cuda.Stream(), torch.cuda.current_stream()):
        if not any(_behind_a_spin(candidate, made, stream, cycles) for cycles in SPINS):
            raise Refused("the host took longer than the work that a call has to wait for, so no order can be seen")
    return "a stream of its own, and the usual one"


def _behind_a_spin(candidate: Candidate, made, stream, cycles: int) -> bool:
    """Judge a call on `stream` behind a kernel that spins; return whether that still ran when the call was made."""
    fresh = candidate.make(dataclasses.replace(made.trial, seed=candidate.seed + 77))
    refill(made, candidate.seed + 76, padding=(2,))
    torch.cuda.synchronize()
    spun = torch.cuda.Event()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(cycles)
        spun.record()
        for x, new in zip(made.arguments, fresh.arguments, strict=True):
            x.copy_(new)
        before = kept(made)
        spins = not spun.query()
        found = taken(made, candidate.run(made))
        for x in made.arguments[:2]:  # what comes later on the stream must come later
            x.zero_()
        for x, was in zip(made.arguments[:2], ("q", "k"), strict=True):
            x.copy_(before[was])
    torch.cuda.synchronize()
    try:
        judge(candidate, made, before, *found)
    except Wrong as error:
        raise Wrong(f"does not keep to the current stream: {error}") from None
    return spins
