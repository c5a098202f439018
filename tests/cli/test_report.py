"""The README's generated parts, from studies and recorded rows."""

import json
import re

import matplotlib.figure
import pytest
import torch

from gdn_lab import GDNShape
from gdn_lab.backends.registry import VARIANTS
from gdn_lab.bench.results import Run
from gdn_lab.bench.sources import kernel_hashes
from gdn_lab.cli import recorded_with
from gdn_lab.cli.main import main
from gdn_lab.cli.report import report
from gdn_lab.studies import studies
from gdn_lab.studies.prefill.sweep import prefill_sweep
from gdn_lab.studies.verify.sweep import verify_sweep

SHAPE = GDNShape(1, 2, 16, 32)
OPTIONS = dict(variants=["torch/vk"], samples=1, progress=False, device="cpu", dtype=torch.bfloat16)
PARAMETERS = {"model": "qwen3.5-397b-a17b", "tp": 1}
BLOCKS = ("studies", "variants", "measured:h100-verify", "measured:h100-prefill", "measured:h200-prefill")


@pytest.fixture
def checkout(tmp_path):
    for name, sweep, arguments in (("05_verify", verify_sweep, ([2], [2])), ("06_prefill", prefill_sweep, ([(1, 5)],))):
        folder = tmp_path / "data" / "measured" / "h100" / name
        folder.mkdir(parents=True)
        with Run.create(name, PARAMETERS, root=tmp_path / "runs") as run:
            sweep(SHAPE, *arguments, run=run, **OPTIONS)
        for file in ("run.json", "rows.jsonl"):
            (folder / file).write_bytes((run.folder / file).read_bytes())
    markers = "".join(f"<!-- {block} -->\n" for block in (*BLOCKS, "measured:h100-nothing"))
    (tmp_path / "README.md").write_text(f"top\n{markers}bottom\n")
    (tmp_path / "docs").mkdir()
    return tmp_path


def blocks(text):
    return dict(re.findall(r"<!-- ([\w:-]+) -->\n(.*?)\n<!-- /\1 -->", text, re.DOTALL))


def test_report_fills_the_blocks_and_changes_nothing_the_second_time(checkout):
    written = report(checkout)
    assert len(set(written)) == len(written), "a figure is drawn once"
    text = (checkout / "README.md").read_text()
    made = blocks(text)
    assert set(made) == set(BLOCKS), "a block that no study makes is left as it is"
    assert text.startswith("top\n") and text.endswith("<!-- measured:h100-nothing -->\nbottom\n")
    for study in studies():
        assert f"| `{study.notebook}` | {study.question} |" in made["studies"]
    for name, variant in VARIANTS.items():
        assert f"| `{name}` |" in made["variants"] and variant.description in made["variants"]
    assert "torch/vk" in made["measured:h100-verify"] and "torch/vk" in made["measured:h100-prefill"]
    assert "Recorded on CPU" in made["measured:h100-prefill"]
    missing = made["measured:h200-prefill"]
    assert "no recorded run of 06_prefill on 'h200'" in missing and "gdn-lab run 06" in missing
    assert "data/measured/h200/06_prefill/" in missing
    for title, path in re.findall(r"!\[(.*)\]\((docs/\S+)\)", text):
        assert title and checkout / path in written and (checkout / path).is_file()
    for study in studies():
        for name, figure in study.computed().items():
            assert isinstance(figure, matplotlib.figure.Figure) and (checkout / "docs" / f"{name}.png").is_file()
    (checkout / "docs" / "more.md").write_text("<!-- measured:h100-verify -->")
    assert checkout / "README.md" not in report(checkout) and (checkout / "README.md").read_text() == text
    page = (checkout / "docs" / "more.md").read_text()
    assert "](verify_time.png)" in page.replace("h100_", "") and "](docs/" not in page


