"""gdn-lab check: a line for each check, a verdict, exit status 0, 1 or 2, and how to repeat a call that failed."""

import re

import pytest
from planted_kernels import PLANTED, Planted

from gdn_lab.bench.run_folder import load
from gdn_lab.cli.main import main

RIGHT = Planted((), {}).source()


def test_a_file_that_cannot_hold_a_kernel_is_named_as_such(tmp_path, capsys):
    path = tmp_path / "notes.md"
    path.write_text("no kernel")
    for command in ("check", "judge"):
        assert main([command, str(path)]) == 2
        assert "notes.md has no kernel; expected a .py that registers" in capsys.readouterr().err


def test_a_right_kernel(judged_here, kernel_file, capsys):
    assert main(["check", str(kernel_file(RIGHT)), "--only", "padding,CUDA graph"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("planted/vk on ")
    assert [line.split()[0] for line in lines[1:3]] == ["pass", "refused"]
    assert lines[2] == "refused  CUDA graph             needs a GPU"
    assert re.fullmatch(r"planted/vk: correct on CPU \(1 pass, 0 fail, 1 refused; \d+ s\)", lines[3])


def test_a_wrong_one(judged_here, kernel_file, capsys):
    path = kernel_file(PLANTED["a state stored for padding rows"].source())
    assert main(["check", str(path), "--only", "padding"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^fail +padding +slot \d+ changed, which no row names \(B = ", out, re.MULTILINE)
    assert "planted/vk: incorrect on CPU" in out


def test_one_that_crashes(kernel_file, capsys, forked_python):
    path = kernel_file('import os\nfrom gdn_lab import variant\n@variant("mine/vk")\ndef f(*_, **__): os.abort()\n')
    assert main(["check", str(path), "--only", "padding,out"]) == 1
    out = capsys.readouterr().out
    assert "error    padding                the process was ended by SIGABRT" in out
    assert "mine/vk: error on CPU (the process was ended by SIGABRT in padding; " in out


def test_one_that_cannot_run_here(judged_here, kernel_file, capsys):
    path = kernel_file(
        'from gdn_lab import variant\n@variant("mine/vk", supports=lambda c: "is away")\ndef f(*_, **__): ...'
    )
    assert main(["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "refused  device                 is away" in out and "mine/vk: refused on CPU" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing.py"], "there is no file nothing.py"),
        (["nothing/vk"], "there is no variant 'nothing/vk'"),
        (["torch/vk", "--only", "padding,nothing"], "there is no check 'nothing'"),
        (["torch/vk", "--calls", "3", "--seconds", "3"], "exclude each other"),
        (["torch/vk", "--calls", "-1"], "--calls: expected a whole number from 1 up, got -1"),
        (["torch/vk", "--calls", "0"], "--calls: expected a whole number from 1 up, got 0"),
        (["torch/vk", "--call", "-1"], "--call: expected a whole number from 0 up, got -1"),
        (["torch/vk", "--calls", "5", "--processes", "-1"], "--processes: expected a whole number from 1 up, got -1"),
        (["torch/vk", "--calls", "5", "--processes", "0"], "--processes: expected a whole number from 1 up, got 0"),
        (["torch/vk", "--seconds", "nan"], "--seconds: expected a positive number, got nan"),
        (["torch/vk", "--seconds", "inf"], "--seconds: expected a positive number, got inf"),
        (["torch/vk", "--seconds", "0"], "--seconds: expected a positive number, got 0"),
        (["torch/vk", "--only", ","], "--only: expected names of checks such as reference,padding, got ','"),
    ],
)
def test_usage_errors(judged_here, words, sentence, capsys):
    assert main(["check", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_names_of_checks_may_have_spaces_before_them(judged_here, capsys):
    assert main(["check", "torch/vk", "--only", "reference, padding"]) == 0
    assert "2 pass" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_a_sentence(capsys):
    assert main(["check", "torch/vk", "--calls", "5", "--runs", "/dev/null/runs"]) == 1
    assert re.fullmatch(r"gdn-lab: cannot write results to /dev/null/runs: .*\n", capsys.readouterr().err)


def test_an_error_in_the_file(judged_here, kernel_file, capsys):
    assert main(["check", str(kernel_file("x = 1\ny = z\n"))]) == 2
    err = capsys.readouterr().err
    assert "line 2" in err and err.endswith("gdn-lab: mine.py, line 2: NameError: name 'z' is not defined\n")


def test_random_calls_and_how_to_repeat_one(kernel_file, capsys, tmp_path, forked_python):
    path = kernel_file(PLANTED["padding only where the index is -1"].source())
    runs = tmp_path / "runs"
    assert main(["check", str(path), "--calls", "60", "--seed", "5", "--runs", str(runs), "--processes", "2"]) == 1
    out = capsys.readouterr().out
    found = re.search(r"repeat it with: gdn-lab check (\S+) --seed 5 --call (\d+)", out)
    assert found and found[1] == str(path) and f"call {found[2]}: " in out
    info, kept = load(runs / "latest")
    assert info["command"] == "gdn-lab check mine.py --calls 60 --seed 5 --runs runs --processes 2"
    assert info["parameters"]["judged"] == ["mine.py"], "no folder of the machine"
    assert info["status"] == "complete" and info["parameters"]["calls"] == 60 and "torch" in info["environment"]
    assert {row["shares"] for row in kept} == {2} and {row["first"] for row in kept} <= {0, 1}
    assert sum(row["failed"] for row in kept) >= 1 and {row["variant"] for row in kept} == {"planted/vk"}
    assert main(["check", str(path), "--seed", "5", "--call", found[2]]) == 1
    again = capsys.readouterr().out
    assert re.search(r"call \d+: (.*)", again)[1] == re.search(r"call \d+: (.*)", out)[1]
