"""The sweep of decode steps: each configuration is checked, timed against the others, and measured part by part.

Whole step: one CUDA graph holds the steps of several layers, each with weights and states of its own, so that both come
from memory as in serving; each layer takes the output of the one before. The time is a replay's over the number of
layers. Parts: what CUPTI records of such replays (layer/step_parts.py). On a CPU both are timed by the host's clock.
"""

from contextlib import contextmanager

import torch

from ... import ops
from ...bench.cases import checked_batches, checked_names
from ...bench.progress import part_of, progress_bar
from ...bench.results import Run
from ...bench.roof import measure_roof
from ...bench.rows import Rows, recorded
from ...layer import CONFIGURATIONS, Step, stacked
from ...layer.step_parts import TRACED
from ...models import divisions
from .points import Layers, Options, Point
from .record import record_step

HEATMAP_PARTS = ("gdn", TRACED)  # the parts that the heatmap's sweep keeps


def step_sweep(
    model: str,
    tp: int,
    batches,
    *,
    configurations,
    run: Run | None = None,
    parts: bool = True,
    eager: bool = True,
    progress: bool = True,
    **options,
) -> list[dict]:
    """Time the decode step of each configuration at each batch size; return the rows, appended to `run` as measured.

    model, tp: a name in the model table, and how many GPUs share a layer. configurations: names. parts, eager: also
    measure the parts; also launch the step kernel by kernel. options: see Options.

    Rows have phase "step" and results.ROW_FIELDS, and configuration, part, mode ("graph" or "eager"), model, tp,
    precision, products ({part: "torch" or "triton"}), toy, skew, layers (steps in one replay), experts_hit, sweep
    ("step" or "share"), seed, l2, calls_per_sample; parts also kernels (of one step; None on a CPU). Times are of one
    step of one layer. Parts:
        "step"          the whole: timer cuda_graph_replay (mode graph), cuda_events_eager (mode eager), or host_clock
        one of PARTS    the time in which its kernels keep the GPU busy, in a replay recorded by CUPTI (cupti_kernel)
        "gaps"          of the same replay, the time in which nothing runs
        "traced step"   the sum of these: the recorded replay, from its first kernel's start to its last one's end
    A part that a configuration fuses away has no row. status "wrong": the check failed in wrong_parts, not timed;
    "refused": cannot run here, or its parts cannot be measured here (timer is then given); "fact", part "all-reduce":
    what one GPU cannot run.

    ValueError for arguments out of range, RuntimeError if a step fails or leaves NaN or infinity.
    """
    options = Options(**options, sweep="step")
    batches, rows = checked_batches(batches), Rows(run)
    names = checked_names("configurations", configurations, CONFIGURATIONS)
    options.roof = options.roof or measure_roof(options.device)
    with _sweeping(run, options), progress_bar(what="step", total=len(batches), show=progress) as bar:
        layers = Layers(model, tp, options)
        for batch in batches:
            bar.set_postfix_str(f"B = {batch}", refresh=False)
            point = Point(layers, batch, names, rows)
            point.time_whole(part_of(bar, 0.7))
            if eager and options.on_gpu:
                point.time_eager()
            bar.update(0.1)
            if parts:  # last: once CUPTI is started it stays in the process
                point.time_parts()
            bar.update(0.2)
            point.close()
    return rows


def heatmap_sweep(
    models, tps, batches, configurations, *, run: Run | None = None, progress: bool = True, **options
) -> list[dict]:
    """Measure how GDN's share varies with model, tensor-parallel size and batch: step_sweep()'s rows of each point.

    Rows have sweep "share"; of the parts only HEATMAP_PARTS are kept. Without models, tps or batches there are none. A
    tensor-parallel size that cannot split a model's heads is skipped; a model and size that do not fit into the GPU's
    memory give a row of status "refused". options: see Options.
    """
    options = Options(**options, sweep="share")
    names, rows = checked_names("configurations", configurations, CONFIGURATIONS), Rows(run)
    if not (models and tps and batches):
        return rows
    batches = checked_batches(batches)
    ranks = [(model, tp) for model in models for tp in tps if tp in divisions(model)]
    options.roof = options.roof or measure_roof(options.device)
    with (
        _sweeping(run, options),
        progress_bar(what="heatmap", total=len(ranks) * len(batches), show=progress) as bar,
    ):
        for model, tp in ranks:
            bar.set_postfix_str(f"{model}, tp {tp}", refresh=False)
            try:
                _heatmap_points(model, tp, batches, names, rows, options, bar)
            except torch.OutOfMemoryError:
                rows.add(_refused_for_memory(model, tp))
            if options.on_gpu:
                torch.cuda.empty_cache()
    return rows


def _heatmap_points(model, tp, batches, names, rows, options, bar) -> None:
    """The points of one model and tensor-parallel size; its weights are freed on return."""
    layers = Layers(model, tp, options)
    for batch in batches:
        point = Point(layers, batch, names, rows)
        point.time_whole(part_of(bar, 1.0))
        point.time_parts(HEATMAP_PARTS)
        point.close()


def _refused_for_memory(model: str, tp: int) -> dict:
    return {
        "status": "refused",
        "phase": "step",
        "backend": "any",
        "variant": "any",
        "model": model,
        "tp": tp,
        "sweep": "share",
        "reason": "needs more memory than this GPU has free",
    }


def record(model: str, tp: int, batch: int, name: str, run: Run, *, layers: int = 2, **options) -> None:
    """Record a trace of a few runs of `layers` layers in one configuration, for notebook 04 (record.py).

    name: the configuration; "" records nothing. Prints the reason if it cannot run here. options: see Options.
    """
    if not name:
        return
    weights, seed = Layers(model, tp, Options(**options)), options.get("seed", 0)
    if reason := Step.refusal(name, weights[0]):
        print(f"Not recorded: {name} {reason}.")
        return
    first = Step(weights[0], name, batch, seed=seed)
    record_step(stacked(first, [weights[layer] for layer in range(1, layers)]), run)


@contextmanager
def _sweeping(run: Run | None, options: Options):
    """Record in `run` how the sweep ends; switch checks off; on a CPU use one thread.

    The operators of a toy step are so short that several threads wait for each other more than they help.
    """
    threads = torch.get_num_threads()
    with recorded(run), ops.checks(False):
        try:
            if not options.on_gpu:
                torch.set_num_threads(1)
            yield
        finally:
            torch.set_num_threads(threads)
