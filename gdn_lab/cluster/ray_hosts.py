"""Hosts that Ray reaches: this machine alone, or the cluster that RAY_ADDRESS names. One agent for each host.

An agent is an actor that takes all GPUs of its host, so nothing else that Ray runs gets them; scheduler.py chooses
which of them a job has. A job runs the copy of the checkout that Ray sends when the sweep begins.
"""

import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from .agent import Agent
from .code import ROOT, code_id
from .gpu_probe import gpu_type, hold_gpus, made_up_probe, probe
from .hosts import Hosts
from .job_process import Task

LOOK_FOR_HOSTS_S = 5.0
STARTS = 3  # tries to start Ray, and the agent of a host
CONNECT_S = 5.0  # until the head of a cluster counts as unreachable
CLIENT_PORT = 10001  # Ray's default of ray://
POLL_S = 5.0  # that a host waits for news before it answers without
NOT_SENT = ["/runs/", "/.git/", "/.venv/", "**/__pycache__/", "/docs/", ".pytest_cache", ".ruff_cache", ".hypothesis"]
HIDDEN = str(Path(__file__).with_name("ray_imports"))  # see the file there
MISSING = (
    "gdn-lab sweep needs Ray, which is not installed here; `make sweep` installs it, as does "
    "`.venv/bin/python -m pip install -r requirements-cluster.txt -c constraints.txt`"
)


class RayMissing(RuntimeError):
    """Ray cannot be imported. The message says how to install it."""


class RayFailed(RuntimeError):
    """Ray does not start, or its cluster cannot be reached. The message says why."""


def import_ray():
    """The module ray. RayMissing, one sentence, where it is not installed."""
    try:
        import ray
    except ModuleNotFoundError:
        raise RayMissing(MISSING) from None
    return ray


def use_token() -> None:
    """Have Ray send the token of this account, if there is one: joining a cluster it does so only when it is told to.

    Ray reads the variable when it is imported.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_MODE" not in os.environ and (os.environ.get("RAY_AUTH_TOKEN") or path.is_file()):
        os.environ["RAY_AUTH_MODE"] = "token"


def check_answers(address: str) -> None:
    """RayFailed, at once, if nothing listens at a RAY_ADDRESS such as head:6379 or ray://head:10001."""
    scheme, _, rest = address.rpartition("://")
    if address == "auto" or scheme not in ("", "ray"):
        return  # Ray itself looks for it
    try:
        split = urlsplit(f"//{rest}")
        place = split.hostname, split.port or (CLIENT_PORT if scheme else None)
    except ValueError:
        place = None, None
    if None in place:
        raise RayFailed(f"RAY_ADDRESS: expected host:port, such as head:6379, got {address!r}")
    try:
        socket.create_connection(place, CONNECT_S).close()
    except OSError as error:
        why = error.strerror or str(error)
        raise RayFailed(
            f"nothing answers at RAY_ADDRESS {address} ({why}); start the cluster, or unset RAY_ADDRESS to use this "
            "machine"
        ) from None


class HostAgent(Agent):
    """What the actor of a host is. made_up: its GPUs are numbers that were given to ray.init(), nothing to probe.

    threads: OMP_NUM_THREADS of the jobs; None: not set, although Ray sets it to 1 for the actor.
    """

    def __init__(self, made_up: bool, threads: str | None = None):
        super().__init__(made_up_probe if made_up else probe, environment={"OMP_NUM_THREADS": threads})
        self.made_up = made_up
        if not made_up:
            hold_gpus()

    def about(self) -> dict:
        """gpu: type, ids: of the GPUs that Ray gave this actor, code: of the checkout that its jobs run."""
        import ray

        ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        kind = "made-up" if self.made_up and ids else gpu_type(ids)
        return {"gpu": kind, "ids": ids or ["cpu"], "code": code_id(), "versions": versions()}


def versions() -> dict[str, str]:
    """Versions of the libraries whose kernels are timed, as installed on this host."""
    import importlib.metadata as metadata

    names = ("torch", "triton", "flashinfer-python", "nvidia-cutlass-dsl")
    installed = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    return {name: installed[name] for name in names if name in installed}


