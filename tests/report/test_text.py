"""Numbers, machines and runs as they are printed."""

from gdn_lab.report import text


def test_percentages_print_alike():
    assert [text.percent(share) for share in (0.534, 0.98, 1.0, 0.0095, 0.0042, 0.0, -0.041)] == [
        "53%", "98%", "100%", "1%", "0.4%", "0%", "−4%",
    ]  # fmt: skip


def test_a_number_has_a_minus_sign_and_none_before_zero():
    cases = (
        (-0.041, "+.1%"),
        (0.003, "+.1%"),
        (-0.0004, "+.1%"),
        (0.0, "+g"),
        (-3.0, "+g"),
        (-1234.6, ",.0f"),
        (-0.04, ".1f"),
    )
    assert [text.number(*case) for case in cases] == ["−4.1%", "+0.3%", "0.0%", "0", "−3", "−1,235", "0.0"]


def test_times_bytes_and_ranges():
    assert [text.token_count(n) for n in (14.26, 14_248.2, 622_708_499.57)] == ["14.3", "14,248", "6.2e8"]
    assert [text.micro(us) for us in (3.14, 738.4, 45_100, 450_000)] == ["3.1 µs", "738 µs", "45.1 ms", "450 ms"]
    assert [text.micro(us) for us in (99.4, 100, 9_999, 10_000)] == ["99.4 µs", "100 µs", "9,999 µs", "10.0 ms"]
    assert [text.byte_size(n) for n in (5, 33_600_000, 2_100, 4e9)] == ["5 B", "33.6 MB", "2.1 kB", "4 GB"]
    assert text.number_range([2.419, 2.831, 2.5]) == "2.42 to 2.83" and text.number_range([1.004, 1.0]) == "1.00"
    assert [text.listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "", "a", "a and b", "a, b and c",
    ]  # fmt: skip


def test_provenance_names_device_versions_and_commit():
    facts = {"gpu_name": "NVIDIA H100", "driver": "580.1", "torch": "2.11.0", "git_commit": "0" * 40, "git_dirty": True}
    run = {"start_utc": "2026-11-22T08:00:00Z", "environment": facts}
    said = "NVIDIA H100, driver 580.1, torch 2.11.0, 2026-11-22, commit 0000000000 with changes"
    assert text.provenance(run) == said
    assert text.device_name(None) == "CPU (name unknown)"


def test_the_clock_while_timing():
    assert text.sm_clock({"clocks_before": {"sm_mhz": 345}}) == text.sm_clock({"clocks_during": {}}) == []
    for low, said in ((1755, "1,755–1,980"), (1980, "1,980")):
        run = {"clocks_during": {"sm_mhz": {"min": low, "median": 1980, "max": 1980}}}
        assert text.sm_clock(run) == [f"SM clock {said} MHz while timing"]
