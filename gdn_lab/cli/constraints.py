"""gdn-lab constraints: pin all that an installation brings, in constraints.txt, each with its licence.

For each supported Python, pip resolves all requirements*.txt with the published build of torch, which is the one for
CUDA on Linux x86-64: what the CPU build needs is a part of that. Nothing is installed, but pip may have to download
what it resolves, several GB. `make` passes the file to pip with -c, so later set-ups get the same versions.
"""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ..files import replacing
from .errors import BatchError, UsageError
from .run import ROOT, say

FILE = ROOT / "constraints.txt"
OLDEST = "3.11.2"  # of the Pythons that every pin must serve: Debian 12's
PIP = "pip==26.3"  # resolves; older ones leave License-Expression out of their report
HEADER = """\
# Every distribution that an installation can bring, for Python {pythons} on Linux, with or without CUDA. Made by
# `make constraints`; `make` installs with these versions. The licence is the one that the distribution names.
"""
PROPRIETARY = "NVIDIA proprietary"


def add_arguments(parser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("pythons", nargs="+", metavar="PYTHON", help="the Pythons to resolve for, the oldest first")


def run(arguments) -> None:
    """Write constraints.txt and say how many distributions it pins. UsageError for a Python that is not there."""
    if missing := [python for python in arguments.pythons if not shutil.which(python)]:
        raise UsageError(f"there is no {missing[0]} here; name a Python that is on PATH, or its path")
    pins, licences, versions = {}, {}, []
    for python in arguments.pythons:
        version, found = resolve(python, pins)
        if not versions and Version(version) > Version(OLDEST):
            raise BatchError(f"{python} is Python {version}; resolve for {OLDEST} first")
        versions.append(version)
        for metadata in found:
            name = canonicalize_name(metadata["name"])
            pins[name] = metadata["version"].partition("+")[0]  # torch's builds are told apart after the +
            licences[name] = licence(metadata)
        say(f"Python {version}: {len(found)} distributions.")
    lines = [f"{name}=={pins[name]}  # {licences[name]}\n" for name in sorted(pins)]
    with replacing(FILE) as partial:
        partial.write_text(HEADER.format(pythons=" and ".join(versions)) + "".join(lines), encoding="utf-8")
    say(f"{FILE.name}: {len(pins)} distributions. make report brings docs/dependencies.md up to date.")


def requirements(root: Path = ROOT) -> dict[str, list[Requirement]]:
    """{file: its requirements} of every requirements*.txt, without the files that it includes."""
    found = {}
    for path in sorted(root.glob("requirements*.txt"), key=lambda path: path.stem):  # requirements.txt first
        lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
        found[path.name] = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return found


def resolve(python: str, pins: dict[str, str]) -> tuple[str, list[dict]]:
    """(full version of a Python, metadata of what pip would install for it), at the pins so far where they apply."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        _call([python, "-m", "venv", str(folder / "venv")])
        python = folder / "venv" / "bin" / "python"
        _call([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", PIP])
        # === asks for the build without a suffix, the published one, even where another such as +cpu is offered.
        torch = next(r for each in requirements().values() for r in each if r.name == "torch")
        exact = f"torch==={next(iter(torch.specifier)).version}"
        lines = [exact, *(f"{name}=={version}" for name, version in pins.items() if name != "torch")]
        (folder / "pins.txt").write_text("\n".join(lines), encoding="utf-8")
        files = [word for name in requirements() for word in ("-r", str(ROOT / name))]
        options = ["--dry-run", "--ignore-installed", "-q", "--report", folder / "report.json"]
        _call([python, "-m", "pip", "install", *options, *files, "-c", folder / "pins.txt"])
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report["environment"]["python_full_version"], [each["metadata"] for each in report["install"]]


def _call(command: list) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "it printed nothing").splitlines()[-1]
        raise BatchError(f"{' '.join(map(str, command[:4]))} … failed: {last}")


# ---- licences -------------------------------------------------------------------------------------------------------


def licence(metadata: dict) -> str:
    """The licence that a distribution's metadata names, in one line: the expression, the classifiers or the text.

    metadata: as in pip's report: name, license_expression, license, classifier.
    """
    own = [line for line in metadata.get("classifier") or [] if line.startswith("License ::")]
    classified = [re.sub(r" License.*| \(.*|^OSI Approved$", "", line.split(" :: ")[-1]) for line in own]
    classified = [line for line in classified if line]
    text = next((line.strip() for line in (metadata.get("license") or "").splitlines() if line.strip()), "")
    text = "" if text == "UNKNOWN" or len(text) > 40 or text.startswith(("Copyright", "=")) else text
    said = metadata.get("license_expression") or text or " AND ".join(classified)
    if "proprietary" in said.lower():
        return PROPRIETARY
    return said or "not named"


def pinned() -> dict[str, tuple[str, str]]:
    """{distribution: (version, licence)} of constraints.txt."""
    found = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin, _, words = line.partition("  # ")
            name, _, version = pin.partition("==")
            found[name] = (version, words)
    return found


def table() -> str:
    """Markdown: each direct dependency with version, licence and the file that names it; then how many are indirect."""
    pins, lines, named = pinned(), [], set()
    for file, needed in requirements().items():
        for requirement in needed:
            name = canonicalize_name(requirement.name)
            if name not in named:
                version, words = pins[name]
                lines.append(f"| {requirement.name} | {version} | {words} | `{file}` |")
                named.add(name)
    closed = [name for name, (_, words) in pins.items() if words == PROPRIETARY]
    head = ["| distribution | version | licence | asked for in |", "|---|---|---|---|"]
    return "\n".join(
        [
            *head,
            *lines,
            "",
            f"With what these need, {len(pins)} distributions are pinned in `constraints.txt`, each with its licence. "
            f"Proprietary are {len(closed)}, all NVIDIA's: {', '.join(f'`{name}`' for name in closed)}.",
        ]
    )
