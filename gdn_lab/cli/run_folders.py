"""The folders under runs/, as `gdn-lab list --runs`, `gdn-lab clean` and the index pages see them."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from ..bench.run_folder import age, load_info
from . import kept_answer

NAME = re.compile(r"(\d{8}T\d{6}Z)-([\w.-]+?)(?:-\d{1,3})?$")
BATCH = "batch.json"  # of a folder that ties the runs of one command together
VERDICT = "verdict.html"  # the page of gdn-lab judge
ENDINGS = {".interrupted": "interrupted", ".failed": "failed", "": "complete", ".running": "running"}


@dataclass(frozen=True)
class RunFolder:
    """One run: folder, start (UTC, "20261128T081500Z") and notebook are from its name, the rest from its files."""

    folder: Path
    start: str
    notebook: str

    @cached_property
    def info(self) -> dict:
        """What run.json holds; {} where there is none or it is damaged."""
        try:
            return load_info(self.folder)
        except (OSError, ValueError):
            return {}

    @cached_property
    def answer(self) -> dict | None:
        return kept_answer.read(self.folder)

    @property
    def status(self) -> str:
        """ "complete", "failed", "interrupted", "running", "died" (its process has gone) or "unknown"."""
        by_file = next((word for end, word in ENDINGS.items() if self._notebook(end).is_file()), None)
        return by_file if by_file not in (None, "running") else self.info.get("status") or by_file or "unknown"

    @property
    def page(self) -> Path | None:
        """The HTML page of the notebook or of a verdict, if there is one."""
        pages = [self.folder / f"{self.notebook}{end}.html" for end in ENDINGS] + [self.folder / VERDICT]
        return next((page for page in pages if page.is_file()), None)

    @property
    def executed(self) -> Path | None:
        """The executed notebook, if there is one."""
        return next((path for end in ENDINGS if (path := self._notebook(end)).is_file()), None)

    @property
    def seconds(self) -> float | None:
        """From the start to the end; None while it runs."""
        if "end_utc" not in self.info:
            return None
        return (_time(self.info["end_utc"]) - _time(self.info["start_utc"])).total_seconds()

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())

    def _notebook(self, end: str) -> Path:
        return self.folder / f"{self.notebook}{end}.ipynb"


def run_folders(root: Path) -> list[RunFolder]:
    """Return the runs under `root`, the newest first."""
    found = []
    for folder in root.glob("*Z-*") if root.is_dir() else ():
        named = NAME.fullmatch(folder.name)
        if named and folder.is_dir() and not folder.is_symlink() and not (folder / BATCH).exists():
            found.append(RunFolder(folder, named[1], named[2]))
    return sorted(found, key=lambda run: age(run.folder), reverse=True)


def batches(root: Path) -> list[tuple[Path, dict]]:
    """Return (folder, what batch.json holds) of each command that ran several notebooks, the newest first."""
    found = [(path.parent, _json(path)) for path in root.glob(f"*/{BATCH}")]
    return sorted((pair for pair in found if pair[1].get("runs")), key=lambda pair: pair[0].name, reverse=True)


def newest_of_each(runs: list[RunFolder]) -> list[RunFolder]:
    """Return the newest run of each notebook, in the notebooks' order."""
    newest = {}
    for run in runs:
        newest.setdefault(run.notebook, run)
    return [newest[name] for name in sorted(newest)]


def when(start: str) -> str:
    """ "20261128T081500Z" as "2026-11-28 08:15 UTC"."""
    return datetime.strptime(start, "%Y%m%dT%H%M%SZ").strftime("%Y-%m-%d %H:%M UTC")


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
