"""Sweep of the drift study: for each regime all ways in step with the float64 reference, then what each costs."""

import math
import time

import torch

from ... import reference
from ...bench.rows import Rows, recorded
from ...trained.as_trained import as_trained
from ..parameters import on_gpu
from . import regimes
from .checkpoint_gates import checkpoint_gates
from .cost import cost_sweep
from .lanes import ReferenceLane, WayLane, relative_errors
from .regimes import RandomStream, RecordedStream
from .ways import all_ways

PHASE = "drift"
CHUNK = 100  # steps drawn at once, and captured in one CUDA graph
FP16_LIMIT, FP16_NORMAL = 65504.0, 2.0**-14  # largest number, and least that has all its digits
ERRORS = ("state_error", "output_error", "output_error_of_state")


def checkpoints(steps: int) -> list[int]:
    """Return the steps after which errors are taken: 1, 2, 5, 10, … below `steps`, and `steps`."""
    found = {factor * 10**power for power in range(len(str(steps))) for factor in (1, 2, 5)}
    return sorted({step for step in found if step < steps} | {steps})


def drift_sweep(
    points: list[tuple[str, str]],
    *,
    shape,
    steps: int,
    rows: int,
    device,
    seed: int = 0,
    checkpoint=None,
    until: float = math.inf,
    run=None,
) -> list[dict]:
    """Return a row for each regime and way, and one for each regime, written when the regime is done.

    points: (gates, keys) of each regime. shape: GDNShape of the synthetic regimes. steps: decode steps. rows: requests
    side by side. checkpoint: regimes.Gates of a Hugging Face folder, for the gates "checkpoint". until: by
    time.monotonic(), after which no regime is begun. run: a Run, or None; it is
    interrupted where regimes were left out.

    A way's row has lists, an entry for each of `steps`: state_error, the norm of the state's error by the norm of the
    state, its median over rows and heads; output_error, of the output as returned, rounded to its dtype;
    output_error_of_state, of the exact output of the stored state. The same with _worst: the largest. An entry is null
    where a number is not finite. A regime's row has largest_state, the largest |S| of the reference after each of
    `steps`, the share of elements below float16's normal numbers after the last, and how its gates decay. What cannot
    run is refused.
    """
    device = torch.device(device)
    found, left = Rows(run, {"phase": PHASE, "status": "fact", "seed": seed}), 0
    with recorded(run), torch.no_grad():
        for gates, keys in points:
            case = {"gates": gates, "keys": keys}
            if time.monotonic() > until:
                print(f"The time limit was reached before {gates}, {keys}: give more -p minutes.")
                left += 1
                continue
            try:
                stream = _stream(gates, keys, shape, rows, device, seed, checkpoint)
            except FileNotFoundError as error:
                found.add(case | {"status": "refused", "backend": "any", "variant": "any", "reason": str(error)})
                continue
            _regime(found, case, stream, steps, device, seed)
    if left and run is not None:
        run.finish("interrupted")
    return list(found)


def _stream(gates, keys, shape, rows, device, seed, checkpoint):
    """Make the stream of one regime. FileNotFoundError where there is no trained model."""
    if gates == regimes.TRAINED:
        return RecordedStream(as_trained(), chunk=CHUNK, device=device)
    drawn = checkpoint if gates == regimes.CHECKPOINT else regimes.synthetic(gates, shape.num_v_heads, seed)
    return RandomStream(drawn, keys, shape, rows=rows, chunk=CHUNK, device=device, seed=seed)


