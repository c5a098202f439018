"""Tables, sentences, figures and README section of decode steps, from made-up rows of an H100."""

import json
import re

import pytest
from matplotlib.figure import Figure
from synthetic_step import CHANGES, CPU, MODEL, RUN, heatmap_rows, parts_of, step_rows

from gdn_lab.cli.report import report
from gdn_lab.layer import CONFIGURATIONS, Configuration
from gdn_lab.studies import parameters
from gdn_lab.studies.decode_step import analysis, figures, sentences, study, tables
from gdn_lab.studies.decode_step.analysis import Saving, StepRows

FIGURES = [figures.waterfall, figures.parts, figures.against_published, figures.heatmap]


@pytest.fixture(scope="module")
def rows():
    return step_rows() + heatmap_rows()


@pytest.fixture(scope="module")
def step(rows):
    return StepRows(rows, RUN)


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def notes(figure):
    return figure.get_supxlabel().replace("\n", " ")


def answer(rows, run=None):
    return " ".join(sentences.answers(StepRows(rows, run)))


# ---- numbers


def test_a_waterfall_goes_from_step_to_step_without_a_hole(step):
    bars = analysis.waterfall(step)
    assert [bar.label for bar in bars if bar.part is None] == list(CHANGES)
    for before, after in zip(bars, bars[1:], strict=False):
        assert (after.end if after.part is None else after.start) == pytest.approx(before.end)
    to_best = [bar for bar in bars[[bar.label for bar in bars].index("after") + 1 :] if bar.part]
    assert {bar.part: bar.end - bar.start for bar in to_best} == pytest.approx(
        {"shared expert": -12, "gaps": -8.5, "gdn": -6, "split": -5, "in_proj qkvz": -4, "conv": -3}
    )
    changes = [bar.end - bar.start for bar in to_best]
    assert changes == sorted(changes)


def test_small_changes_are_added_up():
    changes = CHANGES | {"after": {"gdn": 53.0, "gaps": 11.5, "conv": 7.5, "router": 9.5}}
    step = StepRows(step_rows(("before-32", "after"), changes=changes))
    bars = [bar for bar in analysis.waterfall(step) if bar.part]
    assert {bar.part: round(bar.end - bar.start, 3) for bar in bars} == {"gdn": -8.0, "other parts": 0.5}


def test_the_saving_divides_into_gdn_and_the_rest():
    assert analysis.published_saving() == Saving(37.0, 14.0) and analysis.published_saving().rest == 23.0
    ours = analysis.saving(StepRows(step_rows(tracing=1.0)))
    assert ours.total == pytest.approx(50.5) and ours.gdn == pytest.approx(50.0) and ours.rest == pytest.approx(0.5)
    assert analysis.saving(StepRows(step_rows(("before", "best")))) is None


def test_only_the_largest_batch_of_the_step_sweep_counts(rows, step):
    assert StepRows(step_rows(batch=64) + rows).whole == step.whole


# ---- sentences


def test_answers_hold_the_numbers_of_the_rows(rows):
    text = answer(rows, RUN)
    for part in (
        "on NVIDIA H100 80GB HBM3.", "GDN takes 19% of `before` (103 of 541 µs)", "10% of `best`",
        "From `before` to `best`, traced: 541 µs to 452 µs, less by gdn 56.0 µs",
        "saves 37 µs: 14 in the GDN kernel, 23 not itemised", "58% (qwen3.5-35b-a3b, tp 1, B = 256)",
        "`best` takes 16% less than `before`, 9% less than `before-32` and 8% less than `after`.",
    ):  # fmt: skip
        assert part in text, part


def test_the_unexplained_saving_appears_only_where_another_part_gains(rows):
    assert "in the rest: what is not itemised there does not appear." in answer(rows)
    elsewhere = CHANGES | {"after": {"gdn": 53.0, "experts": 310.0}}
    text = answer(step_rows(changes=elsewhere, tracing=1.0))
    assert "20.0 µs in the rest, 4% of the step, so other parts gain here too" in text
    slower = CHANGES | {"after": {"gdn": 53.0, "experts": 350.0}}
    text = answer(step_rows(changes=slower, tracing=1.0))
    assert (
        "−20.0 µs in the rest: what is not itemised there does not appear, and the rest of the step is slower" in text
    )


def test_a_kernel_that_defers_its_writes_is_named(rows):
    assert "from a ring" not in answer(rows)
    replay = [
        row | {"backend": "triton", "variant": "replay"} if row.get("configuration") == "best" else row for row in rows
    ]
    assert "`best` runs triton/replay, which reads each state in every step and writes it in one of several" in answer(
        replay
    )
    assert StepRows(replay).label("best") == "best (triton/replay)" and StepRows(rows).label("none") == "none"


