"""Tables, sentences and figures of notebooks 00 to 02 from made-up rows, and what they say without rows."""

import json
import re

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from synthetic import RUN, VARIANTS, refused, sweep_rows, wrong

from gdn_lab import GDNShape
from gdn_lab.backends.registry import variant
from gdn_lab.cli.report import report
from gdn_lab.report.style import line_style
from gdn_lab.report.style import title_of as title
from gdn_lab.report.timed import Timed, name_of
from gdn_lab.studies.decode_kernels import analysis, figures
from gdn_lab.studies.decode_kernels.study import STUDY
from gdn_lab.studies.pool_layouts import analysis as pool_analysis
from gdn_lab.studies.pool_layouts import figures as pool_figures
from gdn_lab.studies.pool_layouts import formulas
from gdn_lab.studies.start_here.analysis import check_answers, check_table, guide, model_table
from gdn_lab.studies.start_here.figures import errors

FROM_ROWS = [
    figures.decode_time,
    figures.gather_scatter,
    figures.against_published,
    figures.launch_gap,
    figures.one_batch,
    pool_figures.layout_cost,
]
ON_CPU = {"torch/vk": (100, 0.1), "torch/kv": (100, 0.1)}


@pytest.fixture(scope="module")
def timed():
    return Timed(sweep_rows(), RUN)


def notes(figure):
    return " ".join(figure.get_supxlabel().split())


def colours(figure):
    """Colours of the lines with markers over all axes."""
    drawn = [line for ax in figure.axes for line in ax.lines if line.get_marker() not in ("None", ".", "x")]
    return {to_hex(line.get_color()).upper() for line in drawn}


@pytest.mark.parametrize("draw", FROM_ROWS, ids=lambda draw: draw.__name__)
def test_each_is_drawn_and_saved(draw, timed, tmp_path):
    figure = draw(timed)
    assert isinstance(figure, Figure) and title(figure)
    figure.savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert "H100" in notes(figure) and "HV 64" in notes(figure)


@pytest.mark.parametrize("draw", FROM_ROWS, ids=lambda draw: draw.__name__)
def test_without_timed_rows_it_says_so(draw, tmp_path):
    figure = draw(Timed([refused("flashinfer/vk", "needs a newer GPU")]))
    assert re.search("nothing|not both", title(figure).lower())
    figure.savefig(tmp_path / "figure.png", dpi=40)


def test_titles_hold_numbers_of_the_rows(timed):
    us = analysis.time_table(timed)
    assert title(figures.decode_time(timed)).startswith(
        f"At B = 512 triton/vk is fastest: {us['triton/vk'][512]:,.0f} µs"
    )
    assert "2.50× the in-place time" in title(figures.gather_scatter(timed))
    slower = [row | {"median_us": row["median_us"] * 3} if row["variant"] == "vk" else row for row in timed.all_rows]
    assert "triton/vk-serial is fastest" in title(figures.decode_time(Timed(slower)))


def test_a_kernel_that_defers_the_write_is_named_with_the_fastest_of_the_others(timed):
    rows = [row for row in timed.all_rows if (row["variant"], row["indexing"]) == ("vk", "in_place")]
    replay = {"backend": "triton", "variant": "replay"}
    ring = [row | replay | {"median_us": row["median_us"] / 2, "bytes": 0.58 * row["bytes"]} for row in rows]
    both = Timed(timed.all_rows + ring, RUN)
    first = analysis.answers(both)[0]
    assert first.startswith("At B = 512 triton/replay is fastest: ")
    assert "It defers state writes: 0.58 of the bytes, and a pool with a ring of updates." in first
    assert f"Of the others triton/vk is fastest: {analysis.time_table(both)['triton/vk'][512]:,.0f} µs" in first
    assert list(analysis.ratio_table(both))[0] == "triton/vk GB/s"


def test_times_of_many_variants_take_two_tables(timed, monkeypatch):
    monkeypatch.setattr(analysis, "MOST_VARIANTS", 4)
    tables = [text.splitlines()[0].split("|")[1:-1] for text in analysis.markdown_tables(timed).split("\n\n")[1:]]
    columns = [[name.strip() for name in table] for table in tables]
    assert columns[0] == ["B", "triton/vk", "triton/vk-serial", "triton/kv32"]
    assert columns[1] == ["B", "triton/kv8", "flashinfer/vk"] and len(columns) == 3


