"""Numbers, machines and runs in words."""


def micro(us: float) -> str:
    """A time in words: 3.1 µs, 738 µs, 45.1 ms."""
    if us >= 10_000:
        return f"{us / 1000:,.0f} ms" if us >= 100_000 else f"{us / 1000:.1f} ms"
    return f"{us:,.0f} µs" if us >= 100 else f"{us:.1f} µs"


def percent(share: float) -> str:
    """A share in words: 98%, and below one per cent with a decimal."""
    return f"{share:.0%}" if share >= 0.0095 else f"{share:.1%}"


def byte_size(n: float) -> str:
    """Bytes in words, decimal: 33.6 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"


def gb(per_s: float) -> str:
    """GB/s in words: 2,893, and below ten with a decimal."""
    return f"{per_s:,.0f}" if per_s >= 10 else f"{per_s:.1f}"


def span(values) -> str:
    """ "2.42 to 2.83" of the least and the greatest of some ratios, or "2.42" where they print alike."""
    low, high = (f"{value:.2f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def device_name(run) -> str:
    """The GPU's name, or the CPU's, of what run.json holds."""
    environment = (run or {}).get("environment", {})
    return environment.get("gpu_name") or f"CPU ({environment.get('cpu') or 'name unknown'})"


def provenance(run: dict) -> str:
    """Where and how a run was measured, in one sentence for people."""
    facts, before, after = run["environment"], run.get("clocks_before") or {}, run.get("clocks_after") or {}
    said = [device_name(run)]
    said += [f"driver {facts['driver']}"] if facts.get("driver") else []
    said += [f"power limit {facts['power_limit_w']:.0f} W"] if facts.get("power_limit_w") else []
    if before.get("sm_mhz") and after.get("sm_mhz"):
        said.append(f"SM clock {before['sm_mhz']:.0f} MHz before and {after['sm_mhz']:.0f} after")
    said += [f"{name} {facts[name]}" for name in ("torch", "triton", "flashinfer") if facts.get(name)]
    said.append(f"{run['start_utc'][:10]}")
    if facts.get("git_commit"):
        said.append(f"commit {facts['git_commit'][:10]}{' with changes' if facts.get('git_dirty') else ''}")
    return ", ".join(said)
