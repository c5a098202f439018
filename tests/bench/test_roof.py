"""Bytes by formula, and the roof."""

import pytest
import torch

from gdn_lab import GDNShape
from gdn_lab.bench.roof import datasheet_gb_per_s, l2_bytes, measure_roof, roofline
from gdn_lab.costs import DECODE_BYTES_FORMULA, decode_bytes


def test_decode_bytes_by_hand():
    # HK 1, HV 2, K 3, V 5; state 2 * 5 * 3 = 30 elements of 4 bytes, read and written: 240
    # q, k 6, v 10, a, b 4, o 10 elements of 2 bytes: 60; index 4; A_log, dt_bias 16
    assert decode_bytes(GDNShape(1, 2, 3, 5), 1, torch.float32) == 240 + 60 + 4 + 16
    assert decode_bytes(GDNShape(1, 2, 3, 5), 10, torch.float32) == 10 * (240 + 60 + 4) + 16
    assert decode_bytes(GDNShape(1, 2, 3, 5), 1, torch.bfloat16, torch.float32) == 120 + 120 + 4 + 16
    assert "state read + written" in DECODE_BYTES_FORMULA


def test_the_state_is_nearly_all_of_it():
    shape = GDNShape.from_model("qwen3.5-397b-a17b")
    state = 2 * 512 * 64 * 128 * 128 * 2  # 2.147 GB at B = 512
    assert state < decode_bytes(shape, 512, torch.bfloat16) < 1.02 * state


def test_roof_of_this_cpu():
    roof = measure_roof("cpu", nbytes=4 << 20, samples=10)
    assert 0.1 < roof.p20_gb_per_s <= roof.gb_per_s <= roof.p80_gb_per_s < 1e5
    assert roof.count == 10 and roof.nbytes == 4 << 20
    assert roof.method == "torch neg_ in place on 4 MiB of float32"


def test_roof_of_an_odd_size():
    with pytest.raises(ValueError, match="nbytes: expected a positive multiple of 16384, got 1000"):
        measure_roof("cpu", nbytes=1000)


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H100 80GB HBM3", 3350), ("NVIDIA H100 PCIe", 2000), ("NVIDIA H100 NVL", 3900), ("NVIDIA H200", 4800),
        ("NVIDIA B200", 8000), ("NVIDIA A100-SXM4-80GB", 2039), ("NVIDIA L40S", 864), ("Tesla T4", 320),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_datasheet(name, peak):
    assert datasheet_gb_per_s(name) == peak


def test_a_cpu_has_no_l2_of_ours():
    assert l2_bytes("cpu") is None


@pytest.mark.gpu
def test_roof_of_this_gpu():
    roof = measure_roof("cuda")
    assert roof.count == 20 and roof.nbytes == 2 << 30
    assert roof.p20_gb_per_s <= roof.gb_per_s <= roof.p80_gb_per_s
    assert "triton negate_" in roof.method and "torch neg_" in roof.method
    peak = datasheet_gb_per_s(torch.cuda.get_device_name())
    assert 0.6 * (peak or 100) < roof.gb_per_s <= (peak or 20000)


@pytest.mark.gpu
def test_stream_kernel_changes_every_element():
    from gdn_lab.bench.stream_kernel import BLOCK, negate_

    x = torch.randn(7 * BLOCK, device="cuda")
    expected = -x
    negate_(x)
    assert torch.equal(x, expected)


@pytest.mark.gpu
def test_l2_of_this_gpu():
    assert 1 << 20 <= l2_bytes("cuda") <= 1 << 30


@pytest.mark.gpu
def test_roof_too_large_for_the_gpu():
    with pytest.raises(ValueError, match="nbytes: expected at most"):
        measure_roof("cuda", nbytes=1 << 50)


def test_the_table_of_peaks_is_plain():
    assert all(100 <= peak <= 10000 for peak in roofline.DATASHEET_GB_PER_S.values())
