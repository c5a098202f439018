"""A backend of one small file is in every table, figure and sentence of the decode study; no other file changes."""

import importlib
import sys
import textwrap

import pytest
import torch
from matplotlib.text import Text

import gdn_lab.backends
from gdn_lab import GDNShape
from gdn_lab.backends import registry
from gdn_lab.report.timed import Timed
from gdn_lab.studies.decode_kernels import analysis, figures
from gdn_lab.studies.decode_kernels.study import STUDY
from gdn_lab.studies.decode_kernels.sweep import decode_sweep
from gdn_lab.studies.pool_layouts.analysis import answers as pool_answers
from gdn_lab.studies.pool_layouts.figures import layout_cost
from gdn_lab.studies.start_here.analysis import check_answers, check_table
from gdn_lab.studies.start_here.figures import errors

NEW_FILE = '''
    """A new kernel, and its predecessor on a KV pool."""

    import torch

    from gdn_lab.backends.base import Backend, Variant
    from gdn_lab.backends.torch import BACKEND as EAGER


    class Quick(Backend):
        name = "quick"
        distribution = "torch"
        variants = (
            Variant("vk", "VK", (torch.bfloat16,), "new", label="Quick K-last"),
            Variant("kv", "KV", (torch.bfloat16,), "old", role="baseline", label="Quick KV", vk_twin="quick/vk"),
        )

        def missing(self, device):
            return None

        def decode_launch(self, variant, call):
            return EAGER.decode_launch(variant, call)


    BACKEND = Quick()
'''
NEW, OLD = "Quick K-last", "Quick KV"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The package of backends with one more file."""
    folder = tmp_path_factory.mktemp("more_backends")
    (folder / "quick.py").write_text(textwrap.dedent(NEW_FILE))
    gdn_lab.backends.__path__.append(str(folder))
    importlib.invalidate_caches()
    registry.discover()
    yield
    gdn_lab.backends.__path__.remove(str(folder))
    sys.modules.pop("gdn_lab.backends.quick", None)
    registry.discover()


@pytest.fixture(scope="module")
def timed(quick):
    """Rows of a sweep on the CPU, as a GPU would have them: torch stands in for FlashInfer, and there are two timers.

    The times are made up, so that the new kernel is fastest at B = 32 and its timers disagree.
    """
    rows = decode_sweep(
        GDNShape(1, 2, 16, 32),
        [1, 32],
        variants=["quick", "torch/vk"],
        device="cpu",
        dtype=torch.bfloat16,
        samples=1,
        progress=False,
    )
    assert {row["status"] for row in rows} == {"ok"}
    us, gathered = {"vk": 20.0, "kv": 50.0}, {"vk": 2.8, "kv": 2.2}
    found = []
    for row in rows:
        row = row | ({"backend": "flashinfer"} if row["backend"] == "torch" else {})
        median = (
            us[row["variant"]]
            * row["batch"]
            * (gathered[row["variant"]] if row["indexing"] == "gather_scatter" else 1.0)
        )
        median *= 1.2 if row["backend"] == "flashinfer" and row["indexing"] == "in_place" else 1.0
        for timer, factor in (("cuda_graph_replay", 1.0), ("cupti_kernel", 0.9 if row["backend"] == "quick" else 1.0)):
            times = {"median_us": median * factor, "p20_us": median * factor, "p80_us": median * factor}
            found.append(row | times | {"timer": timer})
    return Timed(found, phase="decode")


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize(
    "draw",
    [
        figures.decode_time,
        figures.gather_scatter,
        figures.against_published,
        figures.launch_gap,
        figures.one_batch,
        layout_cost,
    ],
    ids=lambda draw: draw.__name__,
)
def test_its_labels_are_in_every_figure(draw, timed):
    assert NEW in texts(draw(timed)) and OLD in texts(draw(timed))


def test_its_labels_are_in_every_table(timed):
    for table in (analysis.time_table, analysis.next_to_published):
        assert {NEW, OLD} <= set(table(timed).columns), table.__name__
    assert {NEW, OLD} <= set(analysis.detail_table(timed).variant) and {NEW, OLD} <= set(check_table(timed).variant)
    columns = " ".join(analysis.ratio_table(timed).columns)
    assert f"{NEW} GB/s" in columns and f"{OLD} ÷ flashinfer/vk" in columns


@pytest.mark.parametrize(
    ("say", "labels"),
    [
        (analysis.fastest_sentence, [NEW]),
        (analysis.layout_sentence, [NEW, OLD]),
        (analysis.indexing_sentence, [NEW, OLD]),
        (analysis.published_sentence, [OLD]),
        (analysis.pair_sentence, [NEW]),
        (analysis.timers_sentence, [NEW, OLD]),
    ],
)
def test_its_labels_are_in_every_sentence(say, labels, timed):
    sentence = say(timed)
    assert sentence in analysis.answers(timed)
    assert all(label in sentence for label in labels)


def test_it_is_in_the_section_of_the_readme_and_in_notebooks_00_and_01(timed):
    section = STUDY.section({}, timed.all_rows)
    assert NEW in section.table and any(NEW in sentence for sentence in section.sentences)
    assert NEW in texts(errors(timed)) and NEW in check_answers(timed)[0]
    assert any(NEW in sentence for sentence in pool_answers(timed, "qwen3.5-397b-a17b", 1))


def test_it_looks_like_no_other_variant(quick):
    new = registry.variant("quick/vk")
    others = [variant for variant in registry.VARIANTS.values() if variant.full_name != new.full_name]
    assert new.colour not in {other.colour for other in others}
    assert new.marker not in {other.marker for other in others}
