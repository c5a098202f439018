"""The driver with one host and no Ray: every job's rows are gathered once, whatever is killed when."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_jobs import TYPE, toy

from gdn_lab.bench.results import OutputFolderError
from gdn_lab.cluster.agent import Agent
from gdn_lab.cluster.driver import Driver
from gdn_lab.cluster.gather import Gathered
from gdn_lab.cluster.hosts import ThisHost
from gdn_lab.cluster.job_process import Task
from gdn_lab.cluster.journal import Journal

HERE = Path(__file__).parent


def drive(folder: Path, jobs, gpus=4, **options) -> Driver:
    """Run jobs on made-up GPUs of this host."""
    probe = options.pop("probe", lambda gpu: None)
    host = ThisHost(TYPE, [str(n) for n in range(gpus)], probe=probe)
    driver = Driver(folder, host, lambda kind: jobs, say=lambda line: None, **({"stuck_s": 1} | options))
    driver.run()
    return driver


def rows(folder: Path) -> list[tuple[int, int]]:
    """(number, row) of every job's final rows."""
    found = [json.loads(line) for path in folder.glob("jobs/*/rows.jsonl") for line in path.open()]
    return sorted((row["number"], row["row"]) for row in found)


def expected(jobs, each: int = 2) -> list[tuple[int, int]]:
    return sorted((int(job.parameters["number"]), row) for job in jobs for row in range(each))


def test_rows_of_all_jobs_are_gathered(tmp_path):
    jobs = [toy(n) for n in range(12)]
    driver = drive(tmp_path, jobs)
    assert rows(tmp_path) == expected(jobs)
    assert set(driver.done.values()) == {"ok"} and driver.scheduler.left == 0
    assert all((tmp_path / "jobs" / job.id / "log.txt").is_file() for job in jobs)


def test_files_of_a_run_without_rows_are_kept(tmp_path):
    job = toy(1, rows=0, script="mkdir {folder}/run; echo '{}' > {folder}/run/run.json; echo x > {folder}/run/a.ipynb")
    driver = drive(tmp_path, [job])
    assert driver.done == {job.id: "ok"} and (tmp_path / "jobs" / job.id / "a.ipynb").is_file()


def test_the_page_of_a_notebook_that_makes_no_run_is_kept(tmp_path):
    job = toy(1, rows=0, script="mkdir {folder}/a {folder}/b; ln -s a {folder}/latest; echo x > {folder}/a/my.ipynb")
    driver = drive(tmp_path, [job])
    assert driver.done == {job.id: "ok"} and (tmp_path / "jobs" / job.id / "my.ipynb").is_file()


def test_files_of_an_attempt_that_was_not_the_last_are_removed(tmp_path):
    again = f"[ -e {tmp_path}/once ] || {{ touch {tmp_path}/once; echo x > {{folder}}/failed.html; exit 1; }}"
    job = toy(1, script=again)
    driver = drive(tmp_path, [job])
    kept = sorted(path.name for path in (tmp_path / "jobs" / job.id).iterdir())
    assert driver.done == {job.id: "ok"} and kept == ["job.json", "log.txt", "rows.jsonl"]


def test_files_of_an_earlier_attempt_are_removed_when_one_begins(tmp_path):
    job, gathered = toy(1), Gathered(tmp_path)
    gathered.begin(job, 1)
    gathered.end(job.id, 1, {"failed.html": b"x"}, final=False)
    gathered.rows(job.id, 1, b"{}\n")
    gathered.begin(job, 2)
    assert sorted(path.name for path in (tmp_path / "jobs" / job.id).iterdir()) == ["attempt-1.jsonl", "job.json"]


def test_rows_arrive_while_a_job_runs(tmp_path):
    job, seen = toy(1, seconds=1.5), []

    def look(driver):
        attempts = list(tmp_path.glob("jobs/*/attempt-1.jsonl"))
        seen.append(sum(path.read_bytes().count(b"\n") for path in attempts))

    drive(tmp_path, [job], progress=look)
    assert 1 in seen


def test_what_is_final_is_not_run_again(tmp_path):
    jobs = [toy(n) for n in range(4)]
    drive(tmp_path, jobs[:2])
    drive(tmp_path, jobs)
    began = [line["job"] for line in Journal(tmp_path).lines() if line["event"] == "began"]
    assert sorted(began) == sorted(job.id for job in jobs)


@pytest.mark.parametrize(
    "script, limit_s, status, reason, attempts",
    [
        ("echo gdn-lab: no such model; exit 2", 60, "refused", "no such model", 1),
        ("echo it broke; exit 1", 60, "error", "it broke", 2),
        ("sleep 60", 0.3, "timeout", "it took longer than the 0 s", 2),
        ('echo \'{"status": "wrong", "number": 1, "row": 9}\' >> {folder}/rows.jsonl', 60, "wrong", "reference", 1),
        ("echo oops >> {folder}/rows.jsonl", 60, "error", "is no JSON object: 'oops'", 2),
    ],
)
def test_how_a_job_ends(tmp_path, script, limit_s, status, reason, attempts):
    job = toy(1, script=script, limit_s=limit_s)
    driver = drive(tmp_path, [job], gpus=2)
    final = driver.journal.final[job.id]
    assert final["status"] == status == driver.done[job.id] and reason in final["reason"]
    began = [line for line in Journal(tmp_path).lines() if line["event"] == "began"]
    assert len(began) == attempts and len({line["gpus"][0] for line in began}) == attempts


def test_a_process_that_is_killed_is_run_again(tmp_path):
    mark = tmp_path / "killed-once"
    job = toy(1, script=f"[ -e {mark} ] || {{ touch {mark}; kill -9 $$; }}")
    driver = drive(tmp_path, [job])
    assert driver.done == {job.id: "ok"} and rows(tmp_path) == expected([job])


