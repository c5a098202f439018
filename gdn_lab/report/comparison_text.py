"""A Comparison as text for the terminal, as HTML for a page, and as what JSON holds."""

from collections import defaultdict

from .comparison import Comparison, OnlyIn, Time
from .text import aligned, as_html, listed, percent

POINT = ("batch", "tokens", "length")
SHORT = {
    "in_place": "in place",
    "gather_scatter": "gather and scatter",
    "cuda_graph_replay": "graph replay",
    "cupti_kernel": "kernel time",
}
FORMS = {  # of fields whose values say nothing by themselves
    "tp": "tp {}",
    "num_v_heads": "HV {}",
    "draft_tokens": "{} draft tokens",
    "acceptance": "acceptance {}",
    "ranks": "{} ranks",
    "rows": "{} rows",
    "hidden": "hidden {}",
    "ring_updates": "ring of {}",
    "toy": "toy {}",
}


class Words:
    """What the times of a comparison are called: only by fields that distinguish them."""

    def __init__(self, comparison: Comparison):
        keys = [one.key for one in (*comparison.changes, *comparison.only_in_a, *comparison.only_in_b)]
        names = dict.fromkeys(name for key in keys for name in key)
        self.varying = [name for name in names if len({key.get(name) for key in keys}) > 1]
        self.keep_name = not any("configuration" in key for key in keys)

    def what(self, key: dict) -> str:
        """ "triton/vk, in place, graph replay": all but the point."""
        parts = [f"{key['backend']}/{key['variant']}"] if self.keep_name and "backend" in key else []
        for name in self.varying:
            if name not in (*POINT, "backend", "variant", "phase", "num_k_heads") and key.get(name, "") != "":
                value = FORMS.get(name, "{}").format(key[name])
                parts.append(SHORT.get(value, value))
        if "phase" in self.varying and "mode" not in key:
            parts.append(key["phase"])
        return ", ".join(parts) or "time"

    def point(self, key: dict) -> str:
        """ "B = 64", "B = 64, T = 4", "8 × 1,024", or "" where the batch is not known."""
        if "length" in key:
            return f"{key['batch']} × {key['length']:,}"
        parts = [f"B = {key['batch']}"] if "batch" in key else []
        return ", ".join(parts + ([f"T = {key['tokens']}"] if key.get("phase") == "verify" else []))


def counted(comparison: Comparison) -> str:
    """How many times both runs have, and how many of them differ, in one sentence."""
    number, beyond = len(comparison.changes), comparison.beyond
    limit = percent(comparison.threshold)
    if not number:
        return "No time is in both runs."
    if not beyond:
        return f"None of {number} times differs by more than {limit} and beyond the noise."
    slower = sum(change.ratio > 1 for change in beyond)
    sides = [f"slower in B at {slower}"] * bool(slower) + [f"faster at {len(beyond) - slower}"] * (len(beyond) > slower)
    return f"{len(beyond)} of {number} times differ by more than {limit} and beyond the noise: {listed(sides)}."


def ratio_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """(headings, lines) of B's time over A's by what was timed and at which point; * is beyond the noise."""
    words, cells = Words(comparison), defaultdict(dict)
    points = {}
    for change in comparison.changes:
        point = words.point(change.key)
        points[point] = tuple(change.key.get(name, 0) for name in ("length", "tokens", "batch"))
        cells[words.what(change.key)][point] = f"{change.ratio:.3f}{'*' if change.beyond_noise else ' '}"
    columns = sorted(points, key=points.get)
    return ["B ÷ A", *columns], [[what, *(line.get(point, "") for point in columns)] for what, line in cells.items()]


def beyond_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """(headings, lines) of the times beyond the noise, the largest change first."""
    words, lines = Words(comparison), []
    for change in comparison.beyond:
        where = " at ".join(part for part in (words.what(change.key), words.point(change.key)) if part)
        lines.append([where, spread(change.a), spread(change.b), f"{change.ratio:.3f}"])
    return ["time, µs (p20–p80)", "A", "B", "B ÷ A"], lines


def spread(time: Time) -> str:
    """ "823.1 (822.7–823.7)"."""
    if time.p20_us is None or time.p80_us is None:
        return f"{time.median_us:,.1f}"
    return f"{time.median_us:,.1f} ({time.p20_us:,.1f}–{time.p80_us:,.1f})"


