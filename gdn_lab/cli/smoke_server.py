"""The server's kernels for `gdn-lab smoke`: attention over a paged cache, prompts' convolution, sampler, sums of ranks.

Each is called once, small, and compared with the same in PyTorch. Ranks are emulated in one process, whose kernels run
one stage after the other.
"""

from functools import partial

import torch

from ..engine import attention_reference, sampling_reference
from ..engine.attention_reference import rotary_table
from ..engine.sampling import GREEDY, Sampling, SamplingRows, sampling_rows
from ..engine.token_rows import TokenRows
from ..layer import layer_reference
from ..layer.fp8 import dequantize_rows
from ..layer.gdn_layer import Activation
from ..layer.workspace import Workspace

LARGEST_ERROR = 0.05  # as smoke.py's: coarse on purpose
HEADS = (4, 1, 128)  # query heads, key and value heads, channels
PAGE, MAX_LENGTH = 16, 1024
# (tokens with those of this call, tokens of this call) of each request; None: a padding slot
ATTENDED = {"decode": ((600, 1), None, (3, 1)), "prompts": ((40, 40), None, (150, 9), (1, 1))}
PADDING = 2  # rows of no request
VOCABULARY = 3000
WAYS = (GREEDY, Sampling(1.0, 0, 1.0, 1), Sampling(0.7, 50, 1.0, 2), Sampling(1.0, 0, 0.9, 3))
RANKS, HIDDEN = 2, 256


def calls(device):
    """Yield (what, function); the function returns whether the result is right, and the largest error."""
    if device.type != "cuda" and not _interpreted():
        print("server: its kernels need a GPU; on a CPU PyTorch takes their place", flush=True)
        return
    for what, requests in ATTENDED.items():
        for precision in ("bf16", "fp8"):
            yield f"attention {what} {precision}", partial(_attention, requests, precision == "fp8", device)
    for drafts in (False, True):
        yield f"convolution of {'drafts' if drafts else 'prompts'}", partial(_convolution, drafts, device)
    yield "sampler", partial(_sampler, device)
    for name in ("one_shot", "two_shot"):
        yield f"all-reduce {name}", partial(_all_reduce, name, device)


def _interpreted() -> bool:
    """Whether Triton's kernels run on the CPU; not every operating system has a Triton."""
    try:
        from ..backends.triton.device import INTERPRETED
    except ImportError:
        return False
    return bool(INTERPRETED.value)


def _close(found, expected, allowed: float = LARGEST_ERROR) -> tuple[bool, float]:
    error = (found.double() - expected.double()).abs().max().item()
    return error <= allowed, error  # NaN is not


def _rows(requests, device) -> TokenRows:
    """The rows of a call, their pages shuffled."""
    new = [request[1] if request else 0 for request in requests]
    positions = [at for request in requests if request for at in range(request[0] - request[1], request[0])]
    sequence = [n for n, count in enumerate(new) for _ in range(count)]

    def ints(values):
        return torch.tensor(values, dtype=torch.int32, device=device)

    return TokenRows(
        positions=ints(positions + [0] * PADDING),
        sequence=ints(sequence + [-1] * PADDING),
        starts=ints([sum(new[:n]) for n in range(len(new) + 1)]),
        indices=ints([n + 1 if request else -1 for n, request in enumerate(requests)]),
        page_table=torch.randperm(len(requests) * (MAX_LENGTH // PAGE)).view(len(requests), -1).int().to(device),
        longest=max(new),
    )


def _attention(requests, quantize, device):
    from ..engine import attention_kernels

    rows, (HQ, HKV, D) = _rows(requests, device), HEADS
    random = partial(torch.randn, dtype=torch.bfloat16, device=device)
    N, table = len(rows.positions), rotary_table(MAX_LENGTH, 32, 1e7, device)
    qkv, q_norm, k_norm = random(N, 2 * (HQ + HKV) * D), random(D), random(D)
    pages = random(2, rows.page_table.numel(), PAGE, HKV, D)
    found = []
    for kernels in (attention_kernels, attention_reference):
        k_pages, v_pages = pages.clone()
        q = torch.zeros(N, HQ, D, dtype=torch.bfloat16, device=device)
        y = Activation(N, HQ * D, quantize, device)
        kernels.store_qkv(qkv, q_norm, k_norm, table, rows, q, k_pages, v_pages)
        options = {"take": Workspace(device).take, "max_length": MAX_LENGTH} | (y.quantized() if quantize else {})
        kernels.attend(q, qkv, k_pages, v_pages, rows, y.live, **options)
        out = dequantize_rows(*(x[:N] for x in (y.y8, y.scale))) if quantize else y.live
        found.append(torch.cat([x.float().flatten() for x in (out, k_pages, v_pages)]))
    neighbours = 2.0**-3 * found[1].abs().max().item() if quantize else 0.0  # an output may round to another e4m3
    return _close(*found, LARGEST_ERROR + neighbours)


def _convolution(drafts, device):
    from ..layer.kernels import elementwise

    lengths = [3, 3, 3] if drafts else [1, 6, 0, 4]
    sequence = [n for n, length in enumerate(lengths) for _ in range(length)] + [-1] * PADDING
    starts = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    indices = [3, -1, 1, 2][: len(lengths)]
    indices, sequence, starts = (torch.tensor(x, dtype=torch.int32, device=device) for x in (indices, sequence, starts))
    random = partial(torch.randn, dtype=torch.bfloat16, device=device)
    mixed, weight, window = random(len(sequence), HIDDEN), random(HIDDEN, 4), random(5, HIDDEN, 3)
    found = []
    for kernels in (elementwise, layer_reference):
        windows, out = window.clone(), torch.empty_like(mixed)
        kept = torch.zeros(len(lengths), HIDDEN, 3, dtype=mixed.dtype, device=device) if drafts else None
        kernels.conv_sequences(mixed, windows, weight, indices, sequence, starts, out, kept)
        found.append(torch.cat([x.float().flatten() for x in (out, windows, kept) if x is not None]))
    return _close(*found, 2 * LARGEST_ERROR)  # of numbers of size 10 in bf16


def _sampler(device):
    """The error is the share of rows whose tokens differ: sums in another order may move the edge of top-p by one."""
    from ..engine import sampling_kernels

    logits = (2 * torch.randn(len(WAYS), VOCABULARY, device=device)).bfloat16()
    rows = SamplingRows(*(part.to(device) for part in sampling_rows(list(WAYS))))
    positions = torch.arange(len(WAYS), dtype=torch.int32, device=device)
    found, expected = logits.argmax(1), logits.argmax(1)
    sampling_kernels.sample(logits, found, rows, positions, span=1024, block=1024)
    sampling_reference.sample(logits, expected, rows, positions)
    share = (found != expected).double().mean().item()
    return share <= 1 / len(WAYS) and found[0].item() == expected[0].item(), share


def _all_reduce(name, device):
    from ..engine import all_reduce_launch, emulated_ranks

    peers = emulated_ranks.emulated(RANKS, 3, HIDDEN, device=device)
    xs = torch.randn(RANKS, 3, HIDDEN, device=device).bfloat16()
    ys = torch.full_like(xs, torch.nan)
    emulated_ranks.everywhere(getattr(all_reduce_launch, name), peers, xs, ys, [None] * RANKS)
    return _close(ys, xs.double().sum(0).expand_as(ys))
