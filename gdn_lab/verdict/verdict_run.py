"""Make a verdict: check the kernel, time it against the others, and look at what limits it. Rows go to a run."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ..backends import author_files
from ..backends.base import dtype_name
from ..backends.registry import VARIANTS, variant
from ..bench.cupti import TimerUnavailable
from ..bench.results import Run
from ..judge import judging
from ..judge.judging import Finding
from ..models import GDNShape
from ..report.text import device_name
from ..report.timed import Timed, name_of
from ..studies.decode_kernels import yours
from ..studies.decode_kernels.sweep import decode_sweep
from . import nsight_compute, what_limits
from .launched import launched, one_call
from .verdict import CORRECT, CPU, ERROR, NOT_TIMED, Verdict

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Settings:
    """What a verdict is asked for. dtype: of the state, None: the first that the kernel takes. samples: of each time.

    against: kernels that it is compared with, besides the baseline; "all" are
    ours and the peers' that work in place on a plain pool. model, tp: of the heads, for the rows.
    """

    baseline: str = "triton/kv32"
    against: tuple[str, ...] | str = "all"
    shape: GDNShape = GDNShape(16, 64)
    batches: tuple[int, ...] = BATCHES
    dtype: torch.dtype | None = None
    samples: int = 50
    seed: int = 0
    model: str | None = None
    tp: int | None = None


class Checked(NamedTuple):
    """A kernel and what its checks found. file: that registers it, "" of the workbook's own. died: how the process
    that judged it ended, "" if it answered."""

    kernel: str
    file: str
    findings: list[Finding]
    died: str = ""

    @property
    def correctness(self) -> str:
        return ERROR if self.died else judging.verdict(self.findings)


def register(checked: Checked) -> None:
    """Register a correct kernel here if it will be timed; a Run that is made afterwards records its file's hash."""
    if checked.file and checked.correctness == CORRECT and torch.cuda.is_available():
        author_files.load(checked.file)


def make(checked: Checked, settings: Settings, run: Run) -> tuple[Verdict, Timed | None]:
    """Return the verdict on a kernel, and its timed rows, None where it was not timed. run: takes the rows.

    A correct kernel, which register() has registered in this process, is timed if there is a GPU.
    """
    gpu = torch.cuda.is_available()
    made = Verdict(checked.kernel, checked.file, device_name(run.info), checked.correctness, checked.died)
    made.sha256 = hashlib.sha256(Path(checked.file).read_bytes()).hexdigest() if checked.file else ""
    made.checks = checked.findings
    missing = [name for name in judging.CHECKS if name not in {check.check for check in made.checks}]
    if made.correctness == CORRECT and missing:
        made.notes.append(f"Not checked: {', '.join(missing)}.")
    if made.correctness == judging.REFUSED:
        made.why = made.checks[0].sentence if made.checks else ""
    if made.correctness != CORRECT or not gpu:
        made.notes.append(NOT_TIMED if gpu else CPU)
        return made, None
    return made, _timed(made, settings, run)


def opponents(settings: Settings) -> list[str]:
    """The baseline, and the kernels that the verdict compares with."""
    names = settings.against
    if names == "all":
        decode = [v for v in VARIANTS.values() if "decode" in v.phases and not v.copies and not v.ring]
        names = [v.full_name for v in decode if v.role in ("ours", "peer")]
    return list(dict.fromkeys([settings.baseline, *names]))


def _timed(made: Verdict, settings: Settings, run: Run, device="cuda") -> Timed | None:
    """Time the kernel and its opponents, and fill in speed and limits."""
    name, dtype = made.kernel, settings.dtype or variant(made.kernel).state_dtypes[0]
    rows = decode_sweep(
        settings.shape,
        settings.batches,
        indexings=("in_place",),
        variants=[name, *opponents(settings)],
        dtype=dtype,
        device=device,
        run=run,
        samples=settings.samples,
        seed=settings.seed,
        model=settings.model,
        tp=settings.tp,
    )
    timed = Timed(rows, run.info, phase="decode")
    mine = [row for row in rows if name_of(row) == name]
    bad = [row for row in mine if row["status"] in ("error", "wrong")]
    if bad or not any(row["status"] == "ok" for row in mine):
        made.correctness = ERROR
        made.why = timed_reason(bad or mine)
        return timed
    made.speed = yours.compared(timed, name, settings.baseline)
    made.limits = what_limits.limits(timed, name)
    _look_inside(made, settings, dtype, device)
    made.sentences = yours.sentences(timed, name, settings.baseline) + what_limits.sentences(made.limits, made.launched)
    made.notes += timed.not_timed() + timed.outside_tolerance()
    return timed


def timed_reason(rows: list[dict]) -> str:
    """Why a kernel that passed its checks has no time that counts."""
    row = rows[0]
    if row["status"] == "wrong":
        return f"wrong when it was timed, at B = {row['batch']}, on {', '.join(row['wrong_on'])}"
    where = f" at B = {row['batch']}" if "batch" in row else ""
    return f"{row['reason']}{where}"


def _look_inside(made: Verdict, settings: Settings, dtype: torch.dtype, device) -> None:
    """Fill in what a call at the largest batch launches, and Nsight Compute's metrics of it."""
    batch = max(settings.batches)
    try:
        made.launched = launched(one_call(made.kernel, settings.shape, batch, dtype, torch.device(device)))
    except TimerUnavailable as reason:
        made.notes.append(f"Registers and occupancy are not known: {reason}.")
    heads = {"k-heads": settings.shape.num_k_heads, "v-heads": settings.shape.num_v_heads}
    setting = heads | {"batch": batch, "dtype": dtype_name(dtype)}
    made.nsight_compute, note = nsight_compute.measure([made.file] * bool(made.file), made.kernel, setting)
    made.notes += [note] if note else []
