"""What notebook 12 says: bytes and memory by design, times against predictions, drift, verdict."""

import pandas
import torch

from ...backends.base import dtype_name
from ...backends.registry import variant
from ...models import GDNShape
from ...report.nearest import candidate_runs
from ...report.recorded import DATA, measured
from ...report.text import byte_size, listed, micro, percent
from . import in_place_notes, ring_notes
from .byte_designs import DESIGNS, FP8, IN_PLACE, Design
from .predictions import PREDICTIONS
from .ring_drift import ratio_to

NOTEBOOK = "12_fewer_bytes"
DECODE_NOTEBOOK = "02_decode_kernels"  # whose recorded runs have a GPU's bandwidth
OVER = "flashinfer/vk"
TIMER = "cuda_graph_replay"
REPLAY, OF_FP8 = Design(torch.bfloat16, 16), Design(FP8, 16)
LAYER_MEMORY = 1_000_000_000  # bytes of one layer's pool in the table of memory


def recorded_rows(gpu: str, data=DATA) -> tuple[dict, list[dict]]:
    """Return (run, rows) of this notebook's recorded run on a GPU; ({}, []) where there is none."""
    return next(iter(candidate_runs(gpu, NOTEBOOK, data).values()), ({}, []))


def bandwidth(rows: list[dict], gpu: str, data=DATA) -> float:
    """Return the measured bandwidth in GB/s: of `rows`, or as recorded on a GPU."""
    found = [
        row["roof_gb_per_s"] for row in rows or measured(gpu, DECODE_NOTEBOOK, data)[1] if row.get("roof_gb_per_s")
    ]
    return found[0]


# ---- tables ----------------------------------------------------------------------------------------------------------


def bytes_table(shape: GDNShape, batch: int, gb_per_s: float) -> pandas.DataFrame:
    """Bytes of a step by design, the time that they take at gb_per_s, and both over bf16 in place."""
    base = IN_PLACE.step_bytes(shape, batch)
    lines = [
        {
            "design": design.label,
            "bytes of a step": byte_size(design.step_bytes(shape, batch)),
            "µs at the measured bandwidth": design.step_bytes(shape, batch) / gb_per_s / 1e3,
            "÷ bf16 in place": design.step_bytes(shape, batch) / base,
        }
        for design in DESIGNS
    ]
    return pandas.DataFrame(lines).set_index("design")


def memory_table(shape: GDNShape) -> pandas.DataFrame:
    """Bytes that a request keeps in one layer by design, and requests in LAYER_MEMORY of it."""
    base = IN_PLACE.slot_bytes(shape)
    lines = [
        {
            "design": design.label,
            "bytes a request": byte_size(design.slot_bytes(shape)),
            "÷ bf16 in place": design.slot_bytes(shape) / base,
            f"requests in {byte_size(LAYER_MEMORY)} a layer": LAYER_MEMORY // design.slot_bytes(shape),
        }
        for design in DESIGNS
    ]
    return pandas.DataFrame(lines).set_index("design")


def drift_table(drifted: list[dict]) -> pandas.DataFrame:
    """Relative error of the state at the last step: designs down, kinds of inputs across."""
    last = max(row["step"] for row in drifted)
    table = pandas.DataFrame([row for row in drifted if row["step"] == last])
    wide = table.pivot_table(index="design", columns="kind", values="relative_error", sort=False)
    return wide.rename(columns=lambda kind: f"error, {kind}").rename_axis(columns=None)


def name_of(row: dict) -> str:
    """ "triton/replay, ring of 16": what a line of the tables and the figure is called."""
    label = variant(f"{row['backend']}/{row['variant']}").label
    return f"{label}, ring of {row['ring_updates']}" if row.get("ring_updates") else label


def timed(rows: list[dict]) -> pandas.DataFrame:
    """A line for each row timed by CUDA-graph replay: batch, name, median_us, over_flashinfer, share_of_roof, …"""
    found = pandas.DataFrame([row | {"name": name_of(row)} for row in rows if row.get("timer") == TIMER])
    if found.empty or "median_us" not in found:
        return pandas.DataFrame(columns=["batch", "name", "median_us", "over_flashinfer", "share_of_roof"])
    found = found[found.status == "ok"]
    base = found[found.backend + "/" + found.variant == OVER].set_index("batch").median_us
    return found.assign(over_flashinfer=found.median_us / found.batch.map(base))


