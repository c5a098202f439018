"""gdn-lab advise: at once and without torch; text and JSON; one sentence and status 2 for what cannot be."""

import json
import subprocess
import sys

import pytest

from gdn_lab.cli.main import main

QUESTION = ["advise", "--model", "qwen3-next-80b-a3b", "--tp", "4", "--batch", "96"]


def test_it_answers_in_text(capsys):
    assert main([*QUESTION, "--slots", "1000", "--spec", "4", "--memory", "40"]) == 0
    out = capsys.readouterr().out
    headings = [line.split("  ")[0] for line in out.splitlines() if not line.startswith(" ")]
    where_recorded = [word for word in headings if word != "Precision"]
    assert where_recorded == ["Asked", "Backend", "Saving", "Memory", "Flags", "Refused", "Not measured"]
    assert "qwen3-next-80b-a3b, tp 4, B = 96" in out and "--linear-attn-decode-backend" in out
    assert "19.3 GB" in out and "38.3 GB" in out


def test_it_answers_in_json(capsys):
    assert main([*QUESTION, "--gpu", "h200", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["asked"]["gpu"] == "h200" and answer["asked"]["num_v_heads"] == 8
    assert answer["asked"]["slots"] == 96  # as many as the batch
    assert answer["comparison"]["variants"] and answer["not_measured"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--model", "qwen3-next"],
            "model: 'qwen3-next' is not in the model table (did you mean 'qwen3-next-80b-a3b'?)",
        ),
        (["--tp", "3"], "tp: qwen3-next-80b-a3b has 16 key and 32 value heads, which 3 GPUs cannot share evenly"),
        (["--gpu", "h10"], "gpu: nothing is recorded of 'h10' (did you mean 'h100'?)"),
        (["--dtype", "bfloat"], "dtype: 'bfloat' is unknown (did you mean 'bfloat16'?)"),
        (["--batch", "0"], "batch: expected at least 1, got '0'"),
        (["--batch", "many"], "batch: expected a whole number, got 'many'"),
        (["--spec", "1"], "spec: expected 0 for none, or 2 to 16 draft tokens, got 1"),
        (["--memory", "inf"], "memory: expected a finite number, got 'inf'"),
    ],
)
def test_what_cannot_be_is_one_sentence(words, sentence, capsys):
    assert main(["advise", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gdn-lab: {sentence}") and error.count("\n") == 1


def test_it_imports_nothing_slow():
    """Which is what keeps it under two seconds on any machine."""
    code = f"""
import sys
from gdn_lab.cli.main import main
assert main({QUESTION!r}) == 0
print(sorted({{"torch", "pandas", "numpy", "matplotlib", "triton"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