def test_a_gpu_whose_name_has_a_hyphen_has_its_sections(checkout):
    measured = checkout / "data" / "measured"
    (measured / "h100" / "05_verify").rename(measured / "h100" / "05_verify_some")
    (measured / "h100").rename(measured / "rtx-4090")
    names = ("measured:rtx-4090-prefill", "measured:rtx-4090-verify-some", "measured:rtx-5090-verify")
    markers = (*names, "recorded:rtx-4090")
    (checkout / "requirements.txt").write_text("torch==2.13.0\n")
    (checkout / "README.md").write_text("".join(f"<!-- {block} -->\n" for block in markers))
    report(checkout)
    made = blocks((checkout / "README.md").read_text())
    assert set(made) == set(markers)
    assert all("torch/vk" in made[name] for name in names[:2])
    assert "no recorded run of 05_verify on 'rtx-5090'" in made[names[2]]
    assert "Recorded on" in made["recorded:rtx-4090"]


def test_a_folder_that_is_no_checkout_is_a_usage_error(tmp_path, capsys):
    root = tmp_path / "nope"
    assert main(["report", "--root", str(root)]) == 2
    assert f"--root: there is no README.md and no data in {root}; name a checkout" in capsys.readouterr().err
    assert not root.exists()


def test_every_section_has_its_own_name():
    names = [study.section_name for study in studies() if study.section]
    assert all(names) and len(set(names)) == len(names)


# ---- with which versions and kernels


def recorded(root, gpu="h100", info=None, record="02_decode_kernels", **versions):
    facts = {"gpu_name": "NVIDIA H100", "driver": "580.1", "git_commit": "0123456789abcdef", "torch": "2.13.0+cu130"}
    info = {"start_utc": "2026-11-22T09:27:39Z", "environment": facts | {"triton": "3.7.1"} | versions} | (info or {})
    folder = root / "data" / "measured" / gpu / record
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(info))
    row = {"status": "ok", "phase": "decode", "backend": "triton"}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (root / "requirements.txt").write_text("# pins\ntorch==2.13.0\ntriton==3.7.1; sys_platform == 'linux'\n")


def test_the_readme_says_when_this_checkout_installs_what_was_measured(tmp_path):
    recorded(tmp_path)
    text = recorded_with.recorded_with("h100", tmp_path)
    assert "Recorded on NVIDIA H100, driver 580.1, 2026-11-22, with torch 2.13.0+cu130" in text
    assert "- The one record is of commit 0123456789." in text
    assert "This checkout installs the same versions." in text


def test_the_readme_says_which_versions_differ(tmp_path):
    recorded(tmp_path, torch="2.11.0+cu130", triton="3.6.0")
    text = recorded_with.recorded_with("h100", tmp_path)
    assert "with torch 2.11.0+cu130, triton 3.6.0." in text
    assert "This checkout installs torch 2.13.0, triton 3.7.1 instead. Both are supported and tested" in text


def test_the_readme_says_which_kernels_changed(tmp_path):
    kernels = kernel_hashes()
    recorded(tmp_path, info={"kernels": kernels | {"triton": "0", "flashinfer": "0"}})
    text = recorded_with.recorded_with("h100", tmp_path)
    assert "| `02_decode_kernels` | 0123456789 | 2026-11-22 | triton |" in text


def test_the_readme_says_when_the_kernels_are_those_of_the_checkout(tmp_path):
    recorded(tmp_path, info={"kernels": kernel_hashes()})
    assert "| 2026-11-22 | none |" in recorded_with.recorded_with("h100", tmp_path)


def test_kernels_of_an_unknown_commit_are_said(tmp_path):
    recorded(tmp_path)
    assert "| unknown: git does not have the commit |" in recorded_with.recorded_with("h100", tmp_path)


def test_a_page_says_when_the_records_of_a_gpu_are_of_several_commits(tmp_path):
    recorded(tmp_path)
    recorded(tmp_path, record="03_decode_step")
    assert "- All 2 records are of commit 0123456789." in recorded_with.recorded_with("h100", tmp_path)
    recorded(tmp_path, record="05_verify", git_commit="fedcba9876543210", triton="3.8.0")
    text = recorded_with.recorded_with("h100", tmp_path)
    assert "- The 3 records are of 2 commits: each belongs to the one in its `run.json`." in text
    assert "| `05_verify` | fedcba9876 |" in text and "2026-11-22: `05_verify`, with torch 2.13.0+cu130" in text


def test_a_gpu_without_records_is_a_sentence(tmp_path):
    assert recorded_with.recorded_with("b9000", tmp_path) == "Nothing is recorded of `b9000` yet."
