"""What a sweep goes over: its options, points, and the cases that can run here, with the reasons why others cannot.

A case is a variant and how it is run: its indexing, or for verify() its mode.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..backends.registry import VARIANTS, backends, refusal
from .cupti import TimerUnavailable
from .results import Run
from .roof import Roof
from .timers import TIMERS, unavailable


@dataclass
class SweepOptions:
    """Keyword arguments that every sweep takes.

    variants: "all", or backends and variants as decode() names them ("triton", "torch/vk"). dtype: of the state.
    io_dtype: of q, k, v, a, b, o. device: by default a GPU if there is one. run: rows are appended to it as they are
    made. timers: of TIMERS, by default all that can run on the device; TimerUnavailable if one of them cannot.
    samples: of each variant and timer. seed: of inputs, states and slots. roof: the measured bandwidth; None measures
    it first. model, tp: recorded in the rows. progress: show a bar, or what makes one (progress.progress_bar).
    """

    variants: str | Sequence[str] = "all"
    dtype: torch.dtype = torch.bfloat16
    io_dtype: torch.dtype = torch.bfloat16
    device: torch.device | str | None = None
    run: Run | None = None
    timers: Sequence[str] | None = None
    samples: int = 50
    seed: int = 0
    roof: Roof | None = None
    model: str | None = None
    tp: int | None = None
    progress: bool | Callable = True

    def __post_init__(self):
        self.device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.timers = checked_timers(self.timers, self.device)


class Point(NamedTuple):
    """Rows or sequences of a call, and tokens of each."""

    batch: int
    tokens: int = 1


class Case(NamedTuple):
    """One variant with one indexing; of verify() also one mode, "commit" for StatePool.commit()."""

    backend: str
    variant: str
    layout: str
    indexing: str = "in_place"
    mode: str | None = None
    ring: int = 0  # updates that its pool's ring must hold

    @property
    def pool(self) -> str:
        """The pool that it works on: its layout, and its ring, which other variants would have to empty."""
        return f"{self.layout}, ring of {self.ring}" if self.ring else self.layout

    @property
    def name(self) -> str:
        return f"{self.backend}/{self.variant}"

    @property
    def key(self) -> str:
        ring = f" with a ring of {self.ring}" if self.ring else ""
        return f"{self.name} {self.mode or self.indexing}{ring}"

    @property
    def is_kernel(self) -> bool:
        """Whether it is a kernel alone, without gathering, transposing or copying around it."""
        return self.name in VARIANTS and self.indexing == "in_place"

    @property
    def is_peer(self) -> bool:
        """Whether it is another library's, which may be timed although it is wrong on some hard inputs."""
        variant = VARIANTS.get(self.name)
        return variant is not None and variant.role == "peer"

    @property
    def may_fail(self) -> bool:
        """Whether its failure is recorded while the others go on: it is another library's, or an author's."""
        return self.is_peer or self.is_yours

    def synchronises(self, phase: str, device: torch.device) -> bool:
        """Tell whether it cannot be captured in a CUDA graph, and so not be timed on this device."""
        return device.type == "cuda" and self.name in VARIANTS and phase in VARIANTS[self.name].host_sync

    @property
    def is_yours(self) -> bool:
        """Whether it is an author's, from outside of this workbook."""
        return self.name in VARIANTS and VARIANTS[self.name].role == "yours"


def cases_of(phase: str, kinds, shape, options: SweepOptions) -> tuple[list[Case], list[dict]]:
    """Return the cases that can run, and a row for each variant and reason why it cannot.

    kinds: indexings, or for verify modes. A variant that copies its states itself, or defers
    their write, has no case "gather_scatter". Raises ValueError for a variant that is not registered.
    """
    field = "mode" if phase == "verify" else "indexing"
    reports = backends(options.device)
    names = {variant.full_name for report in reports for variant in report.variants}
    wanted = [report.name for report in reports] if options.variants == "all" else list(options.variants)
    unknown = [name for name in wanted if name not in names | {report.name for report in reports}]
    if unknown or not wanted:
        raise ValueError(f"variants: expected some of {', '.join(sorted(names))}, got {', '.join(unknown) or 'none'}")
    cases, refused = [], []
    for report in reports:
        if report.name in wanted and not report.variants:
            refused.append({"backend": report.name, "variant": "any", "reason": report.reason})
        for variant in report.variants:
            if variant.full_name not in wanted and (report.name not in wanted or phase not in variant.phases):
                continue
            reasons = {}  # each once
            for kind in kinds:
                if kind == "gather_scatter" and (variant.copies or variant.ring):
                    continue
                case = Case(report.name, variant.name, variant.layout, ring=variant.ring, **{field: kind})
                reason = refusal(
                    variant.full_name,
                    shape,
                    layout=variant.layout,
                    dtype=options.dtype,
                    device=options.device,
                    io_dtype=options.io_dtype,
                    phase=phase,
                    mode=case.mode,
                )
                if reason is None:
                    cases.append(case)
                else:
                    reasons[reason] = {"backend": report.name, "variant": variant.name, "layout": variant.layout}
            refused += [fields | {"reason": reason} for reason, fields in reasons.items()]
    return cases, [{"status": "refused"} | row for row in refused]


def checked_names(parameter: str, names, known) -> list[str]:
    """Return the names, each once. Raises ValueError if there are none, or one that is not `known`."""
    names = list(dict.fromkeys(names))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"{parameter}: expected some of {', '.join(known)}, got {', '.join(unknown) or 'none'}")
    return names


def checked_batches(batches) -> list[int]:
    """Return batch sizes as a list. Raises ValueError unless they are different positive ints."""
    batches = list(batches)
    if not batches or any(type(batch) is not int or batch < 1 for batch in batches) or len(set(batches)) < len(batches):
        raise ValueError(f"batches: expected different positive ints, got {batches}")
    return batches


def checked_timers(timers, device) -> list[str]:
    """Return the timers, by default all that can run on the device. Raises TimerUnavailable if one cannot."""
    if timers is None:
        return [timer for timer in TIMERS if unavailable(timer, device) is None]
    for timer in timers:
        if reason := unavailable(timer, device):
            raise TimerUnavailable(reason)
    return list(timers)
