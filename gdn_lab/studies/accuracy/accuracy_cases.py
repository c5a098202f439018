"""What is tested: paths, kernels, dtypes of the state, and shortcuts, in the order in which they are tested."""

import math
from typing import NamedTuple

import torch

from ...backends.base import Variant, dtype_name
from ...backends.registry import VARIANTS, refusal
from ...trained.inference import Kernels, SmallModel
from ...trained.sizes import Sizes
from .answering import DECODE, PATHS, PREFILL, VERIFY

FLOAT32, FP8 = "float32", "float8_e4m3fn"
NEAREST, STOCHASTIC = "nearest", "stochastic"
NO_SHORTCUT = ""
BF16_DT_BIAS, BF16_A_LOG, NO_DT_BIAS = "dt_bias in bf16", "A_log in bf16", "dt_bias left out"
BF16_BETA = "beta in bf16"  # of decode()
GUARDED, UNGUARDED = "padding, guarded", "padding writes slot 0"
DECAY = 0.7
LESS_DECAY = f"log decay × {DECAY}"  # at the longest prompts: whether float32's mistakes there are of precision at all
GATES = (BF16_DT_BIAS, BF16_A_LOG, BF16_BETA, NO_DT_BIAS)
PADDED = (GUARDED, UNGUARDED)
# Requests and padding rows of a padded batch: a CUDA graph for 16. Kinds of questions come in turn, three of them, so
# that the first request of a batch, which the unguarded rows hit, is of each kind in turn too.
BATCH, PADDING = 11, 5
PADDED_QUESTIONS, PADDED_STEPS = 1100, 16  # at most: batches so small take long


class Case(NamedTuple):
    """One way to answer. kernel: "backend/variant" of the path's phase. dtype: of the state. tokens: of a prompt.
    rounding: of the state, as StatePool has it."""

    path: str
    kernel: str
    dtype: str
    shortcut: str
    tokens: int
    rounding: str = NEAREST

    def __str__(self) -> str:
        more = f", {self.shortcut}" if self.shortcut else ""
        return f"{self.path}, {self.kernel}, {self.state}{more}, {self.tokens} tokens"

    @property
    def state(self) -> str:
        """ "bfloat16"; "bfloat16 stochastic"; "fp8", which has no other rounding than stochastic."""
        if self.dtype == FP8:
            return "fp8"
        return self.dtype if self.rounding == NEAREST else f"{self.dtype} {self.rounding}"

    @property
    def fields(self) -> dict:
        """The fields of a row that name it."""
        backend, _, variant = self.kernel.partition("/")
        return {
            "phase": "accuracy",
            "path": self.path,
            "backend": backend,
            "variant": variant,
            "layout": VARIANTS[self.kernel].layout,
            "state_dtype": self.dtype,
            "rounding": self.rounding,
            "shortcut": self.shortcut,
            "tokens": self.tokens,
        }

    def kernels(self) -> Kernels:
        """What each phase runs on: the kernel where it serves the phase, for the rest what "auto" chooses."""
        variant = VARIANTS[self.kernel]
        backends = {phase: self.kernel if phase in variant.phases else "auto" for phase in PATHS}
        pool = {"dtype": getattr(torch, self.dtype), "rounding": self.rounding, "ring": variant.ring}
        return Kernels(**backends, layout=variant.layout, **pool)


def case_of(row: dict) -> Case:
    """The case of a row."""
    kernel = f"{row['backend']}/{row['variant']}"
    return Case(row["path"], kernel, row["state_dtype"], row["shortcut"], row["tokens"], row["rounding"])


