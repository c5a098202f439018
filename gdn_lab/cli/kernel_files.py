"""--kernel FILE of the commands that list, check or time variants."""

import sys
from pathlib import Path

from .errors import UsageError


def register(paths: list[str]) -> None:
    """Register the kernels of files, here and in what this process starts, after those of GDN_LAB_KERNELS.

    Prints what they register on stderr. UsageError after the file's own traceback if one cannot be imported.
    """
    from .. import ops  # noqa: F401  loads what GDN_LAB_KERNELS names
    from ..backends import author_files

    for path in paths:
        try:
            names = author_files.load(path)
        except author_files.KernelFileError as error:
            print(error.shown, end="", file=sys.stderr)
            raise UsageError(str(error)) from None
        print(f"{', '.join(names)}: {Path(path).name}", file=sys.stderr)
    author_files.name_files(paths)


def register_from(words: list[str]) -> list[str]:
    """Register the files of each `--kernel FILE` or `--kernel=FILE` among words, and return the other words."""
    paths, others, rest = [], [], iter(words)
    for word in rest:
        name, equals, path = word.partition("=")
        if name != "--kernel":
            others.append(word)
        elif path := path if equals else next(rest, ""):
            paths.append(path)
        else:
            raise UsageError("--kernel: expected a file")
    if paths:
        register(paths)
    return others
