"""Answer the questions of every case: a row for each case and kind of question, written when it is done."""

import hashlib
import time

import torch

from ...bench.rows import Rows, recorded
from ...trained.checkpoint import load
from ...trained.inference import SmallModel
from ...trained.language import questions
from .accuracy_cases import (
    BATCH,
    PADDED,
    PADDED_QUESTIONS,
    PADDED_STEPS,
    PADDING,
    UNGUARDED,
    Case,
    case_of,
    cases,
    refused,
    set_gates,
)
from .accuracy_rows import bits
from .answering import DECODE, PREFILL, VERIFY, right_answers

# Requests of a batch on a GPU, by path: activations of whole prompts and states of drafts take its memory.
GPU_ROWS = {PREFILL: 512, DECODE: 2048, VERIFY: 1024}
CPU_ROWS = 64


def accuracy_sweep(p, device, run=None, earlier=()) -> list[dict]:
    """Answer what the parameters `p` (study.py) ask for and `earlier` rows lack; return all rows.

    A row has the fields of its Case, kind, questions, right, and right_bits: a bit for each question, in hexadecimal,
    the first question the highest. Prints a line for each case, and what there was no time for.
    """
    rows = Rows(run)
    digest = hashlib.sha256(p.checkpoint_path.read_bytes()).hexdigest()
    done = {case_of(row) for row in earlier}
    sizes, tensors = load(p.checkpoint_path)
    model = SmallModel(sizes, tensors, device)
    originals = dict(model.gates)
    ends = time.monotonic() + 60 * p.minutes
    left = []
    with recorded(run):
        for case in cases(p):
            if case in done:
                continue
            if reason := refused(case, sizes, model.device):
                rows.add(case.fields | {"status": "refused", "reason": reason})
                continue
            if time.monotonic() > ends:
                left.append(case)
                continue
            set_gates(model, originals, case.shortcut)
            try:
                _answer(p, model, case, digest, rows)
            except (RuntimeError, ValueError) as error:  # of one kernel, which stops no other
                reason = (str(error) or type(error).__name__).splitlines()[0]
                rows.add(case.fields | {"status": "refused", "reason": f"failed: {reason}"})
                print(f"{case}: failed: {reason}", flush=True)
    if left:
        print(f"No time was left for {len(left)} cases: {'; '.join(map(str, left))}.", flush=True)
    return [*earlier, *rows]


def _answer(p, model: SmallModel, case: Case, digest: str, rows: Rows) -> None:
    """Add the rows of one case."""
    count, stepped = p.questions, p.stepped_of(case.tokens)
    if case.shortcut in PADDED:
        count, stepped = min(count, PADDED_QUESTIONS), min(stepped, PADDED_STEPS)
    asked = questions(count, case.tokens, p.names, p.seed)
    began = time.monotonic()
    right = right_answers(model, case.kernels(), asked, case.path, stepped, **_batches(model, case))
    seconds = time.monotonic() - began
    for kind in dict.fromkeys(asked.kinds):
        chosen = torch.tensor([each == kind for each in asked.kinds])
        of_kind = right[chosen].tolist()
        fields = {"kind": kind, "questions": len(of_kind), "right": sum(of_kind), "right_bits": bits(of_kind)}
        more = {"names": p.names, "stepped": stepped, "device": model.device.type}
        more |= {"checkpoint_sha256": digest}
        if case.shortcut in PADDED:  # the requests in the slot that padding rows write: the first of each batch
            first = right[chosen & (torch.arange(len(right)) % BATCH == 0)]
            more |= {"first_questions": len(first), "first_right": int(first.sum())}
        rows.add(case.fields | fields | more | {"status": "fact", "seconds_of_case": round(seconds, 2)})
    print(f"{case}: {int(right.sum())} of {len(right)} right, {seconds:.1f} s.", flush=True)


def _batches(model: SmallModel, case: Case) -> dict:
    """Options of right_answers(): requests of a batch, and its padding rows."""
    if case.shortcut in PADDED:
        return {"rows": BATCH, "padding": PADDING, "unguarded": case.shortcut == UNGUARDED}
    return {"rows": GPU_ROWS[case.path] if model.device.type == "cuda" else CPU_ROWS}
