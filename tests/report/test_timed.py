"""Timed: which rows are selected, and how variants are grouped."""

from synthetic import RUN, refused, sweep_rows, wrong

from gdn_lab.bench.sweep import HOST_SYNC
from gdn_lab.report.timed import REWORDED, Timed


def test_rows_are_selected_once():
    rows = [*sweep_rows(batches=(1, 32)), refused("cutedsl/vk", "needs a newer GPU"), wrong("fla/vk", 32, 0.5)]
    timed = Timed(rows, RUN)
    assert timed.timer == "cuda_graph_replay" and timed.batches == [1, 32]
    assert {row["indexing"] for row in timed.rows} == {"in_place"}
    assert {row["timer"] for row in timed.selected(timer="cupti_kernel").rows} == {"cupti_kernel"}
    assert timed.names == ["triton/vk", "triton/vk-serial", "triton/kv32", "triton/kv8", "flashinfer/vk"]
    assert timed.named("baseline") == ["triton/kv32", "triton/kv8"] and timed.named("eager") == []
    assert timed.not_timed() == [
        "cutedsl/vk refused: needs a newer GPU",
        "fla/vk wrong at B = 32 (largest error 0.5): not timed",
    ]
    assert not Timed([]) and Timed([]).not_timed() == []
    ((old, now),) = REWORDED.items()
    row = {"status": "refused", "phase": "prefill", "backend": "torch", "variant": "kv", "reason": old}
    assert Timed([row]).not_timed() == [f"torch/kv refused: {now}"] and now == HOST_SYNC


def test_ratios_are_of_batches_that_both_have():
    rows = [row for row in sweep_rows(batches=(1, 32)) if (row["variant"], row["batch"]) != ("kv8", 1)]
    timed = Timed(rows, RUN)
    times, ratios = timed.times(), timed.ratios_to("triton/vk")
    assert "triton/vk" not in ratios and set(ratios["triton/kv8"]) == {32}
    assert ratios["triton/kv8"][32] == times["triton/kv8"][32] / times["triton/vk"][32]
    assert list(timed.at(1)) == ["triton/vk", "triton/vk-serial", "triton/kv32", "flashinfer/vk"]
    assert timed.ratios_to("nothing/vk") == {}


def test_eager_pytorch_is_left_out_unless_it_is_alone():
    eager = {"torch/vk": (100, 0.1)}
    assert Timed(sweep_rows(eager)).kernels().names == ["torch/vk"]
    assert Timed(sweep_rows(eager | {"triton/vk": (2, 0.9)})).kernels().names == ["triton/vk"]
    cpu = Timed(sweep_rows(eager, timers=("host_clock",)))
    assert cpu.on_cpu and not Timed([]).on_cpu


def test_a_title_says_where_the_times_are_from():
    """This machine's CPU, or the GPU, models, tp and unusual dtype of recorded rows; nothing of a GPU's own."""
    rows = [row | {"model": "qwen3.5-27b", "tp": 2} for row in sweep_rows()]
    recorded = {"recorded_on": "h200"}
    assert Timed(rows, recorded).titled("A") == "A (recorded: H200, qwen3.5-27b, tp 2)"
    both = rows + [row | {"tp": 4, "state_dtype": "float32"} for row in rows]
    assert Timed(both, recorded).titled("A") == (
        "A (recorded: H200, qwen3.5-27b, tp 2 and 4, bfloat16 and float32 state)"
    )
    assert Timed(rows, RUN).titled("A") == "A"
    assert Timed(sweep_rows(timers=("host_clock",))).titled("A") == "CPU times: A"


def test_what_is_outside_the_tolerance_is_said_once_with_the_largest_errors():
    rows = sweep_rows(batches=(1, 32), timers=("cuda_graph_replay",), indexings=("in_place",))
    assert Timed(rows).outside_tolerance() == []
    for row in rows:
        if row["backend"] == "flashinfer":
            o = 0.43 if row["batch"] == 32 else 0.2
            errors = {"nearly parallel keys": {"o": o, "state": 0.01}, "q = k": {"o": 0.09, "state": 0.01}}
            row |= {"wrong_on": list(errors), "wrong_errors": errors, "allowed_error": 0.04}
    assert Timed(rows).outside_tolerance() == [
        "flashinfer/vk is outside the tolerance on nearly parallel keys (0.43 of the largest output; allowed 0.04) and "
        "q = k (0.09): timed for comparison, not right there."
    ]
