"""Answer questions with the small model: the prompt through one of three paths, greedy answers, exact match.

    prefill   all of the prompt but its last token through prefill()
    decode    the beginning through prefill(), the last `stepped` tokens one by one through decode()
    verify    the same tokens through verify() and commit(): seven drafts a step, some of them wrong

Answers come through decode() (in the third path through verify() and commit()) from the pool in each case.
"""

import torch
from torch import Tensor

from ...trained.inference import MOST_DRAFTS, Kernels, Requests, SmallModel
from ...trained.language import ANSWER_TOKENS, Questions
from ...trained.vocabulary import PAD, WORDS

PREFILL, DECODE, VERIFY = PATHS = ("prefill", "decode", "verify")
COMPILING = 2  # steps before one is captured: kernels compile in them
WRONG_DRAFTS = 0.15  # share of the drafts that are not the prompt's next token


def right_answers(
    model: SmallModel,
    kernels: Kernels,
    asked: Questions,
    path: str,
    stepped: int,
    *,
    rows: int = 1024,
    padding: int = 0,
    unguarded: bool = False,
    seed: int = 0,
) -> Tensor:
    """Return for each question whether its whole answer is right, bool [n] on the CPU.

    stepped: tokens at the end of a prompt that go through decode() or verify(). rows: requests of a batch. padding,
    unguarded: as Requests has them, of the path "decode". seed: of the wrong drafts.
    """
    given = []
    for prompts in asked.prompts.to(model.device).split(rows):
        requests = Requests(model, len(prompts), kernels, padding, unguarded)
        if path == VERIFY:
            given.append(_verified(requests, prompts, stepped, seed).cpu())
        else:
            given.append(_decoded(requests, prompts, stepped if path == DECODE else 1).cpu())
    same = torch.cat(given) == asked.answers
    return (same | (torch.arange(ANSWER_TOKENS) >= asked.lengths[:, None])).all(1)


def _decoded(requests: Requests, prompts: Tensor, stepped: int) -> Tensor:
    """Answers [n, ANSWER_TOKENS]."""
    start = prompts.shape[1] - stepped
    requests.prefill(prompts[:, :start])
    step = _Step(requests)
    for token in prompts[:, start:].split(1, 1):
        logits = step(token)
    answers = [logits[:, -1].argmax(-1, keepdim=True)]
    while len(answers) < ANSWER_TOKENS:
        answers.append(step(answers[-1])[:, -1].argmax(-1, keepdim=True))
    return torch.cat(answers, 1)


class _Step:
    """decode() of requests, on a GPU as a CUDA graph after the first steps."""

    def __init__(self, requests: Requests):
        self.requests, self.steps, self.graph = requests, 0, None
        self.captures = requests.model.device.type == "cuda"

    def __call__(self, token: Tensor) -> Tensor:
        """Take a token for each request [n, 1]; return logits [n, 1, vocab], which the next step overwrites."""
        self.steps += 1
        if not self.captures or self.steps <= COMPILING:
            return self.requests.decode(token)
        if self.graph is None:
            self.token, self.graph = token.clone(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.logits = self.requests.decode(self.token)
        self.token.copy_(token)
        self.graph.replay()
        return self.logits


def _verified(requests: Requests, prompts: Tensor, stepped: int, seed: int) -> Tensor:
    """Answers [n, ANSWER_TOKENS]; rows go on at their own pace, as many tokens a step as their drafts are right."""
    n, T = prompts.shape
    rng = torch.Generator().manual_seed(seed)
    requests.prefill(prompts[:, : T - stepped])
    known = torch.cat([prompts, prompts.new_full((n, ANSWER_TOKENS + MOST_DRAFTS), PAD)], 1)  # answers are put in
    done = torch.full((n,), T - stepped, device=prompts.device)  # tokens that the states have taken
    ahead = torch.arange(MOST_DRAFTS, device=prompts.device)
    last = T + ANSWER_TOKENS - 1  # the answer's last token need not be taken
    while bool((done < last).any()):
        going = done < last
        places = done[:, None] + ahead
        wrong = (torch.rand(n, MOST_DRAFTS, generator=rng) < WRONG_DRAFTS).to(done.device)
        # Nobody knows the answer before it is sampled: drafts that go beyond the prompt are wrong
        wrong = (wrong | (places >= T)) & (ahead > 0)
        junk = torch.randint(len(WORDS), (n, MOST_DRAFTS), generator=rng).to(done.device)
        tokens = torch.where(wrong, junk, known.gather(1, places.clamp(max=known.shape[1] - 1)))
        logits = requests.verify(tokens, going)
        accepted = (~wrong).long().cumprod(1).sum(1)
        requests.commit(accepted)
        done = torch.where(going, done + accepted, done)
        sampled = logits.gather(1, (accepted - 1)[:, None, None].expand(-1, 1, logits.shape[-1]))[:, 0].argmax(-1)
        new = going & (done >= T)
        place = done.clamp(max=known.shape[1] - 1)[:, None]
        known.scatter_(1, place, torch.where(new[:, None], sampled[:, None], known.gather(1, place)))
    return known[:, T : T + ANSWER_TOKENS]
