"""What a sweep goes over: the cases that can run here and why the others cannot, and arguments checked before any runs.

A case is a variant and how it is run: its indexing, for verify() its mode.
"""

from typing import NamedTuple

from ..backends.registry import backends, refusal
from .timers import TIMERS, TimerUnavailable, unavailable


class Case(NamedTuple):
    """One variant with one indexing; of verify() also one mode, "commit" for StatePool.commit()."""

    backend: str
    variant: str
    layout: str
    indexing: str = "in_place"
    mode: str | None = None

    @property
    def name(self) -> str:
        return f"{self.backend}/{self.variant}"

    @property
    def key(self) -> str:
        return f"{self.name} {self.mode or self.indexing}"


def cases_of(phase, variants, kinds, shape, dtype, io_dtype, device) -> tuple[list[Case], list[dict]]:
    """Cases that can run, and a row for each variant and reason why it cannot. kinds: indexings; of verify, modes.

    A variant that copies its states itself has no case that gathers and scatters once more.
    """
    field = "mode" if phase == "verify" else "indexing"
    reports = backends(device)
    names = {f"{report.name}/{variant.name}" for report in reports for variant in report.variants}
    wanted = [report.name for report in reports] if variants == "all" else list(variants)
    unknown = [name for name in wanted if name not in names | {report.name for report in reports}]
    if unknown or not wanted:
        raise ValueError(f"variants: expected some of {', '.join(sorted(names))}, got {', '.join(unknown) or 'none'}")
    cases, refused = [], []
    for report in reports:
        if report.name in wanted and not report.variants:
            refused.append({"backend": report.name, "variant": "any", "reason": report.reason})
        for variant in report.variants:
            name, reasons = f"{report.name}/{variant.name}", {}
            if name not in wanted and (report.name not in wanted or phase not in variant.phases):
                continue
            for kind in kinds:
                if kind == "gather_scatter" and variant.copies:
                    continue
                case = Case(report.name, variant.name, variant.layout, **{field: kind})
                reason = refusal(
                    name, shape, layout=variant.layout, dtype=dtype, device=device, io_dtype=io_dtype, phase=phase,
                    mode=case.mode,
                )  # fmt: skip
                if reason is None:
                    cases.append(case)
                else:
                    reasons[reason] = {"backend": report.name, "variant": variant.name, "layout": variant.layout}
            refused += [fields | {"reason": reason} for reason, fields in reasons.items()]
    return cases, [{"status": "refused"} | row for row in refused]


def checked_names(parameter: str, names, known) -> list[str]:
    """The names, each once. ValueError if there are none, or one that is not `known`."""
    names = list(dict.fromkeys(names))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"{parameter}: expected some of {', '.join(known)}, got {', '.join(unknown) or 'none'}")
    return names


def checked_batches(batches) -> list[int]:
    batches = list(batches)
    if not batches or any(type(batch) is not int or batch < 1 for batch in batches) or len(set(batches)) < len(batches):
        raise ValueError(f"batches: expected different positive ints, got {batches}")
    return batches


def checked_timers(timers, device) -> list[str]:
    if timers is None:
        return [timer for timer in TIMERS if unavailable(timer, device) is None]
    for timer in timers:
        if reason := unavailable(timer, device):
            raise TimerUnavailable(reason)
    return list(timers)
