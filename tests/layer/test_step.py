"""The decode step at toy size on a CPU: every part against the float64 reference; errors, bytes, ranges."""

import math

import pytest
import torch

from gdn_lab import StatePool
from gdn_lab.bench.pools import L2_MULTIPLE
from gdn_lab.layer import CONFIGURATIONS, Configuration, Step, StepWeights, layer_reference, made_for
from gdn_lab.layer import step as steps
from gdn_lab.layer.step import PARTS, STEP
from gdn_lab.layer.step_check import differences
from gdn_lab.layer.weights import StepSizes
from gdn_lab.models import MODELS, divisions

EXPERTS, DENSE = "qwen3.5-397b-a17b", "qwen3.5-27b"


def toy(model=EXPERTS, precision="fp8", seed=0):
    return StepWeights.random(model, 8, precision=precision, toy=True, seed=seed)


@pytest.mark.parametrize("name", made_for("cpu"))
@pytest.mark.parametrize("precision", ["fp8", "bf16"])
@pytest.mark.parametrize("model", [EXPERTS, DENSE])
def test_every_part_is_right(model, precision, name):
    step = Step(toy(model, precision), name, 5)
    wrong = [difference for difference in differences(step) if not difference.right]
    assert not wrong
    assert step.check().right
    assert step.weights.nbytes > 256 * 1024
    assert set(step.parts) <= set(PARTS) and list(step.parts) == sorted(step.parts, key=PARTS.index)
    assert torch.isfinite(step.out).all() and step.out.float().std() > 0.01, "a step of zeros proves nothing"


@pytest.mark.parametrize("batch", [1, 33])
def test_a_single_row_and_more_rows_than_are_checked(batch):
    step = Step(toy(), "torch", batch)
    assert step.check().right and step.out.shape == (batch, 256)


def _spoil(function, by):
    def spoilt(*arguments, **options):
        function(*arguments, **options)
        by(*arguments, **options)

    return spoilt


def _forget_window(mixed, window, weight, indices, out, **_):
    window[indices[0].item()] = 0


@pytest.mark.parametrize(
    "name, part, by",
    [
        ("add_norm", "input norm", lambda x, residual, weight, residual_out, y, **_: y[0].mul_(1.02)),
        ("split", "split", lambda qkvz, ba, mixed, z, b, a: a[0, :1].add_(0.1)),
        ("conv_update", "conv", lambda mixed, window, weight, indices, out, **_: out[0, :1].add_(0.1)),
        (
            "conv_update",
            "conv window",
            _forget_window,
        ),
        ("gated_norm", "gated norm", lambda o, z, weight, y, **_: y[0].mul_(1.02)),
        ("quantize", "input norm fp8", lambda x, x8, x_scale, **_: x_scale[0].mul_(1.2)),
    ],
)
def test_an_error_is_reported_at_the_part_that_makes_it(monkeypatch, name, part, by):
    monkeypatch.setattr(layer_reference, name, _spoil(getattr(layer_reference, name), by))
    found = differences(Step(toy(), "torch", 3))
    assert part in {difference.part for difference in found if not difference.right}


def test_a_wrong_choice_of_experts_is_found(monkeypatch):
    step = Step(toy(), "torch", 4)
    route = step.feed_forward.experts.route

    def second_best(logits):
        route(logits)
        step.feed_forward.experts.ids[0, 0] = logits[0].argmin()

    step.feed_forward.experts.route = second_best
    found = differences(step)
    assert {difference.part for difference in found if not difference.right} >= {"router choice"}
    assert not step.check().right


def test_a_step_that_is_not_finite_is_wrong():
    step = Step(toy(), "torch", 2)
    step.layer.x[0, 0] = torch.nan
    found = step.check()
    assert not found.right and found.max_abs_error is None


def test_slots_of_other_requests_stay_as_they_are():
    weights = toy()
    pool = StatePool(weights.shape, 8)
    pool.state.normal_()
    pool.conv.normal_()
    before = pool.state.clone(), pool.conv.clone()
    used, rest = [2, 7, 5], [0, 1, 3, 4, 6]
    step = Step(weights, "torch", 3, pool=pool, indices=torch.tensor(used, dtype=torch.int32))
    step()
    assert torch.equal(pool.state[rest], before[0][rest]) and torch.equal(pool.conv[rest], before[1][rest])
    assert not torch.equal(pool.state[used], before[0][used]) and not torch.equal(pool.conv[used], before[1][used])


def test_configurations_agree_and_seeds_repeat():
    weights = toy()
    results = {}
    for name in made_for("cpu"):
        layout = CONFIGURATIONS[name].layout
        pool = StatePool(weights.shape, 5, layout=layout)
        state = torch.randn(4, *(weights.shape.num_v_heads, 128, 128), generator=torch.Generator().manual_seed(1)) * 0.1
        pool.write(torch.arange(1, 5), state)
        step = Step(weights, name, 4, pool=pool, seed=3)
        step()
        results[name] = step.out.clone()
    first, second = results.values()
    torch.testing.assert_close(first, second, rtol=2**-6, atol=2**-6)
    again = StepWeights.random(EXPERTS, 8, toy=True, seed=0)
    assert torch.equal(again.experts.w13.data.view(torch.uint8), weights.experts.w13.data.view(torch.uint8))
    assert torch.equal(again.post_norm, weights.post_norm)
    assert not torch.equal(toy(seed=1).post_norm, weights.post_norm)


