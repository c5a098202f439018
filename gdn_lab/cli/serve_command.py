"""gdn-lab serve: serve drawn requests with a whole model, and print the metrics that engines' benchmarks print.

    gdn-lab serve --model qwen3.5-35b-a3b --concurrency 1,8,64
    gdn-lab serve --model qwen3.5-27b --tp 2 --configurations before-32,best --input 1024 --output 256
    gdn-lab serve --toy                                    a small model, on a CPU too

Rows go to a folder under runs/ while it runs: each step and each request, and the metrics of each run.
"""

import argparse
from pathlib import Path

from ..models import MODELS
from .errors import BatchError, Interrupted, UsageError
from .run import RUNS, command_line, shown

NOTEBOOK = "serve"  # in the names of run folders
DEFAULT_MODEL = "qwen3.5-35b-a3b"
COLUMNS = {  # of the printed table: a field of a run row, its heading and how it is written
    "concurrency": ("C", "d"),
    "configuration": ("configuration", "s"),
    "output_throughput": ("output tok/s", ",.1f"),
    "total_throughput": ("total tok/s", ",.1f"),
    "tokens_per_s_gpu": ("total tok/s/GPU", ",.1f"),
    "tokens_per_s_user": ("tok/s/user", ",.1f"),
    "tpot_ms": ("TPOT ms", ".3f"),
    "tpot_ms_p99": ("p99", ".3f"),
    "itl_chunk_ms": ("ITL/chunk ms", ".3f"),
    "itl_token_ms": ("ITL/token ms", ".3f"),
    "ttft_ms": ("TTFT ms", ".1f"),
    "ttft_ms_p99": ("p99", ".1f"),
    "step_us": ("step µs", ",.0f"),
    "tokens_per_step": ("tok/step", ".2f"),
    "host_gap_share": ("host gap", ".1%"),
    "joules_per_token": ("J/token", ".3f"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL, choices=MODELS, metavar="NAME", help=f"default: {DEFAULT_MODEL}")
    add("--tp", type=int, default=1, metavar="N", help="tensor-parallel GPUs of this machine; default: 1")
    add("--concurrency", type=numbers, metavar="C,…", help="requests in flight; default: 1,8,64, of a toy 1,4")
    add(
        "--configurations", type=names, metavar="NAME,…", help="of the decode step; default: those made for this device"
    )
    add("--precision", default="fp8", choices=("fp8", "bf16"), help="of projections and experts")
    add(
        "--dtype",
        default="bfloat16",
        metavar="DTYPE",
        help="of the state: bfloat16, float16 or float32; replay-fp8 has its own",
    )
    add("--requests", type=int, metavar="N", help="in a run; default: twice the concurrency, or the whole trace")
    add("--input", type=int, metavar="TOKENS", help="of a prompt; default: 64, of a toy 6")
    add("--output", type=int, metavar="TOKENS", help="of an answer; default: 256, of a toy 8")
    add("--spread", type=float, default=0.0, metavar="SHARE", help="lengths are drawn up to this share around these")
    add("--trace", type=Path, metavar="FILE", help="JSONL with input_length and output_length, instead of --input, …")
    add(
        "--prefill",
        default="steps",
        choices=("steps", "chunked", "mixed"),
        help="of prompts: alone, between decode steps, or in one step with them",
    )
    add("--chunk", type=int, metavar="TOKENS", help="of prompts in one prefill; default: what the model takes at most")
    add(
        "--draft-tokens",
        type=int,
        default=0,
        metavar="T",
        help="verified in a step, 2 to 8; default: 0, no speculation",
    )
    add("--acceptance", type=float, default=0.8, metavar="RATE", help="at which draft tokens are accepted")
    add("--temperature", type=float, default=0.0, help="of the softmax that tokens are drawn from; default: 0, greedy")
    add("--top-k", type=int, default=0, metavar="K", help="draw from the K most likely tokens; default: 0, all")
    add("--top-p", type=float, default=1.0, metavar="P", help="and of these from the fewest with probability P")
    add("--communicator", metavar="NAME", help="sums over ranks; default: fastest, on a CPU gloo")
    add("--layers", type=int, metavar="N", help="only the model's first N layers")
    add("--seed", type=int, default=0, help="of weights, prompts and lengths")
    add("--toy", action="store_true", help="a small model of the same structure, whose times rank nothing")
    add("--runs", type=Path, default=RUNS, metavar="FOLDER", help="where run folders go")


def numbers(word: str) -> list[int]:
    """ "1,8" -> [1, 8]."""
    found = [int(part) for part in word.split(",") if part.strip().isdecimal() and int(part)]
    if not found or len(found) < len(word.split(",")):
        raise argparse.ArgumentTypeError(f"expected positive ints such as 1,8,64, got {word!r}")
    return list(dict.fromkeys(found))


def names(word: str) -> list[str]:
    """ "before,best" -> ["before", "best"]."""
    found = [part.strip() for part in word.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"expected names such as before,best, got {word!r}")
    return found


def run(arguments: argparse.Namespace) -> None:
    """Serve, print the table, and where the rows are. UsageError, one sentence, for what cannot be asked."""
    import torch

    from ..bench.results import Run
    from ..engine.ranks import RankError

    gpu = torch.cuda.is_available()
    if not gpu and not arguments.toy:
        raise UsageError("gdn-lab serve needs an NVIDIA GPU for a model of real size; add --toy to serve a small one")
    plan = plan_of(arguments, "cuda" if gpu else "cpu")
    check_plan(plan)
    command = command_line(arguments)
    made = Run.create(NOTEBOOK, plan._asdict(), root=arguments.runs, command=command, seed=plan.seed)
    print(f"Rows go to {shown(made.folder)}.", flush=True)
    try:
        with made:
            rows = serve_all(plan, made)
    except KeyboardInterrupt as interrupt:
        what = str(interrupt) or "interrupted"
        raise Interrupted(f"{what}; the rows until then are in {shown(made.folder)}") from None
    except (RankError, ValueError, OSError) as error:
        raise BatchError(f"{str(error).rstrip('.')}; the rows until then are in {shown(made.folder)}") from None
    print(f"\n{table(rows)}\n\n{made.rows} rows in {shown(made.folder)}.")


def plan_of(arguments: argparse.Namespace, device: str):
    """The Plan that the arguments ask for on a device of this type."""
    from ..engine.serve_ranks import Plan
    from ..layer.configurations import made_for

    toy = arguments.toy

    def given(name: str, default):
        value = getattr(arguments, name)
        return default if value is None else value

    return Plan(
        model=arguments.model,
        tp=arguments.tp,
        concurrencies=given("concurrency", [1, 4] if toy else [1, 8, 64]),
        configurations=given("configurations", made_for(device)),
        precision=arguments.precision,
        state_dtype=arguments.dtype,
        toy=toy,
        layers=arguments.layers,
        requests=arguments.requests,
        input=given("input", 6 if toy else 64),
        output=given("output", 8 if toy else 256),
        spread=arguments.spread,
        trace=arguments.trace and str(arguments.trace),
        prefill=arguments.prefill,
        chunk=arguments.chunk,
        draft_tokens=arguments.draft_tokens,
        acceptance=arguments.acceptance,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        communicator=given("communicator", "fastest" if device == "cuda" else "gloo"),
        seed=arguments.seed,
    )


def check_plan(plan) -> None:
    """UsageError, one sentence, for what can be seen before any weight is made."""
    from ..engine.model_sizes import ModelSizes
    from ..engine.serve_ranks import check, requests_of

    for name in ("tp", "requests", "input", "output", "chunk", "layers"):
        value = getattr(plan, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name}: expected a whole number from 1 up, got {value}")
    if not 0 <= plan.spread < 1:
        raise UsageError(f"--spread: expected a share from 0 to below 1, got {plan.spread:g}")
    if not 0 <= plan.acceptance <= 1:
        raise UsageError(f"--acceptance: expected a rate from 0 to 1, got {plan.acceptance:g}")
    try:
        check(plan)
        sizes = ModelSizes.of(plan.model, plan.tp, toy=plan.toy, layers=plan.layers)
        requests_of(plan._replace(requests=1), 1, sizes.vocab)
    except OSError as error:
        raise UsageError(f"--trace: cannot read {plan.trace}: {error.strerror}; name a JSONL file") from None
    except ValueError as error:
        raise UsageError(str(error)) from None


def serve_all(plan, made) -> list[dict]:
    """Serve on `tp` ranks: in this process if there is one."""
    import torch

    from ..engine import ranks
    from ..engine.communicator import Alone
    from ..engine.serve_ranks import serve_on_rank

    folder = (str(made.folder), made.info)
    if plan.tp == 1:
        return serve_on_rank(Alone("cuda" if torch.cuda.is_available() else "cpu"), plan, folder)
    from ..studies.all_reduce.analysis import choice_on

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return ranks.start(plan.tp, serve_on_rank, plan, folder, choice_on(name, plan.tp))[0]


def table(rows: list[dict]) -> str:
    """The runs as a table, then what was refused. Columns that no run has a value for are left out."""
    served = [row for row in rows if row["status"] != "refused"]
    shown_fields = [name for name in COLUMNS if any(row.get(name) is not None for row in served)]
    lines = [[COLUMNS[name][0] for name in shown_fields]] if served else []
    lines += [[_cell(row.get(name), COLUMNS[name][1]) for name in shown_fields] for row in served]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    text += [
        f"{row['configuration']}, C = {row['concurrency']}: {row['reason']}"
        for row in rows
        if row["status"] == "refused"
    ]
    return "\n".join(text)


def _cell(value, form: str) -> str:
    return "" if value is None else format(value, form)
