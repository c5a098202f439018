"""sweep.html of a sweep's folder: heat maps over the swept axes, what failed and why, every job; and rows.parquet."""

import html
from collections import Counter, defaultdict
from pathlib import Path

from ..backends.registry import VARIANTS
from ..cluster.best_variants import Best, best_by_point
from ..cluster.gather import ABOUT, all_rows, described, read_about, rows_of
from ..cluster.job import STATUSES
from ..cluster.journal import Journal
from ..cluster.parquet import write_parquet
from ..files import replacing
from ..report.text import number as formatted
from ..report.text import sentence_as_html as sentence
from .run import say
from .shell import badge, page

MOST_JOBS = 1000  # in the table of all jobs
PARQUET = "rows.parquet"
KINDS = {"ok": "right", "refused": ""}
BASELINES = " and ".join(name for name, variant in VARIANTS.items() if variant.role == "baseline")
MAPS = {  # {title: what its cells and their shade are}
    "fastest variant": "Median time of a call in place, µs; the shade is the saving of the next map.",
    "saving over the best baseline": f"Over the faster of {BASELINES}, where the job timed it; orange is a loss.",
    "share of the measured bandwidth": "Of the fastest variant, of the bandwidth measured in its own process.",
}


def write_pages(folder: Path) -> Path:
    """Write rows.parquet, sweep.html, and index.html next to the folder; return the page of the sweep."""
    journal = Journal(folder)
    jobs = {job: described(folder, job) | line for job, line in journal.final.items()}
    about = read_about(folder)
    note = _parquet(folder, journal.final)
    path = folder / "sweep.html"
    links = '<nav class="pages"><a href="../index.html">All sweeps</a></nav>'
    body = [f"<main class='wide'>{links}<h1>Sweep</h1>", _about(about, jobs, note), *_studies(folder, jobs)]
    names = _names(jobs)
    body += [_failed(jobs, names), _all(folder, jobs, names), "</main>"]
    _write(path, page("Sweep · gdn_lab", "\n".join(body)))
    _write(folder.parent / "index.html", page("Sweeps · gdn_lab", _index(folder.parent)))
    return path


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _parquet(folder: Path, final: dict[str, dict]) -> str:
    """Write rows.parquet; return what the page says of it."""
    try:
        count = write_parquet(folder / PARQUET, lambda: all_rows(folder, final))
    except ModuleNotFoundError:
        say(f"{PARQUET} was not written: pyarrow is not installed; make sweep installs it.")
        return "No Parquet file: pyarrow is not installed."
    return f'<a href="{PARQUET}">{PARQUET}</a>: {count} rows.'


def _about(about: dict, jobs: dict[str, dict], note: str) -> str:
    counts = Counter(job["status"] for job in jobs.values())
    listed = " ".join(badge(f"{counts[s]} {s}", KINDS.get(s, "wrong")) for s in STATUSES if counts[s])
    hours = sum(job["seconds"] * len(job["gpus"]) for job in jobs.values()) / 3600
    of = "GPU hours" if any(job["gpu"] != "cpu" for job in jobs.values()) else "hours without a GPU"
    hosts = len({job["host"] for job in jobs.values()})
    return (
        f"<p><code>{html.escape(about['command'])}</code></p><p>{listed}</p>"
        f"<p class='quiet'>{len(jobs)} jobs, {hours:.2f} {of} on {hosts} host{'s' * (hosts != 1)}, "
        f"commit {html.escape(about['commit'][:10])}. {note}</p>"
    )


# ---- heat maps ------------------------------------------------------------------------------------------------------


def _groups(jobs: dict[str, dict]) -> list[tuple[tuple[str, str], dict[str, dict]]]:
    """((study, GPU type), its jobs) in order."""
    groups = defaultdict(dict)
    for job_id, job in jobs.items():
        groups[job["study"], job["gpu"]][job_id] = job
    return sorted(groups.items())


def _studies(folder: Path, jobs: dict[str, dict]) -> list[str]:
    return [_maps(folder, study, gpu, group) for (study, gpu), group in _groups(jobs)]


def _maps(folder: Path, study: str, gpu: str, jobs: dict[str, dict]) -> str:
    """Heat maps of one study on one type of GPU: jobs down, the points of their rows across."""
    axes = _axes(jobs)
    lines = {}
    for job_id, job in jobs.items():
        if job["status"] in ("ok", "wrong") and (found := best_by_point(rows_of(folder, job_id))):
            lines[tuple(job["parameters"][axis] for axis in axes)] = found
    heading = f"<h2>{html.escape(study)} on {html.escape(gpu)}</h2>"
    if not lines:
        return f"{heading}<p>No kernel was timed on a GPU by these jobs; their rows are in the table of all jobs.</p>"
    return heading + "".join(_map(number, axes, lines) for number in range(len(MAPS)))


def _axes(jobs: dict[str, dict]) -> list[str]:
    """The parameters in which the jobs differ."""
    some = list(jobs.values())
    names = some[0]["parameters"]
    return [name for name in names if len({job["parameters"].get(name) for job in some}) > 1]


