"""What recorded drift says in `gdn-lab advise`: of the GPU asked for, of another one by name, or nothing."""

import json

from test_drift import recorded_rows

from gdn_lab.studies import study
from gdn_lab.studies.advice import answer
from gdn_lab.studies.advice.analysis import advise
from gdn_lab.studies.advice.precision import precision


def record(data, gpu, notebook="10_drift"):
    folder = data / "measured" / gpu / notebook
    folder.mkdir(parents=True)
    run = {"notebook": notebook, "status": "complete", "parameters": {}, "environment": {}, "start_utc": "2026-11-28"}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in recorded_rows()))


def test_nothing_recorded_is_nothing_said(tmp_path):
    assert precision("h100", tmp_path) == []
    p = study("advice").parameters.parse({})
    assert "Precision" not in dict(answer.sections(advise(p, tmp_path)))


def test_it_says_where_bfloat16_is_enough_and_what_a_step_costs(tmp_path):
    record(tmp_path, "h100")
    lines = precision("h100", tmp_path)
    assert lines[0].startswith("A bfloat16 state is enough") and "367 µs" in lines[-1] and len(lines) == 3
    p = study("advice").parameters.parse({})
    headings = list(dict(answer.sections(advise(p, tmp_path))))
    assert headings.index("Precision") == headings.index("Memory") - 1


def test_another_gpus_rows_are_named(tmp_path):
    record(tmp_path, "h200")
    assert precision("h100", tmp_path)[0].startswith("Recorded on H200: A bfloat16 state is enough")
