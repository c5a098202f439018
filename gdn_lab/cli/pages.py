"""An executed notebook as an HTML page: question, answer, then the notebook with its code folded.

The answer is that of answer.json next to the notebook. Figures are SVG with their title as alternative text.
"""

import base64
import html as escaping
import re
from pathlib import Path

import nbformat
from nbconvert.filters.ansi import ansi2html
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from ..report.text import sentence_as_html as sentence
from . import kept_answer
from .markdown import markdown
from .shell import badge, page

RICHEST_FIRST = ("text/html", "image/svg+xml", "image/webp", "image/png", "text/markdown", "text/plain")
FOLDED = {"parameters": "Parameters", "injected-parameters": "Parameters that were given"}
OF_PAPERMILL = "papermill-error-cell-tag"  # its own words about an error; ours stand on top of the page
SOURCES = {"measured here": "right", "recorded": "recorded"}
PAGER = re.compile(r'<nav class="pages" aria-label="Pages">.*?</nav>', re.DOTALL)
TABLE = re.compile(r"<table\b.*?</table>", re.DOTALL)
LONG = 60  # lines of a table that is folded
FULL_PATH = re.compile(r"""(["'])/(?:[^"'\n]*/)?([^"'\n/]+)\1""")


def html(notebook: Path, links: dict[str, str] | None = None, *, name: str = "", book=None, about: str = "") -> str:
    """Return the page of an executed notebook.

    links: {"00_start_here": its page, relative to this one}, in order, "index" for the page of all runs, "site" for
    that of docs/site. name: the page's among them; the notebook's unless given. book: what the file holds, if it was
    read already. about: HTML below the title.
    """
    book = book or nbformat.read(notebook, as_version=4)
    cells = [cell for cell in book.cells if OF_PAPERMILL not in cell.metadata.get("tags", [])]
    stem = notebook.name.split(".")[0]
    title, cells = _without_title(cells, stem)
    parts, headings = [], []
    number = 0
    for cell in cells:
        number += cell.cell_type == "code"
        part = _prose(cell, links or {}) if cell.cell_type == "markdown" else _code(cell, number)
        parts.append(part)
        headings += re.findall(r'<h2 id="([^"]+)"[^>]*>(.*?)</h2>', part, re.DOTALL)
    body = [
        pager(name or stem, links or {}),
        f"<h1>{markdown(title).strip().removeprefix('<p>').removesuffix('</p>')}</h1>",
        about,
    ]
    body += [_answer(notebook, book), *parts, pager(name or stem, links or {})]
    return page(
        f"{title} · gdn_lab",
        '<div class="layout">\n<main>\n' + "\n".join(body) + f"\n</main>\n{_contents(headings)}\n</div>",
    )


def failed_cell(book) -> tuple[int, str] | None:
    """Return the number of the code cell that raised, counted from 1, and its error; None if none did."""
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return number, f"{output.ename}: {output.evalue}"
    return None


def _without_title(cells: list, stem: str) -> tuple[str, list]:
    """Return the question, which the first heading is, and the cells without it."""
    first = cells[0] if cells else None
    found = re.match(r"\s*# +([^\n]+)\n*", first.source) if first and first.cell_type == "markdown" else None
    if not found:
        return stem, cells
    rest = nbformat.v4.new_markdown_cell(first.source[found.end() :])
    return found[1].strip(), [rest, *cells[1:]]


def _answer(notebook: Path, book) -> str:
    """Return the box under the title: what went wrong, and the answer's sentences."""
    found, lines, kind = kept_answer.read(notebook.parent), [], ""
    if failed := failed_cell(book):
        stopped = failed[1].startswith("KeyboardInterrupt")
        words = "Interrupted in" if stopped else f"{failed[1].splitlines()[0]}: failed in"
        lines.append(f'<p class="wrong">{sentence(words)} <a href="#cell-{failed[0]}">cell {failed[0]}</a>.</p>')
        kind = " wrong"
    elif ".interrupted" in notebook.name:
        lines, kind = ['<p class="wrong">Interrupted: what follows is not complete.</p>'], " wrong"
    if found:
        points = "".join(f"<li>{sentence(each)}</li>" for each in found["sentences"])
        source = badge(found["source"], SOURCES.get(found["source"], ""))
        lines.append(f'<p>{source} <span class="quiet">{sentence(found["device"])}</span></p><ul>{points}</ul>')
    return f'<section class="answer{kind}" aria-label="The answer">{"".join(lines)}</section>' if lines else ""