def test_the_changes_add_up_to_the_difference():
    """Parts that two configurations divide differently are one, and what is not listed is the rest."""
    changes = CHANGES | {"best": CHANGES["best"] | {"router": 8.0}}
    step = StepRows(step_rows(changes=changes))
    named = analysis.main_changes(step)
    assert named == pytest.approx(
        {"gdn": -56.0, "experts": -12.0, "gaps": -9.0, "in_proj ba + conv": -8.0, "in_proj qkvz": -4.0}
    )
    best, before = (step.traced[name]["median_us"] for name in ("best", "before"))
    assert best - before == pytest.approx(sum(named.values()) - 1)
    assert sentences.largest_changes(step).endswith("in_proj qkvz 4.0 µs; the rest saves 1.0 µs.")


def test_without_parts_the_whole_step_still_counts():
    whole = [row for row in step_rows() if row["status"] == "fact" or row["part"] == "step"]
    reason = {"status": "refused", "phase": "step", "configuration": "best", "timer": "cupti_kernel", "reason": "no"}
    text = answer([*whole, reason])
    assert "Median step, not traced (p20–p80)" in text and "GDN takes" not in text
    assert sentences.not_timed([*whole, reason]) == ["best has no times of parts: no"]
    for draw in FIGURES:
        draw(StepRows([*whole, reason], RUN))
    step = StepRows(whole)
    assert len(tables.parts_table(step)) == 2
    assert len(tables.bandwidth_table(step)) == len(tables.changes_table(step)) == 0
    assert sentences.answers(StepRows([])) == ["No step was timed, so nothing is answered."]


def test_what_was_refused_or_wrong_is_listed_with_its_reason():
    case = {"phase": "step", "configuration": "after", "batch": 8}
    refused = case | {"status": "refused", "reason": "needs a GPU"}
    wrong = case | {"status": "wrong", "configuration": "best", "max_abs_error": None, "wrong_parts": ["conv"]}
    wrong |= {"model": "qwen3.5-27b", "tp": 8}
    room = {"status": "refused", "phase": "step", "model": MODEL, "tp": 1, "reason": "needs more memory"}
    assert sentences.not_timed([refused, refused | {"configuration": "best"}, wrong, room]) == [
        "after and best refused: needs a GPU",
        f"{MODEL} at tp 1 refused: needs more memory",
        "best wrong at qwen3.5-27b, tp 8, B = 8 (largest error not finite, conv)",
    ]


# ---- tables


def test_tables(step):
    table = tables.step_table(step).set_index("configuration")
    assert list(table.index) == list(CHANGES) and table.loc["before", "kernels"] == 28
    assert table.loc["best", "GDN's share"] == "10%" and "launched kernel by kernel, µs" in table
    table = tables.parts_table(step).set_index("part")
    assert table.loc["split", "best"] == "" and table.loc["gdn", "before"] == "103.0"
    total = sum(float(us) for us in table.best[: list(table.index).index("recorded step")] if us)
    assert total == pytest.approx(float(table.loc["recorded step", "best"]))
    assert table.loc["untraced step", "best"] == "447.5"
    assert (table[table.index.str.startswith("all-reduce")] == "not run on one GPU").all().all() and len(table) == 18
    table = tables.published_table(step).set_index("")
    assert table.loc["rest of the step", ["published before", "published after"]].tolist() == [323.0, 300.0]
    assert table.loc["GDN kernel", "best"] == 47.0
    table = tables.bandwidth_table(step).set_index("part")
    assert set(table.index) == set(parts_of("best")) and table.loc["experts", "% of the step"] == "73%"


def test_changes_are_a_line_for_each_part_and_a_column_for_each_transition(step):
    table = tables.changes_table(step).set_index("part")
    assert list(table) == ["before → before-32", "before-32 → after", "after → best", "before → best"]
    assert table.loc["gdn"].tolist() == ["−42.0", "−8.0", "−6.0", "−56.0"]
    assert table.loc["whole step", "before → best"] == "−89.0" and "router" not in table.index
    for column in table:
        changes = [float(us.replace("−", "-")) for us in table[column]]
        assert sum(changes[:-1]) == pytest.approx(changes[-1], abs=0.05 * len(changes))
    two = tables.changes_table(StepRows(step_rows(("before", "after"))))
    assert list(two) == ["part", "before → after"]


def test_a_new_configuration_is_one_record(monkeypatch):
    """It appears in the parameter, the tables and the figures, with no other file changed."""
    mine = Configuration("mine", "torch/vk", "VK", "of my own", label="my kernels", device="cpu")
    monkeypatch.setitem(CONFIGURATIONS, "mine", mine)
    assert "mine" in parameters._configurations("auto") or parameters.on_gpu()
    assert parameters._configurations("mine, torch") == ["mine", "torch"]
    assert tables.configuration_table(["mine"])["what it is"].tolist() == ["of my own"]
    rows = [row | {"configuration": "mine"} if row.get("configuration") == "best" else row for row in step_rows()]
    step = StepRows(rows, RUN)
    labels = [text.get_text() for text in figures.waterfall(step).axes[0].get_yticklabels()]
    assert labels[-1] == "my kernels" and "`mine` takes 16% less than `before`" in answer(rows)
    assert list(tables.changes_table(step))[-1] == "before → mine"


