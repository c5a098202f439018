"""docs/site: the executed pages of each GPU, and an index over the GPUs; anyone can read them as they are.

    docs/site/index.html  <gpu>/index.html  <gpu>/<page>.html  <gpu>/pages.json

pages.json says of each page what its card shows, so pages can be made one by one: those of a record on the GPU itself,
and others by `gdn-lab site`, executed without a GPU, which show recorded rows. The index of a GPU lists its records
with their commits; `gdn-lab report` brings it up to date.
"""

import html
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import nbformat

from ..files import replacing
from ..names import gpu_short_name
from ..report.recorded import DATA
from ..report.text import device_name, sm_clock
from ..report.text import sentence_as_html as sentence
from ..studies import studies
from . import kept_answer, pages
from .errors import BatchError
from .recorded_with import LIBRARIES, UNKNOWN, changed_kernels, commit_of, date_of, of_commits, recorded_runs
from .shell import badge, page
from .small_figures import with_small_figures

MOST_BYTES = 6_000_000  # of the pages of one GPU
CARDS = "pages.json"
LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ - (?:INFO|DEBUG) - .*\n?", re.MULTILINE)  # of a library
SITE_PACKAGES = re.compile(r"^\S*/site-packages/", re.MULTILINE)  # where a machine has them, in a library's warnings


class Card(NamedTuple):
    """What pages.json holds of a page. here: whether it was executed on the GPU. machine: on what, and which commit."""

    question: str
    answer: str
    source: str
    here: bool
    machine: str


def write_site(site: Path, gpu: str, books: dict[str, Path], measured: Path = DATA / "measured") -> list[Path]:
    """Write the page of each executed notebook to <site>/<gpu>/, then the indices. books: {page's name: job's folder}.

    Pages of other names stay, and those that show what was recorded on another GPU are left out. measured: with the
    records of each GPU, which its index lists. BatchError if the pages of a GPU would take more than MOST_BYTES.
    """
    executed = {name: path for name, place in sorted(books.items()) if (path := _executed(place))}
    executed = {name: path for name, path in executed.items() if not _shows_another(path.parent, gpu)}
    if not executed:
        return []
    folder = site / gpu
    cards = read_cards(folder) | {name: _card(path.parent, name) for name, path in executed.items()}
    cards = dict(sorted(cards.items()))
    links = {"site": "index.html"} | {name: f"{name}.html" for name in cards}
    made = {name: _page(path, links, name, cards[name], gpu) for name, path in executed.items()}
    _check_size(gpu, made, [folder / f"{name}.html" for name in cards if name not in made])
    folder.mkdir(parents=True, exist_ok=True)
    kept = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.html") if path.stem in cards}
    for name, text in (kept | made).items():
        if (paged := pages.with_pager(text, name, links)) != kept.get(name):
            _write(folder / f"{name}.html", paged)
    _write(folder / CARDS, json.dumps({name: card._asdict() for name, card in cards.items()}, indent=1) + "\n")
    write_indices(site, measured)
    return [folder / "index.html", site / "index.html"]


def write_indices(site: Path, measured: Path) -> list[Path]:
    """Write the index of each GPU that has pages, and the one over all GPUs. Returns those whose text changed."""
    gpus = {path.parent.name: read_cards(path.parent) for path in sorted(site.glob(f"*/{CARDS}"))}
    texts = {site / gpu / "index.html": _index_of_gpu(gpu, cards, measured / gpu) for gpu, cards in gpus.items()}
    if gpus:
        texts[site / "index.html"] = _index(gpus)
    changed = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        _write(path, texts[path])
    return changed


def read_cards(folder: Path) -> dict[str, Card]:
    """{page's name: its card} of one GPU's folder; {} where there is none."""
    path = folder / CARDS
    if not path.is_file():
        return {}
    return {name: Card(**card) for name, card in json.loads(path.read_text(encoding="utf-8")).items()}


# ---- a page ---------------------------------------------------------------------------------------------------------


def _executed(place: Path) -> Path | None:
    return next((path for path in sorted(place.glob("*.ipynb"))), None)


def _shows_another(place: Path, gpu: str) -> bool:
    """Whether the answer of an executed notebook is of rows that another GPU has recorded."""
    found = kept_answer.read(place)
    return bool(found) and found["source"] == "recorded" and gpu_short_name(re.split("[,·]", found["device"])[0]) != gpu


def _card(place: Path, name: str) -> Card:
    info = json.loads((place / "run.json").read_text(encoding="utf-8"))
    found = kept_answer.read(place) or {"sentences": [], "source": ""}
    facts = info["environment"]
    versions = [f"{name} {facts[name]}" for name in ("driver", "torch", "triton", "flashinfer") if facts.get(name)]
    parts = [device_name(info), *sm_clock(info), *versions] if facts.get("gpu_name") else []
    parts += [f"commit {(facts.get('git_commit') or 'unknown')[:10]}", info["start_utc"][:10]]
    question = {study.notebook: study.question for study in studies()}.get(info["notebook"], name)
    if name not in (info["notebook"], question):  # another record of the same notebook
        question += f" ({name})"
    return Card(
        question=question,
        answer=found["sentences"][0] if found["sentences"] else "",
        source=found["source"],
        here=bool(facts.get("gpu_name")),
        machine=" · ".join(parts),
    )


def _page(path: Path, links: dict[str, str], name: str, card: Card, gpu: str) -> str:
    text = f"{what_it_is(card, gpu)} ({card.machine})"
    book = with_small_figures(without_logs(nbformat.read(path, as_version=4)))
    return pages.html(path, links, name=name, book=book, about=f'<p class="quiet">{html.escape(text)}</p>')


