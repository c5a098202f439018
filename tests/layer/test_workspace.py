"""Buffers that layers share by name."""

import torch

from gdn_lab.layer.workspace import Workspace


def test_a_name_is_one_piece_of_memory():
    workspace = Workspace()
    large = workspace.take("x", 4, 8)
    large.fill_(3)
    small = workspace.take("x", 2, 8)
    assert small.data_ptr() == large.data_ptr() and (small == 3).all()
    assert workspace.take("y", 2, 8).data_ptr() != large.data_ptr()
    assert workspace.take("x", 2, 4, dtype=torch.float32).shape == (2, 4)


def test_memory_that_is_outgrown_stays_as_graphs_know_it():
    workspace = Workspace()
    small = workspace.take("x", 2, 8)
    small.fill_(3)
    large = workspace.take("x", 4, 8)
    assert not large.any() and (small == 3).all()
    assert workspace.nbytes == small.nbytes + large.nbytes


def test_it_can_be_planned_without_memory():
    assert Workspace("meta").take("x", 1 << 20, 1 << 10).device.type == "meta"
