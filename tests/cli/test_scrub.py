"""gdn-lab scrub and make capture-scrub: exit statuses and sentences."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from recorded_traces import two_steps, write_nsys

from gdn_lab.cli.main import main
from gdn_lab.trace import read, table


@pytest.fixture
def trace(tmp_path):
    return write_nsys(tmp_path / "trace.sqlite", two_steps())


def test_command(trace, tmp_path, capsys):
    assert main(["scrub", str(trace), str(tmp_path / "out.sqlite")]) == 0
    assert "look through them before you share it" in capsys.readouterr().out
    for nothing in ([], [""]):
        assert main(["scrub", *nothing]) == 2 and "name the trace" in capsys.readouterr().err
    assert main(["scrub", str(tmp_path / "none.sqlite")]) == 1
    assert capsys.readouterr().err.startswith("gdn-lab: there is no trace")


def test_usage(capsys):
    for words, status in (["--help"], 0), (["trace", "out", "more"], 2), (["--other"], 2):
        with pytest.raises(SystemExit) as left:
            main(["scrub", *words])
        assert left.value.code == status
    printed = capsys.readouterr()
    assert "usage: gdn-lab scrub" in printed.out and ".nsys-rep, .sqlite" in printed.out
    assert "unrecognized arguments: more" in printed.err


def test_make_target(trace):
    out = trace.with_name("shared copy.sqlite")
    words = [f"CAPTURE={trace}", f"OUT={out}", f"GDN_LAB={sys.executable} -m gdn_lab", "READY="]
    # as from a shell, not as from the make that runs the tests
    alone = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS")
    }
    root = Path(__file__).parents[2]
    done = subprocess.run(["make", "capture-scrub", *words], cwd=root, capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stderr
    assert table(read(out)).equals(table(read(trace)))
