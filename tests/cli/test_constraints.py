"""What is installed is what constraints.txt pins, and the licences that it names are those of the installed files."""

import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from gdn_lab.cli import constraints
from gdn_lab.cli.main import main
from gdn_lab.cli.run import ROOT

PINS = constraints.pinned()
DIRECT = [each for needed in constraints.requirements().values() for each in needed]
FOLDERS = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
own_torch = pytest.mark.skipif(
    torch.__version__.partition("+")[0] != PINS["torch"][0], reason="this environment has a torch of its own"
)


def test_every_requirement_is_pinned_to_one_version_and_that_is_the_constraint():
    for requirement in DIRECT:
        (pin,) = requirement.specifier
        assert (pin.operator, pin.version) == ("==", PINS[canonicalize_name(requirement.name)][0]), requirement


def distributions():
    """What pip has installed; not what setuptools carries along and adds to sys.path when it is imported."""
    return metadata.distributions(path=FOLDERS)


def licence(found):
    """The licence that an installed distribution names."""
    header = found.metadata
    fields = {"license_expression": header["License-Expression"], "license": header["License"]}
    return constraints.licence(fields | {"name": header["Name"], "classifier": header.get_all("Classifier")})


@own_torch
def test_what_is_installed_is_pinned_with_all_that_it_needs():
    found = {canonicalize_name(each.metadata["Name"]): each for each in distributions()}
    todo, seen = [each for each in DIRECT if canonicalize_name(each.name) in found], set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            needed = [Requirement(line) for line in found[name].requires or []]
            todo += [each for each in needed if each.marker is None or each.marker.evaluate({"extra": extra})]
    names = {name for name, _ in seen}
    assert len(names) > 100
    for name in names:
        assert found[name].version.partition("+")[0] == PINS[name][0], name
        assert licence(found[name]) == PINS[name][1], name


@own_torch
def test_what_is_installed_serves_the_oldest_python():
    """A release can ask for a later patch of Python 3.11 than Debian 12 has; pip there then finds no such version."""
    asked = {each.metadata["Name"]: each.metadata["Requires-Python"] or "" for each in distributions()}
    refused = [name for name, python in asked.items() if not SpecifierSet(python).contains(constraints.OLDEST)]
    assert not refused


def test_make_and_the_package_refuse_what_the_pins_do_not_serve():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={constraints.OLDEST},<3.13"
    assert f"({constraints.OLDEST.replace('.', ', ')}) <= v < (3, 13)" in (ROOT / "Makefile").read_text()


@own_torch
def test_pip_check_finds_nothing():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_make_installs_with_the_constraints():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (pip,) = [line for line in text.splitlines() if line.startswith("PIP := ")]
    assert pip.endswith("-c constraints.txt")
    rule = text.partition("$(READY): ")[2]
    assert "constraints.txt" in rule.partition("\n")[0], "new pins set up .venv anew"
    assert "pip install" not in rule, "every installation goes through $(PIP)"


def test_the_page_of_licences_is_what_the_pins_say():
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    assert constraints.table() in page, "make report"
    for name in ("nvidia-cutlass-dsl", "nvidia-cudnn-cu13", "nvidia-cublas"):
        assert PINS[name][1] == constraints.PROPRIETARY
    assert f"| nvidia-cutlass-dsl | {PINS['nvidia-cutlass-dsl'][0]} | NVIDIA proprietary |" in page


def test_the_project_names_its_own_licence():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ({"license_expression": "BSD-3-Clause", "license": "BSD"}, "BSD-3-Clause"),
        ({"license": "MIT"}, "MIT"),
        ({"license": "Copyright (c) someone\nthe whole text"}, "not named"),
        ({"classifier": ["License :: OSI Approved :: BSD License", "Topic :: Software"]}, "BSD"),
        ({"classifier": ["License :: Other/Proprietary License"]}, "NVIDIA proprietary"),
        ({"license_expression": "LicenseRef-NVIDIA-Proprietary"}, "NVIDIA proprietary"),
        ({}, "not named"),
    ],
)
def test_a_licence_is_what_the_metadata_names(metadata, licence):
    assert constraints.licence({"name": "x"} | metadata) == licence


def test_a_python_that_is_not_there_is_a_usage_error(capsys):
    assert main(["constraints", "nopython"]) == 2
    assert "there is no nopython here; name a Python that is on PATH" in capsys.readouterr().err
