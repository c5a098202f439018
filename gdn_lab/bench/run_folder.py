"""Reading the folder of a run. Imports no torch, so that commands about recorded rows start at once."""

import json
import warnings
from pathlib import Path


def load(folder) -> tuple[dict, list[dict]]:
    """Read a run's folder: (what run.json holds, the rows in the order they were written).

    Without a rows.jsonl there are no rows. A last line that was cut off while it was written is left out, with a
    warning. Raises FileNotFoundError if there is no such folder, ValueError if it is not a run's or a line is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run folder {folder}; list its parent folder for those that exist")
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is not a run's folder: it has no run.json; give a folder of runs/")
    try:
        info = json.loads((folder / "run.json").read_text())
    except ValueError as error:
        raise ValueError(f"{folder / 'run.json'} is not JSON ({error}); restore it, or measure again") from error
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
