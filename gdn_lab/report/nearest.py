"""The recorded rows nearest to what a page was asked for, and how they differ from it.

A *record* is the rows of one run that share a setting: model, tensor-parallel size, heads on a GPU, dtype of the state;
for whole decode steps also batch and precision. Kernels with the same heads do the same work whatever the model is; the
step of a whole layer does not, so there the model counts first.
"""

from math import log2
from pathlib import Path
from typing import NamedTuple

from ..bench.run_folder import load
from ..models import GDNShape
from ..names import gpu_short_name
from .recorded import DATA, recorded_runs, run_folder
from .text import device_name, listed

STEP = "step"  # phase of the rows of whole decode steps, and the sweep of those that notebook 03 shows part by part


class Setting(NamedTuple):
    """What a kernel's time depends on besides batch and tokens. Heads are those on one of `tp` GPUs; dtype: a name."""

    model: str
    tp: int
    num_k_heads: int
    num_v_heads: int
    dtype: str

    @classmethod
    def of(cls, model: str, tp: int, dtype: str = "bfloat16") -> "Setting":
        """The setting of a model in the table. ValueError if tp GPUs cannot share its heads."""
        shape = GDNShape.from_model(model, tp)
        return cls(model, tp, shape.num_k_heads, shape.num_v_heads, dtype)

    @property
    def heads(self) -> tuple[int, int]:
        return self.num_k_heads, self.num_v_heads


class Asked(NamedTuple):
    """What an answer is to be about; empty or None is not asked for.

    settings: one, or of prefill two. batches: of a call. tokens: T of verify. workloads: (sequences, tokens of each) of
    prefill. precision: of a step's weights. whole_step: the question is about steps of a whole layer.
    """

    settings: tuple[Setting, ...]
    batches: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    workloads: tuple[tuple[int, int], ...] = ()
    precision: str | None = None
    whole_step: bool = False


class Match(NamedTuple):
    """The nearest record: its run, with `lead` if it differs, and the rows of what was asked or comes nearest.

    folder: the recorded run's. shown: settings of the rows. differences: {"setting", "batches", "tokens", "workloads"
    or "precision": (asked, shown)}, as text.
    """

    run: dict
    rows: list[dict]
    folder: str
    shown: tuple[Setting, ...]
    differences: dict[str, tuple[str, str]]


def led(run: dict | None, sentences: list[str]) -> list[str]:
    """The sentences of an answer, the first led by what was asked and what is shown, if these differ."""
    lead = (run or {}).get("lead")
    return [f"{lead}: {sentences[0]}", *sentences[1:]] if lead and sentences else sentences


def nearest_record(asked: Asked, gpu: str, notebook: str, data: Path = DATA) -> Match | None:
    """The record nearest to what was asked; None if the notebook has no timed rows there.

    gpu: a recorded GPU, of which every run of the notebook counts whatever its folder is called; or a run folder.
    Kernels: nearest by heads, then dtype, batches, model and tp. Whole steps: by model, tp, heads, then batch. Among
    equals comes first the run whose folder has the notebook's name.
    """
    runs, chosen, folder = candidate_runs(gpu, notebook, data), [], None
    for setting in asked.settings:
        found = [
            (_distance(asked, setting, key, rows), name != notebook, name, key)
            for name, (_, every) in runs.items()
            for key, rows in _records(every, asked.whole_step).items()
            if folder in (None, name)  # the two settings of prefill come from one run
        ]
        if found:
            *_, folder, key = min(found, key=lambda one: one[:3])
            chosen.append(key)
    if folder is None:
        return None
    run, every = runs[folder]
    rows, differences = _selected(asked, list(dict.fromkeys(chosen)), every)
    shown = tuple(dict.fromkeys(Setting(*key[:5]) for key in chosen))
    if set(shown) != set(asked.settings):
        differences = {"setting": _settings(asked, shown)} | differences
    if differences:
        run = run | {"lead": _lead(run, asked, shown, differences)}
    return Match(run, rows, folder, shown, differences)


