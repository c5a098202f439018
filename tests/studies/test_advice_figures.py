"""The figure of notebook 07 and its tables of published figures."""

import pytest
from matplotlib.patches import Rectangle

from gdn_lab.models import MODELS, divisions
from gdn_lab.studies.advice.figures import HATCH, fastest, recorded_cells
from gdn_lab.studies.advice.published import accuracy_sentences, accuracy_table, end_to_end_table
from gdn_lab.studies.advice.recorded_calls import all_series


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_a_panel_for_each_model_and_hatching_where_nothing_is_recorded(gpu):
    figure, cells = fastest(gpu, "bfloat16"), recorded_cells(all_series(gpu), "bfloat16")
    assert [ax.get_title(loc="left").partition(" (")[0] for ax in figure.axes] == list(MODELS)
    batches = len({batch for _, _, batch in cells})
    for ax, name in zip(figure.axes, MODELS, strict=True):
        patches = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
        hatched = [patch for patch in patches if patch.get_hatch() == HATCH]
        assert len(patches) == batches * len(divisions(name))
        assert len(patches) - len(hatched) == sum(model == name for model, _, _ in cells) == len(ax.texts)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels[-1] == "not recorded"
    assert figure.get_suptitle().startswith(f"{gpu.upper()}, bfloat16 state: ")


def test_models_with_equal_heads_have_equal_cells():
    cells = recorded_cells(all_series("h100"), "bfloat16")
    ours = {key[1:]: one.estimates for key, one in cells.items() if key[0] == "qwen3-next-80b-a3b"}
    theirs = {key[1:]: one.estimates for key, one in cells.items() if key[0] == "qwen3.5-35b-a3b"}
    assert ours == theirs and ours


def test_without_rows_it_says_so():
    assert fastest("h100", "float16").get_suptitle() == "H100: no decode with a float16 state is recorded"


def test_published_tables():
    assert end_to_end_table().set_index("metric").flashinfer["TPOT"] == 20.96
    gpqa = accuracy_table().set_index(["evaluation", "stage"]).loc[("GPQA", "published")]
    assert (gpqa.runs, gpqa.least, gpqa.greatest) == (8, 0.838, 0.889)
    assert accuracy_sentences()[0].startswith("8 runs of GPQA with the same backend score 0.838 to 0.889")
