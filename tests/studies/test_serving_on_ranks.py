"""The sweep of serving on several processes of a CPU, with a made-up model: rank 0 decides and writes, all serve."""

import types

from fake_served_model import VOCAB
from test_serving_sweep import GIVEN, Model

from gdn_lab.bench.results import Run, load
from gdn_lab.engine import ranks, serve_ranks
from gdn_lab.studies.serving.serving_rows import ServingRows
from gdn_lab.studies.serving.study import Parameters
from gdn_lab.studies.serving.sweep import serve_rank


def on_rank(communicator, p, folder):
    """serve_rank() with the fake model, in a process of its own."""
    sizes = types.SimpleNamespace(vocab=VOCAB, step=types.SimpleNamespace(hidden=8))
    serve_ranks.ModelWeights = types.SimpleNamespace(random=lambda *_, **__: types.SimpleNamespace(sizes=sizes))
    serve_ranks.ServedModel = Model
    return serve_rank(communicator, p, folder, [])


def test_two_ranks_serve_alike_and_one_writes(tmp_path, forked_python):
    p = Parameters.parse(GIVEN | {"tp": 2, "concurrency": 3, "configurations": "before,torch"})
    with Run.create("09_serving", {}, root=tmp_path) as run:
        first, second = ranks.start(p.tp, on_rank, p, (str(run.folder), run.info), device="cpu", timeout_s=120)
    info, rows = load(run.folder)
    served = ServingRows(rows, info)
    point = served.points["torch", 3]
    assert point.run["ranks"] == point.run["tp"] == 2 and point.run["communicator"] == "gloo"
    assert point.run["requests"] == 6 and set(point.requests["outcome"]) == {"finished"}
    assert [row["reason"] for row in served.refused] == ["configuration: before needs a GPU"]
    assert [row["output_tokens"] for row in (first[1], second[1])] == [30, 30]
    assert len([row for row in rows if row.get("type") == "run"]) == 1
    assert served.place().startswith("2 × CPU") and "all-reduce: gloo" in served.conditions()
