"""The elementwise kernels of a layer on the CPU, in Triton's interpreter, against layer_reference.py in float64.

Run by test_triton_interpreter.py in a process of its own, under TRITON_INTERPRET=1.
"""

import pytest
import torch

from gdn_lab.backends.triton.backend import INTERPRETED
from gdn_lab.layer import CONFIGURATIONS, StepWeights, layer_reference, step
from gdn_lab.layer.fp8 import Linear, quantize_rows
from gdn_lab.layer.gdn_layer import Activation, Kernels
from gdn_lab.layer.kernels import elementwise
from gdn_lab.layer.kernels.conv_and_gates import conv_and_gates
from gdn_lab.layer.kernels.projections import Scratch
from gdn_lab.layer.step_check import differences
from gdn_lab.rounding import FP8
from gdn_lab.tolerances import CORRECTIONS

assert INTERPRETED, "run under TRITON_INTERPRET=1"

BF16 = torch.bfloat16
LAST_PLACE = 2.0**-7  # the interpreter truncates float32 to bf16 instead of rounding it


def random(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(BF16)


def assert_close(actual, expected):
    error = (actual.double() - expected.double()).abs()
    assert (error <= LAST_PLACE * expected.double().abs() + 1e-5).all(), error.max()


def assert_quantized(activation, rows, expected):
    """Scales equal PyTorch's, elements are within a unit in e4m3's last place, padding rows are untouched."""
    data, scale = quantize_rows(expected)
    torch.testing.assert_close(activation.scale[:rows], scale.float(), rtol=1e-5, atol=0)
    # The interpreter loses the carry where rounding up reaches the next power of 2: the GPU tests see those elements.
    carried = (data.view(torch.uint8) & 7) == 0
    difference = (activation.y8[:rows].float() - data.float()).abs()
    assert (carried | (difference <= 2.0**-3 * data.float().abs() + 2.0**-9)).all(), difference.max()
    assert carried.float().mean() < 0.5
    assert not activation.y8[rows:].view(torch.uint8).any() and (activation.scale[rows:] == 1).all()


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("hidden", [256, 384])  # 384: a row that is no power of 2
def test_add_norm(hidden, quantize):
    rows = 3
    x, residual, weight = random(rows, 2 * hidden)[:, :hidden], random(rows, hidden, seed=1), random(hidden, seed=2)
    out, made = torch.full((rows, hidden), torch.nan, dtype=BF16), Activation(rows, hidden, True)
    elementwise.add_norm(x, residual, weight, out, made.live, **(made.quantized() if quantize else {}))
    total = x.double() + residual.double()
    expected = layer_reference.rms_norm(total, weight, torch.float64)
    assert_close(out, total)
    assert_close(made.live, expected)
    if quantize:
        assert_quantized(made, rows, expected)
    else:
        assert not made.y8.view(torch.uint8).any()


def test_a_row_of_zeros_is_normed_and_quantised_to_zeros():
    made = Activation(1, 128, True)
    zeros = torch.zeros(1, 128, dtype=BF16)
    elementwise.add_norm(zeros, zeros, zeros[0], torch.empty_like(zeros), made.live, **made.quantized())
    assert not made.y.any() and not made.y8.view(torch.uint8).any() and torch.isfinite(made.scale).all()


def test_quantize_takes_strided_rows_of_any_number_of_groups():
    x, made = random(3, 9 * 128 + 5)[:, : 9 * 128], Activation(3, 9 * 128, True)
    elementwise.quantize(x, made.y8, made.scale)
    assert_quantized(made, 3, x)


def test_split_copies_and_nothing_else():
    rows, conv_dim, z_dim, heads = 3, 384, 256, 6
    qkvz, ba = random(16, conv_dim + z_dim), random(16, 2 * heads)
    mixed, z, b, a = (torch.full((rows + 1, n), torch.nan, dtype=BF16) for n in (conv_dim, z_dim, heads, heads))
    elementwise.split(qkvz, ba, mixed[:rows], z[:rows], b[:rows], a[:rows])
    assert torch.equal(torch.cat((mixed, z), 1)[:rows], qkvz[:rows])
    assert torch.equal(torch.cat((b, a), 1)[:rows], ba[:rows])
    assert all(torch.isnan(x[rows:]).all() for x in (mixed, z, b, a))


@pytest.mark.parametrize("conv_dim", [256, 384])
def test_conv_updates_the_windows_of_its_rows_alone(conv_dim):
    window, weight = random(5, conv_dim, 3), random(conv_dim, 4, seed=1)
    indices = torch.tensor([3, -1, 1], dtype=torch.int32)
    mixed = random(3, conv_dim + 128, seed=2)[:, :conv_dim]  # a view of a wider product
    out = torch.full((3, conv_dim), torch.nan, dtype=BF16)
    before = window.clone()
    for _ in range(2):  # the second time on the updated window
        live, slots = [0, 2], [3, 1]
        expected, updated = layer_reference.causal_conv(mixed[live], window[slots], weight, torch.float64)
        elementwise.conv_update(mixed, window, weight, indices, out)
        assert_close(out[live], expected)
        assert torch.equal(window[slots], updated)
    assert not out[1].any()
    assert torch.equal(window[[0, 2, 4]], before[[0, 2, 4]])


@pytest.mark.parametrize("rows", [3, 20])  # 20: several blocks of rows, and K split
def test_conv_and_in_proj_ba_in_one_launch(rows):
    hidden, conv_dim, heads = 320, 640, 3
    padded = -(-rows // 16) * 16
    x, weight = random(padded, hidden), random(2 * heads, hidden, seed=1)
    window, taps = random(rows + 1, conv_dim, 3, seed=2), random(conv_dim, 4, seed=3)
    indices = torch.arange(rows, 0, -1, dtype=torch.int32)
    indices[1] = -1
    mixed, out = random(rows, conv_dim + 128, seed=4)[:, :conv_dim], torch.full((rows, conv_dim), torch.nan, dtype=BF16)
    alone = window.clone(), torch.empty_like(out)
    elementwise.conv_update(mixed, alone[0], taps, indices, alone[1])
    ba = torch.full((padded, 2 * heads), torch.nan, dtype=BF16)
    scratch = Scratch.of(padded, Linear(weight))
    conv_and_gates(x, weight, ba, mixed, window, taps, indices, out, scratch=scratch)
    assert torch.equal(window, alone[0]) and torch.equal(out, alone[1])
    torch.testing.assert_close(ba.double(), x.double() @ weight.double().T, rtol=LAST_PLACE, atol=1e-3)
    assert scratch is None or not scratch.arrived.any()


@pytest.mark.parametrize("draft_tokens", [0, 3])
@pytest.mark.parametrize("conv_dim", [256, 384])
def test_conv_of_sequences_equals_one_token_at_a_time(conv_dim, draft_tokens):
    """Sequences of 1 to 6 tokens, an empty one, one of a padding slot, and padding rows; or drafts of one length."""
    lengths = [draft_tokens] * 4 if draft_tokens else [1, 6, 0, 2, 3]
    indices = torch.tensor([3, 5, 2, -1, 1][: len(lengths)], dtype=torch.int32)
    sequence = [n for n, length in enumerate(lengths) for _ in range(length)] + [-1, -1]
    starts = torch.tensor([sum(lengths[:n]) for n in range(len(lengths) + 1)], dtype=torch.int32)
    mixed, weight = random(len(sequence), conv_dim + 128, seed=2)[:, :conv_dim], random(conv_dim, 4, seed=1)
    window, out = random(6, conv_dim, 3), torch.full((len(sequence), conv_dim), torch.nan, dtype=BF16)
    expected_window, expected = window.clone(), torch.zeros(out.shape, dtype=torch.float64)
    for n, slot in enumerate(indices.tolist()):
        for t in range(starts[n], starts[n + 1]) if slot >= 0 else ():
            y, updated = layer_reference.causal_conv(mixed[[t]], expected_window[[slot]], weight, torch.float64)
            expected[t], expected_window[slot] = y[0], updated[0]
    drafts = torch.zeros(4, conv_dim, draft_tokens + 1, dtype=BF16)[:, :, :draft_tokens] if draft_tokens else None
    before = window.clone()
    sequence = torch.tensor(sequence, dtype=torch.int32)
    eager = window.clone(), torch.empty_like(out), None if drafts is None else drafts.clone()
    elementwise.conv_sequences(mixed, window, weight, indices, sequence, starts, out, drafts)
    layer_reference.conv_sequences(mixed, eager[0], weight, indices, sequence, starts, *eager[1:])
    assert_close(out, expected)
    assert_close(eager[1], expected)
    if draft_tokens:
        assert torch.equal(window, before) and torch.equal(eager[0], before) and torch.equal(drafts, eager[2])
        live = (indices >= 0).nonzero()[:, 0]
        assert torch.equal(drafts[live], mixed[:12].view(4, 3, conv_dim).transpose(1, 2)[live])
    else:
        assert torch.equal(window, expected_window) and torch.equal(eager[0], expected_window)


def test_four_tokens_one_by_one_equal_a_convolution():
    weight, tokens = random(128, 4), random(5, 128, seed=1)
    window, out = torch.zeros(2, 128, 3, dtype=BF16), torch.empty(1, 128, dtype=BF16)
    for token in tokens:
        elementwise.conv_update(token[None], window, weight, torch.tensor([1]), out)
    whole = torch.nn.functional.conv1d(tokens.double().T[None], weight.double()[:, None], groups=128)[0, :, -1]
    assert_close(out[0], torch.nn.functional.silu(whole))


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("heads", [1, 6, 9])
def test_gated_norm(heads, quantize):
    rows = 2
    o, weight = random(rows, heads, 128), random(128, seed=1)
    z = random(rows, heads * 128 + 256, seed=2)[:, 256:]  # the end of a wider product
    made = Activation(rows, heads * 128, True)
    elementwise.gated_norm(o, z, weight, **(made.quantized() if quantize else {"y": made.live}))
    expected = layer_reference.gated_rms_norm(o, z.reshape(o.shape), weight, torch.float64).flatten(1)
    if quantize:
        assert_quantized(made, rows, expected)
    else:
        assert_close(made.live, expected)


@pytest.mark.parametrize("quantize", [False, True])
def test_silu_mul(quantize):
    rows, width = 3, 640
    gate_up, made = random(16, 2 * width), Activation(rows, width, True)
    elementwise.silu_mul(gate_up[:rows], **(made.quantized() if quantize else {"y": made.live}))
    gate, up = gate_up[:rows].double().chunk(2, 1)
    expected = torch.nn.functional.silu(gate) * up
    if quantize:
        assert_quantized(made, rows, expected)
    else:
        assert_close(made.live, expected)


def test_a_step_of_a_state_in_fp8(monkeypatch):
    """The pool has the configuration's dtype, whatever is asked; steps that do not fill a ring store no state."""
    entry = CONFIGURATIONS["replay-fp8"]
    kernels = Kernels(entry.gdn, layer_reference, fused=False, overlap=False, torch_fp8=True)
    monkeypatch.setattr(step, "kernels_of", lambda *_: kernels)
    monkeypatch.setattr(step, "is_eager", lambda _: True)  # needs no GPU
    monkeypatch.setitem(CORRECTIONS, FP8, LAST_PLACE)
    weights = StepWeights.random("qwen3.5-397b-a17b", 8, toy=True, seed=0)
    made = step.Step(weights, entry, 1, state_dtype=BF16)
    stored = made.pool.state.clone()
    for _ in range(2):
        found = {one.part: one for one in differences(made)}
        assert found["gdn"].right and found["gdn state"].right
    assert made.pool.dtype is FP8 and made.pool.ring.span.tolist()[1] == [1, 3]
    assert torch.equal(stored.view(torch.uint8), made.pool.state.view(torch.uint8))