def _map(number: int, axes: list[str], lines: dict[tuple, dict[str, Best]]) -> str:
    points = list(dict.fromkeys(point for found in lines.values() for point in found))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in [*axes, *points])
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{html.escape(value)}</td>" for value in values)
        + "".join(_cell(number, found.get(point)) for point in points)
        + "</tr>"
        for values, found in sorted(lines.items(), key=lambda item: [_sortable(value) for value in item[0]])
    )
    table = f"<table class='words'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    title, words = list(MAPS.items())[number]
    return f"<h3>{title.capitalize()}</h3><p class='quiet'>{words}</p><div class='scroll' tabindex='0'>{table}</div>"


def _sortable(value: str) -> tuple:
    return (0, int(value), "") if value.isdecimal() else (1, 0, value)


def _cell(number: int, best: Best | None) -> str:
    """One cell; the deeper the green the larger the saving or the share, orange for a loss."""
    if best is None:
        return "<td></td>"
    value = (best.saving, best.saving, best.share_of_roof)[number]
    text = "" if value is None else formatted(value, ".0%")
    if number == 0:
        text = f"{html.escape(best.variant)}<br><span class='quiet'>{best.median_us:.4g}</span>"
    if value is None:
        return f"<td>{text}</td>"
    colour = "46, 125, 50" if value >= 0 else "230, 81, 0"
    return f'<td style="background: rgba({colour}, {min(abs(value), 1) * 0.6:.2f})">{text}</td>'


# ---- tables ---------------------------------------------------------------------------------------------------------


def _failed(jobs: dict[str, dict], names: dict[str, str]) -> str:
    lines = "".join(
        f"<tr><td>{html.escape(job['status'])}</td><td>{names[job_id]}</td>"
        f"<td>{html.escape(job['host'])}, GPU {html.escape(', '.join(job['gpus']))}</td>"
        f"<td>{sentence(job['reason'])}</td></tr>"
        for job_id, job in jobs.items()
        if job["status"] != "ok"
    )
    if not lines:
        return "<h2>What failed</h2><p>Nothing: every job is ok.</p>"
    head = "<tr><th>status</th><th>job</th><th>where</th><th>why</th></tr>"
    table = f"<table class='words'><thead>{head}</thead><tbody>{lines}</tbody></table>"
    return f"<h2>What failed</h2><div class='scroll' tabindex='0'>{table}</div>"


def _all(folder: Path, jobs: dict[str, dict], names: dict[str, str]) -> str:
    some = sorted(jobs.items(), key=lambda item: (item[1]["study"], item[1]["gpu"], str(item[1]["parameters"])))
    lines = "".join(
        f"<tr><td>{names[job_id]}</td><td>{html.escape(job['status'])}</td><td>{job['seconds']:.1f}</td>"
        f"<td>{_files(folder, job_id)}</td></tr>"
        for job_id, job in some[:MOST_JOBS]
    )
    head = "<tr><th>job</th><th>status</th><th>seconds</th><th>files</th></tr>"
    table = f"<table class='words'><thead>{head}</thead><tbody>{lines}</tbody></table>"
    left = f"<p class='quiet'>{len(jobs) - MOST_JOBS} more are in {PARQUET}.</p>" if len(jobs) > MOST_JOBS else ""
    return f"<h2>All jobs</h2><div class='scroll' tabindex='0'>{table}</div>{left}"


def _names(jobs: dict[str, dict]) -> dict[str, str]:
    """{job: its study, GPU type and what it is of the swept axes}, as HTML; all parameters are folded below it."""
    found = {}
    for (study, gpu), group in _groups(jobs):
        axes = _axes(group)
        for job_id, job in group.items():
            short = ", ".join(f"{axis} {job['parameters'][axis]}" for axis in axes)
            every = ", ".join(f"{name} {value}" for name, value in job["parameters"].items())
            summary = html.escape(f"{study} on {gpu}" + (f": {short}" if short else ""))
            found[job_id] = f"<details><summary>{summary}</summary>{html.escape(every)}</details>"
    return found


def _files(folder: Path, job_id: str) -> str:
    kept = sorted(path for path in (folder / "jobs" / job_id).iterdir() if path.suffix in (".html", ".jsonl", ".txt"))
    return " · ".join(f'<a href="jobs/{job_id}/{html.escape(path.name)}">{html.escape(path.name)}</a>' for path in kept)


def _index(root: Path) -> str:
    """A line for each sweep, the newest first."""
    points = []
    for path in sorted(root.glob("*/sweep.html"), reverse=True):
        name = html.escape(path.parent.name)
        points.append(f'<li><a href="{name}/sweep.html">{name}</a>: {_command(path.parent)}</li>')
    return f"<main class='wide'><h1>Sweeps</h1><ul>{''.join(points)}</ul></main>"


def _command(folder: Path) -> str:
    """The command of a sweep; of one whose sweep.json is damaged, that it is."""
    try:
        return f"<code>{html.escape(read_about(folder)['command'])}</code>"
    except (OSError, ValueError):
        return f"damaged: its {ABOUT} is missing or cannot be read"
