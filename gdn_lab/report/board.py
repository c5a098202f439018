"""The leaderboard: a view of rows of decode sweeps, recorded and of runs/ (notebook 02, gdn-lab judge); stores nothing.

A kernel counts if its result was right on everything that was checked, was timed by CUDA-graph replay in place with a
cold L2, and is no eager PyTorch. Times of a CPU rank nothing.
"""

import json
from pathlib import Path
from typing import NamedTuple

from ..backends.registry import VARIANTS, variant
from ..bench.run_folder import load, newest_first
from .nearest import gpu_name
from .recorded import DATA, recorded_runs
from .text import aligned, device_name, listed, micro, percent
from .timed import is_outside, name_of

NOTEBOOKS, TIMER = ("02_decode_kernels", "judge"), "cuda_graph_replay"


class Setting(NamedTuple):
    """What kernels are ranked within, besides the batch. gpu: its full name; dtype: of the state."""

    gpu: str
    dtype: str
    num_k_heads: int
    num_v_heads: int


class Source(NamedTuple):
    """A run: its name ("h100/02_decode_kernels", or its folder's), what run.json holds, and its rows."""

    name: str
    run: dict
    rows: list[dict]


class Place(NamedTuple):
    """The best kernel of a setting at a batch. Times in µs; share: of the measured bandwidth; run: where it was timed.

    peer, peer_us: the fastest right kernel of another library in the same run, interleaved with the best, None if there
    is none. lead: how much of the peer's time the best kernel saves; 0 where the best is the peer.
    """

    setting: Setting
    batch: int
    kernel: str
    us: float
    p20_us: float
    p80_us: float
    share: float
    run: str
    peer: str | None
    peer_us: float | None
    lead: float | None


class Board(NamedTuple):
    """places: in order of GPU, dtype, heads and batch. notes: a sentence for each thing that was not ranked."""

    places: list[Place]
    notes: list[str]


def sources(data: Path = DATA, runs: Path | None = None) -> tuple[list[Source], list[str]]:
    """Every recorded decode run, and those in the folder `runs`; and a sentence for each folder that cannot be read."""
    folders = {f"{gpu}/{name}": data / "measured" / gpu / name for gpu, name in recorded_runs(data)}
    folders |= {folder.name: folder for folder in (newest_first(runs) if runs else ()) if _may_rank(folder)}
    found, notes = [], []
    for name, folder in folders.items():
        try:
            run, rows = load(folder)
        except ValueError as error:
            notes.append(f"{name} left out: {error}.")
            continue
        if run.get("notebook") in NOTEBOOKS:
            found.append(Source(name, run, rows))
    return found, notes


def _may_rank(folder: Path) -> bool:
    return "-02_" in folder.name or "-judge" in folder.name


def board(found: list[Source], notes: list[str] = ()) -> Board:
    """Rank the kernels of some runs."""
    best, notes = {}, list(notes)
    unranked = [source.name for source in found if not source.run.get("environment", {}).get("gpu_name")]
    for source in found:
        if source.name in unranked:
            continue
        timed: dict[tuple, dict[str, dict]] = {}
        for row in filter(_counts, source.rows):
            timed.setdefault(_key(source, row), {})[name_of(row)] = row
        for key, by_name in timed.items():
            place = _place(key, by_name, source.name)
            if key not in best or place.us < best[key].us:
                best[key] = place
    if unranked:
        notes.append(f"Not ranked, because made without a GPU: {listed(unranked)}.")
    return Board([best[key] for key in sorted(best)], notes + _outside(found))


def _counts(row: dict) -> bool:
    """Whether a row is the time of a right kernel that can be ranked."""
    if row.get("status") != "ok" or row.get("phase") != "decode" or row.get("wrong_on"):
        return False
    measured = row["timer"] == TIMER and row["indexing"] == "in_place" and row.get("l2") == "cold"
    return measured and variant(name_of(row)).role != "eager"


def _key(source: Source, row: dict) -> tuple[Setting, int]:
    gpu = device_name(source.run)
    return Setting(gpu, row["state_dtype"], row["num_k_heads"], row["num_v_heads"]), row["batch"]


def _place(key: tuple, by_name: dict[str, dict], run: str) -> Place:
    """The best of what one run timed at one batch."""
    name, row = min(by_name.items(), key=lambda entry: entry[1]["median_us"])
    peers = {other: each["median_us"] for other, each in by_name.items() if is_peer(other)}
    peer = min(peers, key=peers.get, default=None)
    return Place(
        *key,
        kernel=name,
        us=row["median_us"],
        p20_us=row["p20_us"],
        p80_us=row["p80_us"],
        share=row["share_of_roof"],
        run=run,
        peer=peer,
        peer_us=peers.get(peer),
        lead=1 - row["median_us"] / peers[peer] if peer else None,
    )


def is_peer(name: str) -> bool:
    """Whether a kernel is another library's. One that is not registered here is somebody's own."""
    return name in VARIANTS and VARIANTS[name].role == "peer"


def _outside(found: list[Source]) -> list[str]:
    """A sentence for each kernel that was timed although it is not right on all hard inputs."""
    kinds = {}
    for source in found:
        for row in filter(is_outside, source.rows):
            kinds.setdefault((name_of(row), gpu_name(source.run)), {}).update(dict.fromkeys(row["wrong_on"]))
    return [
        f"{name} on {gpu}: timed, but not ranked, because it is outside the tolerance on {listed(on)}."
        for (name, gpu), on in kinds.items()
    ]


# ---- words ----------------------------------------------------------------------------------------------------------


def text(found: Board) -> str:
    """A table for each setting, then the notes."""
    tables = {}
    for place in found.places:
        tables.setdefault(place.setting, []).append(place)
    parts = [f"{_heading(setting)}\n{_table(places)}" for setting, places in tables.items()]
    parts = parts or ["No decode run on a GPU was found: gdn-lab run 02 makes one."]
    return "\n\n".join(parts + ["\n".join(found.notes)] * bool(found.notes))


def _heading(setting: Setting) -> str:
    return f"{setting.gpu}, {setting.dtype} state, HK {setting.num_k_heads}, HV {setting.num_v_heads}"


def _table(places: list[Place]) -> str:
    headings = ["B", "best kernel", "time", "of measured bandwidth", "best peer", "its time", "lead", "run"]
    lines = [
        [
            str(place.batch),
            variant(place.kernel).label,
            micro(place.us),
            percent(place.share),
            variant(place.peer).label if place.peer else "none",
            micro(place.peer_us) if place.peer else "",
            percent(place.lead) if place.peer else "",
            place.run,
        ]
        for place in places
    ]
    return aligned(headings, lines, right=False)


def as_json(found: Board) -> str:
    """The board as one JSON object; the fields of a place carry their units."""
    places = []
    for place in found.places:
        fields = place._asdict()
        places.append(fields.pop("setting")._asdict() | fields)
    return json.dumps({"places": places, "notes": found.notes}, indent=2, ensure_ascii=False)