def candidate_runs(gpu: str, notebook: str, data: Path = DATA) -> dict[str, tuple[dict, list[dict]]]:
    """{folder: (run, rows)} of the runs of a notebook recorded on a GPU, or of one run folder.

    run["recorded_on"] says where. ValueError if the run folder is another notebook's.
    """
    names, found = {name for other, name in recorded_runs(data) if other == gpu}, {}
    for folder in recorded_folders(gpu, data):
        run, rows = load(folder)
        if run.get("notebook") == notebook:
            where = gpu if folder.name in names else gpu_name(run)
            found[folder.name] = (run | {"recorded_on": where}, rows)
        elif folder.name not in names:
            raise ValueError(f"{gpu} is a run of {run['notebook']}, not of {notebook}")
    return found


def recorded_folders(gpu: str, data: Path = DATA) -> list[Path]:
    """The folders of all runs recorded on a GPU; or the one run folder that `gpu` is; [] if it is neither."""
    recorded = [data / "measured" / gpu / name for other, name in recorded_runs(data) if other == gpu]
    folder = None if recorded else run_folder(gpu, data.parent)
    return [folder] if folder else recorded


def heads_distance(one: GDNShape | Setting, other: GDNShape | Setting) -> tuple[float, float]:
    """How far the heads on a GPU are apart, in octaves: value heads, which the state has, then query and key heads."""
    return _octaves(one.num_v_heads, other.num_v_heads), _octaves(one.num_k_heads, other.num_k_heads)


def gpu_name(run: dict) -> str:
    """ "H100" of "NVIDIA H100 80GB HBM3", "RTX 4090" of "NVIDIA GeForce RTX 4090"; of a run without a GPU the CPU."""
    name = run.get("environment", {}).get("gpu_name")
    return gpu_short_name(name).upper().replace("-", " ") if name else device_name(run)


# ---- records --------------------------------------------------------------------------------------------------------


def _key(row: dict, whole_step: bool) -> tuple:
    key = tuple(row.get(name) for name in ("model", "tp", "num_k_heads", "num_v_heads", "state_dtype"))
    return key + (row["batch"], row["precision"], row["sweep"]) if whole_step else key


def _records(rows: list[dict], whole_step: bool) -> dict[tuple, list[dict]]:
    """{setting, of steps also batch, precision and sweep: the timed rows}."""
    found = {}
    for row in rows:
        if row.get("status") == "ok" and (row["phase"] == STEP) == whole_step:
            found.setdefault(_key(row, whole_step), []).append(row)
    return found


def _distance(asked: Asked, setting: Setting, key: tuple, rows: list[dict]) -> tuple:
    """How far a record is from what was asked, the most important first."""
    there = Setting(*key[:5])
    heads = heads_distance(setting, there)
    dtype = (setting.dtype != there.dtype) + _octaves(_itemsize(setting.dtype), _itemsize(there.dtype))
    model, tp = setting.model != there.model, _octaves(setting.tp, there.tp or setting.tp)
    batches = {row["batch"] for row in rows}
    batch = sum(min(_octaves(each, other) for other in batches) for each in asked.batches)
    if asked.whole_step:
        return model, tp, heads, batch, key[6] != asked.precision, key[7] != STEP
    return heads, dtype, batch, model, tp


def _octaves(one: float, other: float) -> float:
    return abs(log2(one / other))


