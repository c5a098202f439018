"""The measured bandwidth, the datasheet, the size of the L2."""

import pytest
import torch

from gdn_lab.bench.roof import DATASHEET_GB_PER_S, datasheet_gb_per_s, l2_bytes, measure_roof


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
@pytest.mark.alone
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
    assert all(100 <= peak <= 10000 for peak in DATASHEET_GB_PER_S.values())
