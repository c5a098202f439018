"""README.md: its commands are there, its Python runs, and the numbers of its short answer follow from recorded rows."""

import re
import shlex

import pytest

from gdn_lab.cli.main import COMMANDS, parser
from gdn_lab.cli.run import ROOT
from gdn_lab.report.recorded import measured

README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
GPUS = ("h100", "h200")


def test_it_is_short():
    assert len(README.splitlines()) < 300


@pytest.mark.parametrize("page", PAGES)
def test_its_python_runs(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for code in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL):
        exec(code, {})


@pytest.mark.parametrize("page", PAGES)
def test_its_commands_exist(page):
    """Each gdn-lab command is parsed as typed; each make target is in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = re.findall(r"^ {4}(\S.*?)(?: +#.*)?$|`([^`\n]+)`", PAGES[page], re.MULTILINE)
    for line in (first or second for first, second in lines):
        words = shlex.split(line) if re.match(r"(\.venv/bin/)?gdn-lab \w|make [a-z]", line) else []
        if words and words[0] == "make":
            assert {word for word in words[1:] if re.fullmatch("[a-z-]+", word)} <= targets | {"help"}, line
        elif words:
            assert words[1] in COMMANDS, line
            module = __import__(f"gdn_lab.cli.{COMMANDS[words[1]][0]}", fromlist=["add_arguments"])
            parser(words[1], module).parse_args(words[1:])


@pytest.mark.parametrize("page", PAGES)
def test_its_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[page]):
        folder = ROOT if page == "README.md" else ROOT / "docs"
        assert (folder / target).exists(), target


def test_every_figure_in_docs_is_on_a_page():
    shown = {target.rpartition("/")[2] for text in PAGES.values() for target in re.findall(r"\]\(([^)]+\.png)\)", text)}
    assert {path.name for path in (ROOT / "docs").glob("*.png")} == shown


# ---- the short answer


def replay(gpu: str, notebook: str, phase: str) -> dict[tuple, float]:
    """{(variant, indexing, mode, value heads, batch, tokens of each): median µs} of the graph replays."""
    return {
        (
            f"{row['backend']}/{row['variant']}",
            row.get("indexing"),
            row.get("mode"),
            row["num_v_heads"],
            row["batch"],
            row.get("length") or row["tokens"],
        ): row["median_us"]
        for row in measured(gpu, notebook)[1]
        if row["status"] == "ok" and row["phase"] == phase and row["timer"] == "cuda_graph_replay"
    }


def saved(fast: float, slow: float) -> float:
    return 1 - fast / slow


@pytest.mark.parametrize("gpu", GPUS)
def test_decode_saves_what_the_short_answer_says(gpu):
    times = replay(gpu, "02_decode_kernels", "decode")

    def us(variant, batch, indexing="in_place"):
        return times[variant, indexing, None, 64, batch, 1]

    for batch in sorted({key[4] for key in times}):
        for variant in ("cutedsl/vk", "triton/vk"):
            assert 0.67 < saved(us(variant, batch), us(variant, batch, "gather_scatter")) < 0.805
        if batch >= 8:
            assert saved(us("cutedsl/vk", batch), us("triton/kv8", batch)) > 0.5
        assert 0.035 <= saved(us("cutedsl/vk", batch), us("flashinfer/vk", batch)) < 0.235
    assert "4 to 23% compared with `flashinfer/vk`" in README


def test_verify_saves_what_the_short_answer_says():
    times = replay("h100", "05_verify", "verify")
    found = {
        tokens: saved(times["triton/vk", "in_place", "update", 64, 64, tokens], us)
        for (variant, _, mode, _, _, tokens), us in times.items()
        if variant == "flashinfer/vk" and mode == "update"
    }
    assert f"{found[2]:.0%} (T = 2) to {found[16]:.0%} (T = 16) compared with `flashinfer/vk`" in README


def test_prefill_saves_what_the_short_answer_says():
    detours, faster, most = [], {}, []
    for gpu in GPUS:
        times = replay(gpu, "06_prefill", "prefill")
        ours = {key[3:]: us for key, us in times.items() if key[:2] == ("triton/vk", "in_place")}
        theirs = {key[3:]: us for key, us in times.items() if key[:2] == ("flashinfer/vk", "in_place")}
        detours += [saved(ours[key[3:]], us) for key, us in times.items() if key[:2] == ("triton/kv32", "detour")]
        faster[gpu] = sum(us < ours[case] for case, us in theirs.items()), len(theirs)
        most += [saved(us, ours[case]) for case, us in theirs.items()]
    assert f"{min(detours):.0%} to {max(detours):.0%} compared with a detour".replace("% to", " to") in README
    assert set(faster.values()) == {(9, 12)} and f"up to {max(most):.0%} compared with `triton/vk`" in README
