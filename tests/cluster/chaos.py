"""python chaos.py [KILLS] [SEED]: kill drivers, agents, jobs and nodes of a sweep at random; are the rows complete?

A Ray cluster of two nodes of four made-up GPUs each on this machine, sweeps of toy jobs on it, each resumed until it is
done. Prints a line for each kill and at the end the counts; exits with 1 if a row is missing, twice or not expected.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

JOBS, SECONDS, ROWS = 120, 0.7, 2
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HIDDEN = ROOT / "gdn_lab" / "cluster" / "ray_imports"
WEIGHTS = {"driver": 3, "agent": 3, "job": 3, "node": 1}


class Chaos:
    """One cluster and the sweeps on it. gpus: made-up ones of each node. counts: kills by what was killed."""

    def __init__(self, seed: int, *, jobs: int = JOBS, seconds: float = SECONDS, gpus: int = 4):
        from ray.cluster_utils import Cluster

        path = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HIDDEN), str(ROOT), path)))  # of Ray's processes
        self.rng, self.counts = random.Random(seed), Counter()
        self.jobs_asked, self.seconds, self.gpus = jobs, seconds, gpus
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
        self.nodes = [self.add_node() for _ in range(2)]

    def add_node(self):
        return self.cluster.add_node(num_gpus=self.gpus, num_cpus=0)

    def sweep(self, kills: int) -> int:
        """Run one sweep to its end with at most `kills` kills; return how many there were. AssertionError on a row."""
        done = 0
        with tempfile.TemporaryDirectory() as folder:
            driver = self.start(folder)
            while driver.poll() is None or driver.returncode:
                if driver.poll() is not None:
                    driver = self.start(folder)
                time.sleep(self.rng.uniform(0.1, 1.5))
                if done < kills and driver.poll() is None and self.kill(driver):
                    done += 1
            check(Path(folder), self.jobs_asked)
        return done

    def start(self, folder: str) -> subprocess.Popen:
        """Start a driver and wait until it has begun something, or has ended."""
        before = lines(folder)
        words = [sys.executable, str(HERE / "toy_ray_driver.py"), folder, str(self.jobs_asked), str(self.seconds)]
        environment = os.environ | {"RAY_ADDRESS": self.cluster.address}
        driver = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 90
        while lines(folder) == before and driver.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        return driver

    def kill(self, driver: subprocess.Popen) -> bool:
        """Kill something; False if there was nothing of its kind."""
        what = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if what == "driver":
            driver.kill()
            driver.wait()
        elif what == "node":
            self.kill_node(self.rng.randrange(2))
            self.nodes.append(self.add_node())
        elif not killed(self.rng, self.agents() if what == "agent" else self.jobs()):
            return False
        self.counts[what] += 1
        print(f"{sum(self.counts.values())}: {what}", flush=True)
        return True

    def kill_node(self, number: int) -> None:
        """Kill every process of a node at once, as a machine that loses power."""
        self.cluster.remove_node(self.nodes.pop(number), allow_graceful=False)

    def agents(self) -> list[int]:
        """Agents of this cluster: its raylets started them."""
        raylets = {info.process.pid for node in self.nodes for info in node.all_processes.get("raylet", [])}
        return [pid for pid, parent, line in processes() if line.startswith("ray::HostAgent") and parent in raylets]

    def jobs(self) -> list[int]:
        """Processes that these agents started."""
        agents = set(self.agents())
        return [pid for pid, parent, _ in processes() if parent in agents]


def killed(rng: random.Random, pids: list[int]) -> bool:
    """Kill one of these processes; False if there is none, or it has just ended."""
    try:
        os.kill(rng.choice(pids), signal.SIGKILL)
    except (IndexError, ProcessLookupError):
        return False
    return True


def processes() -> list[tuple[int, int, str]]:
    """(pid, parent, command line) of every process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found.append((int(folder.name), parent, (folder / "cmdline").read_bytes().decode(errors="replace")))
        except (OSError, ValueError):
            continue  # it has ended
    return found


def lines(folder: str) -> int:
    path = Path(folder) / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check(folder: Path, jobs: int) -> None:
    """Every row of every one of `jobs` jobs once, and every job final once."""
    rows = Counter()
    for path in folder.glob("jobs/*/rows.jsonl"):
        rows.update((row["number"], row["row"]) for row in map(json.loads, path.open()))
    assert rows == Counter((number, row) for number in range(jobs) for row in range(ROWS)), "rows differ"
    journal = [json.loads(line) for line in (folder / "journal.jsonl").open()]
    final = Counter(line["job"] for line in journal if line["event"] == "ended" and line["final"])
    assert len(final) == jobs and set(final.values()) == {1}, "a job is final twice, or never"
    assert {line["status"] for line in journal if line.get("final")} == {"ok"}, "a job did not end as ok"
    print(f"{jobs} jobs, {sum(rows.values())} rows, {sum(line['event'] == 'began' for line in journal)} attempts")


if __name__ == "__main__":
    kills, seed = int((sys.argv[1:] or ["100"])[0]), int((sys.argv[2:] or ["0"])[0])
    chaos, left = Chaos(seed), kills
    while left > 0:
        left -= chaos.sweep(left)
    chaos.cluster.shutdown()
    print(f"{kills} kills: {dict(chaos.counts)}; no row was lost and none is there twice.")
