"""A page of notebook 04 on a trace whose ranges, kernels, GPU and file have the names of hostile_names.py."""

import base64
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import bs4
import nbformat
import pandas
import papermill
from hostile_names import MARK, NAMES
from recorded_traces import Program, write_kineto, write_nsys

from gdn_lab.cli import notebook, pages

FILE = f"a&lt;b<img src=x onerror=window.{MARK}=1> [x](javascript:{MARK}) $x$ `y`.sqlite"
LINKS = ("https://docs.nvidia.com/", "https://docs.pytorch.org/", "https://github.com/NVIDIA/", "#")  # of the notebook


def program(names=NAMES, steps: int = 2) -> Program:
    """Steps of a part for each name, of one kernel with that name."""
    made, time, number = Program(), 0, 0
    for _ in range(steps):
        begin = time
        for place, name in enumerate(names):
            number += 1
            made.range(name, time, time + 900)
            made.launch(time + 100, time + 200, number)
            made.kernel(name, time + 300, time + 300 + 6000 + 10 * place, number)
            time += 7000
        made.range(names[0], begin - 1, time)
        time += 1000
    return made


def write_traces(folder: Path) -> tuple[Path, Path]:
    """Write the trace for Nsight Systems' reader, with hostile GPU and file, and for Kineto's."""
    text = [name.encode("utf-8", "replace").decode() for name in NAMES]
    plain = program(text)
    trace = write_nsys(folder / FILE, plain, gpu=text[2])
    return trace, write_kineto(folder / "other.json", program())


def executed(folder: Path, monkeypatch, kernel: str) -> Path:
    """Execute notebook 04 on the traces, and return its page."""
    trace, other = write_traces(folder)
    run = folder / "run"
    run.mkdir()
    monkeypatch.setenv(notebook.RUN_FOLDER, str(run))
    given = {"capture": str(trace), "beside": str(other), "step_range": NAMES[0]}
    made = folder / "04.ipynb"
    source = notebook.ROOT / "notebooks" / "04_nsight_systems.ipynb"
    papermill.execute_notebook(source, made, given, kernel_name=kernel, cwd=str(notebook.ROOT), progress_bar=False)
    page = folder / "04.html"
    page.write_text(pages.html(made), encoding="utf-8")
    return page


@pandas.option_context("mode.string_storage", "python")  # where there is pyarrow: it refuses a lone surrogate
def shown(folder: Path) -> Path:
    """Return a page of every name in each place that table() and say() fill."""
    outputs = []
    with mock.patch.object(notebook, "display", lambda data, **_: outputs.append(data)):
        notebook.say([f"before {name} after" for name in NAMES])
        notebook.say([f"before `{name}` after" for name in NAMES])
    tuples = [(name,) for name in NAMES]
    frame = pandas.DataFrame({"cell": NAMES, "category": pandas.Categorical(NAMES), "tuple": tuples})
    outputs.append({"text/html": notebook.table(frame).to_html()})
    outputs.append({"text/html": notebook.table(frame.set_index("cell")).to_html()})
    row = frame.head(1)  # a table for each name as heading and caption
    outputs += [{"text/html": notebook.table(row.rename(columns={"cell": name}), name).to_html()} for name in NAMES]
    indexed = [row.set_index("cell").rename_axis(name).rename_axis(name, axis="columns") for name in NAMES]
    outputs += [{"text/html": notebook.table(each).to_html()} for each in indexed]
    cells = [
        nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("display_data", {**data})]) for data in outputs
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "shown.ipynb")
    page = folder / "shown.html"
    page.write_text(pages.html(folder / "shown.ipynb"), encoding="utf-8")
    return page


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def faults(page: Path) -> list[str]:
    """Say what in a page could run or be fetched and is not this workbook's own."""
    parser, found = _Tags(), []
    text = page.read_text(encoding="utf-8")
    parser.feed(text)
    for tag, attributes in parser.found:
        if tag in ("script", "iframe", "object", "embed", "base", "form", "template", "video", "audio", "input"):
            found.append(f"<{tag}>")
        found += [f"{tag} {name}" for name in attributes if name.startswith("on") or name in ("srcdoc", "formaction")]
        if not (attributes.get("href") or "#").startswith(LINKS):
            found.append(f"{tag} href {attributes['href']}")
        if not (attributes.get("src") or "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,"):
            found.append(f"{tag} src {attributes['src']}")
        if MARK + ".example" in (attributes.get("style") or ""):
            found.append(f"{tag} style {attributes['style']}")
    soup = bs4.BeautifulSoup(text, "html.parser")
    styles = [style.string or "" for style in soup.find_all("style")]
    found += [f"style {text[:80]}" for text in styles if MARK + ".example" in text]
    for image in soup.find_all("img"):
        drawing = base64.b64decode(image["src"].split(",")[1]).decode()
        inside = bs4.BeautifulSoup(drawing, "html.parser")
        found += [f"in a figure <{tag.name}>" for tag in inside.find_all(["script", "image", "foreignobject", "a"])]
    return found
