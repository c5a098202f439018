"""Training: the loss falls on an easy language, files are written as it goes, a seed repeats."""

import json
from dataclasses import replace

import pytest
import torch

from gdn_lab.trained import training
from gdn_lab.trained import training_plan as plans
from gdn_lab.trained.checkpoint import load
from gdn_lab.trained.sizes import Sizes

SMALL = Sizes(hidden=32, num_k_heads=1, num_v_heads=1, head_dim=16, attn_heads=1, attn_kv_heads=1, attn_dim=16, ffn=32)
pytestmark = pytest.mark.usefixtures("one_thread")
STAGE = plans.Stage(0.0, 64, 4, 384)
EASY = plans.Plan(steps=8, rate=1e-2, at_once=8, every=0.0, tested=1, tested_last=2, asked=STAGE, curriculum=(STAGE,))


def test_the_loss_falls_and_the_files_say_so(tmp_path):
    said = []
    network = training.train(SMALL, EASY, tmp_path, "cpu", said.append)
    lines = [json.loads(line) for line in (tmp_path / "loss.jsonl").read_text().splitlines()]
    assert lines == [json.loads(line) for line in said] and [line["step"] for line in lines] == list(range(9))
    losses = [line["loss"] for line in lines[1:]]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert all(0 <= lines[-1][kind] <= 1 for kind in ("recall", "tracking", "arithmetic"))
    sizes, tensors = load(tmp_path / "model.safetensors")
    assert sizes == SMALL
    for name, weight in network.state_dict().items():
        assert (tensors[name].float() - weight).abs().max() <= 0.004 * weight.abs().max(), name
        assert (tensors[name].dtype == torch.float32) == name.endswith(("A_log", "dt_bias"))


def test_a_seed_repeats(tmp_path):
    plan = replace(EASY, steps=2, every=1e9)
    first, second = (training.train(SMALL, plan, tmp_path / name, "cpu", lambda line: None) for name in "ab")
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name


def test_the_rate_warms_up_and_falls():
    plan = plans.Plan(rate=1.0)
    assert plans.rate_at(plan, plans.WARM_UP / 2) == pytest.approx(0.5)
    assert plans.rate_at(plan, plans.WARM_UP) == pytest.approx(1.0)
    assert plans.rate_at(plan, 1.0) == pytest.approx(0.01)
