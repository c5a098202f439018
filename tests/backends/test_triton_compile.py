"""The token-by-token kernel of `triton` as compiled for Hopper and both Blackwells, without a GPU: no spills, wide
loads."""

import re

import pytest

pytest.importorskip("triton", reason="there is no Triton for this operating system")

from gdn_lab.backends.triton.backend import TritonBackend  # noqa: E402
from gdn_lab.backends.triton.recurrent import kernel_cases  # noqa: E402
from gdn_lab.cli.resources import ARCHITECTURES, compiled, main, resources  # noqa: E402

CASES = {case.label: case for case in kernel_cases()}


def test_every_variant_and_dtype_has_a_case():
    variants = [variant for variant in TritonBackend.variants if "decode" in variant.phases]
    expected = {(v.name, str(dtype).removeprefix("torch.")) for v in variants for dtype in v.state_dtypes}
    decoding = [label for label, case in CASES.items() if case.constants["T"] == 1]
    assert {tuple(label.split()[:2]) for label in decoding} == expected


@pytest.mark.parametrize(
    "label, architecture",
    [(label, name) for label, case in CASES.items() for name in case.architectures or ARCHITECTURES],
)
def test_no_spills(label, architecture):
    found = resources(CASES[label], architecture)
    assert found.stack_bytes == 0, found
    assert 16 <= found.registers <= 255 and found.shared_bytes <= 48 << 10, found


@pytest.mark.parametrize("label", ["vk bfloat16 tile 32", "vk-serial bfloat16 tile 16", "kv8 bfloat16 tile 8"])
def test_state_travels_in_pieces_of_16_bytes(label):
    """In PTX: each thread of the warp loads and stores its share of the [TILE, 128] tile 8 bf16 at a time."""
    case = CASES[label]
    ptx = compiled(case, "sm_90a").asm["ptx"]
    pieces = case.constants["TILE"] * 128 * 2 // 16 // (32 * case.num_warps)
    for instruction in ("ld", "st"):
        assert len(re.findall(rf"{instruction}\.global[.\w]*\.v4\.b32", ptx)) >= pieces, ptx


def test_an_unknown_architecture_is_refused(capsys):
    assert main(["sm_80"]) == 2
    assert "architecture: sm_80 unknown; choose some of sm_90a, sm_100a, sm_120a" in capsys.readouterr().err
    case = next(iter(CASES.values()))
    with pytest.raises(ValueError, match="architecture: 'sm_80' is unknown; choose one of sm_90a, sm_100a, sm_120a"):
        resources(case, "sm_80")
