"""Markdown as HTML that needs no network: formulas are MathML."""

import re

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath, MathInlineParser


class _Formulas(MathInlineParser):
    """nbconvert's Markdown, but a $ begins a formula as in pandoc: "$5 or $6" is none."""

    SPECIFICATION = {
        **MathInlineParser.SPECIFICATION,
        "inline_math_tex": r"(?<![$\\])\$(?=[^\s$])(?P<math_inline_tex>[^$]*?[^\s$\\])\$(?!\d)",
    }


class _Renderer(IPythonRenderer):
    """nbconvert's HTML of Markdown with formulas as MathML; one that cannot be converted stays as it was written."""

    def block_math(self, body: str) -> str:
        return mathml(body, "block") or super().block_math(body)

    def inline_math(self, body: str) -> str:
        return mathml(body, "inline") or super().inline_math(body)


def markdown(source: str, **options) -> str:
    """Return the HTML of Markdown; options are IPythonRenderer's."""
    renderer = _Renderer(**{"escape": False, "anchor_link_text": ""} | options)
    text = MarkdownWithMath(renderer=renderer, inline=_Formulas(hard_wrap=False)).render(source)
    text = re.sub(r'<a class="anchor-link"[^>]*/>', "", text)  # an <a> that nothing closes
    return re.sub(r"(</?)ns0:", r"\1", text.replace(' xmlns:ns0="http://www.w3.org/1998/Math/MathML"', ""))


def mathml(tex: str, display: str) -> str:
    """Return the formula as MathML, display "inline" or "block", or "" if it cannot be converted."""
    try:
        return convert(" ".join(tex.split()), display=display)
    except Exception:  # each mistake in a formula has a class of its own, and no common one
        return ""
