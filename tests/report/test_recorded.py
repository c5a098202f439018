"""data/measured: reading it, that every recorded run is whole, and what it says of the workbook's kernels.

Everything loops over the recorded GPUs and the studies: a newly recorded run is tested without a line here.
"""

import hashlib
import json
import re

import pytest

from gdn_lab.cli.run import ROOT
from gdn_lab.report import recorded
from gdn_lab.report.timed import Timed
from gdn_lab.studies import studies
from gdn_lab.studies.accuracy.accuracy_cases import FP8, NO_DT_BIAS, UNGUARDED, baseline_of
from gdn_lab.studies.accuracy.accuracy_rows import ALL, AccuracyRows
from gdn_lab.studies.accuracy.answering import PATHS
from gdn_lab.studies.drift import analysis as drift
from gdn_lab.trained.checkpoint import CHECKPOINT

RUNS = recorded.recorded_runs()
NOTEBOOKS = {study.notebook: study for study in studies()}


def gpus(notebook):
    """The GPUs that a notebook's run is recorded of."""
    return [gpu for gpu, name in RUNS if name == notebook]


# Runs that were stopped by a time limit; the rows that they have are whole.
STOPPED = {
    ("h100", "06_prefill_tp1"): "running",  # all workloads at tp 1, one at tp 8
    ("h100", "11_accuracy"): "interrupted",  # all cases but three: fla's prefill
}


def test_measured_reads_a_recorded_run(tmp_path):
    folder = tmp_path / "measured" / "h100" / "02_decode_kernels"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"notebook": "02_decode_kernels"}))
    (folder / "rows.jsonl").write_text('{"status": "ok"}\n')
    run, rows = recorded.measured("h100", "02_decode_kernels", tmp_path)
    assert run["notebook"] == "02_decode_kernels" and rows == [{"status": "ok"}]
    with pytest.raises(FileNotFoundError, match="no recorded run of 02_decode_kernels on 'b200'; .*: h100/02_decode"):
        recorded.measured("b200", "02_decode_kernels", tmp_path)


def test_measured_says_when_nothing_is_recorded(tmp_path):
    with pytest.raises(FileNotFoundError, match="none yet"):
        recorded.measured("h100", "02_decode_kernels", tmp_path)


def test_a_gpu_that_is_nearly_right_is_hinted_at(tmp_path):
    folder = tmp_path / "measured" / "h100" / "05_verify"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"on 'h10' \(did you mean 'h100'\?\); recorded are: h100/05_verify"):
        recorded.measured("h10", "05_verify", tmp_path)
    assert recorded.recorded_gpus(tmp_path) == ["h100"]


@pytest.mark.parametrize(
    ("device", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 3090", None),
        ("", None),
    ],
)
def test_a_device_finds_its_record_by_the_name_that_records_have(tmp_path, device, gpu):
    for name in ("h100", "a100", "rtx-4090"):
        folder = tmp_path / "measured" / name / "02_decode_kernels"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
    assert recorded.recorded_gpu(device, tmp_path) == gpu


def test_something_is_recorded_of_every_study_with_a_section():
    assert all(gpus(study.notebook) for study in studies() if study.section)


@pytest.mark.parametrize(("gpu", "name"), RUNS)
def test_a_recorded_run_is_whole(gpu, name):
    """Measured on the GPU its folder names, by committed code, to its end; nothing in it is wrong."""
    run, rows = recorded.measured(gpu, name)
    assert run["status"] == STOPPED.get((gpu, name), "complete") and gpu in run["environment"]["gpu_name"].lower()
    assert run["environment"]["git_commit"] and not run["environment"]["git_dirty"]
    assert rows and not [row.get("way") for row in rows if row.get("status") == "wrong"], name
    assert run["notebook"] in NOTEBOOKS, "a run of a study"


@pytest.mark.parametrize(("gpu", "name"), [run for run in RUNS if run[1] in NOTEBOOKS])
def test_a_recorded_run_makes_its_section(gpu, name):
    """Every figure has a title, every sentence ends as one, and none of them has a hole."""
    study = NOTEBOOKS[name]
    if study.section is None:
        return
    section = study.section(*recorded.measured(gpu, name))
    assert section.conditions and section.sentences and section.figures
    assert all(sentence.rstrip("*").endswith((".", "…")) for sentence in section.sentences)
    text = " ".join([section.conditions, section.table, *section.sentences])
    assert not re.search(r"\b(nan|None|inf)\b", text)
    assert all(figure.get_suptitle() for figure in section.figures.values())


