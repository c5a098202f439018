"""Check and time sums over ranks: every variant in processes of its own, so that one that hangs stops no other."""

import functools
import json
from itertools import product

from ...bench.rows import Rows
from ...engine import ranks as rank_processes
from ...engine.communicator_choice import ADD_NORM, SUM
from .measure import DTYPE, Point, measure

PHASE, BACKEND = "all_reduce", "communicator"
CALLS = 40  # in a graph, one after the other


def all_reduce_sweep(
    variants: list[str],
    ranks: list[int],
    rows: list[int],
    hiddens: list[int],
    *,
    device: str,
    samples: int,
    seed: int = 0,
    calls: int = CALLS,
    timeout_s: float = 120.0,
    run=None,
) -> list[dict]:
    """A row for each number of ranks, variant, hidden size, number of rows and operation, written when it is measured.

    variants: names of engine/communicator_variants.py. device: "cuda" or "cpu". timeout_s: of one variant on one number
    of ranks; what it has not measured by then is refused, with how far it came. run: a Run, or None.
    """
    found = Rows(run, {"phase": PHASE, "backend": BACKEND, "device": device, "dtype": str(DTYPE).split(".")[1]})
    points = [Point(*point[::-1]) for point in product(hiddens, rows, (SUM, ADD_NORM))]
    for count, variant in product(ranks, variants):
        case = {"ranks": count, "variant": variant}
        left = list(points)

        def read(line: str, case=case, left=left) -> None:
            if not line.startswith('{"operation"'):
                return
            row = json.loads(line)
            left.remove(Point(*(row[name] for name in Point._fields)))
            found.add(case | row | {"bytes": row["rows"] * row["hidden"] * DTYPE.itemsize})

        work = functools.partial(measure, calls=calls, samples=samples, seed=seed)
        try:
            rank_processes.start(count, work, variant, points, device=device, timeout_s=timeout_s, on_line=read)
        except rank_processes.RankError as error:
            for point in left:
                nbytes = point.rows * point.hidden * DTYPE.itemsize
                found.add(case | point._asdict() | {"status": "refused", "reason": str(error), "bytes": nbytes})
    return list(found)
