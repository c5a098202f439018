"""Rows of a run are written while it runs, and all of them whatever ends it."""

import threading

import pytest

from gdn_lab.engine.row_log import RowLog


def step(index):
    return {"type": "step", "index": index, "kind": "decode", "batch": 2, "tokens": 2, "gpu_us": 1.5, "more": "x"}


def test_rows_come_in_columns_and_in_order():
    rows = []
    with RowLog(rows.append, {"phase": "serving", "serve": 3}, period_s=0.001) as log:
        for index in range(50):
            log(step(index))
        log({"type": "request", "id": 7, "outcome": "refused", "reason": "too long"})
    steps = [row for row in rows if row["type"] == "steps"]
    assert sum((row["index"] for row in steps), []) == list(range(50))
    assert all(row["serve"] == 3 and row["status"] == "fact" and "more" not in row for row in rows)
    (requests,) = [row for row in rows if row["type"] == "requests"]
    assert (requests["id"], requests["outcome"], requests["reason"]) == ([7], ["refused"], ["too long"])


def test_rows_are_written_before_the_end():
    written = threading.Event()
    with RowLog(lambda row: written.set(), {}, period_s=0.001) as log:
        log(step(0))
        assert written.wait(10)


def test_an_interrupt_loses_no_row():
    rows = []
    with pytest.raises(KeyboardInterrupt), RowLog(rows.append, {}) as log:
        log(step(0))
        raise KeyboardInterrupt
    assert rows[0]["index"] == [0]


def test_a_row_that_cannot_be_written_is_an_error_at_the_end():
    def full(row):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), RowLog(full, {}) as log:
        log(step(0))
