"""Figures of an executed notebook as WebP of few colours: a third of the bytes of their SVG, which outlines glyphs."""

import base64
import io

COLOURS = 256  # a figure has a dozen, and shades of them at its edges
PNG, WEBP, SVG = "image/png", "image/webp", "image/svg+xml"


def with_small_figures(book):
    """The notebook, changed in place: each PNG becomes a WebP of its pixels, and its SVG is left out."""
    for cell in book.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PNG in data:
                data[WEBP] = webp(data.pop(PNG))
                data.pop(SVG, None)
                output.metadata[WEBP] = output.metadata.get(PNG, {})
    return book


def webp(encoded: str) -> str:
    """Base64 of a PNG -> base64 of a WebP of the same size, in its COLOURS nearest colours."""
    from PIL import Image

    made = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        few = image.convert("RGB").quantize(COLOURS, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
        few.convert("RGB").save(made, format="webp", lossless=True, method=6)
    return base64.b64encode(made.getvalue()).decode()
