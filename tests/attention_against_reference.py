"""Full attention over a paged cache against float64: used on a GPU, on a CPU, and in Triton's interpreter."""

from typing import NamedTuple

import torch

from gdn_lab.engine import attention_reference
from gdn_lab.engine.attention_reference import attention, rotary_table, rotated, split_heads
from gdn_lab.engine.token_rows import TokenRows
from gdn_lab.layer.fp8 import dequantize_rows
from gdn_lab.layer.gdn_layer import Activation
from gdn_lab.layer.layer_reference import rms_norm
from gdn_lab.layer.workspace import Workspace

PAGE = 16
ROTARY = 32


class Scene(NamedTuple):
    rows: TokenRows
    qkv: torch.Tensor
    q_norm: torch.Tensor
    k_norm: torch.Tensor
    table: tuple
    k_pages: torch.Tensor
    v_pages: torch.Tensor
    heads: tuple
    lengths: list  # (tokens with those of this call, tokens of this call), or None for padding
    max_length: int


def scene(lengths, heads, *, max_length=128, padding=0, device="cpu") -> Scene:
    """Requests with random keys and values in the cache, in shuffled pages; padding: rows without a sequence."""
    generator = torch.Generator().manual_seed(1)
    HQ, HKV, D = heads
    pages_each = -(-max_length // PAGE)

    def random(*shape):
        return torch.randn(*shape, generator=generator).bfloat16().to(device)

    def ints(values):
        return torch.tensor(values, dtype=torch.int32, device=device)

    new = [0 if entry is None else entry[1] for entry in lengths]
    positions, sequence = [], []
    for n, entry in enumerate(lengths):
        positions += [] if entry is None else range(entry[0] - entry[1], entry[0])
        sequence += [n] * new[n]
    N = len(sequence) + padding
    pages = torch.randperm(len(lengths) * pages_each, generator=generator).view(len(lengths), -1)
    rows = TokenRows(
        positions=ints(positions + [0] * padding),
        sequence=ints(sequence + [-1] * padding),
        starts=ints([sum(new[:n]) for n in range(len(new) + 1)]),
        indices=ints([-1 if entry is None else n + 1 for n, entry in enumerate(lengths)]),
        page_table=pages.int().to(device),
        longest=max(new),
    )
    return Scene(
        rows=rows,
        qkv=random(N, 2 * (HQ + HKV) * D + 128)[:, : 2 * (HQ + HKV) * D],
        q_norm=random(D),
        k_norm=random(D),
        table=rotary_table(max_length, ROTARY, 1e7, device),
        k_pages=random(pages.numel(), PAGE, HKV, D),
        v_pages=random(pages.numel(), PAGE, HKV, D),
        heads=heads,
        lengths=lengths,
        max_length=max_length,
    )


def check_attention(made: Scene, kernels=attention_reference, *, quantize=False):
    """Run store_qkv and attend; compare the cache and the result with float64. Pages of others stay as they are."""
    (HQ, _, D), rows, double = made.heads, made.rows, torch.float64
    N, device = len(made.qkv), made.qkv.device
    before = made.k_pages.clone(), made.v_pages.clone()
    q = torch.zeros(N, HQ, D, dtype=torch.bfloat16, device=device)
    y = Activation(N, HQ * D, True, device)
    kernels.store_qkv(made.qkv, made.q_norm, made.k_norm, made.table, rows, q, made.k_pages, made.v_pages)
    options = {"take": Workspace(device).take, "max_length": made.max_length}
    outputs = y.quantized() if quantize else {}
    kernels.attend(q, made.qkv, made.k_pages, made.v_pages, rows, y.live, **outputs, **options)
    found = dequantize_rows(*(x[:N] for x in (y.y8, y.scale)), double) if quantize else y.live.double()
    queries, gates, keys, values = split_heads(made.qkv.double(), made.heads)
    untouched = torch.ones(made.k_pages.shape[:2], dtype=torch.bool, device=device)
    for n, entry in enumerate(made.lengths):
        here = slice(int(rows.starts[n]), int(rows.starts[n + 1]))
        if entry is None:
            continue
        length, new = entry
        at = torch.arange(length - new, length, device=device)
        cos, sin = (x[at].double() for x in made.table)
        k_new = rotated(rms_norm(keys[here], made.k_norm, double), cos, sin)
        pages = rows.page_table[n].long()
        k, v = (x[pages].flatten(0, 1)[:length].double() for x in before)
        k[length - new :], v[length - new :] = k_new, values[here]
        untouched[pages[at // PAGE], at % PAGE] = False
        stored = made.k_pages[pages[at // PAGE], at % PAGE].double()
        assert ((stored - k_new).abs() <= 2.0**-7 * k_new.abs() + 1e-4).all()
        assert torch.equal(made.v_pages[pages[at // PAGE], at % PAGE].double(), values[here])
        turned = rotated(rms_norm(queries[here], made.q_norm, double), cos, sin)
        expected = attention(turned, k, v, gates[here], length - new).flatten(1)
        largest = expected.abs().max()
        # q, k and the weights are rounded to bf16; FP8 rounds to 4 bits
        allowed = 2.0**-6 * largest + (2.0**-4 * expected.abs() if quantize else 0)
        assert ((found[here] - expected).abs() <= allowed).all(), (found[here] - expected).abs().max() / largest
        assert largest > 0.02  # an average over thousands of values is small
    padded = torch.ones(N, dtype=torch.bool, device=device)
    padded[: int(rows.starts[-1])] = False
    assert not found[padded].any()
    for now, was in zip((made.k_pages, made.v_pages), before, strict=True):
        assert torch.equal(now[untouched], was[untouched])
