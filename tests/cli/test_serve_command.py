"""gdn-lab serve: its words, its table, and what it says when a run does not come to its end."""

import json

import pytest
import torch

from gdn_lab.cli import serve_command
from gdn_lab.cli.main import main, parser
from gdn_lab.engine.ranks import RankError

ROW = {
    "status": "fact", "type": "run", "configuration": "best", "concurrency": 64, "output_throughput": 1234.56,
    "total_throughput": 2345.6, "tokens_per_s_gpu": 2345.6, "tokens_per_s_user": 47.7, "tpot_ms": 20.96,
    "tpot_ms_p99": 21.5, "itl_chunk_ms": 21.04, "itl_token_ms": 21.04, "ttft_ms": 123.4, "ttft_ms_p99": 200.0,
    "step_us": 20_500.0, "tokens_per_step": 1.0, "host_gap_share": 0.0123, "joules_per_token": None,
}  # fmt: skip


@pytest.fixture
def served(monkeypatch, tmp_path):
    """served(words, outcome): (exit status, the plan) of gdn-lab serve, whose ranks return or raise `outcome`."""
    plans = []

    def run(words, outcome):
        def serve_all(plan, made):
            plans.append(plan)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(serve_command, "serve_all", serve_all)
        status = main(["serve", *words, "--runs", str(tmp_path)])
        return status, plans[-1] if plans else None

    return run


def plan(words):
    return serve_command.plan_of(parser("serve", serve_command).parse_args(["serve", *words]), "cuda")


def test_words_become_a_plan():
    found = plan(["--model", "qwen3.5-27b", "--tp", "2", "--concurrency", "1,8", "--configurations", "before,best"])
    assert (found.model, found.tp, found.concurrencies) == ("qwen3.5-27b", 2, [1, 8])
    assert found.configurations == ["before", "best"] and found.communicator == "fastest"
    assert (found.input, found.output, found.requests, found.toy) == (64, 256, None, False)
    toy = plan(["--toy", "--draft-tokens", "4", "--trace", "lengths.jsonl", "--prefill", "chunked", "--chunk", "128"])
    assert toy.toy and toy.concurrencies == [1, 4] and toy.draft_tokens == 4 and toy.trace == "lengths.jsonl"
    assert (toy.prefill, toy.chunk, toy.input, toy.output) == ("chunked", 128, 6, 8)


@pytest.mark.parametrize("word", ["", "0", "1,x", "8,,1", "-3"])
def test_concurrencies_are_positive_ints(word, capsys):
    with pytest.raises(SystemExit):
        main(["serve", f"--concurrency={word}"])
    assert "expected positive ints such as 1,8,64" in capsys.readouterr().err


def test_the_table_has_every_metric_and_what_was_refused(served, capsys):
    refused = {"status": "refused", "configuration": "after", "concurrency": 64, "reason": "no FlashInfer here"}
    status, found = served(["--toy"], [ROW, refused])
    out = capsys.readouterr().out
    assert status == 0 and found.toy
    for text in ("1,234.6", "20.960", "21.040", "123.4", "20,500", "1.2%", "after, C = 64: no FlashInfer here"):
        assert text in out
    assert "J/token" not in out and "Rows go to" in out and "rows in" in out


@pytest.mark.parametrize(
    ("outcome", "status", "sentence"),
    [
        (KeyboardInterrupt("interrupted after 3 requests were answered"), 130, "after 3 requests were answered; the"),
        (KeyboardInterrupt(), 130, "interrupted; the rows until then are in"),
        (RankError("rank 1 of 2 was killed by SIGKILL"), 1, "rank 1 of 2 was killed by SIGKILL; the rows until then"),
        (ValueError("tp: 3 GPUs cannot share it."), 1, "tp: 3 GPUs cannot share it; the rows until then are in"),
    ],
)
def test_a_run_that_ends_early_says_so_in_a_sentence(served, capsys, outcome, status, sentence):
    assert served(["--toy"], outcome)[0] == status
    assert sentence in capsys.readouterr().err


def test_what_cannot_be_served_is_a_usage_error(served, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert served([], [])[0] == 2 and "add --toy to serve a small one" in capsys.readouterr().err
    assert served(["--toy", "--configurations", "bset"], [])[0] == 2
    assert "configuration: 'bset' is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--input 0", "--input: expected a whole number from 1 up, got 0"),
        ("--input -1", "--input: expected a whole number from 1 up, got -1"),
        ("--output 0", "--output: expected a whole number from 1 up, got 0"),
        ("--requests 0", "--requests: expected a whole number from 1 up, got 0"),
        ("--chunk 0", "--chunk: expected a whole number from 1 up, got 0"),
        ("--tp 0", "--tp: expected a whole number from 1 up, got 0"),
        ("--tp 3", "tp: "),
        ("--layers 0", "--layers: expected a whole number from 1 up, got 0"),
        ("--layers 999", "layers: expected 1 to "),
        ("--spread nan", "--spread: expected a share from 0 to below 1, got nan"),
        ("--spread 1 --trace nothing.jsonl", "--spread: expected a share from 0 to below 1, got 1"),
        ("--acceptance nan", "--acceptance: expected a rate from 0 to 1, got nan"),
        ("--trace nothing.jsonl", "--trace: cannot read nothing.jsonl: No such file or directory; name a JSONL file"),
    ],
)
def test_numbers_that_cannot_be_are_usage_errors_and_leave_no_folder(served, capsys, tmp_path, words, sentence):
    assert served(["--toy", *words.split()], [])[0] == 2
    assert sentence in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["", ","])
def test_no_name_of_a_configuration_is_a_usage_error(word, capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--configurations", word])
    assert "expected names such as before,best" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_a_sentence(capsys):
    assert main(["serve", "--toy", "--runs", "/dev/null/x"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("gdn-lab: cannot write results to /dev/null/x: Not a directory; ") and err.count("\n") == 1


def test_run_json_has_the_command_that_ran(served, tmp_path):
    served(["--toy", "--draft-tokens=4", "--seed", "5"], [ROW])
    info = json.loads((tmp_path / "latest" / "run.json").read_text())
    assert info["command"] == f"gdn-lab serve --toy --draft-tokens=4 --seed 5 --runs {tmp_path.name}"