def _itemsize(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


# ---- rows of a record -----------------------------------------------------------------------------------------------


def _selected(asked: Asked, keys: list[tuple], every: list[dict]) -> tuple[list[dict], dict]:
    """(the rows of some records that are of what was asked, {what: (asked, shown)} of what is not there)."""
    if asked.whole_step:
        return _selected_step(asked, keys[0], every)
    rows = [row for row in every if row.get("status") == "fact" or _key(row, False) in keys]
    differences = {}
    there = {row["batch"] for row in rows if row.get("status") == "ok"}
    if asked.batches and not asked.workloads:
        shown = _nearest(asked.batches, there)
        rows = [row for row in rows if row.get("batch") is None or row["batch"] in shown]
        _note(differences, "batches", "B = {}", asked.batches, shown)
    if asked.tokens:
        verified = {row["tokens"] for row in rows if row.get("status") == "ok" and row["phase"] == "verify"}
        shown = _nearest(asked.tokens, verified)
        rows = [row for row in rows if row.get("tokens") is None or row["phase"] != "verify" or row["tokens"] in shown]
        _note(differences, "tokens", "T = {}", asked.tokens, shown)
    if asked.workloads:
        there = list(dict.fromkeys((row["batch"], row["length"]) for row in rows if row.get("status") == "ok"))
        shown = [work for work in asked.workloads if work in there] or there
        rows = [row for row in rows if row.get("length") is None or (row["batch"], row["length"]) in shown]
        works = [[f"{n} × {length:,}" for n, length in some] for some in (asked.workloads, shown)]
        _note(differences, "workloads", "workloads {}", *works)
    return rows, differences


def _selected_step(asked: Asked, key: tuple, every: list[dict]) -> tuple[list[dict], dict]:
    """A record as rows of the sweep "step", and all rows of the heatmap, which shows its settings itself."""
    differences = {}
    place = (key[0], key[1], key[5], key[7])
    own = [row for row in every if tuple(row.get(name) for name in ("model", "tp", "batch", "sweep")) == place]
    rows = [row | {"sweep": STEP} for row in own] + [row for row in every if row.get("sweep") not in (None, STEP)]
    _note(differences, "batches", "B = {}", asked.batches or key[5:6], key[5:6])
    _note(differences, "precision", "{} weights", [asked.precision or key[6]], [key[6]])
    return rows, differences


def _nearest(wanted, there) -> set[int]:
    """Those of `wanted` that are there, and for each other one its neighbours."""
    shown = set()
    for number in wanted:
        below = [other for other in there if other <= number]
        above = [other for other in there if other >= number]
        shown |= {max(below)} if below else set()
        shown |= {min(above)} if above else set()
    return shown


def _note(differences: dict, what: str, form: str, asked, shown) -> None:
    """Add a difference as text if not all that was asked is shown."""
    if set(asked) - set(shown):
        asked, shown = (list(dict.fromkeys(some)) for some in (asked, shown))
        asked, shown = (sorted(some) if what in ("batches", "tokens") else some for some in (asked, shown))
        differences[what] = tuple(form.format(listed(map(str, some))) for some in (asked, shown))


# ---- words ----------------------------------------------------------------------------------------------------------


def _lead(run: dict, asked: Asked, shown, differences: dict[str, tuple[str, str]]) -> str:
    """What was asked, what is shown and how it differs, without a full stop."""
    gpu = gpu_name(run)
    pairs = list(({"setting": _settings(asked, shown)} | differences).values())
    mine, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    same = {each.heads for each in asked.settings} == {each.heads for each in shown}
    if same and "setting" in differences and not asked.whole_step:
        theirs[0] += ", which has the same heads"
    article = "an" if gpu[0] in "AEFHILMNORSX" else "a"
    return f"You asked for {', '.join(mine)}; recorded on {article} {gpu} is {', '.join(theirs)}"


def _settings(asked: Asked, shown) -> tuple[str, str]:
    """Both as text: "qwen3.5-397b-a17b at tp 8 (HK 2, HV 8)"; dtypes only where they differ."""
    dtypes = {each.dtype for each in (*asked.settings, *shown)}
    return _setting_words(asked.settings, len(dtypes) > 1), _setting_words(shown, len(dtypes) > 1)


def _setting_words(settings, with_dtype: bool) -> str:
    by_model = {}
    for each in dict.fromkeys(settings):
        state = f", {each.dtype} state" if with_dtype else ""
        text = f"tp {each.tp} (HK {each.num_k_heads}, HV {each.num_v_heads}{state})"
        by_model.setdefault(each.model, []).append(text)
    return listed(f"{model} at {listed(places)}" for model, places in by_model.items())
