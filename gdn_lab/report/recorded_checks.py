"""What was checked on a GPU beside its recorded runs: the tests, and every kernel once under compute-sanitizer.

data/measured/<gpu>/tests/<part>.log             a line that names the commit, then the last lines of pytest
data/measured/<gpu>/sanitize/<tool>-<group>.log  what compute-sanitizer printed of `gdn-lab smoke <group>`
"""

import re
from pathlib import Path

from .recorded import DATA
from .text import listed

TESTS, SANITIZE = "tests", "sanitize"  # folders of data/measured/<gpu>
COMMIT = re.compile(r"commit ([0-9a-f]{4,10})")
COUNTS = re.compile(r"(\d+) (passed|failed|errors?)\b")
SUMMARY = re.compile(r"SUMMARY: .*?(\d+) errors(?:, (\d+) warnings)?")
RIGHT = re.compile(r": right, largest error")
WRONG = re.compile(r": (?:WRONG|FAILED), ")


def table(gpu: str, data: Path = DATA) -> str:
    """Markdown: each part of the tests and each tool of the sanitizer, its result and its commit."""
    folder = data / "measured" / gpu
    lines = [_of_tests(path) for path in sorted((folder / TESTS).glob("*.log"))]
    lines += [_of_tool(folder / SANITIZE, tool) for tool in _tools(folder / SANITIZE)]
    if not lines:
        return "No tests are recorded yet: `gdn-lab record` on such a GPU runs them."
    head = ["| check | result | commit |", "|:--|:--|:--|"]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines)])


def header(gpu: str, commit: str) -> str:
    """The first line of a test's log."""
    return f"On an {gpu.upper()}, commit {commit}"


def _of_tests(path: Path) -> tuple[str, str, str]:
    text = path.read_text(encoding="utf-8")
    counts = [f"{count} {what}" for count, what in COUNTS.findall(text.splitlines()[-1])]
    return f"`{path.stem}`", listed(counts), _commits([text])


def _tools(folder: Path) -> list[str]:
    return sorted({path.stem.partition("-")[0] for path in folder.glob("*-*.log")})


def _of_tool(folder: Path, tool: str) -> tuple[str, str, str]:
    """The calls of all groups under one tool, and its errors and warnings; a log without a summary was cut off."""
    logs = {
        path.stem.partition("-")[2]: path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"{tool}-*.log"))
    }
    found = {group: SUMMARY.search(log) for group, log in logs.items()}
    errors = sum(int(each[1]) for each in found.values() if each)
    calls = sum(len(RIGHT.findall(log)) for log in logs.values())
    parts = [f"{calls} calls right", f"{errors} errors"]
    parts += [f"{len(some)} calls wrong ({group})" for group, log in logs.items() if (some := WRONG.findall(log))]
    parts += [f"{each[2]} warnings ({group})" for group, each in found.items() if each and int(each[2] or 0)]
    parts += [f"no summary ({group})" for group, each in found.items() if not each]
    return f"`{tool}` of {', '.join(logs)}", ", ".join(parts), _commits(logs.values())


def _commits(texts) -> str:
    return listed(dict.fromkeys(found[1] if (found := COMMIT.search(text)) else "unknown" for text in texts))
