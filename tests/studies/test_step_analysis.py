"""What is made of a decode step's rows, made up as on an H100: tables, sentences, figures, the README's section."""

import json
import re

import pytest
from matplotlib.figure import Figure
from synthetic_step import CHANGES, CPU, MODEL, RUN, parts_of, share_rows, step_rows

from gdn_lab.cli.report import report
from gdn_lab.studies.decode_step import analysis as findings
from gdn_lab.studies.decode_step import figures as step_plots
from gdn_lab.studies.decode_step import tables as step_tables

FIGURES = [step_plots.waterfall, step_plots.parts, step_plots.beside_published, step_plots.share_map]


@pytest.fixture(scope="module")
def rows():
    return step_rows() + share_rows()


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def notes(figure):
    return figure.get_supxlabel().replace("\n", " ")


def said(rows, run=None):
    return " ".join(findings.answers(rows, run))


# ---- numbers


def test_a_waterfall_goes_from_step_to_step_without_a_hole(rows):
    bars = findings.waterfall(rows)
    assert [bar.label for bar in bars if bar.part is None] == list(CHANGES)
    for before, after in zip(bars, bars[1:], strict=False):
        assert (after.end if after.part is None else after.start) == pytest.approx(before.end)
    best = [bar for bar in bars[[bar.label for bar in bars].index("after") + 1 :] if bar.part]
    assert {bar.part: bar.end - bar.start for bar in best} == pytest.approx(
        {"shared expert": -12, "gaps": -8.5, "gdn": -6, "split": -5, "in_proj qkvz": -4, "conv": -3}
    )
    assert [bar.start - bar.end for bar in best] == sorted((bar.start - bar.end for bar in best), reverse=True)


def test_small_changes_are_added_up(rows):
    changes = CHANGES | {"after": {"gdn": 53.0, "gaps": 11.5, "conv": 7.5, "router": 9.5}}
    to_after = [bar for bar in findings.waterfall(step_rows(("before-32", "after"), changes=changes)) if bar.part]
    assert {bar.part: round(bar.end - bar.start, 3) for bar in to_after} == {"gdn": -8.0, "other parts": 0.5}


def test_the_saving_beside_gdn_is_what_the_gdn_part_leaves(rows):
    assert findings.published_saving() == findings.Unexplained(37.0, 14.0) and findings.published_saving().rest == 23.0
    ours = findings.saving(step_rows(tracing=1.0))
    assert ours.total == pytest.approx(50.5) and ours.gdn == pytest.approx(50.0) and ours.rest == pytest.approx(0.5)
    assert findings.saving(step_rows(("before", "best"))) is None


def test_only_the_largest_batch_of_the_step_sweep_is_told(rows):
    assert findings.whole(step_rows(batch=64) + rows) == findings.whole(rows)


# ---- sentences


def test_answers_hold_the_numbers_of_the_rows(rows):
    text = said(rows, RUN)
    for part in (
        "On NVIDIA H100 80GB HBM3 GDN", "19% of `before` (103 µs of 541 µs)", "10% of `best`", "gdn −42.0 µs",
        "shared expert −12.0 µs", "saves 37 µs, of which the GDN kernel gives 14 and 23 are not explained",
        "2 all-reduces of 2.1 MB a layer", "58% (qwen3.5-35b-a3b, tp 1, B = 256)", "at most 1% longer",
        "`before` 920 µs against 536 µs",
    ):  # fmt: skip
        assert part in text, part


def test_the_unexplained_saving_appears_only_where_something_beside_gdn_gains(rows):
    assert "the unexplained part does not appear." in said(rows)
    elsewhere = CHANGES | {"after": {"gdn": 53.0, "experts": 310.0}}
    assert "everything else 20.0 µs, 4% of the step: something beside the GDN kernel gains here too" in said(
        step_rows(changes=elsewhere, tracing=1.0)
    )
    slower = CHANGES | {"after": {"gdn": 53.0, "experts": 350.0}}
    assert "everything else −20.0 µs: the unexplained part does not appear, the rest of the step even" in said(
        step_rows(changes=slower, tracing=1.0)
    )


def test_what_stops_best_is_said_only_below_the_aim(rows):
    text = said(rows)
    assert "`best` saves 8% of `after` and 9% of `before-32`, less than the 10% aimed at: experts are 73%" in text
    assert "at 80% of the roof" in text and "a GDN that took no time would save 12% of `before-32`" in text
    faster = CHANGES | {"best": {"gdn": 20.0, "experts": 300.0}}
    assert "the aim of 10% is reached" in said(step_rows(changes=faster))
    slower = CHANGES | {"best": {"experts": 400.0}}
    assert "`best` saves −" in said(step_rows(changes=slower))