def only_lines(comparison: Comparison, only: list[OnlyIn]) -> list[str]:
    """What only one run has, a line for each thing timed, with all its points."""
    words, found = Words(comparison), defaultdict(list)
    for one in only:
        found[words.what(one.key), one.reason].append(words.point(one.key))
    lines = []
    for (what, reason), points in found.items():
        where = f": {'; '.join(filter(None, points))}" if any(points) else ""
        lines.append(f"{what}{where}" + (f" (the other run: {reason})" if reason else ""))
    return lines


# ---- for the terminal -----------------------------------------------------------------------------------------------


def text(comparison: Comparison) -> str:
    """Everything about one pair of runs, for the terminal."""
    parts = [f"{comparison.notebook}\n  A: {comparison.a}\n  B: {comparison.b}"]
    if comparison.settings:
        lines = [list(setting) for setting in comparison.settings]
        parts.append(aligned(["settings that differ", "A", "B"], lines, right=False))
    else:
        parts.append("No setting differs.")
    parts.append(counted(comparison))
    for headings, lines in (ratio_table(comparison), beyond_table(comparison)):
        if lines:
            parts.append(aligned(headings, lines))
    for name, only in (("A", comparison.only_in_a), ("B", comparison.only_in_b)):
        if only:
            lines = "\n".join(f"  {line}" for line in only_lines(comparison, only))
            parts.append(f"Only in {name} ({len(only)}):\n{lines}")
    return "\n\n".join(parts)


# ---- for a page -----------------------------------------------------------------------------------------------------


def html(comparison: Comparison) -> str:
    """The same as the body of a page, with every time that both have. Every name is escaped."""
    parts = [
        f"<h2>{as_html(comparison.notebook)}</h2>",
        f"<p>A: {as_html(comparison.a)}<br>B: {as_html(comparison.b)}</p>",
    ]
    settings = [list(setting) for setting in comparison.settings]
    parts += [_table(["setting that differs", "A", "B"], settings, "words")] if settings else []
    parts += [] if settings else ["<p>No setting differs.</p>"]
    parts.append(f'<p class="answer">{as_html(counted(comparison))}</p>')
    for headings, lines in (ratio_table(comparison), beyond_table(comparison)):
        parts += [_table(headings, lines)] if lines else []
    for name, only in (("A", comparison.only_in_a), ("B", comparison.only_in_b)):
        if only:
            lines = "".join(f"<li>{as_html(line)}</li>" for line in only_lines(comparison, only))
            parts.append(f"<h3>Only in {name} ({len(only)})</h3><ul>{lines}</ul>")
    words = Words(comparison)
    every = [
        [words.what(each.key), words.point(each.key), spread(each.a), spread(each.b), f"{each.ratio:.3f}"]
        for each in comparison.changes
    ]
    if every:
        table = _table(["time, µs (p20–p80)", "at", "A", "B", "B ÷ A"], every)
        parts.append(f"<details><summary>All {len(every)} times in both</summary>{table}</details>")
    return "\n".join(parts)


def _table(headings: list[str], lines: list[list[str]], kind: str = "") -> str:
    head = "".join(f"<th>{as_html(heading)}</th>" for heading in headings)
    body = "\n".join(f"<tr>{''.join(map(_cell, line))}</tr>" for line in lines)
    name = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{name}><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _cell(cell: str) -> str:
    return f"<td><b>{as_html(cell)}</b></td>" if cell.endswith("*") else f"<td>{as_html(cell.strip())}</td>"


def as_json(comparison: Comparison) -> dict:
    """What JSON holds of it: every field, named tuples as objects."""
    changes = [change._asdict() | {"a": change.a._asdict(), "b": change.b._asdict()} for change in comparison.changes]
    only = {
        name: [one._asdict() | {"time": one.time._asdict()} for one in getattr(comparison, name)]
        for name in ("only_in_a", "only_in_b")
    }
    settings = [dict(zip(("setting", "a", "b"), each, strict=True)) for each in comparison.settings]
    return comparison._asdict() | {"settings": settings, "changes": changes} | only
