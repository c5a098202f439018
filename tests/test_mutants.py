"""The table of mutants names files and tests that are there. Whether a text still occurs, make mutants says."""

import shlex
from pathlib import Path

from mutants.table import MUTANTS

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_names_what_is_there():
    assert len(MUTANTS) >= 100 and len({mutant[:3] for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        assert (ROOT / "gdn_lab" / mutant.file).is_file(), mutant
        assert mutant.old != mutant.new
        words = shlex.split(mutant.tests)
        paths = words[: words.index("-k")] if "-k" in words else words
        assert paths and all((ROOT / "tests" / path).exists() for path in paths), mutant
