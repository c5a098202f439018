"""One batch size of a sweep of decode steps: what all points share, a rank's weights, and what is timed at a point."""

from dataclasses import dataclass

import torch

from ...backends.base import dtype_name
from ...bench.roof import Roof, l2_bytes
from ...bench.rows import Rows, timing_fields
from ...bench.timers import TimerUnavailable, Timing, time_interleaved
from ...layer import BYTES_FORMULA, Configuration, Step, StepWeights, configuration, layers_needed, stacked
from ...layer.step_parts import (
    ALL_REDUCE,
    CPU_TIMER,
    GRAPH_TIMER,
    PARTS_TIMER,
    TRACED,
    WHOLE,
    eager_interleaved,
    measure_parts,
)
from ...trace import nvtx_range
from ..fewer_bytes.decode_choice import decoding_on

CPU_LAYERS = 2
MIN_LAYERS = 4  # in one graph, so that the gap between two replays is little of the time
WEIGHTS_SHARE = 0.5  # of free GPU memory: what layers beyond those needed may take
ALL_REDUCE_REASON = (
    "one GPU plays one tensor-parallel rank: the all-reduces after out_proj and after combine are not run"
)


@dataclass
class Options:
    """What all points of a sweep share.

    precision: of the weights, "fp8" or "bf16". state_dtype: of the pool. device: default, a GPU if there is one.
    samples: CUDA-graph replays of each configuration, interleaved. seed: of weights, inputs, states, slots. toy: the
    model at toy size. skew: of the routing (StepWeights.random). roof: the measured bandwidth; default, it is measured.
    sweep: "step" or "share", the sweep that a row names.
    """

    precision: str = "fp8"
    state_dtype: torch.dtype = torch.bfloat16
    device: torch.device | str | None = None
    samples: int = 200
    seed: int = 0
    toy: bool = False
    skew: float = 0.0
    roof: Roof | None = None
    sweep: str = "step"

    def __post_init__(self):
        self.device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


class Layers:
    """The weights of one tensor-parallel rank of a model, layer after layer, made when first asked for."""

    def __init__(self, model: str, tp: int, options: Options):
        self.model, self.tp, self.options, self.weights = model, tp, options, []
        self.layer_bytes = 0  # memory that one layer takes on a GPU

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, number: int) -> StepWeights:
        while len(self.weights) <= number:
            before = self._allocated()
            self.weights.append(self._made(len(self.weights)))
            self.layer_bytes = self._allocated() - before
        return self.weights[number]

    def _made(self, number: int) -> StepWeights:
        o = self.options
        return StepWeights.random(
            self.model,
            self.tp,
            precision=o.precision,
            device=o.device,
            seed=o.seed + number,
            toy=o.toy,
            skew=o.skew,
        )

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.options.device) if self.options.on_gpu else 0