def cases(p) -> list[Case]:
    """All cases of the parameters (study.py), the most wanted first: what others are compared with, padding and gates,
    states of the baseline's kernel, FP8 on the kernel that has it, the same states at other lengths, other kernels,
    FP8 through verify() and prefill() at other lengths, and at last kernels that are eager or copy states: they take
    longest."""
    first, *longer = p.tokens
    found = [Case(path, p.baseline, FLOAT32, NO_SHORTCUT, first) for path in PATHS]
    found += [Case(DECODE, p.baseline, FLOAT32, shortcut, first) for shortcut in (*PADDED, *GATES)]
    dtypes = [dtype_name(dtype) for dtype in p.dtypes]
    chosen = {name: each for name, each in VARIANTS.items() if p.backends == "all" or name in p.backends}
    states = [(dtype, NEAREST) for dtype in dict.fromkeys([FLOAT32, *dtypes]) if dtype != FP8]
    states += [(dtype, STOCHASTIC) for dtype in dtypes if dtype not in (FLOAT32, FP8)]
    fp8 = [name for name, each in chosen.items() if FP8 in dtypes and takes(each, FP8)]

    def at(tokens: int) -> list[Case]:
        found = [Case(DECODE, p.baseline, dtype, NO_SHORTCUT, tokens, rounding) for dtype, rounding in states]
        return found + [Case(DECODE, name, FP8, NO_SHORTCUT, tokens, STOCHASTIC) for name in fp8]

    def others(slow: bool, *paths: str) -> list[Case]:
        return [
            Case(path, name, dtype, NO_SHORTCUT, first, STOCHASTIC if dtype == FP8 else NEAREST)
            for path in paths
            for name, each in chosen.items()
            for dtype in dtypes
            if path in each.phases and takes(each, dtype) and (each.role == "eager" or each.copies) == slow
        ]

    def of_fp8(tokens: int) -> list[Case]:
        """FP8 through verify() and prefill(), and what it is compared with."""
        found = []
        for path in (VERIFY, PREFILL):
            kernels = [name for name in fp8 if path in VARIANTS[name].phases]
            found += [Case(path, p.baseline, FLOAT32, NO_SHORTCUT, tokens)] if kernels else []
            found += [Case(path, name, FP8, NO_SHORTCUT, tokens, STOCHASTIC) for name in kernels]
        return found

    found += at(first) + of_fp8(first)
    found += [case for tokens in longer for case in at(tokens)]
    found += [Case(DECODE, p.baseline, FLOAT32, LESS_DECAY, tokens) for tokens in longer[-1:]]
    found += others(False, DECODE, VERIFY, PREFILL)
    found += [case for tokens in longer for case in of_fp8(tokens)]
    return list(dict.fromkeys(found + others(True, PREFILL, DECODE, VERIFY)))


def takes(variant: Variant, dtype: str) -> bool:
    """Whether a variant takes a state of a dtype."""
    return dtype in map(dtype_name, variant.state_dtypes)


def padded(case: Case, questions: int, stepped: int) -> tuple[int, int]:
    """Questions of a case and the tokens that it steps through: padded batches are so small that they take fewer."""
    if case.shortcut in PADDED:
        return min(questions, PADDED_QUESTIONS), min(stepped, PADDED_STEPS)
    return questions, stepped


def baseline_of(case: Case, kernel: str) -> Case:
    """What a case is compared with, on the same questions: the baseline kernel's float32 on the same path, for padded
    batches those that are guarded."""
    shortcut = GUARDED if case.shortcut in PADDED else NO_SHORTCUT
    return Case(case.path, kernel, FLOAT32, shortcut, case.tokens)


def refused(case: Case, sizes: Sizes, device) -> str | None:
    """Why a case cannot run here, in one sentence; None if it can."""
    dtype, layout = getattr(torch, case.dtype), VARIANTS[case.kernel].layout
    options = {"layout": layout, "dtype": dtype, "device": device, "phase": case.path}
    options |= {"stochastic": case.rounding == STOCHASTIC and case.dtype != FP8}  # of FP8 nothing else is asked for
    options |= {"mode": "intermediate" if case.path == VERIFY else None}  # as inference.py calls verify()
    return refusal(case.kernel, sizes.gdn, **options)


def set_gates(model: SmallModel, originals: dict, shortcut: str) -> None:
    """Give the model the gates of a shortcut; originals: its own, as loaded."""
    model.rounds_beta = shortcut == BF16_BETA
    for layer, (A_log, dt_bias) in originals.items():
        if shortcut == BF16_DT_BIAS:
            dt_bias = dt_bias.bfloat16().float()
        elif shortcut == BF16_A_LOG:
            A_log = A_log.bfloat16().float()
        elif shortcut == LESS_DECAY:
            A_log = A_log + math.log(DECAY)
        elif shortcut == NO_DT_BIAS:
            dt_bias = torch.zeros_like(dt_bias)
        model.gates[layer] = A_log, dt_bias
