"""What the panels put into widgets.HTML: sentences, tables and figures that look as they do in a notebook's output."""

import base64
import html
import io

from ..report.style import title_of
from ..report.text import sentence_as_html

# Classes whose rules JupyterLab has for outputs: without them the heads of a table do not stand over their columns.
OUTPUT = "jp-RenderedHTMLCommon jp-RenderedHTML"


def as_lines(*sentences: str) -> str:
    """A paragraph for each sentence; `code` is code, all else is shown as it is."""
    return "".join(f"<p style='margin: 0.2em 0'>{sentence_as_html(each)}</p>" for each in sentences)


def as_table(style) -> str:
    """A styled DataFrame, in a box that scrolls where it is wider."""
    return f"<div class='{OUTPUT}' style='overflow-x: auto'>{style.to_html()}</div>"


def as_figure(figure) -> str:
    """A figure as SVG, with its title as alternative text."""
    image = io.BytesIO()
    figure.savefig(image, format="svg", bbox_inches="tight", metadata={"Date": None})
    data, alt = base64.b64encode(image.getvalue()).decode(), html.escape(title_of(figure), quote=True)
    width = int(figure.get_figwidth() * 88)
    return f'<img alt="{alt}" width="{width}" style="max-width: 100%" src="data:image/svg+xml;base64,{data}">'
