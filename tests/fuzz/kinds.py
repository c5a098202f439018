"""The kinds of random cases: each a context manager that gives one_case(seed, number), which raises where one fails."""

from collections.abc import Callable
from contextlib import contextmanager
from random import Random
from typing import NamedTuple


class Kind(NamedTuple):
    """cases(): a context manager; inside, one_case(seed, number) runs a case and returns its name for the counts.

    environment: variables that the process must have been started with.
    """

    cases: Callable
    environment: dict[str, str] = {}


def random_of(seed: int, number: int) -> Random:
    """Return the generator that a case draws from: the same on every machine."""
    return Random(f"{seed}:{number}")


@contextmanager
def _calls(backend: str):
    import torch

    from .calls import one_call

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are small
    try:
        yield lambda seed, number: one_call(random_of(seed, number), backend)
    finally:
        torch.set_num_threads(before)


@contextmanager
def _bad_calls():
    from .bad_calls import one_bad_call

    yield lambda seed, number: one_bad_call(random_of(seed, number))


@contextmanager
def _signals():
    from .interrupts import signals

    with signals() as one_case:
        yield one_case


@contextmanager
def _commands():
    from .interrupts import commands

    with commands() as one_case:
        yield one_case


@contextmanager
def _traces():
    from .traces import cases

    with cases() as one_case:
        yield one_case


KINDS = {
    "calls": Kind(lambda: _calls("torch")),
    "bad": Kind(_bad_calls),
    "triton": Kind(lambda: _calls("triton"), {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}),
    "signals": Kind(_signals),
    "commands": Kind(_commands),
    "traces": Kind(_traces),
}