def without_logs(book):
    """The notebook, changed in place: what libraries logged below a warning is left out, and folders in warnings."""
    for cell in book.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = SITE_PACKAGES.sub("", LOG_LINE.sub("", output.text))
        if cell.get("outputs"):
            cell.outputs = [each for each in cell.outputs if each.output_type != "stream" or each.text]
    return book


def what_it_is(card: Card, gpu: str) -> str:
    """One sentence: where a page was executed, and so what its times are."""
    if card.here:
        return f"Executed on this {gpu.upper()} by make record: its times are of this machine unless they say recorded."
    return (
        f"Executed without a GPU: nothing was timed. Its times were recorded earlier, on an {gpu.upper()} or as named."
    )


def _check_size(gpu: str, made: dict[str, str], kept: Iterable[Path]) -> None:
    size = sum(len(text.encode()) for text in made.values()) + sum(path.stat().st_size for path in kept)
    if size > MOST_BYTES:
        largest = max(made, key=lambda name: len(made[name]))
        raise BatchError(
            f"the pages of {gpu} take {size / 1e6:.1f} MB, and docs/site keeps {MOST_BYTES / 1e6:.0f} MB for each GPU; "
            f"make the figures of {largest} smaller"
        )


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


# ---- indices --------------------------------------------------------------------------------------------------------


def _index_of_gpu(gpu: str, cards: dict[str, Card], measured: Path) -> str:
    """A card for each page of one GPU: question, answer, where it was executed; then its records."""
    shown = "".join(
        f'<article class="card"><p class="quiet">{html.escape(name)}</p>'
        f'<h3><a href="{html.escape(name)}.html">{html.escape(card.question)}</a></h3><p>{_badges(card, gpu)}</p>'
        f'<p>{sentence(card.answer)}</p><p class="quiet">{html.escape(card.machine)}</p>'
        f"{_outdated(measured / name)}</article>"
        for name, card in cards.items()
    )
    links = '<nav class="pages"><a href="../index.html">All GPUs</a></nav>'
    body = f"<main class='wide'>{links}<h1>{html.escape(gpu.upper())}</h1><div class=\"cards\">{shown}</div>"
    return page(f"{gpu.upper()} · gdn_lab", f"{body}{_records(measured)}</main>")


def _outdated(folder: Path) -> str:
    """A line of the kernels that differ from those of a record; "" where none is known to, or nothing is recorded."""
    if not (folder / "run.json").is_file():
        return ""
    changed = changed_kernels(json.loads((folder / "run.json").read_text(encoding="utf-8")), folder)
    if changed in ("none", UNKNOWN):
        return ""
    return f'<p class="quiet">Kernels changed since the record: {html.escape(changed)}.</p>'


def _records(measured: Path) -> str:
    """The records of one GPU: commit, date, kernels changed since, versions; "" where there are none."""
    runs = recorded_runs(measured)
    if not runs:
        return ""
    names = ("record", "commit", "date", "kernels changed since", *LIBRARIES.values())
    lines = [
        [f"<code>{html.escape(record)}</code>", *map(html.escape, _facts(info, measured / record))]
        for record, info in runs.items()
    ]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    table = f"<table class='words'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<h2>Records</h2><p>{sentence(of_commits(runs))}</p><div class='scroll' tabindex='0'>{table}</div>"


def _facts(info: dict, folder: Path) -> list[str]:
    """Commit, date, changed kernels and versions of a run, as text."""
    versions = [info["environment"].get(name) or "" for name in LIBRARIES]
    return [commit_of(info), date_of(info), changed_kernels(info, folder), *versions]


def _badges(card: Card, gpu: str) -> str:
    executed = badge(f"executed on an {gpu.upper()}", "right") if card.here else badge("executed without a GPU")
    return executed + (f" {badge(card.source)}" if card.source else "")


def _index(gpus: dict[str, dict[str, Card]]) -> str:
    """A table: a line for each page, a column for each GPU."""
    names, gpus = sorted({name for cards in gpus.values() for name in cards}), dict(sorted(gpus.items()))
    head = "".join(f'<th><a href="{html.escape(gpu)}/index.html">{html.escape(gpu.upper())}</a></th>' for gpu in gpus)
    lines = []
    for name in names:
        question = next(cards[name].question for cards in gpus.values() if name in cards)
        cells = "".join(f"<td>{_link(gpu, name, cards.get(name))}</td>" for gpu, cards in gpus.items())
        lines.append(f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(question)}</td>{cells}</tr>")
    text = (
        "Executed notebooks of each GPU, to be read without running anything. <em>Executed there</em>: by "
        "<code>make record</code> on that GPU. <em>Recorded rows</em>: executed without a GPU; its times were "
        "recorded on it."
    )
    table = f"<table class='words'><thead><tr><th>page</th><th>question</th>{head}</tr></thead><tbody>"
    table = f"<div class='scroll' tabindex='0'>{table}{''.join(lines)}</tbody></table></div>"
    title = "gdn_lab: results by GPU"
    return page(title, f"<main class='wide'><h1>{title}</h1><p>{text}</p>{table}</main>")


def _link(gpu: str, name: str, card: Card | None) -> str:
    if card is None:
        return ""
    words = "executed there" if card.here else "recorded rows"
    return f'<a href="{html.escape(gpu)}/{html.escape(name)}.html">{words}</a>'
