"""A batch whose pools do not fit is refused with the parameters, before any folder is made."""

import pytest

from gdn_lab.bench import free_memory
from gdn_lab.bench.free_memory import POOLS_SHARE, Room, room_for_pools
from gdn_lab.cli.main import main
from gdn_lab.studies import study
from gdn_lab.studies.parameters import ParameterError

MODEL = {"model": "qwen3.5-397b-a17b", "tp": 1}
STATE = 64 * 128 * 128 * 2  # bytes, bfloat16
SLOT = STATE + (2 * 16 * 128 + 64 * 128) * 3 * 2


@pytest.fixture
def room(monkeypatch):
    """room(bytes): what pools may take."""

    def set_room(nbytes, where="this machine"):
        monkeypatch.setattr(free_memory, "room_for_pools", lambda: Room(nbytes, where))

    return set_room


def parse(number, **values):
    return study(number).parameters.parse(MODEL | values, "the test")


@pytest.mark.parametrize(("number", "name"), [("00", "batch"), ("01", "batches"), ("02", "batches")])
def test_what_is_needed_what_there_is_and_what_fits(number, name, room):
    """Two layouts, each with 2 B + 1 slots and B + 1 more to gather into."""
    room(24 * 10**9)
    with pytest.raises(ParameterError) as refusal:
        parse(number, **{name: "1000000"})
    fits = int((24e9 - 4 * SLOT) // (6 * SLOT))
    need = 2 * (3 * 1_000_000 + 2) * SLOT
    assert str(refusal.value) == (
        f"{name}: the pools of B = 1,000,000 need {need / 1e9:,.0f} GB, this machine has 24 GB for them; "
        f"the largest batch that fits is {fits:,}"
    )
    parse(number, **{name: str(fits)})
    with pytest.raises(ParameterError, match=f"fits is {fits:,}"):
        parse(number, **{name: str(fits + 1)})


def test_verify_counts_the_draft_states(room):
    """One layout, VK: 2 B + 1 slots, and T states and inputs for each row."""
    p = parse("05", batch=10, tokens="2,8")
    draft = 8 * (STATE + (2 * 16 * 128 + 64 * 128) * 2)
    assert p.layouts == 1 and p.pools_nbytes(10) == 21 * SLOT + 10 * draft
    room(p.pools_nbytes(10) - 1, "this GPU")
    with pytest.raises(ParameterError, match=r"^batch: .* this GPU has .*; the largest batch that fits is 9$"):
        parse("05", batch=10, tokens="2,8")


def test_fewer_layouts_need_less(room):
    both, one = (parse("02", batches="4", backends=names).pools_nbytes(4) for names in ("all", "triton/kv8,torch/kv"))
    assert both == 2 * one


def test_nothing_fits(room):
    room(1000)
    with pytest.raises(ParameterError, match="not even a batch of 1 fits$"):
        parse("00", batch=1)


def test_the_command_refuses_before_a_folder_is_made(room, tmp_path, capsys):
    room(10**9)
    assert main(["run", "02", "-p", "batches", "1000000", "--runs", str(tmp_path / "runs")]) == 2
    assert "the largest batch that fits is" in capsys.readouterr().err and not list(tmp_path.glob("runs/2*"))


def test_room_is_a_share_of_the_gpu_or_what_the_host_has_left(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2000, 9000))
    monkeypatch.setattr(free_memory, "free_bytes", lambda: 1000)
    assert room_for_pools() == Room(int(1000 * POOLS_SHARE), "this GPU")
    monkeypatch.setattr(free_memory, "free_bytes", lambda: None)
    assert room_for_pools() == Room(int(2000 * POOLS_SHARE), "this GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(free_memory, "available", lambda: 77)
    assert room_for_pools() == Room(77, "this machine")