def test_cpu_times_are_called_cpu_times():
    cpu = Timed(sweep_rows(ON_CPU, (1, 4), timers=("host_clock",)))
    for draw in (figures.decode_time, figures.gather_scatter, pool_figures.layout_cost, figures.one_batch):
        assert title(draw(cpu)).startswith("CPU times: "), draw.__name__


def test_a_time_below_the_floor_is_drawn(tmp_path):
    """A busy machine may measure a bandwidth lower than the one a call then reaches."""
    rows = sweep_rows({"torch/vk": (0.0, 1.4)}, (1, 4), timers=("host_clock",))
    figure = figures.decode_time(Timed(rows))
    figure.savefig(tmp_path / "figure.png", dpi=40)
    assert min(figure.axes[0].get_ylim()) < 0


def test_a_variant_has_one_colour_in_every_figure(timed):
    names = ("triton/vk", "triton/kv8", "flashinfer/vk")
    some = timed.where(lambda row: name_of(row) in names)
    for draw in (figures.decode_time, figures.gather_scatter, figures.launch_gap):
        assert colours(draw(some)) == {variant(name).colour for name in names}, draw.__name__


def test_eager_pytorch_is_drawn_only_alone(timed):
    eager = variant("torch/vk").colour
    both = Timed([*timed.all_rows, *sweep_rows({"torch/vk": (100, 0.1)})], RUN)
    for draw in (figures.decode_time, figures.gather_scatter, figures.launch_gap, figures.against_published):
        assert eager not in colours(draw(both)), draw.__name__
    assert colours(figures.decode_time(Timed(sweep_rows({"torch/vk": (100, 0.1)})))) == {eager}


def test_indexing_can_be_told_apart_without_colour():
    here, moved = (line_style("triton/vk", indexing) for indexing in ("in_place", "gather_scatter"))
    assert here["color"] == moved["color"]
    assert here["linestyle"] != moved["linestyle"] and here["markerfacecolor"] != moved["markerfacecolor"]


def test_refused_and_wrong_variants_are_named_and_not_drawn(timed):
    some = [row for row in timed.all_rows if name_of(row) != "flashinfer/vk"]
    some += [refused("flashinfer/vk", "needs compute capability 9.0 or newer"), wrong("cutedsl/vk", 32)]
    figure = figures.decode_time(Timed(some))
    assert "flashinfer/vk refused: needs compute capability 9.0" in notes(figure)
    assert "cutedsl/vk wrong at B = 32 (largest error not finite): not timed" in notes(figure)
    assert variant("flashinfer/vk").colour not in colours(figure)


def test_a_batch_that_is_missing_for_one_variant(timed):
    some = timed.where(lambda row: not (row["variant"] == "kv8" and row["batch"] > 32))
    for draw in FROM_ROWS:
        draw(some).savefig("/dev/null", format="png", dpi=30)
    assert analysis.time_table(some)["triton/kv8"].isna().sum() == 2


@pytest.mark.filterwarnings("error")
def test_gather_and_scatter_may_be_far_faster_than_in_place(tmp_path):
    """On a busy CPU anything happens: the figure keeps its axes."""
    rows = sweep_rows({"torch/vk": (100, 0.1)}, (1,), timers=("host_clock",))
    slow = [row | {"median_us": row["median_us"] * (50 if row["indexing"] == "in_place" else 1)} for row in rows]
    figures.gather_scatter(Timed(slow)).savefig(tmp_path / "figure.png")


# ---- what is computed


def test_warp_loads_are_computed():
    kv8, kv32, vk = (formulas.warp_load(*case) for case in (("KV", 8), ("KV", 32), ("VK", 32)))
    assert [(load.used, len(load.sectors), len(load.lines), load.fetched) for load in (kv8, kv32, vk)] == [
        (512, 32, 32, 1024),
        (512, 16, 8, 512),
        (512, 16, 4, 512),
    ]
    assert kv8.pieces[:2] == [(0, 16), (256, 16)]
    assert kv32.pieces[3:5] == [(48, 16), (256, 16)]
    assert formulas.warp_load("KV", 8, dtype=torch.float32).fetched == 512  # 32 B pieces: whole sectors
    figure = pool_figures.warp_loads()
    assert title(figure) == "512 bytes touch 32 cache lines in KV tiles of 8, 8 in tiles of 32, 4 under VK"
    assert "uses 50%" in figure.axes[0].get_title(loc="left")
    assert "uses 100%" in pool_figures.warp_loads(torch.float32).axes[0].get_title(loc="left")
    assert [ax.get_legend() is None for ax in figure.axes] == [False, True, True]