def test_a_configuration_is_one_record(monkeypatch):
    monkeypatch.setitem(CONFIGURATIONS, "mine", Configuration("mine", "torch/vk", "VK", "of my own"))
    assert Step(toy(), "mine", 2).check().right


@pytest.mark.parametrize("model", MODELS)
def test_sizes_of_every_model_at_every_tensor_parallel_size(model):
    entry = MODELS[model]
    for tp in [size for size in divisions(model) if size <= 8]:
        s = StepSizes.of(model, tp)
        assert s.hidden == entry.hidden and s.shape.num_v_heads * tp == entry.num_v_heads
        assert s.shared * tp == entry.ffn_intermediate
        assert (s.routed or 0) * tp == (entry.moe_intermediate or 0)
        assert s.hidden % 128 == 0 and (s.experts or s.shared % 128 == 0)  # what the kernels take


def test_bytes_of_a_step():
    """Weights that were used and activations by the formula, counted by hand for the toy model."""
    B, H, HK, HV, D = 3, 256, 2, 4, 128
    step = Step(toy(precision="bf16"), "torch", B)
    step()
    nbytes = step.bytes()
    conv_dim, value = (2 * HK + HV) * D, HV * D
    assert nbytes["in_proj qkvz"] == 2 * ((conv_dim + value) * H + B * (H + conv_dim + value))
    assert nbytes["gdn"] == B * (2 * HV * D * D * 2 + (2 * HK * D + 2 * HV * D + 2 * HV) * 2 + 4) + 2 * HV * 4
    assert nbytes["split"] == 0
    hit = step.feed_forward.experts.ids.unique().numel()
    assert step.experts_hit == hit <= B * 2
    assert nbytes["experts"] == 2 * (hit * 3 * 128 * H + B * (H + 2 * (2 * 128 + H)))
    assert tuple(nbytes) == step.parts
    fp8 = Step(toy(), "torch", B)
    fp8()
    assert fp8.bytes()["out_proj"] < 0.6 * nbytes["out_proj"] + 2 * B * (H + value)


def test_layers_needed_cover_the_cache():
    step = Step(toy(), "torch", 2)
    step()
    nbytes = sum(step.bytes().values())
    assert steps.layers_needed(step, 1) == 1
    assert steps.layers_needed(step, nbytes) == L2_MULTIPLE
    assert steps.layers_needed(step, 1 << 40) == steps.MAX_LAYERS


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: StepWeights.random("gpt", 8), "model: 'gpt' is not in the table; choose one of"),
        (lambda: StepWeights.random(EXPERTS, 3), "tp: .* which 3 GPUs cannot share evenly; choose one of 1, 2, 4, 8"),
        (lambda: toy(precision="int4"), "precision: expected one of fp8, bf16, got 'int4'"),
        (lambda: Step(toy(), "later", 1), "configuration: 'later' is unknown; choose one of before,"),
        (lambda: Step(toy(), "torch", 0), "batch: expected a positive int, got 0"),
        (lambda: Step(toy(), "after", 1), "configuration 'after' needs an NVIDIA GPU of compute capability 9.0"),
        (lambda: Step(toy(), "best", 1), "configuration 'best' needs an NVIDIA GPU of compute capability"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_every_part_is_a_range_inside_the_step():
    step = Step(toy(), "torch", 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    ranges = {event.name: event for event in profile.events() if event.name in (*PARTS, STEP)}
    assert set(ranges) == {STEP, *step.parts}
    outer = ranges[STEP].time_range
    for part in step.parts:
        assert outer.start <= ranges[part].time_range.start <= ranges[part].time_range.end <= outer.end


def test_routing_of_random_weights_is_spread_evenly():
    """With 8 experts and top 2 of many tokens, each expert gets about a quarter of the tokens."""
    step = Step(toy(), "torch", 512)
    step()
    counts = torch.bincount(step.feed_forward.experts.ids.flatten().long(), minlength=8)
    share = counts / counts.sum()
    assert (share - 1 / 8).abs().max() < 6 * math.sqrt(1 / 8 / 1024), share


def test_a_skewed_routing_prefers_some_experts():
    weights = StepWeights.random(EXPERTS, 8, toy=True, skew=2.0)
    step = Step(weights, "torch", 256)
    assert step.check().right
    counts = torch.bincount(step.feed_forward.experts.ids.flatten().long(), minlength=8)
    assert counts.argmax() == weights.popularity.argmax() and counts.max() > 8 * counts.min()
    with pytest.raises(ValueError, match="skew: expected 0 .uniform. or more, got -1"):
        StepWeights.random(EXPERTS, 8, toy=True, skew=-1)


@pytest.mark.parametrize("model", [EXPERTS, DENSE])
def test_a_layer_takes_the_output_of_the_one_before(model):
    first, second = steps.stacked(Step(toy(model), "torch", 3), [toy(model, seed=1)])
    for _ in range(2):
        first()
        second()
        total = first.out.float() + first.residual_out.float()
        assert torch.equal(second.layer.residual_out, total.bfloat16())
