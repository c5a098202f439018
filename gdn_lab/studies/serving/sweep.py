"""The sweep of serving: for each configuration and concurrency a serving run, then times of its parts, in one process.

All configurations share one rank's weights. With several ranks every rank makes the same runs in the same order; rank 0
decides what is begun and writes the rows.
"""

import gc
import time
from pathlib import Path

import torch

from ...backends.base import dtype_name
from ...bench import clocks
from ...bench.results import Run
from ...bench.rows import recorded
from ...bench.run_folder import count_rows, load
from ...engine import ranks
from ...engine.communicator import Alone
from ...engine.communicator_choice import DEFAULT, Choice
from ...engine.serve_ranks import (
    Plan,
    case,
    connected,
    new_model,
    rank_weights,
    requests_of,
    serve_once,
    short,
)
from ...layer.configurations import Configuration, configuration
from ..all_reduce.analysis import choice_on
from ..fewer_bytes.decode_choice import decoding_on
from .plan import Budget, Build, Job, builds
from .serving_point import check_row, part_rows
from .serving_rows import LEFT_OUT, PHASE

NO_MEMORY = "it needs more memory than is free"
AUTO = "auto"


def serving_sweep(p, run: Run | None = None, earlier=()) -> list[dict]:
    """Serve what parameters `p` (study.py) ask for and `earlier` rows lack; return all rows, the new ones appended.

    Rows: serving_rows.py; steps and requests are written to `run` alone, so without one they are not returned. A point
    that cannot run is a row of status "refused" with its reason. Prints a line for each point, and at the end what
    there was no time for: a run that leaves out points is "interrupted", and each has a row that says so.
    ServingInterrupted on Ctrl-C, RankError if a rank ends: all rows made until then are in `run`.
    """
    earlier = list(earlier)
    with recorded(run):
        folder = None if run is None else (str(run.folder), run.info)
        written = 0 if run is None else count_rows(run.folder)
        if p.tp == 1:
            rows = serve_rank(Alone("cuda" if torch.cuda.is_available() else "cpu"), p, folder, earlier)
        else:
            rows = ranks.start(p.tp, serve_rank, p, folder, earlier)[0]
        if run is not None and any(row.get("type") == LEFT_OUT for row in rows):
            run.finish("interrupted")
        return earlier + (rows if run is None else load(run.folder)[1][written:])


def serve_rank(communicator, p, folder: tuple | None, earlier: list[dict]) -> list[dict]:
    """What each rank does; returns the rows that it made. folder: of the Run that rank 0 appends to."""
    run = Run(Path(folder[0]), folder[1]) if folder and communicator.rank == 0 else None
    threads = torch.get_num_threads()
    try:
        if p.toy:  # its operators are so short that threads wait for each other longer than they compute
            torch.set_num_threads(1)
        return RankSweep(communicator, p, run, earlier).rows
    finally:
        torch.set_num_threads(threads)


