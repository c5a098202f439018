"""The leaderboard: which rows count, what a lead is over, recorded runs and those of a folder, text and JSON."""

import json

import pytest
from synthetic import RUN, sweep_rows

from gdn_lab.cli.main import main
from gdn_lab.report.board import Source, board, sources, text
from gdn_lab.report.recorded import DATA

NAMED = RUN | {"notebook": "02_decode_kernels"}


def cold(rows, **changes):
    return [row | {"l2": "cold"} | changes for row in rows]


def kernel(name, rows, us):
    """Rows of triton/vk as those of another kernel that takes `us`."""
    backend, variant = name.split("/")
    times = {"median_us": us, "p20_us": us, "p80_us": us}
    chosen = [row for row in rows if row["backend"] == "triton" and row["variant"] == "vk"]
    return [row | times | {"backend": backend, "variant": variant} for row in chosen]


def places(*groups):
    found = board([Source(f"run {number}", NAMED, rows) for number, rows in enumerate(groups)])
    return {place.batch: place for place in found.places}


def test_the_fastest_is_first_and_leads_the_best_peer_of_its_run():
    rows = cold(sweep_rows())
    found = places(rows)
    for batch, place in found.items():
        times = {
            f"{row['backend']}/{row['variant']}": row["median_us"]
            for row in rows
            if (row["batch"], row["timer"], row["indexing"]) == (batch, "cuda_graph_replay", "in_place")
        }
        assert (place.kernel, place.us) == ("triton/vk", times["triton/vk"])
        assert place.peer == "flashinfer/vk"
        assert place.lead == pytest.approx(1 - times["triton/vk"] / times["flashinfer/vk"])
    assert sorted(found) == [1, 8, 32, 128, 512]


@pytest.mark.parametrize(
    "disqualified",
    [
        {"status": "wrong"},
        {"status": "error"},
        {"wrong_on": ["q = k"], "wrong_errors": {}, "allowed_error": 0.1},
        {"timer": "cupti_kernel"},
        {"timer": "host_clock"},
        {"indexing": "gather_scatter"},
        {"l2": "warm"},
        {"phase": "verify"},
        {"backend": "torch"},
    ],
)
def test_a_row_that_cannot_be_ranked_wins_nothing(disqualified):
    rows = cold(sweep_rows())
    cheat = [row | disqualified for row in kernel("mine/vk", rows, 0.1)]
    assert {place.kernel for place in places(rows + cheat).values()} == {"triton/vk"}


def test_a_kernel_that_is_not_registered_can_win_and_is_no_peer():
    rows = cold(sweep_rows(batches=(8,)))
    mine = kernel("mine/vk", rows, 0.1)
    assert places(rows + mine)[8].kernel == "mine/vk"
    without_peer = [row for row in rows if row["backend"] != "flashinfer"]
    place = places(without_peer + mine)[8]
    assert (place.peer, place.lead) == (None, None)


def test_the_best_of_several_runs_counts_and_its_peer_is_of_the_same_run():
    slow = cold(sweep_rows(batches=(8,)))
    fast = [row | {"median_us": row["median_us"] / 2} for row in slow]
    place = places(slow, fast)[8]
    assert place.run == "run 1"
    assert place.lead == pytest.approx(places(slow)[8].lead)


def test_gpus_and_dtypes_are_ranked_apart_and_a_cpu_is_not():
    rows = cold(sweep_rows(batches=(8,)))
    other = NAMED | {"environment": {"gpu_name": "NVIDIA H200"}}
    cpu = NAMED | {"environment": {"cpu": "a CPU"}}
    found = board(
        [Source("a", NAMED, rows + cold(rows, state_dtype="float32")), Source("b", other, rows), Source("c", cpu, rows)]
    )
    settings = [(place.setting.gpu, place.setting.dtype) for place in found.places]
    assert settings == [(gpu, dtype) for gpu, dtype in sorted(settings)] and len(set(settings)) == 3
    assert found.notes == ["Not ranked, because made without a GPU: c."]
    assert "c" not in {place.run for place in found.places}


def test_a_peer_outside_the_tolerance_is_named_and_not_ranked():
    rows = cold(sweep_rows(batches=(8,)))
    outside = {"wrong_on": ["q = k"], "wrong_errors": {}, "allowed_error": 0.1}
    rows = [row | outside if row["backend"] == "flashinfer" else row for row in rows]
    found = board([Source("a", NAMED, rows)])
    assert found.places[0].peer is None
    assert "flashinfer/vk on H100: timed, but not ranked" in text(found) and "q = k" in text(found)


def test_recorded_rows_and_a_folder_of_runs_are_read(tmp_path):
    faster = kernel("mine/vk", cold(sweep_rows(batches=(8,))), 0.1)
    for name, content in {"20261128T081500Z-02_decode_kernels": faster, "20261128T081600Z-judge": None}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps(NAMED))
        lines = "{damaged\n" if content is None else "".join(json.dumps(row) + "\n" for row in content)
        (folder / "rows.jsonl").write_text(lines)
    found, notes = sources(DATA, tmp_path)
    assert "h100/02_decode_kernels" in [source.name for source in found]
    assert len(notes) == 1 and "-judge left out" in notes[0] and "line 1 is damaged" in notes[0]
    best = {(place.setting.gpu, place.setting.dtype, place.batch): place for place in board(found).places}
    place = best["NVIDIA H100 80GB HBM3", "bfloat16", 8]
    assert (place.kernel, place.run) == ("mine/vk", "20261128T081500Z-02_decode_kernels")


def test_the_command_prints_text_and_json_and_refuses_what_is_not_there(tmp_path, capsys):
    assert main(["board", "--gpu", "h200", "--runs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "NVIDIA H200, bfloat16 state" in printed and "H100" not in printed
    assert main(["board", "--dtype", "float32", "--runs", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["places"]
    assert {place["dtype"] for place in found} == {"float32"} and {"us", "share", "lead", "run"} <= set(found[0])
    assert main(["board", "--gpu", "h300"]) == 2
    assert "nothing is ranked for 'h300'" in capsys.readouterr().err
    assert main(["board", "--runs", str(tmp_path / "nothing")]) == 2
    assert f"--runs: there is no folder {tmp_path / 'nothing'}; name one" in capsys.readouterr().err
