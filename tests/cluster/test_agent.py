"""The agent of a host outlives whatever goes wrong with one job."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from gdn_lab.cluster import job_process
from gdn_lab.cluster.agent import Agent
from gdn_lab.cluster.job import FOLDER
from gdn_lab.cluster.job_process import Task


@pytest.fixture
def agent():
    agent = Agent()
    yield agent
    agent.stop()


def task(name: str, line: str = "exit 0") -> Task:
    return Task(name, 1, ("sh", "-c", line), ("0",), 99)


def ended(agent: Agent, task: Task) -> dict:
    """Start a job; the event that ends it."""
    agent.start([task])
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for _, event in agent.poll(0, 0.2):
            if event["kind"] == "ended" and event["job"] == task.job:
                return event
    pytest.fail(f"job {task.job} did not end")


def test_a_line_that_is_no_row_ends_its_job_alone(agent, tmp_path):
    pid = tmp_path / "pid"
    broken = f"echo $$ > {pid}; echo '{{}}' > {FOLDER}/rows.jsonl; sleep 1; echo oops >> {FOLDER}/rows.jsonl; sleep 60"
    event = ended(agent, task("broken", broken))
    assert event["status"] == "error" and "a line of rows.jsonl is no JSON object: 'oops'" in event["reason"]
    assert event["rows"] == 1, "the rows that were sent, or the driver takes some for lost"
    assert "log.txt" in event["files"] and not Path(f"/proc/{pid.read_text().strip()}").exists()
    assert ended(agent, task("next"))["status"] == "ok"


@pytest.mark.parametrize("line", ["[1]", "7", "oops"])
def test_rows_without_keys_end_a_job_that_is_over(agent, line):
    event = ended(agent, task("broken", f"echo '{line}' > {FOLDER}/rows.jsonl"))
    assert event["status"] == "error" and "is no JSON object" in event["reason"] and event["rows"] == 0


def test_without_its_scratch_folder_jobs_end_as_errors(agent):
    shutil.rmtree(agent.scratch)
    for name in ("a", "b"):
        event = ended(agent, task(name))
        assert event["status"] == "error" and "could not be started: FileNotFoundError" in event["reason"]
    agent.scratch.mkdir()
    assert ended(agent, task("c"))["status"] == "ok"


def test_a_process_that_cannot_be_made_ends_its_job(agent, monkeypatch):
    def fails(*_, **options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(job_process.subprocess, "Popen", fails)
        event = ended(agent, task("a"))
    assert event["status"] == "error" and "Resource temporarily unavailable" in event["reason"]
    assert subprocess.Popen is not fails and ended(agent, task("b"))["status"] == "ok"


def test_files_that_cannot_be_read_end_a_job(agent, monkeypatch):
    def fails(self):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(job_process.JobProcess, "files", fails)
        event = ended(agent, task("a", f"echo '{{}}' > {FOLDER}/rows.jsonl"))
    assert (event["status"], event["rows"], event["files"]) == ("error", 1, {})
    assert ended(agent, task("b"))["status"] == "ok"


@pytest.mark.parametrize("threads, seen", [(None, "none"), ("7", "7")])
def test_jobs_have_the_threads_of_the_driver_not_those_of_the_agent(monkeypatch, tmp_path, threads, seen):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray sets it for its actors
    agent = Agent(environment={"OMP_NUM_THREADS": threads})
    ended(agent, task("a", f"echo ${{OMP_NUM_THREADS:-none}} > {tmp_path}/seen"))
    agent.stop()
    assert (tmp_path / "seen").read_text().strip() == seen
