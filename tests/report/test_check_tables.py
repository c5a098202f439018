"""The table of what was checked where nothing is ranked."""

import pytest

from gdn_lab.report.checks import check_caption, check_table

ROW = {"status": "ok", "phase": "decode", "backend": "torch", "variant": "vk", "indexing": "in_place", "tokens": 1}
ROW |= {"num_k_heads": 1, "num_v_heads": 4, "max_abs_error_state": 2e-3, "checked": ["random inputs", "q = k"]}


def test_a_line_is_a_kernel_and_a_call_with_its_largest_errors():
    rows = [ROW | {"batch": 4, "max_abs_error": 1e-4}, ROW | {"batch": 1, "max_abs_error": 3e-4}]
    rows += [ROW | {"batch": 1, "indexing": "gather_scatter", "status": "wrong"}, ROW | {"status": "refused"}]
    table = check_table(rows)
    assert list(table.call) == ["decode in place", "decode gather scatter"]
    assert list(table.verdict) == ["right", "wrong"]
    assert table.B[0] == "1 and 4" and table["largest error of o"][0] == pytest.approx(3e-4)
    assert table.inputs[0] == "random inputs, q = k"
    assert check_caption(rows) == "Checked on this CPU, and not ranked, at HK 1, HV 4"


def test_a_step_is_one_line_and_columns_that_say_nothing_are_left_out():
    step = {"status": "ok", "phase": "step", "configuration": "torch", "mode": "eager", "batch": 4, "tokens": 4}
    table = check_table([step | {"part": part, "max_abs_error": 0.01} for part in ("step", "gdn", "router")])
    assert list(table.call) == ["step eager"]
    assert list(table.columns) == ["kernel", "call", "B", "T", "verdict", "largest error of o"]
