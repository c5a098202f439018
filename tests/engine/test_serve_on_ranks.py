"""Two processes serve together, and what is left when one of them is killed."""

import os
import signal

import pytest
from serving_rank_cases import serve_fake

from gdn_lab.bench.results import Run, load
from gdn_lab.engine import ranks
from gdn_lab.engine.serve_ranks import Plan
from gdn_lab.studies.serving.serving_rows import ServingRows

PLAN = Plan("qwen3.5-35b-a3b", 2, [2, 4], ["torch"], toy=True, input=6, output=9, requests=12, communicator="gloo")
PATIENCE_S = 600  # importing torch for the first time may take a minute


def test_two_ranks_make_the_same_steps_and_rank_0_writes_the_rows(tmp_path, capsys, forked_python):
    with Run.create("serve", {}, root=tmp_path) as run:
        values = ranks.start(2, serve_fake, PLAN, (str(run.folder), run.info), device="cpu", timeout_s=PATIENCE_S)
    info, rows = load(run.folder)
    served = ServingRows(rows, info)
    assert [len(value) for value in values] == [2, 2] and set(served.points) == {("torch", 2), ("torch", 4)}
    point = served.points["torch", 4]
    assert point.run["ranks"] == 2 and point.run["communicator"] == "gloo" and point.run["requests"] == 12
    assert sorted(point.requests["id"]) == list(range(12)) and len(point.steps["kind"]) == point.run["steps"]
    assert point.run["tokens_per_s_gpu"] == point.run["total_throughput"] / 2
    assert capsys.readouterr().out.count("torch, C = 4") == 1


def test_a_rank_that_is_killed_ends_in_a_sentence_and_the_rows_are_kept(tmp_path, forked_python):
    with pytest.raises(ranks.RankError, match="rank 1 of 2 was killed by SIGKILL; the other ranks were stopped"):
        with Run.create("serve", {}, root=tmp_path) as run:
            folder = str(run.folder), run.info
            ranks.start(2, serve_fake, PLAN._replace(concurrencies=[4]), folder, 20, device="cpu", timeout_s=PATIENCE_S)
    info, rows = load(run.folder)
    kept = {row["type"]: row for row in rows}
    assert info["status"] == "failed" and info["rows"] == len(rows)
    assert len(kept["steps"]["kind"]) >= 10 and "interrupted" in kept["requests"]["outcome"]


def test_ctrl_c_reaches_the_ranks_which_write_their_rows(tmp_path, forked_python):
    def press(line):
        if line == "waiting for Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), Run.create("serve", {}, root=tmp_path) as run:
        plan, folder = PLAN._replace(concurrencies=[4], requests=60), (str(run.folder), run.info)
        ranks.start(2, serve_fake, plan, folder, None, 50, device="cpu", timeout_s=PATIENCE_S, on_line=press)
    info, rows = load(run.folder)
    (last,) = [row for row in rows if row["type"] == "run"]
    outcomes = sum((row["outcome"] for row in rows if row["type"] == "requests"), [])
    assert info["status"] == "interrupted" and last["requests_unfinished"] == outcomes.count("interrupted") == 4
