"""The page of a verdict: the words first, then each check, the times, and what limits the kernel."""

import base64
from pathlib import Path

from ..files import replacing
from ..report.text import as_html, cut, micro, percent, provenance
from ..report.text import sentence_as_html as sentence
from ..studies.decode_kernels import yours
from ..verdict.verdict import CORRECT, REFUSED, Verdict, headline
from .pages import image
from .shell import badge, page

KINDS = {CORRECT: "right", "pass": "right", yours.FASTER: "right", REFUSED: "", yours.EQUAL: ""}
SPEED = ["B", "against", "kernel", "yours", "its time", "speed-up", "range", "word"]


def write(path: Path, verdict: Verdict, run: dict, figure: tuple[Path, str] | None = None) -> None:
    """Write verdict.html. run: what run.json holds. figure: the SVG of the speed-up and its title."""
    with replacing(path) as partial:
        partial.write_text(html(verdict, run, figure), encoding="utf-8")


def html(verdict: Verdict, run: dict, figure: tuple[Path, str] | None = None) -> str:
    """Return the whole page. No name that comes from the kernel's file has an effect as markup."""
    kind = "" if verdict.correctness in (CORRECT, REFUSED) else " wrong"
    said = [headline(verdict), *verdict.sentences, *verdict.notes]
    points = "".join(f"<li>{sentence(each)}</li>" for each in said)
    answer = f'<p>{_badge(verdict.correctness)} <span class="quiet">{as_html(verdict.device)}</span></p>'
    parts = [
        f"<h1>{as_html(verdict.kernel)}</h1>",
        f'<p class="quiet">{as_html(Path(verdict.file).name)} {verdict.sha256[:16]}</p>',
        f'<section class="answer{kind}" aria-label="The answer">{answer}<ul>{points}</ul></section>',
        "<h2>Correct?</h2>",
        _table(["", "check", "what it did or found"], [_checked(check) for check in verdict.checks], "words"),
    ]
    if verdict.speed:
        parts += ["<h2>Faster?</h2>", _figure(figure), _table(SPEED, [_against(each) for each in verdict.speed])]
    if verdict.limits:
        parts += ["<h2>What limits it?</h2>", _table(LIMITS, [_limit(each) for each in verdict.limits])]
    if verdict.launched:
        parts += ["<h3>Kernels of a call</h3>", _table(LAUNCHED, [_launched(each) for each in verdict.launched])]
    if verdict.nsight_compute:
        names = list(verdict.nsight_compute[0])
        lines = [[as_html(cut(each.get(name, ""), 60)) for name in names] for each in verdict.nsight_compute]
        parts += ["<h3>Nsight Compute</h3>", _table(names, lines)]
    parts.append(f'<p class="quiet">{as_html(provenance(run))}</p>')
    return page(f"{verdict.kernel} · gdn_lab", '<main class="wide">\n' + "\n".join(parts) + "\n</main>")


LIMITS = ["B", "time", "its bytes take", "its kernels take", "kernels a call", "GB/s", "of measured bandwidth"]
LAUNCHED = ["kernel", "grid", "block", "registers a thread", "shared memory, bytes a block", "of an SM's warps"]


def _badge(word: str) -> str:
    return badge(word, KINDS.get(word, "wrong"))


def _checked(check) -> list[str]:
    return [_badge(check.status), as_html(check.check), sentence(check.sentence)]


def _against(each: yours.Against) -> list[str]:
    cells = [str(each.batch), each.opponent, each.other, micro(each.us), micro(each.other_us)]
    cells += [f"{each.speed_up:.3f}×", f"{each.low:.3f} to {each.high:.3f}"]
    return [*map(as_html, cells), _badge(each.word)]


def _limit(each) -> list[str]:
    alone = "" if each.kernel_us is None else micro(each.kernel_us)
    cells = [str(each.batch), micro(each.us), micro(each.floor_us), alone, str(each.kernels or "")]
    return [as_html(cell) for cell in (*cells, f"{each.gb_per_s:,.0f}", percent(each.share))]


def _launched(each) -> list[str]:
    occupancy = "" if each.occupancy is None else percent(each.occupancy)
    sizes = [" × ".join(map(str, size)) for size in (each.grid, each.block)]
    return [
        as_html(cell) for cell in (cut(each.name, 60), *sizes, str(each.registers), f"{each.shared_bytes:,}", occupancy)
    ]


def _figure(figure: tuple[Path, str] | None) -> str:
    if figure is None:
        return ""
    path, alt = figure
    return image("image/svg+xml", base64.b64encode(path.read_bytes()).decode(), {"alt": alt})


def _table(headings: list[str], lines: list[list[str]], kind: str = "") -> str:
    """A table of cells that are HTML already; headings are text."""
    head = "".join(f"<th>{as_html(heading)}</th>" for heading in headings)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    name = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{name}><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
