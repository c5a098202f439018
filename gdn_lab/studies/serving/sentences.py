"""The answer of notebook 09 in sentences, made of ServingRows; a function returns None where the rows do not tell."""

from ...report.text import listed, micro, percent, signed_percent
from . import analysis
from .analysis import BEST, FAIR, worth
from .serving_rows import ALL_REDUCES, GDN_LAYER, Point, ServingRows
from .tpot import GOAL, breakdown, gap_share, step_spread

BUSY = 32  # concurrency from which the aims for `best` and for host gaps hold
GAP_GOAL = 0.03  # of a step


def answers(rows: ServingRows) -> list[str]:
    """What the rows answer to the question of notebook 09, a sentence each."""
    if not rows:
        return ["No request was served, so nothing is answered.", *not_served(rows)]
    if rows.toy:
        return [checked(rows), *not_served(rows)]
    sentences = (
        most_tokens(rows),
        what_it_is_worth(rows),
        why(rows),
        best_over_fair(rows),
        adds_up(rows),
        host_gaps(rows),
        layer_to_tpot(rows),
        speculation(rows),
    )
    return [sentence for sentence in sentences if sentence] + not_served(rows)


def what_ran(rows: ServingRows) -> list[str]:
    """What this machine served: of a toy that it answered, otherwise what was refused, if anything."""
    if rows and rows.toy:
        return [checked(rows), *not_served(rows)]
    return not_served(rows) or [f"Everything that was asked for was served: {rows.conditions()}."]


def checked(rows: ServingRows) -> str:
    """What a toy run shows: that every request got its tokens, whatever was served with it."""
    points = list(rows.points.values())
    made = sum(point.run["output_tokens"] for point in points)
    names = listed(f"`{name}`" for name in rows.configurations)
    checks = [point.check for point in points if point.check]
    alike = f"{sum(row['alike'] for row in checks)} of {sum(row['requests'] for row in checks)}"
    tokens = f"; {alike} requests got the tokens that they get when served alone" if checks else ""
    return (
        f"A toy model served {sum(point.run['requests'] for point in points)} requests and {made} tokens with {names} "
        f"at C = {listed(map(str, rows.concurrencies))}{tokens}; at this size times rank nothing."
    )


def most_tokens(rows: ServingRows) -> str:
    """Tokens per second of each configuration at the largest concurrency that all have."""
    concurrency = rows.compared_at
    each = [
        f"`{name}` {point.run['output_throughput']:,.0f} tokens/s at a TPOT of {point.run['tpot_ms']:.2f} ms"
        for name, point in rows.at(concurrency).items()
    ]
    return f"At C = {concurrency} ({rows.place()}): {listed(each)}."


def what_it_is_worth(rows: ServingRows) -> str | None:
    """The change of TPOT from the first of the compared configurations to the second, at each concurrency."""
    pair = analysis.compared(rows)
    if pair is None:
        return None
    each = [f"{signed_percent(one.change)} at C = {one.concurrency}" for one in worth(rows, *pair)]
    return f"`{pair[0]}` → `{pair[1]}` changes TPOT by {listed(each)}."


def why(rows: ServingRows) -> str | None:
    """The share of the GDN kernels in TPOT, which bounds what a faster one is worth."""
    pair = analysis.compared(rows)
    found = [one for one in worth(rows, *pair) if one.kernel_share is not None] if pair else []
    if not found:
        return None
    most = found[-1]
    return (
        f"Why: at C = {most.concurrency} the GDN kernels take {percent(most.kernel_share)} of the TPOT of `{pair[0]}`, "
        f"the most that a faster one can save. Those of `{pair[1]}` are {most.kernel_speed:.2f}× as fast, which "
        f"predicts {signed_percent(most.expected)}; measured: {signed_percent(most.change)}."
    )


def best_over_fair(rows: ServingRows) -> str | None:
    """`best` against `before-32` at each concurrency from BUSY up."""
    found = [one for one in worth(rows, FAIR, BEST) if one.concurrency >= BUSY]
    if not found:
        return None
    each = [f"{signed_percent(one.change)} at C = {one.concurrency}" for one in found]
    ahead = "ahead at each" if all(one.change < 0 for one in found) else "not ahead at each"
    text = f"`{BEST}` changes the TPOT of `{FAIR}` by {listed(each)}: {ahead}{_by_all_reduces(rows, found[-1])}."
    one = found[-1]
    best, fair = (step_spread(rows.points[name, one.concurrency]) for name in (BEST, FAIR))
    if best is None or fair is None:
        return text
    ranges = [f"{low / 1000:.2f} to {high / 1000:.2f} ms" for low, high in (best, fair)]
    return f"{text[:-1]}; steps (p20 to p80) at C = {one.concurrency}: {ranges[0]} against {ranges[1]}."


