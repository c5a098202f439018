"""Files are replaced whole or not at all."""

import os

import pytest

from gdn_lab.files import replacing


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.parent == tmp_path
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path):
    (tmp_path / f".latest.{os.getpid()}.part").symlink_to("gone")
    with replacing(tmp_path / "latest") as partial:
        partial.symlink_to("here")
    assert os.readlink(tmp_path / "latest") == "here" and os.listdir(tmp_path) == ["latest"]
