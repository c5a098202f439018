"""The tests and the sanitizer's runs that were recorded on a GPU: the table, and that all of them passed."""

import pytest

from gdn_lab.report import recorded, recorded_checks

SMOKE = "Every kernel once, small: NVIDIA H200, commit 51ccb4cc39, 2026-11-29\n"
CALL = "decode triton/vk bfloat16: right, largest error 4.8e-04\n"


def written(folder, name, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.log").write_text(text)


def test_each_part_has_its_counts_and_its_commit(tmp_path):
    folder = tmp_path / "measured" / "h200"
    head = recorded_checks.header("h200", "a" * 40)
    written(
        folder / "tests", "tests_layer", f"{head}\n1 failed in a name\n== 2 failed, 31 passed, 4 warnings in 9 s ==\n"
    )
    written(folder / "sanitize", "memcheck-triton", f"{SMOKE}{CALL}{CALL}========= ERROR SUMMARY: 0 errors\n")
    written(
        folder / "sanitize",
        "memcheck-fla",
        f"{SMOKE}decode fla/vk: WRONG, largest error 1\n= ERROR SUMMARY: 3 errors\n",
    )
    raced = "========= RACECHECK SUMMARY: 4 hazards displayed (0 errors, 4 warnings)\n"
    written(folder / "sanitize", "racecheck-flashinfer", f"{SMOKE}{CALL}{raced}")
    written(folder / "sanitize", "racecheck-triton", f"{SMOKE}{CALL}")
    assert recorded_checks.table("h200", tmp_path).splitlines()[2:] == [
        "| `tests_layer` | 2 failed and 31 passed | aaaaaaaaaa |",
        "| `memcheck` of fla, triton | 2 calls right, 3 errors, 1 calls wrong (fla) | 51ccb4cc39 |",
        "| `racecheck` of flashinfer, triton | 2 calls right, 0 errors, 4 warnings (flashinfer), no summary (triton) | "
        "51ccb4cc39 |",
    ]
    assert "No tests are recorded yet" in recorded_checks.table("b200", tmp_path)


@pytest.mark.parametrize("gpu", recorded.recorded_gpus())
def test_what_is_recorded_has_passed(gpu):
    text = recorded_checks.table(gpu)
    assert "memcheck" in text and "racecheck" in text and "unknown" not in text
    for word in ("failed", "wrong", "no summary", "skipped"):
        assert word not in text
    assert text.count(", 0 errors") == 2
