"""The studies: one folder for each question, found by looking.

A folder here with a study.py that defines STUDY (declaration.py) is a study; its notebook is `<number>_<folder>.ipynb`.
Notebook 00's guide, `gdn-lab list`, `make report`, the README and the tests of recorded data are made from studies().
"""

import functools
import importlib
from pathlib import Path

from .declaration import Study, StudyParameters

__all__ = ["Study", "StudyParameters", "study", "studies"]


def studies() -> list[Study]:
    """Every study, in the order of its number."""
    names = {path.parent.name for folder in __path__ for path in Path(folder).glob("*/study.py")}
    found = [_load(name) for name in names]
    return sorted(found, key=lambda study: study.number)


@functools.cache
def _load(name: str) -> Study:
    study = importlib.import_module(f"{__name__}.{name}.study").STUDY
    if study.name != name:
        raise ValueError(f"studies/{name}/study.py: expected STUDY.name {name!r}, got {study.name!r}")
    return study


def study(word: str) -> Study:
    """The study that "02", "decode_kernels" or "02_decode_kernels" names. ValueError with the known ones if none."""
    for each in studies():
        if word in (each.number, each.name, each.notebook):
            return each
    raise ValueError(f"study: {word!r} is unknown; choose one of {', '.join(each.notebook for each in studies())}")
