"""What limits a kernel: bytes, launches, or what its registers and blocks leave of an SM. Sentences and a table."""

from typing import NamedTuple

from ..report.text import cut, gb, listed, micro, percent
from ..report.timed import Timed
from .launched import Launched

BANDWIDTH_BOUND = 0.9  # of the measured bandwidth: only fewer bytes help
LOW_OCCUPANCY = 0.5


class Limits(NamedTuple):
    """Of one kernel at one batch. Times in µs; floor_us: its bytes at the measured bandwidth.

    kernel_us, kernels: by CUPTI, None where it could not record. share: of the measured bandwidth.
    """

    batch: int
    us: float
    floor_us: float
    kernel_us: float | None
    kernels: int | None
    gb_per_s: float
    share: float


def limits(timed: Timed, name: str) -> list[Limits]:
    """What the timed rows of a kernel say, by batch."""
    replay = {row["batch"]: row for row in timed.selected(timer="cuda_graph_replay").by_variant().get(name, [])}
    alone = {row["batch"]: row for row in timed.selected(timer="cupti_kernel").by_variant().get(name, [])}
    return [
        Limits(
            batch,
            row["median_us"],
            row["bytes"] / row["roof_gb_per_s"] / 1e3,
            alone[batch]["median_us"] if batch in alone else None,
            alone[batch].get("kernels") if batch in alone else None,
            row["gb_per_s"],
            row["share_of_roof"],
        )
        for batch, row in sorted(replay.items())
    ]


def sentences(found: list[Limits], launches: list[Launched]) -> list[str]:
    """What limits the kernel at the largest batch, and at the smallest."""
    if not found:
        return []
    small, large = found[0], found[-1]
    said = [
        f"At B = {large.batch} it moves {gb(large.gb_per_s)} GB/s, {percent(large.share)} of the measured bandwidth"
    ]
    if large.share >= BANDWIDTH_BOUND:
        said[0] += ": memory bandwidth limits it, and only moving fewer bytes would help."
    else:
        said[0] += f": {micro(large.us - large.floor_us)} of {micro(large.us)} are more than its bytes take."
        said += occupancy(launches)
    if small.batch != large.batch:
        said.append(_small(small))
    return said


def occupancy(launches: list[Launched]) -> list[str]:
    """Say which kernels hold few warps on an SM, and with how many registers and how much shared memory."""
    few = [one for one in launches if one.occupancy is not None and one.occupancy < LOW_OCCUPANCY]
    return [
        f"{cut(one.name, 40)} keeps {percent(one.occupancy)} of an SM's warps, with {one.registers} registers a "
        f"thread and {one.shared_bytes:,} bytes of shared memory a block."
        for one in few
    ]


def _small(small: Limits) -> str:
    parts = [f"its bytes take {micro(small.floor_us)}"]
    if small.kernel_us is not None:
        parts.append(f"its kernels {micro(small.kernel_us)}")
    each = f", {small.kernels} kernel{'s' * (small.kernels != 1)} a call" if small.kernels else ""
    return f"At B = {small.batch} a call takes {micro(small.us)}: {listed(parts)}{each}."
