"""Jobs on hosts that Ray reaches: made-up GPUs of this machine."""

import importlib.util
import os
import signal
import socket
import sys
import time

import pytest
from toy_jobs import toy

from gdn_lab.cluster import ray_hosts
from gdn_lab.cluster.driver import Driver
from gdn_lab.cluster.job import ERROR

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (make sweep)")


def test_without_ray_a_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ray_hosts.RayMissing, match="make sweep"):
        ray_hosts.RayHosts(None)


@pytest.fixture
def nobody():
    """A port at which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "localhost:{port}"])
def test_a_cluster_that_does_not_answer_is_named_at_once(nobody, address):
    began = time.monotonic()
    with pytest.raises(ray_hosts.RayFailed, match=f"nothing answers at RAY_ADDRESS .*:{nobody} .*refused"):
        ray_hosts.check_answers(address.format(port=nobody))
    assert time.monotonic() - began < ray_hosts.CONNECT_S


@pytest.mark.parametrize("address", ["head", "head:x", ":6379"])
def test_an_address_without_host_or_port_is_refused(address):
    with pytest.raises(ray_hosts.RayFailed, match="expected host:port, such as head:6379, got"):
        ray_hosts.check_answers(address)


def test_an_address_that_answers_or_that_ray_looks_for_is_accepted():
    with socket.create_server(("127.0.0.1", 0)) as server:
        for address in ("auto", "anyscale://name", f"127.0.0.1:{server.getsockname()[1]}"):
            ray_hosts.check_answers(address)


@pytest.mark.parametrize(
    "given, mode",
    [
        ({}, None),
        ({"RAY_AUTH_TOKEN": "x"}, "token"),
        ({"RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "disabled"}, "disabled"),
    ],
)
def test_a_token_is_sent_to_a_cluster(monkeypatch, tmp_path, given, mode):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # so that what is set is undone
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    ray_hosts.use_token()
    assert os.environ.get("RAY_AUTH_MODE") == mode
    if not given:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").touch()
        ray_hosts.use_token()
        assert os.environ["RAY_AUTH_MODE"] == "token"


def test_joining_a_cluster_is_tried_once(monkeypatch):
    tries = []

    class Ray:
        is_initialized = staticmethod(lambda: False)
        shutdown = staticmethod(lambda: None)

        @staticmethod
        def init(**options):
            tries.append(options)
            raise ConnectionError("no such cluster")

    monkeypatch.setattr(ray_hosts, "import_ray", lambda: Ray)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for address, count in (("auto", 1), ("local", ray_hosts.STARTS), ("", ray_hosts.STARTS)):
        monkeypatch.setenv("RAY_ADDRESS", address)
        tries.clear()
        with pytest.raises(ray_hosts.RayFailed, match="no such cluster"):
            ray_hosts.RayHosts(None)
        assert len(tries) == count and all(("address" in each) == (count > 1) for each in tries)


@needs_ray
def test_jobs_have_all_threads(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    hosts = ray_hosts.RayHosts(None, made_up_gpus=1)
    job = toy(1, script=f"echo ${{OMP_NUM_THREADS:-none}} > {tmp_path}/seen")
    Driver(tmp_path, hosts, lambda kind: [job], say=print).run()
    assert (tmp_path / "seen").read_text().strip() == "none"


@needs_ray
def test_rows_are_gathered_and_an_agent_that_is_killed_is_replaced(tmp_path):
    jobs = [toy(n, seconds=0.2) for n in range(24)] + [toy(90, script="exit 1"), toy(91, gpus=4)]
    handler = signal.getsignal(signal.SIGTERM)
    hosts, lines, killed = ray_hosts.RayHosts(None, made_up_gpus=4), [], []
    assert signal.getsignal(signal.SIGTERM) == handler

    def kill_once(driver):
        if len(driver.done) > 4 and not killed:
            (name,) = hosts.agents
            killed.append(name)
            hosts.ray.kill(hosts.agents[name])

    driver = Driver(tmp_path, hosts, lambda kind: jobs, say=lines.append, progress=kill_once)
    driver.run()
    assert {job.id for job in jobs} == set(driver.done)
    assert [job for job, status in driver.done.items() if status == ERROR] == [toy(90).id]
    assert sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("jobs/*/rows.jsonl")) >= 2 * 25
    assert killed and any("was lost" in line for line in lines)