def test_slots_are_computed():
    row = next(row for row in formulas.slot_table() if row["model"] == "qwen3.5-397b-a17b")
    assert row["state_dtype"] == "float32" and row["state_bytes"] == 45 * 64 * 128 * 128 * 4
    assert row["conv_bytes"] == 45 * (2 * 16 * 128 + 64 * 128) * 3 * 2
    figure = pool_figures.slot_bytes()
    assert "keeps 192 MB in float32 and 97.7 MB in bfloat16" in title(figure)
    assert {"208", "409"} <= {text.get_text().strip() for text in figure.axes[1].texts}
    assert "on one GPU" in notes(figure) and "each of 16 tensor-parallel" in notes(pool_figures.slot_bytes(tp=16))
    assert title(pool_figures.slot_bytes(tp=3)) == "No model of the table can be split over 3 GPUs"


def test_strides_are_computed():
    vk, kv = formulas.stride_table(GDNShape(16, 64)).to_dict("records")
    assert (vk["pool"], vk["next k"], vk["next v"], vk["next head"]) == ("VK", 2, 256, 32768)
    assert (kv["pool"], kv["next k"], kv["next v"], kv["next head"]) == ("KV", 256, 2, 32768)


# ---- what the rows say


def test_the_nearer_baseline_is_named(timed):
    found = analysis.reproduction(timed)
    assert found.nearest == "triton/kv8" and not found.ranges["triton/kv32"][1] > 1.2
    low, high = found.ranges["triton/kv8"]
    assert f"here triton/kv8 {low:.2f} to {high:.2f} and triton/kv32" in title(figures.against_published(timed))
    faster = Timed(sweep_rows(VARIANTS | {"triton/kv8": (3.0, 0.95), "triton/kv32": (6.0, 0.38)}))
    assert analysis.reproduction(faster).nearest == "triton/kv32"
    assert analysis.reproduction(faster).verdict == "reproduces"
    assert analysis.reproduction(Timed([])).nearest is None
    assert "nothing was timed here" in title(figures.against_published(Timed([])))


def test_answers_say_what_rows_can_answer(timed):
    said = " ".join(analysis.answers(timed))
    for part in ("triton/vk is fastest", "the time of triton/vk-serial (without PDL)", "2.4 to 2.8", "flashinfer/vk's"):
        assert part in said
    assert "With gather and scatter" in said and "torch" not in said
    on_cpu = Timed(sweep_rows(ON_CPU, (1,), timers=("host_clock",)))
    said = " ".join(analysis.answers(on_cpu))
    assert "the time of torch/vk" in said and "2.4 to 2.8" not in said and "CUPTI" not in said
    assert analysis.answers(Timed([])) == ["No row was timed, so nothing is answered."]
    said = " ".join(pool_analysis.answers(timed, "qwen3.5-397b-a17b", 1))
    assert "uses 50%" in said and "97.7 MB in bfloat16 on one GPU" in said and "Layout, value tile" in said


def test_a_twin_that_was_not_timed_gives_way_to_the_backends_first_vk_variant(timed):
    some = timed.where(lambda row: name_of(row) in ("triton/vk", "triton/kv8"))
    assert "takes" in analysis.layout_sentence(some) and "the time of triton/vk." in analysis.layout_sentence(some)
    alone = timed.where(lambda row: name_of(row) in ("flashinfer/vk", "triton/kv8"))
    assert analysis.layout_sentence(alone) is None


def test_answers_say_where_the_two_timers_disagree(timed):
    agree = "agree within 2% above 5 µs, apart from up to 0.6 µs between two launches."
    assert analysis.timers_sentence(timed).endswith(agree)
    rows = [
        row | {"median_us": row["median_us"] * 0.9, "p20_us": 700.0, "p80_us": 900.0}
        if (row["variant"], row["batch"], row["timer"]) == ("kv32", 512, "cupti_kernel")
        else row
        for row in timed.all_rows
    ]
    sentence = analysis.timers_sentence(Timed(rows))
    assert sentence.count("They disagree for ") == 1 and "They disagree for triton/kv32 at B = 512:" in sentence
    assert sentence.endswith("from 700 µs to 900 µs, 20th to 80th percentile), and a replay averages over them.")