class Point:
    """The steps of all configurations at one batch size: checked when made, then timed."""

    def __init__(self, layers: Layers, batch: int, names, rows: Rows):
        self.layers, self.options, self.batch, self.rows = layers, layers.options, batch, rows
        self.steps: dict[str, list[Step]] = {}  # {configuration: a step for each layer}
        self.checks, self.entries = {}, {}
        for name in names:
            self._check(self._configuration(name))
        self._stack()
        self._note_all_reduce()

    def _configuration(self, name: str) -> Configuration:
        """The configuration, on a GPU with the decode that recorded times say is faster."""
        o = self.options
        if not o.on_gpu:
            return configuration(name)
        heads = self.batch * self.layers[0].shape.num_v_heads
        return decoding_on(torch.cuda.get_device_name(o.device), name, heads, dtype_name(o.state_dtype))

    def _check(self, entry: Configuration) -> None:
        """Make a configuration's first step, or a row that says why there is none."""
        o, weights, name = self.options, self.layers[0], entry.name
        self.entries[name] = entry
        reason = Step.refusal(entry, weights, o.state_dtype)
        if reason is not None:
            self.rows.add(self._case(name) | {"status": "refused", "reason": reason})
            return
        first = Step(weights, entry, self.batch, state_dtype=o.state_dtype, seed=o.seed)
        check = first.check()
        if check.right:
            self.steps[name], self.checks[name] = [first], check
            return
        wrong = {"status": "wrong", "max_abs_error": check.max_abs_error, "part": WHOLE}
        self.rows.add(self._case(name) | wrong | {"wrong_parts": first.wrong_parts})

    def _stack(self) -> None:
        """Add the steps of further layers, the same number for each configuration."""
        if not self.steps:
            return
        first = next(iter(self.steps.values()))[0]
        self.bytes = {name: steps[0].bytes() for name, steps in self.steps.items()}
        self.experts_hit = first.experts_hit
        self.layer_count = self._layer_count(first)
        more = [self.layers[layer] for layer in range(1, self.layer_count)]
        for steps in self.steps.values():
            steps[:] = stacked(steps[0], more)

    def _layer_count(self, first: Step) -> int:
        """As many as the L2 cache calls for, and MIN_LAYERS where memory has room for their weights."""
        device = self.options.device
        if not self.options.on_gpu:
            return CPU_LAYERS
        free = torch.cuda.mem_get_info(device)[0]
        affordable = len(self.layers) + int(WEIGHTS_SHARE * free / self.layers.layer_bytes)
        return max(layers_needed(first, l2_bytes(device)), min(MIN_LAYERS, affordable))

    def close(self) -> None:
        """Free the steps, whose states may be gigabytes."""
        self.steps.clear()
        if self.options.on_gpu:
            torch.cuda.empty_cache()

    def time_whole(self, advance) -> None:
        """Add rows of the whole step. advance: called with fractions that add up to 1."""
        if not self.steps:
            advance(1.0)
            return
        on_gpu = self.options.on_gpu
        timer = GRAPH_TIMER if on_gpu else CPU_TIMER
        with nvtx_range(f"B = {self.batch}, {timer}"):
            timings = time_interleaved(
                self.steps,
                timer=timer,
                device=self.options.device,
                samples=self.options.samples,
                warmup=3 if on_gpu else 1,
                min_sample_us=200.0 if on_gpu else 0.0,
                max_seconds=float(self.options.samples),
                progress=advance,
            )
        self._check_finite()
        for name, timing in timings.items():
            self._add(name, WHOLE, "graph" if on_gpu else "eager", timing, sum(self.bytes[name].values()))

    def time_parts(self, keep=None) -> None:
        """Add rows of the parts, gaps and traced step, or of those in `keep`; refused ones without CUPTI."""
        if not self.steps:
            return
        try:
            measured = measure_parts(self.steps, self.options.device, self.options.samples)
        except TimerUnavailable as error:
            for name in self.steps:
                refused = {"status": "refused", "timer": PARTS_TIMER, "reason": str(error)}
                self.rows.add(self._case(name) | refused)
            return
        mode = "graph" if self.options.on_gpu else "eager"
        for name, times in measured.items():
            nbytes = self.bytes[name] | {TRACED: sum(self.bytes[name].values())}
            for part, timing in times.parts.items():
                if keep is None or part in keep:
                    self._add(name, part, mode, timing, nbytes.get(part, 0), kernels=times.kernels.get(part))

    def time_eager(self) -> None:
        """Add rows of the whole step launched kernel by kernel."""
        if self.steps:
            for name, timing in eager_interleaved(self.steps, max(10, self.options.samples // 4)).items():
                self._add(name, WHOLE, "eager", timing, sum(self.bytes[name].values()))

    def _check_finite(self) -> None:
        for name, steps in self.steps.items():
            if not all(bool(torch.isfinite(step.out).all()) for step in steps):
                raise RuntimeError(
                    f"{name} at B = {self.batch} leaves NaN or infinity after the replays; its times mean nothing"
                )

    def _note_all_reduce(self) -> None:
        if not self.steps or self.layers.tp == 1:
            return
        self.rows.add(
            {
                "status": "fact",
                "phase": "step",
                "part": ALL_REDUCE,
                "model": self.layers.model,
                "tp": self.layers.tp,
                "batch": self.batch,
                "bytes": next(iter(self.steps.values()))[0].out.nbytes,
                "times_a_layer": 2,
                "reason": ALL_REDUCE_REASON,
                "sweep": self.options.sweep,
            }
        )

    def _case(self, name: str) -> dict:
        entry, shape, o = self.entries[name], self.layers[0].shape, self.options
        backend, variant = entry.gdn.split("/")
        return {
            "phase": "step",
            "configuration": name,
            "backend": backend,
            "variant": variant,
            "layout": entry.layout,
            "state_dtype": entry.state_dtype or dtype_name(o.state_dtype),
            "batch": self.batch,
            "tokens": self.batch,
            "num_k_heads": shape.num_k_heads,
            "num_v_heads": shape.num_v_heads,
            "model": self.layers.model,
            "tp": self.layers.tp,
            "precision": o.precision,
            "toy": o.toy,
            "skew": o.skew,
            "sweep": o.sweep,
            "seed": o.seed,
        }

    def _add(self, name: str, part: str, mode: str, timing: Timing, nbytes: int, **more) -> None:
        o = self.options
        l2 = "cold" if o.on_gpu else "not controlled"
        fields = {
            "part": part,
            "mode": mode,
            "max_abs_error": self.checks[name].max_abs_error,
            "layers": self.layer_count,
            "experts_hit": self.experts_hit,
            "products": self.steps[name][0].products(),
        }
        timed = timing_fields(timing, nbytes, BYTES_FORMULA, o.roof, o.device, l2)
        self.rows.add(self._case(name) | timed | fields | more)
