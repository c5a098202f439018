"""What rows of serving say, from made-up ones: TPOT from its parts, what a kernel is worth, sentences, figures."""

import json

import pytest
from synthetic_serving import GDN, RUN, part_us, refused, serving_rows

from gdn_lab.report.recorded import measured, recorded_runs
from gdn_lab.report.style import title_of
from gdn_lab.studies.serving import analysis, figures, recorded_serving, sentences, tpot
from gdn_lab.studies.serving.serving_rows import CASE, Point, ServingRows

BUSY = (1, 32, 256)


@pytest.fixture(scope="module")
def rows():
    return ServingRows([*serving_rows(concurrencies=BUSY, draft_tokens=(2, 8)), refused()], RUN)


def a_point(steps, parts=None, concurrency=2, tpot_ms=0.0):
    """steps: (kind, batch, gpu_us, start_s, end_s)."""
    columns = {"kind": [], "batch": [], "gpu_us": [], "start_s": [], "end_s": []}
    for step in steps:
        for name, value in zip(columns, step, strict=True):
            columns[name].append(value)
    run = {"configuration": "best", "concurrency": concurrency, "tpot_ms": tpot_ms, "draft_tokens": 0}
    return Point(run, parts or {}, columns)


def test_steps_are_weighted_by_batch_by_hand():
    """Two full steps of 100 µs with 10 µs of gap, a prefill of 50 µs for which one waits, one step of one request."""
    point = a_point(
        [
            ("decode", 2, 100.0, 0.0, 100e-6),
            ("decode", 2, 100.0, 110e-6, 210e-6),
            ("prefill", 1, 45.0, 215e-6, 260e-6),
            ("decode", 2, 100.0, 260e-6, 365e-6),
            ("decode", 1, 60.0, 365e-6, 430e-6),
        ]
    )
    means = tpot.steps(point)
    assert means.gpu == pytest.approx((3 * 2 * 100 + 60) / 7) and means.full == pytest.approx(100)
    assert means.gap == pytest.approx((2 * 0 + 2 * 10 + 2 * 5 + 1 * 5) / 7)
    assert means.prefill == pytest.approx((2 - 1) * 50 / 7)
    assert tpot.step_spread(point) == (100.0, 100.0)
    assert tpot.steps(a_point([])) is None and tpot.steps(a_point([("prefill", 1, 1.0, 0.0, 1e-6)])) is None


def test_only_requests_with_a_first_token_wait_for_prompts():
    """Three wait for the first of two prefill steps in a row, four for the second, whose request is the fifth."""
    prompts = [("prefill", 1, 40.0, 0.0, 40e-6), ("prefill", 1, 20.0, 40e-6, 60e-6)]
    means = tpot.steps(a_point([*prompts, ("decode", 5, 100.0, 60e-6, 160e-6), ("prefill", 2, 9.0, 160e-6, 169e-6)]))
    assert means.prefill == pytest.approx((3 * 40 + 4 * 20) / 5)


def test_a_first_token_that_is_read_late_shortens_tpot_by_hand():
    """Two prompts of 4 and 6 tokens in pieces of 8 (end 10 ms, read 12 ms) and 2 (20 ms, 20 ms); 3 tokens each."""
    point = a_point([])
    point.steps = {"kind": ["prefill", "prefill", "decode"], "batch": [2, 1, 2], "tokens": [8, 2, 2]}
    point.steps["end_s"] = [0.010, 0.020, 0.030]
    point.requests = {"first_token_s": [0.020, 0.012, None], "input_tokens": [6, 4, 9], "output_tokens": [3, 3, 0]}
    point.requests["outcome"] = ["finished", "finished", "interrupted"]
    assert tpot.late_reads(point) == pytest.approx(-2000 / 2 / 2)
    point.steps |= {"kind": ["prefill", "mixed", "decode"], "tokens": [8, 3, 2]}  # a row that decodes is no prompt
    assert tpot.late_reads(point) == pytest.approx(-2000 / 2 / 2)
    point.steps |= {"kind": ["prefill", "decode", "decode"]}
    assert tpot.late_reads(point) == 0.0, "the step that ends the second prompt is missing"