def test_a_busy_gpu_is_left_alone_and_the_reason_is_shown(tmp_path):
    lines, jobs = [], [toy(n) for n in range(3)]
    host = ThisHost(TYPE, ["0", "1"], probe=lambda gpu: "GPU 0 is in use" if gpu == "0" else None)
    driver = Driver(tmp_path, host, lambda kind: jobs, say=lines.append)
    driver.run()
    assert set(driver.done.values()) == {"ok"} and lines == [
        "this machine: GPU 0 is in use; the GPU is asked again later."
    ]
    assert {line["gpus"][0] for line in driver.journal.lines() if line["event"] == "ended"} == {"1"}


def test_a_job_wider_than_any_host_is_left_over(tmp_path):
    driver = drive(tmp_path, [toy(1, gpus=8), toy(2)], gpus=4)
    assert driver.unfinished() == [toy(1, gpus=8)] and driver.done == {toy(2).id: "ok"}


def test_a_driver_ends_at_once_when_nothing_can_begin_any_more(tmp_path):
    began = time.monotonic()
    driver = drive(tmp_path, [toy(1, gpus=8)], stuck_s=60)
    assert time.monotonic() - began < 20 and driver.unfinished() == [toy(1, gpus=8)]


def test_bad_points_do_not_end_a_sweep_on_one_gpu(tmp_path):
    jobs = [toy(n, script="exit 1") for n in range(4)] + [toy(9)]
    driver = drive(tmp_path, jobs, gpus=1)
    assert sorted(driver.done.values()) == ["error"] * 4 + ["ok"]


def test_a_torn_line_of_the_journal_is_left_out(tmp_path):
    job = toy(1)
    drive(tmp_path, [job])
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    torn = whole + b'{"job": "half'
    path.write_bytes(torn)
    assert list(Journal(tmp_path).final) == [job.id] and path.read_bytes() == torn, "a reader changes nothing"
    journal = Journal(tmp_path, write=True)
    assert list(journal.final) == [job.id] and path.read_bytes() == whole
    journal.close()


def test_a_folder_has_one_driver_at_a_time(tmp_path):
    job, lines = toy(1, seconds=0.3), []

    def second(driver):
        torn = b'{"job": "half'
        with open(tmp_path / "journal.jsonl", "ab") as file:
            file.write(torn)
        with pytest.raises(OutputFolderError, match=f"another sweep or record runs in {tmp_path}"):
            drive(tmp_path, [job])
        assert (tmp_path / "journal.jsonl").read_bytes().endswith(torn), "nothing is cut off before the lock is held"
        os.truncate(tmp_path / "journal.jsonl", (tmp_path / "journal.jsonl").stat().st_size - len(torn))
        lines.extend(Journal(tmp_path).lines())

    drive(tmp_path, [job], progress=second)
    assert {line["event"] for line in lines} == {"began", "ended"}, "reading goes on meanwhile"
    drive(tmp_path, [job])


def test_a_driver_that_fails_leaves_its_folder_free(tmp_path):
    def fail(driver):
        raise RuntimeError("as a bug would")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="as a bug would"):
            drive(tmp_path, [toy(1, seconds=9)], progress=fail)


@pytest.mark.parametrize("line", ["oops", "[]", '{"event": "began"}', '{"job": "a", "event": "ended", "attempt": 1}'])
def test_a_damaged_line_of_the_journal_is_named(tmp_path, line):
    drive(tmp_path, [toy(1)])
    path = tmp_path / "journal.jsonl"
    path.write_text(f"{line}\n" + path.read_text())
    for write in (False, True):
        with pytest.raises(OutputFolderError, match="journal.jsonl: line 1 is damaged"):
            Journal(tmp_path, write=write)


def test_jobs_die_with_their_agent(tmp_path):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from gdn_lab.cluster.agent import Agent; from gdn_lab.cluster.job_process import Task\n"
        "Agent().start([Task('a', 1, ('sh', '-c', f'echo $$ > {sys.argv[2]}; exec sleep 60'), ('0',), 99)])\n"
        "time.sleep(60)"
    )
    agent = subprocess.Popen([sys.executable, "-c", code, str(HERE.parents[1]), str(tmp_path / "pid")])
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    job = int((tmp_path / "pid").read_text())
    agent.kill()
    agent.wait()
    wait_for(lambda: not alive(job))


def test_an_agent_gives_an_event_again_until_it_is_acknowledged():
    agent = Agent()
    agent.start([Task("a", 1, ("sh", "-c", "exit 0"), ("0",), 9)])
    ((number, event),) = agent.poll(0, 10)
    assert agent.poll(0, 10) == [(number, event)] and event["status"] == "ok"
    assert agent.poll(number, 0.05) == []
    agent.stop()
    assert not agent.scratch.exists()


@pytest.mark.parametrize("kills", [3])
def test_a_driver_that_is_killed_at_any_moment_goes_on(tmp_path, kills):
    """As tests/cluster/chaos.py does a hundred times with Ray."""
    jobs = [toy(n, seconds=0.1) for n in range(30)]
    command = [sys.executable, str(HERE / "toy_driver.py"), str(tmp_path), "30"]
    for kill in range(kills):
        driver = subprocess.Popen(command)
        finished = kill + 1
        wait_for(lambda: journal_lines(tmp_path) >= 8 * finished or driver.poll() is not None)  # noqa: B023
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert subprocess.run(command).returncode == 0
    assert rows(tmp_path) == expected(jobs)
    ends = [line["job"] for line in Journal(tmp_path).lines() if line["event"] == "ended" and line["final"]]
    assert len(ends) == len(set(ends)) == len(jobs)


def journal_lines(folder: Path) -> int:
    path = folder / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)
