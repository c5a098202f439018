"""The verdict: words, JSON, page; what is timed and what is not; what limits a kernel; Nsight Compute's CSV."""

import hashlib
import json
import subprocess

import bs4
import pytest
import torch
from hostile_names import NAMES
from synthetic import RUN, sweep_rows

from gdn_lab import GDNShape
from gdn_lab.bench.results import Run
from gdn_lab.cli import judge_command, verdict_page
from gdn_lab.cli.errors import UsageError
from gdn_lab.cli.main import parser
from gdn_lab.cli.run_folders import run_folders
from gdn_lab.judge.judging import Finding
from gdn_lab.names import readable
from gdn_lab.report.timed import Timed
from gdn_lab.studies.decode_kernels import yours
from gdn_lab.verdict import launched, nsight_compute, verdict_run, what_limits
from gdn_lab.verdict.verdict import CORRECT, CPU, ERROR, INCORRECT, NOT_TIMED, REFUSED, Verdict, headline, text
from gdn_lab.verdict.verdict_run import Checked

MINE = "mine/vk"
RIGHT = [Finding(MINE, "reference", "pass", "3 calls"), Finding(MINE, "streams", "refused", "needs a GPU")]
WRONG = [RIGHT[0], Finding(MINE, "padding", "fail", "slot 7 changed, which no row names")]
REFUSES = [Finding(MINE, "device", "refused", "needs an NVIDIA GPU")]
SETTINGS = verdict_run.Settings(batches=(8, 128), dtype=torch.bfloat16)


def rows(factor=0.5, **changes):
    """Timed rows of the synthetic kernels, and of mine at `factor` of triton/vk's times."""
    found = sweep_rows(batches=(8, 128), indexings=("in_place",))
    for row in list(found):
        if row["variant"] == "vk" and row["backend"] == "triton":
            times = {name: row[name] * factor for name in ("median_us", "p20_us", "p80_us")}
            found.append(row | times | {"backend": "mine", "kernels": 1} | changes)
    return found


@pytest.fixture
def a_run(tmp_path):
    with Run.create("judge", {}, root=tmp_path) as run:
        yield run


@pytest.fixture
def on_gpu(monkeypatch):
    """on_gpu(rows): a verdict's sweep gives these rows; there is a GPU, without CUPTI and Nsight Compute."""

    def give(found):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(verdict_run, "decode_sweep", lambda *given, **options: found)
        monkeypatch.setattr(verdict_run, "one_call", lambda *given: None)
        kernel = launched.Launched("my_kernel", (8, 64, 1), (128, 1, 1), 255, 1024, 0.25)
        monkeypatch.setattr(verdict_run, "launched", lambda call: [kernel])
        monkeypatch.setattr(nsight_compute, "measure", lambda *given: ([], "ncu is not installed."))

    return give


# ---- words


@pytest.mark.parametrize(
    ("checks", "word", "sentence"),
    [
        (RIGHT, CORRECT, "mine/vk is correct."),
        (WRONG, INCORRECT, "mine/vk is incorrect: 1 of 2 checks fail, padding."),
        (REFUSES, REFUSED, "mine/vk is refused: needs an NVIDIA GPU."),
    ],
)
def test_on_a_cpu_nothing_is_ranked(a_run, checks, word, sentence):
    made, timed = verdict_run.make(Checked(MINE, "", checks), SETTINGS, a_run)
    assert (made.correctness, timed, made.speed) == (word, None, [])
    assert headline(made) == sentence and CPU in text(made)


def test_the_file_that_was_judged_is_named_by_its_hash(a_run, tmp_path):
    (tmp_path / "mine.py").write_text("x = 1")
    made, _ = verdict_run.make(Checked(MINE, str(tmp_path / "mine.py"), RIGHT), SETTINGS, a_run)
    assert made.sha256 == hashlib.sha256(b"x = 1").hexdigest()
    assert made.sha256[:16] in verdict_page.html(made, a_run.info)


def test_a_process_that_died_is_an_error(a_run):
    died = Checked(MINE, "", RIGHT, "the process was ended by SIGSEGV in the check padding")
    made, _ = verdict_run.make(died, SETTINGS, a_run)
    assert made.correctness == ERROR
    assert headline(made) == "mine/vk: error: the process was ended by SIGSEGV in the check padding."


