"""gdn-lab sweep: what it is asked for, the jobs that follow, its page; test_ray_hosts.py is Ray's."""

import errno
import json
import os
import shutil
from types import SimpleNamespace

import pytest

from gdn_lab.cli import index, sweep_command, sweep_jobs, sweep_page
from gdn_lab.cli.main import main
from gdn_lab.cluster import hosts, journal, ray_hosts, scheduler
from gdn_lab.cluster.best_variants import Best
from gdn_lab.cluster.job import FOLDER, PYTHON, Job
from gdn_lab.cluster.request import from_words, read
from gdn_lab.models import MODELS


def plan(study="02", over=(), given=None, **options):
    return sweep_jobs.Plan(from_words(study, list(over), given or {}, options.get("gpus"), 60))


def test_yaml_and_words_ask_for_the_same(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("study: 02\nover: {tp: [1, 2], model: all}\nset: {samples: 20}\nminutes: 30\n")
    words = from_words("02", ["tp=1,2", "model=all"], {"samples": "20"}, None, 30.0)
    assert read(path) == [words] and len(words.points()) == 2 * len(MODELS)


def test_lists_are_values_too():
    assert from_words("02", ["batches=1,2;4,8"], {}, None, 60).points() == [{"batches": "1,2"}, {"batches": "4,8"}]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("study: [", "is not YAML"),
        ("over: {tp: 1}", "expected keys such as"),
        ("study: 02\nevery: 3", "'every' is unknown"),
        ("study: 02\nminutes: soon", "minutes: expected a number above 0"),
        ("study: 02\nover: {tp: all}", "all is of model and dtype alone"),
        ("study: 02\nover: [tp]", "over: expected parameters"),
        ("study: yes", 'study: expected text such as "02"'),
        ("study: 010", "there is no notebook '010'"),
        ("[]", "holds no request"),
    ],
)
def test_yaml_that_cannot_be_is_a_usage_error(tmp_path, capsys, text, reason):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    assert main(["sweep", str(path)]) == 2 and reason in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, reason",
    [
        (["--study", "02", "--over", "tq=1,2"], "has no parameter 'tq' (did you mean 'tp'?)"),
        (["--study", "02", "--over", "tp=1,3"], "tp"),
        (["--study", "02", "--over", "tp"], "expected a parameter and its values"),
        (["--study", "02", "--over", "tp=1", "-p", "tp=2"], "with --over and with -p"),
        (["--study", "nothing"], "there is no notebook 'nothing'"),
        ([], "name what to sweep"),
        (["grid.yaml", "--study", "02"], "leave --study"),
        (["grid.yaml", "--plan", "--gpus", "4", "--minutes", "1"], "leave --gpus and --minutes out"),
        (["grid.yaml", "-p", "tp=8"], "leave -p out"),
        (["--resume", "-p", "tp=8", "--gpus", "4"], "leave -p and --gpus out"),
        (["grid.yaml", "--resume"], "leave grid.yaml out"),
        (["--study", "02", "--gpus", "0"], "--gpus: expected a whole number from 1 up, got 0"),
        (["--study", "02", "--minutes", "nan"], "--minutes: expected a number above 0, got nan"),
        (["--study", "02", "--plan", "--on", "0"], "--on: expected a whole number from 1 up, got 0"),
        (["--study", "02", "--plan", "--on", "-8"], "--on: expected a whole number from 1 up, got -8"),
        (["--study", "02", "--on", "8"], "give --plan too"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_ray_starts(capsys, monkeypatch, words, reason):
    monkeypatch.setattr(ray_hosts, "RayHosts", None)
    assert main(["sweep", *words]) == 2 and reason in capsys.readouterr().err


def test_without_ray_it_says_what_to_do(tmp_path, capsys, monkeypatch):
    def missing():
        raise ray_hosts.RayMissing(ray_hosts.MISSING)

    monkeypatch.setattr(ray_hosts, "import_ray", missing)
    assert main(["sweep", "--study", "02", "--runs", str(tmp_path)]) == 1
    assert "make sweep" in capsys.readouterr().err


def test_a_job_is_a_notebook_with_the_parameters_that_differ_from_its_defaults():
    one, two = plan(over=["tp=1,2"], given={"samples": "5"}).jobs("h100", "c")
    assert one.command == (PYTHON, "-m", "gdn_lab", "run", "02_decode_kernels", "--runs", FOLDER, "-p", "samples=5")
    assert two.command[-4:] == ("-p", "samples=5", "-p", "tp=2") and two.gpus == 1, "one GPU plays one of two"
    assert two.parameters["model"] == "qwen3.5-397b-a17b" and one.id != two.id


def test_a_default_that_is_written_out_is_the_same_job():
    (plain,) = plan().jobs("h100", "c")
    (written,) = plan(given={"tp": "1", "seed": "0"}).jobs("h100", "c")
    assert plain.id == written.id


def test_serving_takes_as_many_gpus_as_it_says_and_needs_no_notebook():
    one, two = plan("09", ["tp=1,2"]).jobs("h100", "c")
    assert (one.gpus, two.gpus) == (1, 2)
    assert two.command[:6] == (PYTHON, "-m", "gdn_lab", "record", "serving", "--fresh")


def test_twice_the_points_are_expected_to_take_twice_as_long():
    one, two = (
        sweep_jobs.expected_seconds("02_decode_kernels", {"batches": batches}, "h100") for batches in ("1,2", "1,2,4,8")
    )
    assert two == pytest.approx(2 * one)
    assert sweep_jobs.expected_seconds("77_mine", {}, "h100") == sweep_jobs.UNKNOWN_S


def test_the_plan_is_printed_and_nothing_runs(capsys):
    assert main(["sweep", "--study", "02", "--over", "tp=1,2", "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "2 jobs on each type of GPU" in printed
    assert "s: gdn-lab run 02_decode_kernels --runs FOLDER -p tp=2\n" in printed, "as one would type it"


ROW = {"status": "ok", "phase": "decode", "backend": "triton", "timer": "cuda_graph_replay", "batch": 4, "tokens": 1}


@pytest.fixture
def swept(tmp_path, monkeypatch, capsys):
    """swept(): run a sweep of two tiny jobs through the command, on this process's own host."""

    def jobs(self, gpu, commit):
        fast = {"variant": "vk", "median_us": 5.0, "share_of_roof": 0.8}
        slow = {"variant": "kv8", "median_us": 10.0, "share_of_roof": 0.4}
        rows = "".join(json.dumps(ROW | each) + "\\n" for each in (fast, slow))
        ok = ("sh", "-c", f"printf '{rows}' > {FOLDER}/rows.jsonl")
        bad = ("sh", "-c", "echo 'it <b>broke</b>'; exit 1")
        return [
            Job("02_decode_kernels", {"tp": tp}, commit, gpu, command=command)
            for tp, command in (("1", ok), ("2", bad))
        ]

    monkeypatch.setattr(sweep_jobs.Plan, "jobs", jobs)
    monkeypatch.setattr(ray_hosts, "RayHosts", lambda root, **options: hosts.ThisHost("h100", ["0", "1"]))
    monkeypatch.setattr(sweep_command, "code_id", lambda: "c0ffee")

    def call(*words):
        status = main(["sweep", *(words or ("--study", "02", "--over", "tp=1,2")), "--runs", str(tmp_path)])
        (folder,) = (path.parent for path in tmp_path.glob("sweeps/*/sweep.json"))
        return status, folder, capsys.readouterr()

    return call


def test_a_sweep_ends_with_a_page_of_what_is_fastest_and_what_failed(swept):
    status, folder, printed = swept()
    assert status == 1 and "2 of 2 done (1 error)" in printed.out and "it is tried once more" in printed.out
    page = (folder / "sweep.html").read_text()
    assert "triton/vk" in page and "50%" in page and "80%" in page and "batch 4" in page
    assert "it &lt;b&gt;broke&lt;/b&gt;" in page and "<b>broke" not in page
    assert "sweep.html" in (folder.parent / "index.html").read_text()
    assert "sweeps/index.html" in index.write_index(folder.parents[1]).read_text()


def test_resume_runs_nothing_that_is_final(swept):
    _, folder, _ = swept()
    before = (folder / "journal.jsonl").read_bytes()
    status, _, printed = swept("--resume")
    assert status == 1 and (folder / "journal.jsonl").read_bytes() == before and "2 of 2 done" in printed.out


def test_resume_refuses_another_commit(swept, monkeypatch):
    swept()
    monkeypatch.setattr(sweep_command, "code_id", lambda: "another")
    status, _, printed = swept("--resume")
    assert status == 2 and "is a sweep of commit c0ffee, here is another" in printed.err


def test_resume_names_what_is_no_sweep(tmp_path, capsys):
    assert main(["sweep", "--resume", str(tmp_path)]) == 2
    assert "is not a sweep's folder" in capsys.readouterr().err
    assert main(["sweep", "--resume", "--runs", str(tmp_path)]) == 2
    assert "there is no sweep in" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"commit": None}, "commit: expected text, got None"),
        ({"command": 7}, "command: expected text, got 7"),
        ({"requests": {}}, "requests: expected a list, got {}"),
        ({"requests": []}, "holds no request"),
        ({"requests": ["02"]}, "expected keys such as"),
        ({"requests": [{"study": "02", "gpus": 0}]}, "gpus: expected a whole number"),
    ],
)
def test_resume_refuses_a_damaged_sweep(tmp_path, capsys, change, reason):
    about = {"requests": [{"study": "02"}], "commit": "c0ffee", "command": "gdn-lab sweep"} | change
    (tmp_path / "sweep.json").write_text(json.dumps(about))
    assert main(["sweep", "--resume", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert reason in error and "sweep.json" in error and error.count("\n") == 1


def test_resume_refuses_json_without_keys(tmp_path, capsys):
    for text in ("{}", "[]", "7"):
        (tmp_path / "sweep.json").write_text(text)
        assert main(["sweep", "--resume", str(tmp_path)]) == 2
        assert "requests: expected a list, got None" in capsys.readouterr().err


def test_a_damaged_sweep_is_listed_as_such_beside_the_others(swept):
    _, folder, _ = swept()
    for name, about in (("20200101T000000Z-sweep", None), ("20200102T000000Z-sweep", "{}")):
        (folder.parent / name).mkdir()
        (folder.parent / name / "sweep.html").touch()
        if about:
            (folder.parent / name / "sweep.json").write_text(about)
    sweep_page.write_pages(folder)
    listed = (folder.parent / "index.html").read_text()
    assert listed.count("damaged: its sweep.json") == 2 and "<code>gdn-lab" in listed


def test_a_loss_has_a_minus_sign():
    cell = sweep_page._cell(1, Best("triton/vk", 5.0, -0.05, 0.8))
    assert ">−5%<" in cell and ">0%<" in sweep_page._cell(1, Best("triton/vk", 5.0, -0.001, 0.8))


def test_parquet_holds_every_row(swept):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (make sweep)")
    _, folder, _ = swept()
    table = parquet.read_table(folder / "rows.parquet").to_pylist()
    assert sorted(row["variant"] for row in table) == ["kv8", "vk"] and table[0]["asked_tp"] == "1"


def test_the_plan_says_how_long_so_many_gpus_would_take(capsys):
    assert main(["sweep", "--study", "09", "--over", "tp=1,2", "--plan", "--on", "1"]) == 0
    assert "On 1 GPUs: about" in (printed := capsys.readouterr().out) and "1 jobs need more GPUs" in printed


def test_a_folder_in_which_another_sweep_runs_is_refused_before_ray_starts(swept, monkeypatch):
    _, folder, _ = swept()
    running = journal.Journal(folder, write=True)
    monkeypatch.setattr(ray_hosts, "RayHosts", None)
    status, _, printed = swept("--resume")
    running.close()
    assert status == 1 and f"another sweep or record runs in {folder}" in printed.err


@pytest.mark.parametrize(
    "jobs, dropped, reason",
    [
        ([{"gpus": 4}], 0, "needs 4 h100 GPUs of one host"),
        ([{"gpus": 2}], 1, "GPU 0 of a was dropped, since 3 jobs in a row failed there"),
        ([{"gpu": "h200"}], 0, "needs 1 h200 GPU of one host"),
        ([{}], 0, "no GPU was free for them"),
    ],
)
def test_why_jobs_are_left_over(jobs, dropped, reason):
    made = scheduler.Scheduler()
    made.join("a", "h100", ["0", "1"])
    for gpu in made.gpus()[:dropped]:
        gpu.failed = ["x", "y", "z"]
    for number, options in enumerate(jobs):
        made.add(Job("02", {"n": str(number)}, "c", **({"gpu": "h100"} | options)))
    assert reason in sweep_command._why_left(SimpleNamespace(scheduler=made))


def test_jobs_are_left_over_when_their_host_has_gone():
    assert sweep_command._why_left(SimpleNamespace(scheduler=scheduler.Scheduler())) == "no host is left"


def damage_journal(folder, job):
    path = folder / "journal.jsonl"
    path.write_text("oops\n" + path.read_text())


@pytest.mark.parametrize(
    "damage, reason",
    [
        (damage_journal, "journal.jsonl: line 1 is damaged: 'oops'"),
        (lambda folder, job: shutil.rmtree(job), "job.json cannot be read: No such file"),
        (lambda folder, job: (job / "job.json").write_text(""), "job.json is damaged: expected a JSON object with"),
        (lambda folder, job: (job / "job.json").write_text("{}"), "job.json is damaged: expected a JSON object with"),
        (lambda folder, job: (job / "rows.jsonl").write_text('{"a": 1}\n{"st'), "rows.jsonl: line 2 is damaged"),
        (lambda folder, job: (job / "rows.jsonl").write_text("7\n"), "rows.jsonl: line 1 is damaged"),
        (lambda folder, job: (job / "rows.jsonl").unlink(), "rows.jsonl cannot be read"),
    ],
)
def test_resume_names_what_is_damaged_before_ray_starts(swept, monkeypatch, damage, reason):
    _, folder, _ = swept()
    damage(folder, next((folder / "jobs").iterdir()))
    monkeypatch.setattr(ray_hosts, "RayHosts", None)
    for _ in range(2):  # the folder is free again
        status, _, printed = swept("--resume")
        assert status == 1 and reason in printed.err and printed.err.count("\n") == 1


def test_resume_names_a_folder_that_cannot_be_written_before_ray_starts(swept, monkeypatch):
    _, folder, _ = swept()
    monkeypatch.setattr(ray_hosts, "RayHosts", None)
    monkeypatch.setattr(journal.tempfile, "NamedTemporaryFile", full(errno.EROFS))
    status, _, printed = swept("--resume")
    assert status == 1 and f"cannot write {folder}/journal.jsonl: Read-only file system" in printed.err


def full(number=errno.ENOSPC):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_full_disk_ends_a_sweep_with_a_sentence(swept, monkeypatch):
    monkeypatch.setattr(journal.Journal, "began", full())
    status, folder, printed = swept()
    assert status == 1 and printed.err == (
        f"gdn-lab: the sweep stopped: No space left on device; its rows are kept; gdn-lab sweep --resume {folder} "
        "goes on\n"
    )


def test_pages_for_which_there_is_no_room_are_named(swept, monkeypatch):
    monkeypatch.setattr(sweep_page, "_write", full())
    status, folder, printed = swept()
    assert status == 1 and f"the pages of {folder} were not written: No space left on device" in printed.err
