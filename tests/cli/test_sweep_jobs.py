"""The jobs that a sweep's requests become: typed values, one job for each point, notebooks of the user's own."""

import nbformat
import pytest

from gdn_lab.cli import sweep_command, sweep_jobs
from gdn_lab.cli.errors import UsageError
from gdn_lab.cli.main import main
from gdn_lab.cluster.request import from_words


def plan(study, over=(), given=None, gpus=None, minutes=60):
    return sweep_jobs.Plan(from_words(study, list(over), given or {}, gpus, minutes))


def notebook(path, text="x = 1"):
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "p"}, "language_info": {"name": "python"}}
    )
    book.cells = [nbformat.v4.new_code_cell(text, metadata={"tags": ["parameters"]})]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return str(path)


def test_own_notebooks_of_one_name_are_different_jobs(tmp_path):
    names = [notebook(tmp_path / folder / "toy.ipynb") for folder in ("a", "b")]
    one, two = sweep_jobs.jobs_of([plan(name) for name in names], "h100", "c")
    assert one.id != two.id and one.study != two.study and one.study.startswith("toy-")
    assert [job.command[4] for job in (one, two)] == names


def test_an_own_notebook_that_was_changed_is_another_job(tmp_path):
    before, after = (plan(notebook(tmp_path / "toy.ipynb", f"x = {x}")).jobs("h100", "c")[0] for x in (1, 2))
    assert before.id != after.id


@pytest.mark.parametrize("other, reason", [({"gpus": 2}, "gpus"), ({"minutes": 5}, "minutes")])
def test_a_point_that_is_asked_for_in_two_ways_is_refused(other, reason):
    with pytest.raises(UsageError, match=f"02_decode_kernels is asked for twice .* different {reason}"):
        sweep_jobs.jobs_of([plan("02"), plan("02", **other)], "h100", "c")


def test_a_point_that_is_asked_for_in_two_ways_is_refused_before_anything_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep_command, "_sweep", None)
    path = tmp_path / "grid.yaml"
    path.write_text("- {study: 02, gpus: 1}\n- {study: 02, gpus: 2}\n")
    assert main(["sweep", str(path), "--runs", str(tmp_path)]) == 2
    assert "is asked for twice" in capsys.readouterr().err


def test_the_plan_counts_a_job_once(tmp_path, capsys):
    path = tmp_path / "grid.yaml"
    path.write_text("- {study: 02, over: {tp: [1, 2]}}\n- study: 02\n")
    assert main(["sweep", str(path), "--plan"]) == 0
    assert "2 jobs on each type of GPU" in capsys.readouterr().out


def test_values_that_mean_the_same_are_one_point():
    asked = plan("02", ["tp=1,01,2"], {"samples": "05"})
    assert asked.request.over == {"tp": ["1", "2"]} and asked.request.given == {"samples": "5"}
    jobs = sweep_jobs.jobs_of([asked], "h100", "c")
    assert [job.parameters["tp"] for job in jobs] == ["1", "2"]
    assert jobs[0].id == plan("02", given={"samples": "5"}).jobs("h100", "c")[0].id


def test_a_relative_path_is_that_of_the_folder_in_which_it_was_given(tmp_path, monkeypatch):
    (tmp_path / "capture.sqlite").touch()
    monkeypatch.chdir(tmp_path)
    asked = plan("04", given={"capture": "capture.sqlite"})
    (job,) = asked.jobs("h100", "c")
    assert f"capture={tmp_path}/capture.sqlite" in job.command
    monkeypatch.chdir("/")
    (again,) = sweep_jobs.Plan(asked.request).jobs("h100", "c")
    assert again.id == job.id and again.command == job.command


def test_an_own_notebook_is_found_again_from_another_folder(tmp_path, monkeypatch):
    name = notebook(tmp_path / "toy.ipynb")
    monkeypatch.chdir(tmp_path)
    asked = plan("toy.ipynb", given={"x": "'1'"})
    monkeypatch.chdir("/")
    (job,) = sweep_jobs.Plan(asked.request).jobs("h100", "c")
    assert job.command[4] == name and "x='1'" in job.command, "as it was written: '1' is text, 1 is a number"
