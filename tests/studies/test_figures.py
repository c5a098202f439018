"""Figures from made-up rows: what they draw, what their titles say, and what they say without rows."""

import json
import re

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from synthetic import RUN, VARIANTS, refused, sweep_rows, wrong

from gdn_lab import GDNShape
from gdn_lab.cli.report import report
from gdn_lab.report import style as drawing
from gdn_lab.report.timed import VARIANTS as ORDER
from gdn_lab.report.timed import name_of
from gdn_lab.studies.decode_kernels import analysis as findings
from gdn_lab.studies.decode_kernels import figures as plots
from gdn_lab.studies.pool_layouts import formulas as layouts
from gdn_lab.studies.pool_layouts.figures import slot_bytes, warp_loads

FROM_ROWS = [
    plots.decode_time,
    plots.gather_scatter,
    plots.layout_cost,
    plots.against_published,
    plots.cost_of_bytes,
    plots.launch_gap,
    plots.one_batch,
]


@pytest.fixture(scope="module")
def rows():
    return sweep_rows()


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def notes(figure):
    return figure.get_supxlabel().replace("\n", " ")


def lines(figure):
    """{colour: number of lines with markers} over all axes."""
    drawn = [line for ax in figure.axes for line in ax.lines if line.get_marker() not in ("None", ".")]
    return {to_hex(line.get_color()).upper() for line in drawn}


@pytest.mark.parametrize("draw", FROM_ROWS, ids=lambda draw: draw.__name__)
def test_each_is_drawn_and_saved(draw, rows, tmp_path):
    figure = draw(rows, RUN)
    assert isinstance(figure, Figure) and title(figure)
    figure.savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").stat().st_size > 1000
    if draw is not plots.launch_gap:
        assert "H100" in notes(figure) and "HV 64" in notes(figure)


@pytest.mark.parametrize("draw", FROM_ROWS, ids=lambda draw: draw.__name__)
def test_without_timed_rows_it_says_so(draw, tmp_path):
    figure = draw([refused("flashinfer/vk", "needs a newer GPU")])
    assert re.search("nothing|not both", title(figure).lower())
    figure.savefig(tmp_path / "figure.png", dpi=40)


def test_titles_hold_numbers_of_the_rows(rows):
    us = findings.time_table(rows)
    assert title(plots.decode_time(rows)).startswith(f"At B = 512 triton/vk is fastest: {us['triton/vk'][512]:,.0f} µs")
    assert "2.50 times as long" in title(plots.gather_scatter(rows))
    slower = [row | {"median_us": row["median_us"] * 3} if row["variant"] == "vk" else row for row in rows]
    assert "triton/vk-serial is fastest" in title(plots.decode_time(slower))


def test_cpu_times_are_called_cpu_times():
    cpu = sweep_rows({"torch/vk": (100, 0.1), "torch/kv": (100, 0.1)}, (1, 4), timers=("host_clock",))
    for draw in (plots.decode_time, plots.gather_scatter, plots.layout_cost, plots.cost_of_bytes, plots.one_batch):
        assert title(draw(cpu)).startswith("CPU times: "), draw.__name__


def test_a_variant_has_one_colour_in_every_figure(rows):
    assert set(drawing.COLOURS) == set(drawing.MARKERS) == set(ORDER)
    assert len(set(drawing.COLOURS.values())) == len(set(drawing.MARKERS.values())) == len(drawing.COLOURS)
    some = [row for row in rows if name_of(row) in ("triton/vk", "triton/kv8", "flashinfer/vk")]
    expected = {drawing.COLOURS[name] for name in ("triton/vk", "triton/kv8", "flashinfer/vk")}
    for draw in (plots.decode_time, plots.cost_of_bytes, plots.gather_scatter, plots.launch_gap):
        assert lines(draw(some)) == expected, draw.__name__


def test_indexing_can_be_told_apart_without_colour():
    here, moved = (drawing.line_style("triton/vk", indexing) for indexing in ("in_place", "gather_scatter"))
    assert here["color"] == moved["color"]
    assert here["linestyle"] != moved["linestyle"] and here["markerfacecolor"] != moved["markerfacecolor"]