def _by_all_reduces(rows: ServingRows, one) -> str:
    """What of a change is the all-reduces', where the two configurations sum in different ways."""
    fair, best = (rows.points[name, one.concurrency] for name in (FAIR, BEST))
    if fair.run["communicator"] == best.run["communicator"] or ALL_REDUCES not in fair.parts:
        return ""
    share = (best.part_us(ALL_REDUCES) - fair.part_us(ALL_REDUCES)) / fair.tpot_us
    names = f"{best.run['communicator']} instead of {fair.run['communicator']}"
    return f"; at C = {one.concurrency} the all-reduces ({names}) account for {signed_percent(share)} of it"


def adds_up(rows: ServingRows) -> str | None:
    """By how much TPOT differs from the sum of its measured parts, at worst."""
    worst = analysis.largest_unexplained(rows)
    if worst is None:
        return None
    share, point = worst
    within = "within" if abs(share) <= GOAL else "outside"
    return (
        f"The measured parts add up to TPOT but for {percent(abs(share))} at most (`{point.configuration}`, C = "
        f"{point.concurrency}: {'more' if share < 0 else 'less'} than TPOT): {within} the {percent(GOAL)} aimed at."
    )


def host_gaps(rows: ServingRows) -> str | None:
    """The largest share of a step in which the GPU waits for the host, from BUSY up."""
    found = [
        (share, point)
        for point in rows.points.values()
        if point.concurrency >= BUSY and (share := gap_share(point)) is not None
    ]
    if not found:
        return None
    share, point = max(found, key=lambda one: one[0])
    return (
        f"Between two steps the GPU waits for the host at most {percent(share)} of a step from C = {BUSY} up "
        f"(`{point.configuration}`, C = {point.concurrency}); the aim is less than {percent(GAP_GOAL)}."
    )


def layer_to_tpot(rows: ServingRows) -> str | None:
    """From one GDN layer to TPOT at the point that the waterfall shows."""
    point = analysis.shown_point(rows)
    if point is None or GDN_LAYER not in point.parts:
        return None
    us, count = point.parts[GDN_LAYER]
    largest = sorted(
        ((name, us) for name, us in breakdown(point).items() if name not in ("GDN kernels", "GDN layers without them")),
        key=lambda part: -part[1],
    )[:3]
    rest = listed(f"{name} {us / 1000:.2f} ms" for name, us in largest)
    return (
        f"From a layer to TPOT (`{point.configuration}`, C = {point.concurrency}): one GDN layer takes {micro(us)}, "
        f"{count} of them {us * count / 1000:.2f} ms of {point.run['tpot_ms']:.2f} ms; next come {rest}."
    )


def speculation(rows: ServingRows) -> str | None:
    """Where draft tokens pay: at each acceptance the least and most tokens per second over those without drafts."""
    table = analysis.speculation_table(rows)
    if table.empty or table["speed-up"].isna().all():
        return None
    each = []
    for acceptance, some in table.groupby("acceptance"):
        least, most = some.loc[some["speed-up"].idxmin()], some.loc[some["speed-up"].idxmax()]
        ends = dict.fromkeys(f"{line['speed-up']:.2f}× ({_drafts(line)})" for line in (least, most))
        each.append(f"{' to '.join(ends)} at an acceptance of {percent(acceptance)}")
    return f"Draft tokens change tokens per second to {listed(each)}."


def _drafts(line) -> str:
    return f"`{line.configuration}`, C = {line.C}, T = {line['T']}"


def not_served(rows: ServingRows) -> list[str]:
    """What was refused, a sentence for each reason."""
    found: dict[str, dict] = {}
    for row in rows.refused:
        drafts = f", T = {row['draft_tokens']}, acceptance {row['acceptance']:g}" if row["draft_tokens"] else ""
        point = f"{row['configuration']} at C = {row['concurrency']}{drafts}"
        found.setdefault(row["reason"].rstrip("."), {})[point] = None
    return [f"Not served: {listed(points)}: {reason}." for reason, points in found.items()]


def advice(point: Point) -> str:
    """A line for `gdn-lab advise`: what one point measured."""
    run = point.run
    return (
        f"`{point.configuration}` at C = {point.concurrency}: {run['output_throughput']:,.0f} tokens/s, TPOT "
        f"{run['tpot_ms']:.2f} ms, {run['tokens_per_s_user']:.0f} tokens/s for each user"
    )
