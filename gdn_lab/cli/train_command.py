"""gdn-lab train: train the small model of notebook 11 anew, with its checkpoint, loss curve and provenance."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

from ..trained.training_plan import Plan
from .errors import UsageError
from .run import check_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    plan = Plan()
    parser.add_argument("--seconds", type=float, metavar="S", default=plan.seconds, help="default: %(default)g")
    parser.add_argument("--steps", type=int, metavar="N", help="train for so many steps instead of a time")
    parser.add_argument("--seed", type=int, default=plan.seed, help="of weights and documents; default: %(default)d")
    parser.add_argument("--eager", action="store_true", help="launch each kernel by itself instead of a CUDA graph")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="FOLDER",
        default=Path("runs/trained"),
        help="for the files; default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> None:
    """Train, and print a line every 15 seconds.

    UsageError, one sentence, for what cannot be asked, BatchError for a folder that cannot be written.
    """
    import torch

    from ..bench.environment import environment
    from ..files import replacing
    from ..trained.sizes import Sizes
    from ..trained.training import train

    length = arguments.seconds if arguments.steps is None else arguments.steps
    if not 0 < length < math.inf:
        raise UsageError(f"expected a positive time or number of steps, got {length:g}")
    if not torch.cuda.is_available() and arguments.steps is None:
        raise UsageError(
            "training takes four minutes on a GPU, hours on a CPU, and torch finds no GPU here; try --steps 2"
        )
    plan = replace(Plan(), seconds=arguments.seconds, steps=arguments.steps, seed=arguments.seed)
    plan = replace(plan, graph=not arguments.eager)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    check_writable(arguments.folder, "--folder")
    train(Sizes(), plan, arguments.folder, device, lambda line: print(line, flush=True))
    facts = {"plan": plan.as_dict(), "sizes": Sizes().as_dict(), "environment": environment(device)}
    with replacing(arguments.folder / "train.json") as partial:
        partial.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"model.safetensors, loss.jsonl and train.json are in {arguments.folder}.")
