"""Hashes of the kernels' sources, so that a recorded run says whether the kernels have changed since.

A room is a backend ("triton", "cutedsl", "flashinfer", …), "layer" (kernels of the decode step), "engine" (of the whole
model) or "pool". Its hash covers the code of its files and not their prose: comments, docstrings, messages, imports and
what a Variant says of itself do not count, nor in which file of the room or in which order a definition stands.
"""

import ast
import hashlib
import re
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
_NO_ROOM = {"__init__", "base", "registry", "resources", "author", "author_files"}  # of backends/
_MOVED = {"gates": "triton", "peers": "fla"}  # files of earlier commits whose name is not that of a room
_ASSEMBLY = re.compile(r"[;%]|\$\d")  # in a string with a space: not prose


@cache
def kernel_hashes() -> dict[str, str]:
    """Hash the kernels of this checkout: {room: 16 hexadecimal digits}, sorted by room."""
    paths = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    return _hashes({name: path.read_text(encoding="utf-8") for name, path in paths.items() if _room(name)})


def changed_since(run: dict) -> list[str] | None:
    """Return the rooms whose kernels are not those of a recorded run, or None if it is not known which it had.

    run: what run.json holds. A run without `kernels` is compared with the commit that it names, if git has it. A room
    that only one of the two has is not among them.
    """
    recorded = run.get("kernels") or _of_commit_of(run)
    if recorded is None:
        return None
    current = kernel_hashes()
    return [room for room in current if recorded.get(room, current[room]) != current[room]]


def _of_commit_of(run: dict) -> dict[str, str] | None:
    facts = run.get("environment") or {}
    return None if facts.get("git_dirty") or not facts.get("git_commit") else _hashes_of_commit(facts["git_commit"])


@cache
def _hashes_of_commit(commit: str) -> dict[str, str] | None:
    """Hash the kernels of a commit, or return None where git does not have it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    try:
        paths = git("ls-tree", "-r", "--name-only", "--full-tree", commit, f"{PACKAGE.name}/").splitlines()
        inside = [path.removeprefix(f"{PACKAGE.name}/") for path in paths]
        return _hashes({path: git("show", f"{commit}:{PACKAGE.name}/{path}") for path in inside if _room(path)})
    except (OSError, subprocess.SubprocessError):
        return None


def _room(path: str) -> str | None:
    """Name the room of a file of the package, in this commit or an earlier one; None if it has no kernels."""
    first, *rest = path.removesuffix(".py").split("/")
    if not path.endswith(".py"):
        return None
    if first == "backends" and rest and rest[0] not in _NO_ROOM:
        name = rest[0] if len(rest) > 1 else rest[0].partition("_")[0]
        return _MOVED.get(name, name)
    if path.startswith("layer/kernels/") or re.fullmatch(r"step/\w+_kernels\.py", path):
        return "layer"
    if re.fullmatch(r"engine/\w+_kernels\.py", path):
        return "engine"
    return "pool" if path in ("pool_kernels.py", "commit_kernels.py") else None


def _hashes(sources: dict[str, str]) -> dict[str, str]:
    """Hash sources by room: {path in the package: text} -> {room: hash}."""
    statements = defaultdict(list)
    for path, text in sources.items():
        if room := _room(path):
            statements[room] += _statements(text)
    return {room: _digest(statements[room]) for room in sorted(statements)}


def _digest(statements: list[str]) -> str:
    return hashlib.sha256("\0".join(sorted(statements)).encode()).hexdigest()[:16]


def _statements(text: str) -> list[str]:
    """Return the code of a file statement by statement, without its prose and written in one way."""
    body = _WithoutProse().visit(ast.parse(text)).body
    return [line for line in map(ast.unparse, map(ast.fix_missing_locations, body)) if line]


class _WithoutProse(ast.NodeTransformer):
    def visit_Import(self, node):
        return None

    visit_ImportFrom = visit_Import

    def visit_Expr(self, node):
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)  # docstrings

    def visit_Assign(self, node):
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        return None if names in (["variants"], ["__all__"]) else self.generic_visit(node)

    def visit_JoinedStr(self, node):
        return ast.Constant("")

    def visit_Constant(self, node):
        prose = isinstance(node.value, str) and " " in node.value and not _ASSEMBLY.search(node.value)
        return ast.Constant("") if prose else node

    def generic_visit(self, node):
        node = super().generic_visit(node)
        if getattr(node, "body", None) == [] and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]
        return node
