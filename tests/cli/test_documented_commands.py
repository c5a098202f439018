"""Every command that the project shows is executed, or, where that takes long or needs a GPU, parsed by its program.

What make would start is recorded by letting it call a program that writes its words down. A command that no rule here
knows is a failure.
"""

import argparse
import importlib
import json
import re
import shlex
import sqlite3
import subprocess
import sys

import pytest
from _pytest.config import get_config
from documented import PROGRAM, ROOT, commands, in_makefile, in_markdown

from gdn_lab.cli import run as batch
from gdn_lab.cli.main import COMMANDS, main, parser
from gdn_lab.cli.profile import FLAGS
from gdn_lab.trace import read

SHOWN = commands()
TRACE = ROOT / "data" / "measured" / "h100" / "04_nsight_systems" / "capture.sqlite"
NO_TRACES = ("mine.nsys-rep", "mine.sqlite", "file")  # stand for a trace of the reader's

# gdn-lab commands that are executed: status, if not 0 alone.
EXECUTED = {
    "advise": (0,),
    "backends": (0,),
    "board": (0,),
    "clean": (0,),
    "compare": (0, 3),
    "list": (0,),
    "scrub": (0,),
    "stats": (0,),
}
# Those whose words are parsed, parameters of notebooks included, and why no more.
PARSED = {
    "judge": "takes half a minute; tests/verdict/test_examples.py calls it",
    "check": "takes half a minute; tests/cli/test_check.py calls it",
    "run": "a notebook takes 5 to 30 s; tests/cli/test_notebooks.py executes each",
    "profile": "executes notebook 04; tests/cli/test_profile.py does so",
    "record": "measures for minutes; tests/cli/test_record_command.py calls it",
    "site": "executes notebooks; tests/cli/test_site.py has its parts",
    "report": "takes 10 s; tests/cli/test_readme.py calls it",
    "smoke": "needs a GPU",
    "train": "takes four minutes of a GPU; tests/cli/test_train_command.py calls it",
    "serve": "needs a GPU but for --toy; tests/cli/test_serve_command.py serves with that",
    "sweep": "needs Ray; tests/cli/test_sweep_command.py calls it",
    "lab": "starts a server; tests/cli/test_lab.py looks at its words",
    "constraints": "downloads several GB",
}
ALL_THE_SAME = ("run 00 -p batch 8",)  # executed although others of that name are parsed alone
# Shown as names: without words they are usage errors, as they say.
INCOMPLETE = {
    "check": "the following arguments are required: FILE|NAME",
    "judge": "the following arguments are required: FILE",
    "compare": "the following arguments are required: A, B",
    "scrub": "name the trace",
}
# Targets of make that start no gdn-lab command of a checkout as it is; make -n must know them.
MAKE_ALONE = {"help": "prints", "clean": "removes .venv"}
# What is no command of ours: why it is not executed.
ELSEWHERE = {
    "nsys stats": "the name of a program of Nsight Systems",
    "nvidia-smi lists …, but torch … cannot use it": "a sentence of gdn_lab/cli/run.py",
    "python3 is Python 3.13.1": "a sentence of the Makefile",
}


