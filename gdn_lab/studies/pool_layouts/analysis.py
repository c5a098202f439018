"""What formulas and timed rows say to the question of notebook 01."""

from ...report.text import byte_size, listed, percent
from ...report.timed import Timed
from ..decode_kernels.analysis import indexing_sentence, layout_sentence
from .formulas import slot_table, warp_load


def answers(timed: Timed, model: str, tp: int) -> list[str]:
    """A warp's load under each layout, a request's memory, and what layout and indexing cost: a sentence each."""
    lead = (timed.run or {}).get("lead")  # a sentence of its own: the next two hold for what was asked
    computed = [f"{lead}."] * bool(lead) + [load_sentence(), slot_sentence(model, tp)]
    return computed + [sentence for sentence in (layout_sentence(timed), indexing_sentence(timed)) if sentence]


def load_sentence() -> str:
    """What one warp-wide load touches under each layout, in bfloat16."""
    kv8, kv32, vk = warp_load("KV", 8), warp_load("KV", 32), warp_load("VK", 32)
    return (
        f"In bfloat16 a warp's load of {vk.used} B touches {len(kv8.sectors)} sectors in {len(kv8.lines)} cache lines "
        f"under KV with tiles of 8 (kv8), of which it uses {percent(kv8.used / kv8.fetched)}; {len(kv32.sectors)} in "
        f"{len(kv32.lines)} with tiles of 32 (kv32); {len(vk.sectors)} in {len(vk.lines)} under VK."
    )


def slot_sentence(model: str, tp: int) -> str:
    """What a request of `model` keeps on one of `tp` GPUs in each state dtype."""
    rows = [row for row in slot_table(tp) if row["model"] == model and "reason" not in row]
    each = [f"{byte_size(row['state_bytes'] + row['conv_bytes'])} in {row['state_dtype']}" for row in rows]
    where = f"on each of {tp} GPUs" if tp > 1 else "on one GPU"
    return f"A request of {model} keeps {listed(each)} {where}, whatever its length."
