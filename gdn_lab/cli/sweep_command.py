"""gdn-lab sweep: every point of a grid as a job of its own, on all GPUs that Ray reaches; nothing lost, nothing twice.

    gdn-lab sweep --study 02 --over tp=1,2,4,8 --over model=all     on this machine, or the cluster of RAY_ADDRESS
    gdn-lab sweep grid.yaml                                         the same from a file
    gdn-lab sweep --resume                                          go on with the newest sweep

A YAML file holds one of these, or a list of them: study, over {parameter: values}, set {parameter: value}, gpus,
minutes (after which a job is stopped). The folder of a sweep is cluster/gather.py's; sweep.html there shows it.
"""

import argparse
import shlex
import sys
import time
from datetime import datetime
from pathlib import Path

from ..cluster.code import code_id
from ..cluster.gather import ABOUT, check_final, read_about, write_about
from ..cluster.job import FAILED, FOLDER, STATUSES, Job
from ..cluster.ray_hosts import RayFailed, RayMissing
from ..cluster.request import MINUTES, Request, RequestError, check_gpus, from_entries, from_words, read
from ..cluster.scheduler import DROPPED_AFTER
from ..report.text import listed
from .errors import BatchError, Interrupted, UsageError
from .run import ROOT, add_run_options, check_writable, given_words, say, shown
from .sweep_jobs import PROGRAM, Plan, jobs_of

SWEEPS = "sweeps"  # folder of runs/ in which sweeps are
FAILURES = (RayMissing, RayFailed)
TERMINAL_S, LOG_S = 1.0, 30.0  # between two progress lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE.yaml", help="what to sweep; or --study and --over")
    parser.add_argument("--study", metavar="STUDY", help='"02", "02_decode_kernels", or the path of a notebook')
    parser.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="NAME=A,B",
        help="an axis: a parameter and its values; all: every model or dtype; lists are divided by ;",
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="of one host, for each job; default: the study's")
    parser.add_argument("--minutes", type=float, metavar="M", help=f"after which a job is stopped; {MINUTES:.0f}")
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="FOLDER", help="go on with a sweep; default: the newest one"
    )
    parser.add_argument("--plan", action="store_true", help="print the jobs and run nothing")
    parser.add_argument("--on", type=int, metavar="N", help="with --plan: how long N GPUs, eight to a host, would take")
    parser.add_argument("--dashboard", action="store_true", help="start Ray's dashboard (pip install ray[default])")
    add_run_options(parser, "set a parameter of every job; may be repeated")


def run(arguments: argparse.Namespace) -> int:
    """Run a sweep. UsageError for what cannot be asked, BatchError if jobs are left over."""
    root = arguments.runs.absolute() / SWEEPS
    try:
        _check_on(arguments)
        if arguments.resume is not None:
            folder, about, requests = _earlier(arguments, root)
        else:
            folder, about, requests = None, None, _requests(arguments)
    except RequestError as error:
        raise UsageError(str(error)) from None
    plans = [Plan(request) for request in requests]
    planned = jobs_of(plans, "this GPU", "now")
    if arguments.plan:
        _print_plan(planned, arguments.on)
        return 0
    commit = code_id()
    if folder is None:
        folder = _new_folder(root, [plan.request for plan in plans], commit)
    elif about["commit"] != commit:
        raise UsageError(
            f"{shown(folder)} is a sweep of commit {about['commit'][:10]}, here is {commit[:10]}; check that out to go "
            "on with it, or begin a new sweep"
        )
    return _sweep(folder, plans, commit, arguments.dashboard)


def _check_on(arguments) -> None:
    if arguments.on is None:
        return
    if not arguments.plan:
        raise UsageError("--on says how long a plan would take; give --plan too, or leave --on out")
    check_gpus("--on", arguments.on)


def _requests(arguments) -> list[Request]:
    if arguments.file is not None:
        if asked := _asked(arguments):
            raise UsageError(f"a file says what to sweep: leave {listed(asked)} out, or the file")
        return read(arguments.file)
    if not arguments.study:
        raise UsageError("name what to sweep: a YAML file, or --study 02 --over tp=1,2,4")
    given = given_words(arguments.parameters)
    minutes = MINUTES if arguments.minutes is None else arguments.minutes
    return [from_words(arguments.study, arguments.over, given, arguments.gpus, minutes)]


