"""Checks under compute-sanitizer, with a program in its place."""

import pytest

from gdn_lab.cli import check_calls
from gdn_lab.judge import apart

# Runs what it was given after its options, unless it is told to do something else with a tool.
TOOL = """#!/bin/sh
tool=$2; shift 6
case "$tool" in {case}) {instead};; esac
exec "$@"
"""


@pytest.fixture
def sanitizer(tmp_path, monkeypatch, capsys):
    """sanitizer(case, instead): (status, {tool: what was printed of it}) with a tool that does `instead` for `case`."""

    def run(case, instead):
        path = tmp_path / "compute-sanitizer"
        path.write_text(TOOL.format(case=case, instead=instead))
        path.chmod(0o755)
        monkeypatch.setattr(apart, "TOOL", str(path))
        request = {"judged": ["torch/vk"], "kernels": [], "seed": 0}
        status = check_calls.sanitized(request)
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        return status, {words[1]: words[0] for words in lines if words[0] in ("pass", "fail")}

    return run


def test_each_tool_has_a_result_of_its_own(sanitizer):
    assert sanitizer("memcheck", '"$@"; exit 9') == (1, {"memcheck": "fail", "racecheck": "pass"})


def test_a_tool_that_hangs_is_ended(sanitizer, monkeypatch):
    monkeypatch.setattr(check_calls, "SANITIZER_PATIENCE_S", 0.3)
    assert sanitizer("*", "exec sleep 1000") == (1, {"memcheck": "fail", "racecheck": "fail"})
