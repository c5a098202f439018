"""The answer of `gdn-lab advise` in sentences, by heading: for the terminal, the panel and the page alike."""

from ...models import model
from ...report.text import byte_size, listed, micro, percent
from . import server
from .analysis import ENGINE_DEFAULTS, Advice, Comparison
from .recorded_calls import INTERPOLATED, NEAREST, called
from .step_share import BEFORE, LAST, STEP_DTYPE, StepShare

NEXT = 3  # variants named after the fastest


def sections(advice: Advice) -> list[tuple[str, list[str]]]:
    """[(heading, sentences)]: what was asked, backend, saving, memory, flags, refusals, and what was not measured.

    A whole server's tokens per second come after the saving where serving is recorded, then how far a state of each
    dtype drifts where that is.
    """
    refused = [f"{sentence}." for sentence in dict.fromkeys(advice.refusals.values())]
    measured = [("Server", server.sentences(advice.server, advice.p))] if advice.server else []
    return [
        ("Asked", [asked(advice)]),
        ("Backend", backend(advice)),
        ("Saving", saving(advice)),
        *measured,
        *([("Precision", advice.precision)] if advice.precision else []),
        ("Memory", memory(advice)),
        ("Flags", flags(advice)),
        ("Refused", refused or ["No rule of the engine refuses triton, cutedsl or flashinfer on this GPU."]),
        ("Not measured", advice.not_measured),
    ]


def asked(advice: Advice) -> str:
    """Model, tp, batch and dtype, and the heads that follow."""
    p, entry, gpu = advice.p, model(advice.p.model), called(advice.p.gpu_reference)
    return (
        f"{p.model}, tp {p.tp}, B = {p.batch}, {p.dtype} state, on {gpu}: HK {advice.shape.num_k_heads}, "
        f"HV {advice.shape.num_v_heads} on each GPU; {entry.gdn_layers} of {entry.layers} layers are GDN."
    )


def in_short(advice: Advice) -> list[str]:
    """The answer for the top of the page: the first sentences on backend, saving, memory and flags; what was asked."""
    lines = [*backend(advice)[: 1 if advice.comparison is None else 3], saving(advice)[0], memory_in_short(advice)]
    lines += [f"`{line}`" for line in flags(advice)[:1] if line.startswith("--")]
    return [*lines, f"Asked: {asked(advice)}"]


# ---- backend --------------------------------------------------------------------------------------------------------


def backend(advice: Advice) -> list[str]:
    """The fastest variant and the next ones, the rows they come from, and how far those are from what was asked."""
    one, p, gpu = advice.comparison, advice.p, called(advice.p.gpu_reference)
    if one is None:
        return [f"No decode row with a {p.dtype} state is recorded on {gpu}, so no backend is advised."]
    if not one.same_heads:
        lines = [
            f"No row with these heads is recorded on {gpu} in {p.dtype}, so no time of {p.model} at tp "
            f"{p.tp} is given. Nearest, of {owner(one)} with as many states a step (B = {number(one.batch)}): "
            f"{ranking(one)}."
        ]
    else:
        place = f"At B = {one.batches[0]}, the nearest recorded: " if one.how == NEAREST else ""
        lines = [f"{place}{ranking(one)}."]
    lines.append(f"From {one.series.recording.name}: {one.series.source}, {one.series.timer}.")
    lines.append(f"Distance: {distance(advice, one)}.")
    lines += [
        f"{name} was outside the tolerance on {listed(kinds)}."
        for name, kinds in one.series.outside.items()
        if name in one.names
    ]
    if across := one.across:
        lines.append(f"On the other side of this batch, at B = {number(across.batch)}: {ranking(across)}.")
    if one.moves_states and one.us(one.names[0]) < one.state_us:
        lines.append(
            f"Moving the states alone takes {micro(one.state_us)} at the measured bandwidth ({one.series.roof:,.0f} "
            f"GB/s), longer than {one.names[0]}: some states came from the L2, or its time overlaps the kernel before."
        )
    if wider := advice.elsewhere:
        lines.append(
            f"Variants not timed there: {wider.series.recording.notebook} has them of {owner(wider)}, whose heads "
            f"differ. With as many states a step, B = {number(wider.batch)} ({known(wider)}): {ranking(wider)}."
        )
    return lines


