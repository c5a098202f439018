"""An executed notebook as an HTML page that needs no network: formulas are MathML, figures are SVG with their title.

Where latex2mathml is not installed, formulas stay TeX, and a browser that reaches the network draws them with MathJax.
"""

from pathlib import Path

from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath, MathInlineParser

try:
    from jinja2 import pass_context
    from latex2mathml.converter import convert
except ImportError:
    convert = None

# nbconvert's page without the scripts that it would load: nothing here needs require.js, MathJax or Mermaid.
SCRIPTS = ("html_head_js", "jupyter_widgets", "html_head_js_mathjax", "html_head_js_mermaidjs")
WITHOUT_SCRIPTS = "".join(f"{{% block {name} %}}{{% endblock %}}" for name in SCRIPTS)
# nbconvert's own block for SVG writes neither the alternative text nor the width.
SVG_WITH_TITLE = """
{% block data_svg scoped %}
{% set about = output.metadata.get('image/svg+xml', {}) %}
<div class="jp-RenderedSVG jp-OutputArea-output" data-mime-type="image/svg+xml">
<img src="data:image/svg+xml;base64,{{ output.data['image/svg+xml'] | text_base64 }}"
 alt="{{ about.get('alt', '') | escape_html }}" style="max-width: 100%" width="{{ about.get('width', '') }}">
</div>
{% endblock %}
"""


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


class _Exporter(HTMLExporter):
    def default_filters(self):
        yield from super().default_filters()
        yield ("markdown2html", self.with_mathml)

    if convert:

        @pass_context
        def with_mathml(self, context, source: str) -> str:
            attachments = context.get("cell", {}).get("attachments", {})
            return markdown(source, attachments=attachments, anchor_link_text=self.anchor_link_text)


def html(notebook: Path) -> str:
    """The page of an executed notebook."""
    if convert is None:
        return HTMLExporter().from_filename(str(notebook))[0]
    template = "{% extends 'index.html.j2' %}" + WITHOUT_SCRIPTS + SVG_WITH_TITLE
    return _Exporter(raw_template=template).from_filename(str(notebook))[0]


def markdown(source: str, **options) -> str:
    """HTML of Markdown with MathML; options are IPythonRenderer's."""
    renderer = _Renderer(escape=False, **options)
    return MarkdownWithMath(renderer=renderer, inline=_Formulas(hard_wrap=False)).render(source)


def mathml(tex: str, display: str) -> str:
    """The formula as MathML, display "inline" or "block", or "" if it cannot be converted."""
    try:
        return convert(" ".join(tex.split()), display=display)
    except Exception:  # each mistake in a formula has a class of its own, and no common one
        return ""
