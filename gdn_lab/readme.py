"""A section of the README on one notebook's recorded run: where it was made, what it says, its figures."""

from collections.abc import Callable
from pathlib import Path

from .data import measured
from .findings import not_timed, provenance


def section(
    root: Path, gpu: str, notebook: str, save: Callable, words: Callable, figures: dict[str, Callable],
    refused: Callable = not_timed,
) -> tuple[str, list[Path]]:  # fmt: skip
    """(Markdown, figures written) from <root>/data/measured/<gpu>/<notebook>; a line that says how to record it where
    there is none.

    words(run, rows) -> (what the times hold for, sentences). figures: name -> draw(rows, run); each goes to
    <root>/docs/<gpu>_<name>.png by save(figure, path). refused(rows): sentences on what was not timed.
    """
    try:
        run, rows = measured(gpu, notebook, root / "data")
    except FileNotFoundError as error:
        missing = (
            f"Nothing to show yet: {error}. On such a GPU, `.venv/bin/python -m gdn_lab run {notebook[:2]}`, then "
        )
        where = f"`data/measured/{gpu}/{notebook}/`"
        return f"{missing}copy `run.json` and `rows.jsonl` of `runs/latest` to {where} and `make report`.", []
    conditions, sentences = words(run, rows)
    parts, written = [f"{conditions}. Measured on {provenance(run)}."], []
    if reasons := refused(rows):
        parts.append("Not timed: " + "; ".join(reasons) + ".")
    parts.append("\n".join(f"- {sentence}" for sentence in sentences))
    for name, draw in figures.items():
        figure, path = draw(rows, run), root / "docs" / f"{gpu}_{name}.png"
        written.append(save(figure, path))
        parts.append(f"![{figure.get_suptitle().replace(chr(10), ' ')}](docs/{path.name})")
    return "\n\n".join(parts), written
