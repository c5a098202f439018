"""README.md and docs/: short, current, with working Python, links and pictures; tables that GitHub shows whole."""

import importlib.metadata
import re
import shutil
import tomllib

import pytest
import yaml

import gdn_lab
from gdn_lab.cli import report as reports
from gdn_lab.cli.constraints import pinned
from gdn_lab.cli.main import main
from gdn_lab.cli.run import ROOT

README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
WIDTH = 838  # pixels that GitHub has for a page's text
MOST_COLUMNS = 8


def test_it_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_its_python_runs(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for code in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL):
        exec(code, {})


@pytest.mark.parametrize("page", PAGES)
def test_its_links_and_pictures_are_there(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", PAGES[page]):
        folder = ROOT if page == "README.md" else ROOT / "docs"
        path = folder / target if target else folder / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, (target, anchor)


def test_every_page_is_linked_from_the_readme():
    assert {f"docs/{name}" for name in PAGES if name != "README.md"} <= set(re.findall(r"\]\(([^)#]+)", README))


def test_every_figure_in_docs_is_on_a_page():
    shown = {target.rpartition("/")[2] for text in PAGES.values() for target in re.findall(r"\]\(([^)]+\.png)\)", text)}
    assert {path.name for path in (ROOT / "docs").glob("*.png")} == shown


def test_the_picture_is_small():
    (picture,) = re.findall(r"!\[[^]]+\]\((docs/[^)]+)\)", README)
    assert (ROOT / picture).stat().st_size < 200_000


@pytest.mark.parametrize("page", PAGES)
def test_no_table_is_wider_than_github_shows(page):
    """The longest word that cannot be broken, in each column, at about 8 pixels a letter and 27 for cell and border."""
    for table in re.findall(r"(?:^\|.*\|$\n?)+", PAGES[page], re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        rows = [row for row in rows if not set("".join(row)) <= set(":-")]
        assert len(rows[0]) <= MOST_COLUMNS, rows[0]
        words = [
            [len(word) for cell in column for word in re.split(r"[\s-]+", cell)] for column in zip(*rows, strict=True)
        ]
        assert sum(8 * max(letters) + 27 for letters in words) <= WIDTH, rows[0]


def test_generated_parts_are_those_of_make_report(tmp_path, monkeypatch):
    """Text of README and docs, with the titles of the figures, which are made and not drawn; indices of docs/site."""
    monkeypatch.setattr(reports, "save", lambda figure, path: path)
    for name in ("README.md", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "data").symlink_to(ROOT / "data")
    written = reports.report(tmp_path)
    stale = [str(path) for path in written if path.suffix in (".md", ".html")]
    assert not stale, "make report brings them up to date"
    if importlib.metadata.version("matplotlib") == pinned()["matplotlib"][0]:
        drawn = [path for path in written if path.suffix == ".png"]
        stale = [path.name for path in drawn if path.read_bytes() != (ROOT / "docs" / path.name).read_bytes()]
        assert drawn and not stale, "make report brings them up to date"


def test_the_version_is_the_same_everywhere(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"gdn-lab {gdn_lab.__version__}\n"
    newest = re.search(r"^## ([\d.]+), (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert newest.groups() == (citation["version"], str(citation["date-released"]))
    assert newest[1] == gdn_lab.__version__
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "gdn_lab.__version__"
    assert project["project"]["license"] == citation["license"]