def _regime(found: Rows, case: dict, stream, steps: int, device, seed: int) -> None:
    """Run one regime and add its rows."""
    HK, HV, K, V = stream.shape.dims
    case |= {"num_k_heads": HK, "num_v_heads": HV, "head_k_dim": K, "head_v_dim": V, "batch": stream.rows, "tokens": 1}
    ways = []
    for way in all_ways(device):
        if reason := way.refusal(stream.shape, device):
            if not any(row.get("way") == way.name and row.get("reason") == reason for row in found):  # once is enough
                found.add(case | way.fields() | {"status": "refused", "reason": reason})
        else:
            ways.append(way)
    exact, lanes = ReferenceLane(stream, device), [WayLane(way, stream, device, seed) for way in ways]
    taken = checkpoints(steps)
    errors = {way: {f"{name}{of}": [] for name in ERRORS for of in ("", "_worst")} for way in ways}
    largest, largest_value, log_g = [], 0.0, []
    for start in range(0, steps, CHUNK):
        count = min(CHUNK, steps - start)
        stream.next()
        for lane in (exact, *lanes):
            lane.next()
        largest_value = max(largest_value, stream.inputs.v.abs().max().item())
        log_g.append(reference.log_decay(stream.inputs.a, stream.A_log, stream.dt_bias, device).mean((0, 1)))
        stops = [step - start for step in taken if start < step <= start + count]
        for first, last in _stretches(start, count, stops):
            for lane in (exact, *lanes):
                if last - first == CHUNK:
                    lane.chunk(CHUNK)
                else:
                    for t in range(first, last):
                        lane.step(t)
            if last in stops:
                largest.append(exact.S.abs().max().item())
                for lane in lanes:
                    _take(errors[lane.way], lane, exact, last - 1)
    own = _of_regime(taken, largest, largest_value, torch.stack(log_g).mean(0))
    small = (exact.S.abs() < FP16_NORMAL).double().mean().item()
    found.add(case | own | {"share_below_float16_normal": small})
    for way in ways:
        found.add(case | way.fields() | {"steps": taken} | errors[way])


def _stretches(start: int, count: int, stops: list[int]) -> list[tuple[int, int]]:
    """Return (first, last) of the steps of a chunk that are taken at once: up to each of `stops`, and to its end.

    The first chunk of all goes step by step up to half of it: kernels are compiled before a graph is captured.
    """
    ends = sorted({*stops, count} | ({CHUNK // 2} & set(range(count)) if start == 0 else set()))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _take(errors: dict, lane: WayLane, exact: ReferenceLane, t: int) -> None:
    """Append a lane's errors after step t of the chunk."""
    S, expected = lane.S, exact.output(exact.S, t)
    for name, pair in zip(ERRORS, ((S, exact.S), (lane.out, expected), (exact.output(S, t), expected)), strict=True):
        median, worst = relative_errors(*pair)
        errors[name].append(median)
        errors[f"{name}_worst"].append(worst)


def _of_regime(steps: list[int], largest: list[float], largest_value: float, log_g) -> dict:
    """Return the fields of a regime's own row. log_g [HV]: the mean of each head."""
    half_lives = (-math.log(2.0) / log_g).cpu().double()
    quantiles = torch.quantile(half_lives, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    return {
        "steps": steps,
        "largest_state": largest,
        "largest_value": largest_value,
        "share_of_float16_limit": max(largest) / FP16_LIMIT,
        "half_life_p5_p50_p95": quantiles,
    }


def everything(p, run, earlier=()) -> list[dict]:
    """Run what the parameters of the study ask for, study.Parameters: what each way costs, then every regime.

    earlier: rows of a run that is gone on with; the times and regimes that they have are left out. Returns all rows.
    """
    until = time.monotonic() + 60 * p.minutes
    device, shape = torch.device("cuda" if on_gpu() else "cpu"), p.shape
    checkpoint = checkpoint_gates(p.checkpoint).sample(shape.num_v_heads) if p.checkpoint else None
    options = {"device": device, "seed": p.seed, "run": run}
    rows = list(earlier)
    if not any("median_us" in row for row in rows):
        rows += cost_sweep(shape, p.batch, samples=p.samples, model=p.model, tp=p.tp, **options)
    done = {(row["gates"], row["keys"]) for row in rows if "largest_state" in row}
    points = [point for point in p.points if point not in done]
    options |= {"steps": p.steps, "rows": p.rows, "checkpoint": checkpoint, "until": until}
    return rows + drift_sweep(points, shape=shape, **options)
