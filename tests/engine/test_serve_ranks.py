"""Plans, rows of runs, and what several ranks saw."""

import types

import pytest
from fake_served_model import VOCAB, FakeModel

from gdn_lab.bench.results import Run, load
from gdn_lab.engine import serve_ranks
from gdn_lab.engine.communicator import Alone
from gdn_lab.engine.requests import drawn
from gdn_lab.engine.serve import serve
from gdn_lab.engine.serve_ranks import Plan, check, requests_of, serve_on_rank
from gdn_lab.engine.served import ServingInterrupted, across_ranks
from gdn_lab.studies.serving.serving_rows import ServingRows

PLAN = Plan("qwen3.5-35b-a3b", 1, [1, 4], ["torch", "torch-kv"], toy=True, input=6, output=5)


@pytest.fixture
def fake(monkeypatch):
    """serve_ranks with the fake model; the keyword arguments that models were built with."""
    built = []

    def model(weights, entry, **arguments):
        built.append(arguments | {"name": entry.name})
        if entry.name == "before":
            raise ValueError("configuration: before needs a GPU")
        sizes = {"max_batch", "slots", "pages", "page_size", "max_length"} & set(arguments)
        return FakeModel(**{size: arguments[size] for size in sizes}, sizes=arguments["batch_sizes"])

    sizes = types.SimpleNamespace(vocab=VOCAB, step=types.SimpleNamespace(hidden=8))
    weights = types.SimpleNamespace(random=lambda *_, **__: types.SimpleNamespace(sizes=sizes))
    monkeypatch.setattr(serve_ranks, "ModelWeights", weights)
    monkeypatch.setattr(serve_ranks, "ServedModel", model)
    return built


def test_a_plan_s_runs_are_rows_that_the_serving_study_reads(fake, tmp_path, capsys):
    with Run.create("serve", {}, root=tmp_path) as run:
        rows = serve_on_rank(Alone(), PLAN, (str(run.folder), run.info))
    info, written = load(run.folder)
    assert [(row["configuration"], row["concurrency"]) for row in rows] == [
        ("torch", 1), ("torch", 4), ("torch-kv", 1), ("torch-kv", 4)
    ]  # fmt: skip
    assert info["rows"] == len(written) and [row for row in written if row["type"] == "run"] == rows
    served = ServingRows(written, info)
    point = served.points["torch", 4]
    assert point.run["requests"] == 8 and point.run["output_tokens"] == 8 * 5 and point.run["input_tokens"] == 8 * 6
    assert sorted(point.requests["id"]) == list(range(8)) and set(point.requests["outcome"]) == {"finished"}
    assert sum(point.steps["tokens"]) == 8 * 6 + 8 * 4 and point.run["tpot_ms"] > 0
    assert "torch, C = 4: " in capsys.readouterr().out
    assert fake[0]["max_batch"] == 4 and fake[0]["slots"] == 5 and fake[0]["batch_sizes"] == (1, 2, 4)


def test_a_configuration_that_cannot_run_is_refused_and_the_others_are_served(fake):
    rows = serve_on_rank(Alone(), PLAN._replace(configurations=["before", "torch"]), None)
    assert [row["status"] for row in rows] == ["refused", "refused", "fact", "fact"]
    assert rows[0]["reason"] == "configuration: before needs a GPU" and rows[0]["configuration"] == "before"


def test_speculation_is_in_the_row(fake):
    rows = serve_on_rank(Alone(), PLAN._replace(draft_tokens=4, acceptance=1.0, output=9), None)
    assert rows[0]["draft_tokens"] == 4 and rows[0]["tokens_per_step"] == 4
    assert rows[0]["itl_chunk_ms"] > rows[0]["tpot_ms"] > 0


def test_an_interrupt_keeps_the_rows_of_the_run_that_it_ends(fake, tmp_path, monkeypatch):
    def interrupted(*arguments, on_row=None, **options):
        served = serve(*arguments, on_row=on_row, **options)
        if on_row is not None:
            raise ServingInterrupted(served)

    monkeypatch.setattr(serve_ranks, "serve", interrupted)
    with pytest.raises(ServingInterrupted), Run.create("serve", {}, root=tmp_path) as run:
        serve_on_rank(Alone(), PLAN, (str(run.folder), run.info))
    info, rows = load(run.folder)
    assert info["status"] == "interrupted" and {row["type"] for row in rows} == {"run", "steps", "requests"}


def test_requests_are_drawn_or_those_of_a_trace(tmp_path):
    assert len(requests_of(PLAN, 4, VOCAB)) == 8 and len(requests_of(PLAN._replace(requests=3), 4, VOCAB)) == 3
    path = tmp_path / "trace.jsonl"
    path.write_text('{"input_length": 3, "output_length": 2}\n' * 5)
    assert len(requests_of(PLAN._replace(trace=str(path)), 4, VOCAB)) == 5
    assert len(requests_of(PLAN._replace(trace=str(path), requests=2), 4, VOCAB)) == 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"configurations": ["bset"]}, "configuration: 'bset' is unknown"),
        ({"state_dtype": "int8"}, "dtype: expected one of"),
        ({"draft_tokens": 9}, "tokens: expected 1 to 8"),
        ({"draft_tokens": 2, "acceptance": 2.0}, "acceptance: expected a rate"),
    ],
)
def test_what_no_rank_could_serve_is_refused_at_once(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(PLAN._replace(**change))


class Pair(Alone):
    """The first of two ranks; the other one saw `other`."""

    size = 2

    def __init__(self, other):
        super().__init__()
        self.other = other

    def broadcast_object(self, value, source=0):
        return value if source == 0 else self.other(value)


def test_the_slowest_rank_counts_and_energy_adds_up():
    served = serve(FakeModel(), drawn(4, 4, 3, vocab=VOCAB), 2)._replace(joules=3.0)
    slower = Pair(lambda value: ([us + 5 for us in value[0]], 4.0, value[2]))
    both = across_ranks(served, slower)
    assert [step["gpu_us"] - 5 for step in both.steps] == pytest.approx([step["gpu_us"] for step in served.steps])
    assert both.joules == 7.0 and across_ranks(served, Alone()).steps == served.steps
    assert across_ranks(served, Pair(lambda value: (value[0], None, value[2]))).joules is None


def test_ranks_that_made_other_tokens_are_an_error():
    served = serve(FakeModel(), drawn(4, 4, 3, vocab=VOCAB), 2)
    with pytest.raises(RuntimeError, match="the ranks disagree"):
        across_ranks(served, Pair(lambda value: (value[0], None, {})))
    with pytest.raises(RuntimeError, match="the ranks disagree"):
        across_ranks(served, Pair(lambda value: (value[0][1:], *value[1:])))
