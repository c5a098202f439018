"""Made-up rows of accuracy: tables, sentences and figures say what the rows hold, and few allow no claim."""

import re

import pytest
import torch
from synthetic_accuracy import RUN, WORSE, accuracy_rows

from gdn_lab.report.style import title_of
from gdn_lab.studies.accuracy import analysis, figures, sentences
from gdn_lab.studies.accuracy.accuracy_cases import FP8, GUARDED, NO_DT_BIAS, UNGUARDED, Case, baseline_of, case_of
from gdn_lab.studies.accuracy.accuracy_rows import ALL, AccuracyRows, answers_of, bits
from gdn_lab.trained.as_trained import LayerInputs


@pytest.fixture(scope="module")
def rows():
    return AccuracyRows(accuracy_rows(), RUN)


def test_bits_are_read_again():
    right = [True, False, False, True, True, False, True]
    assert bits(right) == "9a"[:1] + "a"
    assert answers_of({"right_bits": bits(right), "questions": 7}) == right


def test_what_a_case_is_compared_with():
    case = Case("decode", "flashinfer/vk", "bfloat16", "", 1536)
    assert baseline_of(case, "triton/vk") == Case("decode", "triton/vk", "float32", "", 1536)
    assert baseline_of(case._replace(shortcut=UNGUARDED), "triton/vk").shortcut == GUARDED


def test_pairs_are_counted(rows):
    case = Case("decode", "triton/vk", "bfloat16", "", 1536)
    other = baseline_of(case, "triton/vk")
    before, after = rows.right[other][ALL], rows.right[case][ALL]
    both = rows.compared(case)
    assert both.total == 3000 and both.won == 0
    assert both.lost == sum(before) - sum(after) > 30
    assert rows.compared(other) is None, "the baseline is compared with nothing"


def test_p_values_are_adjusted_for_their_number(rows):
    adjusted = rows.adjusted()
    assert len(adjusted) == len([case for case in WORSE if rows.compared(case)])
    for case, p in adjusted.items():
        own = rows.compared(case).p
        assert own <= p <= min(1.0, len(adjusted) * own)


def test_the_table_has_a_line_for_each_case(rows):
    table = analysis.accuracy_table(rows)
    assert len(table) == len(WORSE)
    line = table[table.shortcut == NO_DT_BIAS].iloc[0]
    assert line["p, adjusted"] == "< 0.0001" and line["change, points"].startswith("−6")
    assert line.lost > 1900 and line.won == 0


def test_sentences_say_what_differs_and_what_does_not(rows):
    found = sentences.answers(rows)
    text = "\n".join(found)
    assert found[0].startswith(
        "With prompts of 1,536 tokens and a float32 state on triton/vk the model answers 96.4% (95.7 to 97.0) of 3,000"
    )
    where = r"1,536 tokens, 1,472 of them decode steps"
    assert re.search(
        where + r": bfloat16 differs by −2.* adjusted p < 0.0001; no difference is shown for float16 0\.0 ", text
    )
    assert re.search(
        r"Kernels and dtypes at 1,536 tokens against triton/vk in float32: after Holm's adjustment triton/vk, bfloat16 "
        r"on decode \(−.* points\) and flashinfer/vk, bfloat16 on decode \(−.* points\) differ; no difference is shown "
        r"in the other 1 decode case; their 95% intervals lie within −0\.1 to \+0\.1 points\.",
        text,
    )
    assert re.search(r"no difference is shown for dt_bias in bf16 .* points", text)
    assert "dt_bias left out (positive control: the questions must detect it) differs by −6" in text
    assert "−0.0" not in text and "+0.0" not in text
    assert "on 3,000 questions. Of the 273 requests in slot 0" in text
    assert all(sentence.endswith(".") for sentence in found)
    assert analysis.refused_sentences(rows) == [
        "flashinfer/vk, 1 decode case not answered: takes a state of bfloat16 or float32; this one is float16."
    ]


def test_kernels_that_do_not_differ_are_counted_by_path(rows):
    def alike(path):
        return [row | {"path": path} for row in accuracy_rows() if row["tokens"] == 1536 and row["shortcut"] == ""]

    decode = [row for row in alike("decode") if row["state_dtype"] != "bfloat16"]
    verify = [row | {"variant": "kv32"} for row in alike("verify") if row["state_dtype"] == "float32"]
    found = sentences.answers(AccuracyRows([*accuracy_rows()[:9], *decode, *verify], RUN))
    assert found[-1] == (
        "Kernels and dtypes at 1,536 tokens against triton/vk in float32: no difference is shown after Holm's "
        "adjustment in 1 decode and 1 verify cases; their 95% intervals lie within −0.1 to +0.1 points."
    )


def test_a_verify_kernel_without_intermediate_states_is_named_in_plain_words():
    reason = "has no verify kernel wy for mode 'intermediate', only output alone"
    case = Case("verify", "flashinfer/wy", "bfloat16", "", 768)
    assert analysis.refused_sentences(AccuracyRows([case.fields | {"status": "refused", "reason": reason}])) == [
        "flashinfer/wy was not run on verify: it returns no intermediate states."
    ]