def _asked(arguments) -> list[str]:
    """The options given that say what to sweep."""
    values = {
        "--study": arguments.study,
        "--over": arguments.over,
        "-p": arguments.parameters,
        "--gpus": arguments.gpus,
        "--minutes": arguments.minutes,
    }
    return [option for option, value in values.items() if value not in (None, [])]


def _earlier(arguments, root: Path) -> tuple[Path, dict, list[Request]]:
    """(folder, what its sweep.json holds, the requests in it) of the sweep to go on with."""
    if asked := [str(each) for each in (arguments.file, *_asked(arguments)) if each is not None]:
        raise UsageError(f"--resume goes on with what the sweep was asked for; leave {listed(asked)} out")
    folders = sorted(root.glob("*/sweep.json"))
    if not arguments.resume and not folders:
        raise UsageError(f"there is no sweep in {shown(root)} to go on with")
    folder = Path(arguments.resume).absolute() if arguments.resume else folders[-1].parent
    try:
        about = read_about(folder)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    return folder, about, from_entries(about["requests"], shown(folder / ABOUT))


def _new_folder(root: Path, requests: list[Request], commit: str) -> Path:
    from ..bench.results import new_folder

    check_writable(root)
    folder = new_folder(root, "sweep")
    command = shlex.join(["gdn-lab", *sys.argv[1:]])
    write_about(folder, {"requests": [each.as_json() for each in requests], "commit": commit, "command": command})
    return folder


def _shown(command: tuple[str, ...]) -> str:
    """A job's command as one would type it, without the folder that the job gets."""
    words = shlex.join(("gdn-lab", *command[len(PROGRAM) :]))
    return words.replace(shlex.quote(FOLDER), "FOLDER").replace(shlex.quote(f"{FOLDER}/run"), "FOLDER")


def _print_plan(jobs: list[Job], on: int | None) -> None:
    for job in sorted(jobs, key=lambda job: (-job.gpus, -job.seconds)):
        print(f"{job.gpus} GPU{'s' * (job.gpus > 1)}, about {_minutes(job.seconds)}: {_shown(job.command)}")
    hours = sum(job.gpus * job.seconds for job in jobs) / 3600
    print(f"{len(jobs)} jobs on each type of GPU, about {hours:.1f} GPU hours by recorded runs.")
    if on is not None:
        from ..cluster.simulation import simulate

        found = simulate(jobs, on)
        left = f"; {len(jobs) - found.jobs} jobs need more GPUs than a host has" if found.jobs < len(jobs) else ""
        print(f"On {on} GPUs: about {_minutes(found.seconds)}, the GPUs {100 * found.utilisation:.0f}% in use{left}.")


def _sweep(folder: Path, plans: list[Plan], commit: str, dashboard: bool) -> int:
    from ..cluster.driver import Driver
    from ..cluster.journal import Journal
    from ..cluster.ray_hosts import RayHosts

    journal = Journal(folder, write=True)
    try:
        check_final(folder, journal.final)
        say(f"Rows go to {shown(folder)}. Ray starts, which takes a few seconds.")
        hosts = RayHosts(ROOT, dashboard=dashboard)
    except BaseException:
        journal.close()
        raise
    line = ProgressLine()
    driver = Driver(
        folder,
        hosts,
        lambda gpu: jobs_of(plans, gpu, commit),
        say=line.say,
        progress=line.show,
        journal=journal,
    )
    try:
        driver.run()
    except KeyboardInterrupt:
        raise Interrupted(f"the sweep was interrupted; its rows are kept, and {_goes_on(folder)}") from None
    except OSError as error:
        raise BatchError(f"the sweep stopped: {_why(error)}; its rows are kept; {_goes_on(folder)}") from error
    finally:
        line.end(driver)
        failure = _show_pages(folder)
    if failure:
        raise BatchError(failure)
    return _outcome(driver, folder)


