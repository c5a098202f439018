"""make: every target is a command of gdn-lab, and what a user gives reaches it as it was given."""

import os
import re
import subprocess

import pytest

from gdn_lab.cli import run as batch
from gdn_lab.cli.main import COMMANDS


def make(*words, options=("-n",)) -> subprocess.CompletedProcess:
    """make -n, as from a shell and not as from the make that runs the tests."""
    alone = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS")
    }
    return subprocess.run(["make", *options, *words], cwd=batch.ROOT, capture_output=True, text=True, env=alone)


@pytest.mark.parametrize("given", ["tests/test_pool.py::test_x", "-k 'a or b' --runs=/x/y:z", "100%", "-p tokens 2,4"])
@pytest.mark.parametrize("target", ["test", "run", "bench", "test-gpu", "list"])
def test_make_passes_arguments_on_whatever_is_in_them(target, given):
    done = make(target, f"ARGS={given}")
    assert done.returncode == 0, done.stderr
    assert given in done.stdout


def test_make_help_lists_every_target():
    listed = re.findall(r"^  make ([\w-]+)", make("help", options=()).stdout, re.MULTILINE)
    text = (batch.ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE).group(1).split()
    assert sorted(listed) == sorted(phony)
    for command in set(COMMANDS) - {"smoke", "resources", "scrub", "stats"}:
        assert command in listed, "each command for a user has a target of its name"


def test_make_sanitize_is_a_process_for_each_tool_and_group(tmp_path):
    lists = tmp_path / "gdn-lab"
    lists.write_text("#!/bin/sh\nprintf 'triton\\nmy-kernel\\n'\n")
    lists.chmod(0o755)
    calls = re.findall(
        r"--tool \$tool .*?gdn_lab smoke ([\w-]+)", make("sanitize", f"GDN_LAB={lists}").stdout, re.DOTALL
    )
    assert calls == ["triton", "my-kernel"] * 2
    alone = make("sanitize-racecheck-step").stdout
    assert "tool=racecheck;" in alone and re.findall(r"gdn_lab smoke (\w+)", alone) == ["step"]


def test_make_quotes_the_name_of_a_trace():
    printed = make("profile", "capture-scrub", "CAPTURE=my trace.sqlite").stdout
    assert 'gdn-lab profile ${CAPTURE:+"$CAPTURE"}' in printed and 'gdn-lab scrub "$CAPTURE"' in printed


HOSTILE = [
    "a`touch ran`.sqlite",
    "a$(touch ran).sqlite",
    "a$(shell touch ran).sqlite",
    "a${HOME} $$ $x.sqlite",
    'a"; touch ran; ".sqlite',
    "a'; touch ran; '.sqlite",
    "two  blanks .sqlite ",
    "two\nlines\ttab.sqlite",
    "*?[a-z]\\#%:=&|<>.sqlite",
    "-p.sqlite",
]


@pytest.fixture
def called(tmp_path):
    """called(*words of make): the words that gdn-lab, python or pip then get."""
    (tmp_path / "program").write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" > '{tmp_path}/words'\n")
    (tmp_path / "program").chmod(0o755)
    programs = [f"{name}={tmp_path / 'program'}" for name in ("GDN_LAB", "IN_VENV")]

    def do(*words, options=()):
        done = make(*words, *programs, "READY=", options=options)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert not (batch.ROOT / "ran").exists()
        return (tmp_path / "words").read_text().removesuffix("\0").split("\0")

    return do


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_reaches_a_shell(called, name):
    assert called("profile", f"CAPTURE={name}") == ["profile", name]
    assert called("capture-scrub", f"CAPTURE={name}", f"OUT={name}.out") == ["scrub", name, f"{name}.out"]
    assert called("fuzz", f"CASE={name}")[-2:] == ["--case", name]
    assert called("bench", f"KERNEL={name}") == ["run", "02", "--kernel", name]
    assert called("check", f"KERNEL={name}") == ["check", name]
    assert called("judge", f"KERNEL={name}") == ["judge", name]


def test_a_name_in_the_environment_is_taken_too(called, monkeypatch):
    monkeypatch.setenv("CAPTURE", HOSTILE[2])
    assert called("profile") == ["profile", HOSTILE[2]]
    monkeypatch.delenv("CAPTURE")
    assert called("profile") == ["profile"]


def test_make_expands_nothing_in_arguments(called):
    assert called("run", "ARGS=-p name '$(shell touch ran) $x' -p tp 8") == [
        "run", "-p", "name", "$(shell touch ran) $x", "-p", "tp", "8",
    ]  # fmt: skip


def test_a_python_that_is_not_there_is_said_whatever_its_name(tmp_path):
    name = "no `touch ran` $(shell touch ran)/python"
    done = make("run", f"PYTHON={name}", f"READY={tmp_path / 'ready'}", f"VENV={tmp_path}", options=())
    assert done.returncode == 2 and f"There is no {name} here; install Python 3.11" in done.stdout
    assert not (batch.ROOT / "ran").exists()
