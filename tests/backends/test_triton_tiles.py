"""How `triton` chooses tiles by the GPU in front of it."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this operating system")

from gdn_lab.backends.triton import recurrent  # noqa: E402


@pytest.mark.parametrize(
    "capability, memory, expected",
    [((9, 0), 150_100_000_000, True), ((9, 0), 85_000_000_000, False), ((10, 0), 192_000_000_000, False)],
)
def test_an_h200_is_hopper_with_more_memory(monkeypatch, capability, memory, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory))
    assert recurrent.is_h200(torch.device("cuda", 0)) == expected
    assert not recurrent.is_h200(torch.device("cpu"))


def test_tiles_of_an_h200_have_at_most_16_rows():
    tiles = {recurrent.decode_tile(heads, overlap=True) for heads in (64, 512, 1 << 15)}
    assert {tile.rows for tile in tiles} == {8, 16, 32}
    assert {recurrent.h200_tile(tile).rows for tile in tiles} == {8, 16}
