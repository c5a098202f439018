"""runs/index.html, and an index.html for each command that ran several notebooks: a card for each run."""

import base64
import html
import json
import os
from pathlib import Path

from ..files import replacing
from ..names import LIBRARIES
from ..report.text import device_name, sm_clock
from ..report.text import sentence_as_html as sentence
from ..studies import studies
from . import kept_answer, pages
from .run import duration
from .run_folders import BATCH, RunFolder, batches, newest_of_each, run_folders, when
from .shell import badge, page
from .since import changes

KINDS = {"complete": "right", "measured here": "right", "recorded": "recorded", "running": ""}
EARLIER = 60  # runs in the table below the cards


def write_index(root: Path) -> Path:
    """Write <root>/index.html: the newest run of each notebook, what was run together, and the earlier runs."""
    runs = run_folders(root)
    newest = newest_of_each(runs)
    body = [
        f"<main class='wide'><h1>Runs</h1>{_machine(newest)}",
        _cards(newest, runs, root),
        _together(root),
        _sweeps(root),
        _earlier(runs, root),
    ]
    return _write(root / "index.html", page("Runs · gdn_lab", "\n".join(body) + "</main>"))


def write_batch(folder: Path, about: dict) -> Path:
    """Write batch.json and index.html of a command that ran several notebooks.

    folder: lies in the folder of runs. about: {"command", "seconds", "status", "runs": names of folders}.
    """
    root = folder.parent
    _write(folder / BATCH, json.dumps(about, indent=2) + "\n")
    runs = run_folders(root)
    of_batch = sorted((run for run in runs if run.folder.name in about["runs"]), key=lambda run: run.notebook)
    title = f"Run of {when(folder.name.split('-')[0])}"
    command = f"<p><code>{html.escape(about['command'])}</code>: {about['status']} in {duration(about['seconds'])}.</p>"
    links = '<nav class="pages"><a href="../index.html">All runs</a></nav>'
    body = [f"<main class='wide'>{links}<h1>{title}</h1>{_machine(of_batch)}{command}", _cards(of_batch, runs, folder)]
    return _write(folder / "index.html", page(f"{title} · gdn_lab", "\n".join(body) + "</main>"))


def link_pages(root: Path, names: list[str] | None = None) -> None:
    """Write the pages of the newest runs again, each with links to the others. names: folders of runs to prefer."""
    runs = run_folders(root)
    preferred = [run for run in runs if run.folder.name in (names or ())]
    newest = [run for run in newest_of_each(preferred + runs) if run.page and run.executed]
    for run in newest:
        links = {other.notebook: _relative(other.page, run.folder) for other in newest}
        links |= {"index": _relative(root / "index.html", run.folder)}
        _write(run.page, pages.html(run.executed, links))


def _write(path: Path, text: str) -> Path:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _machine(runs: list[RunFolder]) -> str:
    """Return a line on machine, versions, commit and clocks of the newest run."""
    run = max((run for run in runs if run.info.get("environment")), key=lambda run: run.start, default=None)
    if run is None:
        return ""
    facts = run.info["environment"]
    parts = [device_name(run.info)]
    parts += [f"driver {facts['driver']}"] if facts.get("driver") else []
    parts += [clock for each in runs for clock in sm_clock(each.info)][:1]
    parts += [f"{name} {facts[name]}" for name in LIBRARIES if facts.get(name)]
    if facts.get("git_commit"):
        parts.append(f"commit {facts['git_commit'][:10]}{' with changes' if facts.get('git_dirty') else ''}")
    text = html.escape(" · ".join(parts))
    if not facts.get("gpu_name"):
        text += ". No GPU here: kernels are checked, nothing is ranked, and recorded GPU results are shown."
    return f'<p class="quiet">{text}</p>'


def _cards(runs: list[RunFolder], all_runs: list[RunFolder], folder: Path) -> str:
    cards = "\n".join(_card(run, _previous(run, all_runs), folder) for run in runs)
    return f'<div class="cards">\n{cards}\n</div>' if cards else "<p>There are no runs yet: make run.</p>"


def _previous(run: RunFolder, runs: list[RunFolder]) -> RunFolder | None:
    """Return the run of the same notebook before this one that was finished. runs: the newest first."""
    place = [each.folder for each in runs].index(run.folder)
    earlier = (each for each in runs[place + 1 :] if each.notebook == run.notebook)
    return next((each for each in earlier if each.status == "complete"), None)


