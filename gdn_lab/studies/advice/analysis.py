"""Which backend should a model use, what does it save and what does it need: from recorded rows and the engine's rules.

Imports no torch, so that `gdn-lab advise` answers at once. A number of other heads than those asked about is never put
in the place of theirs: `Comparison.same_heads` says which it is, and savings are made of the same heads only.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from ...config import BACKENDS, Machine
from ...models import STATE_BYTES, GDNShape, model
from ...report.nearest import heads_distance
from ...report.recorded import DATA
from ...report.text import listed
from . import engine_flags
from .memory_need import memory_need
from .precision import precision
from .recorded_calls import INTERPOLATED, KERNEL, NEAREST, RECORDED, Estimate, Series, all_series, called
from .server import server_rows
from .step_share import STEP_DTYPE, StepShare, step_share
from .study import Parameters

# The kernels that stand for what the engine runs unless it is told otherwise: Triton on a KV pool.
ENGINE_DEFAULTS = ("triton/kv32", "triton/kv8")
ENGINE_OWN = ("flashinfer/vk",)  # the very kernel that the engine calls; others of ours go by the engine's names
HOW_ORDER = (RECORDED, INTERPOLATED, NEAREST)


@dataclass(frozen=True)
class Comparison:
    """Variants timed by one run, fastest first. batch: of the recorded heads, with as many states as were asked for."""

    series: Series
    batch: float
    same_heads: bool
    estimates: dict[str, Estimate]

    @property
    def names(self) -> list[str]:
        return list(self.estimates)

    @property
    def how(self) -> str:
        return next(iter(self.estimates.values())).how

    @property
    def batches(self) -> list[int]:
        """The recorded batches that the times are made of."""
        return sorted({batch for one in self.estimates.values() for batch in one.batches})

    def us(self, name: str) -> float:
        return self.estimates[name].times.us

    @property
    def state_us(self) -> float:
        """µs that reading and writing the states alone takes at the measured bandwidth."""
        shape, dtype = self.series.shape, self.series.dtype
        batch = self.batches[0] if self.how == NEAREST else self.batch
        return 2 * batch * shape.state_elements * STATE_BYTES[dtype] / self.series.roof / 1e3

    @property
    def moves_states(self) -> bool:
        """Whether the fastest reads and writes each state in every step, rather than writing some later."""
        return self.names[0] not in self.series.deferring

    @property
    def across(self) -> "Comparison | None":
        """Where the times are of a recorded batch beside the one asked for: those on the other side, of two or more."""
        if self.how != NEAREST:
            return None
        batches = self.series.batches
        above, below = [at for at in batches if at > self.batch], [at for at in reversed(batches) if at < self.batch]
        others = above if self.batches[0] < self.batch else below
        found = (Comparison(self.series, at, self.same_heads, self.series.at(at)) for at in others)
        return next((one for one in found if one.how == RECORDED and len(one.estimates) > 1), None)

    @property
    def tie(self) -> bool:
        """Whether the two fastest cannot be told apart: the 20th percentile of one is below the 80th of the other."""
        first, *rest = self.estimates.values()
        return bool(rest) and rest[0].times.p20 <= first.times.p80


@dataclass(frozen=True)
class Saving:
    """What the fastest variant saves compared with a baseline, µs: in one layer, and in all GDN layers of a step."""

    baseline: str
    layer_us: float
    token_us: float


@dataclass(frozen=True)
class Advice:
    """The answer. comparison: None where no row of this dtype is recorded. elsewhere: variants that were not compared
    at these heads, at other heads with as many states. backend: of the engine, fastest of those that it accepts, or
    None. chosen: the variant that stands for it. refusals: {setting: sentence}. server: rows of server.py, [] where no
    serving of this model at this tp is recorded. precision: sentences on the state's dtype, [] where no drift is."""

    p: Parameters
    shape: GDNShape
    comparison: Comparison | None
    elsewhere: Comparison | None
    savings: list[Saving]
    step: StepShare | None
    memory: list[dict]
    backend: str | None
    chosen: str | None
    flags: str
    refusals: dict[str, str]
    not_measured: list[str]
    server: list[dict]
    precision: list[str]


