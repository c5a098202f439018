"""A sweep of decode steps: each configuration of step/step.py checked, timed against the others, and taken apart.

Whole step: a CUDA graph of several layers' steps, each with weights and state of its own, so that both come from memory
as in serving, and each on what the one ahead leaves; what a replay takes, over the number of layers. Parts: what CUPTI
saw in such replays (step/parts.py). On a CPU both are the host's clock.
"""

from contextlib import contextmanager

import torch

from ... import layer as step
from ... import models as shapes
from ... import ops
from ...backends.base import dtype_name
from ...bench.cases import checked_batches, checked_names
from ...bench.progress import part_of, progress_bar
from ...bench.results import Run
from ...bench.roof import Roof, l2_bytes, measure_roof
from ...bench.rows import Rows, recorded, timing_fields
from ...bench.timers import TimerUnavailable, Timing, time_interleaved
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
from .record import record_step

CPU_LAYERS = 2
LEAST_LAYERS = 4  # in one graph, so that what lies between two replays is little of it
WEIGHTS_SHARE = 0.5  # of free GPU memory, that layers beyond those needed may take
SAMPLES = {"cuda": 200, "cpu": 5}
SHARE_SAMPLES = {"cuda": 20, "cpu": 3}
SHARE_MODELS = ("qwen3.5-397b-a17b", "qwen3.5-35b-a3b", "qwen3.5-27b")  # beside the model asked for
SHARE_TPS, SHARE_BATCHES = (1, 4, 8), (16, 64, 256)
SHARE_PARTS = ("gdn", TRACED)  # what a sweep for the share of GDN keeps of the parts
ALL_REDUCE_REASON = (
    "one GPU plays one tensor-parallel rank: the all-reduces after out_proj and after combine are not run"
)


def step_sweep(
    model: str, tp: int, batches, *, configurations, precision: str = "fp8", state_dtype=torch.bfloat16, device=None,
    run: Run | None = None, samples: int = 200, seed: int = 0, roof: Roof | None = None, toy: bool = False,
    skew: float = 0.0, parts: bool = True, eager: bool = True, progress: bool = True,
) -> list[dict]:  # fmt: skip
    """Times the decode step of each configuration at each batch size; returns the rows, appended to `run` as made.

    model, tp: a name in the model table, and how many GPUs share a layer. configurations: names of step.CONFIGURATIONS.
    precision: of the weights, "fp8" or "bf16". samples: CUDA-graph replays of each configuration, taken in turns.
    roof: default, it is measured first. toy: the model at toy size. skew: of the routing (StepWeights.random). parts,
    eager: also take the step apart; also launch it kernel by kernel.

    Rows have phase "step" and results.ROW_FIELDS, and configuration, part, mode ("graph" or "eager"), model, tp,
    precision, products (of each part, by "torch" or "triton"), toy, skew, layers (steps in
    one replay), experts_hit, sweep ("step" or "share"), seed, l2, calls_per_sample; parts also kernels (of one step;
    None on a CPU). Times are of one step of one layer. Parts:
        "step"          the whole: timer cuda_graph_replay (mode graph), cuda_events_eager (mode eager), or host_clock
        one of PARTS    the time in which its kernels keep the GPU busy, in a replay recorded by CUPTI (cupti_kernel)
        "gaps"          of the same replay, the time in which nothing ran
        "traced step"   the sum of these: the replay as recorded, from its first kernel's start to its last one's end
    A part that a configuration fuses away has no row. status "wrong": the check failed in wrong_parts, not timed;
    "refused": cannot run here, or cannot be taken apart here (timer is then given); "fact", part "all-reduce": what one
    GPU leaves out.

    Raises ValueError for arguments that cannot be, RuntimeError if a step fails, or leaves NaN or infinity.
    """
    options = _Options(precision, state_dtype, device, samples, seed, toy, skew, "step")
    batches, rows = checked_batches(batches), Rows(run)
    names = checked_names("configurations", configurations, step.CONFIGURATIONS)
    options.roof = roof or measure_roof(options.device)
    with recorded(run), ops.checks(False), _one_thread(options.device):
        with progress_bar(what="step", total=len(batches), show=progress) as bar:
            rank = _Rank(model, tp, options)
            for batch in batches:
                point = _Point(rank, batch, names, rows, part_of(bar, 0.7))
                bar.set_postfix_str(f"B = {batch}", refresh=False)
                point.whole()
                if eager and options.device.type == "cuda":
                    point.eager()
                bar.update(0.1)
                if parts:  # last: once CUPTI is started it stays in the process
                    point.parts()
                bar.update(0.2)
                point.close()
    return rows


