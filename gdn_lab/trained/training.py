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
from .vocabulary import PAD


class Batches:
    """Batches of training documents: many are made at once, and used batch by batch."""

    def __init__(self, plan: Plan, device, at_once: int = 64):
        self.plan, self.device, self.at_once = plan, device, at_once
        self.stage, self.made, self.left = None, 0, []

    def next(self, share: float) -> tuple[Tensor, Tensor]:
        """(tokens [n, T], at [m]) for the share of the run that has passed: at, the places of the n * T after which a
        token is predicted."""
        stage = self.plan.stage(share)
        if stage != self.stage or not self.left:
            self.stage = stage
            rows = stage.tokens // (stage.statements * STATEMENT)
            seed = self.plan.seed * 1_000_000 + self.made
            made = documents(rows * self.at_once, stage.statements, stage.most_names, seed, self.device)
            self.made += 1
            # Each document begins with PAD, so nothing is predicted before its first token
            places = made.predicted.roll(-1, 1)
            self.left = [
                (tokens, at.flatten().nonzero()[:, 0])
                for tokens, at in zip(made.tokens.split(rows), places.split(rows), strict=True)
            ]
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
    optimizer = _optimizer(network, plan, device)
    batches = Batches(plan, device)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "loss.jsonl"
    log.unlink(missing_ok=True)
    began = written = time.monotonic()
    step, losses = 0, []
    while True:
        elapsed = time.monotonic() - began
        share = step / plan.steps if plan.steps else elapsed / plan.seconds
        over = share >= 1
        if over or time.monotonic() - written >= plan.every:
            written = time.monotonic()
            line = {"step": step, "seconds": round(elapsed, 1), "rate": rate_at(plan, share)}
            line |= {"loss": float(torch.stack(losses).mean()) if losses else None}
            stage = plan.stage(share)
            line |= {"statements": stage.statements, "most_names": stage.most_names}
            line |= tested(network, plan, stage)
            losses = []
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            save(folder / "model.safetensors", network, line)
            say(json.dumps(line))
        if over:
            return network
        for group in optimizer.param_groups:
            group["lr"] = rate_at(plan, share)
        losses.append(_step(network, optimizer, *batches.next(share), plan.clip))
        step += 1


def _optimizer(network: Network, plan: Plan, device) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices alone."""
    matrices = [x for name, x in network.named_parameters() if x.dim() == 2 and name != "embedding"]
    chosen = {id(x) for x in matrices}
    others = [x for x in network.parameters() if id(x) not in chosen]
    groups = [{"params": matrices, "weight_decay": plan.decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98), fused=torch.device(device).type == "cuda")


def _step(network: Network, optimizer, tokens: Tensor, at: Tensor, clip: float) -> Tensor:
    """One step on a batch; return its loss, over the predicted tokens alone."""
    loss = F.cross_entropy(network(tokens, at), tokens.flatten()[at + 1])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def tested(network: Network, plan: Plan, stage: Stage) -> dict[str, float]:
    """{kind: share of questions answered exactly}, each answer token predicted after the right ones before it."""
    device = network.embedding.device
    length = stage.statements * STATEMENT
    asked = _questions(plan.tested * len(KINDS), length, stage.most_names, 2**31 + plan.seed, tuple(KINDS))
    tokens = torch.cat([asked.prompts, asked.answers], 1)
    padded = F.pad(tokens, (0, -tokens.shape[1] % 64), value=PAD).to(device)
    rows = max(1, stage.tokens // padded.shape[1])
    first = length - 1
    guessed = torch.cat([network(part)[:, first : first + 2].argmax(-1) for part in padded.split(rows)]).cpu()
    right = (guessed == asked.answers) | (torch.arange(2) >= asked.lengths[:, None])
    right = right.all(1)
    return {kind: float(right[[each == kind for each in asked.kinds]].float().mean()) for kind in KINDS}


_questions = functools.lru_cache(maxsize=4)(questions)  # the same at each line of a stage
