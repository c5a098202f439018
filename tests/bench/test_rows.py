"""The fields of a timed row."""

import pytest
import torch

from gdn_lab.bench import rows
from gdn_lab.bench.roof import Roof
from gdn_lab.bench.timers import Timing


def test_the_share_is_of_the_measured_bandwidth_not_of_the_datasheet(monkeypatch):
    monkeypatch.setattr(rows, "_gpu_name", lambda device: "NVIDIA H100 80GB HBM3")
    roof = Roof(3000.0, 2900.0, 3100.0, 20, 1 << 31, "a bandwidth for tests")
    timing = Timing("cuda_graph_replay", 2.0, 1.5, 2.5, 50, 4, kernels=1)
    fields = rows.timing_fields(timing, 3_000_000, "a formula", roof, torch.device("cuda"), "cold")
    assert fields["gb_per_s"] == pytest.approx(1500.0)  # 3 MB in 2 µs
    assert fields["share_of_roof"] == pytest.approx(0.5)
    assert (fields["roof_gb_per_s"], fields["datasheet_gb_per_s"]) == (3000.0, 3350.0)
    assert (fields["median_us"], fields["p20_us"], fields["p80_us"]) == (2.0, 1.5, 2.5)
    assert fields["kernels"] == 1 and fields["l2"] == "cold" and fields["bytes"] == 3_000_000


def test_a_call_too_quick_for_the_clock_has_no_rate():
    roof = Roof(3000.0, 2900.0, 3100.0, 20, 1 << 31, "a bandwidth for tests")
    fields = rows.timing_fields(Timing("host_clock", 0.0, 0.0, 0.0, 1, 1), 8, "", roof, torch.device("cpu"), "cold")
    assert fields["gb_per_s"] == fields["share_of_roof"] == 0.0 and "kernels" not in fields
