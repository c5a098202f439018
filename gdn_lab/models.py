"""Sizes: the heads of one GDN layer, the public models that have them, and what tensor parallelism leaves on one GPU.

GDNShape.from_model("qwen3.5-397b-a17b", tp=8)   ->   GDNShape(num_k_heads=2, num_v_heads=8)
"""

import functools
from dataclasses import dataclass, fields
from typing import NamedTuple

CONV_WINDOW = 3  # a causal convolution of width 4 keeps the last 3 inputs
CONV_BYTES = 2  # of one of them: activations, which engines keep in bf16 whatever the state's dtype
STATE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of one element of the recurrent state
FP8_STATE, FP8_RING = "float8_e4m3fn", 16  # one byte, a float32 scale for each row, and always a ring of updates


class Model(NamedTuple):
    """One public hybrid model: GDN layers with full attention in every fourth. Sizes count elements."""

    hidden: int
    layers: int
    gdn_layers: int
    num_k_heads: int  # query and key heads of a GDN layer (HK)
    num_v_heads: int  # value heads of a GDN layer (HV); one state matrix each
    attn_q_heads: int
    attn_kv_heads: int
    experts: int | None  # None: a dense feed-forward
    top_k: int | None
    moe_intermediate: int | None
    ffn_intermediate: int  # the shared expert's, or a dense model's feed-forward
    vocab: int
    checked: bool  # True: read in the model's own config.json; False: in third-party code or tests


# fmt: off
MODELS: dict[str, Model] = {
    #                        hidden layers gdn  HK  HV   q kv experts top  moe    ffn   vocab   checked
    "qwen3.5-397b-a17b":  Model(4096, 60, 45, 16, 64, 32, 2, 512,  10,   1024, 1024,  248320, True),
    "qwen3.5-122b-a10b":  Model(3072, 48, 36, 16, 64, 32, 2, 256,  8,    1024, 1024,  248320, False),
    "qwen3.5-35b-a3b":    Model(2048, 40, 30, 16, 32, 16, 2, 256,  8,    512,  512,   248320, False),
    "qwen3-next-80b-a3b": Model(2048, 48, 36, 16, 32, 16, 2, 512,  10,   512,  512,   151936, True),
    "qwen3.5-27b":        Model(5120, 64, 48, 16, 48, 24, 4, None, None, None, 17408, 248320, False),
}
# fmt: on


def model(name: str) -> Model:
    """The table's entry for `name`; ValueError with the known names if there is none."""
    try:
        return MODELS[name]
    except KeyError:
        raise ValueError(f"model: {name!r} is not in the table; choose one of {', '.join(MODELS)}") from None


def divisions(name: str) -> list[int]:
    """The tensor-parallel sizes that split both a model's key heads and its value heads evenly."""
    heads = model(name).num_k_heads, model(name).num_v_heads
    return [tp for tp in range(1, min(heads) + 1) if not any(number % tp for number in heads)]


@dataclass(frozen=True)
class GDNShape:
    """Heads and head sizes of one GDN layer on one GPU. Value head `h` reads query/key head `h // group`."""

    num_k_heads: int
    num_v_heads: int
    head_k_dim: int = 128
    head_v_dim: int = 128

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{field.name}: expected a positive int, got {value!r}")
        if self.num_v_heads % self.num_k_heads:
            raise ValueError(
                f"num_v_heads: expected a multiple of num_k_heads ({self.num_k_heads}), got {self.num_v_heads}"
            )

    @classmethod
    def from_model(cls, name: str, tp: int = 1) -> "GDNShape":
        """The shape that one of `tp` tensor-parallel GPUs holds of a model in MODELS.

        Query/key and value heads are both split evenly; a split that leaves a fraction of a head is a ValueError.
        """
        entry = model(name)
        if type(tp) is not int or tp < 1:
            raise ValueError(f"tp: expected a positive int, got {tp!r}")
        if entry.num_k_heads % tp or entry.num_v_heads % tp:
            raise ValueError(
                f"tp: {name} has {entry.num_k_heads} key and {entry.num_v_heads} value heads, which {tp} GPUs cannot "
                f"share evenly; choose one of {', '.join(map(str, divisions(name)))}"
            )
        return cls(entry.num_k_heads // tp, entry.num_v_heads // tp)

    @functools.cached_property
    def dims(self) -> tuple[int, int, int, int]:
        """HK, HV, K, V: query/key heads, value heads, and their sizes."""
        return self.num_k_heads, self.num_v_heads, self.head_k_dim, self.head_v_dim

    @property
    def group(self) -> int:
        """Value heads that share one query/key head."""
        return self.num_v_heads // self.num_k_heads

    @property
    def conv_dim(self) -> int:
        """Channels of the causal convolution: q, k and v of one token, packed."""
        return 2 * self.num_k_heads * self.head_k_dim + self.num_v_heads * self.head_v_dim

    @property
    def state_elements(self) -> int:
        """Elements of one request's recurrent state in one layer."""
        return self.num_v_heads * self.head_v_dim * self.head_k_dim

    @property
    def scale(self) -> float:
        """The default scale of q: head_k_dim ** -0.5."""
        return self.head_k_dim**-0.5


def slot_nbytes(shape: GDNShape, element_bytes: int) -> dict[str, int]:
    """Bytes of one slot in one layer: {"state": HV·V·K elements, "conv": the window, conv_dim·3 of bf16}."""
    return {"state": shape.state_elements * element_bytes, "conv": shape.conv_dim * CONV_WINDOW * CONV_BYTES}


def slot_nbytes_of(shape: GDNShape, dtype: str, ring: int = 0) -> int:
    """Bytes of one slot in one layer with a state of a dtype, "bfloat16" or FP8_STATE say: all that it keeps.

    ring: updates that it can hold back; FP8 needs one. ValueError with the known dtypes for an unknown one.
    """
    if dtype not in (*STATE_BYTES, FP8_STATE):
        raise ValueError(f"state_dtype: expected one of {', '.join((*STATE_BYTES, FP8_STATE))}, got {dtype!r}")
    scales = shape.num_v_heads * shape.head_v_dim * 4 if dtype == FP8_STATE else 0
    pending = ring_nbytes(shape, ring, correction_bytes=2 if dtype in ("bfloat16", FP8_STATE) else 4)
    return sum(slot_nbytes(shape, STATE_BYTES.get(dtype, 1)).values()) + scales + pending


def draft_bytes_of(dtype: str) -> int:
    """Bytes of an element of the states that verify keeps for draft tokens: the pool's, of FP8 bf16."""
    return STATE_BYTES.get(dtype, 2)


def ring_nbytes(shape: GDNShape, updates: int, correction_bytes: int) -> int:
    """Bytes of one slot's ring of `updates` deferred updates in one layer, with bf16 keys; 0 without a ring.

    An update is k [HK, K] bf16, a correction [HV, V] of elements of correction_bytes, and a log decay [HV] float32. A
    slot's span is two int32, its count of arrivals one.
    """
    HK, HV, K, V = shape.dims
    return updates and updates * (HK * K * 2 + HV * V * correction_bytes + HV * 4) + 12


def draft_nbytes(shape: GDNShape, tokens: int, element_bytes: int) -> dict[str, int]:
    """Bytes that verifying one request's `tokens` draft tokens keeps in one layer until they are committed.

    {"intermediate_states": a state for each token, "draft_inputs": the convolution's input for each, bf16}.
    """
    return {
        "intermediate_states": tokens * shape.state_elements * element_bytes,
        "draft_inputs": tokens * shape.conv_dim * CONV_BYTES,
    }
