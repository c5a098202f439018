"""All checks of one kernel in order, each a Finding; and random calls for as long as asked."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .. import seals
from ..backends import registry
from . import decode_checks, gpu_checks
from .attempt import Refused, Wrong, attempt
from .candidate import Candidate
from .compiled import resources
from .trials import drawn, random_of

PASS, FAIL, REFUSED = "pass", "fail", "refused"
BROKEN = "; this process can use the GPU no more, so nothing after this was checked"
SECONDS = 2.0  # of a check of random calls
ROW_CALLS, ROW_S = 1000, 10.0  # random calls, and seconds, after which a row of results is written
TOGETHER = 25  # random calls that share their tensors on a GPU, so that most of the time goes into the kernel's calls


@dataclass(frozen=True)
class Finding:
    """What a check found. status: PASS, FAIL or REFUSED. sentence: what was done, or what is wrong, or why not."""

    variant: str
    check: str
    status: str
    sentence: str
    seconds: float = 0.0

    def line(self) -> str:
        """Return the finding as it is printed."""
        return f"{self.status:<8} {self.check:<22} {self.sentence}"


def nothing_patched(candidate: Candidate, seconds: float) -> str:
    """No function of the clock, of torch or of this workbook was replaced."""
    if reason := seals.broken():
        raise Wrong(reason)
    return "no function of the clock, torch or the workbook"


CHECKS = {
    "reference": decode_checks.against_the_reference,
    "shapes and dtypes": decode_checks.shapes_and_dtypes,
    "hard inputs": decode_checks.hard_inputs,
    "gates at their limits": decode_checks.gate_limits,
    "norms and scales": decode_checks.norms_and_scales,
    "new requests": decode_checks.new_requests,
    "padding": decode_checks.padding,
    "other slots": decode_checks.other_slots,
    "NaN elsewhere": decode_checks.nan_elsewhere,
    "strides": decode_checks.strides,
    "large batches": decode_checks.large_batches,
    "64-bit offsets": decode_checks.large_offsets,
    "steps in a row": decode_checks.steps_in_a_row,
    "out": decode_checks.output,
    "late writes": decode_checks.late_writes,
    "determinism": decode_checks.determinism,
    "random calls": decode_checks.random_calls,
    "CUDA graph": gpu_checks.cuda_graph,
    "no allocation": gpu_checks.no_allocation,
    "no synchronisation": gpu_checks.no_synchronisation,
    "streams": gpu_checks.streams,
    "registers, spills": resources,
    "nothing patched": nothing_patched,
}


def names_of(word: str) -> list[str]:
    """Return the decode variants that a word means: "mine/vk", a backend, or a role such as "ours".

    ValueError, one sentence, if there are none.
    """
    found = [v.full_name for v in registry.VARIANTS.values() if word in (v.full_name, v.backend, v.role)]
    if not found:
        raise ValueError(f"there is no variant {word!r}; there are: {', '.join(registry.VARIANTS)}")
    decode = [name for name in found if "decode" in registry.VARIANTS[name].phases]
    if not decode:
        raise ValueError(f"{word} has no decode kernel, and only those are judged")
    return decode


def findings(
    name: str, device, *, seed: int = 0, seconds: float = SECONDS, only=None, begin=lambda check: None
) -> Iterator[Finding]:
    """Yield what each check finds of a variant: one REFUSED finding if it takes no call on the device.

    seconds: of each check of random calls. only: names of CHECKS. begin(check): called before each.
    A fault that leaves the GPU unusable is the last finding.
    """
    begin("device")
    try:
        candidate = Candidate(name, torch.device(device), seed)
    except Refused as reason:
        yield Finding(name, "device", REFUSED, str(reason))
        return
    allowed = seconds / 2 if candidate.cuts else seconds  # so that all of them take less than a minute
    for check in only or CHECKS:
        begin(check)
        began = time.monotonic()
        status, sentence = outcome(lambda check=check: CHECKS[check](candidate, allowed))
        yield Finding(name, check, status, sentence, time.monotonic() - began)
        if sentence.endswith(BROKEN):
            return


def outcome(check) -> tuple[str, str]:
    """Run a check; return its status and sentence. What the kernel raises is a failure."""
    try:
        return PASS, check()
    except Wrong as error:
        return FAIL, str(error)
    except Refused as reason:
        return REFUSED, str(reason)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return FAIL, f"raised {type(error).__name__}: {first}{BROKEN if 'CUDA error' in first else ''}"


def verdict(found: list[Finding]) -> str:
    """Return "correct", "incorrect" if a check failed, or "refused" if none passed."""
    statuses = {finding.status for finding in found}
    return "incorrect" if FAIL in statuses else "correct" if PASS in statuses else "refused"


def judge(name: str, device="cpu", **options) -> list[Finding]:
    """Return all findings of a variant, in this process. options: of findings()."""
    return list(findings(name, device, **options))


# ---- random calls for as long as asked ------------------------------------------------------------------------------


def random_calls(
    name: str, device, *, seed: int, first: int, last: float, share: int, shares: int, seconds: float
) -> Iterator[dict]:
    """Make the random calls number first to last - 1, or until `seconds` are over, and yield a row at times.

    On a GPU TOGETHER calls, whose first is a multiple of that, share their tensors and are judged together, the whole
    of the first and of the last such group. share: of `shares` processes, this one, which takes every so many-th group.
    A row: variant, device, seed, together, share, shares, first (its first call), calls, failed, refused, worst (the
    largest error as a share of what is allowed), failures ([number, sentence]), seconds.
    """
    try:
        candidate = Candidate(name, torch.device(device), seed)
    except Refused as reason:
        yield {"variant": name, "refusal": str(reason)}
        return
    together = TOGETHER if candidate.device.type == "cuda" else 1
    fixed = {"variant": name, "device": device_name(device), "seed": seed, "together": together}
    fixed |= {"share": share, "shares": shares}
    began, number = time.monotonic(), (first // together + share) * together
    most_rows = 3 if candidate.cuts else 9

    def goes_on() -> bool:
        return number < last and time.monotonic() - began < seconds

    while goes_on():
        row = fixed | {"first": number, "calls": 0, "failed": 0, "refused": 0, "worst": 0.0, "failures": []}
        started = time.monotonic()
        while row["calls"] < ROW_CALLS and time.monotonic() - started < ROW_S and not row["failed"] and goes_on():
            trial = drawn(random_of(seed, number), candidate.calls, most_rows=most_rows, together=together)
            _count(row, candidate, trial, number)
            number += shares * together
        yield row | {"seconds": round(time.monotonic() - started, 3)}
        if row["failed"]:
            return


def _count(row: dict, candidate: Candidate, trial, number: int) -> None:
    """Attempt the calls from `number` on that a trial describes, and count them in a row."""
    calls = len(trial.calls) or 1
    row["calls"] += calls
    wrong, shares = [], []

    def call() -> str:
        try:
            shares.append(attempt(candidate, trial))
        except Wrong as error:
            wrong.append(error)
            raise
        return ""

    status, sentence = outcome(call)
    row["worst"] = max(row["worst"], *shares, 0.0)
    row["refused"] += calls * (status == REFUSED)
    if status == FAIL:
        row["failed"] += 1
        at = trial.call_of(wrong[0].row) if wrong else None
        said = sentence if "(B = " in sentence else f"{sentence} ({trial})"
        said = f"in one of {calls} calls {said}" if calls > 1 and at is None else said
        row["failures"].append(
            [number + (at or 0), f"in one of {calls} calls {said}" if calls > 1 and at is None else said]
        )


def device_name(device) -> str:
    """Return the GPU's name, or "CPU"."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
