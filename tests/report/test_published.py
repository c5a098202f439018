"""data/published against the pull request's figures."""

import pytest

from gdn_lab.report.recorded import (
    DATA,
    PUBLISHED_BASE,
    PUBLISHED_BASELINE,
    published,
    published_ratios,
    published_times,
)


def test_every_table_names_its_source():
    tables = sorted((DATA / "published" / "pr19150").glob("*.csv"))
    names = [table.stem for table in tables]
    assert names == ["accuracy", "decode_microbenchmark", "end_to_end", "selection_rules", "step_profile"]
    for table in tables:
        first = table.read_text().splitlines()[0]
        assert first.startswith("# Source: SGLang pull request #19150"), table.name


def test_microbenchmark():
    wide = published_times()
    assert list(wide.columns) == ["B200 Triton KV", "B200 CuTe DSL VK", "B200 FlashInfer VK"]
    assert wide.reset_index().values.tolist() == [
        [1, 4.3, 3.0, 2.8],
        [32, 59.1, 34.4, 20.9],
        [64, 118.4, 69.5, 49.0],
        [128, 235.7, 139.0, 95.8],
        [256, 466.1, 283.7, 187.8],
        [512, 931.4, 565.9, 365.6],
    ]


def test_ratios_are_the_published_2_4_to_2_8_times():
    table = published_ratios()
    large = table[(table.kernel == PUBLISHED_BASELINE) & (table.batch >= 32)].ratio
    assert (round(large.min(), 1), round(large.max(), 1)) == (2.4, 2.8) and len(large) == 5
    assert PUBLISHED_BASE not in set(table.kernel)


def test_microbenchmark_fits_the_heads_it_is_taken_for():
    """HK 16, HV 64, K = V = 128 in bf16: state read and written at B = 512 makes 5.9 TB/s."""
    us = published_times()["B200 FlashInfer VK"][512]
    assert 2 * 512 * 64 * 128 * 128 * 2 / us / 1e6 == pytest.approx(5.87, abs=0.01)


def test_end_to_end():
    table = published("end_to_end")
    assert table.values.tolist() == [
        ["output throughput", "tok/s", 5638, 5741, 1.8],
        ["TPOT", "ms", 21.51, 20.96, -2.6],
        ["mean ITL", "ms", 21.58, 21.04, -2.5],
        ["total throughput", "tok/s", 7047, 7176, 1.8],
    ]
    change = (table.flashinfer / table.triton - 1) * 100
    assert (change - table.change_percent).abs().max() < 0.06


def test_step_profile():
    step, kernel = published("step_profile").itertuples()
    assert (step.triton, step.flashinfer, kernel.triton, kernel.flashinfer) == (353, 316, 30, 16)
    assert (kernel.triton - kernel.flashinfer) / (step.triton - step.flashinfer) == pytest.approx(0.38, abs=0.005)


def test_accuracy():
    table = published("accuracy")
    gpqa = table[table.evaluation == "GPQA"].sort_values("run").score
    assert gpqa.tolist() == [0.848, 0.874, 0.884, 0.879, 0.889, 0.838, 0.889, 0.869]
    assert gpqa.mean() == pytest.approx(0.871, abs=0.0005)
    ci = table[table.stage == "ci"].set_index("backend")
    assert ci.score.to_dict() == {"triton": 0.980, "flashinfer": 0.985}
    assert set(ci.questions) == {200}
    assert table[table.stage == "debugging"].score.tolist() == [0.89, 0.98, 0.94]
    assert table[(table.evaluation == "GSM8K") & (table.stage == "published")].score.tolist() == [0.945]


def test_selection_rules():
    table = published("selection_rules").set_index("setting")
    assert list(table.index) == [
        "linear_attn_backend",
        "linear_attn_decode_backend",
        "linear_attn_prefill_backend",
        "linear_attn_backend=flashinfer",
        "mamba_ssm_dtype",
        "mamba_scheduler_strategy=no_buffer",
        "FlashInfer version",
    ]
    assert table.notna().all().all()
    assert "issue 20791" in table.rule["mamba_scheduler_strategy=no_buffer"]  # nothing was cut off as a comment


def test_an_unknown_table_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"'speed' .*accuracy, decode_microbenchmark"):
        published("speed")