def share_sweep(
    models, tps, batches, configurations, *, precision: str = "fp8", state_dtype=torch.bfloat16, device=None,
    run: Run | None = None, samples: int = 20, seed: int = 0, roof: Roof | None = None, toy: bool = False,
    skew: float = 0.0, progress: bool = True,
) -> list[dict]:  # fmt: skip
    """How the share of GDN moves with model, tensor-parallel size and batch: step_sweep()'s rows for each combination.

    Of the parts only those of SHARE_PARTS are kept. No models: no rows. A size that cannot split a model's heads is
    left out; a combination that has no room in the GPU's memory is a row of status "refused".
    """
    options = _Options(precision, state_dtype, device, samples, seed, toy, skew, "share")
    names, rows = checked_names("configurations", configurations, step.CONFIGURATIONS), Rows(run)
    if not models:
        return rows
    batches = checked_batches(batches)
    ranks = [(model, tp) for model in models for tp in tps if tp in shapes.divisions(model)]
    options.roof = roof or measure_roof(options.device)
    with recorded(run), ops.checks(False), _one_thread(options.device):
        total = len(ranks) * len(batches)
        with progress_bar(what="share of GDN", total=total, show=progress) as bar:
            for model, tp in ranks:
                bar.set_postfix_str(f"{model}, tp {tp}", refresh=False)
                try:
                    rank = _Rank(model, tp, options)
                    for batch in batches:
                        point = _Point(rank, batch, names, rows, part_of(bar, 1.0))
                        point.whole()
                        point.parts(SHARE_PARTS)
                        point.close()
                except torch.OutOfMemoryError:
                    rows.add({
                        "status": "refused", "phase": "step", "backend": "any", "variant": "any", "model": model,
                        "tp": tp, "sweep": "share", "reason": "needs more memory than this GPU has free",
                    })  # fmt: skip
                rank = point = None
                if options.device.type == "cuda":
                    torch.cuda.empty_cache()
    return rows


def capture(
    model: str, tp: int, batch: int, names, run: Run, *, precision: str = "fp8", device=None, seed: int = 0,
    toy: bool = False, skew: float = 0.0, layers: int = 2,
) -> None:  # fmt: skip
    """Records a few runs of the steps of `layers` layers in each configuration of `names`: step/capture.py.

    One that cannot run here is said, and not recorded.
    """
    rank = _Rank(model, tp, _Options(precision, torch.bfloat16, device, 1, seed, toy, skew, "step"))
    for name in names:
        if reason := step.Step.refusal(name, rank.layer(0)):
            print(f"Not recorded: {name} {reason}.")
            continue
        first = step.Step(rank.layer(0), name, batch, seed=seed)
        record_step(step.stacked(first, [rank.layer(layer) for layer in range(1, layers)]), run)


@contextmanager
def _one_thread(device):
    """On a CPU one thread: a toy step's operators are so short that several wait for each other more than they help."""
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


class _Options:
    """What all points of a sweep share."""

    def __init__(self, precision, state_dtype, device, samples, seed, toy, skew, sweep):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision, self.state_dtype, self.samples, self.seed = precision, state_dtype, samples, seed
        self.toy, self.skew, self.sweep, self.roof = toy, skew, sweep, None
        self.l2 = "cold" if self.device.type == "cuda" else "not controlled"


class _Rank:
    """The weights of one tensor-parallel rank of a model, layer after layer as they are needed, for all batches."""

    def __init__(self, model: str, tp: int, options: _Options):
        self.model, self.tp, self.options, self.weights = model, tp, options, []

    def layer(self, number: int):
        while len(self.weights) <= number:
            o, before = self.options, self._allocated()
            seed = o.seed + len(self.weights)
            self.weights.append(
                step.StepWeights.random(
                    self.model, self.tp, precision=o.precision, device=o.device, seed=seed, toy=o.toy, skew=o.skew
                )
            )
            self.layer_bytes = self._allocated() - before
        return self.weights[number]

    def _allocated(self) -> int:
        device = self.options.device
        return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


