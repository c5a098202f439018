"""A sweep over two nodes of a Ray cluster, as over two machines: a node is lost, the driver too, and it is resumed."""

import importlib.util
import json
import time
from pathlib import Path

import pytest
from chaos import Chaos, check, lines

JOBS = 40  # so that some are left when Ray has noticed the loss

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (make sweep)")


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes with two made-up GPUs each, on this machine, behind a head without any."""
    monkeypatch.setenv("PYTHONPATH", "")  # Chaos sets it for Ray's processes
    made = Chaos(0, jobs=JOBS, seconds=1.5, gpus=2)
    yield made
    made.cluster.shutdown()


def journal(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_bytes().splitlines()]


def hosts_of(folder: Path) -> set[str]:
    return {line["host"] for line in journal(folder) if line["event"] == "began"} if lines(str(folder)) else set()


def wait_until(what, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.1)


def test_a_node_and_the_driver_are_killed_and_the_sweep_goes_on_with_a_new_node(cluster, tmp_path):
    driver = cluster.start(str(tmp_path))
    wait_until(lambda: len(hosts_of(tmp_path)) == 2)
    cluster.kill_node(0)
    wait_until(lambda: any(line.get("reason") == "its host was lost" for line in journal(tmp_path)))
    driver.kill()
    driver.wait()
    before = lines(str(tmp_path))
    cluster.nodes.append(cluster.add_node())
    again = cluster.start(str(tmp_path))
    assert again.wait(timeout=180) == 0
    check(tmp_path, JOBS)
    assert len({line["host"] for line in journal(tmp_path)[before:] if line["event"] == "began"}) == 2
    assert len(hosts_of(tmp_path)) == 3, "the node that was lost, the one that stayed, the one that joined"
