"""Full attention over a paged cache, in PyTorch, against float64."""

import pytest
import torch
from attention_against_reference import check_attention, scene

from gdn_lab.engine.attention_reference import rotary_table, rotated


@pytest.mark.parametrize("quantize", [False, True])
def test_requests_of_several_lengths_and_padding(quantize):
    check_attention(scene([(70, 1), None, (1, 1), (33, 12)], heads=(4, 2, 128), padding=2), quantize=quantize)


def test_rotation_depends_on_distance_alone():
    cos, sin = rotary_table(64, 32, 1e7)
    x, y = torch.randn(2, 1, 1, 128, generator=torch.Generator().manual_seed(0)).double().unbind(0)

    def product(first, second):
        turned = (rotated(v, cos[[at]].double(), sin[[at]].double()) for v, at in ((x, first), (y, second)))
        return torch.einsum("nhd,nhd->", *turned)

    torch.testing.assert_close(product(3, 10), product(40, 47), rtol=1e-6, atol=1e-6)
    assert not torch.isclose(product(3, 10), product(3, 60), rtol=1e-3)
