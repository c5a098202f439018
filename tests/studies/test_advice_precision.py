"""What recorded drift says in `gdn-lab advise`: of the GPU asked for, of another one by name, or nothing."""

import json

from test_drift import recorded_rows

from gdn_lab.studies import study
from gdn_lab.studies.advice import answer
from gdn_lab.studies.advice.analysis import advise
from gdn_lab.studies.advice.precision import precision


def record(data, gpu, notebook="10_drift", rows=None):
    folder = data / "measured" / gpu / notebook
    folder.mkdir(parents=True)
    run = {"notebook": notebook, "status": "complete", "parameters": {}, "environment": {}, "start_utc": "2026-11-28"}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or recorded_rows()))


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


def test_a_state_in_fp8_is_named_with_its_error(tmp_path):
    rows = recorded_rows()
    like = next(row for row in rows if "state_error" in row and row["state_dtype"] == "bfloat16")
    of_fp8 = {"backend": "triton", "variant": "replay-fp8", "way": "fp8", "shortcut": ""}
    errors = {"output_error_of_state": [0.031] * len(like["steps"])}
    rows.append(like | of_fp8 | errors | {"state_dtype": "float8_e4m3fn", "rounding": "stochastic"})
    record(tmp_path, "h200", rows=rows)
    said = precision("h200", tmp_path)[-1]
    assert (
        "FP8 state" in said and "enough in 0 of 1 regimes; its output errs most with typical / full rank, 3.1%" in said
    )
