"""gdn-lab compare: on recorded runs and on made-up ones with known ratios; text, page, JSON and exit status."""

import json

import pytest
from synthetic import RUN, sweep_rows

from gdn_lab.cli.main import main
from gdn_lab.report import comparison_text
from gdn_lab.report.comparison import Change, Comparison, NothingToCompare, Time, compare, sides
from gdn_lab.report.recorded import DATA, recorded_runs

FOLDER = DATA / "measured" / "h100" / "02_decode_kernels"
NAMED = {"notebook": "02_decode_kernels", "parameters": {"samples": 50}} | RUN


def slower(rows, by, chosen=lambda row: True):
    times = ("median_us", "p20_us", "p80_us")
    return [row | {name: row[name] * by for name in times} if chosen(row) else row for row in rows]


def one_beyond(rows):
    return slower(rows, 1.1, lambda row: row["variant"] == "kv8" and row["batch"] == 32)


def folder_of(path, rows, run=NAMED):
    path.mkdir()
    (path / "run.json").write_text(json.dumps(run))
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# ---- the comparison


def test_a_number_that_says_nothing_by_itself_has_a_word_with_it():
    key = {"ring_updates": 16, "draft_tokens": 4, "acceptance": 0.8, "ranks": 8, "rows": 64, "hidden": 4096}
    time = Time(1.0, None, None)
    changes = [Change(one, time, time, 1.0, False) for one in ({"backend": "triton", "variant": "vk"}, key)]
    words = comparison_text.Words(Comparison("12", "a", "b", 0.03, [], changes, [], []))
    said = "ring of 16, 4 draft tokens, acceptance 0.8, 8 ranks, 64 rows, hidden 4096"
    assert words.what(key) == said


def test_a_known_ratio_is_found_and_the_rest_is_equal():
    rows = sweep_rows()
    found = compare((NAMED, rows), (NAMED, one_beyond(rows)))
    assert len(found.changes) == len(rows) and not found.settings and not found.only_in_a + found.only_in_b
    assert {change.key["variant"] for change in found.beyond} == {"kv8"}
    assert len(found.beyond) == 4 and all(change.ratio == pytest.approx(1.1) for change in found.beyond)
    assert {change.ratio for change in found.changes if not change.beyond_noise} == {1.0}


def test_the_noise_and_the_threshold_both_count():
    """p20 is 2% below and p80 3% above: 4% more overlaps, 6% does not; beyond the noise is not beyond 10%."""
    rows = sweep_rows()
    assert not compare((NAMED, rows), (NAMED, slower(rows, 1.04))).beyond
    assert len(compare((NAMED, rows), (NAMED, slower(rows, 1.06))).beyond) == len(rows)
    assert not compare((NAMED, rows), (NAMED, slower(rows, 1.06)), threshold=0.1).beyond
    assert len(compare((NAMED, slower(rows, 1.06)), (NAMED, rows)).beyond) == len(rows), "faster counts too"
    plain = [{k: v for k, v in row.items() if k not in ("p20_us", "p80_us")} for row in rows]
    assert len(compare((NAMED, plain), (NAMED, slower(rows, 1.04))).beyond) == len(rows), "no percentiles: the ratio"


def test_what_only_one_run_has_is_listed_with_the_reason():
    rows = sweep_rows()
    fewer = [row for row in rows if row["variant"] != "kv32" and row["batch"] != 512]
    fewer.append({"status": "refused", "phase": "decode", "backend": "triton", "variant": "kv32", "reason": "too old"})
    found = compare((NAMED, rows), (NAMED, fewer))
    reasons = {(one.key["variant"], one.reason) for one in found.only_in_a}
    assert ("kv32", "refused: too old") in reasons and ("kv8", "") in reasons and not found.only_in_b
    assert {one.key["batch"] for one in found.only_in_a if one.key["variant"] == "kv8"} == {512}
    assert "triton/kv32, in place, graph replay: B = 1;" in comparison_text.text(found)


@pytest.mark.parametrize(
    ("untimed", "reason"),
    [
        ({"status": "wrong", "wrong_on": ["padding", "strong decay"]}, "wrong: padding, strong decay"),
        ({"status": "wrong"}, "wrong"),
        ({"status": "error", "reason": "out of memory"}, "error: out of memory"),
        ({"status": "refused", "reason": "too old", "variant": "kv8"}, ""),
        ({"status": "refused", "reason": "too old", "backend": "torch"}, ""),
        ({"status": "fact", "reason": "one GPU"}, ""),
        ({"status": "ok", "reason": "timed elsewhere"}, ""),
    ],
)
def test_the_reason_is_that_of_an_untimed_row_of_the_same_variant(untimed, reason):
    rows = sweep_rows()
    fewer = [row for row in rows if row["variant"] != "kv32"]
    untimed = {"phase": "decode", "backend": "triton", "variant": "kv32"} | untimed
    found = compare((NAMED, rows), (NAMED, [*fewer, untimed]))
    assert {one.reason for one in found.only_in_a} == {reason} and not found.only_in_b


