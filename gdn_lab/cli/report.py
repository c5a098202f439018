"""The README's figures and sections, made of data/: what `python -m gdn_lab report` does.

A section is on one notebook's recorded run: where it was made, what it says, its figures.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from ..report.recorded import DATA, measured
from ..report.text import provenance
from ..report.timed import not_timed, timed
from ..studies.decode_kernels import analysis as decode_analysis
from ..studies.decode_kernels import figures as decode
from ..studies.decode_step import analysis as step_analysis
from ..studies.decode_step import figures as step
from ..studies.pool_layouts import figures as layouts
from ..studies.prefill import analysis as prefill_analysis
from ..studies.prefill import figures as prefill
from ..studies.verify import analysis as verify_analysis
from ..studies.verify import figures as verify
from .run import shown


def add_arguments(parser) -> None:
    """`gdn-lab report` takes none."""


def run(arguments) -> None:
    print("\n".join(shown(path) for path in report()))


def report(root: Path | None = None) -> list[Path]:
    """Draws the README's figures from data/ into docs/ and fills README.md between its measured markers.

    root: the repository. Between `<!-- measured:GPU -->` and `<!-- /measured:GPU -->` come what is recorded under
    data/measured/GPU/02_decode_kernels, between `<!-- measured:GPU-step -->` and its end 03_decode_step, and so on
    (SECTIONS), or a line that says how to record it. Returns the files written.
    """
    root = Path(root or DATA.parent)
    written = [
        _save(layouts.warp_loads(), root / "docs" / "warp_loads.png"),
        _save(layouts.slot_bytes(), root / "docs" / "slot_bytes.png"),
    ]
    readme = root / "README.md"
    before = readme.read_text(encoding="utf-8") if readme.is_file() else ""

    def filled(found):
        text, figures = SECTIONS[found["part"]](root, found["gpu"])
        written.extend(figures)
        return f"<!-- measured:{found['block']} -->\n{text}\n<!-- /measured:{found['block']} -->"

    marked = (  # the closing one is put where it lacks
        rf"<!-- measured:(?P<block>(?P<gpu>\w+)(?P<part>{'|'.join(SECTIONS)})) -->"
        r"(?:.*?<!-- /measured:(?P=block) -->)?"
    )
    after = re.sub(marked, filled, before, flags=re.DOTALL)
    if after != before:
        beside = readme.with_name(".README.md.part")
        beside.write_text(after, encoding="utf-8")
        os.replace(beside, readme)
        written.append(readme)
    return written


def _decode(root, gpu) -> tuple[str, list[Path]]:
    def words(run, rows):
        return decode_analysis.conditions(timed(rows)), decode_analysis.answers(rows)

    figures = {
        "decode_time": decode.decode_time, "against_published": decode.against_published,
        "gather_scatter": decode.gather_scatter,
    }  # fmt: skip
    table = decode_analysis.markdown_table
    return _section(root, gpu, "02_decode_kernels", words, figures, table=table, command="make bench")


def _step(root, gpu) -> tuple[str, list[Path]]:
    def words(run, rows):
        conditions = step_analysis.conditions(rows)
        return conditions[:1].upper() + conditions[1:], step_analysis.answers(rows)

    figures = {"step_waterfall": step.waterfall}
    return _section(root, gpu, "03_decode_step", words, figures, refused=step_analysis.not_timed)


def _verify(root, gpu) -> tuple[str, list[Path]]:
    def words(run, rows):
        model, tp = (run["parameters"][name] for name in ("model", "tp"))
        return verify_analysis.conditions(rows), verify_analysis.answers(rows, model, tp)

    return _section(root, gpu, "05_verify", words, {"verify_time": verify.verify_time})


def _prefill(root, gpu) -> tuple[str, list[Path]]:
    def words(run, rows):
        parameters, refused = run["parameters"], not_timed(rows)
        sentences = [sentence for sentence in prefill_analysis.answers(rows) if sentence not in refused]
        return f"{parameters['model']}, {prefill_analysis.conditions(rows)}", sentences

    return _section(root, gpu, "06_prefill", words, {"prefill_tokens_per_second": prefill.tokens_per_second})


SECTIONS = {"": _decode, "-step": _step, "-verify": _verify, "-prefill": _prefill}  # by what follows GPU in a marker


def _section(
    root: Path, gpu: str, notebook: str, words: Callable, figures: dict[str, Callable], *,
    refused: Callable = not_timed, table: Callable | None = None, command: str = "",
) -> tuple[str, list[Path]]:  # fmt: skip
    """(Markdown, figures written) from <root>/data/measured/<gpu>/<notebook>; a line that says how to record it where
    there is none.

    words(run, rows) -> (what the times hold for, sentences). figures: name -> draw(rows, run); each goes to
    <root>/docs/<gpu>_<name>.png. refused(rows): sentences on what was not timed. table(rows): Markdown to begin
    with. command: which records it, default the notebook's run.
    """
    try:
        run, rows = measured(gpu, notebook, root / "data")
    except FileNotFoundError as error:
        command = command or f".venv/bin/python -m gdn_lab run {notebook[:2]}"
        copy = f"copy `run.json` and `rows.jsonl` of `runs/latest` to `data/measured/{gpu}/{notebook}/`"
        return f"Nothing to show yet: {error}. On such a GPU, `{command}`, then {copy} and `make report`.", []
    conditions, sentences = words(run, rows)
    parts, written = [table(rows)] if table else [], []
    parts.append(f"{conditions}. Measured on {provenance(run)}.")
    if reasons := refused(rows):
        parts.append("Not timed: " + "; ".join(reasons) + ".")
    parts.append("\n".join(f"- {sentence}" for sentence in sentences))
    for name, draw in figures.items():
        figure, path = draw(rows, run), root / "docs" / f"{gpu}_{name}.png"
        written.append(_save(figure, path))
        parts.append(f"![{figure.get_suptitle().replace(chr(10), ' ')}](docs/{path.name})")
    return "\n\n".join(parts), written


def _save(figure, path: Path) -> Path:
    """Writes a figure as PNG, beside and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    figure.savefig(beside, format="png", dpi=150, metadata={"Software": None})
    os.replace(beside, path)
    return path