def test_gates_have_a_line_for_each_head():
    a = torch.zeros(1, 5, 2, dtype=torch.bfloat16)
    inputs = LayerInputs(2, *[None] * 3, a, a, A_log=torch.zeros(2), dt_bias=torch.tensor([0.0, -3.0]))
    table = analysis.gate_table([inputs])
    assert table["head"].tolist() == [0, 1] and set(table.layer) == {2}
    # softplus(0) is log 2: the state decays to a half in one token; softplus(-3) = 0.048587
    assert table["half-life, tokens"].tolist() == ["1.0", "14.3"]
    inputs = inputs._replace(A_log=torch.full((2,), -20.0))
    assert analysis.gate_table([inputs])["half-life, tokens"].tolist() == ["4.9e8", "6.9e9"]


def test_few_questions_allow_no_claim():
    few = AccuracyRows(accuracy_rows(8), RUN)
    text = " ".join(sentences.answers(few))
    assert "24 questions allow no claim" in text and "differ" not in text
    assert figures.changes(few).get_suptitle() == "24 questions allow no claim"


def test_figures_have_their_finding_as_title(rows):
    title = title_of(figures.changes(rows))
    assert "cases differ from float32; largest: dt_bias left out, −6" in title
    lengths = figures.lengths(rows)
    assert "At 3,072 tokens float32 answers" in lengths.get_suptitle()
    assert lengths.get_figwidth() < 12 and lengths.axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 2)
    assert "span 5.1 points" in figures.published_scores().get_suptitle()
    short = AccuracyRows([row for row in accuracy_rows() if row["tokens"] == 1536], RUN)
    assert figures.lengths(short).get_suptitle() == "Prompts of one length alone were answered"
    assert figures.changes(AccuracyRows([])).get_suptitle() == "Nothing was answered"


def test_published_scores_have_intervals():
    table = analysis.published_table()
    first = table[(table.evaluation == "GSM8K") & (table.stage == "ci")].iloc[0]
    assert first["exact match"] == "98.0% (95.0 to 99.2)" and first.questions == "200"
    assert (table[table.evaluation == "GPQA"].questions == "198, assumed").all()
    text = " ".join(analysis.published_sentences())
    assert "0.838 to 0.889" in text and "5.1 points" in text


def test_published_scores_are_multiples_of_the_questions_that_are_assumed():
    for evaluation, count in analysis.ASSUMED_QUESTIONS.items():
        digits = analysis.published("accuracy").query("evaluation == @evaluation").score
        assert all(abs(round(score * count) / count - score) <= 0.0005 for score in digits), evaluation


def test_an_fp8_state_is_compared_with_float32_on_the_same_questions(rows):
    assert sentences.fp8(rows) == []
    other = Case("decode", "triton/vk", "float32", "", 1536)
    worse = Case("decode", "triton/replay-fp8", FP8, "", 1536, "stochastic")
    made = [row for row in accuracy_rows() if row["tokens"] == 1536]
    added = [row | worse.fields for row in made if "kind" in row and case_of(row) == other]
    added[0] = added[0] | {"right_bits": bits([False] * 200 + answers_of(added[0])[200:])}
    (text,) = sentences.fp8(AccuracyRows([*made, *added], RUN))
    assert re.search(
        r"^FP8 on decode, against float32 on the same questions: −6\.\d \(−7\.\d to −5\.\d\) points at 1,536 tokens "
        r"\(differs, adjusted p < 0\.0001\)\.$",
        text,
    )


def test_a_narrow_state_that_answers_more_than_float32_is_named_with_the_kind_that_it_wins():
    made = accuracy_rows()
    assert "answers more than float32" not in " ".join(sentences.answers(AccuracyRows(made, RUN)))
    float32, narrow = (Case("decode", "triton/vk", dtype, "", 3072) for dtype in ("float32", "bfloat16"))
    same = [row | narrow.fields for row in made if "kind" in row and case_of(row) == float32]
    stochastic = [row | narrow._replace(rounding="stochastic").fields for row in same]
    won = [row | {"right_bits": bits([True] * 1000)} if row["kind"] == "arithmetic" else row for row in same]
    rest = [row for row in made if "kind" not in row or case_of(row) != narrow]
    rows = AccuracyRows([*rest, *won, *stochastic], RUN)
    count = rows.compared(narrow).won
    text = " ".join(sentences.answers(rows))
    assert (
        f"At 3,072 tokens on the path decode bfloat16 answers more than float32: it wins {count} questions and loses "
        f"0, of arithmetic {count} and 0; bfloat16 stochastic 0.0 (−0.1 to +0.1) points, adjusted p = 1.00: "
        "no difference shown. This does not mean that the state is more accurate: see 10_drift."
    ) in text
