"""How many requests fit into a GPU: its memory less the weights, over what one request holds.

A request holds a slot (recurrent state, convolution window and ring if any, in each GDN layer), the KV cache of its
tokens in each attention layer, in whole pages, and with speculative decoding a state for each draft token. All on one
tensor-parallel rank. Imports no torch. fill() proves it on a model that was built.
"""

from typing import NamedTuple

from ..models import GDNShape, draft_bytes_of, draft_nbytes, model, slot_nbytes_of

ATTENTION_HEAD_DIM = 256
KV_BYTES = 2  # of one element of a key or value: bf16
BLOCK = 128  # rows and columns that share a float32 scale in an FP8 weight
WEIGHT_BYTES = {"fp8": 1, "bf16": 2}
RESERVE = 4 * 10**9  # bytes for the CUDA context, activations of a prefill, CUDA graphs and fragments
STATE, DRAFTS, KV = "state", "draft states", "KV cache"


class RequestMemory(NamedTuple):
    """Bytes of one request on one rank, by what holds them; `length` tokens long."""

    state: int
    drafts: int
    kv: int

    @property
    def total(self) -> int:
        return self.state + self.drafts + self.kv


class Capacity(NamedTuple):
    """requests: that fit at once. limit: what takes most of a request's memory, or "weights" if nothing fits.

    weights, each, reserve, gpu_bytes: bytes; slots and pages: what to build the model with, the null slot included.
    """

    requests: int
    limit: str
    weights: int
    each: RequestMemory
    reserve: int
    gpu_bytes: int
    slots: int
    pages: int

    def __str__(self) -> str:
        parts = f"state {self.each.state / 1e6:.1f} MB, KV cache {self.each.kv / 1e6:.1f} MB"
        parts += f", draft states {self.each.drafts / 1e6:.1f} MB" if self.each.drafts else ""
        return (
            f"{self.requests} requests fit into {self.gpu_bytes / 1e9:.1f} GB: weights {self.weights / 1e9:.1f} GB, "
            f"reserve {self.reserve / 1e9:.1f} GB, each request {self.each.total / 1e6:.1f} MB ({parts}); limited by "
            f"{self.limit}"
        )