def test_what_a_variant_was_refused_for_is_no_reason_of_a_time_that_is_no_variant_s():
    copy, refused = {"status": "fact", "part": "copy", "median_us": 1.0}, {"status": "refused", "reason": "too old"}
    for backend, reason in ({"backend": "triton"}, ""), ({}, "refused: too old"):
        (only,) = compare((NAMED, [copy]), (NAMED, [refused | backend])).only_in_a
        assert only.reason == reason


@pytest.mark.parametrize("status", ["wrong", "refused", "error", None])
def test_a_row_that_is_neither_ok_nor_a_fact_holds_no_time(status):
    rows = sweep_rows()
    spoilt = [row | {"status": status, "median_us": 9e9} if row["variant"] == "kv8" else row for row in rows]
    found = compare((NAMED, rows), (NAMED, spoilt))
    assert not found.beyond and {one.key["variant"] for one in found.only_in_a} == {"kv8"} and not found.only_in_b


def test_the_largest_change_comes_first_whether_slower_or_faster():
    rows = sweep_rows()
    other = slower(slower(rows, 1.5, lambda row: row["variant"] == "kv8"), 0.5, lambda row: row["variant"] == "kv32")
    ratios = [round(change.ratio, 6) for change in compare((NAMED, rows), (NAMED, other)).beyond]
    assert len(ratios) == 40 and ratios == [0.5] * 20 + [1.5] * 20


@pytest.mark.parametrize(("gb_per_s", "shown"), [(3025.0, []), (3036.0, ["3,036"]), (2964.0, ["2,964"])])
def test_a_measured_bandwidth_counts_as_a_setting_from_one_percent_on(gb_per_s, shown):
    rows = sweep_rows()
    found = compare((NAMED, rows), (NAMED, [row | {"roof_gb_per_s": gb_per_s} for row in rows]))
    assert [b for _, _, b in found.settings] == shown


def test_settings_come_first_and_rows_are_compared_across_them():
    other = NAMED | {"environment": NAMED["environment"] | {"driver": "590.9"}, "parameters": {"samples": 20}}
    other |= {"kernels": {"triton/decode": "b"}, "clocks_during": {"sm_mhz": {"median": 1500}}}
    first = NAMED | {"kernels": {"triton/decode": "a"}, "clocks_during": {"sm_mhz": {"median": 1980}}}
    float32 = [row | {"state_dtype": "float32", "roof_gb_per_s": 2000.0} for row in sweep_rows()]
    found = compare((first, sweep_rows()), (other, float32))
    assert dict((what, (a, b)) for what, a, b in found.settings) == {
        "driver": ("580.1", "590.9"),
        "SM clock while timing, median MHz": ("1980", "1500"),
        "parameter samples": ("50", "20"),
        "kernels of triton/decode": ("a", "b"),
        "state_dtype": ("bfloat16", "float32"),
        "measured bandwidth, GB/s": ("3,000", "2,000"),
    }
    assert len(found.changes) == len(float32)
    assert comparison_text.text(found).index("driver") < comparison_text.text(found).index("B ÷ A")
    unknown = compare((NAMED, []), (other, []))
    assert not any(what.startswith(("kernels", "SM clock")) for what, *_ in unknown.settings), "one was not recorded"


@pytest.mark.parametrize(("gpu", "name"), recorded_runs())
def test_a_recorded_run_is_equal_to_itself(gpu, name):
    """Every timed row has a key of its own."""
    ((_, _, a, b),) = sides(f"{gpu}/{name}", f"{gpu}/{name}")
    found = compare(a, b)
    served = ("run", "part")  # TPOT and parts of a step
    numbers = [row for row in a[1] if isinstance(row.get("median_us"), float | int) or row.get("type") in served]
    assert len(found.changes) == len(numbers) and (numbers or name.startswith("11_accuracy"))  # which times nothing
    assert not found.settings and not found.beyond and not found.only_in_a + found.only_in_b


