"""Solutions of flashinfer-bench: read one as a kernel, write one from a kernel.

A Solution is a JSON file: a name, the definition that it solves (definitions.py), an author, a spec (language, entry
point, whether outputs are arguments) and the text of its sources. `--kernel solution.json` reads one like a file of
your own; it is called "solution/<name>".
"""

import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path

import torch

from .. import __version__
from . import author, definitions
from .base import Call, dtype_name
from .registry import launch_for, variant

IMPORTED = ("python", "triton", "cutedsl", "tilelang")  # languages whose entry point is a Python function
COMPILED = ("cpp", "cuda")
LANGUAGES: dict[str, str] = {}  # of each solution that is loaded, by its full name
_folders: list[tempfile.TemporaryDirectory] = []  # of the sources; removed when the process ends

MAIN = '''"""{kernel} of gdn_lab {version}, called as flashinfer-bench calls a solution of {definition}."""

{imports}from gdn_lab.backends.solution import serve

serves = serve("{kernel}", "{definition}")


def run({arguments}):
    serves({arguments})
'''


def load(path: str | Path) -> str:
    """Register the solution in a JSON file as a kernel; return its full name, "solution/<name>".

    It serves bfloat16 inputs and a float32 K-last pool of the definition's heads, and q and k that are normalised. An
    error in its sources is raised as it is; ValueError, one sentence, for a file that is no Solution of a GDN
    definition, or whose binding is not PyTorch's.
    """
    path = Path(path)
    solution = _checked(path)
    found, spec = definitions.definition(solution["definition"]), solution["spec"]
    folder = _written(solution["sources"])
    file, name = spec["entry_point"].split("::")
    if spec["language"] in IMPORTED:
        function = getattr(_imported(folder / file), name, None)
    else:
        function = _Compiled(folder, [source["path"] for source in solution["sources"]], name)
    if not callable(function):
        raise ValueError(f"{path.name}: {file} has no function {name}, its entry point")
    full_name = "solution/" + re.sub(r"[^\w.-]+", "-", solution["name"])
    LANGUAGES[full_name] = spec["language"]
    author.variant(
        full_name,
        state_dtypes=(definitions.STATE,),
        phases=(found.phase,),
        supports=lambda call: _refusal(found, call),
        description=f"{spec['language']} solution of {found.name} by {solution['author']}",
        note="gathers and scatters states in each call",
        copies=True,
        allocates=True,
        normalises=False,
    )(definitions.as_kernel(found, function, spec.get("destination_passing_style", True)))
    return full_name


def _checked(path: Path) -> dict:
    """Return what a Solution's file holds. ValueError, one sentence, for what is wrong with it."""
    try:
        solution = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON ({error})") from None
    if not isinstance(solution, dict):
        raise ValueError(f"{path.name}: expected a Solution of flashinfer-bench, a JSON object")
    for name, kind in {"name": str, "definition": str, "author": str, "spec": dict, "sources": list}.items():
        if not isinstance(solution.get(name), kind) or not solution[name]:
            raise ValueError(f"{path.name}: expected a Solution of flashinfer-bench; {name!r} is missing or empty")
    spec = solution["spec"]
    if spec.get("language") not in IMPORTED + COMPILED:
        known = ", ".join(IMPORTED + COMPILED)
        raise ValueError(f"{path.name}: spec.language: expected one of {known}, got {spec.get('language')!r}")
    if spec["language"] in COMPILED and spec.get("binding") != "torch":
        raise ValueError(f"{path.name}: spec.binding: a {spec['language']} solution needs binding 'torch' here")
    paths = []
    for source in solution["sources"]:
        place = source.get("path") if isinstance(source, dict) else None
        if not isinstance(place, str) or not isinstance(source.get("content"), str):
            raise ValueError(f"{path.name}: sources: expected objects with path and content")
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise ValueError(f"{path.name}: sources: expected paths inside of the solution, got {place!r}")
        paths.append(place)
    entry = spec.get("entry_point")
    if not isinstance(entry, str) or entry.count("::") != 1 or entry.split("::")[0] not in paths:
        raise ValueError(f"{path.name}: spec.entry_point: expected one of its sources::function, got {entry!r}")
    return solution


