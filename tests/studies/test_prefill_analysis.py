"""What rows of prefill say, in sentences, tables and the figures of notebook 06; and the notebook's parameters."""

from dataclasses import replace

import pytest
from synthetic import RUN

from gdn_lab.backends.registry import VARIANTS
from gdn_lab.report.style import title_of
from gdn_lab.report.timed import Timed
from gdn_lab.studies.parameters import ParameterError
from gdn_lab.studies.prefill import analysis, figures, study


def made(name, batch, length, us, indexing="in_place", heads=64):
    backend, variant = name.split("/")
    return {
        "status": "ok",
        "phase": "prefill",
        "backend": backend,
        "variant": variant,
        "indexing": indexing,
        "timer": "cuda_graph_replay",
        "model": "qwen3.5-397b-a17b",
        "num_v_heads": heads,
        "batch": batch,
        "length": length,
        "tokens": batch * length,
        "median_us": us,
        "p20_us": us,
        "p80_us": us,
        "count": 50,
        "tokens_per_s": batch * length / us * 1e6,
        "gb_per_s": 500.0,
        "share_of_roof": 0.2,
        "roof_gb_per_s": 3000.0,
        "tflops": 100.0,
        "l2": "cold",
        "state_dtype": "bfloat16",
        "io_dtype": "bfloat16",
        "max_abs_error": 1e-4,
    }


def timed(rows, run=RUN):
    return Timed(rows, run, phase="prefill", indexing=None)


# {variant: µs of each of WORKLOADS}, for 64 value heads and for 8
TIMES = {
    64: {"flashinfer/vk": (120, 290, 455, 400), "triton/vk": (46, 540, 680, 580), "triton/kv32": (45, 541, 679, 581)},
    8: {"flashinfer/vk": (52, 175, 132, 66), "triton/vk": (29, 94, 330, 85), "triton/kv32": (29.5, 93, 331, 84)},
}
WORKLOADS = ((1, 512), (8, 1024), (1, 8192), (32, 256))
ROWS = [
    made(name, *work, us, heads=heads)
    for heads, variants in TIMES.items()
    for name, times in variants.items()
    for work, us in zip(WORKLOADS, times, strict=True)
]
DETOUR = [made("triton/kv32", 1, 512, 92, "detour"), made("triton/kv32", 1, 8192, 714, "detour")]
TIMED = timed(ROWS + DETOUR)
NOTHING = timed([])


# ---- analysis


def test_who_is_fastest_and_where():
    """Per backend, so that two orders of the same kernel are not counted against one another."""
    assert analysis.fastest(TIMED) == (
        "flashinfer at 5 of 8 (up to 2.5× triton's speed); triton at 1 × 512 and 8 × 1,024 (HV 8)"
    )
    assert analysis.fastest(timed([row for row in ROWS if row["backend"] == "triton"])) == ""
    assert analysis.fastest(NOTHING) == ""


def test_where_ours_is_fastest_it_is_over_the_next():
    rows = [made("triton/vk", 1, 64, 10), made("flashinfer/vk", 1, 64, 30), made("fla/vk", 1, 64, 20)]
    assert analysis.fastest(timed(rows)) == "triton at 1 of 1 (up to 2.0× fla's speed)"


def test_the_answer_says_plainly_where_a_peer_is_faster():
    sentences = analysis.answers(TIMED)
    assert (
        "With 64 value heads flashinfer/vk, compared with triton/vk, is faster at 1 × 8,192 (1.49×), 8 × 1,024 (1.86×) "
        "and 32 × 256 (1.45×); not faster at 1 × 512 (0.38×)."
    ) in sentences
    assert sentences[0].startswith("Tokens per second at 8 × 1,024 with 64 value heads, and share of")
    assert "flashinfer/vk 28.2 million (20%, 100 TFLOP/s) and triton/vk 15.2 million" in sentences[0]
    assert "triton/kv32 takes 0.98 to 1.02 times as long as triton/vk." in sentences


def test_workloads_that_a_variant_lacks():
    few = [row for row in ROWS if row["backend"] == "triton" or row["length"] == 512]
    assert any("not faster at 1 × 512" in sentence for sentence in analysis.answers(timed(few)))
    peers = [row for row in ROWS if row["backend"] == "flashinfer"]
    throughput, isolation = analysis.answers(timed(peers))
    assert throughput.startswith("Tokens per second") and isolation.startswith("flashinfer/vk: a NaN")
    assert analysis.fastest(timed(peers)) == ""


def test_the_detour_is_compared_with_the_kernel_of_the_other_memory_order():
    ratios = analysis.detour_ratios(TIMED)
    assert ratios["triton/vk"].to_dict() == {(64, 1, 512): 2.0, (64, 1, 8192): 1.05}
    sentence = "The detour through KV takes 1.05 to 2.00 times as long as triton/vk on the pool in place"
    assert f"{sentence}: slower at every size." in analysis.answers(TIMED)
    assert analysis.detour_ratios(timed(ROWS)).empty and analysis.detour_ratios(timed(DETOUR)).empty


