"""Pages: formulas as MathML, figures as SVG with their title, and nothing that a browser must fetch."""

import base64
import re

import bs4
import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdn_lab.cli import pages
from gdn_lab.cli import run as batch

NOTEBOOKS = sorted(batch.NOTEBOOKS.glob("*.ipynb"))


def test_formulas_become_mathml_and_code_stays():
    page = pages.markdown(
        "The sum $a_i + b$ of\n\n$$\nx = \\frac{1}{2}\n$$\n\nwith `$HOME` and\n```\n$OUT $x$\n```\n"
        "\n|a|\n|-|\n|$1 + T$|\n"
    )
    assert page.count("<math") == 3 and page.count('display="inline"') == 2 and 'display="block"' in page
    assert "<code>$HOME</code>" in page and "$OUT $x$\n</code>" in page
    assert "$$" not in page and "\\frac" not in page


@pytest.mark.parametrize("text", ["costs $5 or $6", "$ 5 $", "it is $5, not $6, and $x is a variable", "a\\$b$"])
def test_money_and_variables_are_no_formulas(text):
    assert "<math" not in pages.markdown(text)


@pytest.mark.parametrize("tex", ["$\\left($", "$x^{$", "$$\\begin{array}{l} a$$"])
def test_what_cannot_be_converted_stays(tex):
    page = pages.markdown(f"see {tex}, and $a$")
    assert page.startswith(f"<p>see {tex}, and <math")


@given(st.text(alphabet="abc \n`*_|\\{}^$", max_size=60))
def test_any_text_is_a_page(text):
    assert pages.markdown(text) is not None


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
    assert page.startswith("<!DOCTYPE html>") and f"<title>{path.stem}</title>" in page
    fetched = re.findall(r"<(?:script|img|iframe)[^>]* src=.?https?:[^>]*|<link[^>]*>|import [^;]* from .https?:", page)
    assert not fetched, fetched
    formulas = sum(
        len(re.findall(r"\$[^$]+\$", re.sub(r"`[^`]*`", "", cell.source).replace("$$", "$")))
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
    )
    assert page.count("<math") == formulas
    assert "\\begin" not in re.sub(r"<math.*?</math>", "", page, flags=re.DOTALL)


def test_without_the_library_formulas_stay_tex(monkeypatch):
    monkeypatch.setattr(pages, "convert", None)
    page = pages.html(batch.NOTEBOOKS / "05_verify.ipynb")
    assert "<math" not in page and "MathJax" in page and "\\hat k_i" in page
