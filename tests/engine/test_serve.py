"""The serving loop on a model that notices when a request is lost, mixed up or cut off."""

import os
import signal

import pytest
from device_served_model import DeviceModel
from fake_served_model import VOCAB, FakeModel, answer

from gdn_lab.engine.requests import Request, drawn
from gdn_lab.engine.serve import serve
from gdn_lab.engine.served import ServingInterrupted
from gdn_lab.engine.speculation import Speculation


def some(count=40, input_length=8, output_length=6, spread=0.9, seed=0):
    return drawn(count, input_length, output_length, vocab=VOCAB, spread=spread, seed=seed)


def all_answered(served, requests, model):
    """Every request has the tokens that follow its prompt, and every slot and page is free again."""
    assert {request.id for request in requests} == set(served.tokens)
    for request in requests:
        assert served.tokens[request.id] == answer(request.prompt, request.output_length)
    assert [row["outcome"] for row in served.requests] == ["finished"] * len(requests)
    everything_is_free(model)


def everything_is_free(model):
    assert (model.cache.free, model.slots.free) == (model.cache.pages, model.slots.total)


def test_a_thousand_requests_of_random_lengths_are_answered_as_if_alone():
    model = FakeModel(
        max_batch=64, slots=65, pages=200, page_size=4, max_length=64, prefill_tokens=96, sizes=(1, 8, 32)
    )
    requests = some(count=1000, input_length=12, output_length=10)
    served = serve(model, requests, 64)
    all_answered(served, requests, model)
    assert sum(step["tokens"] for step in served.steps if step["kind"] == "decode") + 1000 == sum(
        request.output_length for request in requests
    )
    assert max(step["batch"] for step in served.steps if step["kind"] == "decode") > 16


@pytest.mark.parametrize("prefill", ["steps", "chunked", "mixed"])
@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_prompts_in_pieces_change_no_token(prefill, chunk):
    model, requests = FakeModel(), some(input_length=20)
    served = serve(model, requests, 8, prefill=prefill, chunk=chunk)
    all_answered(served, requests, model)
    assert max(tokens for kind, _, tokens in model.calls if kind == "prefill") <= chunk


def test_chunked_prefill_lets_others_go_on_and_prefill_steps_do_not():
    requests = [Request(0, some()[0].prompt, 30), *some(3, input_length=30, spread=0, output_length=2)[1:]]
    order = {}
    for prefill in ("steps", "chunked", "mixed"):
        model = FakeModel()
        served = serve(model, requests, 3, prefill=prefill, chunk=4)
        order[prefill] = "".join(kind[0] for kind, *_ in model.calls)
    assert "pppppppp" in order["steps"] and "pdpdpdpd" in order["chunked"]
    mixed = [step for step in served.steps if step["kind"] == "mixed"]
    assert len(mixed) >= 8 and {step["kind"] for step in served.steps} == {"prefill", "mixed", "decode"}
    assert all(step["tokens"] <= 4 + step["batch"] for step in mixed)


def test_a_mixed_step_needs_room_for_rows_and_prompts():
    with pytest.raises(ValueError, match="concurrency: expected below 8 .prefill_tokens."):
        serve(FakeModel(prefill_tokens=8), some(), 8, prefill="mixed")
    with pytest.raises(ValueError, match="prefill: expected steps or chunked with draft tokens"):
        serve(FakeModel(), some(), 2, prefill="mixed", speculation=Speculation(2, 0.5, VOCAB))


def test_slots_or_pages_that_run_out_make_requests_wait():
    requests = some(60, input_length=12, output_length=12, spread=0.5)
    for scarce in ({"slots": 4}, {"pages": 14}):
        model = FakeModel(**scarce)
        free = model.slots.free, model.cache.free
        served = serve(model, requests, 8)
        assert {request.id: served.tokens[request.id] for request in requests} == {
            request.id: answer(request.prompt, request.output_length) for request in requests
        }
        assert (model.slots.free, model.cache.free) == free
        waited = [row["admitted_s"] - row["arrival_s"] for row in served.requests]
        assert max(step["batch"] for step in served.steps) <= 3 or scarce == {"pages": 14}
        assert max(waited) > min(step["gpu_us"] for step in served.steps) / 1e6


def test_a_request_that_can_never_fit_is_refused_in_a_sentence_and_the_others_go_on():
    long, wide = Request(90, some()[0].prompt, 200), Request(91, some(1, 50, 9, spread=0)[0].prompt, 9)
    model = FakeModel(pages=12)
    served = serve(model, [long, *some(5), wide], 2)
    rows = {row["id"]: row for row in served.requests}
    assert rows[90]["outcome"] == rows[91]["outcome"] == "refused"
    assert "request 90 needs" in rows[90]["reason"] and "max_length is 64" in rows[90]["reason"]
    assert rows[91]["reason"] == "request 91 needs 15 pages of KV cache, and there are 12; make more"
    assert [rows[number]["outcome"] for number in range(5)] == ["finished"] * 5


def test_the_loop_reads_a_step_while_the_next_one_runs():
    """All requests alike: no step is wasted, none waits for its tokens to be read."""
    model = FakeModel(prefill_tokens=64)
    served = serve(model, some(8, 8, 6, spread=0), 8)
    assert model.calls == [("prefill", 8, 64)] + [("decode", 8, 8)] * 5
    assert [step["index"] for step in served.steps] == list(range(6))
    assert all(row["chunk_tokens"] == [1] * 6 for row in served.requests)
    assert all(step["end_s"] >= step["start_s"] and step["host_us"] > 0 for step in served.steps)


