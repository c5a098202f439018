"""Checks under compute-sanitizer, with a program in its place that judges nothing."""

import sys

import pytest

from gdn_lab.cli import check_calls
from gdn_lab.judge import apart

DONE = "import json, os, sys; os.write(json.loads(sys.argv[1])['fd'], b'{\"done\": true}\\n')"
TOOL = """#!/bin/sh
for last; do :; done
{python} -c "{done}" "$last"
case "$2" in {case}) {instead};; esac
"""


@pytest.fixture
def sanitizer(tmp_path, monkeypatch, capsys):
    """sanitizer(case, instead, done): (status, {tool: what was printed of it}); `case` tools do `instead` at their end.

    done: the Python program that tells gdn-lab that every check was made.
    """

    def run(case, instead, done=DONE):
        path = tmp_path / "compute-sanitizer"
        done = done.replace('"', '\\"')
        path.write_text(TOOL.format(python=sys.executable, done=done, case=case, instead=instead))
        path.chmod(0o755)
        monkeypatch.setattr(apart, "TOOL", str(path))
        status = check_calls.sanitized({"judged": ["torch/vk"], "kernels": [], "seed": 0})
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        return status, {words[1]: words[0] for words in lines if words[0] in ("pass", "fail")}

    return run


def test_each_tool_has_a_result_of_its_own(sanitizer):
    assert sanitizer("none", ":") == (0, {"memcheck": "pass", "racecheck": "pass"})
    assert sanitizer("memcheck", "exit 9") == (1, {"memcheck": "fail", "racecheck": "pass"})


def test_a_tool_that_hangs_is_ended(sanitizer, monkeypatch):
    monkeypatch.setattr(check_calls, "SANITIZER_PATIENCE_S", 0.3)
    assert sanitizer("*", "exec sleep 1000", done="pass") == (1, {"memcheck": "fail", "racecheck": "fail"})
