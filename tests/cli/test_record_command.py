"""gdn-lab record: parameters, rows in a run folder, going on where a run stopped; with a made-up study."""

import json
import shutil

import pytest
from pydantic import Field

from gdn_lab.bench.run_folder import load
from gdn_lab.cli import record_command as record
from gdn_lab.cli.main import main
from gdn_lab.studies import Study
from gdn_lab.studies.parameters import ModelParameters


class Parameters(ModelParameters):
    points: int = Field(3, ge=1, description="rows to make")
    minutes: float = Field(5.0, gt=0, description="time limit")


def measure(p, run, earlier):
    """A row for each point that `earlier` lacks; the time limit is as many rows."""
    done = {row["point"] for row in earlier}
    for point in [point for point in range(p.points) if point not in done][: int(p.minutes)]:
        run.append({"status": "fact", "phase": "mine", "point": point, "tp": p.tp})


STUDY = Study("99", "mine", "Does it go on?", Parameters, record=measure, gpus="tp")


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "studies", lambda: [STUDY])
    return lambda *words: main(["record", "mine", "--runs", str(tmp_path), *words])


def points(folder):
    return [row["point"] for row in load(folder)[1]]


def newest(root):
    return (root / "latest").resolve()


def test_it_writes_a_run_of_the_study(call, tmp_path, capsys):
    assert call("--gpus", "2", "-p", "points", "4") == 0
    run, rows = load(newest(tmp_path))
    assert run["notebook"] == "99_mine" and run["status"] == "complete" and len(rows) == 4
    assert {row["tp"] for row in rows} == {2} and run["parameters"]["points"] == "4"
    assert run["command"] == "gdn-lab record mine -p tp 2 -p points 4 -p minutes 9"
    assert "4 rows in" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--runs", "--folder"])
def test_a_folder_that_cannot_be_written_is_a_sentence(call, capsys, option):
    assert call(option, "/dev/null/x") == 1
    said = f"cannot write to the output folder /dev/null/x: Not a directory; name another with {option} FOLDER"
    assert capsys.readouterr().err == f"gdn-lab: {said}\n"


def test_the_same_command_goes_on_and_another_one_does_not(call, tmp_path, capsys):
    call("--minutes", "2", "-p", "points", "5")
    first = newest(tmp_path)
    assert points(first) == [0, 1]
    call("--minutes", "2", "-p", "points", "5")
    assert points(newest(tmp_path)) == [0, 1, 2, 3] and "Taken over from" in capsys.readouterr().out
    call("-p", "points", "5")
    assert points(newest(tmp_path)) == [0, 1, 2, 3, 4]
    call("-p", "points", "6", "--minutes", "1")
    assert points(newest(tmp_path)) == [0], "another number of points is another run"
    call("--fresh", "--minutes", "1", "-p", "points", "5")
    assert points(newest(tmp_path)) == [0]
    call("--resume", str(first), "--minutes", "1", "-p", "points", "5")
    assert points(newest(tmp_path)) == [0, 1, 2]


def test_an_interrupted_run_is_gone_on_with(call, tmp_path, monkeypatch):
    def interrupted(p, run, earlier):
        measure(p.model_copy(update={"minutes": 1.0}), run, earlier)
        raise KeyboardInterrupt

    monkeypatch.setattr(record, "studies", lambda: [Study("99", "mine", "?", Parameters, record=interrupted)])
    assert call() == 130
    assert load(newest(tmp_path))[0]["status"] == "interrupted"
    monkeypatch.setattr(record, "studies", lambda: [STUDY])
    assert call() == 0 and points(newest(tmp_path)) == [0, 1, 2]


def test_rows_of_other_kernels_or_another_gpu_are_not_taken_over(call, tmp_path, capsys):
    call("--minutes", "1")
    folder = newest(tmp_path)
    info = json.loads((folder / "run.json").read_text())
    for change, reason in (
        ({"kernels": {"x": "y"}}, "the kernels have changed since"),
        ({"environment": info["environment"] | {"gpu_name": "H9"}}, "it ran on H9, here is"),
        ({"notebook": "02_decode_kernels"}, "it is a run of 02_decode_kernels, not of 99_mine"),
        ({"parameters": info["parameters"] | {"points": 7}}, "its points was 7, here it is 3"),
    ):
        (folder / "run.json").write_text(json.dumps(info | change))
        assert call("--resume", str(folder)) == 2
        assert reason in capsys.readouterr().err
        call("--minutes", "1")
        assert points(newest(tmp_path)) == [0]
        shutil.rmtree(newest(tmp_path))


def test_rows_can_go_into_a_given_folder(call, tmp_path):
    assert call("--folder", str(tmp_path / "out" / "rows")) == 0
    assert points(tmp_path / "out" / "rows") == [0, 1, 2]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["mine", "-p", "tp", "3"], "tp: qwen3.5-397b-a17b has 16 key and 64 value heads"),
        (["mine", "-p", "pints", "3"], "gdn-lab record mine has no parameter 'pints' (did you mean 'points'?)"),
        (["mine", "--gpus", "2", "-p", "tp", "4"], "--gpus 2 and -p tp 4 contradict each other"),
        (["other"], "there is no study 'other' to record; choose one of mine"),
        (["mine", "--resume", "nowhere"], "--resume nowhere: there is no run folder nowhere"),
    ],
)
def test_wrong_words_are_one_sentence(words, sentence, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(record, "studies", lambda: [STUDY])
    assert main(["record", *words, "--runs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not list(tmp_path.iterdir())
