"""How `triton` chooses tiles by the GPU in front of it."""

import re
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this operating system")

from gdn_lab import GDNShape  # noqa: E402
from gdn_lab.backends import base  # noqa: E402
from gdn_lab.backends.base import Call, assumed_capability  # noqa: E402
from gdn_lab.backends.triton import backend, recurrent  # noqa: E402
from gdn_lab.cli import catalogue  # noqa: E402
from gdn_lab.cli.launches import compiled, recording  # noqa: E402
from gdn_lab.rounding import FP8  # noqa: E402


@pytest.mark.parametrize(
    "capability, memory, expected",
    [((9, 0), 150_100_000_000, True), ((9, 0), 85_000_000_000, False), ((10, 0), 192_000_000_000, False)],
)
def test_an_h200_is_hopper_with_more_memory(monkeypatch, capability, memory, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory))
    assert base.is_h200(torch.device("cuda", 0)) == expected
    assert not base.is_h200(torch.device("cpu"))


def test_tiles_of_an_h200_have_at_most_16_rows():
    tiles = {recurrent.decode_tile(heads, overlap=True) for heads in (64, 512, 1 << 15)}
    assert {tile.rows for tile in tiles} == {8, 16, 32}
    assert {(tile.rows, tile.keep) for tile in map(recurrent.h200_tile, tiles)} == {(8, False), (16, False), (16, True)}


@pytest.mark.parametrize("memory, keep", [(80, False), (141, True)])
def test_an_h200_keeps_the_state_in_the_l2_until_it_is_written(monkeypatch, memory, keep):
    """In PTX: all loads of 16 bytes of the state and no store have a cache hint."""
    monkeypatch.setattr(base, "memory_bytes", lambda device: memory * 10**9)
    shape, dtype = GDNShape(16, 64), torch.bfloat16
    call = Call("decode", "VK", dtype, dtype, torch.int32, shape, catalogue.GPU)
    with assumed_capability(9), recording() as recorder:
        inputs, options = catalogue.inputs(shape, 256), catalogue.arguments(shape, call, 256)
        launch = backend.BACKEND.decode_launch(backend.BACKEND.variants[0], call)
        launch(*inputs, **options, out=catalogue.empty(256, 64, 128, dtype=dtype))
    [compilation] = recorder.compilations
    assert compilation.constants["KEEP"] == keep and compilation.constants["TILE"] == (16 if keep else 32)
    ptx = compiled(compilation, 90).asm["ptx"]
    assert len(re.findall(r"ld\.global[.\w:]*L2::cache_hint\.v4\.b32", ptx)) == (8 if keep else 0)
    assert ("createpolicy.fractional.L2::evict_last" in ptx) == keep
    assert len(re.findall(r"st\.global\.v4\.b32", ptx)) == (8 if keep else 16)


def test_a_step_on_an_fp8_state_compiles_once_for_every_batch_and_place_of_the_gates():
    shape, io_dtype = GDNShape(1, 2), torch.bfloat16
    call = Call("decode", "VK", FP8, io_dtype, torch.int32, shape, catalogue.GPU, ring=16, key_dtype=io_dtype)
    found = set()
    for batch, packed in ((1, True), (3, True), (16, False), (100, False)):
        with assumed_capability(9), recording() as recorder:
            q, k, v, a, b = catalogue.inputs(shape, batch)
            a, b = (a, b) if packed else (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (a, b))
            launch = backend.BACKEND.decode_launch(backend.BACKEND.variants[-1], call)
            launch(
                q, k, v, a, b, **catalogue.arguments(shape, call, batch), out=catalogue.empty(v.shape, dtype=v.dtype)
            )
        found |= {str(one._replace(label="", kernel=one.kernel.__name__)) for one in recorder.compilations}
    assert len(found) == 3, "prepare, read, fold"
