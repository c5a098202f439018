"""Types of the columns of rows.parquet, whatever rows hold."""

import pytest

from gdn_lab.cluster.parquet import _kind, _type, write_parquet


@pytest.mark.parametrize(
    "values, kind",
    [
        ([1, 2], int),
        ([1, None], int),
        ([1, 2.5], float),
        ([True, False], bool),
        ([True, 1], str),
        ([1, "a"], str),
        ([[1], [2]], str),
        ([2**63 - 1, -(2**63)], int),
        ([1, 2**63], str),
        ([-(2**63) - 1], str),
        ([2.5, 10**400], str),
    ],
)
def test_the_type_of_a_column_holds_all_its_values(values, kind):
    assert _type({_kind(value) for value in values}) is kind


def test_whole_numbers_of_any_size_are_written(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (make sweep)")
    rows = [{"seed": 1}, {"seed": 2**64}, {"seed": None}]
    assert write_parquet(tmp_path / "rows.parquet", lambda: iter(rows)) == 3
    read = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["seed"] for row in read] == ["1", str(2**64), None]
