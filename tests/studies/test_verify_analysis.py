"""What rows of verify say, in sentences, tables and the figures of notebook 05; and the notebook's parameters."""

import pytest
from synthetic import RUN

from gdn_lab import GDNShape, StatePool
from gdn_lab.models import MODELS
from gdn_lab.report.style import title_of
from gdn_lab.report.timed import Timed
from gdn_lab.studies.parameters import ParameterError
from gdn_lab.studies.verify import analysis, figures, study

MODEL = "qwen3.5-397b-a17b"
NOTHING = Timed([])


def made(phase, variant, tokens, us, mode=None, batch=64):
    backend, name = variant.split("/")
    return {
        "status": "ok",
        "phase": phase,
        "backend": backend,
        "variant": name,
        "mode": mode,
        "tokens": tokens,
        "batch": batch,
        "indexing": "in_place",
        "timer": "cuda_graph_replay",
        "median_us": us,
        "p20_us": us,
        "p80_us": us,
        "count": 50,
        "num_k_heads": 16,
        "num_v_heads": 64,
        "state_dtype": "bfloat16",
        "bytes": 60_000_000,
        "roof_gb_per_s": 3000.0,
        "share_of_roof": 0.5,
        "gb_per_s": 1500.0,
        "max_abs_error": 0.0,
    }


ROWS = [
    made("decode", "triton/vk", 1, 100.0),
    made("decode", "triton/kv32", 1, 120.0),
    made("decode", "torch/vk", 1, 50.0),
    made("verify", "triton/vk", 4, 60.0, "output"),
    made("verify", "triton/vk", 4, 140.0, "update"),
    made("verify", "triton/vk", 4, 250.0, "intermediate"),
    made("verify", "pool/commit", 4, 100.0, "commit"),
    made("verify", "flashinfer/vk", 4, 120.0, "output"),
    made("verify", "torch/vk", 4, 1.0, "output"),
    made("verify", "triton/vk", 4, 1.0, "output", batch=1),
]
TIMED = Timed(ROWS, RUN)


def growing(modes=("update", "output"), rows=(("triton/vk", 50.0, 0.5), ("flashinfer/vk", 40.0, 1.0))):
    return [made("verify", name, T, us * T**power, mode) for mode in modes for name, us, power in rows for T in (2, 8)]


# ---- analysis


def test_tokens_of_a_step():
    assert analysis.expected_tokens(0.0, 4) == 1 and analysis.expected_tokens(1.0, 4) == 4
    assert analysis.expected_tokens(0.5, 3) == pytest.approx((1 - 0.5**3) / (1 - 0.5))


def test_a_step_from_pool_to_pool_and_its_gain():
    steps = analysis.step_times(TIMED)
    assert steps.to_dict() == {("triton/vk", "store", 4): 350.0, ("triton/vk", "replay", 4): 200.0}
    assert analysis.decode_time(TIMED) == ("triton/vk", 100.0), "a kernel, not eager PyTorch"
    assert analysis.gain(200.0, 100.0, 4, 1.0) == 2.0
    assert analysis.break_even(200.0, 100.0, 4) == pytest.approx(0.55, abs=0.01)
    assert analysis.break_even(401.0, 100.0, 4) is None
    table = analysis.gain_table(TIMED).set_index("rollback")
    assert table.loc["store", "pays from"] == "92%" and table.loc["replay", "pays from"] == "55%"


def test_eager_pytorch_is_shown_only_where_nothing_else_was_timed():
    assert list(analysis.by_mode(TIMED)["output"]) == ["triton/vk", "flashinfer/vk"]
    eager = Timed([row for row in ROWS if row["backend"] in ("torch", "pool")])
    assert list(analysis.by_mode(eager)["output"]) == ["torch/vk"] and analysis.decode_time(eager)[0] == "torch/vk"


def test_the_fastest_may_change_with_T():
    rows = [made("verify", "flashinfer/vk", 2, 50.0, "update"), made("verify", "triton/vk", 2, 100.0, "update")]
    rows += [made("verify", "flashinfer/vk", 8, 200.0, "update"), made("verify", "triton/vk", 8, 100.0, "update")]
    assert analysis.answers(Timed(rows), MODEL, 1)[0] == (
        "Update the state: fastest are flashinfer/vk at T = 2 and triton/vk at T = 8; triton/vk takes 100 µs at T = 2, "
        "100 µs at T = 8; flashinfer/vk takes 0.50, 2.00 times as long."
    )


