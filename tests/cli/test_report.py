"""The README's sections on verify and prefill, filled from recorded rows."""

import re

import pytest
import torch

from gdn_lab import GDNShape
from gdn_lab.bench.results import Run
from gdn_lab.cli.report import report
from gdn_lab.studies.prefill.sweep import prefill_sweep
from gdn_lab.studies.verify.sweep import verify_sweep

SHAPE = GDNShape(1, 2, 16, 32)
OPTIONS = dict(variants=["torch/vk"], samples=1, progress=False, device="cpu", dtype=torch.bfloat16)
PARAMETERS = {"model": "qwen3.5-397b-a17b", "tp": 1}


@pytest.fixture
def checkout(tmp_path):
    for name, sweep, arguments in (("05_verify", verify_sweep, ([2], [2])), ("06_prefill", prefill_sweep, ([(1, 5)],))):
        folder = tmp_path / "data" / "measured" / "h100" / name
        folder.mkdir(parents=True)
        with Run.create(name, PARAMETERS, root=tmp_path / "runs") as run:
            sweep(SHAPE, *arguments, run=run, **OPTIONS)
        for file in ("run.json", "rows.jsonl"):
            (folder / file).write_bytes((run.folder / file).read_bytes())
    blocks = ("h100-verify", "h100-prefill", "h200-prefill", "h200-other")
    (tmp_path / "README.md").write_text("top\n" + "".join(f"<!-- measured:{block} -->\n" for block in blocks))
    return tmp_path


def test_report_fills_the_sections_and_changes_nothing_the_second_time(checkout):
    written = report(checkout)
    text = (checkout / "README.md").read_text()
    sections = dict(re.findall(r"<!-- measured:([\w-]+) -->\n(.*?)\n<!-- /measured:\1 -->", text, re.DOTALL))
    assert set(sections) == {"h100-verify", "h100-prefill", "h200-prefill"}, "a block of no section is left as it is"
    assert "- To update the state, torch/vk is fastest" in sections["h100-verify"]
    assert "- torch/vk reaches" in sections["h100-prefill"] and "Measured on CPU" in sections["h100-prefill"]
    assert "no recorded run of 06_prefill on 'h200'" in sections["h200-prefill"]
    assert "gdn_lab run 06" in sections["h200-prefill"] and "data/measured/h200/06_prefill/" in sections["h200-prefill"]
    for path in re.findall(r"\]\((docs/\S+)\)", text):
        assert checkout / path in written and (checkout / path).is_file()
    assert checkout / "README.md" not in report(checkout) and (checkout / "README.md").read_text() == text