def test_a_wrong_kernel_is_not_timed_on_a_gpu(a_run, on_gpu):
    on_gpu(None)
    made, timed = verdict_run.make(Checked(MINE, "", WRONG), SETTINGS, a_run)
    assert timed is None and made.notes == [NOT_TIMED]


def test_a_right_one_is_compared_and_looked_into(a_run, on_gpu):
    on_gpu(rows())
    made, timed = verdict_run.make(Checked(MINE, "", RIGHT), SETTINGS, a_run)
    assert made.correctness == CORRECT
    assert headline(made) == "mine/vk is correct; faster than the best of the others at B = 8 and 128 (2.00×)."
    assert {each.word for each in made.speed} == {yours.FASTER} and len(made.speed) == 6
    assert any("25% of an SM's warps, with 255 registers" in each for each in made.sentences) == (
        made.limits[-1].share < what_limits.BANDWIDTH_BOUND
    )
    assert made.notes[0].startswith("Not checked: ") and made.notes[1:] == ["ncu is not installed."]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"status": "error", "reason": "faster than the memory allows"}, "faster than the memory allows at B = 8."),
        ({"status": "wrong", "wrong_on": ["after timing"]}, "wrong when it was timed, at B = 8, on after timing."),
        ({"status": "refused", "reason": "takes a state of float32"}, "takes a state of float32 at B = 8."),
    ],
)
def test_what_cannot_be_timed_is_an_error(a_run, on_gpu, changes, why):
    on_gpu(rows(**changes))
    made, _ = verdict_run.make(Checked(MINE, "", RIGHT), SETTINGS, a_run)
    assert made.correctness == ERROR and headline(made) == f"mine/vk: error: {why}" and not made.speed


def test_the_sweep_takes_what_a_verdict_asks_for(a_run):
    """As on a GPU, but with a CPU's clock, whose rows have no limits."""
    settings = verdict_run.Settings("torch/kv", ("torch/vk",), GDNShape(1, 2), (2,), samples=1)
    made = Verdict("torch/vk", "", "CPU", CORRECT)
    timed = verdict_run._timed(made, settings, a_run, device="cpu")
    assert {name for name in timed.names} == {"torch/vk", "torch/kv"} and not made.why
    assert [each.other for each in made.speed] == ["torch/kv"] and made.limits == []
    judge_command.write(made, timed, settings, a_run)
    assert (a_run.folder / "speed_up.svg").is_file() and a_run.rows >= 2
    assert any(note.startswith("Registers and occupancy are not known: cupti_kernel needs") for note in made.notes)


def test_it_is_compared_with_ours_and_peers_that_take_the_pool():
    names = verdict_run.opponents(SETTINGS)
    assert names[0] == "triton/kv32" and {"triton/vk", "flashinfer/vk"} < set(names)
    assert not {"torch/vk", "fla/vk", "triton/kv8"} & set(names)
    assert verdict_run.opponents(verdict_run.Settings(baseline="a/b", against=("c/d", "a/b"))) == ["a/b", "c/d"]


# ---- page and JSON


def test_json_and_page_hold_the_same(a_run, on_gpu):
    on_gpu(rows())
    made, timed = verdict_run.make(Checked(MINE, "", RIGHT), SETTINGS, a_run)
    judge_command.write(made, timed, SETTINGS, a_run)
    found = json.loads((a_run.folder / "verdict.json").read_text())
    assert found["correctness"] == CORRECT and found["headline"] == headline(made)
    assert [check["status"] for check in found["checks"]] == ["pass", "refused"]
    assert {"batch", "opponent", "other", "speed_up", "low", "high", "word"} <= set(found["speed"][0])
    assert {"share", "kernel_us", "kernels"} <= set(found["limits"][0]) and found["launched"][0]["registers"] == 255
    made.file = "/somewhere/mine.py"
    page = verdict_page.html(made, a_run.info) + (a_run.folder / "verdict.html").read_text()
    for part in (
        "faster than the best of the others",
        "needs a GPU",
        "my_kernel",
        "2.000×",
        "data:image/svg+xml;base64,",
    ):
        assert part in page
    assert "/somewhere" not in page
    (listed,) = run_folders(a_run.folder.parent)
    assert listed.page == a_run.folder / "verdict.html" and listed.answer["sentences"][0] == headline(made)


