"""The small model over this workbook's prefill(), decode() and verify(), its states in pools, as an engine runs it.

Weights and products are bfloat16 on a GPU and float32 on a CPU (of the same bfloat16 weights); what decode(), verify()
and prefill() take is bfloat16 everywhere, the residual stream float32.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import decode, prefill, verify
from ..pool import StatePool
from .network import CONV_WIDTH, rms_norm, rotated
from .sizes import Sizes
from .vocabulary import PAD

MOST_DRAFTS = 8  # tokens of a verify call
UNSEEN = -(1 << 30)  # the position of a place in the window's cache that holds nothing


class Kernels(NamedTuple):
    """What each phase runs on: a backend's name or variant; and the pool's layout, dtype, rounding (as StatePool has
    them) and updates of its ring, 0 for none."""

    prefill: str = "auto"
    decode: str = "auto"
    verify: str = "auto"
    layout: str = "VK"
    dtype: torch.dtype = torch.float32
    rounding: str = "nearest"
    ring: int = 0


class SmallModel:
    """Weights on a device. gates: {layer: (A_log, dt_bias)}, float32 [HV], which a study may replace. rounds_beta:
    whether decode() gets inputs whose beta is rounded to bfloat16, which a study may set."""

    def __init__(self, sizes: Sizes, tensors: dict[str, Tensor], device="cpu"):
        self.sizes, self.device = sizes, torch.device(device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.rounds_beta = False
        self.layers = []
        for number in range(sizes.layers):
            start = f"layers.{number}."
            own = {name.removeprefix(start): x for name, x in tensors.items() if name.startswith(start)}
            self.layers.append({name: self._placed(name, x) for name, x in own.items()})
        self.embedding = tensors["embedding"].to(self.device, self.dtype)
        self.norm = tensors["norm"].to(self.device, torch.float32)
        self.gates = {
            number: (self.layers[number]["mixer.A_log"], self.layers[number]["mixer.dt_bias"])
            for number in sizes.gdn_layers
        }

    def _placed(self, name: str, x: Tensor) -> Tensor:
        """A weight on the device: matrices in the products' dtype, everything else in float32."""
        matrix = x.dim() == 2 and not name.endswith("conv")
        return x.to(self.device, self.dtype if matrix else torch.float32)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [..., in] times weight [out, in], in the products' dtype."""
        return F.linear(x.to(self.dtype), weight)


