"""Text: numbers with their units, machines and runs, as every table, sentence and figure prints them."""

import html
import re

from ..names import readable


def micro(us: float) -> str:
    """A time given in µs: "3.1 µs", "738 µs", "45.1 ms"."""
    if us >= 10_000:
        return f"{us / 1000:,.0f} ms" if us >= 100_000 else f"{us / 1000:.1f} ms"
    return f"{us:,.0f} µs" if us >= 100 else f"{us:.1f} µs"


def percent(share: float) -> str:
    """A share: "53%", "−4%", with a decimal below one per cent: "0.4%"."""
    digits = 0 if abs(share) >= 0.0095 or share == 0 else 1
    return number(share, f".{digits}%")


def number(value: float, spec: str) -> str:
    """A number in a format such as "+.1%": with a minus sign (U+2212), and without a sign where it prints as zero."""
    text = format(value, spec)
    return text.replace("-", "−") if re.search("[1-9]", text) else text.lstrip("+-")


def signed_percent(share: float) -> str:
    """A change of a share, with a decimal: "+4.5%", "−0.7%", "0.0%"."""
    return number(share, "+.1%")


def signed_micro(us: float) -> str:
    """A change given in µs: "−42.0 µs", "+738 µs"."""
    return f"{'−' if us < 0 else '+'}{micro(abs(us))}"


def token_count(count: float) -> str:
    """A number of tokens, such as a half-life: "14.3", "14,248", "6.2e8"."""
    if count < 1e6:
        return f"{count:,.1f}" if count < 100 else f"{count:,.0f}"
    digits, _, power = f"{count:.1e}".partition("e")
    return f"{digits}e{int(power)}"


def byte_size(n: float) -> str:
    """A number of bytes, decimal: "33.6 MB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"


def gb(per_s: float) -> str:
    """A bandwidth given in GB/s, without the unit: "2,893", below ten "7.5"."""
    return f"{per_s:,.0f}" if per_s >= 10 else f"{per_s:.1f}"


def number_range(values, digits: int = 2) -> str:
    """The least and the greatest of some ratios: "2.42 to 2.83", or "2.42" where both print alike."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def listed(words) -> str:
    """Words as a sentence lists them: "a", "a and b", "a, b and c"."""
    words = list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def aligned(headings: list[str], lines: list[list[str]], right: bool = True) -> str:
    """A table in columns; all but the first aligned right, or all left."""
    widths = [max(len(line[n]) for line in (headings, *lines)) for n in range(len(headings))]
    made = [
        "  ".join(
            cell.rjust(width) if n and right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (headings, *lines)
    ]
    return "\n".join(made)


def cut(name: str, width: int = 80) -> str:
    """A name of at most `width` characters; a longer one ends in "…"."""
    return name if len(name) <= width else name[: width - 1] + "…"


def as_html(text) -> str:
    """Any text as HTML that shows it as it is: no markup, link or image in it has an effect."""
    return html.escape(readable(text))


def sentence_as_html(sentence: str) -> str:
    """The same of a sentence, with what stands in backticks as code; it has no other markup."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", as_html(sentence))


def device_name(run: dict | None) -> str:
    """Name of the GPU, or of the CPU where there is none, of what run.json holds."""
    environment = (run or {}).get("environment", {})
    return environment.get("gpu_name") or f"CPU ({environment.get('cpu') or 'name unknown'})"


def provenance(run: dict) -> str:
    """Where and with what a run was measured, in one line: device, driver, limits, clocks, versions, date, commit."""
    facts = run["environment"]
    parts = [device_name(run)]
    parts += [f"driver {facts['driver']}"] if facts.get("driver") else []
    parts += [f"power limit {facts['power_limit_w']:.0f} W"] if facts.get("power_limit_w") else []
    parts += sm_clock(run)
    parts += [f"{name} {facts[name]}" for name in ("torch", "triton", "flashinfer") if facts.get(name)]
    parts.append(f"{run['start_utc'][:10]}")
    if facts.get("git_commit"):
        parts.append(f"commit {facts['git_commit'][:10]}{' with changes' if facts.get('git_dirty') else ''}")
    return ", ".join(parts)


def sm_clock(run: dict) -> list[str]:
    """The SM clock while timing, ["SM clock 1,755–1,980 MHz while timing"]; [] of a run that did not sample it.

    One reading before or after a run says nothing about it: an idle GPU lowers its clock.
    """
    sampled = (run.get("clocks_during") or {}).get("sm_mhz")
    if not sampled:
        return []
    ends = dict.fromkeys(f"{sampled[end]:,.0f}" for end in ("min", "max"))
    return [f"SM clock {'–'.join(ends)} MHz while timing"]