def test_tables():
    table = analysis.time_table(TIMED)
    assert list(table.columns) == [
        *("HV", "sequences × tokens", "triton/vk", "triton/kv32", "flashinfer/vk", "triton/kv32, detour", "fastest"),
    ]
    assert table.HV.tolist() == [64] * 4 + [8] * 4
    assert table.loc[0].fastest == "triton/kv32" and table.loc[2].fastest == "flashinfer/vk"
    assert len(analysis.detail_table(TIMED)) == len(ROWS + DETOUR)
    assert "qwen3.5-397b-a17b" in analysis.conditions(TIMED)


def test_earlier_figures():
    """The two workloads that were measured before, with what rows have of them; columns without a figure go."""
    rows = [made("triton/vk", 8, 1024, 500), made("triton/kv32", 8, 1024, 500, heads=8)]
    table = analysis.earlier_table(timed(rows)).set_index("sequences × tokens")
    assert list(table.columns) == ["triton/vk", "flashinfer, earlier", "fla, earlier"]
    assert table.loc["8 × 1,024"].tolist() == [500.0, 329, 1204]
    assert table.loc["1 × 8,192"].tolist()[1:] == [541, 1326]
    assert list(analysis.earlier_table(NOTHING).columns[1:]) == ["flashinfer, earlier", "fla, earlier"]


def test_a_backend_that_is_not_isolated_is_named(monkeypatch):
    name = "flashinfer/vk"
    monkeypatch.setitem(VARIANTS, name, replace(VARIANTS[name], leaks=("prefill",)))
    (sentence,) = analysis.not_isolated([name, "triton/vk"])
    assert sentence.startswith("flashinfer/vk: a NaN") and "`auto` does not choose it" in sentence
    assert sentence in analysis.answers(TIMED) and analysis.not_isolated(["triton/vk"]) == []


def test_without_rows_everything_says_so():
    assert analysis.answers(NOTHING) == ["Nothing was timed here in place."]
    assert analysis.time_table(NOTHING).empty and analysis.detail_table(NOTHING).empty
    assert title_of(figures.tokens_per_second(NOTHING)) == "No prefill was timed"
    assert "was not timed" in title_of(figures.native_against_detour(NOTHING))


# ---- figures


def test_workloads_are_categories_and_no_variant_hides_another():
    figure = figures.tokens_per_second(TIMED)
    assert title_of(figure) == f"Fastest: {analysis.fastest(TIMED)}"
    for ax in figure.axes:
        assert all(line.get_linestyle() == "None" for line in ax.lines), "no line joins workloads"
        xs = [x for line in ax.lines for x in line.get_xdata()]
        assert len(xs) == len(set(xs))
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1 × 512", "1 × 8,192", "8 × 1,024", "32 × 256"]


def test_one_backend_alone_says_how_fast_it_is():
    rows = [row | {"timer": "host_clock"} for row in ROWS if row["variant"] == "kv32"]
    title = title_of(figures.tokens_per_second(timed(rows)))
    assert title == "CPU times: triton/kv32 reaches 97,523,810 tokens per second (32 × 256, HV 8)"


def test_a_note_on_copies_stands_only_where_such_a_variant_is_drawn():
    fla = [row | {"backend": "fla"} for row in ROWS if row["variant"] == "vk"]
    refused = {"status": "refused", "phase": "prefill", "backend": "fla", "variant": "vk", "reason": "needs a GPU"}
    assert "gather and scatter" in figures.tokens_per_second(timed(ROWS + fla)).get_supxlabel()
    assert "gather and scatter" not in figures.tokens_per_second(timed([*ROWS, refused])).get_supxlabel()
    assert "gather and scatter" not in figures.native_against_detour(timed(ROWS + DETOUR + fla)).get_supxlabel()


def test_the_figure_of_the_detour():
    title = title_of(figures.native_against_detour(TIMED))
    assert title == "The detour's 8 extra state transfers: 1.05× the time at 1 × 8,192, 2.00× at 1 × 512"


# ---- the study


def test_workloads_as_text():
    assert study.Parameters.parse({"workloads": "8x1024, 1x8192"}).workloads == [(8, 1024), (1, 8192)]
    assert study.Parameters.parse({}).workloads in ([*study.CPU_WORKLOADS], [*study.GPU_WORKLOADS])
    for text in ("8", "8x", "0x4", "8*4", ""):
        with pytest.raises(ParameterError, match="workloads: expected auto or sequences x tokens"):
            study.Parameters.parse({"workloads": text})


def test_degrees():
    assert list(study.Parameters.parse({"tp": 1, "second_tp": 8}).shapes) == [1, 8]
    assert list(study.Parameters.parse({"tp": 8, "second_tp": 0}).shapes) == [8]
    assert list(study.Parameters.parse({"tp": 8, "second_tp": 8}).shapes) == [8]
    with pytest.raises(ParameterError, match="second_tp: .* 3 GPUs cannot share evenly"):
        study.Parameters.parse({"second_tp": 3})


def test_the_section_of_the_readme():
    section = study.section(RUN, ROWS + DETOUR)
    assert set(section.figures) == {"prefill_tokens_per_second"} and section.sentences
