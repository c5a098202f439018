"""gdn-lab report: figures and generated parts of README.md and docs/*.md, from data/ and what the studies declare.

A generated part lies between `<!-- NAME -->` and `<!-- /NAME -->`; report puts the closing marker where it is missing:

    picture                     decode calls of a recorded GPU, by variant
    which_backend               for each kind of call the variant to use, and what it saves
    servers                     the recorded servers: model, GPUs, TPOT by configuration, tokens per second
    precision                   what each dtype of the state is enough for, and what it costs, from recorded drift
    hardware                    for each compute capability what serves, is compiled and is recorded
    studies                     every notebook and its question
    computed:<figure>           a figure that needs no data
    variants                    every kernel variant: pool, role, what it is
    licences                    the distributions that requirements*.txt name, with version and licence
    random_calls:<gpu>          how many random calls each variant has passed there
    checks:<gpu>                the tests and the sanitizer's runs recorded there, with their commits
    recorded:<gpu>              when, where and with which versions and kernels the runs of a GPU were recorded
    published:<table>           a table that others published, of data/published/pr19150: end_to_end, accuracy
    history:<gpu>               how its records changed from one to the next
    measured:<gpu>-<section>    the section of a study, from its recorded run
    measured:<gpu>-<section>-<what>    the same, from the run in the folder <notebook>_<what>
"""

import os
import re
from pathlib import Path

from ..files import replacing
from ..studies import Study, studies
from ..studies.declaration import Section
from .errors import UsageError
from .run import ROOT, shown

BLOCKS = (
    r"picture|which_backend|servers|precision|hardware|studies|variants|licences|computed:\w+|published:\w+"
    r"|(?:recorded|history|random_calls|checks|measured):[\w-]+"  # GPUs such as rtx-4090
)
MARKER = re.compile(rf"<!-- (?P<block>{BLOCKS}) -->\n?(?:.*?<!-- /(?P=block) -->)?", re.DOTALL)


def add_arguments(parser) -> None:
    parser.add_argument(
        "--root", type=Path, default=ROOT, metavar="FOLDER", help="with data/ and README.md; default: this checkout"
    )


def run(arguments) -> None:
    """Rebuild, and print what was written. UsageError if the folder is no checkout."""
    missing = [name for name in ("README.md", "data") if not (arguments.root / name).exists()]
    if missing:
        raise UsageError(f"--root: there is no {' and no '.join(missing)} in {arguments.root}; name a checkout")
    print("\n".join(shown(path) for path in report(arguments.root)))


def report(root: Path = ROOT) -> list[Path]:
    """Draw the README's figures into <root>/docs, fill README.md and docs/*.md between their markers, index docs/site.

    Returns the files written: every figure, and each page or index whose text changed. A block that no study makes is
    left as it is.
    """
    from .site import write_indices

    root = Path(root)
    computed = {name: figure for study in studies() for name, figure in study.computed().items()}
    written = [save(figure, root / "docs" / f"{name}.png") for name, figure in computed.items()]
    titles = {name: title(figure) for name, figure in computed.items()}
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        if page.is_file():
            written += fill(page, root, titles)
    return written + write_indices(root / "docs" / "site", root / "data" / "measured")


def fill(page: Path, root: Path, titles: dict[str, str]) -> list[Path]:
    """Fill one page between its markers. Returns the figures drawn for it, and the page if its text changed.

    titles: of the figures that need no data.
    """
    before, written = page.read_text(encoding="utf-8"), []

    def filled(found: re.Match) -> str:
        made = _block(found["block"], root, titles)
        if made is None:
            return found[0]
        text, figures = made
        written.extend(figures)
        text = text.replace("](docs/", f"]({os.path.relpath(root / 'docs', page.parent)}/".replace("./", ""))
        return f"<!-- {found['block']} -->\n{text}\n<!-- /{found['block']} -->"

    after = MARKER.sub(filled, before)
    if after != before:
        with replacing(page) as partial:
            partial.write_text(after, encoding="utf-8")
        written.append(page)
    return written


def _block(block: str, root: Path, titles: dict[str, str]) -> tuple[str, list[Path]] | None:
    """(Markdown, figures written) of one marker; None if nothing makes it."""
    kind, _, rest = block.partition(":")
    if kind in ("picture", "which_backend", "hardware"):
        return front(kind, root)
    if kind == "servers":
        from ..studies.serving.servers_table import servers_table

        return servers_table(root / "data"), []
    if kind == "precision":
        from ..studies.advice.precision import in_short

        lines = in_short(root / "data")
        return ("\n".join(f"- {line}" for line in lines), []) if lines else None
    if kind == "studies":
        return studies_table(), []
    if kind == "variants":
        return variants_table(), []
    if kind == "licences":
        from .constraints import table

        return table(), []
    if kind == "computed":
        return (f"![{titles[rest]}](docs/{rest}.png)", []) if rest in titles else None
    if kind == "published":
        text = published_table(rest)
        return None if text is None else (text, [])
    if kind == "recorded":
        from .recorded_with import recorded_with

        return recorded_with(rest, root), []
    if kind == "history":
        return history_of(rest, root)
    if kind == "random_calls":
        from ..report.random_calls import table as random_calls

        return random_calls(rest, root / "data"), []
    if kind == "checks":
        from ..report.recorded_checks import table as checks

        return checks(rest, root / "data"), []
    return measured_section(rest, root)


