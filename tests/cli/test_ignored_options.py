"""An option that would be ignored beside another one is refused in a sentence."""

import pytest

from gdn_lab.cli.main import main


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("check torch/vk --calls 3 --only reference", "--only is for the checks, not for random calls"),
        ("check torch/vk --calls 3 --sanitize", "--sanitize is for the checks, not for random calls"),
        ("check torch/vk --only reference --processes 3", "--processes is for random calls"),
        ("check torch/vk --runs somewhere", "--runs is for random calls"),
        ("judge torch/vk --workloads x --tp 2 --batches 1", "leave --tp and --batches out"),
        ("record serving --fresh --resume somewhere", "--fresh takes nothing over"),
        ("list --runs no-such-folder", "there is no folder no-such-folder"),
    ],
)
def test_it_is_refused(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    assert sentence in capsys.readouterr().err and not list(tmp_path.iterdir())
