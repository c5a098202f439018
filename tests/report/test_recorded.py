"""data/published against the pull request's figures, and reading what is recorded."""

import json
import re

import pytest

from gdn_lab.report import recorded as data
from gdn_lab.report.recorded import published, published_ratios


def test_every_table_names_its_source():
    tables = sorted((data.DATA / "published" / "pr19150").glob("*.csv"))
    names = [table.stem for table in tables]
    assert names == ["accuracy", "decode_microbenchmark", "end_to_end", "selection_rules", "step_profile"]
    for table in tables:
        first = table.read_text().splitlines()[0]
        assert first.startswith("# Source: SGLang pull request #19150"), table.name


def test_microbenchmark():
    assert published("decode_microbenchmark").values.tolist() == [
        [1, 4.3, 3.0, 2.8],
        [32, 59.1, 34.4, 20.9],
        [64, 118.4, 69.5, 49.0],
        [128, 235.7, 139.0, 95.8],
        [256, 466.1, 283.7, 187.8],
        [512, 931.4, 565.9, 365.6],
    ]


def test_ratios_are_the_published_2_4_to_2_8_times():
    large = published_ratios().set_index("batch").loc[32:]
    assert large.tri_over_fi.between(2.4, 2.85).all()
    assert (round(large.tri_over_fi.min(), 1), round(large.tri_over_fi.max(), 1)) == (2.4, 2.8)


def test_microbenchmark_fits_the_heads_it_is_taken_for():
    """HK 16, HV 64, K = V = 128 in bf16: state read and written at B = 512 makes 5.9 TB/s."""
    us = published("decode_microbenchmark").set_index("batch").fi_vk_bf16_us[512]
    assert 2 * 512 * 64 * 128 * 128 * 2 / us / 1e6 == pytest.approx(5.87, abs=0.01)
    assert 2 * 512 * 64 * 128 * 128 * 2 / us / 1e6 < 8


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


def test_measured_reads_a_recorded_run(tmp_path):
    folder = tmp_path / "measured" / "h100" / "02_decode_kernels"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"notebook": "02_decode_kernels"}))
    (folder / "rows.jsonl").write_text('{"status": "ok"}\n')
    run, rows = data.measured("h100", "02_decode_kernels", tmp_path)
    assert run["notebook"] == "02_decode_kernels" and rows == [{"status": "ok"}]
    with pytest.raises(FileNotFoundError, match="no recorded run of 02_decode_kernels on 'b200'; .*: h100/02_decode"):
        data.measured("b200", "02_decode_kernels", tmp_path)


def test_measured_says_when_nothing_is_recorded(tmp_path):
    with pytest.raises(FileNotFoundError, match="none yet"):
        data.measured("h100", "02_decode_kernels", tmp_path)


def test_recorded_runs_are_whole():
    """What data/measured holds was measured on a GPU, by committed code, to its end, and nothing in it is wrong."""
    for path in (data.DATA / "measured").glob("*/*/run.json"):
        run, rows = data.measured(path.parts[-3], path.parts[-2])
        assert run["status"] == "complete" and run["environment"]["gpu_name"], path
        assert path.parts[-3].lower() in run["environment"]["gpu_name"].lower(), path
        assert run["environment"]["git_commit"] and not run["environment"]["git_dirty"], path
        assert rows and not [row for row in rows if row["status"] == "wrong"], path


def test_recorded_logs_of_compute_sanitizer():
    """Both tools over every group of kernels: results right, no error; warnings in kernels of FlashInfer alone."""
    logs = {path.stem: path.read_text() for path in (data.DATA / "measured" / "h100" / "sanitize").glob("*.log")}
    groups = ("triton", "cutedsl", "flashinfer", "step")
    assert set(logs) == {f"{tool}-{group}" for tool in ("memcheck", "racecheck") for group in groups}
    for name, log in logs.items():
        lines = log.splitlines()
        assert re.search(r"[ (]0 errors", lines[-1]), name
        assert "with changes" not in lines[1] and "H100" in lines[1], name
        assert log.count(": right, largest error") >= 2 and not re.search("WRONG|FAILED", log), name
        assert all("flashinfer" in line for line in lines if "Warning: Race" in line), name


def test_recorded_profilers_agree_and_parts_add_up():
    """Nsight Systems and Kineto within 3 % on ranges above 5 µs; a step's parts and gaps within 3 % of the whole."""
    _, rows = data.measured("h100", "04_nsight_systems")
    compared = [row for row in rows if "profilers" in row and max(row["median_us"]) > 5]
    assert {"gdn", "experts"} <= {row["part"] for row in compared}
    assert max(abs(row["difference_percent"]) for row in compared) < 3
    _, rows = data.measured("h100", "03_decode_step")
    rows = [row for row in rows if row.get("sweep") == "step" and row["status"] == "ok" and row["mode"] == "graph"]
    for name in {row["configuration"] for row in rows}:
        us = {row["part"]: row["median_us"] for row in rows if row["configuration"] == name}
        whole, traced = us.pop("step"), us.pop("traced step")
        assert abs(sum(us.values()) / traced - 1) < 0.03 and abs(traced / whole - 1) < 0.03, name


# --- how fast the workbook's kernels were on an H100, HK 16, HV 64: what the README says of them rests on this


def _us(notebook, *fields, timer="cuda_graph_replay", **wanted):
    """{(backend/variant, *fields): (median_us, share of the roof)} of the recorded rows that are as `wanted`."""
    _, rows = data.measured("h100", notebook)
    wanted |= {"status": "ok", "timer": timer, "num_v_heads": 64}
    return {
        (f"{row['backend']}/{row['variant']}", *(row[field] for field in fields)): (
            row["median_us"], row["share_of_roof"],
        )
        for row in rows
        if all(row.get(field) == value for field, value in wanted.items())
    }  # fmt: skip


def test_recorded_decode_is_ahead_of_flashinfer():
    of = _us("02_decode_kernels", "batch", phase="decode", indexing="in_place")
    batches = sorted({batch for _, batch in of})
    assert batches == [1 << n for n in range(10)]
    for batch in batches:
        us, share = of["cutedsl/vk", batch]
        assert us <= (0.97 if batch >= 32 else 1.0) * of["flashinfer/vk", batch][0], batch
        assert share >= 0.97 or batch < 256, batch
        assert of["triton/vk", batch][0] <= of["flashinfer/vk", batch][0], batch


def test_recorded_verify_reads_the_state_once():
    of = _us("05_verify", "mode", "tokens", phase="verify", batch=64)
    for (name, mode, tokens), (us, _) in of.items():
        if name == "flashinfer/vk":
            assert of["triton/vk", mode, tokens][0] < us, (mode, tokens)
    output = {tokens: of["triton/vk", "output", tokens][0] for tokens in (4, 8)}
    assert output[4] <= 0.9 * of["flashinfer/vk", "output", 4][0] and output[8] <= 1.4 * output[4]


def test_recorded_prefill_is_ahead_of_fla_and_of_the_detour():
    of = _us("06_prefill", "batch", "length", "indexing", phase="prefill")
    for sequences, length in ((8, 1024), (1, 8192)):
        ours, theirs = (of[name, sequences, length, "in_place"][0] for name in ("triton/vk", "fla/vk"))
        assert theirs >= 1.2 * ours, (sequences, length)
    detours = [key for key in of if key[-1] == "detour"]
    assert len(detours) == 6
    for name, *work, _ in detours:
        assert of["triton/vk", *work, "in_place"][0] < of[name, *work, "detour"][0], work