def advise(p: Parameters, data: Path = DATA) -> Advice:
    """Answer for one model, tp, batch and dtype from what is recorded of p.gpu_reference."""
    shape, found = p.shape, all_series(p.gpu_reference, data)
    usable = [series for series in found if series.dtype == p.dtype]
    comparison = best_comparison(usable, shape, p.batch)
    elsewhere = wider_comparison(usable, shape, p.batch, comparison)
    machine = recorded_machine(found)
    backend, chosen = engine_choice(comparison, p.dtype, machine)
    server = server_rows(p.gpu_reference, p.model, p.tp, p.batch, p.dtype, data)
    return Advice(
        p=p,
        shape=shape,
        comparison=comparison,
        elsewhere=elsewhere,
        savings=savings(comparison, model(p.model).gdn_layers),
        step=step_share(p.gpu_reference, p.model, p.tp, p.batch, data) if p.dtype == STEP_DTYPE else None,
        memory=memory_need(p.model, p.tp, p.slots, p.spec, p.memory),
        backend=backend,
        chosen=chosen,
        flags=engine_flags.flags(engine_flags.settings_for(backend, p.dtype)) if backend else "",
        refusals=engine_flags.refusals(p.dtype, machine),
        not_measured=not_measured(p, comparison, found, server),
        server=server,
        precision=precision(p.gpu_reference, data),
    )


# ---- which recorded rows --------------------------------------------------------------------------------------------


def best_comparison(found: list[Series], shape: GDNShape, batch: int) -> Comparison | None:
    """The nearest recorded comparison: of two variants or more if there is one, then same heads, then how the batch is
    known, then calls of the kernel alone, then most variants, then the newest."""
    candidates = [compared(series, shape, batch) for series in found]
    candidates = [one for one in candidates if one.estimates]
    return min(candidates, key=lambda one: _distance(one, shape), default=None)


def _distance(one: Comparison, shape: GDNShape) -> tuple:
    series = one.series
    return (
        len(one.estimates) < 2,
        heads_distance(series.shape, shape),
        HOW_ORDER.index(one.how),
        series.source != KERNEL,
        -len(one.estimates),
        [-ord(character) for character in series.recording.date],
        series.recording.notebook,
    )


def compared(series: Series, shape: GDNShape, batch: int) -> Comparison:
    """A series at the batch that has as many states, B · HV, as `batch` rows of `shape` have."""
    same = series.shape == shape
    scaled = batch * shape.num_v_heads / series.shape.num_v_heads
    at = int(scaled) if scaled == int(scaled) else scaled
    return Comparison(series, at, same, series.at(at))


def wider_comparison(found, shape: GDNShape, batch: int, nearest: Comparison | None) -> Comparison | None:
    """Of other heads with as many states, a comparison of the kernels alone that has variants `nearest` lacks."""
    if nearest is None:
        return None
    candidates = [compared(series, shape, batch) for series in found if series.source == KERNEL]
    candidates = [
        one
        for one in candidates
        if set(one.names) - set(nearest.names) and one.series.shape != nearest.series.shape and one.how != NEAREST
    ]
    return min(candidates, key=lambda one: (-len(one.names), *_distance(one, shape)), default=None)


# ---- what follows from them -----------------------------------------------------------------------------------------


def savings(comparison: Comparison | None, gdn_layers: int) -> list[Saving]:
    """What the fastest saves compared with each of ENGINE_DEFAULTS timed with it; [] for other heads or batches."""
    if comparison is None or not comparison.same_heads or comparison.how == NEAREST:
        return []
    best = comparison.names[0]
    pairs = [(name, comparison.us(name) - comparison.us(best)) for name in ENGINE_DEFAULTS if name in comparison.names]
    return [Saving(name, us, us * gdn_layers) for name, us in pairs if name != best]


def recorded_machine(found: list[Series]) -> Machine:
    """What the engine's rules need to know of the recorded GPU."""
    newest = max(found, key=lambda series: series.recording.date, default=None)
    return Machine(newest.recording.capability, newest.recording.flashinfer) if newest else Machine(None, None)


