"""A kernel is judged in a process of its own: it may crash, hang, leave or print, and the judge says so."""

import signal

import torch
from author_kernel import RIGHT

from gdn_lab.judge import apart, judging
from gdn_lab.judge.answers import answer

HEAD = 'import os, signal, sys, time\nfrom gdn_lab import variant\n@variant("mine/vk")\ndef f(*_, **__):\n    '


def asked(path, **options):
    request = {"judged": [str(path)], "kernels": [], "seed": 0, "only": ["padding"]}
    return list(apart.messages(request, **options))


def test_one_that_ends_its_process(kernel_file, forked_python):
    last = asked(kernel_file(HEAD + "os.kill(os.getpid(), signal.SIGSEGV)"))[-1]
    assert last == {"died": "the process was ended by SIGSEGV", "during": "padding", "variant": "mine/vk"}
    assert apart.how_it_ended(3) == "the process ended with status 3"


def test_one_that_hangs(kernel_file, forked_python):
    request = {"judged": [str(kernel_file(HEAD + "time.sleep(1000)"))], "kernels": [], "seed": 0, "only": ["padding"]}
    with apart.Child(request) as child:
        for message in child.messages():
            if message.get("begin") == "padding":
                break
        (last,) = child.messages(0.5)
    assert last == {"died": "gave no answer for 0 s", "during": "padding", "variant": "mine/vk"}
    assert child.process.returncode == -signal.SIGKILL


def test_one_that_leaves_or_raises_has_failed(kernel_file, capfd):
    found = asked(kernel_file(HEAD + "print('mine'), 1 / 0"))
    findings = [message["finding"] for message in found if "finding" in message]
    assert [(f["status"], f["sentence"]) for f in findings] == [("fail", "raised ZeroDivisionError: division by zero")]
    assert found[-1] == {"done": True}
    printed = capfd.readouterr()
    assert "mine" in printed.err and not printed.out, "what it prints is kept apart from what the judge says"


def test_random_calls_are_numbered(forked_python):
    request = {"judged": ["torch/vk"], "kernels": [], "seed": 3}
    request["calls"] = {"first": 5, "last": 15, "share": 1, "shares": 2, "seconds": 100}
    (row,) = [message["row"] for message in apart.messages(request) if "row" in message]
    assert (row["calls"], row["failed"], row["first"], row["shares"], row["seed"]) == (5, 0, 6, 2, 3)
    assert 0 < row["worst"] < 1


def test_a_row_of_random_calls_is_written_in_time(monkeypatch):
    monkeypatch.setattr(judging, "ROW_S", 1e-4)
    options = {"seed": 3, "first": 0, "last": 3, "share": 0, "shares": 1, "seconds": 100.0}
    assert [row["calls"] for row in judging.random_calls("torch/vk", "cpu", **options)] == [1, 1, 1]


def test_what_is_asked_is_checked(kernel_file):
    """In this process: messages of files and names that cannot be, and of those that can."""

    def answers(*judged, **request):
        found = []
        request = {"judged": [str(each) for each in judged], "kernels": [], "seed": 0, "only": ["out"]} | request
        answer(request, torch.device("cpu"), lambda **message: found.append(message))
        return found

    found = answers(kernel_file(RIGHT), "mine/vk")
    assert found[0] == {"variants": ["mine/vk"]} and found[-1]["finding"]["status"] == "pass"
    (message,) = answers(kernel_file("import nothere", "bad.py"))
    assert message["usage"] == "bad.py, line 1: ModuleNotFoundError: No module named 'nothere'"
    assert "import nothere" in message["shown"]
    assert "there is no variant 'mine/kv'" in answers("mine/kv")[0]["usage"]
    assert answers("flashinfer/wy")[0]["usage"] == "flashinfer/wy has no decode kernel, and only those are judged"
    assert "there is no check 'nothing'" in answers("torch/vk", only=["nothing"])[0]["usage"]