def measured_section(name: str, root: Path) -> tuple[str, list[Path]] | None:
    """section_of() what <gpu>-<section> or <gpu>-<section>-<what> names; None if no study has such a section.

    A GPU's name may contain "-", a section's does not, so the first word that is a section ends the GPU's name.
    """
    sections = {study.section_name: study for study in studies() if study.section}
    words = name.split("-")
    place = next((n for n, word in enumerate(words) if n and word in sections), None)
    if place is None:
        return None
    gpu, what = "-".join(words[:place]), "-".join(words[place + 1 :])
    return section_of(sections[words[place]], gpu, root, what)


def front(block: str, root: Path) -> tuple[str, list[Path]] | None:
    """(Markdown, figures written) of a block of front_page.py; None where its rows are not recorded."""
    from . import front_page

    data = root / "data"
    if block == "hardware":
        return front_page.hardware(data), []
    if not front_page.is_recorded(data):
        return None
    if block == "which_backend":
        return front_page.which_backend(data), []
    figure = front_page.picture(data)
    path = save(figure, root / "docs" / "decode_at_a_glance.png")
    return f"![{title(figure)}](docs/{path.name})", [path]


def studies_table() -> str:
    """Markdown: every notebook, and the question that it answers."""
    rows = [f"| `{study.notebook}` | {study.question} |" for study in studies()]
    return "\n".join(["| notebook | question |", "|---|---|", *rows])


def variants_table() -> str:
    """Markdown: every kernel variant with its pool layout, phases and description."""
    from ..backends.registry import VARIANTS

    rows = [
        f"| `{name}` | {variant.role} | {variant.layout} | {', '.join(variant.phases)} | {variant.description} |"
        for name, variant in VARIANTS.items()
    ]
    return "\n".join(["| variant | role | pool | phases | what it is |", "|---|---|---|---|---|", *rows])


def published_table(name: str) -> str | None:
    """Markdown: a published table, and what it says; None for a name that nothing shows."""
    from ..studies.advice import published

    if name == "end_to_end":
        return published.end_to_end_table().to_markdown(index=False)
    if name != "accuracy":
        return None
    table = published.accuracy_table().to_markdown(index=False, floatfmt=".3f")
    return "\n".join([table, "", *(f"- {sentence}" for sentence in published.accuracy_sentences())])


def history_of(gpu: str, root: Path) -> tuple[str, list[Path]]:
    """(Markdown, figures written) of a GPU's history; one sentence until there are two records to compare."""
    from ..report import history, history_figure

    lines = history.read(root / "data", gpu)
    points = "\n".join(f"- {sentence}" for sentence in history.sentences(lines))
    if not points:
        return f"{len(lines)} record{'s' * (len(lines) != 1)} so far; a second one is compared with the first.", []
    figure = history_figure.draw(lines, gpu)
    path = save(figure, root / "docs" / f"{gpu}_history.png")
    return f"{points}\n\n![{title(figure)}](docs/{path.name})", [path]


def section_of(study: Study, gpu: str, root: Path, what: str = "") -> tuple[str, list[Path]]:
    """(Markdown, figures written) of a study's recorded run; where there is none, how to record it.

    what: of several runs the one in the folder <notebook>_<what>.
    """
    from ..report.recorded import measured

    name = f"{study.notebook}_{what}" if what else study.notebook
    try:
        info, rows = measured(gpu, name, root / "data")
    except FileNotFoundError as error:
        command, folder = f".venv/bin/gdn-lab run {study.number}", f"data/measured/{gpu}/{name}/"
        return (
            f"Nothing to show yet: {error}. On such a GPU, `{command}`, then copy `run.json` and `rows.jsonl` of "
            f"`runs/latest` to `{folder}` and `make report`."
        ), []
    return markdown(study.section(info, rows), info, root / "docs", f"{gpu}_{what}" if what else gpu)


def markdown(section: Section, info: dict, docs: Path, prefix: str) -> tuple[str, list[Path]]:
    """(a section as Markdown, its figures as <docs>/<prefix>_<name>.png with their title as alternative text)."""
    from ..report.text import device_name

    device, commit = device_name(info), (info["environment"].get("git_commit") or "unknown")[:10]
    conditions = section.conditions.rstrip(".").removeprefix(f"{device} · ")
    parts = [section.table] if section.table else []
    parts.append(f"{conditions}. Recorded on {device}, {info['start_utc'][:10]}, commit {commit}.")
    if section.not_timed:
        parts.append("Not timed: " + "; ".join(sentence.rstrip(".") for sentence in section.not_timed) + ".")
    parts.append("\n".join(f"- {sentence}" for sentence in section.sentences))
    written = []
    for name, figure in section.figures.items():
        written.append(save(figure, docs / f"{prefix}_{name}.png"))
        parts.append(f"![{title(figure)}](docs/{prefix}_{name}.png)")
    return "\n\n".join(parts), written


def title(figure) -> str:
    """A figure's title in one line: its alternative text."""
    return " ".join(figure.get_suptitle().split())


def save(figure, path: Path) -> Path:
    """Write a figure as PNG, the same bytes for the same figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})
    return path