def engine_choice(comparison: Comparison | None, dtype: str, machine: Machine) -> tuple[str | None, str | None]:
    """(the engine's backend, the variant that stands for it): the fastest that the engine knows and accepts."""
    for name in comparison.names if comparison else ():
        backend = name.partition("/")[0]
        if backend in BACKENDS and not engine_flags.refusal(engine_flags.settings_for(backend, dtype), machine):
            return backend, name
    return None, None


def not_measured(p: Parameters, comparison: Comparison | None, found: list[Series], server: list[dict]) -> list[str]:
    """What the answer does not rest on a measurement of; never empty."""
    sentences, names = [], comparison.names if comparison else []
    known = {name for series in found for name in series.times}
    if missing := sorted(known - set(names)):
        sentences.append(f"{', '.join(missing)} with these heads at this batch.")
    if comparison and not comparison.same_heads:
        sentences.append(f"Any kernel with the heads of {p.model} at tp {p.tp}.")
    if p.spec:
        sentences.append(f"Verify steps with {p.spec} draft tokens: the times are of decode (T = 1); see notebook 05.")
    own = [name for name in names if name not in ENGINE_OWN and name.partition("/")[0] in BACKENDS]
    if own:
        ours = "this workbook's; only the backend's name is the same"
        sentences.append(f"The engine's own kernels: {listed(own)} {'is' if len(own) == 1 else 'are'} {ours}.")
    whole = "Attention layers, output head, all-reduces and scheduling are in no time here but those of the server; "
    if not server:
        whole = "A whole model: attention layers, output head, all-reduces and scheduling are in no time here; "
    sentences.append(f"{whole}savings per token are one layer's times the number of GDN layers.")
    return sentences


def as_json(advice: Advice) -> dict:
    """The answer as JSON can hold it. Times in µs, sizes in bytes on each GPU."""

    def comparison(one: Comparison | None) -> dict | None:
        if one is None:
            return None
        series = one.series
        return {
            "run": series.recording.notebook,
            "gpu": series.recording.gpu,
            "device": series.recording.device,
            "date": series.recording.date,
            "commit": series.recording.commit,
            "source": series.source,
            "timer": series.timer,
            "model": series.model,
            "tp": series.tp,
            "num_k_heads": series.shape.num_k_heads,
            "num_v_heads": series.shape.num_v_heads,
            "state_dtype": series.dtype,
            "same_heads": one.same_heads,
            "batch": one.batch,
            "known": one.how,
            "recorded_batches": one.batches,
            "tie": one.tie,
            "states_at_measured_bandwidth_us": one.state_us,
            "variants": [
                {"variant": name, "median_us": each.times.us, "p20_us": each.times.p20, "p80_us": each.times.p80}
                for name, each in one.estimates.items()
            ],
        }

    p, entry = advice.p, model(advice.p.model)
    asked = {"model": p.model, "tp": p.tp, "batch": p.batch, "dtype": p.dtype, "gpu": called(p.gpu_reference)}
    asked |= {"slots": p.slots, "spec": p.spec, "memory_gb": p.memory or None}
    asked |= {"num_k_heads": advice.shape.num_k_heads, "num_v_heads": advice.shape.num_v_heads}
    asked |= {"gdn_layers": entry.gdn_layers, "layers": entry.layers}
    step = advice.step and {
        **{key: value for key, value in advice.step._asdict().items() if key != "recording"},
        "run": advice.step.recording.notebook,
        "commit": advice.step.recording.commit,
        "batches": list(advice.step.batches),
        "saving": advice.step.saving,
    }
    return {
        "asked": asked,
        "comparison": comparison(advice.comparison),
        "elsewhere": comparison(advice.elsewhere),
        "savings": [asdict(each) for each in advice.savings],
        "step": step,
        "memory": advice.memory,
        "engine": {"backend": advice.backend, "variant": advice.chosen, "flags": advice.flags},
        "server": advice.server,
        "refusals": advice.refusals,
        "not_measured": advice.not_measured,
    }
