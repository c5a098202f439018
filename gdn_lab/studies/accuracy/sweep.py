"""Answer the questions of every case: a row for each case and kind of question, written when it is done."""

import functools
import hashlib
import math
import time

import torch

from ...bench.rows import Rows, recorded
from ...trained.checkpoint import load
from ...trained.inference import SmallModel
from ...trained.language import questions
from .accuracy_cases import BATCH, PADDED, PADDING, UNGUARDED, Case, case_of, cases, padded, refused, set_gates
from .accuracy_costs import Clock
from .accuracy_rows import bits
from .answering import PREFILL, right_answers

# Of a batch on a GPU at most: activations of whole prompts and states of drafts take its memory.
GPU_PROMPT_TOKENS = 700 * 768  # of the path prefill
GPU_ROWS = 2560  # requests, of the others
CPU_ROWS = 64


def accuracy_sweep(p, device, run=None, earlier=()) -> list[dict]:
    """Answer what the parameters `p` (study.py) ask for and `earlier` rows lack; return all rows.

    A row has the fields of its Case, kind, questions, right, and right_bits: a bit for each question, in hexadecimal,
    the first question the highest. Prints a line for each case, and what there was no time for: a run that leaves out
    cases is interrupted. RuntimeError where earlier rows are of another checkpoint.
    """
    rows = Rows(run)
    digest = hashlib.sha256(p.checkpoint_path.read_bytes()).hexdigest()
    if any(row.get("checkpoint_sha256", digest) != digest for row in earlier):
        raise RuntimeError(f"earlier rows are not of {p.checkpoint} as it is now; record anew with --fresh")
    done = {case_of(row) for row in earlier}
    sizes, tensors = load(p.checkpoint_path)
    model = SmallModel(sizes, tensors, device)
    originals = dict(model.gates)
    clock, left = Clock(60 * p.minutes), []
    wanted = cases(p)
    with recorded(run):
        for number, case in enumerate(wanted, 1):
            if case in done:
                continue
            if reason := refused(case, sizes, model.device):
                rows.add(case.fields | {"status": "refused", "reason": reason})
                continue
            if not clock.allows(p, case):
                left.append(case)
                continue
            set_gates(model, originals, case.shortcut)
            predicted, began = clock.predicted(p, case), time.monotonic()
            try:
                outcome = _answer(p, model, case, digest, rows)
            except (RuntimeError, ValueError) as error:  # of one kernel, which stops no other
                outcome = f"failed: {(str(error) or type(error).__name__).splitlines()[0]}"
                rows.add(case.fields | {"status": "refused", "reason": outcome})
            seconds = time.monotonic() - began
            clock.took(p, case, seconds)
            more = "" if predicted is None else f" ({predicted:.1f} s predicted)"
            ends = f"{seconds:.1f} s{more}, {max(0.0, clock.left) / 60:.1f} minutes left"
            print(f"{number} of {len(wanted)}: {case}: {outcome}; {ends}.", flush=True)
    if left:
        names = "; ".join(map(str, left))
        print(f"No time was left for {len(left)} cases; the same command goes on with: {names}.", flush=True)
        if run is not None:
            run.finish("interrupted")
    return [*earlier, *rows]


def _answer(p, model: SmallModel, case: Case, digest: str, rows: Rows) -> str:
    """Add the rows of one case; return what came of it in a few words."""
    count, stepped = padded(case, p.questions, p.stepped_of(case.tokens))
    asked = _questions(count, case.tokens, p.names, p.seed)
    began = time.monotonic()
    right = right_answers(model, case.kernels(), asked, case.path, stepped, **_batches(model, case, count))
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
    return f"{int(right.sum())} of {len(right)} right"


_questions = functools.lru_cache(maxsize=4)(questions)  # the same of many cases


def _batches(model: SmallModel, case: Case, count: int) -> dict:
    """Options of right_answers(): requests of a batch, alike for all batches, and its padding rows."""
    if case.shortcut in PADDED:
        return {"rows": BATCH, "padding": PADDING, "unguarded": case.shortcut == UNGUARDED}
    most = max(1, GPU_PROMPT_TOKENS // case.tokens) if case.path == PREFILL else GPU_ROWS
    most = most if model.device.type == "cuda" else CPU_ROWS
    return {"rows": math.ceil(count / math.ceil(count / most))}
