"""Pages: formulas as MathML, code as it is, and nothing that a browser must fetch."""

import re

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdn_lab.cli import pages
from gdn_lab.cli import run as batch

NOTEBOOKS = sorted(batch.NOTEBOOKS.glob("*.ipynb"))


def test_formulas_become_mathml_and_code_stays():
    page = pages.with_mathml(
        "The sum $a_i + b$ of\n\n$$\nx = \\frac{1}{2}\n$$\n\nwith `$HOME` and\n```\n$OUT $x$\n```\n"
    )
    assert page.count("<math") == 2 and 'display="inline"' in page and 'display="block"' in page
    assert "`$HOME`" in page and "```\n$OUT $x$\n```" in page
    assert "$$" not in page and "\\frac" not in page


@pytest.mark.parametrize("tex", ["$\\left($", "$x^{$", "$$\\begin{array}{l} a$$"])
def test_what_is_no_formula_stays(tex):
    assert pages.with_mathml(f"see {tex}, and $a$").startswith(f"see {tex}, and <math")


@given(st.text(alphabet="abc \n`*_|\\{}^", max_size=60))
def test_text_without_formulas_is_left_alone(text):
    assert pages.with_mathml(text) == text


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
