"""gdn-lab check: what processes that crash, refuse or are cut short do to verdicts and the exit status."""

import re
from types import SimpleNamespace

import pytest

from gdn_lab.cli import check, check_calls
from gdn_lab.cli.main import main
from gdn_lab.judge import apart

ARGUMENTS = SimpleNamespace(judged=["mine.py"], seed=7)
CRASHES = 'import os\nfrom gdn_lab import variant\n@variant("mine/vk")\ndef f(*_, **__): os.abort()\n'
REFUSES = 'from gdn_lab import variant\n@variant("mine/vk", supports=lambda c: "is away")\ndef f(*_, **__): ...'


def row(**fields):
    return {"row": {"variant": "mine/vk", "calls": 10, "failed": 0, "refused": 0, "failures": []} | fields}


@pytest.fixture
def judged_as(monkeypatch):
    """judged_as(*messages): a process of the judge says these."""

    def say(*messages):
        monkeypatch.setattr(apart, "messages", lambda request, **_: iter(messages))

    return say


@pytest.fixture
def child_that(monkeypatch):
    """child_that(status, *messages): each process of the judge says these and ends with the status."""

    class Child:
        def __init__(self, request, before=()):
            self.process = SimpleNamespace(wait=lambda: Child.status)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def messages(self, patience):
            return iter(Child.said)

    def says(status, *messages):
        Child.status, Child.said = status, messages

    monkeypatch.setattr(apart, "Child", Child)
    monkeypatch.setattr(apart, "TOOL", "sh")  # one that is there
    return says


def finding(variant, status):
    return {"finding": {"variant": variant, "check": "padding", "status": status, "sentence": "so it is"}}


# ---- checks one by one


def test_a_variant_that_a_crash_before_it_left_out_is_not_judged(judged_as, capsys):
    judged_as(
        {"device": "CPU"},
        {"variants": ["mine/first", "mine/second", "mine/third"]},
        {"begin": "device", "variant": "mine/first"},
        finding("mine/first", "pass"),
        {"begin": "device", "variant": "mine/second"},
        {"died": "the process was ended by SIGABRT", "during": "padding", "variant": "mine/second"},
    )
    assert check.checks({}) == 1
    first, second, third = capsys.readouterr().out.splitlines()[-3:]
    assert first.startswith("mine/first: correct on CPU (1 pass, 0 fail, 0 refused; ")
    assert second.startswith("mine/second: error on CPU (the process was ended by SIGABRT in padding; ")
    assert third.startswith("mine/third: error on CPU (not judged, as the process had ended; ")


def test_a_process_that_dies_before_its_first_variant_has_judged_nothing(judged_here, judged_as, capsys):
    judged_as({"died": "the process ended with status 1", "during": "its start", "variant": ""})
    assert main(["check", "torch/vk"]) == 1
    assert "nothing was judged: the process ended with status 1 in its start" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statuses", "status"),
    [(("pass", "pass"), 0), (("pass", "fail"), 1), (("fail", "pass"), 1), (("pass", "refused"), 1)],
)
def test_every_variant_must_be_correct(statuses, status, judged_as, capsys):
    names = ["mine/first", "mine/second"]
    judged_as({"device": "CPU"}, {"variants": names}, *map(finding, names, statuses))
    assert check.checks({}) == status


# ---- random calls


@pytest.mark.parametrize(
    ("messages", "status", "said"),
    [
        ([row()], 0, "mine/vk: 10 random calls, 0 failed ("),
        ([row(), row(refused=3)], 0, "mine/vk: 20 random calls, 0 failed, 3 refused ("),
        ([row(failed=1, failures=[[4, "is wrong"]]), row()], 1, "mine/vk: call 4: is wrong"),
        ([{"row": {"variant": "mine/vk", "refusal": "is away"}}], 1, "mine/vk: refused: it is away"),
        ([], 1, ""),
        ([row(), {"died": "killed", "during": "random calls", "variant": "mine/vk"}], 1, "killed in random calls"),
    ],
)
def test_random_calls_must_be_made_and_none_may_fail(messages, status, said, capsys):
    assert check_calls.counted(messages, ARGUMENTS, None) == status
    assert said in capsys.readouterr().out


def test_a_kernel_that_refuses_every_random_call_is_not_right(kernel_file, capsys, forked_python):
    assert main(["check", str(kernel_file(REFUSES)), "--calls", "3", "--processes", "1"]) == 1
    assert capsys.readouterr().out == "mine/vk: refused: it is away\n"


def test_a_process_that_crashes_in_random_calls_has_failed(kernel_file, capsys, forked_python):
    assert main(["check", str(kernel_file(CRASHES)), "--calls", "3", "--processes", "1"]) == 1
    assert re.fullmatch(r"mine/vk: the process was ended by SIGABRT in .+\n", capsys.readouterr().out)


# ---- under a sanitizer


@pytest.mark.parametrize(
    ("ended", "messages", "word"),
    [
        (0, [finding("mine/vk", "pass")], "pass"),
        (9, [finding("mine/vk", "pass")], "fail"),
        (0, [finding("mine/vk", "fail")], "fail"),
        (0, [{"died": "gave no answer", "during": "padding", "variant": "mine/vk"}], "fail"),
    ],
)
def test_a_sanitizer_passes_a_process_that_ends_well_and_finds_nothing(ended, messages, word, child_that, capsys):
    child_that(ended, *messages)
    assert check_calls.sanitized({}) == (word == "fail")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [word, word]


@pytest.mark.parametrize(("of_checks", "of_sanitizer"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_checks_and_sanitizer_both_decide_the_exit_status(of_checks, of_sanitizer, monkeypatch):
    monkeypatch.setattr(check, "checks", lambda request: of_checks)
    monkeypatch.setattr(check_calls, "sanitized", lambda request: of_sanitizer)
    assert main(["check", "torch/vk", "--sanitize"]) == max(of_checks, of_sanitizer)
    assert main(["check", "torch/vk"]) == of_checks
