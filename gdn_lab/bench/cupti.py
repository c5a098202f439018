"""Records of what ran on the GPU, from CUPTI through torch.profiler (Kineto).

CUPTI misdates the first records of a profile, more of them with every profile of a process, and Kineto drops those
(pytorch issue 192021). So each profile begins with marker kernels, and at least one of them must survive. The teardown
after one profile may hit the next, which then sees no kernels (kineto pull request 1554): hence TEARDOWN_CUPTI=0. Any
other lost record raises TimerUnavailable.
"""

import os
import warnings
from functools import cache

import torch

MARKERS = 2000  # marker kernels at the start of a profile, 2 to 3 µs each
_MARKER = "spin_kernel"  # what torch.cuda._sleep launches; no variant has a kernel of this name
_GPU_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}  # Kineto's names of what runs on the GPU in a graph

Record = tuple[str, int, int]  # name, start, end in ns of a kernel, copy or fill


class TimerUnavailable(RuntimeError):
    """A timer cannot run here, or lost records; the message says why and what to use instead."""


def refusal() -> str | None:
    """Say in one sentence why CUPTI cannot record in this process, or return None."""
    if "NSYS_PROFILING_SESSION_ID" in os.environ:
        return (
            "cupti_kernel cannot run inside Nsight Systems, because CUPTI takes one subscriber; "
            "read the kernel times from the Nsight Systems report, or run without it"
        )
    if torch.profiler.ProfilerActivity.CUDA not in torch.profiler.supported_activities():
        return f"cupti_kernel needs a torch built with CUPTI; torch {torch.__version__} is not, use cuda_graph_replay"
    if torch.autograd._profiler_enabled():
        return "cupti_kernel cannot run while a torch profiler records, because CUPTI takes one subscriber; stop it"
    return None


@cache
def start_cupti() -> None:
    """Record one profile and drop it. The first profile starts CUPTI, which takes seconds.

    Call this before the CUDA graphs exist whose kernels are to be recorded.
    """
    os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    # torch says that a profile keeps the events of its last cycle only; each profile here has one.
    warnings.filterwarnings("ignore", message="Warning: Profiler clears events", category=UserWarning)
    _profile([lambda: torch.cuda._sleep(1)])


def lead_in() -> None:
    """Launch the marker kernels that begin a profile, so that the records it loses are theirs."""
    for _ in range(MARKERS):
        torch.cuda._sleep(1)


def is_marker(name: str) -> bool:
    """Tell whether a kernel of this name is a marker of lead_in()."""
    return _MARKER in name


def record_replays(replays) -> list[list[Record]]:
    """Run the replays, functions that each enqueue GPU work, and return the records of each, in order of start.

    Raises TimerUnavailable if records were lost.
    """
    found = _split_at_markers(_profile(replays))
    if len(found) != len(replays):
        raise TimerUnavailable(
            f"CUPTI recorded kernels of {len(found)} replays, expected {len(replays)}: it lost records; "
            "take fewer samples or use cuda_graph_replay"
        )
    return found


def busy_us(kernels: list[tuple[int, int]]) -> list[float]:
    """For each kernel (start, end) in ns, return how many µs longer it kept the GPU busy than those before it.

    That is its duration, unless it started before its predecessor had ended (programmatic dependent launch).
    """
    busy, until = [], 0
    for start, end in kernels:
        busy.append(max(0, end - max(start, until)) / 1e3)
        until = max(until, end)
    return busy


def _profile(replays) -> list[Record]:
    """Run the replays with a marker kernel after each, and return the records in order of start."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        lead_in()
        for replay in replays:
            replay()
            torch.cuda._sleep(1)
        torch.cuda.synchronize()
    events = [event for event in profile.profiler.kineto_results.events() if _is_gpu_work(event)]
    records = [(event.name(), event.start_ns(), event.start_ns() + event.duration_ns()) for event in events]
    return sorted(records, key=lambda record: record[1])


def _is_gpu_work(event) -> bool:
    if event.device_type() != torch.autograd.DeviceType.CUDA:
        return False
    activity = getattr(event, "activity_type", None)  # since torch 2.12; before, only GPU work has this device type
    return activity is None or activity() in _GPU_WORK


def _split_at_markers(records: list[Record]) -> list[list[Record]]:
    """Return the records of each replay. Raises TimerUnavailable if no marker of the lead-in survived."""
    if not records or not is_marker(records[0][0]):
        raise TimerUnavailable(
            f"CUPTI lost the first kernels of a recording ({len(records)} kernels arrived, none of the lead-in before "
            "the first replay): use cuda_graph_replay, or start a new process"
        )
    replays, current = [], []
    for record in records:
        if not is_marker(record[0]):
            current.append(record)
        elif current:
            replays.append(current)
            current = []
    return replays + [current] if current else replays