SERVED = [(gpu, name) for gpu, name in recorded_runs() if name.startswith("09_serving")]
# Recorded points outside the goal: 80 all-reduces, as a difference of two graphs, took 401 µs in this process and 363
# in that of the record before (2.2% unexplained). A step of eight requests is the shortest, 3.2 ms, so they count most.
OUTSIDE = {("h200", "09_serving_tp2"): {("best", 8)}}


@pytest.mark.parametrize("gpu, name", SERVED)
def test_the_sum_of_parts_explains_every_recorded_point_within_three_percent(gpu, name):
    run, found = measured(gpu, name)
    shares = {key: tpot.unexplained(point) for key, point in ServingRows(found, run).points.items()}
    beyond = {key for key, share in shares.items() if abs(share) > tpot.GOAL}
    assert shares and beyond == OUTSIDE.get((gpu, name), set()), shares
    assert all(abs(share) <= 0.04 for share in shares.values()), shares


def test_the_parts_add_up_to_the_measured_tpot(rows):
    for (name, concurrency), point in rows.points.items():
        parts = tpot.breakdown(point)
        assert sum(parts.values()) == pytest.approx(point.tpot_us)
        assert parts["GDN kernels"] == pytest.approx(30 * part_us(name, concurrency)["GDN kernel"])
        assert abs(tpot.unexplained(point)) < 0.005 and 0.005 < tpot.gap_share(point) < 0.015


def test_what_is_not_explained_is_shown(rows):
    point = rows.points["best", 256]
    point = Point(point.run, point.parts | {"attention layer": (0.0, 10)}, point.steps)
    missing = 10 * part_us("best", 256)["attention layer"]
    assert tpot.breakdown(point)["unexplained, in the graph"] > missing
    assert tpot.unexplained(point) == pytest.approx(missing / point.tpot_us, abs=0.005)


def test_a_run_without_parts_has_no_breakdown():
    without = [row for row in serving_rows(("best",), (8,)) if row["type"] != "part"]
    rows = ServingRows(without, RUN)
    assert tpot.breakdown(rows.points["best", 8]) == {} and analysis.shown_point(rows) is None
    assert analysis.breakdown_table(rows).empty and title_of(figures.waterfall(rows)).startswith("No run has times")
    assert "differs" not in " ".join(sentences.answers(rows))


def test_the_pull_request_s_table_stands_next_to_its_own_concurrency():
    table = analysis.published_pair(ServingRows(serving_rows(("before", "after"), (8, 256, 512)), RUN))
    assert list(table)[-3:] == ["before, C = 256", "after, C = 256", "change, %"]


def test_draft_tokens_are_found_in_a_recorded_run_of_their_own():
    run, found = recorded_serving.recorded_serving("h200", "qwen3.5-35b-a3b", 1, drafts=True)
    assert ServingRows(found, run).speculation and not ServingRows(*measured("h200", "09_serving")[::-1]).speculation
    assert recorded_serving.recorded_serving("h200", "qwen3.5-27b", 2, drafts=True) == ({}, [])
    assert recorded_serving.recorded_drafts("h100", "qwen3.5-35b-a3b", 1) == (run, found), "no H100 has any"
    assert "H200" in title_of(figures.speculation(ServingRows(found, run)))
    assert recorded_serving.recorded_drafts("h200", "qwen3.5-27b", 2) == ({}, [])


def test_configurations_are_compared_where_all_were_served():
    """A run that was stopped has `best` at 8 requests alone."""
    found = serving_rows(("before", "after", "best"), (8, 256))
    left = {row["serve"] for row in found if (row.get("configuration"), row.get("concurrency")) == ("best", 256)}
    rows = ServingRows([row for row in found if row.get("serve") not in left], RUN)
    assert rows.concurrencies == [8, 256] and rows.compared_at == 8
    assert (analysis.shown_point(rows).configuration, analysis.shown_point(rows).concurrency) == ("best", 8)
    assert list(analysis.breakdown_table(rows)) == ["part", "before", "after", "best"]
    assert "C = 8 (" in sentences.most_tokens(rows) and "`best`" in sentences.most_tokens(rows)
    assert "at C = 8" in title_of(figures.throughput(rows))


