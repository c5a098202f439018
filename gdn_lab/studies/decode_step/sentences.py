"""The answer of notebook 03 in sentences, made of StepRows; a function returns None where the rows do not tell."""

from collections import defaultdict

from ...layer.step_parts import GAPS
from ...report.nearest import led
from ...report.text import byte_size, device_name, listed, micro, percent
from .analysis import AFTER, BEFORE, GDN, StepRows, heatmap_points, main_changes, published_saving, saving
from .whole_model import whole_model

BEST, FAIR = "best", "before-32"  # the fastest here, and the fastest Triton kernel on a KV pool
AIM = 0.10  # the pull request's saving, which BEST over FAIR aims at
SMALL = 0.01  # of a step: less than this counts as nothing


def answers(step: StepRows) -> list[str]:
    """What the rows answer to the question of notebook 03, a sentence each."""
    if not step.whole:
        return ["No step was timed, so nothing is answered."]
    sentences = (
        gdn_shares(step),
        whole_steps(step),
        whole_model(step),
        largest_changes(step),
        against_published(step),
        best_against_aim(step),
        launch_overhead(step),
        over_the_heatmap(step),
        how_parts_add_up(step),
        all_reduces(step),
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
    """Median, p20 and p80 of each whole step."""
    times = [
        f"`{name}` {micro(row['median_us'])} ({row['p20_us']:.0f}–{row['p80_us']:.0f})"
        for name, row in step.whole.items()
    ]
    sentence = f"Median time of a whole step, p20–p80 in brackets: {listed(times)}"
    if len(step.whole) < 2:
        return f"{sentence}."
    names = list(step.whole)
    return f"{sentence}; `{names[-1]}` takes {difference(step, names[-1], names[0])} `{names[0]}`."


def difference(step: StepRows, name: str, base: str) -> str:
    """How one whole step compares with another: "16% less than" or "3% more than"."""
    share = step.whole[name]["median_us"] / step.whole[base]["median_us"] - 1
    near_aim = percent(-share) == percent(AIM) and -share < AIM  # 9.8%, which is no 10%
    return f"{f'{-share:.1%}' if near_aim else percent(abs(share))} {'less' if share <= 0 else 'more'} than"


def largest_changes(step: StepRows) -> str | None:
    """The parts that save most between the first and the last configuration, and those that cost more."""
    changes = main_changes(step)
    saved = [f"{part} {'save' if part == GAPS else 'saves'} {signed(-us)}" for part, us in changes.items() if us < 0][
        :3
    ]
    added = [f"{part} adds {signed(us)}" for part, us in reversed(changes.items()) if us > 0][:3]
    if not saved and not added:
        return None
    names = list(step.traced)
    first, last = (step.traced[name]["median_us"] for name in (names[0], names[-1]))
    return f"From `{names[0]}` to `{names[-1]}` ({micro(first)} to {micro(last)}, recorded): {listed(saved + added)}."


def against_published(step: StepRows) -> str | None:
    """How the saving divides between the GDN kernel and the rest, published and here."""
    theirs, ours = published_saving(), saving(step)
    if ours is None:
        return None
    sentence = (
        f"The published step saves {theirs.total:.0f} µs: {theirs.gdn:.0f} in the GDN kernel, {theirs.rest:.0f} "
        f"unexplained. Here `{BEFORE}` to `{AFTER}` saves {signed(ours.total)}: {signed(ours.gdn)} in the GDN kernel, "
        f"{signed(ours.rest)} in the rest"
    )
    share = ours.rest / step.whole[BEFORE]["median_us"]
    if share >= SMALL:
        return f"{sentence}, {percent(share)} of the step, so other parts gain here too."
    if share <= -SMALL:
        return f"{sentence}: the unexplained part does not appear, and the rest of the step is slower."
    return f"{sentence}: the unexplained part does not appear."


def signed(us: float) -> str:
    """µs with a decimal and a sign where negative: "53.3 µs", "−20.0 µs"."""
    return f"{round(us, 1) + 0.0:.1f} µs".replace("-", "−")


def best_against_aim(step: StepRows) -> str | None:
    """What BEST saves, whether that reaches AIM, and if not, what takes the time."""
    bases = [name for name in (AFTER, FAIR) if name in step.whole]
    if BEST not in step.whole or not bases:
        return None
    sentence = f"`{BEST}` takes {listed(f'{difference(step, BEST, name)} `{name}`' for name in bases)}"
    if FAIR not in step.whole:
        return f"{sentence}."
    saved = 1 - step.whole[BEST]["median_us"] / step.whole[FAIR]["median_us"]
    if saved >= AIM:
        return f"{sentence}, which reaches the aim of {percent(AIM)}."
    return f"{sentence}, short of the aim of {percent(AIM)}{_obstacle(step)}."


def _obstacle(step: StepRows) -> str:
    """The largest part of BEST, and what GDN could save at most; "" where its parts were not measured."""
    parts = {part: row for part, row in step.parts.get(BEST, {}).items() if part != GAPS}
    if not parts:
        return ""
    name, row = max(parts.items(), key=lambda entry: entry[1]["median_us"])
    share = percent(row["median_us"] / step.traced[BEST]["median_us"])
    bandwidth = f" at {percent(row['share_of_roof'])} of the measured bandwidth" if row["bytes"] else ""
    sentence = f": {name} {'take' if name == 'experts' else 'takes'} {share} of its step{bandwidth}"
    gdn = step.gdn_share(FAIR)
    if gdn is None:
        return sentence
    return f"{sentence}, and a GDN kernel that took no time would save {percent(gdn)} of `{FAIR}`"


def launch_overhead(step: StepRows) -> str | None:
    """Steps launched kernel by kernel against replays of a CUDA graph."""
    times = [
        f"`{name}` {micro(row['median_us'])} (graph {micro(step.whole[name]['median_us'])})"
        for name, row in step.eager.items()
        if name in step.whole
    ]
    return f"Launched kernel by kernel instead of as a CUDA graph, a step takes: {listed(times)}." if times else None


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


def how_parts_add_up(step: StepRows) -> str | None:
    """How far the parts are from the recorded step, and that from the untraced one."""
    differences = step.tracing_differences
    if not differences:
        return None
    worst = max(differences.values(), key=abs)
    sums = [
        abs(sum(row["median_us"] for row in parts.values()) / step.traced[name]["median_us"] - 1)
        for name, parts in step.parts.items()
    ]
    return (
        f"Parts and gaps add up to the recorded step within {percent(max([0.001, *sums]))}; a recorded step is at most "
        f"{percent(abs(worst))} {'longer' if worst >= 0 else 'shorter'} than an untraced one."
    )


def all_reduces(step: StepRows) -> str | None:
    """What one GPU cannot run."""
    row = step.all_reduce
    if row is None:
        return None
    return (
        f"Not included: {row['times_a_layer']} all-reduces of {byte_size(row['bytes'])} a layer, which {row['tp']} "
        "GPUs would run and one cannot."
    )
