"""Every recorded server in one table: a model on a number of GPUs, its TPOT by configuration, its tokens per second."""

from collections import Counter
from pathlib import Path

from ...report.nearest import gpu_name
from ...report.recorded import DATA, measured, recorded_runs
from .recorded_serving import NOTEBOOK

SHOWN = ("before", "before-32", "after", "best")


def servers_table(data: Path = DATA) -> str:
    """Markdown: a line for each recorded server of several configurations; "" for none.

    Of several runs of one model on as many GPUs of one kind, the one with the most points. All at one C, the one at
    which most served every configuration and of these the largest; a server without it at the largest that it has.
    """
    from .serving_rows import ServingRows

    found: dict[tuple, list] = {}
    for gpu, folder in recorded_runs(data):
        if not folder.startswith(NOTEBOOK):
            continue
        run, rows = measured(gpu, folder, data)
        served = ServingRows(rows, run)
        if len(served.configurations) > 1:
            found.setdefault((gpu, served.first["model"], served.first["ranks"]), []).append(served)
    servers = [max(runs, key=lambda each: len(each.points)) for runs in found.values()]
    if not servers:
        return ""
    counts = Counter(concurrency for served in servers for concurrency in served.whole)
    common = max(counts, key=lambda concurrency: (counts[concurrency], concurrency), default=None)
    lines = [_line(served, common if common in served.whole else served.compared_at) for served in servers]
    head = ["model", "GPUs", "C", *(f"{name}, ms" for name in SHOWN), "tokens/s of best"]
    return "\n".join([_cells(head), "|---|---|" + "---:|" * (len(head) - 2), *map(_cells, sorted(lines))])


def _line(served, concurrency: int) -> list[str]:
    row, points = served.first, served.at(concurrency)
    times = [f"{points[name].run['tpot_ms']:.1f}" if name in points else "" for name in SHOWN]
    best = f"{points['best'].run['output_throughput']:,.0f}" if "best" in points else ""
    return [row["model"], f"{row['ranks']} × {gpu_name(served.run)}", str(concurrency), *times, best]


def _cells(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