def test_worth_by_hand(rows):
    """The GDN kernel is the only part in which before and after differ."""
    for one in analysis.worth(rows):
        before, after = (rows.points[name, one.concurrency] for name in ("before", "after"))
        assert one.change == pytest.approx(after.run["tpot_ms"] / before.run["tpot_ms"] - 1)
        assert one.kernel_share == pytest.approx(30 * part_us("before", one.concurrency)["GDN kernel"] / before.tpot_us)
        assert one.expected == pytest.approx(one.change, abs=0.012) and one.kernel_speed > 1
        assert abs(one.change) < one.kernel_share, "no kernel saves more than its share"


def test_the_pull_request_s_table_stands_next_to_ours(rows):
    table = analysis.published_pair(rows).set_index("metric")
    before, after = (rows.points[name, 256].run for name in ("before", "after"))
    assert table.loc["TPOT", "PR: Triton"] == 21.51 and table.loc["TPOT", "before, C = 256"] == before["tpot_ms"]
    assert table.loc["total throughput", "after, C = 256"] == after["total_throughput"]
    assert table.loc["TPOT", "change, %"] == pytest.approx(100 * (after["tpot_ms"] / before["tpot_ms"] - 1))
    without = analysis.published_pair(ServingRows(serving_rows(("best",), (8,)), RUN))
    assert list(without) == ["metric", "unit", "PR: Triton", "PR: FlashInfer", "PR: change, %"]


def test_other_configurations_are_compared_where_the_published_ones_are_not_there():
    rows = ServingRows(serving_rows(("before-32", "best"), (8,)), RUN)
    assert analysis.compared(rows) == ("before-32", "best")
    assert analysis.compared(ServingRows(serving_rows(("best",), (8,)), RUN)) is None


def test_the_answer_names_numbers_gpus_and_what_was_refused(rows):
    text = " ".join(sentences.answers(rows))
    point = rows.points["best", 256]
    assert f"`best` {point.run['output_throughput']:,.0f} tokens/s" in text
    assert (
        "NVIDIA H100 80GB HBM3, qwen3.5-35b-a3b, tp 1" in text and "ahead at each" in text and "within the 3%" in text
    )
    assert "Not served: before at C = 512: the state pools of 512 requests need 90 GB" in text
    assert "nan" not in text and "None" not in text
    assert all(sentence.endswith(".") for sentence in sentences.answers(rows))


def test_a_best_that_is_behind_is_called_that():
    found = [
        row | {"tpot_ms": 1.2 * row["tpot_ms"]} if row.get("configuration") == "best" and row["type"] == "run" else row
        for row in serving_rows(concurrencies=(64,))
    ]
    assert "not ahead at each" in sentences.best_over_fair(ServingRows(found, RUN))


def test_the_lead_of_best_comes_with_the_spread_of_its_steps(rows):
    best, fair = (tpot.step_spread(rows.points[name, 256]) for name in ("best", "before-32"))
    text = sentences.best_over_fair(rows)
    assert text.endswith(
        f"; steps (p20 to p80) at C = 256: {best[0] / 1e3:.2f} to {best[1] / 1e3:.2f} ms against "
        f"{fair[0] / 1e3:.2f} to {fair[1] / 1e3:.2f} ms."
    )


def test_a_toy_ranks_nothing():
    rows = ServingRows(serving_rows(("best",), (1, 8), toy=True), RUN)
    (sentence,) = sentences.answers(rows)
    assert "served 9 requests and 2304 tokens" in sentence and "rank nothing" in sentence
    assert "this workbook" not in set(analysis.published_table(rows).source)


