"""What a mutant is."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A change that makes the code wrong. `equivalent`: why no test can tell, so that nobody tries it again."""

    file: str  # below gdn_lab/
    old: str  # occurs once in the file
    new: str
    tests: str  # arguments of pytest, below tests/
    equivalent: str = ""
