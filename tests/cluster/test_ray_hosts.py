"""Jobs on hosts that Ray reaches: made-up GPUs of this machine."""

import importlib.util
import signal
import sys

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
