"""gdn-lab train: what it refuses, and the files that it writes."""

import json

import pytest
import torch

from gdn_lab.cli.main import main
from gdn_lab.trained import training


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--steps", "0"], "expected a positive time or number of steps, got 0"),
        (["--seconds", "nan"], "expected a positive time or number of steps, got nan"),
        (["--seconds", "-1"], "expected a positive time or number of steps, got -1"),
    ],
)
def test_what_cannot_be_asked(words, match, capsys):
    assert main(["train", *words]) == 2
    assert match in capsys.readouterr().err


def test_a_machine_without_a_gpu_is_warned_of_hours(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["train"]) == 2
    assert "hours on a CPU, and torch finds no GPU here; try --steps 2" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_said_before_it_trains(capsys, monkeypatch):
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("it trained"))
    assert main(["train", "--steps", "1", "--folder", "/dev/null/x"]) == 1
    said = "cannot write to the output folder /dev/null/x: Not a directory; name another with --folder FOLDER"
    assert said in capsys.readouterr().err


def test_the_files_say_how_it_was_trained(tmp_path, capsys, monkeypatch):
    given = []
    monkeypatch.setattr(training, "train", lambda *arguments: given.append(arguments))
    assert main(["train", "--steps", "3", "--seed", "5", "--folder", str(tmp_path)]) == 0
    (_, plan, folder, _, _), facts = given[0], json.loads((tmp_path / "train.json").read_text())
    assert (plan.steps, plan.seed, folder) == (3, 5, tmp_path)
    assert facts["plan"]["steps"] == 3 and facts["sizes"]["hidden"] == 256 and facts["environment"]["torch"]
    assert f"are in {tmp_path}" in capsys.readouterr().out
