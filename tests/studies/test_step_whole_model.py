"""From one layer's step to a token of the whole model: values by hand, and what is said to be missing."""

import pytest
from synthetic_step import CPU, RUN, step_rows

from gdn_lab.studies.decode_step.analysis import StepRows
from gdn_lab.studies.decode_step.sentences import answers
from gdn_lab.studies.decode_step.whole_model import token_table, tokens, whole_model


def test_gdn_layers_times_the_step():
    """qwen3.5-397b-a17b: 45 GDN layers of 60; B = 256."""
    step = StepRows(step_rows(), RUN)
    for name, one in tokens(step).items():
        us = step.whole[name]["median_us"]
        assert one.ms == pytest.approx(45 * us / 1000) and one.per_s == pytest.approx(256e6 / (45 * us))


def test_the_sentence_says_what_is_measured_computed_and_missing():
    step = StepRows(step_rows(("before", "best"), tracing=1.0), RUN)
    before = step.whole["before"]["median_us"]  # 541 µs
    sentence = whole_model(step)
    assert sentence in answers(step)
    assert f"`before` {45 * before / 1000:.1f} ms ({256e6 / 45 / before:,.0f} tokens/s)" in sentence
    assert "Measured: the step of one layer on NVIDIA H100 80GB HBM3. Computed: × 45 GDN layers of 60." in sentence
    assert "Not included: 15 attention layers, the output head and all-reduces, so" in sentence
    assert "(8 × B200, FP8, concurrency 256): 21.51 ms per token with Triton, 20.96 ms with FlashInfer." in sentence


def test_one_gpu_has_no_all_reduces_and_another_model_is_named():
    rows = [row | {"model": "qwen3.5-35b-a3b"} for row in step_rows(("before",), tp=1)]
    sentence = whole_model(StepRows(rows, RUN))
    assert "Not included: 10 attention layers and the output head, so" in sentence
    assert "of qwen3.5-397b-a17b, another model" in sentence


def test_the_table_keeps_published_apart():
    table = token_table(StepRows(step_rows(("before",)), RUN))
    assert list(table[""]) == [
        "before",
        *(f"qwen3.5-397b-a17b, 8 × B200, FP8, concurrency 256, {n}" for n in ("triton", "flashinfer")),
    ]
    assert table.iloc[0, 1:4].notna().all() and table.iloc[1:, 1:4].isna().all().all()
    assert list(table.iloc[1:, 4]) == [21.51, 20.96]


def test_a_toy_step_says_nothing_of_a_model():
    rows = [row | {"toy": True} for row in step_rows(("torch",), timer="host_clock", changes={"torch": {}})]
    step = StepRows(rows, CPU)
    assert whole_model(step) is None and token_table(step).empty
