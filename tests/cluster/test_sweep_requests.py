"""What a sweep may be asked for, from YAML, from sweep.json and from words."""

import re

import pytest

from gdn_lab.cluster.request import RequestError, check_gpus, from_entries, from_words, read


def yaml(tmp_path, text: str):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return read(path)


@pytest.mark.parametrize("gpus", [0, -1, True, 1.5, "2"])
def test_gpus_are_a_whole_number_from_1_up(gpus):
    for ask in (
        lambda: from_words("02", [], {}, gpus),
        lambda: from_entries([{"study": "02", "gpus": gpus}], "here"),
        lambda: check_gpus("--on", gpus),
    ):
        with pytest.raises(RequestError, match="expected a whole number from 1 up, got"):
            ask()


@pytest.mark.parametrize("minutes", [0, -5, float("nan"), float("inf"), True, "9", None])
def test_minutes_are_a_finite_number_above_0(minutes):
    for ask in (
        lambda: from_words("02", [], {}, None, minutes),
        lambda: from_entries([{"study": "02", "minutes": minutes}], "here"),
    ):
        with pytest.raises(RequestError, match="minutes: expected a number above 0, got"):
            ask()


@pytest.mark.parametrize("text, study", [("2", "02"), ("02", "02"), ("08", "08"), ("12", "12"), ("'2'", "2")])
def test_a_number_is_that_notebook(tmp_path, text, study):
    assert [each.study for each in yaml(tmp_path, f"study: {text}")] == [study]


@pytest.mark.parametrize("text", ["yes", "2.0", "null", "-1", "100", "[02]"])
def test_a_study_is_text_or_the_number_of_a_notebook(tmp_path, text):
    with pytest.raises(RequestError, match='study: expected text such as "02"'):
        yaml(tmp_path, f"study: {text}")


@pytest.mark.parametrize("text", ["010", "012", "0x2", "0b10", "1_0"])
def test_no_number_is_read_as_another_one(tmp_path, text):
    (request,) = yaml(tmp_path, f"study: {text}\nset: {{samples: {text}}}")
    assert request.study == text and request.given == {"samples": text}


@pytest.mark.parametrize(
    "line, reason",
    [
        ("gpus: true", "gpus: expected a whole number"),
        ("gpus: 010", "gpus: expected a whole number"),
        ("minutes: .nan", "minutes: expected a number above 0, got nan"),
        ("minutes: .inf", "minutes: expected a number above 0, got inf"),
        ("minutes: on", "minutes: expected a number above 0, got True"),
    ],
)
def test_yaml_values_that_python_reads_as_numbers(tmp_path, line, reason):
    with pytest.raises(RequestError, match=reason):
        yaml(tmp_path, f"study: 02\n{line}")


def test_a_list_without_a_request_is_refused(tmp_path):
    with pytest.raises(RequestError, match="holds no request"):
        yaml(tmp_path, "[]")


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_bytes(b"study: 02 # \xe9")
    with pytest.raises(RequestError, match="is not YAML"):
        read(path)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("study: 02\nover: {tp: [1, 2]}\nset: {tp: 4}", "tp is in over and in set; choose one"),
        ("study: 02\nset: {1: 4}\nover: {'1': 4}", "1 is in over and in set"),
        ("study: 02\nset: {1: 4, '1': 5}", "two names of parameters are the same"),
        (
            "study: 02\nstudy: 03",
            "grid.yaml: 'study' is given twice in the mapping that begins in line 1; give it once",
        ),
        ("study: 02\nover:\n  tp: 1\n  tp: 2", "'tp' is given twice in the mapping that begins in line 3"),
        ("- study: 02\n- study: 03\n  set: {seed: 1, seed: 2}", "'seed' is given twice"),
    ],
)
def test_what_is_given_twice_is_refused(tmp_path, text, reason):
    with pytest.raises(RequestError, match=re.escape(reason)):
        yaml(tmp_path, text)


def test_merged_mappings_are_read(tmp_path):
    one, two = yaml(tmp_path, "- &a {study: 02, gpus: 2}\n- {<<: *a, gpus: 4}")
    assert (one.study, two.study, one.gpus, two.gpus) == ("02", "02", 2, 4)
