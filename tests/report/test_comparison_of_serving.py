"""Two runs of serving compared: TPOT of each run and times of parts."""

from synthetic_serving import RUN, refused, serving_rows

from gdn_lab.report.comparison import compare

RUN = RUN | {"parameters": {}, "kernels": {}}


def test_tpot_and_parts_are_compared_by_configuration_concurrency_and_draft_tokens():
    a = serving_rows(("before", "best"), (8, 64), draft_tokens=(4,))
    b = [row | {"tpot_ms": 1.1 * row["tpot_ms"]} if row["type"] == "run" else row for row in a]
    found = compare((RUN, [*a, refused()]), (RUN, b))
    tpots = [change for change in found.changes if change.key["part"] == "TPOT"]
    assert len(tpots) == 2 * (2 + 1) and all(abs(change.ratio - 1.1) < 1e-9 for change in tpots)
    assert len(found.beyond) == len(tpots) and not found.only_in_a
    parts = [change for change in found.changes if change.key["part"] == "GDN kernel"]
    assert {change.key["batch"] for change in parts} == {8, 64} and all(change.ratio == 1 for change in parts)