@pytest.mark.parametrize("gpu, more", [("h100", ()), ("h200", ("fla", "server"))])
def test_recorded_logs_of_compute_sanitizer(gpu, more):
    """Both tools over every group of kernels: results right, no error; warnings in kernels of FlashInfer alone."""
    logs = {path.stem: path.read_text() for path in (recorded.DATA / "measured" / gpu / "sanitize").glob("*.log")}
    groups = ("triton", "cutedsl", "flashinfer", "step", *more)
    assert set(logs) == {f"{tool}-{group}" for tool in ("memcheck", "racecheck") for group in groups}
    for name, log in logs.items():
        lines = log.splitlines()
        assert re.search(r"[ (]0 errors", lines[-1]), name
        assert "with changes" not in lines[1] and gpu.upper() in lines[1], name
        assert log.count(": right, largest error") >= 2 and not re.search("WRONG|FAILED", log), name
        assert all("flashinfer" in line for line in lines if "Warning: Race" in line), name


def test_recorded_profilers_agree():
    """Nsight Systems and Kineto within 3% on ranges above 5 µs; the trace that `gdn-lab record` keeps is of one."""
    _, rows = recorded.measured("h100", "04_nsight_systems")
    compared = [row for row in rows if "profilers" in row and max(row["median_us"]) > 5]
    assert {"gdn", "experts"} <= {row["part"] for row in compared}
    assert max(abs(row["difference_percent"]) for row in compared) < 3


@pytest.mark.parametrize("gpu", gpus("03_decode_step"))
def test_recorded_parts_add_up(gpu):
    """A step's parts and gaps are within 3% of the whole, and the traced step within 3% of the untraced one."""
    _, rows = recorded.measured(gpu, "03_decode_step")
    rows = [row for row in rows if row.get("sweep") == "step" and row["status"] == "ok" and row["mode"] == "graph"]
    for name in {row["configuration"] for row in rows}:
        us = {row["part"]: row["median_us"] for row in rows if row["configuration"] == name}
        whole, traced = us.pop("step"), us.pop("traced step")
        assert abs(sum(us.values()) / traced - 1) < 0.03 and abs(traced / whole - 1) < 0.03, name


# --- how fast the workbook's kernels were, HK 16, HV 64: what the README says of them rests on this


def timed(gpu, notebook, **options):
    run, rows = recorded.measured(gpu, notebook)
    return Timed([row for row in rows if row.get("num_v_heads") == 64], run, **options)


@pytest.mark.parametrize("gpu", gpus("02_decode_kernels"))
def test_recorded_decode_is_ahead_of_flashinfer(gpu):
    decode = timed(gpu, "02_decode_kernels", phase="decode")
    us, shares = decode.times(), decode.values(lambda row: row["share_of_roof"])
    assert decode.batches == [1 << n for n in range(10)]
    for batch in decode.batches:
        theirs = us["flashinfer/vk"][batch]
        assert us["cutedsl/vk"][batch] <= (0.97 if batch >= 32 else 1.0) * theirs, batch
        assert us["triton/vk"][batch] <= theirs, batch
        assert shares["cutedsl/vk"][batch] >= 0.94 or batch < 256, batch


@pytest.mark.parametrize("gpu", gpus("05_verify"))
def test_recorded_verify_reads_the_state_once(gpu):
    rows = timed(gpu, "05_verify", phase="verify", indexing=None).rows
    us = {
        (f"{row['backend']}/{row['variant']}", row["mode"], row["tokens"]): row["median_us"]
        for row in rows
        if row["batch"] == 64
    }
    for (name, mode, tokens), theirs in us.items():
        if name == "flashinfer/vk":
            most = 1.02 if (gpu, mode, tokens) == ("h200", "intermediate", 16) else 1.0  # bound by the writes
            assert us["triton/vk", mode, tokens] < most * theirs, (mode, tokens)
    output = {tokens: us["triton/vk", "output", tokens] for tokens in (4, 8)}
    assert output[4] <= 0.9 * us["flashinfer/vk", "output", 4] and output[8] <= 1.4 * output[4]