class RankSweep:
    """The runs of one rank, made when constructed. rows: made so far, without the columns of steps and requests."""

    def __init__(self, communicator, p, run: Run | None, earlier: list[dict]):
        self.p, self.run, self.rows = p, run, []
        self.joined, self.connections = communicator, {}
        self.serves = 1 + max((row["serve"] for row in earlier if "serve" in row), default=-1)
        self.budget, self.skipped, self.weights = Budget(60 * p.minutes), [], None
        for build in builds(p, earlier, self.decode):
            if self.agreed(self.budget.left > 0):
                self.serve(build)
            else:
                self.skipped += build.jobs
        if self.skipped:
            self.leave_out()

    def decode(self, name: str, concurrency: int) -> str:
        """The `backend` of decode(): the configuration's own, on a GPU the one that recorded times say is faster."""
        if self.joined.device.type != "cuda" or self.p.toy:
            return configuration(name).gdn
        heads = concurrency * self.p.shape.num_v_heads
        device = torch.cuda.get_device_name(self.joined.device)
        return decoding_on(device, name, heads, dtype_name(self.p.dtype)).gdn

    def serve(self, build: Build) -> None:
        """Serve the jobs of one model. A model that cannot be made refuses all of them."""
        began = time.monotonic()
        try:
            communicator, model = self.model(build)
        except (ValueError, torch.OutOfMemoryError) as error:
            if self.joined.size > 1 and isinstance(error, torch.OutOfMemoryError):
                raise  # the other ranks wait for this one
            for job in build.jobs:
                self.refuse(
                    self.joined, build, job, NO_MEMORY if isinstance(error, torch.OutOfMemoryError) else str(error)
                )
            return
        self.say(f"{build.configuration}: ready after {time.monotonic() - began:.0f} s.")
        for job in build.jobs:
            if self.agreed(self.budget.allows(job)):
                self.job(communicator, model, build, job)
            else:
                self.skipped.append(job)
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def model(self, build: Build):
        """(communicator, model) of a configuration: weights are made once, connections too."""
        plan = plan_of(self.p, build.configuration, build.jobs)
        self.weights = self.weights or rank_weights(self.joined, plan)
        vocab, name = self.weights.sizes.vocab, plan.communicator
        if name not in self.connections:
            drafts = max(self.p.draft_tokens, default=0)
            largest = plan._replace(concurrencies=self.p.concurrency, draft_tokens=drafts)
            hidden, choice = self.weights.sizes.step.hidden, _choice(self.joined)
            self.connections[name] = connected(self.joined, largest, hidden, choice)
        lists = {job.concurrency: requests_of(plan, job.concurrency, vocab) for job in build.jobs}
        communicator = self.connections[name]
        return communicator, new_model(communicator, self.weights, plan, entry_of(build), lists, self.say)

    def job(self, communicator, model, build: Build, job: Job) -> None:
        """One serving run and its parts, or a row that says why there is none."""
        began = time.monotonic()
        if model.slots.free < job.concurrency:
            self.refuse(communicator, build, job, f"only {model.slots.free} requests fit into the memory that is free")
            return
        try:
            with clocks.sampled(self.joined.device):
                row = self.measure(communicator, model, build, job)
        except torch.OutOfMemoryError:
            if self.joined.size > 1:  # the other ranks wait for this one
                raise
            self.refuse(communicator, build, job, NO_MEMORY)
            return
        self.budget.took(job, time.monotonic() - began)
        self.say(f"{job}: {short(row)}; {max(0.0, self.budget.left) / 60:.1f} minutes left.")

    def measure(self, communicator, model, build: Build, job: Job) -> dict:
        """Serve a job and time its parts; return the row of type "run"."""
        entry, concurrency = entry_of(build), job.concurrency
        plan = plan_of(self.p, entry.name, [job])
        common = {"phase": PHASE, "serve": self.serves}
        self.serves += 1
        requests = requests_of(plan, concurrency, self.weights.sizes.vocab)
        run = serve_once(communicator, model, plan, entry, concurrency, requests, common, self.run)
        self.rows.append(run)
        more = part_rows(model, job, self.p)
        if self.p.toy and not job.draft_tokens:
            more.append(check_row(model, requests, concurrency))
        for row in more:
            self.add({"status": "fact"} | case(communicator, plan, entry, concurrency) | common | row)
        return run

    def refuse(self, communicator, build: Build, job: Job, reason: str) -> None:
        """A row that says why a job cannot run."""
        plan = plan_of(self.p, job.configuration, [job])
        fields = case(communicator, plan, entry_of(build), job.concurrency)
        self.add(fields | {"status": "refused", "reason": reason})
        self.say(f"{job}: refused: {reason}.")

    def leave_out(self) -> None:
        """A row for each job that there was no time for, and a line with all of them."""
        reason = f"no time was left after {self.p.minutes:g} minutes"
        self.say(
            f"{reason[0].upper()}{reason[1:]}; the same command goes on with: {'; '.join(map(str, self.skipped))}."
        )
        for job in self.skipped:
            plan, entry = plan_of(self.p, job.configuration, [job]), configuration(job.configuration)
            fields = case(self.joined, plan, entry, job.concurrency)
            self.add(fields | {"status": "refused", "type": LEFT_OUT, "reason": reason})

    def add(self, row: dict) -> None:
        """Keep a row, and write it."""
        self.rows.append(row)
        if self.run is not None:
            self.run.append(row)

    def agreed(self, decision: bool) -> bool:
        """Rank 0's decision, on every rank."""
        return self.joined.broadcast_object(decision)

    def say(self, line: str, **options) -> None:
        """Print a line at once, on rank 0."""
        if self.joined.rank == 0:
            print(line, flush=True)


def entry_of(build: Build) -> Configuration:
    """The configuration that a build's model runs."""
    entry = configuration(build.configuration)
    return entry if build.gdn == entry.gdn else entry.decoding_with(build.gdn)


def _choice(joined) -> Choice:
    """The fastest all-reduce for each size, as recorded on as many GPUs of this kind."""
    if joined.device.type != "cuda":
        return DEFAULT
    return choice_on(torch.cuda.get_device_name(joined.device), joined.size)


def plan_of(p, name: str, jobs: list[Job]) -> Plan:
    """The engine's Plan of some jobs of one configuration; all jobs of one model have the largest number of drafts."""
    most = max(jobs, key=lambda job: job.draft_tokens)
    communicator = p.communicator
    if communicator == AUTO:  # an engine's is NCCL, `best` takes the fastest for each size
        here = "nccl" if torch.cuda.is_available() else "gloo"
        communicator = "fastest" if configuration(name).fused else here
    return Plan(
        model=p.model,
        tp=p.tp,
        concurrencies=[job.concurrency for job in jobs],
        configurations=[name],
        precision=p.precision,
        state_dtype=dtype_name(p.dtype),
        toy=p.toy,
        requests=p.rounds * jobs[0].concurrency if len(jobs) == 1 else None,
        input=p.input_tokens,
        output=p.output_tokens,
        spread=p.spread,
        prefill=p.prefill,
        draft_tokens=most.draft_tokens,
        acceptance=most.acceptance or 0.0,
        temperature=p.temperature,
        top_k=p.top_k,
        top_p=p.top_p,
        communicator=communicator,
        seed=p.seed,
    )