def _show_pages(folder: Path) -> str:
    """Write the pages of a sweep and say where; return why that failed, a sentence, or ""."""
    from .sweep_page import write_pages

    try:
        say(f"Read {shown(write_pages(folder))}")
        return ""
    except OSError as error:
        failure = f"the pages of {shown(folder)} were not written: {_why(error)}; its rows are kept; {_goes_on(folder)}"
        say(failure[0].upper() + failure[1:] + ".")
        return failure


def _why(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror}{where}" if error.strerror else str(error)


def _goes_on(folder: Path) -> str:
    return f"gdn-lab sweep --resume {shown(folder)} goes on"


def _outcome(driver, folder: Path) -> int:
    if not driver.jobs:
        raise BatchError("no host joined, so no job was run; is RAY_ADDRESS that of a cluster with GPUs?")
    if left := driver.unfinished():
        raise BatchError(f"{len(left)} jobs were not run: {_why_left(driver)}; {_goes_on(folder)} with them")
    failed = [status for status in driver.done.values() if status in FAILED]
    return 1 if failed else 0


def _why_left(driver) -> str:
    """Why jobs were not run, in words."""
    gpus = driver.scheduler.gpus()
    if not gpus:
        return "no host is left"
    if wide := driver.scheduler.impossible(dropped=True):
        return f"{wide[0]} needs {wide[0].gpus} {wide[0].gpu} GPU{'s' * (wide[0].gpus > 1)} of one host"
    if dropped := [gpu for gpu in gpus if gpu.dropped]:
        names = listed([f"GPU {gpu.id} of {gpu.host}" for gpu in dropped])
        return (
            f"{names} {'were' if len(dropped) > 1 else 'was'} dropped, since {DROPPED_AFTER} jobs in a row failed there"
        )
    return "no GPU was free for them"


class ProgressLine:
    """One line on what is done, running and left; redrawn on a terminal, printed now and then in a log."""

    def __init__(self):
        self.terminal, self.shown_at, self.open = sys.stdout.isatty(), 0.0, False

    def show(self, driver) -> None:
        """Show it, not too often."""
        now = time.monotonic()
        if now - self.shown_at < (TERMINAL_S if self.terminal else LOG_S) or not driver.jobs:
            return
        self.shown_at, self.open = now, self.terminal
        text = progress_text(driver)
        print(f"\r\x1b[K{text}" if self.terminal else text, end="" if self.terminal else "\n", flush=True)

    def say(self, sentence: str) -> None:
        """Print a sentence above the line."""
        if self.open:
            print("\r\x1b[K", end="")
        self.open, self.shown_at = False, 0.0
        say(f"{datetime.now():%H:%M:%S} {sentence}")

    def end(self, driver) -> None:
        """Print the last line."""
        if self.open:
            print("\r\x1b[K", end="")
        say(progress_text(driver))


def progress_text(driver) -> str:
    """ "12 of 80 done (1 error), 8 running on host a, 60 left, about 12 min": one line on a driver."""
    counts = {status: sum(each == status for each in driver.done.values()) for status in STATUSES}
    odd = ", ".join(f"{count} {status}" for status, count in counts.items() if count and status != "ok")
    states = driver.scheduler.states.values()
    running = [state for state in states if state.on]
    hosts = {state.on[0].host for state in running}
    where = next(iter(hosts)) if len(hosts) == 1 else f"{len(hosts)} hosts"
    text = f"{len(driver.done)} of {len(driver.jobs)} done" + (f" ({odd})" if odd else "")
    text += f", {len(running)} running on {where}" if running else ""
    if waiting := len(states) - len(running):
        text += f", {waiting} left"
    gpus = sum(not gpu.dropped for gpu in driver.scheduler.gpus())
    if driver.finished_s and states and gpus:
        slower = driver.busy_s / driver.finished_s  # than expected, so far
        left = sum(state.job.gpus * state.job.seconds for state in states) * slower / gpus
        text += f", about {_minutes(left)}"
    return text


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
