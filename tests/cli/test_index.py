"""The folders under runs/: the index pages, the list, and what clean removes."""

import json

import bs4
import nbformat
import pytest
from chromium import opened

from gdn_lab.cli import clean, index, kept_answer, since
from gdn_lab.cli.main import main
from gdn_lab.cli.run_folders import run_folders

ENVIRONMENT = {"gpu_name": "NVIDIA H100", "cpu": "x", "torch": "2.13.0", "driver": "580", "git_commit": "a" * 40}
ROW = {
    "status": "ok",
    "phase": "decode",
    "backend": "triton",
    "variant": "vk",
    "timer": "cuda_graph_replay",
    "batch": 8,
}


@pytest.fixture
def made(tmp_path):
    """made(start, ...) writes a run's folder and returns it."""

    def make(
        start, notebook="02_decode_kernels", *, ending="", us=10.0, environment=(), sentences=("It is so.",), **info
    ):
        folder = tmp_path / f"{start}-{notebook}"
        folder.mkdir()
        cell = nbformat.v4.new_markdown_cell("# Which is fastest?\n\n## Here")
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / f"{notebook}{ending}.ipynb")
        when = f"{start[:4]}-{start[4:6]}-{start[6:8]}T{start[9:11]}:{start[11:13]}:{start[13:15]}Z"
        info = {"notebook": notebook, "status": "complete", "start_utc": when, "end_utc": when, "rows": 1} | info
        info["environment"] = ENVIRONMENT | dict(environment)
        info.setdefault("parameters", {"tp": 1})
        (folder / "run.json").write_text(json.dumps(info))
        row = ROW | {"median_us": us, "p20_us": us - 0.1, "p80_us": us + 0.1}
        (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
        kept_answer.write(
            folder, sentences=sentences, figure=None, alt="", source="measured here", device="NVIDIA H100"
        )
        (folder / f"{notebook}{ending}.html").write_text("<h1>Which is fastest?</h1>")
        return folder

    return make


def read(path):
    return bs4.BeautifulSoup(path.read_text(), features="html.parser")


def test_the_index_has_a_card_for_the_newest_run_of_each_notebook(made, tmp_path):
    made("20261127T080000Z", sentences=["It was so."])
    made("20261128T080000Z", sentences=["It is `so`."])
    made("20261128T090000Z", "06_prefill", ending=".interrupted", status="interrupted")
    page = read(index.write_index(tmp_path))
    first, second = page.find_all("article")
    assert first["id"] == "02_decode_kernels" and "It is so." in first.text and "measured here" in first.text
    assert first.h3.a["href"] == "20261128T080000Z-02_decode_kernels/02_decode_kernels.html"
    assert "interrupted" in second.text and "wrong" in second["class"]
    assert "NVIDIA H100 · driver 580 · torch 2.13.0 · commit aaaaaaaaaa" in page.text
    assert len(page.find("tbody").find_all("tr")) == 3
    assert not [link["href"] for link in page.find_all("a") if not (tmp_path / link["href"]).exists()]


def test_a_card_says_what_changed(made, tmp_path):
    made("20261127T080000Z", us=10.0, parameters={"tp": 1})
    made("20261128T080000Z", us=12.0, parameters={"tp": 8}, environment={"torch": "2.14.0"}, sentences=["No."])
    now, before = run_folders(tmp_path)
    assert since.changes(now, before) == [
        "Set differently: torch 2.13.0 → 2.14.0, tp 1 → 8.",
        "1 of 1 times changed by more than 3%, triton/vk at B = 8 the most: 20%.",
        "The answer began: It is so.",
    ]
    assert "Since 2026-11-27 08:00 UTC" in index.write_index(tmp_path).read_text()


def test_a_card_compares_with_the_last_run_of_its_notebook_that_was_finished(made, tmp_path):
    made("20261125T080000Z", us=5.0)
    made("20261126T080000Z", us=10.0)
    for day, status in ((27, "failed"), (28, "interrupted")):
        made(f"202611{day}T080000Z", us=99.0, status=status, ending=f".{status}")
    made("20261129T080000Z", us=99.0, status="running", ending=".running")
    made("20261129T090000Z", "06_prefill", us=99.0)
    made("20261130T080000Z", us=12.0)
    card, other = read(index.write_index(tmp_path)).find_all("article")
    assert "Since 2026-11-26 08:00 UTC" in card.text and "the most: 20%" in card.text
    assert other["id"] == "06_prefill" and "Since" not in other.text


def test_nothing_changed_is_said_of_times_within_the_noise(made, tmp_path):
    made("20261127T080000Z", us=10.0)
    made("20261128T080000Z", us=10.1)
    assert since.changes(*run_folders(tmp_path)) == ["None of 1 times changed by more than 3%."]


def test_what_ran_together_has_a_page_and_links(made, tmp_path):
    runs = [made("20261128T080000Z", "01_pool_layouts"), made("20261128T080100Z")]
    folder = tmp_path / "20261128T080000Z-together"
    folder.mkdir()
    about = {"command": "gdn-lab run -p tp=8", "seconds": 65.0, "status": "complete"}
    about["runs"] = [run.name for run in runs]
    index.link_pages(tmp_path, about["runs"])
    index.write_index(tmp_path)
    page = read(index.write_batch(folder, about))
    assert "gdn-lab run -p tp=8: complete in 1 min 05 s." in page.text and len(page.find_all("article")) == 2
    assert all((folder / link["href"]).exists() for link in page.find_all("a"))
    assert "together/index.html" in index.write_index(tmp_path).read_text()
    linked = read(runs[0] / "01_pool_layouts.html").find("nav", class_="pages")
    assert linked.find("a", string="02_decode_kernels →")["href"] == f"../{runs[1].name}/02_decode_kernels.html"


def test_hostile_names_and_damaged_files_do_no_harm(made, tmp_path):
    folder = made("20261128T080000Z", sentences=["<script>alert(1)</script>"], parameters={"x": "<b>"})
    (made("20261128T080001Z") / "run.json").write_text("{")
    (made("20261128T080002Z") / "answer.json").write_text("[]")
    (tmp_path / "20261128T080003Z-other").mkdir()
    page = read(index.write_index(tmp_path))
    assert not page.find("script") and len(run_folders(tmp_path)) == 4 and folder.is_dir()


def test_list_runs(made, tmp_path, capsys):
    made("20261127T080000Z")
    made("20261128T080000Z", "06_prefill", ending=".failed", status="failed")
    assert main(["list", "--runs", str(tmp_path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:5] == ["2026-11-28", "08:00", "UTC", "06_prefill", "failed"]
    assert second.endswith("20261127T080000Z-02_decode_kernels/02_decode_kernels.html")
    assert main(["list", "06", "--runs", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_clean_keeps_the_newest_of_each_notebook(made, tmp_path, capsys):
    for day in range(1, 5):
        made(
            f"2026110{day}T080000Z", status="running" if day == 1 else "complete", ending=".running" if day == 1 else ""
        )
    other = made("20261101T080000Z", "06_prefill")
    (tmp_path / "mine").mkdir()
    (tmp_path / "latest").symlink_to("20261102T080000Z-02_decode_kernels")
    assert main(["clean", "--keep", "1", "--dry-run", "--runs", str(tmp_path)]) == 0
    assert "2 runs" in capsys.readouterr().out and len(run_folders(tmp_path)) == 5
    assert main(["clean", "--keep", "1", "--runs", str(tmp_path)]) == 0
    left = {run.folder.name[:8] for run in run_folders(tmp_path)}
    assert left == {"20261104", "20261101"} and other.is_dir() and (tmp_path / "mine").is_dir()
    assert not (tmp_path / "latest").is_symlink() and (tmp_path / "index.html").is_file()
    assert clean.superfluous(tmp_path, 10) == []
    assert main(["clean", "--keep", "-1", "--runs", str(tmp_path)]) == 2
    assert main(["clean", "--runs", str(tmp_path / "nothing")]) == 2
    assert f"--runs: there is no folder {tmp_path / 'nothing'}; name one" in capsys.readouterr().err


def test_clean_says_what_cannot_be_removed_and_nothing_else(made, tmp_path, capsys, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    folder = made("20261101T080000Z")
    monkeypatch.setattr(clean.shutil, "rmtree", refuse)
    assert main(["clean", "--keep", "0", "--runs", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "removed" not in out and f"gdn-lab: cannot remove {folder}: Permission denied; make it writable" in err


def test_batch_json_is_whole_or_the_old_one(made, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    folder = tmp_path / "20261128T080000Z-together"
    folder.mkdir()
    (folder / "batch.json").write_text("{}")
    monkeypatch.setattr(index.os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        index.write_batch(folder, {"command": "x", "seconds": 1.0, "status": "complete", "runs": []})
    assert (folder / "batch.json").read_text() == "{}"


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_the_index_in_chromium(chromium, made, tmp_path, width, dark):
    made("20261127T080000Z")
    made("20261128T080000Z", "06_prefill", ending=".failed", status="failed", sentences=["word " * 80, "x" * 300])
    with opened(chromium, index.write_index(tmp_path), width=width, dark=dark) as view:
        view.check()
        assert view.page.title() == "Runs · gdn_lab"


def test_a_run_follows_the_one_made_before_it_though_the_clock_went_back(made, tmp_path):
    before, after = made("20261128T100000Z", order=1), made("20261128T090000Z", order=2)
    runs = run_folders(tmp_path)
    assert [run.folder for run in runs] == [after, before]
    assert index._previous(runs[0], runs).folder == before and index._previous(runs[1], runs) is None