def test_refused_and_wrong_variants_are_named_and_not_drawn(rows):
    some = [row for row in rows if name_of(row) != "flashinfer/vk"]
    some += [refused("flashinfer/vk", "needs compute capability 9.0 or newer"), wrong("cutedsl/vk", 32)]
    figure = plots.decode_time(some)
    assert "flashinfer/vk refused: needs compute capability 9.0" in notes(figure)
    assert "cutedsl/vk wrong at B = 32 (largest error not finite): not timed" in notes(figure)
    assert drawing.COLOURS["flashinfer/vk"] not in lines(figure)


def test_a_batch_that_is_missing_for_one_variant(rows):
    some = [row for row in rows if not (row["variant"] == "kv8" and row["batch"] > 32)]
    for draw in FROM_ROWS:
        draw(some).savefig("/dev/null", format="png", dpi=30)
    assert findings.time_table(some)["triton/kv8"].isna().sum() == 2


@pytest.mark.filterwarnings("error")
def test_gather_and_scatter_may_be_far_faster_than_in_place(tmp_path):
    """On a busy CPU anything happens: the figure keeps its axes."""
    rows = sweep_rows({"torch/vk": (100, 0.1)}, (1,), timers=("host_clock",))
    slow = [row | {"median_us": row["median_us"] * (50 if row["indexing"] == "in_place" else 1)} for row in rows]
    plots.gather_scatter(slow).savefig(tmp_path / "figure.png")


def test_warp_loads_are_computed():
    kv8, kv32, vk = (layouts.warp_load(*case) for case in (("KV", 8), ("KV", 32), ("VK", 32)))
    assert [(load.used, len(load.sectors), len(load.lines), load.fetched) for load in (kv8, kv32, vk)] == [
        (512, 32, 32, 1024),
        (512, 16, 8, 512),
        (512, 16, 4, 512),
    ]
    assert kv8.pieces[:2] == [(0, 16), (256, 16)]
    assert kv32.pieces[3:5] == [(48, 16), (256, 16)]
    assert layouts.warp_load("KV", 8, dtype=torch.float32).fetched == 512  # 32 B pieces: whole sectors
    assert "opens 32 cache lines" in title(warp_loads())
    assert "use 50%" in title(warp_loads()) and "use 50%" not in title(warp_loads(torch.float32))


def test_slots_are_computed():
    row = next(row for row in layouts.slot_table() if row["model"] == "qwen3.5-397b-a17b")
    assert row["state_dtype"] == "float32" and row["state_bytes"] == 45 * 64 * 128 * 128 * 4
    assert row["conv_bytes"] == 45 * (2 * 16 * 128 + 64 * 128) * 3 * 2
    assert "208 or 409 requests in 40 GB" in title(slot_bytes())
    assert "keeps" in title(slot_bytes(tp=16))
    assert title(slot_bytes(tp=3)) == "No model of the table can be split over 3 GPUs"


def test_strides_are_computed():
    vk, kv = layouts.stride_table(GDNShape(16, 64)).to_dict("records")
    assert (vk["pool"], vk["next k"], vk["next v"], vk["next head"]) == ("VK", 2, 256, 32768)
    assert (kv["pool"], kv["next k"], kv["next v"], kv["next head"]) == ("KV", 256, 2, 32768)


def test_the_nearer_baseline_is_named(rows):
    found = findings.reproduction(rows)
    assert found.nearest == "triton/kv8" and not found.ranges["triton/kv32"][1] > 1.2
    assert title(plots.against_published(rows)).endswith("kv8 is the nearer baseline")
    assert "0.95 to" not in title(plots.against_published(rows))
    faster = sweep_rows(VARIANTS | {"triton/kv8": (3.0, 0.95), "triton/kv32": (6.0, 0.38)})
    assert findings.reproduction(faster).nearest == "triton/kv32"
    assert findings.reproduction(faster).within
    assert findings.reproduction([]).nearest is None
    assert "nothing is measured here" in title(plots.against_published([]))


