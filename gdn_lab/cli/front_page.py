"""What README.md shows first: one picture, which backend to use, and which hardware is served; all made from data/.

Savings are of rows that one run timed together: same GPU, heads, batch, tokens and timer.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..backends.base import Variant
from ..report.recorded import DATA, measured, recorded_gpus, recorded_runs

IN_PLACE, DETOUR = "in_place", "detour"
DECODE = "02_decode_kernels"
REPLAY, PART = "cuda_graph_replay", "cupti_kernel"
DTYPE = "bfloat16"  # of the state, in every call of the table

# ---- which backend --------------------------------------------------------------------------------------------------


class Advice(NamedTuple):
    """A row of the table. call: its words. use, over: variants, the second one with `indexing`. chosen: which rows."""

    call: str
    notebook: str
    use: str
    over: str
    chosen: Callable[[dict], bool]
    indexing: str = IN_PLACE
    timer: str = REPLAY


def _decode(row: dict) -> bool:
    return row["phase"] == "decode" and row["tokens"] == 1


def _in_step(row: dict) -> bool:
    return row["phase"] == "step" and row.get("part") == "gdn"


def _prefill(row: dict) -> bool:
    return row["phase"] == "prefill"


ADVICE = (
    Advice(
        "decode, B = 1 to 8",
        DECODE,
        "cutedsl/vk",
        "flashinfer/vk",
        lambda row: _decode(row) and row["batch"] <= 8,
    ),
    Advice(
        "decode, B = 16 to 512",
        DECODE,
        "cutedsl/vk",
        "triton/kv32",
        lambda row: _decode(row) and row["batch"] >= 16,
    ),
    Advice(
        "decode that defers writes, B = 32 to 512",
        DECODE,
        "triton/replay",
        "cutedsl/vk",
        lambda row: _decode(row) and row["batch"] >= 32,
    ),
    Advice(
        "decode inside a step, B = 16 to 256",
        "03_decode_step",
        "cutedsl/vk",
        "triton/kv8",
        _in_step,
        timer=PART,
    ),
    Advice(
        "verify 2 to 16 draft tokens, state updated",
        "05_verify",
        "triton/vk",
        "flashinfer/vk",
        lambda row: row["phase"] == "verify" and row.get("mode") == "update",
    ),
    Advice("prefill", "06_prefill", "triton/vk", "triton/kv32", _prefill, indexing=DETOUR),
    Advice("prefill of trusted inputs, not of one short prompt", "06_prefill", "flashinfer/vk", "triton/vk", _prefill),
)


def which_backend(data: Path = DATA) -> str:
    """Markdown: for each kind of call the variant to use, and the time that it saves on each recorded GPU."""
    gpus = recorded_gpus(data)
    lines = [
        f"| call | value heads | use | compared with | {' | '.join(f'saves, {gpu.upper()}' for gpu in gpus)} |",
        f"|---|---|---|---|{'---|' * len(gpus)}",
    ]
    for advice in ADVICE:
        heads, cells = set(), []
        for gpu in gpus:
            timed = recorded_times(advice, gpu, data)
            times = [(case, by_name) for case, by_name in timed if advice.use in by_name]
            heads |= {case["num_v_heads"] for case, _ in times}
            shares = [1 - by_name[advice.use] / by_name[advice.over] for _, by_name in times]
            part = f" ({len(times)} of {len(timed)} calls)" if 0 < len(times) < len(timed) else ""
            cells.append(saving(shares) + part)
        over = f"`{advice.over}`" + (" with gather, transpose, scatter" if advice.indexing == DETOUR else "")
        lines.append(f"| {advice.call} | {spread(heads)} | `{advice.use}` | {over} | {' | '.join(cells)} |")
    return "\n".join(lines)


def recorded_times(advice: Advice, gpu: str, data: Path = DATA) -> list[tuple[dict, dict[str, float]]]:
    """[(what was called, {advice.use: µs, advice.over: µs})] of the calls timed with the latter; [] if none.

    The former is left out where the same run did not time it. Of several runs of the notebook (06_prefill,
    06_prefill_tp1) the latest that timed a call counts.
    """
    runs = [measured(gpu, name, data) for at, name in recorded_runs(data) if at == gpu]
    runs = sorted((run for run in runs if run[0]["notebook"] == advice.notebook), key=lambda run: run[0]["start_utc"])
    newest = {}
    for _, rows in runs:
        for case, times in _times(advice, rows):
            key = tuple(case.values())
            if advice.use in times or key not in newest:
                newest[key] = case, times
    return list(newest.values())


def _times(advice: Advice, rows: list[dict]) -> list[tuple[dict, dict[str, float]]]:
    """recorded_times() of one run."""
    found: dict[tuple, dict] = {}
    wanted = {(advice.use, IN_PLACE), (advice.over, advice.indexing)}
    for row in rows:
        if row["status"] != "ok" or row.get("timer") != advice.timer or row["state_dtype"] != DTYPE:
            continue
        if not advice.chosen(row):
            continue
        name = f"{row['backend']}/{row['variant']}"
        if (name, row.get("indexing") or IN_PLACE) not in wanted:
            continue
        case = {field: row.get(field) for field in ("num_k_heads", "num_v_heads", "batch", "tokens", "length", "model")}
        times = found.setdefault(tuple(case.values()), {"case": case})
        known = times.get(name)
        if known is None or row["count"] > known["count"]:  # two sweeps may time the same: more samples count
            times[name] = row
    return [
        (each["case"], {name: each[name]["median_us"] for name in (advice.use, advice.over) if name in each})
        for each in found.values()
        if advice.over in each
    ]


def saving(shares: list[float]) -> str:
    """Shares of time saved: "4 to 23%"; with losses "up to 65% at 9 of 12 workloads, else up to 2.4× as long"."""
    if not shares:
        return "not recorded"
    if min(shares) > 0:
        low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
        return high if low == high else f"{low[:-1]} to {high}"
    won = sum(share > 0 for share in shares)
    return f"up to {max(shares):.0%} at {won} of {len(shares)} workloads, else up to {1 - min(shares):.1f}× as long"


def spread(numbers: set[int]) -> str:
    """The least and the greatest: "4 to 64", or "64"."""
    return " to ".join(map(str, dict.fromkeys((min(numbers), max(numbers))))) if numbers else ""


# ---- the picture ----------------------------------------------------------------------------------------------------

GPU, BATCH = "h200", 256
COPYING = ("flashinfer/vk", "triton/kv8")  # drawn with gather and scatter, too
LEFT_OUT = ("triton/vk-serial",)


def is_recorded(data: Path = DATA) -> bool:
    """Whether there are the rows that the picture is drawn from."""
    return (GPU, DECODE) in recorded_runs(data)


def picture(data: Path = DATA):
    """Figure: a decode call of the recorded GPU at one batch, by variant, in place and with gather and scatter."""
    from ..report.timed import Timed, name_of
    from ..studies.decode_kernels.figures import one_batch

    run, rows = measured(GPU, DECODE, data)

    def shown(row: dict) -> bool:
        name = name_of(row)
        in_place = row["indexing"] == IN_PLACE
        return row["batch"] == BATCH and (name not in LEFT_OUT if in_place else name in COPYING)

    return one_batch(Timed(rows, run, phase="decode").kernels().where(shown))


# ---- hardware -------------------------------------------------------------------------------------------------------

CARDS = {  # compute capability: cards that have it
    (8, 0): "A100",
    (8, 6): "A10, RTX 3090",
    (8, 9): "L4, L40S, RTX 4090",
    (9, 0): "H100, H200",
    (10, 0): "B200",
    (12, 0): "RTX 5090, RTX PRO 6000",
}
PHASES = ("decode", "verify", "prefill")
NONE = (0, 0)


def hardware(data: Path = DATA) -> str:
    """Markdown: for each compute capability the backends that serve each phase, and what is compiled and recorded."""
    from .catalogue import ARCHITECTURES

    recorded = cards_recorded(data)
    lines = [
        f"| compute capability | such as | {' | '.join(PHASES)} | compiled by the tests | recorded |",
        "|---|---|---|---|---|---|---|",
        f"| none | a CPU, another vendor's GPU | {' | '.join(map(_served, PHASES))} | | |",
    ]
    for capability, cards in CARDS.items():
        served = " | ".join(_served(phase, capability) for phase in PHASES)
        compiled = "yes" if capability in ARCHITECTURES.values() else "no"
        where = ", ".join(recorded.get(capability, ())) or "no"
        lines.append(f"| {capability[0]}.{capability[1]} | {cards} | {served} | {compiled} | {where} |")
    return "\n".join(lines)


def _served(phase: str, capability: tuple[int, int] = NONE) -> str:
    return ", ".join(serving(phase, capability))


def serving(phase: str, capability: tuple[int, int]) -> list[str]:
    """Names of the backends that serve `phase` on a compute capability, in order; on NONE those that run anywhere."""
    from ..backends.registry import VARIANTS

    def serves(variant: Variant) -> bool:
        if capability != NONE and variant.role == "eager":
            return False  # runs anywhere, and is what nobody would serve with
        return phase in variant.phases and variant.needs <= capability

    return list(dict.fromkeys(variant.backend for variant in VARIANTS.values() if serves(variant)))


def cards_recorded(data: Path = DATA) -> dict[tuple[int, int], list[str]]:
    """{compute capability: GPUs} of data/measured."""
    found: dict[tuple[int, int], list[str]] = {}
    for gpu, notebook in recorded_runs(data):
        words = measured(gpu, notebook, data)[0]["environment"].get("compute_capability")
        cards = found.setdefault(tuple(map(int, words.split("."))), []) if words else []
        if gpu.upper() not in cards:
            cards.append(gpu.upper())
    return found
