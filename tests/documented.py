"""Finds the commands that README.md, docs/, CONTRIBUTING.md, the Makefile and the notebooks show."""

import re
from collections import defaultdict
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("gdn-lab", "make", "python", "python3", "nsys", "papermill", "jupyter", "pip", "pytest", "ruff", "sqlite3")
PROGRAMS += ("apt", "git", "nvidia-smi", "compute-sanitizer")
PROGRAM = re.compile(rf"(?:\.venv/bin/)?(?:{'|'.join(PROGRAMS)})(?= )")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
IN_TEXT = re.compile(r"^ {4}(\S.*)$|`([^`\n]+)`", re.MULTILINE)
MAKE = re.compile(r"(?<![\w`])make [a-z-]+(?: [A-Z]+=(?:\"[^\"]*\"|[^\s,;\"]+))+")  # with variables
GIVEN = re.compile(r"\b[A-Z]+=(?:\"[^\"]*\"|[^\s,;\]]+)|(?<=\[)-\w \w+(?=\])")  # what the help of a target offers
HELP = re.compile(r"^([a-z-]+):.*?## (.*)$", re.MULTILINE)


def commands() -> dict[str, list[str]]:
    """{command: the files that show it}. A program's name alone, or a line of code, is no command."""
    found = defaultdict(list)
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")):
        for command in in_markdown(path.read_text()):
            found[command].append(path.name)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        for command in in_markdown("\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")):
            found[command].append(path.name)
    for command in in_makefile((ROOT / "Makefile").read_text()):
        found[command].append("Makefile")
    return dict(found)


def in_markdown(text: str) -> list[str]:
    """Indented and fenced lines, without their comments, and what stands in backticks and begins with a program."""
    found = []
    for language, block in FENCE.findall(text):
        found += block.split("\n") if language in ("", "bash", "sh") else []
    for indented, inline in IN_TEXT.findall(FENCE.sub("", text)):
        if indented or PROGRAM.match(inline):
            found.append(indented or inline)
    return [line.partition(" #")[0].strip() for line in found if line.strip()]


def in_makefile(text: str) -> list[str]:
    """Every target, alone and with the variables and options that its help shows; commands in comments."""
    found = []
    for target, meaning in HELP.findall(text):
        given = GIVEN.findall(meaning)
        found += [f"make {target}", *([" ".join(["make", target, *given])] if given else [])]
    for comment in re.findall(r"^#(.*)$", text, re.MULTILINE):
        found += [*MAKE.findall(comment), *re.findall(r"`([^`]+ [^`]+)`", comment)]
    return found