def time_table(rows: list[dict]) -> pandas.DataFrame:
    """Median µs, its ratio to FlashInfer's and the share of the measured bandwidth, by batch and variant."""
    columns = {
        "batch": "B",
        "name": "variant",
        "median_us": "µs",
        "over_flashinfer": f"÷ {variant(OVER).label}",
        "share_of_roof": "share of measured bandwidth",
    }
    return timed(rows)[list(columns)].rename(columns=columns).sort_values(["B", "µs"]).reset_index(drop=True)


def prediction_table(rows: list[dict]) -> pandas.DataFrame:
    """What was predicted for each design, and what was measured in `rows`, where it was."""
    lines = timed(rows)
    table = []
    for one in PREDICTIONS:
        line = {
            "state": one.dtype,
            "ring": one.updates,
            "value heads": one.heads,
            "B": one.batch,
            "predicted, three launches": one.three_launches,
            "predicted, one launch": one.one_launch,
        }
        if len(lines) and "ring_updates" in lines:
            same = (lines.ring_updates == one.updates) & (lines.num_v_heads == one.heads) & (lines.batch == one.batch)
            line["measured"] = lines[same & (lines.state_dtype == one.dtype)].over_flashinfer.mean()
        table.append(line)
    return pandas.DataFrame(table)


def ring_table() -> pandas.DataFrame:
    """What was tried for the kernels with a ring: predicted, measured, verdict."""
    return _tried({"bf16": ring_notes.BF16_RING, "FP8": ring_notes.FP8_RING})


def in_place_table() -> pandas.DataFrame:
    """What was tried in place, on large batches, on small ones and in a layer's step: predicted, measured, verdict."""
    return _tried({"large": in_place_notes.ROOF, "small": in_place_notes.SMALL, "step": in_place_notes.STEP})


def _tried(tables: dict[str, tuple]) -> pandas.DataFrame:
    return pandas.DataFrame([{"for": name} | tried._asdict() for name, table in tables.items() for tried in table])


# ---- sentences -------------------------------------------------------------------------------------------------------


def conditions(rows: list[dict]) -> str:
    """What the times hold for, in one line."""
    lines = timed(rows)
    if lines.empty:
        return "nothing was timed"
    row = lines.iloc[0]
    heads = f"HK {row.num_k_heads}, HV {row.num_v_heads}"
    return (
        f"T = 1 decode, {heads}, {row.state_dtype} state · {TIMER}, median of {row['count']} samples over slots of all "
        f"phases · measured bandwidth {row.roof_gb_per_s:,.0f} GB/s"
    )


def not_timed(rows: list[dict]) -> list[str]:
    """A sentence for each variant that was refused or wrong."""
    left = [row for row in rows if row["status"] != "ok"]
    return list(dict.fromkeys(f"{name_of(row)} {row['status']}: {row.get('reason', '')}" for row in left))


def answers(shape: GDNShape, batch: int, drifted: list[dict], rows: list[dict]) -> list[str]:
    """The answer, a sentence each: bytes, time, drift, memory."""
    times = time_sentences(rows) + fp8_sentences(rows)
    return [bytes_sentence(shape, batch), *times, drift_sentence(drifted), memory_sentence(shape)]


def recorded_answers(rows: list[dict]) -> list[str]:
    """What a recorded run says of times, and the formulas of its heads."""
    row = rows[0]
    shape = GDNShape(row["num_k_heads"], row["num_v_heads"], row["head_k_dim"], row["head_v_dim"])
    batch = max(one["batch"] for one in rows if "batch" in one)
    return [*time_sentences(rows), *fp8_sentences(rows), bytes_sentence(shape, batch), memory_sentence(shape)]