def capacity(
    name: str,
    *,
    gpu_bytes: int,
    tp: int = 1,
    precision: str = "fp8",
    state_dtype: str = "bfloat16",
    draft_tokens: int = 0,
    length: int = 4096,
    page_size: int = 64,
    reserve: int = RESERVE,
    ring: int = 0,
) -> Capacity:
    """Calculate how many requests of `length` tokens a GPU of `gpu_bytes` holds: for any GPU, without one.

    name: in the model table. draft_tokens: that a verify step takes for each request, 0 without speculation. reserve:
    bytes kept for everything else. ring: updates that a slot can hold back, 0 without deferred writes.
    requests = (gpu_bytes - weights - reserve - null slot) / bytes of a request, down.
    ValueError naming the argument that is out of range.
    """
    whole = {"gpu_bytes": gpu_bytes, "length": length, "page_size": page_size}
    for what, value in whole.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{what}: expected a positive int, got {value!r}")
    for what, value in {"draft_tokens": draft_tokens, "reserve": reserve}.items():
        if type(value) is not int or value < 0:
            raise ValueError(f"{what}: expected an int of at least 0, got {value!r}")
    each = request_memory(name, tp, state_dtype, draft_tokens, length, page_size, ring)
    weights = sum(weight_nbytes(name, tp, precision).values())
    left = gpu_bytes - weights - reserve - each.state
    requests = max(0, left // each.total)
    largest = max((each.state, STATE), (each.drafts, DRAFTS), (each.kv, KV))[1]
    pages = requests * -(-length // page_size)
    return Capacity(
        requests, largest if requests else "weights", weights, each, reserve, gpu_bytes, requests + 1, pages
    )


def request_memory(
    name: str, tp: int, state_dtype: str, draft_tokens: int, length: int, page_size: int = 64, ring: int = 0
) -> RequestMemory:
    """Bytes of one request of `length` tokens on one rank. ValueError for an unknown model, dtype or tp."""
    entry, shape = model(name), GDNShape.from_model(name, tp)
    slot = slot_nbytes_of(shape, state_dtype, ring)
    drafts = sum(draft_nbytes(shape, draft_tokens, draft_bytes_of(state_dtype)).values())
    tokens = -(-length // page_size) * page_size
    return RequestMemory(
        state=entry.gdn_layers * slot,
        drafts=entry.gdn_layers * drafts,
        kv=tokens * kv_token_nbytes(name, tp),
    )


def kv_token_nbytes(name: str, tp: int) -> int:
    """Bytes of one token's keys and values in all attention layers on one rank; heads are copied where tp has more."""
    entry = model(name)
    heads = max(1, entry.attn_kv_heads // tp)
    return (entry.layers - entry.gdn_layers) * 2 * heads * ATTENTION_HEAD_DIM * KV_BYTES


def weight_nbytes(name: str, tp: int, precision: str) -> dict[str, int]:
    """Bytes of a model's weights on one rank, by part.

    precision: of projections and experts; norms, router, convolution, embedding and head are bf16. The embedding is
    whole on each rank, the head split. ValueError for an unknown model or precision, or a tp that splits no heads.
    """
    if precision not in WEIGHT_BYTES:
        raise ValueError(f"precision: expected one of {', '.join(WEIGHT_BYTES)}, got {precision!r}")
    entry, attention_layers = model(name), model(name).layers - model(name).gdn_layers
    return {
        "GDN layers": entry.gdn_layers * _gdn_nbytes(name, tp, precision),
        "attention layers": attention_layers * _attention_nbytes(name, tp, precision),
        "feed-forward": entry.layers * _feed_forward_nbytes(name, tp, precision),
        "embedding": 2 * entry.vocab * entry.hidden,
        "head": 2 * -(-entry.vocab // tp) * entry.hidden + 2 * entry.hidden,
    }


def _gdn_nbytes(name: str, tp: int, precision: str) -> int:
    """One GDN layer without its feed-forward: input norm, projections, convolution, gates, gated norm."""
    shape, hidden = GDNShape.from_model(name, tp), model(name).hidden
    _, HV, _, V = shape.dims
    projections = _linear(shape.conv_dim + HV * V, hidden, precision) + _linear(hidden, HV * V, precision)
    return projections + 2 * (hidden + 2 * HV * hidden + 4 * shape.conv_dim + V) + 8 * HV


def _attention_nbytes(name: str, tp: int, precision: str) -> int:
    """One attention layer without its feed-forward: norms, queries and their gates, keys, values, output."""
    entry = model(name)
    q, kv = entry.attn_q_heads // tp, max(1, entry.attn_kv_heads // tp)
    rows = 2 * (q + kv) * ATTENTION_HEAD_DIM
    projections = _linear(rows, entry.hidden, precision) + _linear(entry.hidden, q * ATTENTION_HEAD_DIM, precision)
    return projections + 2 * (entry.hidden + 2 * ATTENTION_HEAD_DIM)


def _feed_forward_nbytes(name: str, tp: int, precision: str) -> int:
    """One feed-forward with its norm: dense, or router, experts and the shared expert with its gate."""
    entry = model(name)
    hidden, shared = entry.hidden, entry.ffn_intermediate // tp
    if entry.experts is None:
        return 2 * hidden + _linear(2 * shared, hidden, precision) + _linear(hidden, shared, precision)
    inner = entry.moe_intermediate // tp
    experts = entry.experts * (2 * _linear(inner, hidden, precision) + _linear(hidden, inner, precision))
    experts += 2 * _linear(shared, hidden, precision) + _linear(hidden, shared, precision)
    return experts + 2 * (hidden + entry.experts * hidden + hidden)


def _linear(rows: int, columns: int, precision: str) -> int:
    """Bytes of a weight [rows, columns]; with FP8 a float32 scale for each block of 128 x 128."""
    scales = 4 * -(-rows // BLOCK) * -(-columns // BLOCK) if precision == "fp8" else 0
    return rows * columns * WEIGHT_BYTES[precision] + scales


class Filled(NamedTuple):
    """requests: that a model held at once; limit: what ran out first, "slots" or "pages"."""

    requests: int
    limit: str


def fill(served_model, length: int) -> Filled:
    """Give slots and pages for `length` tokens to requests until the model has none left, then take all back."""
    pages, held = served_model.cache.pages_for(length), []
    try:
        while served_model.slots.free and served_model.cache.free >= pages:
            held.append((served_model.slots.acquire(), served_model.cache.acquire(pages)))
        return Filled(len(held), "pages" if served_model.slots.free else "slots")
    finally:
        for slot, own in held:
            served_model.slots.release(slot)
            served_model.cache.release(own)
