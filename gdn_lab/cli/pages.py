"""An executed notebook as an HTML page that needs no network: its formulas are MathML, which browsers draw themselves.

Where latex2mathml is not installed, as on machines that were set up by hand, formulas stay TeX, and a browser that
reaches the network draws them with MathJax.
"""

import re
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

try:
    from latex2mathml.converter import convert
except ImportError:
    convert = None

# nbconvert's page without the scripts that it would load: nothing here needs require.js, MathJax or Mermaid.
WITHOUT_SCRIPTS = "{% extends 'index.html.j2' %}" + "".join(
    f"{{% block {name} %}}{{% endblock %}}"
    for name in ("html_head_js", "jupyter_widgets", "html_head_js_mathjax", "html_head_js_mermaidjs")
)
# Code first, so that a $ in it is none of a formula.
CODE_OR_FORMULA = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)


def html(notebook: Path) -> str:
    """The page of an executed notebook."""
    if convert is None:
        return HTMLExporter().from_filename(str(notebook))[0]
    nb = nbformat.read(notebook, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source)
    exporter = HTMLExporter(raw_template=WITHOUT_SCRIPTS)
    return exporter.from_notebook_node(nb, {"metadata": {"name": notebook.stem}})[0]


def with_mathml(markdown: str) -> str:
    """Markdown with its $formulas$ and $$displayed formulas$$ as MathML, each on one line; code stays as it is, and so
    does what is no formula, which a reader of the page then sees."""

    def drawn(found: re.Match) -> str:
        code, displayed, inline = found.groups()
        if code is not None:
            return code
        tex, display = (displayed, "block") if displayed else (inline, "inline")
        try:
            return convert(" ".join(tex.split()), display=display)
        except Exception:  # each mistake in a formula has a class of its own, and no common one
            return found[0]

    return CODE_OR_FORMULA.sub(drawn, markdown)