def _card(run: RunFolder, before: RunFolder | None, folder: Path) -> str:
    found = run.answer or {"sentences": [], "source": "", "device": "", "alt": ""}
    wrong = run.status not in ("complete", "running")
    heading = html.escape(_questions().get(run.notebook, run.notebook))
    if run.page:
        heading = f'<a href="{html.escape(_relative(run.page, folder))}">{heading}</a>'
    badges = badge(_status(run), "wrong" if wrong else KINDS.get(run.status, ""))
    badges += f" {badge(found['source'], KINDS.get(found['source'], ''))}" if found["source"] else ""
    parts = [f'<p class="quiet">{html.escape(run.notebook)}</p><h3>{heading}</h3><p>{badges}</p>']
    parts += [f"<p>{sentence(found['sentences'][0])}</p>"] if found["sentences"] else []
    parts += _thumbnail(run.folder, found["alt"])
    parts += [f'<p class="quiet">{html.escape(found["device"])}</p>'] if found["device"] else []
    if before is not None and (changed := changes(run, before)):
        points = "".join(f"<li>{sentence(each)}</li>" for each in changed)
        parts.append(f'<details><summary>Since {when(before.start)}</summary><ul class="quiet">{points}</ul></details>')
    parts.append(f'<p class="quiet">{when(run.start)}{_took(run)} · {_files(run, folder)}</p>')
    return f'<article class="card{" wrong" if wrong else ""}" id="{run.notebook}">{"".join(parts)}</article>'


def _questions() -> dict[str, str]:
    return {study.notebook: study.question for study in studies()}


def _status(run: RunFolder) -> str:
    if run.status == "failed" and run.executed:
        import nbformat

        if failed := pages.failed_cell(nbformat.read(run.executed, as_version=4)):
            return f"failed in cell {failed[0]}"
    return run.status


def _thumbnail(folder: Path, alt: str) -> list[str]:
    path = folder / kept_answer.THUMBNAIL
    if not path.is_file():
        return []
    data = base64.b64encode(path.read_bytes()).decode()
    return [f'<img src="data:image/webp;base64,{data}" alt="{html.escape(alt)}">']


def _took(run: RunFolder) -> str:
    return f" · {duration(run.seconds)}" if run.seconds is not None else ""


def _files(run: RunFolder, folder: Path) -> str:
    """Return links to the rows and the executed notebook."""
    paths = {"rows": run.folder / "rows.jsonl", "run.json": run.folder / "run.json", "notebook": run.executed}
    links = [
        f'<a href="{html.escape(_relative(path, folder))}">{name}</a>'
        for name, path in paths.items()
        if path is not None and path.is_file()
    ]
    return " · ".join(links)


def _together(root: Path) -> str:
    """Return the list of commands that ran several notebooks."""
    points = "".join(
        f'<li><a href="{folder.name}/index.html">{when(folder.name.split("-")[0])}</a>: '
        f"{len(about['runs'])} notebooks, {html.escape(about['status'])}, {duration(about['seconds'])}</li>"
        for folder, about in batches(root)[:EARLIER]
    )
    return f"<h2>Run together</h2><ul>{points}</ul>" if points else ""


def _sweeps(root: Path) -> str:
    """Return a link to the page of all sweeps (sweep_page.py), if there are any."""
    there = (root / "sweeps" / "index.html").is_file()
    return '<h2>Sweeps</h2><p><a href="sweeps/index.html">All sweeps</a></p>' if there else ""


def _earlier(runs: list[RunFolder], root: Path) -> str:
    """Return a table of all runs, the newest first."""
    lines = "".join(
        f"<tr><td>{when(run.start)}</td><td>{_link(run, root)}</td><td>{html.escape(_status(run))}</td>"
        f"<td>{_took(run).removeprefix(' · ')}</td><td>{run.info.get('rows', '')}</td></tr>"
        for run in runs[:EARLIER]
    )
    if not lines:
        return ""
    head = "<tr><th>started</th><th>notebook</th><th>status</th><th>time</th><th>rows</th></tr>"
    left = f"<p class='quiet'>{len(runs) - EARLIER} older ones are not listed.</p>" if len(runs) > EARLIER else ""
    table = f"<table class='words'><thead>{head}</thead><tbody>{lines}</tbody></table>"
    table = f"<div class='scroll' tabindex='0'>{table}</div>"
    return f"<h2>All runs</h2>{table}{left}<p class='quiet'><code>gdn-lab clean --keep 10</code> removes old ones.</p>"


def _link(run: RunFolder, root: Path) -> str:
    name = html.escape(run.notebook)
    return f'<a href="{html.escape(_relative(run.page, root))}">{name}</a>' if run.page else name