TAGS = "html head meta title style body main h1 h2 h3 p span section ul li div table thead tbody tr th td code".split()


def test_no_name_has_an_effect_on_the_page(a_run):
    checks = [Finding(MINE, name, "pass", name) for name in NAMES]
    made = Verdict(NAMES[0], f"{NAMES[1]}.py", NAMES[2], ERROR, NAMES[3], checks=checks, notes=list(NAMES))
    made.launched = [launched.Launched(name, (1,), (32,), 10, 0, None) for name in NAMES]
    made.nsight_compute = [{"kernel": name, name: name} for name in NAMES]
    page = bs4.BeautifulSoup(verdict_page.html(made, a_run.info), "html.parser")
    tags = list(page.find_all(True))
    assert {tag.name for tag in tags} <= set(TAGS)
    assert {name for tag in tags for name in tag.attrs} <= {
        "class",
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "aria-label",
    }
    assert {check.sentence for check in checks} - {cell.get_text() for cell in page.find_all("td")} <= {
        name for name in NAMES if name != readable(name) or "`" in name
    }


# ---- what limits it


def test_limits_are_of_the_rows():
    found = what_limits.limits(Timed(rows(), RUN, phase="decode"), MINE)
    assert [each.batch for each in found] == [8, 128]
    for each in found:
        assert each.kernel_us == pytest.approx(each.us, rel=0.2) and each.kernels == 1 and each.floor_us > 0
    said = what_limits.sentences(found, [])
    assert said[-1].startswith("At B = 8 a call takes ") and said[-1].endswith(", 1 kernel a call.")


@pytest.mark.parametrize(
    ("share", "part"), [(0.95, "memory bandwidth limits it"), (0.6, "are more than its bytes take")]
)
def test_a_kernel_near_the_measured_bandwidth_is_limited_by_it(share, part):
    one = what_limits.Limits(128, 200.0, 200.0 * share, 199.0, 1, 3000 * share, share)
    few = launched.Launched("k", (1,), (32,), 255, 0, 0.1)
    said = what_limits.sentences([one], [few, few._replace(occupancy=None), few._replace(occupancy=0.9)])
    assert part in said[0] and len(said) == (1 if share > 0.9 else 2)


def test_kernels_are_read_from_a_trace_without_the_markers():
    args = {"grid": [4, 1, 1], "block": [128, 1, 1], "registers per thread": 40, "shared memory": 512}
    events = [
        {"cat": "kernel", "name": "second", "ts": 3, "args": args},
        {"cat": "kernel", "name": "first", "ts": 2, "args": args | {"est. achieved occupancy %": 50}},
        {"cat": "kernel", "name": "at::cuda::spin_kernel", "ts": 1, "args": args},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 1, "args": {}},
    ]
    first, second = launched.kernels_of({"traceEvents": events})
    assert first == launched.Launched("first", (4, 1, 1), (128, 1, 1), 40, 512, 0.5)
    assert (second.name, second.occupancy) == ("second", None)


# ---- Nsight Compute

CSV = """==PROF== Connected to process 1 (/usr/bin/python3)
==PROF== Profiling "decode_kernel" - 0: 0%....50%....100% - 1 pass
"ID","Process ID","Process Name","Host Name","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","1","python3","127.0.0.1","decode_kernel","gpu__time_duration.sum","us","41.5"
"0","1","python3","127.0.0.1","decode_kernel","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","88.1"
"0","1","python3","127.0.0.1","decode_kernel","something__else.sum","","1"
"1","1","python3","127.0.0.1","another","launch__registers_per_thread","register/thread","40"
"""


def test_the_csv_of_ncu_is_read():
    first, second = nsight_compute.kernels(CSV)
    assert first == {"kernel": "decode_kernel", "duration": "41.5 us", "memory throughput, % of peak": "88.1"}
    assert second == {"kernel": "another", "registers a thread": "40 register/thread"}


