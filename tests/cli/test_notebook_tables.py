"""How the tables of notebooks look."""

import re

import pandas

from gdn_lab.cli import notebook


def cells(frame, **options):
    return re.findall(r"<td[^>]*>([^<]*)", notebook.table(frame, **options).to_html())


def test_whole_numbers_with_empty_cells_have_no_decimals():
    frame = pandas.DataFrame({"C": [1.0, None], "TPOT, ms": [4.0, 3.5], "µs": [4.0, 3.0], "batch": [1, 2000]})
    assert cells(frame, digits=2) == ["1", "4.00", "4.00", "1", "", "3.50", "3.00", "2,000"]


def test_names_keep_to_a_line_and_sentences_get_room():
    sentence = "trained weights; HTTP server; five examples in each prompt"
    page = notebook.table(pandas.DataFrame({"model": ["qwen3.5-35b-a3b"], "how it differs": [sentence]})).to_html()
    rules = dict(re.findall(r"#T_\w+_row0_col(\d) \{([^}]*)\}", page))
    assert "nowrap" in rules["0"] and "min-width" not in rules["0"]
    assert "min-width: 16em" in rules["1"] and "nowrap" not in rules["1"]