def bytes_sentence(shape: GDNShape, batch: int) -> str:
    """What the formula says of the best ring and of FP8."""
    base = IN_PLACE.step_bytes(shape, batch)
    rings = [design for design in DESIGNS if design.dtype is torch.bfloat16 and design.updates]
    best = min(rings, key=lambda design: design.step_bytes(shape, batch))
    fp8 = next(design for design in DESIGNS if design.dtype is FP8)
    return (
        f"A step with a bf16 state and a ring of {best.updates} moves {best.step_bytes(shape, batch) / base:.2f} of "
        "the bytes of one in place; a longer ring costs more in reads than it saves in writes. FP8 with a ring of "
        f"{fp8.updates} moves {fp8.step_bytes(shape, batch) / base:.2f}."
    )


def rings(rows: list[dict], dtype: str = "bfloat16") -> pandas.DataFrame:
    """The lines of timed() that have a ring and a state of a dtype, the fastest of each batch."""
    lines = timed(rows)
    if "ring_updates" not in lines:
        return lines.head(0)
    lines = lines[lines.ring_updates.notna() & (lines.state_dtype == dtype)]
    return lines.loc[lines.groupby("batch").median_us.idxmin()]


def fp8_sentences(rows: list[dict]) -> list[str]:
    """What was measured of an FP8 state: nothing where it was not timed."""
    lines = rings(rows, dtype_name(FP8))
    if lines.empty:
        return []
    each = [f"{line.over_flashinfer:.2f} at B = {line.batch}" for line in lines.itertuples()]
    return [
        f"With an FP8 state {lines.iloc[-1]['name']} takes {listed(each)} of FlashInfer's time with a bf16 state in "
        "place; it was timed after the others, in the same process."
    ]


def time_sentences(rows: list[dict]) -> list[str]:
    """What was measured: the largest batch, the others, and what was predicted."""
    lines = rings(rows)
    if lines.empty:
        return ["No time of a ring is recorded: measuring takes a GPU, and `gdn-lab run 12` on it."]
    last = lines.iloc[-1]
    sentences = [
        f"At B = {last.batch} {last['name']} takes {micro(last.median_us)}, {last.over_flashinfer:.2f} of FlashInfer's "
        f"time in place; it moves its bytes at {percent(last.share_of_roof)} of the measured bandwidth."
    ]
    others = [f"{line.over_flashinfer:.2f} at B = {line.batch}" for line in lines.iloc[:-1].itertuples()]
    if others:
        sentences.append(f"The best ring over FlashInfer in place: {listed(others)}.")
    same = (last.num_v_heads, last.batch, last.state_dtype, last.ring_updates)
    predicted = [
        one.one_launch
        for one in PREDICTIONS
        if (one.heads, one.batch, one.dtype, one.updates) == same and one.one_launch
    ]
    if predicted:
        sentences.append(f"Predicted at B = {last.batch}: {predicted[0]:.2f}; measured {last.over_flashinfer:.2f}.")
    return sentences


def drift_sentence(drifted: list[dict]) -> str:
    """How the errors of a ring and of an FP8 state compare with bf16 in place, for each kind of inputs."""
    last = max(row["step"] for row in drifted)
    kinds = dict.fromkeys(row["kind"] for row in drifted)

    def over_in_place(design: Design) -> str:
        return listed(f"{ratio_to(drifted, design, IN_PLACE, kind):.2f} ({kind})" for kind in kinds)

    return (
        f"After {last:,} steps the error of a bf16 state with a ring of {REPLAY.updates} is {over_in_place(REPLAY)} "
        "times that of bf16 in place: the state is rounded once in a period, and each update once. That of an FP8 "
        f"state is {over_in_place(OF_FP8)} times it."
    )


def memory_sentence(shape: GDNShape) -> str:
    """What the ring costs in memory, and what FP8 gives back."""
    base = IN_PLACE.slot_bytes(shape)
    more, of_fp8 = REPLAY.slot_bytes(shape) / base - 1, OF_FP8.slot_bytes(shape) / base
    return (
        f"The ring of {REPLAY.updates} adds {percent(more)} to the memory of a request. FP8 with its ring needs "
        f"{of_fp8:.2f} of the memory of bf16 in place, so {1 / of_fp8:.2f} times as many requests fit."
    )
