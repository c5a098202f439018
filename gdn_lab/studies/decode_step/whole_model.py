"""From one layer to one token: what a measured step means for all GDN layers of the model, next to the published TPOT.

Measured: the step of one GDN layer on one of tp GPUs. Computed: that times the number of GDN layers. Not included: the
attention layers, the output head, sampling, the all-reduces, and all that a server does between steps.
"""

from typing import NamedTuple

import pandas

from ...models import MODELS
from ...report.recorded import published
from ...report.text import device_name, listed
from .analysis import StepRows

SERVER = "8 × B200, FP8, concurrency 256"  # of data/published/pr19150/end_to_end.csv
ITS_MODEL = "qwen3.5-397b-a17b"


class Token(NamedTuple):
    """One decode step of all GDN layers, which gives each of `batch` requests one token."""

    step_us: float  # of one layer, measured
    gdn_layers: int
    batch: int

    @property
    def ms(self) -> float:
        """Milliseconds per token in the GDN layers: a token takes at least this long."""
        return self.gdn_layers * self.step_us / 1000

    @property
    def per_s(self) -> float:
        """Tokens per second of all requests if nothing else took time: there are at most so many."""
        return self.batch / self.ms * 1000


def tokens(step: StepRows) -> dict[str, Token]:
    """{configuration: Token} of steps at real size; {} for a toy step, or a model that is not in the table."""
    return {
        name: Token(row["median_us"], MODELS[row["model"]].gdn_layers, row["batch"])
        for name, row in step.whole.items()
        if not row["toy"] and row["model"] in MODELS
    }


def whole_model(step: StepRows) -> str | None:
    """ms per token and tokens per second of each configuration: what is measured, computed, and not included."""
    found = tokens(step)
    if not found:
        return None
    row = next(iter(step.whole.values()))
    entry = MODELS[row["model"]]
    each = [f"`{name}` {one.ms:.1f} ms ({one.per_s:,.0f} tokens/s)" for name, one in found.items()]
    machine = f" on {device_name(step.run)}" if step.run else ""
    return (
        f"Per token, the GDN layers of {row['model']} take {listed(each)} at B = {row['batch']}. Measured: the step of "
        f"one layer{machine}. Computed: × {entry.gdn_layers} GDN layers of {entry.layers}. Not included: "
        f"{missing(row)}, so these are a lower bound of the time and an upper bound of the rate. "
        f"{published_tpot(row['model'])}"
    )


def missing(row: dict) -> str:
    """What the computed time leaves out."""
    entry = MODELS[row["model"]]
    others = [f"{entry.layers - entry.gdn_layers} attention layers", "the output head"]
    return listed([*others, *(["all-reduces"] if row["tp"] > 1 else [])])


def published_tpot(model: str) -> str:
    """The published time per output token of a whole server."""
    row = published("end_to_end").set_index("metric").loc["TPOT"]
    whose = "of this model" if model == ITS_MODEL else f"of {ITS_MODEL}, another model"
    return (
        f"Published for a whole server {whose} ({SERVER}): {row.triton:.2f} ms per token with Triton, "
        f"{row.flashinfer:.2f} ms with FlashInfer."
    )


def token_table(step: StepRows) -> pandas.DataFrame:
    """A line for each configuration, then the published servers: each column says what it is; empty: not known."""
    found = tokens(step)
    if not found:
        return pandas.DataFrame()
    any_one = next(iter(found.values()))
    measured, computed = "measured: one GDN layer, µs", f"computed: × {any_one.gdn_layers} GDN layers, ms per token"
    at_most, theirs = f"computed: tokens/s at B = {any_one.batch}, at most", "published: whole server, ms per token"
    lines = [
        {"": name, measured: one.step_us, computed: one.ms, at_most: round(one.per_s), theirs: None}
        for name, one in found.items()
    ]
    tpot = published("end_to_end").set_index("metric").loc["TPOT"]
    lines += [{"": f"{ITS_MODEL}, {SERVER}, {name}", theirs: tpot[name]} for name in ("triton", "flashinfer")]
    table = pandas.DataFrame(lines, columns=["", measured, computed, at_most, theirs])
    return table.astype({column: float for column in table.columns[1:]})
