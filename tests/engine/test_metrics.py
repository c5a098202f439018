"""Every metric against numbers worked out by hand."""

import pytest

from gdn_lab.engine import metrics


def request(arrival, chunks, input_tokens=10, outcome="finished"):
    """chunks: (when, tokens)."""
    times, tokens = [when for when, _ in chunks], [n for _, n in chunks]
    row = {"outcome": outcome, "input_tokens": input_tokens, "output_tokens": sum(tokens), "arrival_s": arrival}
    row |= {"first_token_s": times[0], "finished_s": times[-1]} if chunks else {}
    return row | {"chunk_s": times, "chunk_tokens": tokens}


def step(index, kind, batch, tokens, start, end):
    row = {"index": index, "kind": kind, "batch": batch, "tokens": tokens, "host_us": 50.0}
    return row | {"start_s": start, "end_s": end, "gpu_us": 1e6 * (end - start)}


# A: 1 + 3 tokens, one a chunk. B: 1, then chunks of 2 and 3 tokens. C: a single token.
A = request(0.0, [(1.0, 1), (1.1, 1), (1.3, 1), (1.6, 1)])
B = request(0.5, [(1.0, 1), (2.0, 2), (4.0, 3)], input_tokens=20)
C = request(1.0, [(1.25, 1)], input_tokens=30)
ALL = [A, B, C]
STEPS = [
    step(0, "prefill", 2, 30, 0.0, 1.0),
    step(1, "verify", 2, 5, 1.1, 1.5),
    step(2, "verify", 1, 1, 1.6, 1.8),
    step(3, "prefill", 1, 30, 1.9, 2.0),
    step(4, "decode", 3, 3, 2.3, 2.9),
]


def test_throughput_counts_all_tokens_over_the_whole_wall():
    assert metrics.output_throughput(ALL, 4.0) == (4 + 6 + 1) / 4
    assert metrics.total_throughput(ALL, 4.0) == (11 + 60) / 4


def test_tpot_is_of_each_request_without_its_first_token():
    assert metrics.tpots_ms(ALL) == pytest.approx([600 / 3, 3000 / 5])


def test_ttft_counts_waiting():
    assert metrics.ttfts_ms(ALL) == pytest.approx([1000, 500, 250])


def test_itl_per_chunk_and_per_token_differ_with_several_tokens_a_chunk():
    assert metrics.itls_chunk_ms(ALL) == pytest.approx([100, 200, 300, 1000, 2000])
    per_token = [100, 200, 300, 500, 500, 2000 / 3, 2000 / 3, 2000 / 3]
    assert metrics.itls_token_ms(ALL) == pytest.approx(per_token)
    assert metrics.itls_chunk_ms([A]) == pytest.approx(metrics.itls_token_ms([A]))


def test_per_user_per_gpu_and_energy():
    assert metrics.tokens_per_s_user(20.96) == pytest.approx(47.71, abs=0.01)
    found = metrics.summary(ALL, STEPS, 4.0, gpus=2, joules=22.0)
    assert found["tokens_per_s_gpu"] == 71 / 4 / 2 and found["output_tokens_per_s_gpu"] == 11 / 4 / 2
    assert found["joules_per_token"] == 2.0
    assert metrics.summary(ALL, STEPS, 4.0)["joules_per_token"] is None


def test_steps_and_gaps():
    assert metrics.tokens_per_step(STEPS) == (5 + 1 + 3) / 6
    assert metrics.host_gaps_us(STEPS) == pytest.approx([1e5, 1e5, 3e5])
    assert metrics.gap_share(STEPS) == pytest.approx(0.5 / (0.5 + 0.4 + 0.2 + 0.6))
    assert metrics.prefill_share(STEPS, 4.0) == pytest.approx(1.1 / 4)


def test_summary_by_hand():
    found = metrics.summary([*ALL, request(0.0, [], outcome="interrupted")], STEPS[::-1], 4.0)
    assert (found["requests"], found["requests_unfinished"]) == (3, 1)
    assert (found["input_tokens"], found["output_tokens"]) == (60, 11)
    assert found["tpot_ms"] == pytest.approx(400) and found["tokens_per_s_user"] == pytest.approx(2.5)
    assert found["tpot_ms_p50"] == pytest.approx(400) and found["tpot_ms_p90"] == pytest.approx(200 + 0.9 * 400)
    assert found["itl_chunk_ms"] == pytest.approx(3600 / 5) and found["itl_token_ms"] == pytest.approx(3600 / 8)
    assert found["ttft_ms"] == pytest.approx(1750 / 3) and found["ttft_ms_p99"] == pytest.approx(990)
    assert found["step_us"] == pytest.approx(4e5) and found["host_gap_us"] == pytest.approx(5e5 / 3)
    assert (found["steps"], found["decode_steps"], found["batch_mean"]) == (5, 3, 2)


def test_what_was_not_measured_is_none():
    found = metrics.summary([C], [STEPS[0]], 2.0)
    assert found["tpot_ms"] is None and found["itl_chunk_ms"] is None and found["tokens_per_s_user"] is None
    assert found["step_us"] is None and found["host_gap_share"] is None and found["output_throughput"] == 0.5
    nothing = metrics.summary([], [], 1.0)
    assert nothing["requests"] == 0 and "output_throughput" not in nothing
