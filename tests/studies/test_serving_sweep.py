"""The sweep of serving with a made-up model: rows, refusals, time limit, going on, draft tokens."""

import types

import pytest
import torch
from fake_served_model import VOCAB, FakeModel

from gdn_lab.bench.results import Run, load
from gdn_lab.engine import serve_ranks
from gdn_lab.engine.served import ServingInterrupted
from gdn_lab.studies.serving import sentences, sweep, tpot
from gdn_lab.studies.serving.serving_rows import CASE, ServingRows
from gdn_lab.studies.serving.study import Parameters

GIVEN = {"concurrency": "1,3", "configurations": "torch-kv,torch"}


class Model(FakeModel):
    """The fake model of the loop's tests, with times of parts."""

    def __init__(self, weights, entry, **arguments):
        if entry.name == "before":
            raise ValueError("configuration: before needs a GPU")
        sizes = {"max_batch", "slots", "pages", "page_size", "max_length"} & set(arguments)
        super().__init__(**{size: arguments[size] for size in sizes}, sizes=arguments["batch_sizes"])

    def time_parts(self, batch, length):
        us = {"GDN layer": 10.0, "attention layer": 5.0, "GDN kernel": 4.0}
        return [{"part": part, "us": one, "count": 1} for part, one in us.items()]


@pytest.fixture
def fake(monkeypatch):
    sizes = types.SimpleNamespace(vocab=VOCAB, step=types.SimpleNamespace(hidden=8))
    made = []
    weights = types.SimpleNamespace(random=lambda *_, **__: made.append(1) or types.SimpleNamespace(sizes=sizes))
    monkeypatch.setattr(serve_ranks, "ModelWeights", weights)
    monkeypatch.setattr(serve_ranks, "ServedModel", Model)
    return made


def serve(tmp_path, earlier=(), **given):
    with Run.create("09_serving", {}, root=tmp_path) as run:
        rows = sweep.serving_sweep(Parameters.parse(GIVEN | given), run, earlier)
    info, written = load(run.folder)
    assert rows == [*earlier, *written]  # what a notebook draws is what was recorded
    return info, written


def test_every_point_has_a_run_its_steps_requests_and_parts(fake, tmp_path, capsys):
    info, rows = serve(tmp_path)
    served = ServingRows(rows, info)
    assert set(served.points) == {(name, c) for name in ("torch", "torch-kv") for c in (1, 3)} and len(fake) == 1
    point = served.points["torch", 3]
    assert point.run["requests"] == 6 and point.run["output_tokens"] == 6 * 5 and point.run["input_tokens"] == 6 * 6
    assert set(point.requests["outcome"]) == {"finished"} and len(point.requests["id"]) == 6
    assert list(point.parts) == ["GDN layer", "attention layer", "GDN kernel"]
    assert sum(tpot.breakdown(point).values()) == pytest.approx(point.tpot_us)
    runs = [row for row in rows if row.get("type") in ("run", "part")]
    assert all(set(CASE) <= set(row) for row in runs) and {row["phase"] for row in rows} == {"serving"}
    assert sentences.what_ran(served)[0].startswith("A toy model served 16 requests and 80 tokens")
    assert "; 16 of 16 requests got the tokens that they get when served alone" in sentences.what_ran(served)[0]
    assert "torch, C = 3: " in capsys.readouterr().out


def test_what_cannot_run_is_refused_in_a_sentence_and_the_rest_is_served(fake, tmp_path):
    info, rows = serve(tmp_path, configurations="before,torch")
    served = ServingRows(rows, info)
    assert [row["reason"] for row in served.refused] == ["configuration: before needs a GPU"] * 2
    assert set(served.points) == {("torch", 1), ("torch", 3)} and info["status"] == "complete"