def _contents(headings: list[tuple[str, str]]) -> str:
    points = "".join(f'<li><a href="#{target}">{text}</a></li>' for target, text in headings)
    return f'<nav class="contents" id="contents" aria-label="Contents"><p>Contents</p><ul>{points}</ul></nav>'


def with_pager(text: str, name: str, links: dict[str, str]) -> str:
    """Return a page with its links to other pages made anew."""
    return PAGER.sub(lambda _: pager(name, links), text)


def pager(name: str, links: dict[str, str]) -> str:
    """Return links to the page of all runs or of the site, and to the pages before and after this one."""
    names = [name for name in links if name not in ("index", "site")]
    found = [("All runs", links.get("index")), ("All pages", links.get("site"))]
    if name in names:
        place = names.index(name)
        found += [(f"← {each}", links[each]) for each in names[max(place - 1, 0) : place]]
        found += [(f"{each} →", links[each]) for each in names[place + 1 : place + 2]]
    inside = "".join(f'<a href="{escaping.escape(to)}">{escaping.escape(text)}</a>' for text, to in found if to)
    return f'<nav class="pages" aria-label="Pages">{inside}<a class="narrow" href="#contents">Contents</a></nav>'


def _prose(cell, links: dict[str, str]) -> str:
    """Return a Markdown cell; a notebook's name in it is a link to its page."""
    text = markdown(cell.source, attachments=cell.get("attachments", {}))
    for name, target in links.items():
        text = text.replace(f"<code>{name}</code>", f'<a href="{escaping.escape(target)}"><code>{name}</code></a>')
    return _scrolling(text).replace('class="scroll"', 'class="scroll words"')  # tables of prose hold words


def _code(cell, number: int) -> str:
    """Return a code cell folded, and what it shows."""
    tags = cell.metadata.get("tags", [])
    what = next((FOLDED[tag] for tag in tags if tag in FOLDED), "Code")
    source = FULL_PATH.sub(r"\1…/\2\1", cell.source) if "injected-parameters" in tags else cell.source
    code = highlight(source, PythonLexer(), HtmlFormatter(nowrap=True))
    shown = "\n".join(filter(None, (_output(output) for output in cell.get("outputs", []))))
    folded = f"<summary>{what} · cell {number}</summary><pre>{code}</pre>"
    return f'<details class="code" id="cell-{number}">{folded}</details>\n{shown}'


def _output(output) -> str:
    if output.output_type == "stream":
        return f"<pre>{ansi2html(output.text)}</pre>" if output.text.strip() else ""
    if output.output_type == "error":
        return f"<pre>{ansi2html(chr(10).join(output.traceback))}</pre>"
    kind = next((kind for kind in RICHEST_FIRST if kind in output.data), None)
    return _SHOWN[kind](output.data[kind], output.metadata.get(kind, {})) if kind else ""


def _scrolling(text: str) -> str:
    """Return HTML with each table in a box of its own, which scrolls where it is narrow; long tables are folded."""
    return TABLE.sub(_boxed, text)


def _boxed(found: re.Match) -> str:
    table, rows = found[0], len(re.findall(r"<tr\b", found[0]))
    box = f'<div class="scroll" tabindex="0">{table}</div>'
    if rows <= LONG:
        return box
    caption = re.search(r"<caption[^>]*>(.*?)</caption>", table, re.DOTALL)
    return f"<details><summary>{caption[1] if caption else 'Table'}: {rows} lines</summary>{box}</details>"


def image(kind: str, encoded: str, about: dict) -> str:
    alt, width = escaping.escape(about.get("alt", "")), about.get("width")
    size = f' width="{int(width)}"' if width else ""
    return f'<figure tabindex="0"><img src="data:{kind};base64,{encoded}" alt="{alt}"{size}></figure>'


_SHOWN = {
    "text/html": lambda text, about: _scrolling(text),
    "image/svg+xml": lambda text, about: image("image/svg+xml", base64.b64encode(text.encode()).decode(), about),
    "image/png": lambda text, about: image("image/png", "".join(text.split()), about),
    "image/webp": lambda text, about: image("image/webp", text, about),
    "text/markdown": lambda text, about: _scrolling(markdown(text)),
    "text/plain": lambda text, about: f"<pre>{escaping.escape(text)}</pre>",
}