def test_configurations_are_described_as_they_are():
    table = tables.configuration_table(["before", "best"]).set_index("configuration")
    assert table.loc["before", "GDN kernel"] == "triton/kv8" and "fused" in table.loc["best", "other kernels"]


# ---- figures


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_each_is_drawn_with_and_without_rows(draw, step, tmp_path):
    figure = draw(step)
    assert isinstance(figure, Figure) and "H100" in notes(figure)
    figure.savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").stat().st_size > 1000
    empty = draw(StepRows([]))
    empty.savefig(tmp_path / "figure.png", dpi=40)
    assert re.search("nothing|No ", title(empty)) or draw is figures.against_published


def test_titles_hold_the_numbers_of_the_rows(step):
    assert title(figures.waterfall(step)) == ("before 541 → best 452 µs (−16%): gdn −56, experts −12, gaps −9 µs")
    assert title(figures.parts(step)) == "In a step of best: experts 73%, GDN 10% and gaps 0.7%"
    assert title(figures.against_published(step)) == (
        "Saved, published: 37 µs (14 GDN, 23 rest); here: 50 µs (50 GDN, 0 rest)"
    )
    assert title(figures.heatmap(step)) == "GDN takes 0.5% to 58% of a step of before; best saves 0.3% to 29%"


def test_title_and_bars_of_the_waterfall_are_of_one_timer(step):
    """The wholes in the title are those written at the bars, and the axis is cut to the changes."""
    figure = figures.waterfall(step)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {"541 µs", "452 µs"} <= set(texts) and "536 µs" not in texts
    left, right = figure.axes[0].get_xlim()
    assert 400 < left < 452 and 541 < right < 600 and f"starts at {left:,.0f}" in figure.axes[0].get_xlabel()
    assert "cupti_kernel" in notes(figure)


def test_cpu_times_are_called_cpu_times():
    changes = {"torch-kv": {}, "torch": {"gdn": 50.0}}
    rows = step_rows(tuple(changes), changes=changes, timer="host_clock")
    step = StepRows(rows, CPU)
    for draw in (figures.waterfall, figures.parts):
        assert title(draw(step)).startswith("CPU times: "), draw.__name__
    assert "at toy size" in answer(rows, CPU) and "published" not in answer(rows, CPU)
    assert "not both measured" in title(figures.against_published(step))


def test_the_heatmap_leaves_out_what_was_not_measured(rows):
    some = [row for row in rows if (row["sweep"], row["tp"], row["batch"]) != ("share", 1, 16)]
    figure = figures.heatmap(StepRows(some, RUN))
    cells = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert len(cells) == 16 and all("saves" in cell for cell in cells)
    untraced = [row for row in heatmap_rows() if row["part"] == "step"]
    for missing in ("before", "best"):  # of a map from before to best no point is of another pair
        others = [row | {"configuration": "after"} for row in heatmap_rows() if row["configuration"] == missing]
        some = [row for row in heatmap_rows() + others if (row["configuration"], row["batch"]) != (missing, 16)]
        points = analysis.heatmap_points(StepRows(some, RUN))
        assert set(points["first"]) == {"before"} and set(points["last"]) == {"best"}
        assert (points.gain.isna() == (points.B == 16)).all()
        assert (points.share.isna() == ((points.B == 16) & (missing == "before"))).all()
        cells = [text.get_text() for ax in figures.heatmap(StepRows(some, RUN)).axes for text in ax.texts]
        assert cells and not any("nan" in cell for cell in cells)
    assert "nothing was measured" in title(figures.heatmap(StepRows(untraced, RUN)))


# ---- the README


def test_the_section_has_the_changes_as_a_table(rows):
    section = study.section(RUN, rows)
    assert section.table.splitlines()[0].split("|")[1].strip() == "change in µs" and "−56.0" in section.table
    assert "step_waterfall" in section.figures and section.conditions and section.sentences
    assert study.section(RUN, [row for row in rows if row.get("part") == "step"]).table == ""


def test_report_fills_the_step_block_of_the_readme(rows, tmp_path):
    folder = tmp_path / "data" / "measured" / "h100" / "03_decode_step"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    readme = tmp_path / "README.md"
    readme.write_text(
        "a\n<!-- measured:h100-step -->\nold\n<!-- /measured:h100-step -->\nb\n<!-- measured:h200-step -->\n"
    )
    written = report(tmp_path)
    text = readme.read_text()
    assert tmp_path / "docs" / "h100_step_waterfall.png" in written and "](docs/h100_step_waterfall.png)" in text
    assert "old" not in text and "2026-11-22" in text
    assert "no recorded run of 03_decode_step on 'h200'" in text and text.rstrip().endswith(
        "<!-- /measured:h200-step -->"
    )
