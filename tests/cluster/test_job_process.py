"""What the end of a job's process means: its exit status, and the statuses of its rows."""

import pytest

from gdn_lab.cluster.job import ERROR, INTERRUPTED, OK, REFUSED, WRONG
from gdn_lab.cluster.job_process import judged


@pytest.mark.parametrize(
    "code, statuses, status",
    [
        (0, set(), OK),
        (0, {"ok", REFUSED}, OK),
        (0, {"fact", REFUSED}, OK),  # studies whose results are facts: a server, a model's answers
        (0, {REFUSED}, REFUSED),
        (0, {"ok", WRONG, REFUSED}, WRONG),
        (2, {"ok"}, REFUSED),
        (1, {"ok"}, ERROR),
        (130, {"ok"}, INTERRUPTED),
        (-15, {"ok"}, INTERRUPTED),
    ],
)
def test_how_a_job_ended(code, statuses, status):
    assert judged(code, statuses, "a sentence")[0] == status
