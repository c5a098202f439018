"""--kernel FILE: the kernels of a file are registered for the command and what it starts, or it is a usage error."""

import json
import os

import pytest

from gdn_lab.backends import author_files
from gdn_lab.cli.errors import UsageError
from gdn_lab.cli.kernel_files import register_from
from gdn_lab.cli.main import COMMANDS, TAKE_KERNELS, main


def test_a_file_is_listed(kernel_file, capsys):
    path = kernel_file()
    try:
        assert main(["backends", "--json", "--kernel", str(path)]) == 0
        printed = capsys.readouterr()
        found = {record.get("variant"): record for record in json.loads(printed.out)}
        assert found["mine/vk"]["role"] == "yours" and found["mine/vk"]["can_run_here"]
        assert printed.err == "mine/vk: mine.py\n"
        assert os.environ[author_files.VARIABLE] == str(path), "a notebook's process loads it, too"
    finally:
        os.environ.pop(author_files.VARIABLE, None)


def test_an_error_in_the_file_is_a_usage_error_with_its_own_traceback(kernel_file, capsys):
    path = kernel_file("def f():\n    1 / 0\n\n\nf()\n")
    assert main(["backends", "--kernel", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n  File")
    assert f'{path}", line 5' in err and "author_files.py" not in err
    assert err.endswith("gdn-lab: mine.py, line 2: ZeroDivisionError: division by zero\n")
    assert author_files.VARIABLE not in os.environ


def test_a_file_that_is_not_there_is_a_usage_error(kernel_file, tmp_path, capsys):
    assert main(["backends", "--kernel", str(tmp_path / "no.py")]) == 2
    assert "there is no kernel file" in capsys.readouterr().err


@pytest.mark.parametrize("command", TAKE_KERNELS)
def test_commands_that_list_or_time_variants_take_it(command, capsys):
    assert command in COMMANDS
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--kernel FILE" in capsys.readouterr().out


def test_jupyterlab_is_not_given_it(kernel_file, monkeypatch):
    path = str(kernel_file())
    monkeypatch.setenv(author_files.VARIABLE, "")
    assert register_from(["--port", "9000", "--kernel", path, f"--kernel={path}"]) == ["--port", "9000"]
    assert os.environ[author_files.VARIABLE] == path
    with pytest.raises(UsageError, match="--kernel: expected a file"):
        register_from(["--kernel"])