def measured(monkeypatch, **answer):
    monkeypatch.setattr(nsight_compute.shutil, "which", lambda name: "/usr/bin/ncu")
    calls = []

    def run(command, **options):
        calls.append((command, options["env"]["GDN_LAB_KERNELS"]))
        return subprocess.CompletedProcess(command, **({"returncode": 0, "stdout": "", "stderr": ""} | answer))

    monkeypatch.setattr(nsight_compute.subprocess, "run", run)
    setting = {"k-heads": 2, "v-heads": 4, "batch": 8, "dtype": "bfloat16"}
    return nsight_compute.measure(["/a.py"], MINE, setting), calls


def test_ncu_makes_one_call_of_the_file(monkeypatch):
    (found, note), [(command, files)] = measured(monkeypatch, stdout=CSV)
    assert len(found) == 2 and note == "" and files == "/a.py"
    assert command[0] == "/usr/bin/ncu" and command[command.index("-m") + 1] == "gdn_lab.verdict.nsight_compute"
    assert command[-8:] == ["--k-heads", "2", "--v-heads", "4", "--batch", "8", "--dtype", "bfloat16"]


def test_why_ncu_measured_nothing_is_said(monkeypatch):
    refused = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters"
    (found, note), _ = measured(monkeypatch, stdout=f"{refused}\n", returncode=1)
    assert found == [] and note.startswith("Nsight Compute measured nothing: ERR_NVGPUCTRPERM")
    (_, note), _ = measured(monkeypatch, returncode=9)
    assert note == "Nsight Compute measured nothing: it ended with status 9."
    monkeypatch.setattr(nsight_compute.shutil, "which", lambda name: None)
    assert "is not installed" in nsight_compute.measure([], MINE, {})[1]


# ---- what is asked for


def settings(*words):
    arguments = parser("judge", judge_command).parse_args(["judge", "triton/vk", *words])
    return judge_command.settings_of(arguments)


def test_settings_are_those_of_the_words():
    (found,) = settings()
    assert (found.shape, found.batches, found.dtype) == (GDNShape(16, 64), verdict_run.BATCHES, None)
    words = "--tp 8 --batches 4,2 --dtype float32 --against triton,flashinfer/vk --baseline triton/vk --samples 5"
    (found,) = settings(*words.split())
    assert (found.shape, found.batches, found.dtype) == (GDNShape(2, 8), (2, 4), torch.float32)
    assert {"triton/vk", "flashinfer/vk"} < set(found.against) and found.baseline == "triton/vk" and found.samples == 5


def test_a_workload_list_gives_heads_and_batches(tmp_path):
    found = settings("--workloads", "flashinfer-bench")
    assert [each.shape for each in found] == [GDNShape(16, 32), GDNShape(8, 16), GDNShape(4, 8)]
    assert {each.batches for each in found} == {verdict_run.BATCHES} and {each.model for each in found} == {None}
    path = tmp_path / "w.jsonl"
    entry = {"definition": "gdn_decode_qk2_v4_d128_k_last", "workload": {"axes": {"batch_size": 48}}}
    path.write_text(json.dumps(entry))
    (found,) = settings("--workloads", str(path))
    assert (found.shape, found.batches) == (GDNShape(2, 4), (48,))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batches", "0"], "batches: expected auto or whole numbers"),
        (["--against", "nothing"], "against: 'nothing' is unknown"),
        (["--baseline", "nothing"], "baseline: 'nothing' is unknown"),
        (["--tp", "3"], "tp"),
        (["--workloads", "nothing"], "workloads: expected flashinfer-bench or a JSONL file"),
    ],
)
def test_what_cannot_be_asked_is_said(words, sentence):
    with pytest.raises(UsageError, match=sentence):
        settings(*words)


def test_a_list_without_decode_is_refused(tmp_path):
    entry = {"definition": "gdn_mtp_qk2_v4_d128_k_last", "workload": {"axes": {"batch_size": 4, "seq_len": 3}}}
    (tmp_path / "w.jsonl").write_text(json.dumps(entry))
    with pytest.raises(UsageError, match="none of decode"):
        settings("--workloads", str(tmp_path / "w.jsonl"))
