"""Documents of the generated language, and questions about them that have one exact answer.

A document is a row of statements of three tokens, about up to 128 of the 256 names:

    bada is seven          the name has this value until a later statement gives it another
    kemo takes bada        kemo has the value that bada has now
    ask kemo seven         what the value is now: the model predicts the last token

and of calculations of nine, from left to right modulo ten, over names with values zero to nine or over numbers:

    calc bada plus kemo times three makes four two      four is the first step's result, two the second's

`documents` makes what the model is trained on, `questions` what it is tested with: a document and one unanswered
question at its end.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .vocabulary import (
    ASK,
    CALC,
    FIRST_NAME,
    FIRST_NUMBER,
    IS,
    MAKES,
    MINUS,
    NAMES,
    NUMBERS,
    OPERATIONS,
    PAD,
    PLUS,
    TAKES,
)

STATEMENT, CALCULATION = 3, 9  # tokens
MODULUS = 10
MOST_ASKS = 0.6  # of the statements of a document to train on
LEAST_NAMES = 4  # of such a document
ANSWER_TOKENS = 2  # of the longest answer


@dataclass(frozen=True)
class Kind:
    """One kind of documents. values: how many numbers occur. The rest: shares of the statements after which nothing
    new is known: `takes` of those that give a known name another value, `asks`, `calculations`."""

    values: int = NUMBERS
    takes: float = 0.0
    asks: float = 0.3
    calculations: float = 0.0


KINDS = {
    "recall": Kind(),
    "tracking": Kind(takes=0.7),
    "arithmetic": Kind(values=MODULUS, asks=0.1, calculations=0.4),
}

MIX = ("recall", "tracking", "arithmetic", "tracking", "arithmetic")  # of documents to train on: recall is learnt first


class Documents(NamedTuple):
    """tokens [n, T] int64; predicted [n, T] bool: whether the model must predict the token at this place."""

    tokens: Tensor
    predicted: Tensor


class Questions(NamedTuple):
    """prompts [n, T] int64; answers [n, ANSWER_TOKENS] int64, of which the first `lengths` [n] count; kinds: a name of
    KINDS for each."""

    prompts: Tensor
    answers: Tensor
    lengths: Tensor
    kinds: list[str]


class _Writer:
    """Writes n documents side by side, statement after statement; everything random comes from one generator."""

    def __init__(self, kinds: list[Kind], names: Tensor, statements: int, rng: torch.Generator):
        """kinds: of each document. names [n]: how many names each is about."""
        n, self.rng, self.on = len(kinds), rng, {"device": rng.device}
        self.rows = torch.arange(n, **self.on)
        self.values, self.takes, self.asks, self.calculations = (
            torch.tensor([getattr(kind, field) for kind in kinds], **self.on)
            for field in ("values", "takes", "asks", "calculations")
        )
        self.calculate_some = any(kind.calculations for kind in kinds)
        self.names = names
        order = torch.rand(n, NAMES, generator=rng, **self.on).argsort(1)
        self.order = order + FIRST_NAME  # the token of name number i of each document
        self.known = torch.zeros(n, dtype=torch.long, **self.on)  # names that have a value
        self.current = torch.zeros(n, NAMES, dtype=torch.long, **self.on)  # their values now
        self.taken = torch.zeros(n, NAMES, dtype=torch.bool, **self.on)  # whether it was taken from another name
        self.tokens = torch.zeros(n, statements * STATEMENT, dtype=torch.long, **self.on)
        self.predicted = torch.zeros(n, statements * STATEMENT, dtype=torch.bool, **self.on)

    def uniform(self) -> Tensor:
        return torch.rand(len(self.rows), generator=self.rng, **self.on)

    def below(self, most: Tensor) -> Tensor:
        """A whole number from 0 up to below `most` for each document; 0 where most is 0."""
        return (self.uniform() * most).long().clamp(max=(most - 1).clamp(min=0))

    def statement(self, place: int, idle: Tensor) -> None:
        """Write one statement at token `place` of each document but the `idle` ones."""
        kind = self.uniform()
        fresh = (self.known == 0) | ((self.known < self.names) & (kind >= 0.5))
        asks = ~fresh & (self.uniform() < self.asks)
        subject = torch.where(fresh, self.known, self.below(self.known))
        source = self.below(self.known)
        # A value is taken at most once, so that a model of few layers can follow it
        takes = ~asks & (self.known > 1) & (source != subject) & ~self.taken[self.rows, source]
        takes &= self.uniform() < self.takes
        value = torch.where(takes, self.current[self.rows, source], self.below(self.values))
        value = torch.where(asks, self.current[self.rows, subject], value)
        name = self.order[self.rows, subject]
        number = FIRST_NUMBER + value
        words = (
            torch.where(asks, ASK, name),
            torch.where(asks, name, torch.where(takes, TAKES, IS)),
            torch.where(takes, self.order[self.rows, source], number),
        )
        for offset, word in enumerate(words):
            self.tokens[:, place + offset] = torch.where(idle, self.tokens[:, place + offset], word)
        self.predicted[:, place + 2] |= asks & ~idle
        changed = ~asks & ~idle
        for kept, new in ((self.current, value), (self.taken, takes)):
            kept[self.rows, subject] = torch.where(changed, new, kept[self.rows, subject])
        self.known += fresh & ~idle

    def calculation(self) -> Tensor:
        """Return one calculation for each document [n, CALCULATION], over names or numbers, with both results."""
        words, operands = [], []
        for _ in range(3):
            subject, literal = self.below(self.known), self.below(torch.full_like(self.known, MODULUS))
            by_name = (self.known > 0) & (self.uniform() < 0.7)
            operands.append(torch.where(by_name, self.current[self.rows, subject], literal))
            words.append(torch.where(by_name, self.order[self.rows, subject], FIRST_NUMBER + literal))
        signs = [torch.tensor(OPERATIONS, **self.on)[self.below(torch.full_like(self.known, 3))] for _ in range(2)]
        first = calculate(operands[0], signs[0], operands[1])
        second = calculate(first, signs[1], operands[2])
        calc, makes = torch.full_like(first, CALC), torch.full_like(first, MAKES)
        results = (FIRST_NUMBER + first, FIRST_NUMBER + second)
        return torch.stack([calc, words[0], signs[0], words[1], signs[1], words[2], makes, *results], 1)

    def asked(self) -> tuple[Tensor, Tensor]:
        """Return a question about the value that a name has now [n, 2], and its answer [n, 1]."""
        subject = self.below(self.known)
        name = self.order[self.rows, subject]
        value = self.current[self.rows, subject]
        return torch.stack([torch.full_like(name, ASK), name], 1), (FIRST_NUMBER + value)[:, None]

    def write(self) -> None:
        """Fill the documents."""
        for block in range(0, self.tokens.shape[1], CALCULATION):
            room = block + CALCULATION <= self.tokens.shape[1]
            calculates = (self.uniform() < self.calculations) & (self.known >= self.names // 2) & room
            if room and self.calculate_some:
                part = slice(block, block + CALCULATION)
                self.tokens[:, part] = torch.where(calculates[:, None], self.calculation(), self.tokens[:, part])
                self.predicted[:, block + CALCULATION - 2 : block + CALCULATION] |= calculates[:, None]
            for place in range(block, min(block + CALCULATION, self.tokens.shape[1]), STATEMENT):
                self.statement(place, calculates)


def calculate(left: Tensor, sign: Tensor, right: Tensor) -> Tensor:
    """left plus, minus or times right, modulo ten."""
    results = torch.where(sign == PLUS, left + right, torch.where(sign == MINUS, left - right, left * right))
    return results % MODULUS


def documents(n: int, statements: int, most_names: int, seed: int, device="cpu") -> Documents:
    """Make n documents to train on: the kinds of MIX in turn, of a quarter of most_names (at least 4) to most_names
    names, with different shares of asks.

    Each begins with one to three PAD, and is cut off so that all have as many tokens: statements * STATEMENT.
    The same seed makes the same documents on one kind of device.
    """
    rng = torch.Generator(device).manual_seed(seed)
    base = [KINDS[name] for name in MIX]
    asks = (torch.rand(n, generator=rng, device=device) * MOST_ASKS).tolist()
    kinds = [base[i % len(base)] for i in range(n)]
    kinds = [kind if kind.calculations else replace(kind, asks=asks[i]) for i, kind in enumerate(kinds)]
    names = torch.randint(max(LEAST_NAMES, most_names // 4), most_names + 1, (n,), generator=rng, device=device)
    writer = _Writer(kinds, names, statements, rng)
    writer.write()
    pads = torch.randint(1, STATEMENT + 1, (n, 1), generator=rng, device=device)
    place = torch.arange(statements * STATEMENT, device=device) - pads
    tokens = torch.where(place < 0, PAD, writer.tokens.gather(1, place.clamp(min=0)))
    return Documents(tokens, writer.predicted.gather(1, place.clamp(min=0)) & (place >= 0))


def questions(n: int, tokens: int, names: int, seed: int, kinds: tuple[str, ...] = tuple(KINDS)) -> Questions:
    """Make n questions, their kinds in turn, each about a document of `names` names that asks nothing before.

    tokens: of a prompt, the question included. What whole statements leave of it is PAD at its beginning.
    """
    rng = torch.Generator().manual_seed(seed)
    named = [kinds[i % len(kinds)] for i in range(n)]
    prompts = torch.full((n, tokens), PAD)
    answers = torch.full((n, ANSWER_TOKENS), PAD)
    lengths = torch.ones(n, dtype=torch.long)
    for name in kinds:
        rows = torch.tensor([i for i, each in enumerate(named) if each == name], dtype=torch.long)
        kind, length = KINDS[name], CALCULATION - 2 if KINDS[name].calculations else 2
        statements = (tokens - length - 1) // STATEMENT
        writer = _Writer([replace(kind, asks=0.0)] * len(rows), torch.full_like(rows, names), statements, rng)
        writer.write()
        question, answer = writer.calculation().split([length, 2], 1) if kind.calculations else writer.asked()
        prompts[rows, tokens - length - statements * STATEMENT :] = torch.cat([writer.tokens, question], 1)
        answers[rows, : answer.shape[1]] = answer
        lengths[rows] = answer.shape[1]
    return Questions(prompts, answers, lengths, named)