def ranking(one: Comparison) -> str:
    """ "cutedsl/vk 16.1 µs; next triton/vk 17.0 µs (1.06×)", or that one other alone was timed with it."""
    first, *rest = one.names
    text = f"{first} {micro(one.us(first))}"
    if not rest:
        return f"{text}; nothing else was timed with it"
    others = [f"{name} {micro(one.us(name))} ({one.us(name) / one.us(first):.2f}×)" for name in rest[:NEXT]]
    tie = "; the p20–p80 of the first two overlap, so either may be faster" if one.tie else ""
    others = f"next {listed(others)}" if len(rest) > 1 else f"of the others only {others[0]} was timed with it"
    return f"{text}; {others}{tie}"


def owner(one: Comparison) -> str:
    """Whose times these are: "qwen3.5-397b-a17b at tp 1 (HK 16, HV 64)"."""
    return f"{one.series.model} at tp {one.series.tp} ({one.series.heads})"


def distance(advice: Advice, one: Comparison) -> str:
    """How far the recorded rows are from the question."""
    series, p = one.series, advice.p
    if not one.same_heads:
        heads = f"other heads, {series.heads}"
    elif (series.model, series.tp) == (p.model, p.tp):
        heads = "this model at this tp"
    else:
        heads = f"the same heads on each GPU, recorded as {series.model} at tp {series.tp}"
    return f"{heads}; {known(one)}"


def known(one: Comparison) -> str:
    """How the times at the batch are known."""
    batches = listed(map(str, one.batches))
    if one.how == INTERPOLATED:
        return f"not recorded at this batch, linear between B = {batches}"
    if one.how == NEAREST:
        return f"this batch is not recorded, the times are of B = {batches}"
    return f"B = {batches} is recorded"


def number(batch: float) -> str:
    return f"{batch:g}"


# ---- saving ---------------------------------------------------------------------------------------------------------


def saving(advice: Advice) -> list[str]:
    """What the fastest saves a layer, a token, and a step."""
    entry, one = model(advice.p.model), advice.comparison
    lines = [
        f"Compared with {each.baseline}: {micro(each.layer_us)} in each GDN layer, × {entry.gdn_layers} layers = "
        f"{each.token_us / 1000:.2f} ms a token (a step that gives each of {advice.p.batch} requests one token)."
        for each in advice.savings
    ]
    if not lines:
        lines = ["No saving is given: " + no_saving(one)]
    lines += [other_baseline(advice, name) for name in ENGINE_DEFAULTS if advice.savings and name not in one.names]
    return [*lines, step_sentence(advice)]


def other_baseline(advice: Advice, name: str) -> str:
    """That a baseline was not timed with the fastest; how it compares with the one that was, at other heads."""
    base, wider = advice.savings[0].baseline, advice.elsewhere
    text = f"{name} was not timed with it"
    if wider is None or not {name, base} <= set(wider.names):
        return f"{text}."
    ratio = wider.us(name) / wider.us(base)
    more_or_less = "less" if ratio < 1 else "more"
    return (
        f"{text}; of {owner(wider)} it takes {ratio:.2f}× the time of {base}, so compared with it {more_or_less} is "
        "saved."
    )


def no_saving(one: Comparison | None) -> str:
    if one is None:
        return "nothing is recorded in this dtype."
    if not one.same_heads:
        return "the recorded heads are not those of this model."
    if one.how == NEAREST:
        return "this batch is not recorded."
    if one.names[0] in ENGINE_DEFAULTS:
        return f"the fastest, {one.names[0]}, is itself what the engine runs unless it is told otherwise."
    return f"neither {' nor '.join(ENGINE_DEFAULTS)} was timed with {one.names[0]}."


def step_sentence(advice: Advice) -> str:
    """GDN's share of a decode step and what that saves, or that it was not measured."""
    step, p = advice.step, advice.p
    if p.dtype != STEP_DTYPE:
        return f"Share of the step: not measured, for the recorded steps have a {STEP_DTYPE} state."
    if step is None:
        return f"Share of the step: not measured for {p.model} at tp {p.tp}, nor for a model with the same heads."
    if not step.same_model:
        return (
            f"Share of the step: not measured for {p.model} at tp {p.tp}. {_step(step)} That model has the same GDN "
            "heads, but other layers around them."
        )
    entry = model(p.model)
    ms = [entry.gdn_layers * us / 1000 for us in (step.step_us, step.last_us)]
    return (
        f"Share of the step: measured. {_step(step)} Computed, × {entry.gdn_layers} GDN layers: {ms[0]:.1f} and "
        f"{ms[1]:.1f} ms a token; not included: {entry.layers - entry.gdn_layers} attention layers, the output head "
        "and all-reduces."
    )