def test_a_peer_that_is_fastest_is_compared_with_ours():
    rows = [made("verify", name, 4, us, "update") for name, us in (("flashinfer/vk", 50.0), ("triton/vk", 100.0))]
    sentence = analysis.answers(Timed(rows), MODEL, 1)[0]
    assert sentence.endswith("flashinfer/vk is fastest (50.0 µs at T = 4); triton/vk takes 2.00 times as long.")


def test_answers():
    sentences = analysis.answers(TIMED, MODEL, 1)
    expected = "Output only: triton/vk is fastest (60.0 µs at T = 4); flashinfer/vk takes 2.00 times as long."
    assert expected in sentences
    assert any("T = 4 on triton/vk by replay: 1.48×" in sentence for sentence in sentences)
    assert analysis.verify_table(TIMED).loc["output only", 64, 4]["triton/vk"] == 60.0
    assert "B = 64, HK 16, HV 64" in analysis.conditions(TIMED)


def test_memory_of_drafts():
    table = analysis.memory_table([2, 8]).set_index("model")
    shape, layers = GDNShape.from_model(MODEL), MODELS[MODEL].gdn_layers
    assert table.loc[MODEL, "drafts, T = 8"] * 1e6 == layers * 8 * (shape.state_elements * 2 + shape.conv_dim * 2)
    assert table.loc[MODEL, "state and window"] * 1e6 == layers * sum(StatePool.slot_nbytes(shape).values())


def test_without_rows_everything_says_so():
    assert "nothing was timed" in title_of(figures.verify_time(NOTHING))
    assert "no verify step was timed" in title_of(figures.speculative_gain(NOTHING))
    assert len(analysis.answers(NOTHING, MODEL, 1)) == 1 and analysis.conditions(NOTHING) == ""
    assert analysis.gain_table(NOTHING).empty and analysis.verify_table(NOTHING).empty


# ---- figures


def test_the_title_says_how_time_grows_with_T():
    title = title_of(figures.verify_time(Timed(growing())))
    assert title == "triton/vk: T = 8 takes 2.0× the time of T = 2"
    stored = growing(["intermediate"], [("triton/vk", 50.0, 1.0)])
    title = title_of(figures.verify_time(Timed(growing() + stored)))
    assert title == "triton/vk: T = 8 takes 2.0× the time of T = 2, or 4.0× if every state is stored"
    title = title_of(figures.verify_time(Timed(stored)))
    assert title == "triton/vk: T = 8 takes 4.0× the time of T = 2 if every state is stored"
    assert title_of(figures.verify_time(TIMED)).startswith("triton/vk, T = 4: 140 µs to update the state")


def test_panels_share_a_scale_and_show_the_bandwidth_floor():
    figure = figures.verify_time(TIMED)
    assert len(figure.axes) == 3 and len({ax.get_ylim() for ax in figure.axes}) == 1
    for ax in figure.axes:
        floors = [line for line in ax.lines if line.get_linestyle() == ":"]
        assert [list(line.get_ydata()) for line in floors] == [[20.0]], "60 MB at 3,000 GB/s"


def test_the_gain_is_of_the_best_T_at_each_rate():
    rows = [
        *growing(rows=[("triton/vk", 50.0, 0.1), ("flashinfer/vk", 60.0, 0.9)]),
        made("decode", "triton/vk", 1, 100.0),
    ]
    figure = figures.speculative_gain(Timed(rows, RUN))
    assert "At 80% acceptance triton/vk yields" in title_of(figure) and "(T = 8, replay)" in title_of(figure)
    assert "T = 8" in [text.get_text() for ax in figure.axes for text in ax.texts]


def test_the_figure_of_memory():
    figure = figures.draft_memory([2, 8], 8)
    assert title_of(figure) == "Storing 8 states adds 95 MB per request to the 12 MB of qwen3.5-397b-a17b"
    assert "on each of 8 tensor-parallel GPUs" in figure.get_supxlabel()


# ---- the study


def test_tokens_as_text():
    assert study.Parameters.parse({"tokens": "8, 2,4"}).tokens == [2, 4, 8]
    assert study.Parameters.parse({"tokens": 8}).tokens == [8]
    for text in ("", "1,2", "17", "two"):
        with pytest.raises(ParameterError, match="tokens: expected whole numbers from 2 to 16"):
            study.Parameters.parse({"tokens": text})


def test_the_section_of_the_readme():
    section = study.section(RUN | {"parameters": {"model": MODEL, "tp": 1}}, ROWS)
    assert set(section.figures) == {"verify_time"} and section.sentences and "B = 64" in section.conditions
