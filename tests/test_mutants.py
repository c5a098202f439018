"""The table of mutants names files and tests that are there, and texts that occur once."""

import shlex
from pathlib import Path

import pytest
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


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in MUTANTS}))
def test_the_text_that_a_mutant_replaces_occurs_once_in_its_file(file):
    text = (ROOT / "gdn_lab" / file).read_text()
    counts = {mutant.old: text.count(mutant.old) for mutant in MUTANTS if mutant.file == file}
    assert set(counts.values()) == {1}, {old: count for old, count in counts.items() if count != 1}
