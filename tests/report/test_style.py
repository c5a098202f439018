"""How figures look: the second palette keeps away from the variants' colours; labels keep their distance."""

import itertools

from matplotlib.figure import Figure

from gdn_lab.backends.registry import SPARE_COLOURS, VARIANTS
from gdn_lab.report import style

NEAREST = 14  # CIE76 distance between a colour of the second palette and one of a variant; 2.3 is just noticeable


def lab(colour):
    """CIE L*a*b* of "#rrggbb", D65."""
    linear = []
    for start in (1, 3, 5):
        value = int(colour[start : start + 2], 16) / 255
        linear.append(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    r, g, b = linear
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883,
    )
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def distance(one, other):
    return sum((a - b) ** 2 for a, b in zip(lab(one), lab(other), strict=True)) ** 0.5


def test_one_colour_means_one_variant():
    looks = list(VARIANTS.values())
    assert len({variant.colour for variant in looks}) == len({variant.marker for variant in looks}) == len(looks)
    taken = {variant.colour for variant in looks} | set(SPARE_COLOURS)
    second = {*style.PART_COLOURS.values(), *style.OTHER_COLOURS, *style.DTYPE_COLOURS.values()}
    near = [pair for pair in itertools.product(second, taken) if distance(*pair) < NEAREST]
    assert not near


def test_names_without_a_colour_get_one_each():
    parts = ["gdn", "lm_head", "sampling", "gdn", "norm"]
    colours = style.part_colours(parts)
    assert list(colours) == ["gdn", "lm_head", "sampling", "norm"] and colours["gdn"] == style.PART_COLOURS["gdn"]
    assert len({colours[part] for part in ("lm_head", "sampling", "norm")}) == 3
    assert style.dtype_colours(["float32", "float8_e4m3fn"])["float8_e4m3fn"] == style.OTHER_COLOURS[0]


def test_a_title_is_one_line_of_alternative_text():
    long = "A finding of many words that does not fit on one line of a narrow figure at all"
    figure, _ = style.new_figure(long, 3.0, 2.0)
    assert "\n" in figure.get_suptitle() and style.title_of(figure) == long
    assert style.title_of(Figure()) == ""


def test_labels_keep_their_distance_and_their_order():
    heights = style._spread([0.5, 0.5, 0.51, 0.99, 0.99], 0.1)
    assert heights == sorted(heights) and heights[0] >= 0 and heights[-1] <= 1
    assert all(b - a > 0.1 - 1e-9 for a, b in itertools.pairwise(heights))
    assert style._spread([0.2, 0.8], 0.1) == [0.2, 0.8]
