"""docs/your_kernel.md from nothing to verdict, and each kernel of examples/: what the judge says of it."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from gdn_lab import GDNShape
from gdn_lab.backends import author, author_files, registry, solution
from gdn_lab.backends.base import Call, assumed_capability
from gdn_lab.cli import judge_command
from gdn_lab.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES, PAGE = ROOT / "examples", ROOT / "docs" / "your_kernel.md"
SOME = ["reference", "padding", "strides"]


@pytest.fixture(autouse=True)
def nothing_stays_registered():
    yield
    for name in author.authors_variants():
        author.remove(name)
    author_files._loaded.clear()


def test_the_page_leads_from_nothing_to_a_verdict(tmp_path, capsys, forked_python):
    text = PAGE.read_text()
    assert len(text.splitlines()) <= 60
    name, code = re.search(r'```python file="(\S+)"\n(.*?)```', text, re.DOTALL).groups()
    (tmp_path / name).write_text(code)
    assert main(["judge", str(tmp_path / name), "--runs", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "mine/vk is correct." in said and "Nothing is ranked on a CPU" in said
    (folder,) = (tmp_path / "runs").glob("*-judge")
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["correctness"] == "correct" and len(verdict["checks"]) > 15
    assert "Nothing is ranked on a CPU" in (folder / "verdict.html").read_text()


def assert_correct(name, checks, capsys):
    (checked,) = judge_command.checked_apart(str(EXAMPLES / f"{name}.py"), 0, only=checks)
    assert checked.correctness == "correct", capsys.readouterr().out
    assert [finding.check for finding in checked.findings] == checks


def test_the_example_in_torch_is_correct(judged_here, capsys):
    assert_correct("decode_torch", SOME, capsys)


def test_the_example_in_triton_is_correct(capsys):
    """In a process of its own, with Triton's interpreter where there is no GPU."""
    assert_correct("decode_triton", ["padding"], capsys)


def test_the_wrong_one_is_wrong_in_padding_alone(judged_here, capsys):
    (checked,) = judge_command.checked_apart(str(EXAMPLES / "wrong_padding.py"), 0, only=SOME)
    found = {finding.check: finding.status for finding in checked.findings}
    assert checked.correctness == "incorrect" and [name for name in SOME if found[name] == "fail"] == ["padding"]
    printed = capsys.readouterr().out
    (shown,) = re.findall(r"^fail +padding +(slot \d+ changed, which no row names)", PAGE.read_text(), re.MULTILINE)
    assert shown in printed, "what the page shows is what the judge says"


def test_a_solution_is_judged_on_its_heads_and_on_normalised_keys(judged_here, tmp_path, capsys):
    path = tmp_path / "torch_vk.json"
    solution.write("torch/vk", "gdn_decode_qk2_v8_d128_k_last", path)
    (checked,) = judge_command.checked_apart(str(path), 0, only=["hard inputs"])
    assert checked.kernel == "solution/gdn_lab_torch_vk"
    assert checked.correctness == "correct", capsys.readouterr().out


def needs_the_cute_dsl(test):
    missing = not importlib.util.find_spec("cutlass")
    return pytest.mark.skipif(missing, reason="there is no CuTe DSL for this operating system")(test)


@needs_the_cute_dsl
def test_the_example_in_the_cute_dsl_is_refused_on_a_cpu(judged_here):
    (checked,) = judge_command.checked_apart(str(EXAMPLES / "decode_cutedsl.py"), 0, only=SOME)
    assert checked.correctness == "refused"
    assert checked.findings[0].sentence == "needs an NVIDIA GPU of compute capability 9.0 or newer; this is a CPU"


@needs_the_cute_dsl
def test_the_example_in_the_cute_dsl_compiles_for_hopper_and_refuses_what_it_cannot():
    (name,) = author_files.load(EXAMPLES / "decode_cutedsl.py")
    gpu, shape = torch.device("cuda", 0), GDNShape(2, 4)
    call = Call("decode", "VK", torch.bfloat16, torch.bfloat16, torch.int32, shape, gpu)
    backend = registry.BACKENDS["example"]
    with assumed_capability(9, 0):
        plan = backend.parts["cutedsl", "decode"].setup(call)
        assert set(plan) == {True, False} and all(map(callable, plan.values()))
        assert backend.refusal(registry.VARIANTS[name], call) is None
        refused = backend.refusal(registry.VARIANTS[name], call._replace(shape=GDNShape(2, 4, 64, 64)))
        assert refused == "takes heads of 128 and 128; these are of 64 and 64"
    with assumed_capability(8, 0):
        assert "compute capability 9.0 or newer" in backend.refusal(registry.VARIANTS[name], call)


def test_a_check_that_is_not_there_is_said(judged_here, tmp_path, capsys):
    assert main(["judge", "triton/vk", "--only", "padding, nothing", "--runs", str(tmp_path)]) == 2
    assert "there is no check 'nothing'; choose from reference, " in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_judged(monkeypatch, capsys):
    monkeypatch.setattr(judge_command, "checked_apart", lambda *_: pytest.fail("it judged"))
    assert main(["judge", "triton/vk", "--runs", "/dev/null/runs"]) == 1
    assert "cannot write to the output folder /dev/null/runs: Not a directory" in capsys.readouterr().err


def test_run_json_has_the_command_that_ran(judged_here, tmp_path, capsys):
    words = ["judge", "torch/vk", "--only", "padding, out", "--batches", "1", "--seed", "3"]
    assert main([*words, "--runs", str(tmp_path / "runs")]) == 0
    info = json.loads((tmp_path / "runs" / "latest" / "run.json").read_text())
    assert info["command"] == "gdn-lab judge torch/vk --only 'padding, out' --batches 1 --seed 3 --runs runs"


@pytest.mark.parametrize("word", ["nothing.py", "nothing/vk"])
def test_what_is_not_there_is_said(word, capsys, forked_python):
    assert main(["judge", word]) == 2
    assert "there is no" in capsys.readouterr().err
