"""How long each part of a decode step takes: a CUDA graph of each, replayed."""

import statistics
import time
from functools import partial

import torch

from .decoder import ATTENTION_LAYER, EMBEDDING, GDN_LAYER, HEAD
from .model_steps import DecodeStep

ALL_REDUCES, GDN_KERNEL = "all-reduces", "GDN kernel"
REPLAYS = 30


def part_times(model, step: DecodeStep, length: int) -> list[dict]:
    """Rows {part, us, count} of `step`: us of one, the median of replays; a step has count of them.

    Sets the buffers: every row at position length - 1, in slots and pages that repeat if there are too few; afterwards
    all rows are padding. Call it while no request is in flight. GDN_KERNEL is a part of the GDN layers, timed again.
    """
    rows, decoder = [], step.decoder
    _fill(model, step.batch, length)

    def add(part, count, run):
        if count:
            rows.append({"part": part, "us": _median_us(model.graphs, run) / count, "count": count})

    decoder.summed.alone = True
    try:
        add(EMBEDDING, 1, decoder.embed)
        for kind in (GDN_LAYER, ATTENTION_LAYER):
            layers = [layer for layer in decoder.layers if layer.kind == kind]
            if layers:
                add(kind, len(layers), partial(decoder.run_layers, layers))
        layers = [layer.mixer for layer in decoder.layers if layer.kind == GDN_LAYER]
        add(GDN_KERNEL, len(layers), partial(_gdn_kernels, layers))
        decoder.run_layers(decoder.layers)  # leaves the last layer's output
        add(HEAD, 1, partial(_head, step))
    finally:
        decoder.summed.alone = False
    if decoder.parts.communicator.size > 1:
        rows.append({"part": ALL_REDUCES} | _all_reduces(model, decoder))
    model.buffers.indices.fill_(-1)
    model.buffers.positions.zero_()
    return rows


def _fill(model, batch: int, length: int) -> None:
    """Requests in the first `batch` rows, each `length` tokens long."""
    buffers, device = model.buffers, model.buffers.tokens.device
    row = torch.arange(batch, device=device)
    buffers.indices.fill_(-1)
    buffers.indices[:batch] = (1 + row % (model.slots.slots - 1)).int()
    buffers.positions[:batch] = length - 1
    buffers.tokens[:batch] = row % model.vocab
    pages = row[:, None] * model.cache.pages_for(length) + torch.arange(model.max_pages, device=device)
    buffers.page_table[:batch] = (pages % model.cache.pages).int()


def _gdn_kernels(layers) -> None:
    """GDN of every layer, on the inputs that are there; any numbers serve as gates."""
    for layer in layers:
        gates = layer.conv_out[:, : layer.pool.shape.num_v_heads]
        layer.gdn(*layer.qkv(), gates, gates)


def _head(step: DecodeStep) -> None:
    """Final norm, head and sampler; positions do not move on."""
    step.decoder.norm()
    step.buffers.next_tokens[: step.batch].copy_(step.tokens())


def _all_reduces(model, decoder) -> dict:
    """What the sums over ranks add to all layers, where ranks wait for each other: us of one, and count in a step."""
    layers = partial(decoder.run_layers, decoder.layers)
    summed = _median_us(model.graphs, layers)
    decoder.summed.alone = True
    try:
        alone = _median_us(model.graphs, layers)
    finally:
        decoder.summed.alone = False
    count = 2 * len(decoder.layers)
    return {"us": (summed - alone) / (count - 1), "count": count}  # the last sum comes with the final norm


def _median_us(graphs, run) -> float:
    """Median time of run(), replayed on a GPU, by its clock; on a CPU by the host's."""
    replay = graphs.captured(run)
    times = []
    for turn in range(REPLAYS + 3 if not graphs.eager else 4):
        if graphs.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            replay()
            end.record()
            end.synchronize()
            us = 1e3 * start.elapsed_time(end)
        else:
            began = time.perf_counter()
            replay()
            us = 1e6 * (time.perf_counter() - began)
        if turn >= 3:
            times.append(us)
    return statistics.median(times)