def test_answers_say_what_rows_can_answer(rows):
    said = " ".join(findings.answers(rows))
    for part in ("triton/vk is fastest", "over triton/vk-serial", "gather and scatter", "2.4 to 2.8", "flashinfer/vk"):
        assert part in said
    torch_only = sweep_rows({"torch/vk": (100, 0.1), "torch/kv": (100, 0.1)}, (1,), timers=("host_clock",))
    said = " ".join(findings.answers(torch_only))
    assert "KV over torch/vk" in said and "2.4 to 2.8" not in said
    assert findings.answers([]) == ["No row was timed, so nothing is answered."]


def test_errors_name_what_is_wrong():
    right = {"status": "ok"} | wrong("torch/vk", 4, 1e-3) | {"status": "ok", "max_abs_error_state": 1e-3}
    assert "each agrees" in title(plots.errors([right]))
    figure = plots.errors([right, wrong("torch/kv", 4), refused("triton/vk", "no GPU")])
    assert title(figure) == "torch/kv disagrees with the float64 oracle" and "no GPU" in notes(figure)
    assert title(plots.errors([refused("triton/vk", "no GPU")])) == "No backend ran here"
    assert "torch/kv ran and disagree" in " ".join(findings.check_answers([right, wrong("torch/kv", 4)]))


def test_labels_keep_their_distance_and_their_order():
    places = drawing._spread([0.5, 0.5, 0.51, 0.99, 0.99], 0.1)
    assert places == sorted(places) and places[0] >= 0 and places[-1] <= 1
    assert all(b - a > 0.1 - 1e-9 for a, b in zip(places, places[1:], strict=False))
    assert drawing._spread([0.2, 0.8], 0.1) == [0.2, 0.8]


# ---- the README


@pytest.fixture
def checkout(tmp_path, rows):
    folder = tmp_path / "data" / "measured" / "h100" / "02_decode_kernels"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "README.md").write_text(
        "top\n<!-- measured:h100 -->\nold\n<!-- /measured:h100 -->\nmiddle\n<!-- measured:h200 -->\nbottom\n"
    )
    return tmp_path


def test_report_fills_the_readme_and_changes_nothing_the_second_time(checkout):
    written = report(checkout)
    text = (checkout / "README.md").read_text()
    assert checkout / "README.md" in written and checkout / "docs" / "h100_decode_time.png" in written
    assert all(path.is_file() for path in written)
    assert text.startswith("top\n<!-- measured:h100 -->\n") and text.endswith("<!-- /measured:h200 -->\nbottom\n")
    assert "old" not in text and "\nmiddle\n" in text
    assert "driver 580.1, power limit 700 W" in text and "| 512 |" in text
    assert "no recorded run of 02_decode_kernels on 'h200'" in text and "make bench" in text
    for path in re.findall(r"\]\((docs/\S+)\)", text):
        assert (checkout / path).is_file()
    pictures = {path: path.read_bytes() for path in written if path.suffix == ".png"}
    assert checkout / "README.md" not in report(checkout)
    assert (checkout / "README.md").read_text() == text
    assert all(path.read_bytes() == before for path, before in pictures.items())


def test_report_without_a_readme_draws_what_needs_no_rows(tmp_path):
    assert [path.name for path in report(tmp_path)] == ["warp_loads.png", "slot_bytes.png"]


def test_what_gather_and_scatter_make_of_the_roof():
    """4 passes over 64 heads of 128 × 128 bf16 elements, in the time that gather and scatter add."""
    row = dict(
        status="ok", timer="cuda_graph_replay", backend="triton", variant="vk", batch=1, state_dtype="bfloat16",
        num_v_heads=64, head_k_dim=128, head_v_dim=128, roof_gb_per_s=2000.0,
    )  # fmt: skip
    rows = [row | dict(indexing="in_place", median_us=4.0), row | dict(indexing="gather_scatter", median_us=12.388608)]
    assert findings._copies_share_of_roof(rows, 1, "triton/vk") == pytest.approx(0.5)
    assert findings._copies_share_of_roof(rows[:1], 1, "triton/vk") is None