def _step(step: StepShare) -> str:
    batches = listed(map(str, step.batches))
    how = {INTERPOLATED: f"linear between B = {batches}", NEAREST: f"at B = {batches}, the nearest recorded"}
    return (
        f"Of {step.model} at tp {step.tp} with {step.precision} weights ({how.get(step.how, f'B = {batches}')}), GDN "
        f"takes {percent(step.gdn_share)} of the {micro(step.step_us)} step of one layer (`{BEFORE}`, triton/kv8); "
        f"`{LAST}`, which fuses other parts too, takes {percent(step.saving)} less."
    )


# ---- memory, flags --------------------------------------------------------------------------------------------------


def memory(advice: Advice) -> list[str]:
    """GB on each GPU for the slots, in each dtype, and how many requests fit."""
    p, lines = advice.p, []
    for need in advice.memory:
        ring = f" with scales and a ring of {need['ring']} updates" if need["ring"] else ""
        text = f"{need['state_dtype']}{ring}: {p.slots:,} requests keep {size(need['slots_bytes'])}"
        if p.spec:
            text += (
                f", and {size(need['drafts_bytes'])} more if all of them verify {p.spec} draft tokens at once with "
                f"every state stored: {size(need['total_bytes'])}"
            )
        if need["fit_without_drafts"] is not None:
            text += f"; {p.memory:g} GB hold {need['fit_without_drafts']:,} requests"
            if p.spec:
                text += f", or {need['fit_with_drafts']:,} with drafts"
        lines.append(f"{text}.")
    return [
        f"On each of {p.tp} GPUs, state and convolution window of all GDN layers:" if p.tp > 1 else
        "On one GPU, state and convolution window of all GDN layers:",
        *lines,
    ]  # fmt: skip


def memory_in_short(advice: Advice) -> str:
    """What the slots keep in each dtype, in one sentence; dtypes of one size together."""
    p, dtypes = advice.p, {}
    for need in advice.memory:
        name = f"{need['state_dtype']} with its ring" if need["ring"] else need["state_dtype"]
        dtypes.setdefault(size(need["slots_bytes"]), []).append(name)
    where = f" on each of {p.tp} GPUs" if p.tp > 1 else ""
    parts = [f"{nbytes} in {' or '.join(names)}" for nbytes, names in dtypes.items()]
    return f"{p.slots:,} requests keep{where} {listed(parts)}: states and convolution windows of all GDN layers."


def size(nbytes: float) -> str:
    """Bytes with a decimal from a GB up: "19.3 GB"."""
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e9 else byte_size(nbytes)


def flags(advice: Advice) -> list[str]:
    """The engine's flags, and which kernel's times they rest on."""
    if advice.backend is None:
        return ["None: no timed variant goes by the name of a backend that the engine accepts here."]
    other = "" if advice.comparison.same_heads else " at other heads"
    return [
        advice.flags,
        f"For SGLang. Chosen by the times of {advice.chosen}{other}; prefill stays with the engine's default, triton.",
    ]


def text(advice: Advice, width: int = 110) -> str:
    """The answer for a terminal."""
    import textwrap

    lines = []
    for heading, sentences in sections(advice):
        for number_, sentence in enumerate(sentences):
            start = f"{heading if number_ == 0 else '':<14}"
            lines += textwrap.wrap(
                sentence, width, initial_indent=start, subsequent_indent=" " * 14, break_on_hyphens=False
            )
    return "\n".join(lines)


def markdown(advice: Advice) -> str:
    """The answer as Markdown, flags as code."""
    parts = []
    for heading, sentences in sections(advice):
        lines = [f"`{sentence}`" if sentence.startswith("--") else sentence for sentence in sentences]
        parts.append(f"**{heading}**\n\n" + "\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts)
