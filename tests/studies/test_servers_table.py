"""The table of recorded servers, from made-up recordings."""

from synthetic_serving import RUN, serving_rows

from gdn_lab.bench.results import Run
from gdn_lab.studies.serving.servers_table import servers_table


def record(data, folder, rows):
    place = data / "measured" / "h100" / folder
    place.mkdir(parents=True)
    with Run.create("09_serving", {}, folder=place) as run:
        run.info |= {"environment": run.info["environment"] | RUN["environment"]}
        for row in rows:
            run.append(row)


def test_each_run_that_compares_configurations_has_a_line(tmp_path):
    assert servers_table(tmp_path) == ""
    record(tmp_path, "09_serving", serving_rows(concurrencies=(8, 256)))
    record(tmp_path, "09_serving_two", serving_rows(("before-32", "best"), (8, 64), tp=2, model="qwen3.5-27b"))
    record(tmp_path, "09_serving_two_short", serving_rows(("before", "best"), (64,), tp=2, model="qwen3.5-27b"))
    record(tmp_path, "09_serving_drafts", serving_rows(("best",), (8,), draft_tokens=(4,)))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in servers_table(tmp_path).splitlines()[2:]]
    assert [line[:3] for line in lines] == [
        ["qwen3.5-27b", "2 × H100", "8"],
        ["qwen3.5-35b-a3b", "1 × H100", "8"],
    ], "the one C that both have"
    assert lines[0][3] == lines[0][5] == "" and float(lines[0][4]) > float(lines[0][6])
    tpot = {row["configuration"]: row["tpot_ms"] for row in serving_rows(concurrencies=(8,)) if row["type"] == "run"}
    assert lines[1][3:7] == [f"{tpot[name]:.1f}" for name in ("before", "before-32", "after", "best")]


def test_servers_without_a_common_c_have_lines_at_their_own(tmp_path):
    record(tmp_path, "09_serving", serving_rows(("before", "best"), (8, 32)))
    record(tmp_path, "09_serving_two", serving_rows(("before", "best"), (64,), tp=2, model="qwen3.5-27b"))
    record(tmp_path, "09_serving_four", serving_rows(("before", "best"), (64,), tp=4, model="qwen3.5-27b"))
    assert [line.split("|")[3].strip() for line in servers_table(tmp_path).splitlines()[2:]] == ["64", "64", "32"]
