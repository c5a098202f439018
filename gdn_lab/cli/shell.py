"""The frame of every page: head, style and links. A page holds all that it needs and cannot ask for anything else."""

import html
from functools import cache
from pathlib import Path

# No script, no request: whatever a name in a trace or a table says.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@cache
def style() -> str:
    """Return page.css, the style of all pages."""
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def page(title: str, body: str) -> str:
    """Return a whole HTML page. title: plain text. body: HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style()}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def badge(text: str, kind: str = "") -> str:
    """Return a word in a rounded frame. kind: "right", "wrong", "recorded" or "", its colour."""
    return f'<span class="badge {kind}">{html.escape(text)}</span>'
