"""Train the small model from a seed, within a time or a number of steps.

The learning rate and the curriculum follow the share of the time, or of the steps, that has passed: short documents
about few names first, long ones about many last. Every 15 seconds a line of the loss curve is written and printed, and
the checkpoint is written, so that a run that is cut off keeps what it has.
"""

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import save
from .language import KINDS, STATEMENT, documents, questions
from .network import Network
from .sizes import Sizes
from .training_plan import Plan, Stage, rate_at
from .training_step import IGNORED, Step
from .vocabulary import PAD

TOGETHER = 8  # steps between waits for the GPU, so that time passes for both


class Batches:
    """Batches of training documents: many are made at once, and used batch by batch."""

    def __init__(self, plan: Plan, device):
        self.plan, self.device = plan, device
        self.stage, self.made, self.left = None, 0, []

    def next(self, share: float) -> tuple[Tensor, Tensor]:
        """(tokens, targets) [n, T] for the share of the run that has passed, as Step takes them."""
        stage = self.plan.stage(share)
        if stage != self.stage or not self.left:
            self.stage = stage
            rows = stage.tokens // (stage.statements * STATEMENT)
            seed = self.plan.seed * 1_000_000 + self.made
            made = documents(
                rows * max(1, self.plan.at_once // rows), stage.statements, stage.most_names, seed, self.device
            )
            self.made += 1
            # Each document begins with PAD, so nothing is predicted before its first token
            targets = torch.where(made.predicted, made.tokens, IGNORED).roll(-1, 1)
            self.left = list(zip(made.tokens.split(rows), targets.split(rows), strict=True))
        return self.left.pop()


def train(sizes: Sizes, plan: Plan, folder: Path, device="cuda", say: Callable[[str], None] = print) -> Network:
    """Train a model; write model.safetensors and loss.jsonl into `folder`. Return the network.

    On a GPU products are TF32: eight times as fast, and the weights become bfloat16 anyway.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return _train(sizes, plan, folder, device, say)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _train(sizes: Sizes, plan: Plan, folder: Path, device, say) -> Network:
    torch.manual_seed(plan.seed)
    network = Network(sizes).to(device)
    step, batches = Step(network, plan), Batches(plan, device)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "loss.jsonl"
    log.unlink(missing_ok=True)
    began = written = time.monotonic()
    steps, losses = 0, []
    while True:
        elapsed = time.monotonic() - began
        share = steps / plan.steps if plan.steps else elapsed / plan.seconds
        over = share >= 1
        if over or time.monotonic() - written >= plan.every:
            written = time.monotonic()
            line = {"step": steps, "seconds": round(elapsed, 1), "rate": rate_at(plan, share)}
            line |= {"loss": float(torch.stack(losses).mean()) if losses else None}
            stage = plan.stage(share)
            line |= {"statements": stage.statements, "most_names": stage.most_names}
            line |= tested(network, plan.asked, plan.tested_last if over else plan.tested, plan.seed)
            losses = []
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            save(folder / "model.safetensors", network, line)
            say(json.dumps(line))
        if over:
            return network
        losses.append(step(*batches.next(share), rate_at(plan, share)))
        steps += 1
        if steps % TOGETHER == 0:
            float(losses[-1])


@torch.no_grad()
def tested(network: Network, about: Stage, each: int, seed: int) -> dict[str, float]:
    """{kind: share of `each` questions answered exactly}, each answer token predicted after the right ones before it.

    about: the documents. The questions are the same throughout a run, and others than those of notebook 11.
    """
    device, length = network.embedding.device, about.statements * STATEMENT
    asked = _questions(each * len(KINDS), length, about.most_names, 2**31 + seed, tuple(KINDS))
    tokens = torch.cat([asked.prompts, asked.answers], 1)
    padded = F.pad(tokens, (0, -tokens.shape[1] % 64), value=PAD).to(device)
    rows = max(1, about.tokens // padded.shape[1])
    first = length - 1
    guessed = torch.cat([network(part)[:, first : first + 2].argmax(-1) for part in padded.split(rows)]).cpu()
    right = (guessed == asked.answers) | (torch.arange(2) >= asked.lengths[:, None])
    right = right.all(1)
    return {kind: float(right[[one == kind for one in asked.kinds]].float().mean()) for kind in KINDS}


_questions = functools.lru_cache(maxsize=1)(questions)  # the same at each line
