"""The figure of several measurements of decode that the panel of notebook 02 keeps."""

import io

from synthetic import RUN, sweep_rows

from gdn_lab.report.style import title_of
from gdn_lab.report.timed import Timed
from gdn_lab.studies.decode_kernels.overlay import Entry, overlaid


def entry(name, variants, *, recorded=False):
    return Entry(name, Timed(sweep_rows(variants, batches=(1, 8)), RUN), recorded)


def words(ax):
    return " ".join(text.get_text() for text in ax.texts)


def test_every_variant_is_named_once_at_the_newest_of_its_lines():
    old = entry("recorded", {"triton/vk": (2.0, 0.9), "triton/kv8": (4.0, 0.4)}, recorded=True)
    new = entry("1: now", {"triton/vk": (200.0, 0.1)})
    figure = overlaid([old, new])
    left = figure.axes[0]
    assert title_of(figure).startswith("At B = 8 triton/vk is fastest")
    assert words(left).count("triton/vk") == 1 == words(left).count("triton/kv8")
    (us,) = (max(points.values()) for points in new.timed.kernels().times().values())
    assert f"triton/vk  {us:,.0f} µs" in words(left)
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["1: now", "recorded"]


def test_the_legend_covers_no_line():
    figure = overlaid([entry(f"{n}: press", {"triton/vk": (n, 0.9)}) for n in (1, 2, 3)])
    figure.savefig(io.BytesIO(), format="png")  # which lays it out
    left = figure.axes[0]
    legend = left.get_legend().get_window_extent()
    assert legend.y0 >= left.get_window_extent().y1
    assert legend.y1 <= figure._suptitle.get_window_extent().y0


def test_without_times_it_says_so():
    assert (
        title_of(overlaid([Entry("1: none", Timed([], RUN))])) == "Nothing was timed, and nothing is recorded of this"
    )