def test_two_recorded_runs_of_one_gpu():
    """A changed kernel stands out: kv32 is 12% slower at B = 512, the others repeat; fla is in one alone."""
    ((_, _, a, b),) = sides("h100/02_decode_kernels", "h100/02_decode_peers")
    found = compare(a, b)
    assert len(found.changes) == 320 and {one.key["backend"] for one in found.only_in_b} == {"fla"}
    first = found.beyond[0]
    assert (first.key["variant"], first.key["batch"]) == ("kv32", 512) and first.ratio == pytest.approx(1.122, abs=1e-3)
    for change in found.changes:
        assert change.key["backend"] not in ("cutedsl", "flashinfer") or not change.beyond_noise


def test_names_mean_folders_gpus_or_recorded_runs():
    pairs = [(a, b) for a, b, *_ in sides("h100", "h200")]
    assert ("h100/02_decode_kernels", "h200/02_decode_kernels") in pairs and len(pairs) >= 3
    assert all(a.replace("h100", "h200") == b for a, b in pairs)
    assert [(a, b) for a, b, *_ in sides(str(FOLDER), "h200")] == [(str(FOLDER), "h200/02_decode_kernels")]
    assert [(a, b) for a, b, *_ in sides("h200", str(FOLDER))] == [("h200/02_decode_kernels", str(FOLDER))]
    for a, b, sentence in (
        ("h10", "h100", "'h10' is no run folder and nothing recorded .did you mean 'h100'"),
        (
            "h200/08_all_reduce",
            "h100",
            "h200/08_all_reduce holds 08_all_reduce and h100 holds .*: no notebook is in",
        ),
    ):
        with pytest.raises(NothingToCompare, match=sentence):
            sides(a, b)


# ---- the command


def test_exit_status_text_and_json(tmp_path, capsys):
    rows = sweep_rows()
    a, b = folder_of(tmp_path / "a", rows), folder_of(tmp_path / "b", one_beyond(rows))
    assert main(["compare", a, a]) == 0
    assert "No setting differs." in capsys.readouterr().out
    assert main(["compare", a, b]) == 3
    out = capsys.readouterr().out
    assert "4 of 100 times differ by more than 3% and beyond the noise: slower in B at 4." in out and "1.100*" in out
    assert main(["compare", a, b, "--threshold", "20%"]) == 0 and main(["compare", a, b, "--threshold", "0.2"]) == 0
    capsys.readouterr()
    assert main(["compare", a, b, "--json"]) == 3
    (found,) = json.loads(capsys.readouterr().out)
    assert found["threshold"] == 0.03 and len(found["changes"]) == 100
    assert sum(change["beyond_noise"] for change in found["changes"]) == 4
    assert found["changes"][0]["a"].keys() == {"median_us", "p20_us", "p80_us"}


@pytest.mark.parametrize("differing", [0, 1, 2])
def test_one_pair_of_runs_that_differs_decides_the_exit_status(differing, capsys, monkeypatch):
    rows = sweep_rows()
    others = [one_beyond(rows) if number == differing else rows for number in range(2)]
    pairs = [("a", "b", (NAMED, rows), (NAMED, other)) for other in others]
    monkeypatch.setattr("gdn_lab.cli.compare.sides", lambda *_: pairs)
    assert main(["compare", "h100", "h200"]) == (3 if differing < 2 else 0)
    assert capsys.readouterr().out.count("differ by more than 3%") == int(differing < 2)


def test_usage_errors_are_a_sentence(tmp_path, capsys):
    assert main(["compare", "h10", "h100"]) == 2
    assert "did you mean 'h100'" in capsys.readouterr().err
    broken = folder_of(tmp_path / "broken", [])
    (tmp_path / "broken" / "run.json").write_text("{")
    assert main(["compare", broken, "h100"]) == 2
    assert "is not JSON" in capsys.readouterr().err
    for word in ("x", "3", "-1%", "5%%"):
        with pytest.raises(SystemExit) as refusal:
            main(["compare", "h100", "h200", "--threshold", word])
        assert refusal.value.code == 2
    assert main(["compare", "h100/06_prefill", "h100/06_prefill", "--html", str(tmp_path / "no" / "page.html")]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_names_in_the_page_have_no_effect(tmp_path, capsys):
    """The page shows markup in a row or a setting as it is."""
    evil = "<script>alert(1)</script>"
    rows = [row | {"variant": f"{row['variant']}{evil}"} for row in sweep_rows()]
    a = folder_of(tmp_path / "a", rows, NAMED | {"parameters": {"model": evil}})
    b, path = folder_of(tmp_path / "b", one_beyond(rows)), tmp_path / "page.html"
    main(["compare", a, b, "--html", str(path)])
    text = path.read_text()
    assert "<script" not in text and text.count("&lt;script&gt;") > 10 and "Content-Security-Policy" in text
    assert text.count("<tr>") == text.count("</tr>") > 20
