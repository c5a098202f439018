"""What a process that judges is asked, and the messages that it answers with."""

from dataclasses import asdict

from ..backends import author_files
from . import judging


def answer(request: dict, device, send) -> None:
    """Load the files of a request, and judge the variants that it names or that the files register.

    request: {"judged": names and .py or .json files, "kernels": further files, "seed", and "calls": options of
    judging.random_calls() or "only": names of checks or None}.
    send(**message): {"usage": sentence, "shown": traceback} ends it; {"variants": names}; for each {"variant": name,
    "begin": check} and {"finding": Finding as a dict}, or {"row": dict of random calls}.
    """
    try:
        names = _names(request)
    except ValueError as error:
        send(usage=str(error), shown=getattr(error, "shown", ""))
        return
    send(variants=names)
    for name in names:
        if "calls" in request:
            send(variant=name, begin="random calls")
            for row in judging.random_calls(name, device, seed=request["seed"], **request["calls"]):
                send(row=row)
            continue
        options = {"seed": request["seed"], "only": request.get("only")}
        begin = lambda check, name=name: send(variant=name, begin=check)  # noqa: E731
        for finding in judging.findings(name, device, begin=begin, **options):
            send(finding=asdict(finding))


def _names(request: dict) -> list[str]:
    """Return the variants to judge. ValueError, one sentence, for a file or a name that cannot be."""
    for path in request["kernels"]:
        author_files.load(path)
    for check in request.get("only") or ():
        if check not in judging.CHECKS:
            raise ValueError(f"there is no check {check!r}; choose from {', '.join(judging.CHECKS)}")
    names = []
    for word in request["judged"]:
        found = author_files.load(word) if word.endswith((".py", ".json")) else [word]
        names += [name for each in found for name in judging.names_of(each)]
    return list(dict.fromkeys(names))
