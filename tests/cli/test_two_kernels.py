"""A file whose first kernel ends the process: the second was not judged, and is not said to be refused."""

import pytest

from gdn_lab.cli.judge_command import checked_apart

FILE = """
import os
from gdn_lab import variant

@variant("mine/a", layout="VK")
def a(q, k, v, a, b, *, A_log, dt_bias, state, indices, out, scale, use_qk_l2norm):
    os._exit(3)

@variant("mine/b", layout="VK")
def b(q, k, v, a, b, *, A_log, dt_bias, state, indices, out, scale, use_qk_l2norm):
    return out
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "two.py"
    path.write_text(FILE)
    return str(path)


def test_what_was_not_judged_is_an_error(path):
    a, b = checked_apart(path, 0, ["reference"])
    assert a.died.startswith("the process ended with status 3") and a.correctness == "error"
    assert b.died == "not judged, as the process had ended" and b.correctness == "error"
