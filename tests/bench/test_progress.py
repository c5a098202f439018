"""The bar says how long is left, and does not flood a log."""

import io
import sys

from gdn_lab.bench.progress import progress


def test_a_log_gets_few_plain_lines(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    assert list(progress(range(1000), "sweep")) == list(range(1000))
    text = log.getvalue()
    assert text.isascii() and text.count("\r") <= 4
    assert "sweep: 100%" in text and "elapsed" in text and "left" in text


def test_fractions_of_a_total(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress(what="batches", total=2.5) as bar:
        for _ in range(5):
            bar.update(0.5)
        assert bar.n == 2.5


def test_in_a_notebook_it_writes_to_standard_output(monkeypatch):
    class Stream(io.StringIO):
        __module__ = "ipykernel.iostream"

    out = Stream()
    monkeypatch.setattr(sys, "stdout", out)
    list(progress(range(3), "cells"))
    assert "cells: 100%" in out.getvalue()