@contextmanager
def _hidden_imports():
    """Let processes that are started meanwhile find this package, and not what ray_imports/ hides."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (HIDDEN, str(ROOT), before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def _own_signals():
    """Keep this process's handlers of signals: Ray's own would end it at SIGTERM, without its pages."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class RayHosts(Hosts):
    """root: the checkout to send. made_up_gpus: of this machine, for a trial; None: those that Ray finds."""

    def __init__(self, root: Path | None, *, made_up_gpus: int | None = None, dashboard: bool = False):
        address = os.environ.get("RAY_ADDRESS", "")
        self.cluster = address not in ("", "local")
        if self.cluster:
            use_token()
        self.ray = import_ray()
        self.made_up, self.code = made_up_gpus is not None, None
        options = {"log_to_driver": False, "logging_level": "ERROR"}
        if root is not None:
            self.code = code_id(root)
            environment = {"GDN_LAB_COMMIT": self.code}
            options["runtime_env"] = {"working_dir": str(root), "excludes": NOT_SENT, "env_vars": environment}
        if not self.ray.is_initialized():
            if self.cluster:
                check_answers(address)
            else:
                options |= {"address": "local", "include_dashboard": dashboard, "num_gpus": made_up_gpus}
            self._start_ray(options)
        self.agents, self.polls, self.seen, self.news = {}, {}, {}, deque()
        self.names: dict[str, str] = {}  # {node id: name of its agents}
        self.starting: set[str] = set()  # names of agents that have not answered yet
        self.lost = Counter()  # {name: agents in a row that ended before they answered}
        self.looked = -LOOK_FOR_HOSTS_S

    def events(self, wait_s: float) -> list[dict]:
        """See Hosts."""
        if time.monotonic() - self.looked > LOOK_FOR_HOSTS_S:
            self._look_for_hosts()
            self.looked = time.monotonic()
        if not self.polls:
            time.sleep(min(wait_s, 0.2))
        elif ready := self.ray.wait(list(self.polls), timeout=wait_s)[0]:
            ready += self.ray.wait([p for p in self.polls if p not in ready] or ready, num_returns=1, timeout=0)[0]
            for answer in dict.fromkeys(ready):
                self._answer(answer)
        found = list(self.news)
        self.news.clear()
        return found

    def launch(self, host: str, tasks: list[Task]) -> None:
        """See Hosts. A host that has gone does not hear it; its loss comes as an event."""
        if host in self.agents:
            self.agents[host].start.remote(tasks)

    def may_join(self) -> bool:
        """See Hosts."""
        again = any(name not in self.agents and self.lost[name] < STARTS for name in self.names.values())
        return self.cluster or again or bool(self.starting)

    def stop(self) -> None:
        """See Hosts."""
        stopping = [agent.stop.remote() for agent in self.agents.values()]
        if stopping:
            self.ray.wait(stopping, num_returns=len(stopping), timeout=60)
        for agent in self.agents.values():
            self.ray.kill(agent)
        self.ray.shutdown()

    def _start_ray(self, options: dict) -> None:
        """Start Ray, or join its cluster. A start is tried again: on a busy machine Ray's limit of 30 s is short."""
        with _hidden_imports(), _own_signals():
            for left in reversed(range(1 if self.cluster else STARTS)):
                try:
                    self.ray.init(**options)
                    return
                except Exception as error:  # Ray raises many kinds, of Exception itself too
                    self.ray.shutdown()
                    where = os.environ.get("RAY_ADDRESS", "this machine")
                    if not left:
                        raise RayFailed(f"Ray cannot start on {where}: {str(error).strip().splitlines()[0]}") from error

    # ---- hosts ----------------------------------------------------------------------------------------------------

    def _look_for_hosts(self) -> None:
        """Start an agent on every host that has none."""
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        with_gpus = [node for node in nodes if node["Resources"].get("GPU")]
        for node in with_gpus or nodes:
            name = self.names.get(node["NodeID"])
            if name not in self.agents and self.lost[name] < STARTS:
                self._start_agent(node)

    def _start_agent(self, node: dict) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        gpus = int(node["Resources"].get("GPU", 0))
        # Threads: one call waits in poll(), while others start and stop jobs.
        options = {"num_gpus": gpus, "num_cpus": 0, "max_concurrency": 4, "scheduling_strategy": here}
        agent = self.ray.remote(HostAgent).options(**options).remote(self.made_up, os.environ.get("OMP_NUM_THREADS"))
        name = f"host {node['NodeManagerAddress']}" + (f" ({node['NodeID'][:6]})" if self._same(node) else "")
        self.names[node["NodeID"]] = name
        self.agents[name], self.seen[name] = agent, 0
        self.starting.add(name)
        self.polls[agent.about.remote()] = name

    def _same(self, node: dict) -> bool:
        """Whether another host has the same address, as on a cluster within one machine."""
        return any(
            other["NodeManagerAddress"] == node["NodeManagerAddress"] and other["NodeID"] != node["NodeID"]
            for other in self.ray.nodes()
        )

    def _answer(self, answer) -> None:
        host = self.polls.pop(answer)
        self.starting.discard(host)
        try:
            found = self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            self._lost(host, error)
            return
        self.lost[host] = 0
        if isinstance(found, dict):
            if self.code and found["code"] != self.code:
                reason = f"its code is {found['code']}, that of this sweep {self.code}"
                self.news.append({"host": host, "kind": "refused", "reason": reason})
                return
            self.news.append({"host": host, "kind": "joined"} | found)
        elif found:
            self.seen[host] = found[-1][0]
            self.news.extend({"host": host} | event for _, event in found)
        self.polls[self.agents[host].poll.remote(self.seen[host], POLL_S)] = host

    def _lost(self, host: str, error: Exception) -> None:
        self.agents.pop(host)
        self.lost[host] += 1
        # The last line of a failure in the agent is what was raised there; of any other, the first says what it is.
        lines = str(error).strip().split("\n")
        reason = lines[-1 if isinstance(error, self.ray.exceptions.ActorDiedError) and len(lines) > 3 else 0]
        reason = reason.strip().rstrip(".") or type(error).__name__
        self.news.append({"host": host, "kind": "lost", "reason": reason})
        if self.lost[host] == STARTS:
            self.news.append({"host": host, "kind": "refused", "reason": f"its agent failed {STARTS} times"})
        self.looked = -LOOK_FOR_HOSTS_S  # it may only have been the agent