class _Point:
    """The steps of all configurations at one batch size: checked when made, then timed."""

    def __init__(self, rank: _Rank, batch: int, names, rows: Rows, share):
        self.rank, self.options, self.batch, self.rows, self.share = rank, rank.options, batch, rows, share
        self.steps, self.checks = {}, {}
        for name in names:
            reason = step.Step.refusal(name, rank.layer(0), self.options.state_dtype)
            if reason is not None:
                rows.add(self._case(name) | {"status": "refused", "reason": reason})
                continue
            o = self.options
            first = step.Step(rank.layer(0), name, batch, state_dtype=o.state_dtype, seed=o.seed)
            check = first.check()
            if not check.right:
                error = {"max_abs_error": check.max_abs_error, "part": WHOLE, "wrong_parts": first.wrong_parts}
                rows.add(self._case(name) | {"status": "wrong"} | error)
                continue
            self.steps[name], self.checks[name] = [first], check
        self._add_layers()
        self._all_reduce()

    def _add_layers(self) -> None:
        """The steps of further layers, as many for each configuration."""
        if not self.steps:
            return
        first = next(iter(self.steps.values()))[0]
        self.bytes = {name: of[0].bytes() for name, of in self.steps.items()}
        self.experts_hit = first.experts_hit
        self.layers = self._layers(first)
        more = [self.rank.layer(layer) for layer in range(1, self.layers)]
        for steps in self.steps.values():
            steps[:] = step.stacked(steps[0], more)

    def _layers(self, first) -> int:
        """As many as the L2 calls for, and LEAST_LAYERS where there is room for their weights."""
        device = self.options.device
        if device.type == "cpu":
            return CPU_LAYERS
        free = torch.cuda.mem_get_info(device)[0]
        affordable = len(self.rank.weights) + int(WEIGHTS_SHARE * free / self.rank.layer_bytes)
        return max(step.layers_needed(first, l2_bytes(device)), min(LEAST_LAYERS, affordable))

    def close(self) -> None:
        """Lets go of the steps, whose state may be gigabytes."""
        self.steps.clear()
        if self.options.device.type == "cuda":
            torch.cuda.empty_cache()

    def whole(self) -> None:
        """Rows of the whole step."""
        if not self.steps:
            return self.share(1.0)
        on_gpu = self.options.device.type == "cuda"
        with nvtx_range(f"B = {self.batch}, {GRAPH_TIMER if on_gpu else CPU_TIMER}"):
            timings = time_interleaved(
                self.steps, timer=GRAPH_TIMER if on_gpu else CPU_TIMER, device=self.options.device,
                samples=self.options.samples, warmup=3 if on_gpu else 1, min_sample_us=200.0 if on_gpu else 0.0,
                max_seconds=float(self.options.samples), progress=self.share,
            )  # fmt: skip
        self._check_finite()
        for name, timing in timings.items():
            self._add(name, WHOLE, "graph" if on_gpu else "eager", timing, sum(self.bytes[name].values()))

    def parts(self, keep=None) -> None:
        """Rows of the parts, gaps and total; all, or those in `keep`. A sentence where they cannot be had."""
        if not self.steps:
            return
        try:
            taken = measure_parts(self.steps, self.options.device, self.options.samples)
        except TimerUnavailable as error:
            for name in self.steps:
                self.rows.add(self._case(name) | {"status": "refused", "timer": PARTS_TIMER, "reason": str(error)})
            return
        mode = "eager" if self.options.device.type == "cpu" else "graph"
        for name, of in taken.items():
            bytes_of = self.bytes[name] | {TRACED: sum(self.bytes[name].values())}
            for part, timing in of.parts.items():
                if keep is None or part in keep:
                    self._add(name, part, mode, timing, bytes_of.get(part, 0), {"kernels": of.kernels.get(part)})

    def eager(self) -> None:
        """Rows of the whole step launched kernel by kernel."""
        if self.steps:
            for name, timing in eager_interleaved(self.steps, max(10, self.options.samples // 4)).items():
                self._add(name, WHOLE, "eager", timing, sum(self.bytes[name].values()))

    def _check_finite(self) -> None:
        for name, steps in self.steps.items():
            if not all(bool(torch.isfinite(of.out).all()) for of in steps):
                raise RuntimeError(
                    f"{name} at B = {self.batch} leaves NaN or infinity after the replays; its times mean nothing"
                )

    def _all_reduce(self) -> None:
        if not self.steps or self.rank.tp == 1:
            return
        out = next(iter(self.steps.values()))[0].out
        self.rows.add({
            "status": "fact", "phase": "step", "part": ALL_REDUCE, "model": self.rank.model, "tp": self.rank.tp,
            "batch": self.batch, "bytes": out.nbytes, "times_a_layer": 2, "reason": ALL_REDUCE_REASON,
            "sweep": self.options.sweep,
        })  # fmt: skip

    def _case(self, name: str) -> dict:
        configuration, shape = step.CONFIGURATIONS[name], self.rank.layer(0).shape
        backend, variant = configuration.gdn.split("/")
        return {
            "phase": "step", "configuration": name, "backend": backend, "variant": variant,
            "layout": configuration.layout, "state_dtype": dtype_name(self.options.state_dtype), "batch": self.batch,
            "tokens": self.batch, "num_k_heads": shape.num_k_heads, "num_v_heads": shape.num_v_heads,
            "model": self.rank.model, "tp": self.rank.tp, "precision": self.options.precision,
            "toy": self.options.toy, "skew": self.options.skew, "sweep": self.options.sweep, "seed": self.options.seed,
        }  # fmt: skip

    def _add(self, name: str, part: str, mode: str, timing: Timing, nbytes: int, more=None) -> None:
        o = self.options
        self.rows.add(
            self._case(name)
            | timing_fields(timing, nbytes, step.BYTES_FORMULA, o.roof, o.device, o.l2)
            | {
                "part": part, "mode": mode, "max_abs_error": self.checks[name].max_abs_error, "layers": self.layers,
                "experts_hit": self.experts_hit, "products": self.steps[name][0].products(),
            }
            | (more or {})
        )  # fmt: skip


def parse_configurations(text: str, device) -> list[str]:
    """ "before,best" -> ["before", "best"]; "auto" -> those made for the device. ValueError for unknown names."""
    if text.strip() == "auto":
        return step.made_for(torch.device(device).type)
    return checked_names("configurations", (word.strip() for word in text.split(",")), step.CONFIGURATIONS)


def parse_share(models: str, tps: str, batches: str, *, own: str, tp: int, device) -> tuple[list, list, list]:
    """What share_sweep() goes over, from comma-separated text; nothing where a text is empty.

    "auto": on a GPU `own` and SHARE_MODELS, SHARE_TPS, SHARE_BATCHES; on a CPU `own`, `tp`, and batches of 1 and 4.
    ValueError for anything else than names of models and positive whole numbers.
    """
    on_gpu, found = torch.device(device).type == "cuda", []
    given = {"heat_models": models, "heat_tps": tps, "heat_batches": batches}
    auto = ([own, *SHARE_MODELS], SHARE_TPS, SHARE_BATCHES) if on_gpu else ([own], [tp], [1, 4])
    for (name, text), default in zip(given.items(), auto, strict=True):
        words = [word.strip() for word in text.split(",") if word.strip()]
        if words == ["auto"]:
            found.append(list(dict.fromkeys(default)))
        elif name == "heat_models":
            found.append([word for word in dict.fromkeys(words) if shapes.model(word)])
        elif all(word.isdecimal() and int(word) > 0 for word in words):
            found.append(sorted({int(word) for word in words}))
        else:
            raise ValueError(f"{name}: expected auto, nothing, or positive whole numbers such as 1,8, got {text!r}")
    return tuple(found) if all(found) else ([], [], [])


def parse_captured(text: str, names: list[str]) -> list[str]:
    """The configuration to record: for "auto" `after`, whose launches do not overlap, or else the last of `names`; none
    for nothing. ValueError for an unknown one."""
    text = text.strip()
    auto = "after" if "after" in names else names[-1]
    return checked_names("captured", [auto if text == "auto" else text], step.CONFIGURATIONS) if text else []