@pytest.mark.parametrize("gpu", gpus("06_prefill"))
def test_recorded_prefill_is_ahead_of_fla_and_of_the_detour(gpu):
    rows = timed(gpu, "06_prefill", phase="prefill", indexing=None).rows
    us = {
        (f"{row['backend']}/{row['variant']}", row["batch"], row["length"], row["indexing"]): row["median_us"]
        for row in rows
    }
    for sequences, length in ((8, 1024), (1, 8192)):
        ours, theirs = (us[name, sequences, length, "in_place"] for name in ("triton/vk", "fla/vk"))
        assert theirs >= 1.2 * ours, (sequences, length)
    detours = [key for key in us if key[-1] == "detour"]
    assert len(detours) == 6
    for name, *work, _ in detours:
        assert us["triton/vk", *work, "in_place"] < us[name, *work, "detour"], work


@pytest.mark.parametrize("gpu", gpus("10_drift"))
def test_recorded_drift_allows_what_is_claimed_of_our_kernels(gpu):
    """Exact decay in cutedsl; stochastic rounding at most 5% slower than to nearest; an error for every precision.

    Its arithmetic takes that long on an H200, where rounding to nearest is limited by memory alone.
    """
    _, rows = recorded.measured(gpu, "10_drift")
    for where in drift.regimes(rows):
        found = {name: drift.final(row) for name, row in drift.backends(rows, where).items()}
        assert found["cutedsl/vk"] <= 1.5 * found["triton/vk"], where
        assert len(drift.precisions(rows, where)) == len(drift.PRECISIONS), where
    us = {row["way"]: row["median_us"] for row in drift.timed(rows)}
    for dtype in ("bfloat16", "float16"):
        assert us[f"triton/vk {dtype} stochastic"] <= 1.05 * us[f"triton/vk {dtype}"], dtype


@pytest.mark.parametrize("gpu", gpus("11_accuracy"))
def test_recorded_answers_of_an_fp8_state(gpu):
    """On every path and at every length; through decode() at the least, not below float32's interval."""
    answered = AccuracyRows(recorded.measured(gpu, "11_accuracy")[1])
    fp8 = [case for case in answered.cases if case.dtype == FP8]
    assert {(case.path, case.tokens) for case in fp8} == {(path, n) for path in PATHS for n in answered.tokens}
    for case in fp8:
        if case.path == "decode" and case.tokens == answered.tokens[0]:
            assert answered.interval(case).share >= answered.interval(baseline_of(case, answered.baseline)).low, case


@pytest.mark.parametrize("gpu", gpus("11_accuracy"))
def test_recorded_answers_are_of_the_checkpoint_and_allow_their_claims(gpu):
    """Of the checkpoint in data/trained; float32 answers 95%; what must hurt does, by McNemar's test."""
    run, rows = recorded.measured(gpu, "11_accuracy")
    answered = AccuracyRows(rows, run)
    digest = hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    assert {row["checkpoint_sha256"] for row in answered.answered} == {digest}
    assert all(len(kinds[ALL]) >= 1000 for kinds in answered.right.values())
    first = answered.cases[0]
    for path in ("prefill", "decode", "verify"):
        assert answered.interval(first._replace(path=path)).low > 0.95, path
    adjusted = answered.adjusted()
    for shortcut in (UNGUARDED, NO_DT_BIAS):
        (case,) = (case for case in adjusted if case.shortcut == shortcut)
        assert adjusted[case] < 0.001 and answered.compared(case).change.high < 0, shortcut


@pytest.mark.parametrize("study", [each for each in studies() if each.section], ids=lambda study: study.name)
def test_the_page_of_a_gpu_shows_what_is_recorded_of_it(study):
    """The run of each notebook, and every server."""
    for gpu, folder in RUNS:
        what = folder.removeprefix(study.notebook)
        if folder == study.notebook or (study.name == "serving" and what != folder):
            marker = f"<!-- measured:{gpu}-{study.section_name}{what.replace('_', '-', 1)} -->"
            assert marker in (ROOT / "docs" / f"results_{gpu}.md").read_text(), folder
