"""All rows of a sweep as one Parquet file, written in batches: the memory that it takes does not grow with the rows."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from ..files import replacing

BATCH = 5000  # rows in memory


def write_parquet(path: Path, rows: Callable[[], Iterator[dict]]) -> int:
    """Write every row of rows(), which is called twice, and return how many. Lists and dictionaries become JSON text.

    A column that holds whole numbers and fractions is of fractions; one that holds numbers and text is of text, as is
    one with a whole number that 64 bits cannot hold.
    ModuleNotFoundError without pyarrow.
    """
    import pyarrow
    import pyarrow.parquet

    kinds: dict[str, set] = {}
    for row in rows():
        for name, value in row.items():
            kinds.setdefault(name, set()).add(_kind(value))
    of = {name: _type(found) for name, found in kinds.items()}
    arrow = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    schema = pyarrow.schema([(name, arrow[kind]) for name, kind in of.items()])
    count, left = 0, rows()
    with replacing(path) as partial, pyarrow.parquet.ParquetWriter(partial, schema) as writer:
        while some := list(islice(left, BATCH)):
            columns = [[_cell(row.get(name), kind) for row in some] for name, kind in of.items()]
            arrays = [pyarrow.array(cells, arrow[of[name]]) for name, cells in zip(of, columns, strict=True)]
            writer.write_table(pyarrow.table(arrays, schema=schema))
            count += len(some)
    return count


def _kind(value) -> type:
    """The type of a value; text for a whole number of more than 64 bits."""
    return str if type(value) is int and not -(2**63) <= value < 2**63 else type(value)


def _type(found: set[type]) -> type:
    found = found - {type(None)}
    if found <= {int, float} and found:
        return float if float in found else int
    return bool if found == {bool} else str


def _cell(value, kind: type):
    if value is None:
        return None
    if kind is str and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return kind(value)
