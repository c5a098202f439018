"""Pages: formulas as MathML, figures as SVG with their title, and nothing that a browser must fetch."""

import base64
import html
import re

import bs4
import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdn_lab.cli import kept_answer, pages
from gdn_lab.cli import run as batch
from gdn_lab.cli.markdown import markdown

NOTEBOOKS = sorted(batch.NOTEBOOKS.glob("*.ipynb"))


def test_formulas_become_mathml_and_code_stays():
    page = markdown(
        "The sum $a_i + b$ of\n\n$$\nx = \\frac{1}{2}\n$$\n\nwith `$HOME` and\n```\n$OUT $x$\n```\n"
        "\n|a|\n|-|\n|$1 + T$|\n"
    )
    assert page.count("<math") == 3 and page.count('display="inline"') == 2 and 'display="block"' in page
    assert "<code>$HOME</code>" in page and "$OUT $x$\n</code>" in page
    assert "$$" not in page and "\\frac" not in page


@pytest.mark.parametrize("text", ["costs $5 or $6", "$ 5 $", "it is $5, not $6, and $x is a variable", "a\\$b$"])
def test_money_and_variables_are_no_formulas(text):
    assert "<math" not in markdown(text)


@pytest.mark.parametrize("tex", ["$\\left($", "$x^{$", "$$\\begin{array}{l} a$$"])
def test_what_cannot_be_converted_stays(tex):
    page = markdown(f"see {tex}, and $a$")
    assert page.startswith(f"<p>see {tex}, and <math")


@given(st.text(alphabet="abc \n`*_|\\{}^$", max_size=60))
def test_any_text_is_a_page(text):
    assert markdown(text) is not None


SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><title>t</title></svg>'


def test_a_figure_is_svg_with_its_title_as_alternative_text(tmp_path):
    about = {"alt": 'kv8 takes 2.4 × as "long" <at B = 32>', "width": 880}
    data = {"image/svg+xml": SVG, "image/png": "iVBORw0KGgo=", "text/plain": "kv8"}
    output = nbformat.v4.new_output("display_data", data, metadata={"image/svg+xml": about, "image/png": about})
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("show()", outputs=[output])])
    nbformat.write(book, tmp_path / "figure.ipynb")
    page = bs4.BeautifulSoup(pages.html(tmp_path / "figure.ipynb"), features="html.parser")
    (image,) = page.find_all("img")
    assert image["alt"] == about["alt"] and image["width"] == "880"
    assert base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,")).decode() == SVG


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_is_a_page_that_needs_no_network(path):
    page = pages.html(path)
    question = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")
    assert page.startswith("<!DOCTYPE html>") and f"<title>{html.escape(question)} · gdn_lab</title>" in page
    assert page.count("<h1") == 1 and len(page) < 60_000
    fetched = re.findall(r"<(?:script|img|iframe)[^>]* src=.?https?:[^>]*|<link[^>]*>|import [^;]* from .https?:", page)
    assert not fetched, fetched
    formulas = sum(
        len(re.findall(r"\$[^$]+\$", re.sub(r"`[^`]*`", "", cell.source).replace("$$", "$")))
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
    )
    assert page.count("<math") == formulas
    assert "\\begin" not in re.sub(r"<math.*?</math>", "", page, flags=re.DOTALL)


# ---- from cells to a page


def book(tmp_path, *cells, name="00_tiny.ipynb"):
    path = tmp_path / name
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return path


def read(path, links=None):
    return bs4.BeautifulSoup(pages.html(path, links), features="html.parser")


def code(source, *outputs, tags=()):
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


def test_the_answer_stands_under_the_title_and_code_is_folded(tmp_path):
    path = book(tmp_path, nbformat.v4.new_markdown_cell("# Is it so?\n\nPerhaps."), code("x = 1"))
    sentences = ["`a` takes 2 µs & <b>more</b>."]
    kept_answer.write(tmp_path, sentences=sentences, figure=None, alt="", source="recorded", device="NVIDIA H100")
    page = read(path)
    heading, box = page.main.find("h1"), page.main.find("section", class_="answer")
    assert heading.text == "Is it so?" and heading.find_next_sibling() is box
    assert box.li.text == "a takes 2 µs & <b>more</b>." and box.li.code.text == "a"
    assert "recorded" in box.text and "NVIDIA H100" in box.text
    assert page.find("details", class_="code").pre.text == "x = 1\n" and "open" not in page.details.attrs


def test_contents_and_links(tmp_path):
    path = book(
        tmp_path, nbformat.v4.new_markdown_cell("# Q\n\nNeeds `01_b`.\n\n## One $x$\n\n## Two"), name="00_a.ipynb"
    )
    links = {"00_a": "00_a.html", "01_b": "../b/01_b.html", "02_c": "../c/02_c.html", "index": "../index.html"}
    page = read(path, links)
    targets = [link["href"] for link in page.find(id="contents").find_all("a")]
    assert len(targets) == 2 and all(page.find(id=target.removeprefix("#")).name == "h2" for target in targets)
    shown = {link.text: link["href"] for link in page.find("nav", class_="pages").find_all("a")}
    assert shown == {"All runs": "../index.html", "01_b →": "../b/01_b.html", "Contents": "#contents"}
    assert page.main.find("a", href="../b/01_b.html", string="01_b")


def test_outputs_have_no_effect_but_to_be_read(tmp_path):
    hostile = "<script>alert(1)</script><img src=http://example.org/x>"
    outputs = [
        nbformat.v4.new_output("stream", name="stdout", text=hostile),
        nbformat.v4.new_output("display_data", {"text/plain": hostile}),
        nbformat.v4.new_output("error", ename="Error", evalue=hostile, traceback=[hostile]),
    ]
    page = read(book(tmp_path, nbformat.v4.new_markdown_cell("# Q"), code("x", *outputs)))
    assert not page.find("script") and not page.find("img") and page.text.count(hostile) == 4
    assert page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"].startswith(
        "default-src 'none'"
    )


def test_a_page_shows_no_full_path_that_was_given(tmp_path):
    given = code('capture = "/home/someone/secret/mine.sqlite"\n', tags=["injected-parameters"])
    text = pages.html(book(tmp_path, nbformat.v4.new_markdown_cell("# Q"), given))
    assert "mine.sqlite" in text and "someone" not in text


def test_a_wide_table_scrolls_in_a_box_of_its_own(tmp_path):
    table = nbformat.v4.new_output("display_data", {"text/html": "<table><tr><td>1</td></tr></table>"})
    page = read(book(tmp_path, nbformat.v4.new_markdown_cell("# Q"), code("x", table)))
    assert "scroll" in page.table.parent["class"] and page.table.find_parent("details") is None


def test_a_long_table_is_folded_under_its_caption(tmp_path):
    lines = "<tr><td>1</td></tr>" * (pages.LONG + 1)
    table = f"<table><caption>Every row</caption><tbody>{lines}</tbody></table>"
    outputs = [nbformat.v4.new_output("display_data", {"text/html": f"{table}<p>after</p><table><tr></tr></table>"})]
    page = read(book(tmp_path, nbformat.v4.new_markdown_cell("# Q"), code("x", *outputs)))
    long, short = page.find_all("table")
    assert long.find_parent("details").summary.text == "Every row: 61 lines" and long.parent["class"] == ["scroll"]
    assert short.find_parent("details") is None and short.parent["class"] == ["scroll"]