def test_fewer_slots_than_requests_is_a_refusal(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(serve_ranks, "_fitting", lambda *_: 2)
    few = Model.__init__

    def init(self, weights, name, **arguments):
        few(self, weights, name, **arguments | {"slots": 3})

    monkeypatch.setattr(Model, "__init__", init)
    info, rows = serve(tmp_path, configurations="torch")
    (row,) = ServingRows(rows, info).refused
    assert row["concurrency"] == 3 and row["reason"] == "only 2 requests fit into the memory that is free"


def test_a_point_that_runs_out_of_memory_is_refused_and_the_others_are_served(fake, tmp_path, monkeypatch):
    prefill = Model.prefill

    def too_large(self, *arguments):
        if len(arguments[3]) > 1:
            raise torch.OutOfMemoryError
        return prefill(self, *arguments)

    monkeypatch.setattr(Model, "prefill", lambda self, **given: too_large(self, *given.values()))
    info, rows = serve(tmp_path, configurations="torch")
    served = ServingRows(rows, info)
    assert set(served.points) == {("torch", 1)} and info["status"] == "complete"
    assert [row["reason"] for row in served.refused] == ["it needs more memory than is free"]


def test_the_time_limit_leaves_points_out_and_the_next_run_goes_on(fake, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(sweep.Budget, "allows", lambda self, job: asked.append(job) or len(asked) <= 3)
    info, rows = serve(tmp_path)
    cut = ServingRows(rows, info)
    assert len(cut.points) == 3 and info["status"] == "interrupted"
    assert "the same command goes on with: torch, C = 1." in capsys.readouterr().out
    left = "Not served: torch at C = 1: no time was left after 5 minutes."
    assert sentences.answers(cut)[-1] == sentences.what_ran(cut)[-1] == left
    asked.clear()
    _, more = serve(tmp_path, earlier=rows)
    both = ServingRows([*rows, *more])
    assert [str(job) for job in asked] == ["torch, C = 1"] and len(both.points) == 4 and not both.refused
    assert len({point.run["serve"] for point in both.points.values()}) == 4, "each run has a number of its own"


def test_an_interrupt_keeps_rows_and_the_point_is_served_again(fake, tmp_path, monkeypatch):
    serve_once, calls = serve_ranks.serve, []

    def interrupted(*arguments, on_row=None, **options):
        done = serve_once(*arguments, on_row=on_row, **options)
        calls.append(on_row)
        if len([call for call in calls if call]) == 2:
            unfinished = [row | {"outcome": "interrupted"} for row in done.requests]
            raise ServingInterrupted(done._replace(requests=unfinished))
        return done

    monkeypatch.setattr(serve_ranks, "serve", interrupted)
    with pytest.raises(ServingInterrupted):
        serve(tmp_path)
    folder = (tmp_path / "latest").resolve()
    info, rows = load(folder)
    assert info["status"] == "interrupted" and set(ServingRows(rows, info).points) == {("torch-kv", 3)}
    monkeypatch.setattr(serve_ranks, "serve", serve_once)
    _, more = serve(tmp_path, earlier=rows)
    assert len(ServingRows([*rows, *more]).points) == 4


def test_draft_tokens_are_served_by_the_last_configuration_at_each_rate(fake, tmp_path):
    info, rows = serve(tmp_path, draft_tokens="2,4", acceptance="0.5,1", concurrency="1", output_tokens=9)
    found = ServingRows(rows, info).speculation
    tried = [(point.run["draft_tokens"], point.run["acceptance"]) for point in found]
    assert tried == [(2, 0.5), (2, 1.0), (4, 0.5), (4, 1.0)] and {p.configuration for p in found} == {"torch"}
    assert found[-1].run["tokens_per_step"] > found[0].run["tokens_per_step"] and not found[0].parts


def test_the_best_takes_the_fastest_communicator_and_the_others_nccl(monkeypatch):
    p = Parameters.parse(GIVEN | {"configurations": "before,best"})
    job = [sweep.Job("before", 1)]
    monkeypatch.setattr(sweep.torch.cuda, "is_available", lambda: True)
    assert sweep.plan_of(p, "before", job).communicator == "nccl"
    assert sweep.plan_of(p, "best", job).communicator == "fastest"
    given = Parameters.parse(GIVEN | {"communicator": "two-shot"})
    assert sweep.plan_of(given, "best", job).communicator == "two-shot"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"tp": 3}, "tp: qwen3.5-35b-a3b has 16 key and 32 value heads, which 3 GPUs cannot share evenly"),
        ({"communicator": "ncll"}, "communicator: expected auto, fastest or one of nccl"),
        ({"draft_tokens": "1"}, "draft_tokens: expected whole numbers from 2 to 8"),
        ({"acceptance": "2"}, "acceptance: expected rates from 0 to 1 such as 0.6,0.8, got '2'"),
        ({"output_tokens": 1}, "output_tokens: expected at least 2"),
        ({"prefill": "never"}, "prefill: expected steps, chunked or mixed, got 'never'"),
    ],
)
def test_wrong_parameters_are_one_sentence(given, sentence):
    with pytest.raises(ValueError) as refusal:
        Parameters.parse(GIVEN | given)
    assert str(refusal.value).startswith(sentence)
