"""The answer of notebook 03 in sentences, made of StepRows; a function returns None where the rows do not tell."""

from collections import defaultdict

from ...report.nearest import led
from ...report.text import device_name, listed, micro, number, percent
from .analysis import AFTER, BEFORE, GDN, StepRows, heatmap_points, main_changes, published_saving, saving
from .whole_model import whole_model

SMALL = 0.01  # of a step: less than this counts as nothing


def answers(step: StepRows) -> list[str]:
    """What the rows answer to the question of notebook 03, a sentence each."""
    if not step.whole:
        return ["No step was timed, so nothing is answered."]
    sentences = (
        gdn_shares(step),
        whole_steps(step),
        largest_changes(step),
        against_published(step),
        over_the_heatmap(step),
        whole_model(step),
    )
    return led(step.run, [sentence for sentence in sentences if sentence])


def not_timed(rows, sweep: str | None = None) -> list[str]:
    """What was refused, a sentence for each reason, and what was wrong; of one sweep ("step", "share") or of all."""
    refused, wrong = defaultdict(dict), {}
    for row in rows:
        if sweep and row.get("sweep") != sweep:
            continue
        if row.get("status") == "refused":
            name = row.get("configuration") or f"{row['model']} at tp {row['tp']}"
            refused[row["reason"], row.get("timer")][name] = None
        elif row.get("status") == "wrong":
            error = "not finite" if row["max_abs_error"] is None else f"{row['max_abs_error']:.2g}"
            details = ", ".join([f"largest error {error}", *row.get("wrong_parts", ())])
            where = f"{row['model']}, tp {row['tp']}, B = {row['batch']}"
            wrong[f"{row['configuration']} wrong at {where} ({details})"] = None
    return [
        f"{listed(names)} {'has no times of parts' if timer else 'refused'}: {reason}"
        for (reason, timer), names in refused.items()
    ] + list(wrong)


def gdn_shares(step: StepRows) -> str | None:
    """GDN's share of each configuration's step."""
    shares = [
        f"{percent(step.gdn_share(name))} of `{name}` ({step.us(name, GDN):.0f} of {micro(row['median_us'])})"
        for name, row in step.traced.items()
    ]
    if not shares:
        return None
    row = next(iter(step.whole.values()))
    size = "at toy size" if row["toy"] else f"at tp {row['tp']}"
    machine = f"on {device_name(step.run)}" if step.run else "here"
    return f"GDN takes {listed(shares)}: a decode step of {row['model']} {size}, B = {row['batch']}, {machine}."


def whole_steps(step: StepRows) -> str:
    """Median, p20 and p80 of each whole step, the last one against the others, and what defers its writes."""
    times = [
        f"`{name}` {micro(row['median_us'])} ({row['p20_us']:.0f}–{row['p80_us']:.0f})"
        for name, row in step.whole.items()
    ]
    sentence = f"Median step, not traced (p20–p80): {listed(times)}"
    *others, last = step.whole
    if others:
        compared = [f"{difference(step, last, name)} `{name}`" for name in others]
        sentence += f"; `{last}` takes {listed(compared)}"
    deferring = [
        f" `{name}` runs {kernel}, which reads each state in every step and writes it in one of several, from a ring."
        for name, kernel in step.deferring.items()
    ]
    return "".join([f"{sentence}.", *deferring])


def difference(step: StepRows, name: str, base: str) -> str:
    """How one whole step compares with another: "16% less than" or "3% more than"."""
    share = step.whole[name]["median_us"] / step.whole[base]["median_us"] - 1
    return f"{percent(abs(share))} {'less' if share <= 0 else 'more'} than"


def largest_changes(step: StepRows) -> str | None:
    """What saves and what costs more between the first and the last configuration, and the rest of the difference."""
    changes = main_changes(step)
    if not changes:
        return None
    names = list(step.traced)
    first, last = (step.traced[name]["median_us"] for name in (names[0], names[-1]))
    rest = last - first - sum(changes.values())
    saved = [f"{part} {signed(-us)}" for part, us in changes.items() if us < 0]
    added = [f"{part} {signed(us)}" for part, us in reversed(changes.items()) if us > 0]
    told = [f"less by {listed(saved)}"] * bool(saved) + [f"more by {listed(added)}"] * bool(added)
    told += [f"the rest {'saves' if rest < 0 else 'adds'} {signed(abs(rest))}"] * (abs(rest) >= 0.05)
    return f"From `{names[0]}` to `{names[-1]}`, traced: {micro(first)} to {micro(last)}, {'; '.join(told)}."


def against_published(step: StepRows) -> str | None:
    """How the saving divides between the GDN kernel and the rest, published and here."""
    theirs, ours = published_saving(), saving(step)
    if ours is None:
        return None
    sentence = (
        f"The published step saves {theirs.total:.0f} µs: {theirs.gdn:.0f} in the GDN kernel, {theirs.rest:.0f} "
        f"not itemised. Here, traced, `{BEFORE}` to `{AFTER}` saves {signed(ours.total)}: {signed(ours.gdn)} in the "
        f"GDN kernel, {signed(ours.rest)} in the rest"
    )
    share = ours.rest / step.traced[BEFORE]["median_us"]
    if share >= SMALL:
        return f"{sentence}, {percent(share)} of the step, so other parts gain here too."
    if share <= -SMALL:
        return f"{sentence}: what is not itemised there does not appear, and the rest of the step is slower."
    return f"{sentence}: what is not itemised there does not appear."


def signed(us: float) -> str:
    """µs with a decimal and a sign where negative: "53.3 µs", "−20.0 µs"."""
    return f"{number(us, '.1f')} µs"


def over_the_heatmap(step: StepRows) -> str | None:
    """The range of GDN's share, and of what the last configuration saves, over the heatmap."""
    points = heatmap_points(step).dropna(subset=["share"])
    if not len(points):
        return None
    low, high = points.loc[points.share.idxmin()], points.loc[points.share.idxmax()]
    sentence = (
        f"Over models, tp and batch sizes, GDN takes {_point(low, 'share')} to {_point(high, 'share')} of a step of "
        f"`{high['first']}`"
    )
    points = points.dropna(subset=["gain"])
    if len(points):
        low, high = points.loc[points.gain.idxmin()], points.loc[points.gain.idxmax()]
        sentence += f", and `{high['last']}` saves {_point(low, 'gain')} to {_point(high, 'gain')}"
    return f"{sentence}."


def _point(point, field: str) -> str:
    return f"{percent(point[field])} ({point['model']}, tp {point['tp']}, B = {point['B']})"
