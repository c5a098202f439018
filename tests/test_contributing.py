"""The recipes of CONTRIBUTING.md, applied all together to a copy of the workbook, and their checks."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import nbformat
import pytest
from forked_kernels import python_in

ROOT = Path(__file__).parents[1]
MOST_FILES = {  # what the architecture promises
    "Add a model": 1,
    "Add a backend": 1,
    "Add a configuration of the decode step": 1,
    "Add a published column": 1,
    "Add a metric to the step's waterfall": 4,
    "Change a tolerance": 1,
    "Add a byte formula": 1,
    "Read a newer export of Nsight Systems": 1,
    "Add a study": 5,
}
BLOCK = re.compile(r'^```\w+ (?P<about>file="[^\n]*|check)\n(?P<text>.*?)^```$', re.DOTALL | re.MULTILINE)
PLACE = re.compile(r'file="(?P<file>[^"]+)"(?: (?P<how>after|replaces)="(?P<line>[^\n]+)"| (?P<end>end))?$')
RUN_CHECKS = """
import json, sys, traceback
found = {}
for title, code in json.load(open(sys.argv[1])).items():
    try:
        exec(compile(code, title, "exec"), {"__name__": title})
        found[title] = ""
    except Exception:
        found[title] = traceback.format_exc()
json.dump(found, open(sys.argv[2], "w"))
"""


def recipes() -> dict[str, str]:
    """{title: text} of the sections of CONTRIBUTING.md with code; a heading inside a block is none."""
    found, title, inside = defaultdict(str), "", False
    for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines(keepends=True):
        inside ^= line.startswith("```")
        if line.startswith("#") and not inside:
            title = line.strip("# \n")
        else:
            found[title] += line
    return {title: text for title, text in found.items() if "```" in text}


RECIPES = recipes()


def blocks(title: str) -> list[tuple[str, str]]:
    return [(found["about"], found["text"]) for found in BLOCK.finditer(RECIPES[title])]


def apply(about: str, text: str, root: Path) -> None:
    """Write a new file, or put the lines where the block says."""
    place = PLACE.match(about)
    path = root / place["file"]
    if path.suffix == ".ipynb":
        nbformat.write(notebook(text), path)
    elif place["end"]:
        path.write_text(path.read_text() + text)
    elif not place["how"]:
        assert not path.exists(), f"{path.name} is there already"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    else:
        lines = path.read_text().splitlines(keepends=True)
        (at,) = [n for n, line in enumerate(lines) if line.startswith(place["line"])]
        lines[at : at + 1] = [*([lines[at]] if place["how"] == "after" else []), text]
        path.write_text("".join(lines))


def notebook(text: str) -> nbformat.NotebookNode:
    cells = []
    for kind, tag, source in re.findall(r"^%% (\w+) ?(\w*)\n(.*?)(?=^%% |\Z)", text, re.DOTALL | re.MULTILINE):
        make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        cells.append(make(source.strip(), metadata={"tags": [tag]} if tag else {}))
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec})


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the workbook with every recipe applied."""
    root = tmp_path_factory.mktemp("copy")
    for folder in ("gdn_lab", "data", "notebooks"):
        shutil.copytree(
            ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        )
    for title in RECIPES:
        for about, text in blocks(title):
            if about != "check":
                apply(about, text, root)
    return root


@pytest.fixture(scope="module")
def checked(changed, folder_of_kernels):
    """{recipe: "" or the traceback of its check}, all of one process."""
    codes = defaultdict(str)
    for title in RECIPES:
        for about, text in blocks(title):
            codes[title] += text if about == "check" else ""
    (changed / "checks.json").write_text(json.dumps(codes))
    with pytest.MonkeyPatch.context() as monkeypatch:
        python_in(folder_of_kernels, monkeypatch)
        command = [sys.executable, "-c", RUN_CHECKS, "checks.json", "found.json"]
    subprocess.run(command, cwd=changed, env=os.environ | {"PYTHONPATH": str(changed)}, check=True)
    return json.loads((changed / "found.json").read_text())


def test_every_promised_recipe_is_there():
    assert set(RECIPES) == set(MOST_FILES)


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_names_every_file_that_it_touches(title):
    named = re.findall(r"`([^`]+)`", re.search(r"^Files: (.*?)\n\n", RECIPES[title], re.DOTALL | re.MULTILINE).group(1))
    touched = {PLACE.match(about)["file"] for about, _ in blocks(title) if about != "check"}
    assert sorted(named) == sorted(touched) and len(touched) <= MOST_FILES[title]


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_does_what_it_says(title, checked):
    assert not checked[title], checked[title]


def test_the_new_notebook_runs(changed, tmp_path, forked_python):
    command = [sys.executable, "-m", "gdn_lab", "run", "90", "-p", "requests", "3", "--runs", str(tmp_path / "runs")]
    env = os.environ | {"PYTHONPATH": str(changed)}
    done = subprocess.run(command, cwd=changed, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (page,) = tmp_path.glob("runs/*-90_my_question/90_my_question.html")
    assert "3 requests keep 6.29 MB of state in each GDN layer." in page.read_text()


def test_the_copied_readme_would_show_the_new_study(changed, forked_python):
    """`make report` in the copy: its table of studies and the section of the new one."""
    readme = changed / "README.md"
    readme.write_text("<!-- studies -->\n<!-- measured:h100-memory -->\n")
    folder = changed / "data" / "measured" / "h100" / "90_my_question"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "data" / "measured" / "h100" / "05_verify" / "run.json", folder)
    row = {"status": "fact", "phase": "decode", "requests": 3, "state_bytes": 6291456}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    command = [sys.executable, "-m", "gdn_lab", "report"]
    env = os.environ | {"PYTHONPATH": str(changed)}
    done = subprocess.run(command, cwd=changed, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = readme.read_text()
    assert "| `90_my_question` | How much memory" in text and "- 3 requests keep 6.29 MB" in text
    assert "(docs/h100_memory.png)" in text and (changed / "docs" / "h100_memory.png").is_file()
