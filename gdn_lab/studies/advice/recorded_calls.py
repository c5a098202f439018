"""Recorded times of decode calls, of every run in data/measured/<gpu>/: what advice rests on. Imports no torch.

Two kinds of rows tell how long a GDN kernel takes: those of the decode sweeps (notebooks 02 and 05), and the part `gdn`
of a decode step (notebook 03), which is timed inside the step.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...bench.run_folder import load
from ...models import STATE_BYTES, GDNShape
from ...report.nearest import recorded_folders
from ...report.recorded import DATA
from ...report.text import device_name

KERNEL_TIMER, PART_TIMER = "cuda_graph_replay", "cupti_kernel"
KERNEL, PART = "calls of the kernel alone", "the GDN kernel's part of a decode step"
RECORDED, INTERPOLATED, NEAREST = "recorded", "interpolated", "nearest"  # how a time at a batch is known, best first


class Times(NamedTuple):
    """Median, 20th and 80th percentile, µs."""

    us: float
    p20: float
    p80: float


class Estimate(NamedTuple):
    """A time at some batch. how: RECORDED there; INTERPOLATED linearly between `batches`; or that at the NEAREST."""

    times: Times
    how: str
    batches: tuple[int, ...]


class Recording(NamedTuple):
    """A recorded run: where and with what. gpu, notebook: its folder in data/measured/."""

    gpu: str
    notebook: str
    device: str
    date: str
    commit: str
    capability: tuple[int, int] | None
    flashinfer: str | None

    @property
    def name(self) -> str:
        """ "02_decode_kernels, recorded on NVIDIA H100 80GB HBM3, 2026-11-22, commit 1f61212d64"."""
        return f"{self.notebook}, recorded on {self.device}, {self.date}, commit {self.commit}"


@dataclass(frozen=True)
class Series:
    """Times of one run for one model, tp and state dtype.

    source: KERNEL or PART. roof: the measured bandwidth, GB/s. times: {variant: {batch: Times}}. outside: {variant:
    kinds of hard inputs on which its result was outside the tolerance}. deferring: variants that moved fewer bytes than
    it takes to read and write each state.
    """

    recording: Recording
    source: str
    timer: str
    model: str
    tp: int
    shape: GDNShape
    dtype: str
    roof: float
    times: dict[str, dict[int, Times]] = field(hash=False, default_factory=dict)
    outside: dict[str, list[str]] = field(hash=False, default_factory=dict)
    deferring: set[str] = field(hash=False, default_factory=set)

    @property
    def heads(self) -> str:
        return f"HK {self.shape.num_k_heads}, HV {self.shape.num_v_heads}"

    @property
    def batches(self) -> list[int]:
        return sorted({batch for by_batch in self.times.values() for batch in by_batch})

    def at(self, batch: float) -> dict[str, Estimate]:
        """{variant: Estimate}, fastest first, of those variants that are known in the best way that two of them are.

        Times that are known in different ways are not compared. Variants known in no such way are left out. Where no
        two are known in one way, those recorded at the nearest batch that has two.
        """
        found = {name: estimate(by_batch, batch) for name, by_batch in self.times.items()}
        by_how = defaultdict(dict)
        for name, one in found.items():
            by_how[one.how].setdefault(one.batches if one.how == NEAREST else None, {})[name] = one
        groups = [group for how in (RECORDED, INTERPOLATED, NEAREST) for group in by_how[how].values()]
        compared = [group for group in (*groups, self._at_nearest(batch)) if len(group) > 1]
        chosen = next(iter(compared or groups), {})
        return dict(sorted(chosen.items(), key=lambda entry: entry[1].times.us))

    def _at_nearest(self, batch: float) -> dict[str, Estimate]:
        """{variant: Estimate} at the batch nearest to `batch`, by their ratio, at which two or more are recorded."""
        known = {at: [name for name, by_batch in self.times.items() if at in by_batch] for at in self.batches}
        several = [at for at, names in known.items() if len(names) > 1]
        if not several:
            return {}
        nearest = min(several, key=lambda at: max(at, batch) / min(at, batch))
        return {name: Estimate(self.times[name][nearest], NEAREST, (nearest,)) for name in known[nearest]}


def estimate(by_batch: dict[int, Times], batch: float) -> Estimate:
    """The time at `batch`: recorded, between its two neighbours, or, outside what was recorded, that at the nearest."""
    if batch in by_batch:
        return Estimate(by_batch[batch], RECORDED, (batch,))
    below = max((known for known in by_batch if known < batch), default=None)
    above = min((known for known in by_batch if known > batch), default=None)
    if below is None or above is None:
        nearest = above if below is None else below
        return Estimate(by_batch[nearest], NEAREST, (nearest,))
    part = (batch - below) / (above - below)
    pairs = zip(by_batch[below], by_batch[above], strict=True)
    return Estimate(Times(*(low + part * (high - low) for low, high in pairs)), INTERPOLATED, (below, above))


def called(gpu: str) -> str:
    """What sentences and titles call it: the GPU's name, or the name of the run's folder."""
    return Path(gpu).name


def all_series(gpu: str, data: Path = DATA) -> list[Series]:
    """Every series recorded of a GPU, or of one run's folder; [] if there is none."""
    found = []
    for folder in recorded_folders(gpu, data):
        info, rows = load(folder)
        name = folder.name if folder.parent.name == gpu else info["notebook"]  # of a run's folder that is its time
        found += series_of(recording(called(gpu), name, info), rows)
    return found


def recording(gpu: str, notebook: str, info: dict) -> Recording:
    """The Recording of what run.json holds."""
    facts = info["environment"]
    capability = facts.get("compute_capability")
    return Recording(
        gpu=gpu,
        notebook=notebook,
        device=device_name(info),
        date=info["start_utc"][:10],
        commit=(facts.get("git_commit") or "unknown")[:10],
        capability=tuple(map(int, capability.split("."))) if capability else None,
        flashinfer=facts.get("flashinfer"),
    )


def series_of(run: Recording, rows: Iterable[dict]) -> list[Series]:
    """The series of a run's rows."""
    found, counts = {}, defaultdict(int)
    for row in rows:
        if (source := source_of(row)) is None:
            continue
        heads = GDNShape(row["num_k_heads"], row["num_v_heads"])
        key = source, row["timer"], row["model"], row["tp"], heads, row["state_dtype"]
        series = found.setdefault(key, Series(run, *key, row["roof_gb_per_s"]))
        name, batch = f"{row['backend']}/{row['variant']}", row["batch"]
        if row.get("bytes", math.inf) < 2 * batch * heads.state_elements * STATE_BYTES.get(row["state_dtype"], 1):
            series.deferring.add(name)
        if row.get("wrong_on"):
            series.outside[name] = list(dict.fromkeys([*series.outside.get(name, []), *row["wrong_on"]]))
        if row["count"] >= counts[key, name, batch]:  # two sweeps of a run may time the same: more samples count
            counts[key, name, batch] = row["count"]
            series.times.setdefault(name, {})[batch] = Times(row["median_us"], row["p20_us"], row["p80_us"])
    return list(found.values())


def source_of(row: dict) -> str | None:
    """KERNEL, PART, or None for a row that tells no time of a decode call in place."""
    if row.get("status") != "ok" or row.get("model") is None:
        return None
    if row["phase"] == "decode" and row.get("indexing") == "in_place" and row["timer"] == KERNEL_TIMER:
        return KERNEL
    in_step = row["phase"] == "step" and row.get("part") == "gdn" and row["timer"] == PART_TIMER
    return PART if in_step and not row.get("toy") else None
