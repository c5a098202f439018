"""The history of records: headlines of rows, what changed from one record to the next, and its figure."""

import pytest

from gdn_lab.report import history, history_figure
from gdn_lab.report.recorded import DATA, measured, recorded_gpus


def line(us: float, triton: str = "3.6", commit: str = "a" * 40) -> dict:
    run = {"commit": commit, "versions": {"triton": triton}, "headlines": {"decode bfloat16, batch 64, triton/vk": us}}
    return {"utc": "2026-11-28T08:00:00Z", "runs": {"02_decode_kernels": run}, "seconds": {"tests": us}}


def test_headlines_are_of_graph_replay_in_place_whole_steps_and_serving():
    call = {"status": "ok", "backend": "triton", "variant": "vk", "state_dtype": "bfloat16", "batch": 64}
    call |= {"timer": "cuda_graph_replay", "median_us": 2.0}
    rows = [
        call | {"phase": "decode"},
        call | {"phase": "decode", "indexing": "gather_scatter", "median_us": 9.0},
        call | {"phase": "decode", "batch": 2},
        call | {"phase": "decode", "timer": "cupti_kernel", "batch": 1},
        call | {"phase": "verify", "tokens": 4, "mode": "update"},
        call | {"phase": "verify", "tokens": 2, "mode": "no_update", "median_us": 9.0},
        call | {"phase": "verify", "tokens": 3, "median_us": 9.0},
        call | {"phase": "prefill", "batch": 1, "length": 2048, "tp": 8},
        call | {"phase": "step", "part": "step", "sweep": "step", "configuration": "best", "batch": 256},
        {"phase": "serving", "type": "run", "configuration": "best", "concurrency": 64, "tp": 1, "tpot_ms": 4.0},
    ]
    assert history.headlines(rows) == {
        "decode bfloat16, batch 64, triton/vk": 2.0,
        "verify 4 tokens, batch 64, triton/vk": 2.0,
        "prefill 2048 tokens, tp 8, triton/vk": 2.0,
        "step best, batch 256": 2.0,
        "TPOT best, tp 1, 64 requests": 4.0,
    }


@pytest.mark.parametrize("folder", ["02_decode_kernels", "03_decode_step", "06_prefill", "09_serving_tp2"])
def test_recorded_runs_have_headlines(folder):
    assert history.of_run(*measured("h200", folder))["headlines"]


def test_lines_are_appended_and_read_in_order(tmp_path):
    (tmp_path / "measured" / "h100").mkdir(parents=True)
    assert history.read(tmp_path, "h100") == []
    history.append(tmp_path, "h100", line(2.0))
    history.append(tmp_path, "h100", line(1.0))
    assert history.read(tmp_path, "h100") == [line(2.0), line(1.0)]
    assert history.last_seconds(tmp_path, "h100") == {"tests": 1.0}


def test_what_changed_is_said_with_the_versions_that_changed():
    (sentence,) = history.sentences([line(2.0), line(1.5, triton="3.7", commit="b" * 40)])
    assert "commit aaaaaaaaaa → bbbbbbbbbb, triton 3.6 → 3.7" in sentence and "−25.0% in the median" in sentence
    assert history.sentences([line(2.0)]) == []


def test_the_newest_record_is_compared_with_the_one_before_it_not_with_the_first():
    (sentence,) = history.sentences([line(9.0, commit="f" * 40), line(2.0), line(3.0, commit="b" * 40)])
    assert "commit aaaaaaaaaa → bbbbbbbbbb, the same versions" in sentence and "by +50.0% in the median" in sentence


def test_the_figure_draws_times_relative_to_the_first_record():
    lines = [line(2.0), line(1.5)]
    assert history_figure.relative_times(lines) == {"decode triton/vk": [(0, 1.0), (1, 0.75)]}
    title = history_figure.draw(lines, "h100").get_suptitle().replace("\n", " ")
    assert "decode triton/vk changed most since its first record, to 0.75 times its time (median)" in title
    assert "nothing was recorded twice" in history_figure.draw(lines[:1], "h100").get_suptitle()


def test_a_headline_is_compared_with_its_own_folder_and_counts_until_it_is_recorded_again():
    """27B's TPOT has the name of 35B's, and a record of a few pieces says nothing of the others."""

    def run(ms, commit):
        return {"commit": commit, "versions": {}, "headlines": {"TPOT best, tp 1, 64 requests": ms}}

    runs = [
        {"09_serving": run(10.0, "a"), "10_drift": run(3.0, "a")},
        {"09_serving": run(8.0, "b"), "09_serving_27b": run(40.0, "b")},
        {"09_serving_27b": run(36.0, "c")},
    ]
    lines = [line(1.0) | {"runs": each} for each in runs]
    assert history_figure.relative_times(lines) == {"TPOT best": [(0, 1.0), (1, 0.9), (2, pytest.approx(0.85))]}


def test_pieces_of_one_commit_are_one_point():
    first, second = line(2.0), line(1.5)
    other = line(3.0) | {"runs": {"10_drift": line(3.0)["runs"]["02_decode_kernels"]}}
    assert [sorted(each["runs"]) for each in history_figure.pieces_joined([first, other, second])] == [
        ["02_decode_kernels", "10_drift"],
        ["02_decode_kernels"],
    ]


@pytest.mark.parametrize("gpu", recorded_gpus())
def test_the_history_that_is_kept_is_in_the_order_of_time(gpu):
    lines = history.read(DATA, gpu)
    assert lines and [each["utc"] for each in lines] == sorted(each["utc"] for each in lines)