class Requests:
    """n requests of one model: their pools, one for each GDN layer, and their caches of the attention window.

    Each call takes one block of tokens for each request and returns logits [n, T, vocab], float32.
    padding: rows that decode() adds, at most n, as an engine fills up the batch of a CUDA graph. Their tokens are
    stale, those of other requests one step before, and their index is -1, so they change nothing. With `unguarded`
    they recreate SGLang's issue #20791 instead: the first request has slot 0, which here is the null slot, and the
    padding rows write there.
    """

    def __init__(self, model: SmallModel, n: int, kernels: Kernels, padding: int = 0, unguarded: bool = False):
        self.model, self.kernels, sizes = model, kernels, model.sizes
        self.padding, self.unguarded = padding, unguarded
        self.stale = torch.full((padding, 1), PAD, device=model.device)
        options = {"layout": kernels.layout, "dtype": kernels.dtype, "device": model.device}
        options |= {"rounding": kernels.rounding}
        self.pools = {number: StatePool(sizes.gdn, n + 1, **options) for number in sizes.gdn_layers}
        for pool in self.pools.values() if kernels.ring else ():
            pool.reserve_ring(kernels.ring)
        first = 0 if unguarded else 1
        self.indices = torch.arange(first, first + n, dtype=torch.int32, device=model.device)
        self.places = sizes.window + MOST_DRAFTS
        rows = n + padding
        shape = (rows, self.places, sizes.attn_kv_heads, sizes.attn_dim)
        self.caches = {
            number: [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in "kv"]
            for number in range(sizes.layers)
            if sizes.is_attention(number)
        }
        self.seen = torch.full((rows, self.places), UNSEEN, device=model.device)  # positions in the caches
        self.length = torch.zeros(rows, dtype=torch.long, device=model.device)  # tokens taken so far
        self.inputs: dict[int, tuple] | None = None  # a dict keeps q, k, v, a, b of the next prefill() by layer

    @torch.no_grad()
    def prefill(self, tokens: Tensor) -> Tensor:
        """Take the first T tokens of each request [n, T]; return the logits of the last, [n, 1, vocab]."""
        n, T = tokens.shape
        self.bounds = torch.arange(n + 1, dtype=torch.int32, device=tokens.device) * T
        x = self._layers(tokens, self._prefill_gdn, self._prefill_attention)
        kept = torch.arange(max(0, T - self.places), T, device=tokens.device)
        self.seen[:n, kept % self.places] = kept
        self.length[:n] += T
        return self._logits(x[:, -1:])

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Take one token for each request [n, 1]."""
        if self.padding:
            last = tokens[-self.padding :]
            tokens = torch.cat([tokens, self.stale])
            self.stale.copy_(last)  # in place, so that a CUDA graph of the step keeps it too
        self._mark(1)
        x = self._layers(tokens, self._decode_gdn, self._cached_attention)
        self.length += 1
        return self._logits(x[: len(self.indices)])

    @torch.no_grad()
    def verify(self, tokens: Tensor, going: Tensor) -> Tensor:
        """Take T tokens [n, T] for each request that is `going` [n] bool; the states stay until commit()."""
        n, T = tokens.shape
        if any(pool.intermediate_states is None for pool in self.pools.values()):
            for pool in self.pools.values():
                pool.reserve_drafts(n, MOST_DRAFTS)
        self.rows = torch.where(going, self.indices, -1).to(torch.int32)
        self._mark(T)
        return self._logits(self._layers(tokens, self._verify_gdn, self._cached_attention))

    @torch.no_grad()
    def commit(self, accepted: Tensor) -> None:
        """Keep the first accepted [n] tokens of the last verify() of each request."""
        for pool in self.pools.values():
            T = self.drafted
            pool.commit(
                self.rows,
                accepted.to(torch.int32),
                intermediate_states=pool.intermediate_states[: len(accepted), :T],
                draft_inputs=pool.draft_inputs[: len(accepted), :, :T],
            )
        self.length += torch.where(self.rows >= 0, accepted, 0)

    # ---- layers

    def _layers(self, tokens: Tensor, gdn, attention) -> Tensor:
        model = self.model
        x = model.embedding[tokens].float() * model.sizes.hidden**0.5
        for number, w in enumerate(model.layers):
            mixer = attention if model.sizes.is_attention(number) else gdn
            x = x + mixer(number, w, rms_norm(x, w["input_norm"])).float()
            gate, up = model.product(rms_norm(x, w["post_norm"]), w["up.weight"]).float().chunk(2, -1)
            x = x + model.product(F.silu(gate) * up, w["down.weight"]).float()
        return x

    def _logits(self, x: Tensor) -> Tensor:
        return self.model.product(rms_norm(x, self.model.norm), self.model.embedding).float()

    def _project(self, w: dict, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """mixed_qkv [n, T, conv_dim] bf16, z, and b, a [n, T, HV] bf16."""
        shape = self.model.sizes.gdn
        wide = self.model.product(x, w["mixer.in_proj_qkvz.weight"])
        mixed, z = wide.split([shape.conv_dim, shape.num_v_heads * shape.head_v_dim], -1)
        b, a = self.model.product(x, w["mixer.in_proj_ba.weight"]).bfloat16().chunk(2, -1)
        return mixed.bfloat16(), z, b.contiguous(), a.contiguous()

    def _heads(self, w: dict, past: Tensor, T: int) -> tuple[Tensor, Tensor, Tensor]:
        """Convolve past [n, 3 + T, conv_dim] and split: q, k, v [n, T, heads, dim] bf16."""
        shape = self.model.sizes.gdn
        HK, HV, K, V = shape.dims
        past = past.float()
        mixed = F.silu(sum(past[:, i : i + T] * w["mixer.conv"][:, i] for i in range(CONV_WIDTH))).bfloat16()
        q, k, v = mixed.split([HK * K, HK * K, HV * V], -1)
        return q.unflatten(-1, (HK, K)), k.unflatten(-1, (HK, K)), v.unflatten(-1, (HV, V))

    def _gated(self, w: dict, o: Tensor, z: Tensor) -> Tensor:
        o = rms_norm(o.float(), w["mixer.norm"]) * F.silu(z.float()).unflatten(-1, o.shape[-2:])
        return self.model.product(o.flatten(-2), w["mixer.out_proj.weight"])

    def _call(self, number: int) -> dict:
        A_log, dt_bias = self.model.gates[number]
        return {"A_log": A_log, "dt_bias": dt_bias, "pool": self.pools[number]}

    def _prefill_gdn(self, number: int, w: dict, x: Tensor) -> Tensor:
        n, T, _ = x.shape
        mixed, z, b, a = self._project(w, x)
        past = F.pad(mixed, (0, 0, CONV_WIDTH - 1, 0))
        self.pools[number].conv[self.indices] = past[:, T:].transpose(1, 2)
        inputs = (*self._heads(w, past, T), a, b)
        if self.inputs is not None:
            self.inputs[number] = inputs
        packed = (part.flatten(0, 1) for part in inputs)
        options = {"indices": self.indices, "cu_seqlens": self.bounds, "backend": self.kernels.prefill}
        o = prefill(*packed, **self._call(number), **options)
        return self._gated(w, o.unflatten(0, (n, T)), z)

    def _decode_gdn(self, number: int, w: dict, x: Tensor) -> Tensor:
        mixed, z, b, a = self._project(w, x)
        conv = self.pools[number].conv
        window = F.pad(conv[self.indices].transpose(1, 2), (0, 0, 0, 0, 0, self.padding))
        past = torch.cat([window, mixed], 1)
        conv[self.indices] = past[: len(self.indices), 1:].transpose(1, 2)
        one = [part[:, 0] for part in (*self._heads(w, past, 1), a, b)]
        if self.model.rounds_beta:
            *one, b = (part.float() for part in one)
            one.append(torch.logit(b.sigmoid().bfloat16().float(), eps=2.0**-24))
        options = self._call(number) | {"backend": self.kernels.decode}
        if self.unguarded:  # one call after the other, so that it does not depend on which block of a GPU comes last
            n = len(self.indices)
            o = [decode(*(part[:n] for part in one), **options, indices=self.indices)]
            for row in range(n, n + self.padding):
                o.append(decode(*(part[row : row + 1] for part in one), **options, indices=self.indices[:1]))
            return self._gated(w, torch.cat(o)[:, None], z)
        indices = F.pad(self.indices, (0, self.padding), value=-1)
        return self._gated(w, decode(*one, **options, indices=indices)[:, None].bfloat16(), z)

    def _verify_gdn(self, number: int, w: dict, x: Tensor) -> Tensor:
        n, T, _ = x.shape
        mixed, z, b, a = self._project(w, x)
        pool, self.drafted = self.pools[number], T
        past = torch.cat([pool.conv[self.indices].transpose(1, 2), mixed], 1)
        pool.draft_inputs[:n, :, :T] = mixed.transpose(1, 2)
        options = {"intermediate_states": pool.intermediate_states[:n, :T], "update_state": False}
        options |= {"indices": self.rows, "backend": self.kernels.verify}
        o = verify(*self._heads(w, past, T), a, b, **self._call(number), **options)
        return self._gated(w, o, z)

    # ---- attention over the window

    def _qkv(self, w: dict, x: Tensor, positions: Tensor) -> list[Tensor]:
        """q, k, v [n, T, heads, dim] and the output gate [n, T, width]."""
        sizes = self.model.sizes
        width, kv_width = sizes.attn_heads * sizes.attn_dim, sizes.attn_kv_heads * sizes.attn_dim
        wide = self.model.product(x, w["mixer.in_proj.weight"])
        q, k, v, gate = wide.split([width, kv_width, kv_width, width], -1)
        q, k, v = (part.unflatten(-1, (-1, sizes.attn_dim)) for part in (q, k, v))
        q = rotated(rms_norm(q.float(), w["mixer.q_norm"]), positions).to(self.model.dtype)
        k = rotated(rms_norm(k.float(), w["mixer.k_norm"]), positions).to(self.model.dtype)
        return [q, k, v, gate]

    def _attended(self, w: dict, q, k, v, gate, mask) -> Tensor:
        """q [n, T, heads, dim]; k, v [n, places, kv_heads, dim]; mask [n, 1, T, places]."""
        group = q.shape[2] // k.shape[2]
        k, v = (part.repeat_interleave(group, 2).transpose(1, 2) for part in (k, v))
        o = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask)
        o = o.transpose(1, 2).flatten(-2).float() * gate.float().sigmoid()
        return self.model.product(o, w["mixer.out_proj.weight"])

    def _prefill_attention(self, number: int, w: dict, x: Tensor) -> Tensor:
        """Block by block of the window's length, each over itself and the block before it."""
        n, T, _ = x.shape
        window = self.model.sizes.window
        place = torch.arange(T, device=x.device)
        q, k, v, gate = self._qkv(w, x, place)
        kept = place[max(0, T - self.places) :]
        for cache, part in zip(self.caches[number], (k, v), strict=True):
            cache[:n, kept % self.places] = part[:, kept]
        blocks = []
        for start in range(0, T, window):
            own, seen = place[start : start + window], place[max(0, start - window) : start + window]
            back = own[:, None] - seen
            mask = (back >= 0) & (back < window)
            blocks.append(self._attended(w, q[:, own], k[:, seen], v[:, seen], gate[:, own], mask))
        return torch.cat(blocks, 1)

    def _mark(self, T: int) -> None:
        """Choose the caches' places of the next T tokens, and the mask over all places."""
        self.positions = self.length[:, None] + torch.arange(T, device=self.length.device)
        self.seen.scatter_(1, self.positions % self.places, self.positions)
        back = self.positions[:, :, None] - self.seen[:, None, :]
        self.mask = ((back >= 0) & (back < self.model.sizes.window))[:, None]

    def _cached_attention(self, number: int, w: dict, x: Tensor) -> Tensor:
        q, k, v, gate = self._qkv(w, x, self.positions)
        rows = torch.arange(len(x), device=x.device)[:, None]
        for cache, part in zip(self.caches[number], (k, v), strict=True):
            cache[rows, self.positions % self.places] = part
        return self._attended(w, q, *self.caches[number], gate, self.mask)