def test_speculation_is_compared_with_the_same_concurrency(rows):
    table = analysis.speculation_table(rows)
    assert set(table["T"]) == {2, 8} and set(table.C) == {256} and len(table) == 2 * len(GDN)
    line = table.iloc[0]
    assert line["speed-up"] == line["output tokens/s"] / rows.points["before", 256].run["output_throughput"]
    assert "T = 8) at an acceptance of 80%" in sentences.speculation(rows)
    assert not [point for point in rows.points.values() if point.run["draft_tokens"]]


def test_the_recorded_drafts_say_for_each_acceptance_where_they_pay():
    run, found = measured("h200", "09_serving_drafts")
    drafts = ServingRows(found, run)
    points = {(point.run["draft_tokens"], point.run["acceptance"], point.concurrency) for point in drafts.speculation}
    assert points == {(tokens, rate, c) for tokens in (2, 4, 8) for rate in (0.6, 0.9) for c in (8, 64)}
    table = analysis.speculation_table(drafts).set_index(["T", "acceptance", "C"])["speed-up"]
    assert sentences.speculation(drafts) == (
        f"Draft tokens change tokens per second to {table[8, 0.6, 8]:.2f}× (`best`, C = 8, T = 8) to "
        f"{table[2, 0.6, 64]:.2f}× (`best`, C = 64, T = 2) at an acceptance of 60% and {table[2, 0.9, 8]:.2f}× "
        f"(`best`, C = 8, T = 2) to {table[8, 0.9, 64]:.2f}× (`best`, C = 64, T = 8) at an acceptance of 90%."
    )


def test_the_recorded_run_of_27b_serves_every_point():
    run, found = measured("h200", "09_serving_27b")
    served = ServingRows(found, run)
    assert run["status"] == "complete" and len(served.points) == 16
    assert not [sentence for sentence in sentences.answers(served) if sentence.startswith("Not served")]


def test_a_run_that_ended_early_says_which_point_is_missing():
    run, found = measured("h200", "09_serving_27b")
    last = {"configuration": "before", "concurrency": 1}
    missing = [row for row in found if all(row.get(name) == value for name, value in last.items())]
    left_out = {name: missing[0][name] for name in CASE} | {"status": "refused", "phase": "serving"}
    left_out |= {"type": "left out", "reason": "no time was left after 2.77 minutes"}
    served = ServingRows([row for row in found if row not in missing] + [left_out], run)
    assert len(served.points) == 15
    assert sentences.answers(served)[-1].startswith("Not served: before at C = 1: no time was left")


@pytest.mark.parametrize("name", ["waterfall", "throughput", "pareto", "worth", "speculation"])
def test_figures_name_gpu_model_and_tp_and_can_be_empty(rows, name):
    assert "NVIDIA H100 80GB HBM3, qwen3.5-35b-a3b, tp 1" in title_of(getattr(figures, name)(rows))
    assert title_of(getattr(figures, name)(ServingRows([refused()], RUN)))


def test_recorded_figures_say_so(rows):
    recorded = ServingRows(rows.all_rows, RUN | {"recorded_on": "h100"})
    assert "(recorded: H100, qwen3.5-35b-a3b, tp 1)" in title_of(figures.throughput(recorded))


def test_all_reduces_are_a_part_with_several_gpus():
    rows = ServingRows(serving_rows(("best",), (64,), tp=2), RUN)
    parts = tpot.breakdown(rows.points["best", 64])
    assert parts["all-reduces"] == pytest.approx(80 * part_us("best", 64, 2)["all-reduces"])
    assert rows.place().startswith("2 × NVIDIA H100") and "all-reduce: nccl" in rows.conditions()


# ---- what others published, what is recorded


