"""docs/site: the executed pages of each recorded GPU, and an index over the GPUs; anyone can read them as they are."""

import html
import json
from pathlib import Path

from ..files import replacing
from ..report.text import device_name, sm_clock
from ..report.text import sentence_as_html as sentence
from ..studies import studies
from . import kept_answer, pages
from .errors import BatchError
from .shell import badge, page

MOST_BYTES = 6_000_000  # of the pages of one GPU


def write_site(site: Path, gpu: str, books: dict[str, Path]) -> list[Path]:
    """Write the page of each executed notebook to <site>/<gpu>/, then the indices. books: {page's name: job's folder}.

    BatchError if the pages of a GPU would take more than MOST_BYTES.
    """
    names = sorted(name for name, place in books.items() if _executed(place))
    if not names:
        return []
    links = {"index": "index.html"} | {name: f"{name}.html" for name in names}
    made = {name: pages.html(_executed(books[name]), links) for name in names}
    size = sum(len(text.encode()) for text in made.values())
    if size > MOST_BYTES:
        raise BatchError(
            f"the pages of {gpu} take {size / 1e6:.1f} MB, and docs/site keeps {MOST_BYTES / 1e6:.0f} MB for each GPU; "
            "make the figures of the largest page smaller"
        )
    folder = site / gpu
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        _write(folder / f"{name}.html", text)
    _write(folder / "index.html", _index_of_gpu(gpu, names, books))
    _write(site / "index.html", _index(site))
    return [folder / "index.html", site / "index.html"]


def _executed(place: Path) -> Path | None:
    return next((path for path in sorted(place.glob("*.ipynb"))), None)


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _index_of_gpu(gpu: str, names: list[str], books: dict[str, Path]) -> str:
    """A card for each page of one GPU: question, answer, machine and commit."""
    questions = {study.notebook: study.question for study in studies()}
    cards, about = [], ""
    for name in names:
        info = json.loads((books[name] / "run.json").read_text(encoding="utf-8"))
        about = about or _machine(info)
        question = questions.get(info["notebook"], name)
        found = kept_answer.read(books[name])
        first = f"<p>{sentence(found['sentences'][0])}</p>" if found and found["sentences"] else ""
        source = badge(found["source"]) if found and found["source"] else ""
        cards.append(
            f'<article class="card"><p class="quiet">{html.escape(name)}</p>'
            f'<h3><a href="{html.escape(name)}.html">{html.escape(question)}</a></h3>{source}{first}</article>'
        )
    links = '<nav class="pages"><a href="../index.html">All GPUs</a></nav>'
    body = f"<main class='wide'>{links}<h1>Recorded on {html.escape(gpu.upper())}</h1>{about}"
    return page(f"{gpu.upper()} · gdn_lab", f'{body}<div class="cards">{"".join(cards)}</div></main>')


def _machine(info: dict) -> str:
    facts = info["environment"]
    parts = [device_name(info), *sm_clock(info)]
    parts += [f"{name} {facts[name]}" for name in ("driver", "torch", "triton", "flashinfer") if facts.get(name)]
    parts += [f"commit {(facts.get('git_commit') or 'unknown')[:10]}", info["start_utc"][:10]]
    return f'<p class="quiet">{html.escape(" · ".join(parts))}</p>'


def _index(site: Path) -> str:
    """A link to each GPU's pages."""
    gpus = sorted(path.parent.name for path in site.glob("*/index.html"))
    points = "".join(f'<li><a href="{html.escape(gpu)}/index.html">{html.escape(gpu.upper())}</a></li>' for gpu in gpus)
    text = "Every notebook as it was executed on each GPU: nothing needs to be run to read these pages."
    body = f"<main class='wide'><h1>gdn_lab: recorded results</h1><p>{text}</p><ul>{points}</ul></main>"
    return page("gdn_lab: recorded results", body)
