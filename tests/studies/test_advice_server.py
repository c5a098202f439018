"""What advice says of a whole server, from made-up rows of serving."""

import json
import shutil

import pytest
from synthetic_serving import RUN, serving_rows

from gdn_lab.report.recorded import DATA
from gdn_lab.studies.advice import answer
from gdn_lab.studies.advice.analysis import advise, as_json
from gdn_lab.studies.advice.study import Parameters


@pytest.fixture
def data(tmp_path):
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    for recorded in tmp_path.glob("measured/*/09_serving*"):  # made-up rows alone
        shutil.rmtree(recorded)
    folder = tmp_path / "measured" / "h100" / "09_serving"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(RUN))
    rows = serving_rows(concurrencies=(8, 64), draft_tokens=(4,))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def advice(data, **given):
    return advise(Parameters.parse({"model": "qwen3.5-35b-a3b", "tp": 1, "batch": 96} | given), data)


def test_tokens_per_second_are_of_the_nearest_recorded_concurrency(data):
    found = advice(data)
    (sentence,) = dict(answer.sections(found))["Server"]
    assert "C = 64 requests in flight, the recorded concurrency nearest to 96: `best` " in sentence
    assert [row["configuration"] for row in found.server] == ["best", "after", "before-32", "before"]
    best = found.server[0]
    assert f"`best` {best['output_throughput']:,.0f} tokens/s, TPOT {best['tpot_ms']:.2f} ms" in sentence
    assert as_json(found)["server"] == found.server
    assert not any("A whole model" in line for line in found.not_measured)


def test_no_line_of_a_server_without_recorded_rows(data):
    for given in ({"model": "qwen3.5-27b"}, {"tp": 2}, {"dtype": "float32"}, {"gpu_reference": "h200"}):
        found = advice(data, **given)
        assert found.server == [] and "Server" not in dict(answer.sections(found))
        assert any(line.startswith("A whole model") for line in found.not_measured)