def _written(sources: list[dict]) -> Path:
    _folders.append(tempfile.TemporaryDirectory(prefix="gdn_lab-solution-"))
    folder = Path(_folders[-1].name)
    for source in sources:
        place = folder / source["path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(source["content"], encoding="utf-8")
    return folder


def _imported(file: Path):
    """Import a solution's entry file; the folder of its sources is importable while it is."""
    spec = importlib.util.spec_from_file_location(f"gdn_lab_solution_{len(_folders)}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(_folders[-1].name))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(_folders[-1].name)
    return module


class _Compiled:
    """A function of C++ or CUDA sources, compiled by torch.utils.cpp_extension at its first call."""

    def __init__(self, folder: Path, paths: list[str], name: str):
        self.folder, self.name, self.function = folder, name, None
        self.sources = [str(folder / path) for path in paths if Path(path).suffix in (".cpp", ".cc", ".cu", ".c")]

    def __call__(self, *arguments):
        if self.function is None:
            from torch.utils import cpp_extension

            name = f"{self.folder.name.replace('-', '_')}"
            module = cpp_extension.load(
                name, self.sources, extra_include_paths=[str(self.folder)], build_directory=str(self.folder)
            )
            self.function = getattr(module, self.name)
        return self.function(*arguments)


def _refusal(found: definitions.Definition, call: Call) -> str | None:
    if call.shape != found.shape:
        heads = f"HK {found.shape.num_k_heads}, HV {found.shape.num_v_heads}"
        return f"solves {found.name}, for {heads}; this is HK {call.shape.num_k_heads}, HV {call.shape.num_v_heads}"
    if call.io_dtype != definitions.IO:
        return f"takes inputs of {dtype_name(definitions.IO)}; these are {dtype_name(call.io_dtype)}"
    return None


# ---- ours as a solution ----------------------------------------------------------------------------------------------


def write(kernel: str, definition_name: str, path: str | Path, sources: dict[str, str] | None = None) -> None:
    """Write a kernel as a Solution that solves a definition; flashinfer-bench then needs gdn_lab installed.

    kernel: full name of a K-last variant, "triton/vk". sources: {file name: text} of files that register it, if it is
    not the workbook's own. ValueError for a kernel or a definition that is not known.
    """
    from ..files import replacing

    found, record = definitions.definition(definition_name), variant(kernel)
    if record.layout != "VK" or found.phase not in record.phases:
        served = f"{', '.join(record.phases) or 'nothing'} on a {record.layout} pool"
        raise ValueError(f"{kernel} serves {served}; {found.name} needs {found.phase} on a K-last (VK) pool")
    sources = sources or {}
    main = MAIN.format(
        kernel=kernel,
        version=__version__,
        definition=found.name,
        imports="".join(f"import {Path(name).stem}  # noqa: F401  registers the kernel\n" for name in sources),
        arguments=", ".join((*found.inputs, *found.outputs)),
    )
    language = {"triton": "triton", "cutedsl": "cutedsl"}.get(record.backend, "python")
    solution = {
        "name": f"gdn_lab_{kernel.replace('/', '_')}",
        "definition": found.name,
        "author": "gdn_lab",
        "description": record.description,
        "spec": {
            "language": language,
            "target_hardware": ["cuda"] if record.needs > (0, 0) else ["cuda", "cpu"],
            "entry_point": "main.py::run",
            "dependencies": [f"gdn_lab=={__version__}"],
            "destination_passing_style": True,
        },
        "sources": [{"path": name, "content": text} for name, text in {"main.py": main, **sources}.items()],
    }
    with replacing(Path(path)) as partial:
        partial.write_text(json.dumps(solution, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def serve(kernel: str, definition_name: str):
    """Return a function with a definition's arguments, outputs last, that a kernel serves on the tensors' device."""
    found = definitions.definition(definition_name)

    def run(*arguments):
        q = arguments[0]
        mode = None
        if found.phase == "verify":
            mode = "output" if arguments[len(found.inputs) - 1] is None else "intermediate"
        call = Call(found.phase, "VK", definitions.STATE, definitions.IO, torch.int32, found.shape, q.device, mode)
        definitions.as_solution(found, launch_for(kernel, call))(*arguments)

    return run
