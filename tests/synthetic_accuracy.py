"""Made-up rows of answered questions: 3,000 a case, some of them answered wrongly by chance, with a fixed seed."""

import random

from gdn_lab.studies.accuracy.accuracy_cases import BATCH, BF16_DT_BIAS, GUARDED, NO_DT_BIAS, PADDED, UNGUARDED, Case
from gdn_lab.studies.accuracy.accuracy_rows import bits

KINDS = ("recall", "tracking", "arithmetic")
RUN = {"environment": {"gpu_name": None, "cpu": "made up"}, "start_utc": "2026-11-28T00:00:00Z"}
# Share of the questions that a case answers wrongly beyond those that float32 does.
WORSE = {
    Case("prefill", "triton/vk", "float32", "", 1536): 0.0,
    Case("decode", "triton/vk", "float32", "", 1536): 0.0,
    Case("verify", "triton/vk", "float32", "", 1536): 0.0,
    Case("decode", "triton/vk", "float32", GUARDED, 1536): 0.0,
    Case("decode", "triton/vk", "float32", UNGUARDED, 1536): 0.06,
    Case("decode", "triton/vk", "float32", BF16_DT_BIAS, 1536): 0.001,
    Case("decode", "triton/vk", "float32", NO_DT_BIAS, 1536): 0.7,
    Case("decode", "triton/vk", "bfloat16", "", 1536): 0.02,
    Case("decode", "flashinfer/vk", "bfloat16", "", 1536): 0.02,
    Case("decode", "triton/vk", "float16", "", 1536): 0.0,
    Case("decode", "triton/vk", "float32", "", 3072): 0.0,
    Case("decode", "triton/vk", "bfloat16", "", 3072): 0.1,
}


def accuracy_rows(each: int = 1000) -> list[dict]:
    """Rows of all cases of WORSE, `each` questions of each kind."""
    rows = []
    for case, worse in WORSE.items():
        rng = random.Random(case.tokens)  # the same questions: what float32 gets wrong, all cases do
        for kind in KINDS:
            hard = [rng.random() < 0.03 for _ in range(each)]
            own = random.Random(f"{case}{kind}")
            right = [not wrong and own.random() >= worse for wrong in hard]
            row = case.fields | {"status": "fact", "kind": kind, "questions": each, "right": sum(right)}
            row |= {"right_bits": bits(right), "names": 128, "stepped": case.tokens - 64, "device": "cuda"}
            if case.shortcut in PADDED:
                first = right[::BATCH]
                row |= {"first_questions": len(first), "first_right": sum(first)}
            rows.append(row)
    reason = "takes a state of bfloat16 or float32; this one is float16"
    refused = Case("decode", "flashinfer/vk", "float16", "", 1536).fields | {"status": "refused", "reason": reason}
    return [*rows, refused]