def test_what_gather_and_scatter_make_of_the_bandwidth():
    """4 passes over 64 heads of 128 × 128 bf16 elements, in the time that gather and scatter add."""
    row = sweep_rows({"triton/vk": (2.0, 0.9)}, (1,), timers=("cuda_graph_replay",))[0] | {"roof_gb_per_s": 2000.0}
    rows = [row | dict(indexing="in_place", median_us=4.0), row | dict(indexing="gather_scatter", median_us=12.388608)]
    assert analysis.copies_share(Timed(rows), 1, "triton/vk") == pytest.approx(0.5)
    assert analysis.copies_share(Timed(rows[:1]), 1, "triton/vk") is None


def test_tables_hold_what_was_timed_and_published(timed):
    assert list(analysis.published_table().columns)[-1] == "B200 CuTe DSL VK ÷ FlashInfer VK"
    joined = analysis.next_to_published(timed)
    assert joined.loc[512, "B200 FlashInfer VK"] == 365.6 and joined.loc[8].notna().sum() == len(VARIANTS)
    assert len(analysis.detail_table(timed)) == len(timed.all_rows)
    first, second = analysis.markdown_tables(timed).split("\n\n")[1:]
    assert first.count("\n") == second.count("\n") == 1 + len(timed.batches)
    assert max(table.splitlines()[0].count("|") for table in (first, second)) <= 8
    assert "2.55" in second.splitlines()[-1] and analysis.markdown_tables(Timed([])) == ""


# ---- 00


def test_errors_name_what_is_wrong():
    (right,) = sweep_rows({"torch/vk": (100, 0.1)}, (4,), timers=("host_clock",), indexings=("in_place",))
    assert title(errors(Timed([right]))) == "1 of 1 variants run here and agree with the float64 reference"
    rows = Timed([right, wrong("torch/kv", 4), refused("triton/vk", "no GPU")])
    figure = errors(rows)
    assert title(figure) == "torch/kv disagrees with the float64 reference" and "no GPU" in notes(figure)
    assert title(errors(Timed([refused("triton/vk", "no GPU")]))) == "No backend ran here"
    assert "torch/kv ran and disagree" in " ".join(check_answers(rows))
    assert list(check_table(rows).verdict) == ["right", "wrong", "refused: no GPU"]


def test_the_guide_lists_every_other_notebook_and_models_are_marked():
    table = guide()
    assert "00_start_here" not in table and f"`{STUDY.notebook}` | {STUDY.question}" in re.sub(" +", " ", table)
    checked = model_table().set_index("model").checked
    assert checked["qwen3.5-397b-a17b"] == "✓" and checked["qwen3.5-27b"] == "no"


# ---- the README


def test_report_fills_the_readme(tmp_path, timed):
    folder = tmp_path / "data" / "measured" / "h100" / STUDY.notebook
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timed.all_rows))
    readme = tmp_path / "README.md"
    readme.write_text("top\n<!-- measured:h100-decode -->\nold\n<!-- /measured:h100-decode -->\nbottom\n")
    written = report(tmp_path)
    text = readme.read_text()
    assert {readme, tmp_path / "docs" / "h100_decode_time.png", tmp_path / "docs" / "warp_loads.png"} <= set(written)
    assert text.startswith("top\n<!-- measured:h100-decode -->\n") and text.endswith("bottom\n") and "old" not in text
    assert "Recorded on NVIDIA H100 80GB HBM3, 2026-11-22" in text and re.search(r"\| +512 \|", text)
    pictures = [path for path in written if path.suffix == ".png"]
    assert len(pictures) == 5 and all((tmp_path / path).is_file() for path in re.findall(r"\]\((docs/\S+)\)", text))


def test_a_kernel_that_takes_no_pool_is_never_said_to_work_in_place():
    row = {"backend": "fla", "variant": "vk", "indexing": "in_place"}
    assert analysis.how_indexed(row) == "gather, run, scatter"
    assert analysis.how_indexed(row | {"backend": "triton"}) == "in place"
