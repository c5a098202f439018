"""answer.json of a run's folder: the answer's sentences and its figure, for the top of the page and for the index."""

import json
from pathlib import Path

from ..files import replacing

FILE = "answer.json"
THUMBNAIL = "answer.webp"  # the figure, small, for the card of an index page


def write(folder: Path, *, sentences: list[str], figure: str | None, alt: str, source: str, device: str) -> None:
    """Write answer.json.

    figure: name, without suffix, of a figure in the folder; alt: its title. source: "measured here", "checked here",
    "recorded" or "computed". device: what the sentences hold for, "NVIDIA H100 80GB HBM3".
    """
    found = {"sentences": list(sentences), "figure": figure, "alt": alt, "source": source, "device": device}
    with replacing(folder / FILE) as partial:
        partial.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_thumbnail(folder: Path, picture: Path) -> None:
    """Write THUMBNAIL, a small copy of a picture."""
    from PIL import Image

    with Image.open(picture) as image, replacing(folder / THUMBNAIL) as partial:
        image.thumbnail((900, 900))
        image.convert("RGB").save(partial, format="webp")


def read(folder: Path) -> dict | None:
    """Return what answer.json holds; None where there is none or it is damaged."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return found if isinstance(found["sentences"], list) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