def test_published_figures_have_a_source_and_say_what_differs():
    table = analysis.published_serving()
    assert {"1 × H100", "1 × H200", "8 × H100", "8 × B200"} <= set(table.gpus)
    assert table.source.str.startswith("https://").all() and table.what_differs.str.len().min() > 10
    pr = table[table.source.str.endswith("/19150")].set_index("tpot_ms")
    assert pr.output_tokens_per_s.to_dict() == {21.51: 5638, 20.96: 5741} and set(pr.concurrency) == {256}
    theirs = table[table.source.str.endswith("/1544")].set_index("concurrency")
    assert theirs.total_tokens_per_s_gpu[256] == 1316.4 and theirs.tokens_per_s_user[64] == 52.2


def test_published_figures_of_the_model_come_with_ours(rows):
    table = analysis.published_table(rows)
    assert set(table.model) == {"qwen3.5-35b-a3b"} and "1 × H200" in set(table.GPUs)
    ours = table[table.source == "this workbook"].set_index("C")
    assert ours["TPOT, ms"][256] == rows.points["best", 256].run["tpot_ms"]


@pytest.fixture
def data(tmp_path):
    for folder, rows in (("09_serving", serving_rows(("best",), (8,))), ("09_serving_tp2", serving_rows(tp=2))):
        path = tmp_path / "measured" / "h100" / folder
        path.mkdir(parents=True)
        (path / "run.json").write_text(json.dumps(RUN))
        (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_recorded_serving_is_of_the_same_model_and_tp_or_none(data):
    run, rows = recorded_serving.recorded_serving("h100", "qwen3.5-35b-a3b", 2, data=data)
    served = ServingRows(rows, run)
    assert run["recorded_on"] == "h100" and len(served.points) == 16 and served.first["tp"] == 2
    assert tpot.breakdown(served.points["best", 256])
    assert recorded_serving.recorded_serving("h100", "qwen3.5-27b", 1, data=data) == ({}, [])
    assert recorded_serving.nothing_recorded("h100", "qwen3.5-27b", 1, data=data) == (
        "No serving of qwen3.5-27b at tp 1 with fp8 weights is recorded on H100; recorded are qwen3.5-35b-a3b at tp 1 "
        "and qwen3.5-35b-a3b at tp 2."
    )


def test_conditions_say_where_best_defers_its_writes():
    rows = serving_rows(("before-32", "best"), (8, 64))
    for row in rows:
        if (row.get("configuration"), row.get("concurrency")) == ("best", 64):
            row.update(backend="triton", variant="replay")
    assert ServingRows(rows, RUN).conditions().endswith(" · best decodes with triton/replay at C = 64")
    assert "decodes with" not in ServingRows(serving_rows(("before-32", "best"), (8, 64)), RUN).conditions()


def test_conditions_name_the_state_of_each_configuration():
    rows = serving_rows(("after", "before", "best"), (8, 64))
    assert ", fp8, bfloat16 state · " in ServingRows(rows, RUN).conditions()
    rows = [row | {"state_dtype": "float8_e4m3fn"} if row.get("configuration") == "after" else row for row in rows]
    assert ", fp8, bfloat16 state, of after float8_e4m3fn · " in ServingRows(rows, RUN).conditions()


def test_what_prompts_add_to_mixed_steps_is_time_of_prefill():
    def found(kind, more):
        rows = serving_rows(("best",), (64,))
        columns = next(row for row in rows if row.get("type") == "steps")
        at = [number for number, each in enumerate(columns["kind"]) if each == "decode"][:3]
        for number in at:
            columns["kind"][number] = kind
            columns["gpu_us"][number] += more
        point = ServingRows(rows, RUN).points["best", 64]
        made = sum(
            batch for each, batch in zip(point.steps["kind"], point.steps["batch"], strict=True) if each != "prefill"
        )
        return tpot.breakdown(point), sum(columns["batch"][number] for number in at) / made

    usual, share = found("decode", 0.0)
    mixed, _ = found("mixed", 1000.0)
    added = mixed["prefill between steps"] - usual["prefill between steps"]
    assert added == pytest.approx(1000 * share, rel=0.05) and share > 0
    assert sum(mixed.values()) == pytest.approx(sum(usual.values()))
