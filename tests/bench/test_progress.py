"""The bar says how long is left, and does not flood a log."""

import io
import sys

from gdn_lab.bench.progress import part_of, progress_bar


def test_a_log_gets_few_plain_lines(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    assert list(progress_bar(range(1000), "sweep")) == list(range(1000))
    text = log.getvalue()
    assert text.isascii() and text.count("\r") <= 4
    assert "sweep: 100%" in text and "elapsed" in text and "left" in text


def test_fractions_of_a_total(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(what="batches", total=2.5) as bar:
        for _ in range(5):
            bar.update(0.5)
        assert bar.n == 2.5


def test_in_a_notebook_it_writes_to_standard_output(monkeypatch):
    class Stream(io.StringIO):
        __module__ = "ipykernel.iostream"

    out = Stream()
    monkeypatch.setattr(sys, "stdout", out)
    list(progress_bar(range(3), "cells"))
    assert "cells: 100%" in out.getvalue()


def test_a_part_of_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(what="batches", total=4) as bar:
        advance = part_of(bar, 3)
        for _ in range(4):
            advance(0.25)
        assert bar.n == 3


def test_a_hidden_bar_prints_nothing(capsys):
    with progress_bar(what="batches", total=2, show=False) as bar:
        bar.set_postfix_str("B = 1")
        part_of(bar, 2)(1.0)
    assert capsys.readouterr() == ("", "")
