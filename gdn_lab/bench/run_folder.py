"""Reading the folder of a run. Imports no torch, so that commands about recorded rows start at once."""

import json
import re
import warnings
from pathlib import Path

from .processes import gone


def load(folder) -> tuple[dict, list[dict]]:
    """Read a run's folder: (what run.json holds, the rows in the order they were written).

    Without a rows.jsonl there are no rows. A last line that was cut off while it was written is left out, with a
    warning. Raises FileNotFoundError if there is no such folder, ValueError if it is not a run's or a line is damaged.
    """
    folder = Path(folder)
    info = load_info(folder)
    path = folder / "rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("expected a JSON object")
        except ValueError as error:
            if number < len(lines) or line.endswith(b"\n"):
                raise ValueError(f"{path}: line {number} is damaged ({error}); restore it or measure again") from error
            warnings.warn(f"{path}: the last line was cut off while it was written and is left out", stacklevel=2)
        else:
            rows.append(row)
    return info, rows


def load_info(folder) -> dict:
    """What a run's run.json holds; its status is "died" if it says "running" and the process that wrote it has gone.

    Raises FileNotFoundError if there is no such folder, ValueError if it is not a run's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run folder {folder}; list its parent folder for those that exist")
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run's folder: it has no run.json; give a folder of runs/")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(info, dict):
            raise ValueError("expected a JSON object")
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); restore it, or measure again") from error
    if info.get("status") == "running" and gone(info.get("process"), last_write(folder)):
        info["status"] = "died"
    return info


def last_write(folder: Path) -> float:
    """When a run last wrote to its run.json or its rows, in seconds since 1970."""
    return max(path.stat().st_mtime for path in (folder / "run.json", folder / "rows.jsonl") if path.exists())


def count_rows(folder) -> int:
    """Number of whole rows in a run's folder."""
    try:
        with open(Path(folder) / "rows.jsonl", "rb") as file:
            return sum(line.endswith(b"\n") for line in file)
    except FileNotFoundError:
        return 0


def newest_first(root) -> list[Path]:
    """The folders of `root`, the newest run first.

    The order is the one in run.json, since a clock may go back; of runs without it, or with the same, that of their
    start, then of the number that ends the folder's name. Folders without a run.json go by the time in their name.
    """
    return sorted((path for path in Path(root).glob("*") if path.is_dir() and not path.is_symlink()), key=age)[::-1]


def next_order(root: Path) -> int:
    """1 + the order of the newest run of `root`, to which `latest` points; without that link, the highest of all."""
    latest = Path(root) / "latest"
    folders = [latest] if latest.is_symlink() and (latest / "run.json").is_file() else Path(root).glob("*/")
    return 1 + max((age(folder)[0] for folder in folders), default=0)


def age(folder: Path) -> tuple[int, str, int]:
    """(order, start, number) that newest_first() sorts by."""
    name = re.match(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z-.*?(?:-(\d+))?$", folder.name)
    start, number = ("{}-{}-{}T{}:{}:{}Z".format(*name.groups()[:6]), int(name[7] or 1)) if name else ("", 1)
    try:
        info = load_info(folder)
    except (OSError, ValueError):
        info = {}
    order = info.get("order")
    return order if isinstance(order, int) else 0, str(info.get("start_utc") or start), number
