"""Rows on the host and in the model's buffers; Ctrl-C between steps; energy."""

import os
import signal
import sys
import threading
import types

import pytest
import torch

from gdn_lab.engine.energy import energy_j
from gdn_lab.engine.interrupts import held_interrupts
from gdn_lab.engine.served_model import Buffers
from gdn_lab.engine.step_inputs import StepInputs


@pytest.fixture
def buffers():
    int32 = torch.zeros(5, dtype=torch.int32)
    return Buffers(
        torch.zeros(5, dtype=torch.int64), int32.clone(), int32 - 1, int32.new_zeros(5, 3), int32.to(torch.int64)
    )


def test_the_last_rows_take_the_places_of_those_that_go(buffers):
    inputs = StepInputs(buffers, page_size=4)
    inputs.add([11, 12, 13], [3, 4, 5], [[1], [2, 3], [4, 5]], torch.tensor([101, 102, 103]))
    inputs.add([14], [6], [[6, 7]], torch.tensor([104]))
    inputs.upload()
    assert buffers.indices.tolist() == [11, 12, 13, 14, -1] and buffers.positions[:4].tolist() == [3, 4, 5, 6]
    assert inputs.remove([0, 2]) == [3, 1]
    inputs.upload()
    assert buffers.tokens[:2].tolist() == [104, 102] and buffers.indices.tolist() == [14, 12, -1, -1, -1]
    assert buffers.positions[:2].tolist() == [6, 4] and buffers.page_table[:2, :2].tolist() == [[6, 7], [2, 3]]
    assert inputs.remove([1, 0]) == [] and inputs.rows == 0


def test_rows_that_need_a_page(buffers):
    inputs = StepInputs(buffers, page_size=4)
    inputs.add([11, 12, 13], [3, 4, 7], [[1], [2], [3, 4]], torch.tensor([1, 2, 3]))
    assert inputs.short_of_pages(1) == [1] and inputs.short_of_pages(2) == [0, 1, 2]
    inputs.set_pages(1, [2, 9])
    inputs.upload()
    assert inputs.short_of_pages(1) == [] and buffers.page_table[1].tolist() == [2, 9, 0]


def test_what_the_device_may_still_read_is_a_copy(buffers):
    """A step later the host writes its arrays anew."""
    inputs = StepInputs(buffers, page_size=4)
    inputs.add([1], [3], [[1]], torch.tensor([1]))
    staged = inputs._staged(inputs.positions)
    inputs.positions[:] = 99
    assert staged[0] == 3


def test_nothing_is_uploaded_that_has_not_changed(buffers):
    inputs = StepInputs(buffers, page_size=4)
    inputs.upload()
    buffers.indices.fill_(7)
    inputs.upload()
    assert buffers.indices.tolist() == [7] * 5


def test_the_first_ctrl_c_is_noted_and_the_second_raises():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), held_interrupts() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.came
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_of_the_main_thread_signals_stay_as_they_are():
    found = []

    def other():
        with held_interrupts() as interrupt:
            found.append((signal.getsignal(signal.SIGINT), interrupt.came))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [(signal.getsignal(signal.SIGINT), False)]


def test_energy_is_nvml_s_counter_or_nothing(monkeypatch):
    assert energy_j(torch.device("cpu")) is None
    nvml = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-1": "gpu"}[uuid],
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: 2500,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="1"))
    assert energy_j(torch.device("cuda", 0)) == 2.5
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda gpu: 1 / 0
    assert energy_j(torch.device("cuda", 0)) is None