def test_an_answer_of_one_token_needs_no_decode_step():
    model, requests = FakeModel(), [Request(n, one.prompt, 1 + n % 2) for n, one in enumerate(some(9))]
    all_answered(serve(model, requests, 4), requests, model)


def test_rows_come_as_they_are_made():
    rows = []
    served = serve(FakeModel(), some(5), 2, on_row=rows.append)
    assert [row for row in rows if row["type"] == "step"] == served.steps
    assert [row for row in rows if row["type"] == "request"] == served.requests
    first = served.requests[0]
    assert first["arrival_s"] <= first["admitted_s"] <= first["first_token_s"] <= first["finished_s"] <= served.wall_s


# ---- speculative decoding


@pytest.mark.parametrize("tokens", [2, 5])
@pytest.mark.parametrize("acceptance", [0.0, 0.7, 1.0])
def test_accepted_proposals_are_the_request_s_tokens(tokens, acceptance):
    model, requests = FakeModel(), some(30, output_length=9)
    speculation = Speculation(tokens, acceptance, VOCAB)
    served = serve(model, requests, 8, speculation=speculation)
    for request in requests:
        assert served.tokens[request.id] == with_drafts(request, speculation)
    everything_is_free(model)
    assert model.drafts is None
    if acceptance == 1.0:
        assert all(max(row["chunk_tokens"]) <= tokens for row in served.requests)


def with_drafts(request, speculation):
    drafts, made, accepted, step = speculation.of(request), 1, {}, 0
    while made < request.output_length:
        keep = min(int(drafts.accepted[step]), request.output_length - made)
        accepted |= {made + n: int(drafts.proposals[made + n]) for n in range(keep - 1)}
        made, step = made + keep, step + 1
    return answer(request.prompt, request.output_length, accepted)


def test_tokens_of_a_step_follow_the_acceptance_rate():
    speculation = Speculation(4, 0.8, VOCAB)
    assert speculation.expected == pytest.approx(1 + 0.8 + 0.64 + 0.512)
    drawn_counts = speculation.of(Request(3, some()[0].prompt, 20_000)).accepted
    assert drawn_counts.mean() == pytest.approx(speculation.expected, rel=0.02) and drawn_counts.max() == 4
    with pytest.raises(ValueError, match="tokens: expected 1 to 8"):
        serve(FakeModel(), some(1), 1, speculation=Speculation(9, 0.5, VOCAB))
    with pytest.raises(ValueError, match="acceptance: expected a rate"):
        serve(FakeModel(), some(1), 1, speculation=Speculation(2, 1.5, VOCAB))


def test_one_token_a_step_is_plain_decoding():
    model, requests = FakeModel(), some(5)
    all_answered(serve(model, requests, 3, speculation=Speculation(1, 0.9, VOCAB)), requests, model)
    assert {kind for kind, *_ in model.calls} == {"prefill", "decode"}


# ---- on a device that runs behind the host


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("tokens", [1, 3])
def test_nothing_is_overwritten_that_the_device_has_yet_to_read(device, tokens):
    """On a GPU every step waits 0.2 ms before it reads its inputs, and the host is a step ahead."""
    count = 1000 if device == "cuda" else 60
    model, requests = DeviceModel(device, max_batch=16, pages=90), some(count, input_length=6, output_length=8)
    speculation = Speculation(tokens, 0.7, VOCAB)
    served = serve(model, requests, 16, speculation=speculation)
    for request in requests:
        expected = with_drafts(request, speculation) if tokens > 1 else answer(request.prompt, request.output_length)
        assert served.tokens[request.id] == expected
    everything_is_free(model)
    if device == "cuda":
        decodes = [step for step in served.steps if step["kind"] != "prefill"]
        assert all(step["gpu_us"] > 100 for step in decodes)


# ---- interrupts and errors


def test_ctrl_c_ends_between_steps_with_all_rows():
    model = FakeModel()

    def press(row):
        if row["type"] == "step" and row["index"] == 9:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(ServingInterrupted, match="interrupted after .* requests were answered") as caught:
        serve(model, some(100), 8, on_row=press)
    served = caught.value.served
    outcomes = [row["outcome"] for row in served.requests]
    assert outcomes.count("interrupted") == 8 and "finished" in outcomes
    assert len(served.steps) == 11, "the step that was on its way is read"
    everything_is_free(model)
    all_answered(serve(model, some(10), 8), some(10), model)


def test_an_error_after_ctrl_c_is_that_of_a_rank_that_stopped_first():
    model = FakeModel()

    def gone(batch):
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("connection closed by peer")

    model.decode = gone
    with pytest.raises(ServingInterrupted):
        serve(model, some(10), 8)
    everything_is_free(model)


def test_an_error_of_the_model_gives_slots_and_pages_back():
    model = FakeModel()
    model.decode = lambda batch: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        serve(model, some(10), 8)
    everything_is_free(model)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"concurrency": 9}, "concurrency: expected 1 to 8"),
        ({"prefill": "alone"}, "prefill: expected one of steps, chunked, mixed, got 'alone'"),
        ({"chunk": 17}, "chunk: expected 1 to 16"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        serve(FakeModel(), some(1), **{"concurrency": 1} | arguments)


def test_pages_that_others_hold_are_an_error_and_no_endless_loop():
    model = FakeModel(slots=2)
    model.slots.acquire()
    with pytest.raises(RuntimeError, match="no request can be admitted although none is in flight: 0 slots"):
        serve(model, some(1), 1)
