"""The checkpoint that the notebooks use: its size, how it was trained, and that it answers on a CPU."""

import json

import pytest
import torch

from gdn_lab.studies.accuracy.answering import DECODE, right_answers
from gdn_lab.studies.accuracy.proportions import wilson
from gdn_lab.trained.checkpoint import CHECKPOINT, FOLDER, load
from gdn_lab.trained.inference import Kernels, SmallModel
from gdn_lab.trained.language import KINDS, questions
from gdn_lab.trained.sizes import Sizes

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_is_small_and_of_the_sizes_that_are_declared():
    sizes, tensors = load()
    assert CHECKPOINT.stat().st_size <= 8 * 2**20
    assert sizes == Sizes() and (sizes.head_dim, len(sizes.gdn_layers), sizes.layers) == (128, 3, 4)
    assert 2e6 < sum(tensor.numel() for tensor in tensors.values()) < 5e6
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_its_loss_curve_is_kept():
    lines = [json.loads(line) for line in (FOLDER / "loss.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"] and lines[-1]["seconds"] <= 250
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)


def test_training_again_gives_the_same_accuracy():
    """Two seeds by the same plan: exact match of each kind at the end, on 512 questions, within both intervals."""
    plans, ends = [], []
    for folder in (FOLDER, FOLDER / "again"):
        plans.append(json.loads((folder / "train.json").read_text(encoding="utf-8"))["plan"])
        ends.append(json.loads((folder / "loss.jsonl").read_text(encoding="utf-8").splitlines()[-1]))
    seeds, count = [plan.pop("seed") for plan in plans], plans[0]["tested_last"]
    assert len(set(seeds)) == 2 and plans[0] == plans[1]
    for kind in KINDS:
        first, second = (wilson(round(end[kind] * count), count) for end in ends)
        assert first.low <= second.high and second.low <= first.high, kind
        assert min(first.share, second.share) >= 0.95, kind


def test_it_answers_easy_questions_exactly():
    model = SmallModel(*load())
    asked = questions(12, 130, 12, seed=7)
    assert set(asked.kinds) == set(KINDS)
    assert right_answers(model, Kernels(), asked, DECODE, 4).sum() >= 11


def test_a_file_of_something_else_is_refused(tmp_path):
    from gdn_lab.tensor_file import write_tensors

    write_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="expected a checkpoint that gdn_lab.trained wrote"):
        load(tmp_path / "x.safetensors")
