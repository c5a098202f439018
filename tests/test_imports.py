"""The shape of the package: imports go downwards only, files are short, no kernel is known by a prefix of its name."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

import gdn_lab

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gdn_lab"
LEVELS = (
    (
        "files",
        "tensor_file",
        "names",
        "memory",
        "seals",
        "clock",
        "models",
        "minimum_versions",
        "tolerances",
        "reference",
        "rounding",
        "e4m3",
        "costs",
    ),
    ("backends",),
    ("ring", "rollback", "pool_kernels", "pool"),
    ("arguments",),
    ("ops", "config", "hard_inputs"),
    ("trace",),
    ("bench",),
    ("layer",),
    ("engine", "trained"),
    ("report",),
    ("judge",),
    ("studies",),
    ("cluster", "verdict"),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MODULES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {path: module.removesuffix(".__init__") for path, module in MODULES.items()}
each_file = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
# The same file of each study, and of each backend that is a folder.
REPEATED = (
    "__init__.py",
    "study.py",
    "sweep.py",
    "analysis.py",
    "figures.py",
    "tables.py",
    "sentences.py",
    "backend.py",
)


def room(module: str) -> str:
    """ "gdn_lab.bench.roof" -> "bench"."""
    return (module.split(".") + [""])[1]


def imported(path: Path, nodes=None) -> set[str]:
    """Full names of the modules of this package that a file imports, inside functions too; or that `nodes` do."""
    package = MODULES[path] if path.name == "__init__.py" else MODULES[path].rpartition(".")[0]
    found = set()
    for node in nodes or ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {_module(base, alias.name) for alias in node.names}
    return {name for name in found if name.startswith("gdn_lab.") and name != package}


def _module(base: str, name: str) -> str:
    """What `from base import name` imports: a module, or a name of a module."""
    if f"{base}.{name}" in MODULES.values():
        return f"{base}.{name}"
    return f"gdn_lab.{gdn_lab._MODULE_OF[name]}" if base == "gdn_lab" and name in gdn_lab._MODULE_OF else base


def test_every_module_has_a_level():
    rooms = {room(module) for module in MODULES.values()} - {"", "__main__"}
    assert rooms == set(LEVEL), "a new room needs a level here and in CONTRIBUTING.md"


@each_file
def test_imports_go_downwards(path):
    own = room(MODULES[path])
    for name in imported(path) if own not in ("", "__main__") else ():
        assert LEVEL[room(name)] <= LEVEL[own], f"{MODULES[path]} imports {name}, which lies above it"


def test_no_modules_import_each_other_in_a_circle():
    """At import time, that is: imports inside functions are left out."""
    needs = {module: imported(path, ast.parse(path.read_text()).body) for path, module in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]):
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for other in sorted(needs.get(module, ())):
                visit(other, (*above, module))
            done.add(module)

    for module in needs:
        visit(module, ())


@each_file
def test_a_file_is_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 400


def test_test_files_are_short_too():
    long = {path.name: n for path in (ROOT / "tests").rglob("*.py") if (n := len(path.read_text().splitlines())) > 400}
    assert not long


PREFIX = re.compile(
    r"""startswith\(\(?["'](?:torch|triton|cutedsl|flashinfer|fla)\b|\bbackend["']?\]?\s*==\s*["']torch["']"""
)


@each_file
def test_no_kernel_is_known_by_the_prefix_of_its_name(path):
    """What a kernel is stands in its Variant: role, layout, copies."""
    found = [line.strip() for line in path.read_text().splitlines() if PREFIX.search(line)]
    assert not found


def test_file_names_tell_tabs_of_an_editor_apart():
    places = defaultdict(list)
    for path in MODULES:
        if path.name not in REPEATED:
            places[path.name].append(str(path.relative_to(PACKAGE)))
    clashes = {name: paths for name, paths in places.items() if len(paths) > 1}
    assert not clashes


def test_test_files_have_names_of_their_own_and_mirror_the_package():
    places = defaultdict(list)
    for path in (ROOT / "tests").rglob("test_*.py"):
        places[path.name].append(path)
        folder = path.parent.relative_to(ROOT / "tests")
        assert (PACKAGE / folder).is_dir(), f"{path.name}: there is no room {folder}"
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def test_studies_are_light_to_import():
    """`gdn-lab list` and --help read study.py of every study, so it imports no library that is slow to load."""
    heavy = {"torch", "pandas", "matplotlib", "numpy", "IPython", "papermill"}
    for path in PACKAGE.glob("studies/*/study.py"):
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module.split(".")[0] for node in top if isinstance(node, ast.ImportFrom) and not node.level}
        assert not names & heavy, path


def test_text_files_are_utf_8_whatever_the_locale():
    """Whatever reads or writes text says so: the default is that of the locale."""
    for path in (ROOT / "gdn_lab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            words = [word.value for word in node.args if isinstance(word, ast.Constant)]
            text = name in ("read_text", "write_text") or (
                name == "open" and isinstance(node.func, ast.Name) and not any("b" in str(word) for word in words)
            )
            assert not text or "encoding" in {word.arg for word in node.keywords}, f"{path.name}:{node.lineno}"