@pytest.fixture
def started(tmp_path):
    """started(words): [(program, its words)] of what make starts; program is "gdn-lab" or "python"."""
    log = tmp_path / "started.jsonl"
    for name in ("gdn-lab", "python"):
        (tmp_path / name).write_text(
            f"#!{sys.executable}\nimport json, sys\n"
            f"open({str(log)!r}, 'a').write(json.dumps([{name!r}, sys.argv[1:]]) + '\\n')\n"
        )
        (tmp_path / name).chmod(0o755)
    programs = [f"GDN_LAB={tmp_path / 'gdn-lab'}", f"IN_VENV={tmp_path / 'python'}", "READY="]

    def run(words):
        done = make([*words, *programs])
        assert done.returncode == 0, done.stdout + done.stderr
        return [tuple(json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []

    return run


def make(words) -> subprocess.CompletedProcess:
    """make in the checkout, with nothing from the make that may be running these tests."""
    plain = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nowhere"}
    return subprocess.run(["make", *words], cwd=ROOT, env=plain, capture_output=True, text=True)


# ---- one test for each command --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("forked_kernel")
@pytest.mark.parametrize("command", [command for command in SHOWN if command not in ELSEWHERE])
def test_a_command_that_is_shown_works(command, started, tmp_path, capsys):
    words = shlex.split(command)
    program = words[0].removeprefix(".venv/bin/")
    where = f"`{command}` of {', '.join(SHOWN[command])}"
    if program == "gdn-lab":
        gdn_lab(words[1:], tmp_path, capsys)
    elif program == "make":
        targets = {word for word in words[1:] if re.fullmatch("[a-z-]{3,}", word)}
        if targets & set(MAKE_ALONE):
            assert make(["-n", *words[1:]]).returncode == 0, where
            return
        calls = started(words[1:])
        assert calls, f"{where} starts nothing"
        for called, given in calls:
            gdn_lab(given, tmp_path, capsys) if called == "gdn-lab" else of_python(given)
    elif words[:2] == ["nsys", "profile"]:
        assert set(words[2 : words.index("-o")]) <= set(FLAGS), f"{where}: gdn-lab profile gives other flags"
    elif words[:2] == ["sqlite3", "FILE"]:
        with sqlite3.connect(tmp_path / "wal.sqlite") as database:
            assert database.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
            assert database.execute(words[2]).fetchone()[0] == 0
    else:
        pytest.fail(f"no rule here knows {where}")


def gdn_lab(words, tmp_path, capsys) -> None:
    """Execute or parse one command of gdn-lab, on a stored trace and with runs in a folder of the test's."""
    if words in (["--help"], ["--version"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
        return
    name = words[0]
    assert name in COMMANDS, f"gdn-lab has no command {name}"
    if name in INCOMPLETE and not any(words[1:]):
        assert INCOMPLETE[name] in usage_error(words, capsys)
        return
    if name == "scrub":
        words = ["scrub", str(TRACE), str(tmp_path / "copy.sqlite")]
    words = [str(TRACE) if word in NO_TRACES else word for word in words]
    if name in EXECUTED or " ".join(words) in ALL_THE_SAME:
        if name in ("run", "clean", "board") or "--runs" in words:
            (tmp_path / "runs").mkdir(exist_ok=True)
            words = [*(word for word in words if word != "--runs"), "--runs", str(tmp_path / "runs")]
        assert main(words) in EXECUTED.get(name, (0,)), capsys.readouterr().err
    else:
        assert name in PARSED, f"gdn-lab {name} is neither executed nor parsed"
        parsed(name, words)


def usage_error(words, capsys) -> str:
    try:
        assert main(words) == 2
    except SystemExit as end:
        assert end.code == 2
    return capsys.readouterr().err


def parsed(name, words) -> None:
    """Parse the words as gdn-lab does; check parameters of notebooks as it does before it runs any."""
    module = importlib.import_module(f"gdn_lab.cli.{COMMANDS[name][0]}")
    arguments = parser(name, module).parse_args(words)
    if name in ("run", "profile"):
        notebooks = batch.find(["03", "04"] if name == "profile" else arguments.notebooks)
        for path, own in batch.divided(batch.given_words(arguments.parameters), notebooks).items():
            batch.values(path, own)
    if getattr(arguments, "trace", None):
        read(arguments.trace)


# ---- what make starts with Python -----------------------------------------------------------------------------------


def of_python(words) -> None:
    """Parse what a development tool is given; ruff is executed."""
    if words[0] == "-c":
        compile(words[1], "make", "exec")
        return
    assert words[0] == "-m"
    tool, words = words[1], words[2:]
    if tool == "pytest":
        known_to_pytest(words)
    elif tool == "ruff":
        assert subprocess.run([sys.executable, "-m", "ruff", *words], cwd=ROOT).returncode == 0
    elif tool in ("fuzz", "mutants"):
        assert only_parsed(importlib.import_module(f"{tool}.__main__").main, words)
    else:
        pytest.fail(f"no rule here knows python -m {tool}")


def known_to_pytest(words) -> None:
    """pytest.UsageError if the plugins and conftest.py of this project do not know an option."""
    config = get_config(words)
    try:
        config.parse(words)
    finally:
        config._ensure_unconfigure()


def only_parsed(main, words):
    """The namespace that main(words) parses with argparse; nothing else of it is executed."""
    parse = argparse.ArgumentParser.parse_args

    class Parsed(Exception):
        pass

    def parse_and_stop(self, given=None, namespace=None):
        raise Parsed(parse(self, given, namespace))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as found:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        main(words)
    return found.value.args[0]


# ---- the rules themselves -------------------------------------------------------------------------------------------


def test_every_rule_is_needed():
    used = {name for command in SHOWN for name in shlex.split(command)[1:2]} | set(COMMANDS)
    assert set(EXECUTED) | set(PARSED) <= used
    assert not set(EXECUTED) & set(PARSED)
    assert set(ELSEWHERE) <= set(SHOWN), "a sentence that is no longer shown"
    for said in ("lists {gpu}, but torch {torch.__version__} cannot use it", "is Python {v[0]}.{v[1]}.{v[2]}"):
        assert said in (ROOT / "gdn_lab" / "cli" / "run.py").read_text() + (ROOT / "Makefile").read_text()


PAGE = """Say `make run` or `gdn-lab`.

    gdn-lab list 02   # one

```bash
make test
```
```python
make = 1
```
"""
MAKEFILE = """#   ARGS="..."  as in make run ARGS="-p seed 1", and `gdn-lab smoke --list`
fuzz: x  ## do it [ARGS=2] [-j 8]
"""


def test_commands_are_found_wherever_they_are_shown():
    assert in_markdown(PAGE) == ["make test", "make run", "gdn-lab list 02"]
    in_comments = ['make run ARGS="-p seed 1"', "gdn-lab smoke --list"]
    assert in_makefile(MAKEFILE) == ["make fuzz", "make fuzz ARGS=2 -j 8", *in_comments]
    assert all(PROGRAM.match(command) for command in SHOWN), "an indented line that is no command"
    places = {name for names in SHOWN.values() for name in names}
    assert {"README.md", "Makefile", "CONTRIBUTING.md", "traces.md", "04_nsight_systems.ipynb"} <= places


@pytest.mark.parametrize(
    "command",
    [
        "gdn-lab frobnicate",
        "gdn-lab run 02 -p sampels 3",
        "gdn-lab advise --modle x",
        "make run ARGS='-p nothing 1'",
        "make test ARGS=--no-such-option",
        "make frobnicate",
        "nsys profile --trace=vulkan -o mine python server.py",
        "rm -r x",
    ],
)
def test_a_command_that_does_not_work_is_noticed(command, started, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(SHOWN, command, ["a page"])
    with pytest.raises((AssertionError, SystemExit, batch.UsageError, pytest.UsageError, pytest.fail.Exception)):
        test_a_command_that_is_shown_works(command, started, tmp_path, capsys)
