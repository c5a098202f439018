"""All-reduces on NVIDIA GPUs: the kernels of two ranks on one GPU, and every variant on as many GPUs as there are."""

import pytest
import torch

from gdn_lab.engine.all_reduce_launch import Norm, one_shot, two_shot
from gdn_lab.engine.communicator_variants import variants_on
from gdn_lab.engine.emulated_ranks import at_once, emulated, everywhere
from gdn_lab.layer import layer_reference
from gdn_lab.layer.gdn_layer import Activation
from gdn_lab.studies.all_reduce.sweep import all_reduce_sweep
from gdn_lab.tolerances import LAST_PLACE, sum_allowed

pytestmark = pytest.mark.gpu
GPU, BF16 = torch.device("cuda", 0), torch.bfloat16
both_kernels = pytest.mark.parametrize("kernel", [one_shot, two_shot])


def assert_summed(xs, ys, *more):
    terms = [*xs, *more]
    magnitudes = sum(term.double().abs() for term in terms)
    error = (ys[0].double() - sum(term.double() for term in terms)).abs()
    assert (error <= sum_allowed(magnitudes, len(terms), BF16)).all()
    assert all(torch.equal(y, ys[0]) for y in ys)


@both_kernels
@pytest.mark.parametrize("ranks, hidden", [(2, 4096), (4, 5120), (8, 2048)])
def test_stages_of_several_ranks_one_after_the_other(kernel, ranks, hidden):
    peers = emulated(ranks, 300, hidden, multiprocessors=16, device=GPU)
    for rows in (300, 1, 37):
        xs = torch.randn(ranks, rows, hidden, device=GPU).to(BF16)
        ys = torch.full_like(xs, torch.nan)
        everywhere(kernel, peers, xs, ys, [None] * ranks)
        assert_summed(xs, ys)


@both_kernels
def test_two_ranks_that_wait_for_each_other(kernel):
    """Many calls of changing size, on both halves of the scratch, with residual, norm and FP8."""
    hidden, streams = 4096, [torch.cuda.Stream() for _ in range(2)]
    peers = emulated(2, 256, hidden, multiprocessors=8, device=GPU)
    residual, weight = torch.randn(256, hidden, device=GPU).to(BF16), torch.randn(hidden, device=GPU).to(BF16)
    for rows in (256, 1, 8, 255, 64, 2, 256):
        xs = torch.randn(2, rows, hidden, device=GPU).to(BF16)
        outs, made = torch.full_like(xs, torch.nan), [Activation(rows, hidden, True, GPU) for _ in range(2)]
        norms = [Norm(residual[:rows], weight, out, **m.quantized()) for out, m in zip(outs, made, strict=True)]
        at_once(kernel, peers, xs, [m.live for m in made], norms, streams)
        assert_summed(xs, outs, residual[:rows])
        normed = layer_reference.rms_norm(outs[0], weight, torch.float64)
        for m in made:
            assert ((m.live.double() - normed).abs() <= 2 * LAST_PLACE[BF16] * normed.abs()).all()
            assert torch.equal(m.y8.view(torch.uint8), made[0].y8.view(torch.uint8))
        at_once(kernel, peers, xs, ys := torch.full_like(xs, torch.nan), [None, None], streams)
        assert_summed(xs, ys)


if torch.cuda.device_count() > 1:  # a test that skips on a machine with a GPU has failed

    @pytest.mark.parametrize("variant", variants_on("cuda"))
    def test_every_variant_on_all_gpus(variant):
        count = max(power for power in (2, 4, 8) if power <= torch.cuda.device_count())
        sizes = {"ranks": [count], "rows": [1, 100, 256], "hiddens": [4096]}
        rows = all_reduce_sweep([variant], **sizes, device="cuda", samples=5, timeout_s=90)
        assert len(rows) == 6 and {row["status"] for row in rows} == {"fact"}, rows