def test_without_parts_the_whole_is_still_told(rows):
    whole = [row for row in step_rows() if row["status"] == "fact" or row["part"] == "step"]
    reason = {"status": "refused", "phase": "step", "configuration": "best", "timer": "cupti_kernel", "reason": "no"}
    text = said([*whole, reason])
    assert "A whole step" in text and "GDN is this share" not in text and "less than the 10% aimed at." in text
    assert findings.not_timed([*whole, reason]) == ["best not taken apart: no"]
    for draw in FIGURES:
        draw([*whole, reason], RUN)
    assert len(step_tables.parts_table(whole)) == 2 and len(step_tables.roof_table(whole)) == 0
    assert findings.answers([]) == ["No step was timed, so nothing is answered."]


def test_what_was_refused_or_wrong_is_told_with_its_reason():
    case = {"phase": "step", "configuration": "after", "batch": 8}
    refused = case | {"status": "refused", "reason": "needs a GPU"}
    wrong = case | {"status": "wrong", "configuration": "best", "max_abs_error": None, "wrong_parts": ["conv"]}
    wrong |= {"model": "qwen3.5-27b", "tp": 8}
    room = {"status": "refused", "phase": "step", "model": MODEL, "tp": 1, "reason": "needs more memory"}
    assert findings.not_timed([refused, refused | {"configuration": "best"}, wrong, room]) == [
        "after, best refused: needs a GPU", f"{MODEL} at tp 1 refused: needs more memory",
        "best outside its tolerance at qwen3.5-27b, tp 8, B = 8 (largest error not finite, conv)",
    ]  # fmt: skip


# ---- tables


def test_tables(rows):
    table = step_tables.step_table(rows).set_index("configuration")
    assert list(table.index) == list(CHANGES) and table.loc["before", "kernels"] == 28
    assert table.loc["best", "GDN's share"] == "10%" and "launched by kernel, µs" in table
    table = step_tables.parts_table(rows).set_index("part")
    assert table.loc["split", "best"] == "" and table.loc["gdn", "before"] == "103.0"
    total = sum(float(us) for us in table.best[: list(table.index).index("the step as recorded")] if us)
    assert total == pytest.approx(float(table.loc["the step as recorded", "best"]))
    assert table.loc["the step untraced", "best"] == "447.5"
    assert (table[table.index.str.startswith("all-reduce")] == "not run on one GPU").all().all() and len(table) == 18
    table = step_tables.published_table(rows).set_index("")
    assert table.loc["the rest of the step", ["published before", "published after"]].tolist() == [323.0, 300.0]
    assert table.loc["GDN kernel", "best"] == 47.0
    table = step_tables.roof_table(rows).set_index("part")
    assert set(table.index) == set(parts_of("best")) and table.loc["experts", "of the step"] == "73%"


def test_configurations_are_told_as_they_are():
    table = step_tables.configuration_table(["before", "best"]).set_index("configuration")
    assert table.loc["before", "GDN kernel"] == "triton/kv8" and "fused" in table.loc["best", "small kernels"]


# ---- figures


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_each_is_drawn_with_and_without_rows(draw, rows, tmp_path):
    figure = draw(rows, RUN)
    assert isinstance(figure, Figure) and "H100" in notes(figure)
    figure.savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").stat().st_size > 1000
    empty = draw([], None)
    empty.savefig(tmp_path / "figure.png", dpi=40)
    assert re.search("nothing|No ", title(empty)) or draw is step_plots.beside_published


def test_titles_hold_the_numbers_of_the_rows(rows):
    assert title(step_plots.waterfall(rows)) == (
        "before 536 µs → before-32 494 µs → after 486 µs → best 448 µs; gdn gives 56.0 µs of the difference"
    )
    assert title(step_plots.parts(rows)).startswith("GDN is 10% of a step of best, the largest part, experts, 73%")
    assert title(step_plots.beside_published(rows)).endswith("23 unexplained; here 50, 50 and 0")
    assert (
        title(step_plots.share_map(rows)) == "GDN takes 0.5% to 58% of a step of before; best saves 0.3% to 29% of it"
    )


def test_cpu_times_are_called_cpu_times():
    changes = {"torch-kv": {}, "torch": {"gdn": 50.0}}
    cpu = step_rows(tuple(changes), changes=changes, timer="host_clock")
    for draw in (step_plots.waterfall, step_plots.parts):
        assert title(draw(cpu, CPU)).startswith("CPU times: "), draw.__name__
    assert "at toy size" in said(cpu, CPU) and "pull request" not in said(cpu, CPU)
    assert "not both measured" in title(step_plots.beside_published(cpu, CPU))


def test_the_map_leaves_out_what_was_not_measured(rows):
    some = [row for row in rows if (row["sweep"], row["tp"], row["batch"]) != ("share", 1, 16)]
    figure = step_plots.share_map(some, RUN)
    cells = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert len(cells) == 16 and all("saves" in cell for cell in cells)
    untraced = [row for row in share_rows() if row["part"] == "step"]
    assert "nothing was measured" in title(step_plots.share_map(untraced, RUN))


# ---- the README


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
    assert "old" not in text and "less than the 10% aimed at" in text and "driver 580.1" in text
    assert "no recorded run of 03_decode_step on 'h200'" in text and text.endswith("<!-- /measured:h200-step -->\n")
    assert readme not in report(tmp_path) and readme.read_text() == text
