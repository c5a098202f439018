"""gdn-lab backends: every kernel variant, what it can do, and whether it can run here or why not."""

import json


def add_arguments(parser) -> None:
    parser.add_argument("--json", action="store_true", help="a JSON list with all that is known of each variant")


def run(arguments) -> None:
    print(json.dumps(records(), indent=2, ensure_ascii=False) if arguments.json else text())


def records() -> list[dict]:
    """One dict for each variant, and one without `variant` for a backend that could not be imported."""
    from ..backends.base import dtype_name
    from ..backends.registry import backends

    found = []
    for report in backends():
        common = {"backend": report.name, "version": report.version, "can_run_here": report.reason is None}
        common["reason"] = report.reason
        for variant in report.variants:
            found.append(
                {
                    "variant": variant.full_name,
                    **common,
                    "label": variant.label,
                    "role": variant.role,
                    "pool_layout": variant.layout,
                    "phases": list(variant.phases),
                    "state_dtypes": [dtype_name(dtype) for dtype in variant.state_dtypes],
                    "description": variant.description,
                    "note": variant.note,
                    "gathers_and_scatters": variant.copies,
                    "synchronises_with_host_in": list(variant.host_sync),
                    "not_isolated_in": list(variant.leaks),
                }
            )
        if not report.variants:
            found.append(common)
    return found


def text() -> str:
    """A line for each variant, then what cannot run here and which variants are not isolated, in sentences."""
    import tabulate

    rows = [("variant", "version", "role", "pool", "phases", "state", "here")]
    reasons, notes = {}, []
    for record in records():
        here = "yes" if record["can_run_here"] else "no"
        if not record["can_run_here"]:
            reasons[record["backend"]] = record["reason"]
        if "variant" not in record:
            rows.append((record["backend"], record["version"] or "-", "-", "-", "-", "-", here))
            continue
        dtypes = ", ".join(dtype.replace("bfloat", "bf").replace("float", "fp") for dtype in record["state_dtypes"])
        rows.append(
            (
                record["variant"],
                record["version"] or "-",
                record["role"],
                record["pool_layout"],
                ", ".join(record["phases"]),
                dtypes,
                here,
            )
        )
        notes += isolation(record)
    lines = [tabulate.tabulate(rows, headers="firstrow", tablefmt="simple", disable_numparse=True), ""]
    lines += [*(f"{backend} cannot run here: it {reason}." for backend, reason in reasons.items())]
    return "\n".join([*lines, *notes]).rstrip()


def isolation(record: dict) -> list[str]:
    """A sentence for each phase in which a variant is not isolated."""
    return [
        f'{record["variant"]} is not isolated in {phase}: NaN in one request can reach another; "auto" avoids it.'
        for phase in record["not_isolated_in"]
    ]


def frame():
    """The table of notebook 00: a line for each variant, its label, what it is, and "yes" or why it cannot run here."""
    import pandas

    lines = []
    for record in records():
        line = {"variant": record.get("variant", record["backend"]), "version": record["version"] or ""}
        if "variant" in record:
            line |= {"pool": record["pool_layout"], "phases": ", ".join(record["phases"])}
            line |= {"state": ", ".join(record["state_dtypes"]), "what it is": record["description"]}
        line["can run here"] = "yes" if record["can_run_here"] else record["reason"]
        lines.append(line)
    return pandas.DataFrame(lines).fillna("")
