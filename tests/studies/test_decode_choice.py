"""Which decode `best` runs, by recorded times."""

from gdn_lab.layer import configuration
from gdn_lab.studies.fewer_bytes.decode_choice import decoding, decoding_on, times

BEST = configuration("best")


def row(name, batch, us, ring=0, dtype="bfloat16"):
    backend, variant = name.split("/")
    fields = {"timer": "cuda_graph_replay", "state_dtype": dtype, "batch": batch, "num_v_heads": 64, "median_us": us}
    return fields | {"backend": backend, "variant": variant} | ({"ring_updates": ring} if ring else {})


ROWS = [
    row("cutedsl/vk", 32, 36.0),
    row("triton/replay", 32, 38.0, ring=16),
    row("cutedsl/vk", 128, 137.0),
    row("triton/replay", 128, 106.0, ring=16),
    row("triton/replay", 128, 150.0, ring=32),  # not the ring that the variant reserves
]


def test_the_faster_at_the_largest_recorded_work_that_is_no_larger():
    assert times(ROWS, "bfloat16") == {
        2048: {"cutedsl/vk": 36.0, "triton/replay": 38.0},
        8192: {"cutedsl/vk": 137.0, "triton/replay": 106.0},
    }
    for heads, expected in ((1, "cutedsl/vk"), (2048, "cutedsl/vk"), (8191, "cutedsl/vk"), (8192, "triton/replay")):
        assert decoding(BEST, ROWS, heads).gdn == expected
    taken = decoding(BEST, ROWS, 10**6)
    assert (taken.name, taken.label, taken.fused) == ("best", "best (triton/replay)", True)


def test_nothing_changes_without_times_of_both():
    assert decoding(BEST, [], 10**6) is BEST
    assert decoding(BEST, ROWS[2:3], 10**6) is BEST
    assert decoding(BEST, ROWS, 10**6, "float32") is BEST
    assert decoding(configuration("after"), ROWS, 10**6) is configuration("after")


def test_a_gpu_without_a_record_keeps_its_own(tmp_path):
    assert decoding_on("NVIDIA B300", "best", 10**6) is BEST
    assert decoding_on("NVIDIA H200", "best", 10**6, data=tmp_path) is BEST
    assert decoding_on("NVIDIA H200", "best", 1) is BEST
