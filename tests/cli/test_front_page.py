"""The README's first tables, from made-up and from recorded rows, and from what the variants declare."""

import json
import sys

import pytest
import torch

from gdn_lab.backends.base import assumed_capability
from gdn_lab.backends.registry import BACKENDS
from gdn_lab.cli import front_page
from gdn_lab.cli.front_page import ADVICE, CARDS, NONE, PHASES
from gdn_lab.report.recorded import measured, recorded_gpus, recorded_runs

ROW = {
    "status": "ok",
    "phase": "verify",
    "mode": "update",
    "timer": "cuda_graph_replay",
    "indexing": "in_place",
    "model": "m",
    "state_dtype": "bfloat16",
    "num_k_heads": 2,
    "num_v_heads": 4,
    "batch": 8,
    "count": 5,
}
(VERIFY,) = (advice for advice in ADVICE if advice.notebook == "05_verify")


@pytest.fixture
def recorded(tmp_path):
    """recorded(*rows): writes rows of verify, each (variant, tokens, µs, other fields), and returns the data folder."""

    def write(*rows):
        folder = tmp_path / "measured" / "b9000" / "05_verify"
        folder.mkdir(parents=True)
        about = {"notebook": "05_verify", "start_utc": "2026-11-01T00:00:00Z"}
        (folder / "run.json").write_text(json.dumps(about | {"environment": {"compute_capability": "10.0"}}))
        lines = []
        for name, tokens, us, more in rows:
            backend, variant = name.split("/")
            lines.append(ROW | {"backend": backend, "variant": variant, "tokens": tokens, "median_us": us} | more)
        (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path

    return write


def test_a_saving_is_of_the_same_call(recorded):
    data = recorded(
        ("triton/vk", 2, 9.0, {}),
        ("flashinfer/vk", 2, 10.0, {}),
        ("triton/vk", 4, 5.0, {}),
        ("flashinfer/vk", 4, 10.0, {}),
        ("triton/vk", 8, 1.0, {}),  # timed alone
        ("flashinfer/vk", 16, 1.0, {}),  # so is this, and counts as a call that the table does not answer
        ("flashinfer/vk", 4, 99.0, {"batch": 16}),
        ("flashinfer/vk", 4, 99.0, {"mode": "output"}),
        ("flashinfer/vk", 4, 99.0, {"status": "wrong"}),
        ("flashinfer/vk", 4, 99.0, {"timer": "cupti_kernel"}),
        ("flashinfer/vk", 4, 99.0, {"count": 1}),  # another sweep's, of fewer samples
        ("flashinfer/vk", 4, 99.0, {"state_dtype": "float32"}),
    )
    table = front_page.which_backend(data)
    assert "saves, B9000" in table
    assert (
        "| verify 2 to 16 draft tokens, state updated | 4 | `triton/vk` | `flashinfer/vk` | 10 to 50% (2 of 4 calls) |"
        in table
    )
    assert "| decode, B = 1 to 8 |  | `cutedsl/vk` | `flashinfer/vk` | not recorded |" in table
    assert not front_page.is_recorded(data)


def test_savings_in_words():
    assert front_page.saving([0.041, 0.234]) == "4 to 23%"
    assert front_page.saving([0.1]) == "10%"
    assert front_page.saving([-0.5, 0.2, 0.65]) == "up to 65% at 2 of 3 workloads, else up to 1.5× as long"
    assert front_page.saving([]) == "not recorded"


@pytest.mark.parametrize("gpu", recorded_gpus())
@pytest.mark.parametrize("advice", ADVICE[:-1], ids=lambda advice: advice.call)
def test_what_is_named_is_faster_wherever_both_were_timed(advice, gpu):
    times = [pair for pair in front_page.recorded_times(advice, gpu) if advice.use in pair[1]]
    assert all(by_name[advice.use] < by_name[advice.over] for _, by_name in times)
    if (gpu, advice.notebook) in recorded_runs():
        names = {f"{row.get('backend')}/{row.get('variant')}" for row in measured(gpu, advice.notebook)[1]}
        assert times or advice.use not in names, "a variant may be younger than a record"


@pytest.mark.parametrize("gpu", recorded_gpus())
def test_no_timed_kernel_on_a_k_last_pool_decodes_much_faster_than_what_is_named(gpu):
    """`cutedsl/vk` is the fastest or within 2% of it, which a page that names one backend must be able to say."""
    rows = [
        row
        for row in measured(gpu, "02_decode_kernels")[1]
        if row["status"] == "ok" and row.get("timer") == "cuda_graph_replay" and row["indexing"] == "in_place"
        if not row.get("ring_updates")  # a pool with a ring is another pool
    ]
    for batch in {row["batch"] for row in rows}:
        times = {f"{row['backend']}/{row['variant']}": row["median_us"] for row in rows if row["batch"] == batch}
        assert times["cutedsl/vk"] < 1.02 * min(times.values()), (batch, times)
        if batch >= 16:
            assert times["triton/vk"] < 1.02 * min(times.values()), (batch, times)


@pytest.mark.parametrize("name", [backend.name for backend in BACKENDS.values() if backend.variants])
def test_what_a_variant_needs_is_what_its_backend_refuses(name, monkeypatch):
    backend = BACKENDS[name]
    module = sys.modules[type(backend).__module__]
    monkeypatch.setattr(module, "_not_installed", lambda *_: None, raising=False)  # as if its library were there
    for capability in CARDS:
        with assumed_capability(*capability):
            refusal = backend.missing(torch.device("cuda", 0))
        assert (refusal is not None) == (capability < min(variant.needs for variant in backend.variants)), refusal


def test_the_hardware_table_says_what_serves_and_what_is_recorded(recorded):
    table = {line.split("|")[1].strip(): line for line in front_page.hardware(recorded()).splitlines()}
    assert len(table) == len(CARDS) + 3
    assert table["10.0"].endswith("| yes | B9000 |") and table["9.0"].endswith("| yes | no |")
    assert table["8.0"].endswith("| no | no |")
    assert "cutedsl" in table["9.0"] and "cutedsl" not in table["8.9"] and "triton" in table["8.0"]
    assert {name for phase in PHASES for name in front_page.serving(phase, NONE)} == {"torch"}


def test_recorded_gpus_are_listed_with_their_compute_capability():
    assert front_page.cards_recorded() == {(9, 0): [gpu.upper() for gpu in recorded_gpus()]}
