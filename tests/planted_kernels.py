"""Planted bugs: kernels that are right but for one fault each, by name, with the checks that must find it.

Each is the body of a decode kernel in PyTorch with a fault put in. `right` is the kernel without one.
"""

from typing import NamedTuple

FILE = """
import threading
import time

import torch

from gdn_lab import variant

{before}

@variant("planted/{layout}", layout="{LAYOUT}", state_dtypes={state_dtypes}, allocates={allocates})
def planted(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
    {first}
    B, HK, K = q.shape
    HV, V = v.shape[1:]
    live = {live}
    slots = torch.where(live, indices, 0).long()
    S = {gather}
    qf, kf, vf = q.float(), k.float(), v.float()
    if use_qk_l2norm:
        qf, kf = (x * torch.rsqrt({norm} + {eps}) for x in (qf, kf))
    qf = qf * {scale}
    heads = {heads}
    qf, kf = qf[:, heads], kf[:, heads]
    x = a.float() + dt_bias
    softplus = torch.where(x > {threshold}, x, torch.log1p(torch.exp(x)))
    g = torch.exp({sign}torch.exp(A_log) * softplus)[:, :, None, None]
    beta = {beta}
    {update}
    {store}
    {finish}
"""
RIGHT = {
    "before": "",
    "layout": "vk",
    "LAYOUT": "VK",
    "state_dtypes": '("bfloat16",)',
    "allocates": "True",
    "first": "",
    "live": "indices >= 0",
    "gather": "state[slots].float()",
    "norm": "(x * x).sum(-1, keepdim=True)",
    "eps": "1e-6",
    "scale": "scale",
    "heads": "torch.arange(HV, device=q.device) // (HV // HK)",
    "threshold": "20.0",
    "sign": "-",
    "beta": "torch.sigmoid(b.float())[:, :, None]",
    "update": """S = g * S
    S = S + (beta * (vf - torch.einsum("bhvk,bhk->bhv", S, kf)))[..., None] * kf[:, :, None, :]
    o = torch.einsum("bhvk,bhk->bhv", S, qf)""",
    "store": "state.index_copy_(0, slots, S.to(state.dtype))",
    "finish": "out.copy_(torch.where(live[:, None, None], o, 0.0))",
}


class Planted(NamedTuple):
    """A fault: what differs from the right kernel, and the checks that must find it, among others maybe."""

    checks: tuple[str, ...]
    parts: dict[str, str]

    def source(self) -> str:
        """Return the kernel's file."""
        return FILE.format(**RIGHT | self.parts)


def planted(*checks: str, **parts: str) -> Planted:
    return Planted(checks, parts)


FAR_OFFSETS = """flat = (slots.int() * (HV * V * K)).long()
    S = state.view(-1)[(flat[:, None] + torch.arange(HV * V * K))].view(B, HV, V, K).float()"""

PLANTED = {
    "wrong sign of the decay": planted("reference", sign=""),
    "tile off by one": planted("reference", finish="out[:, :, :-1].copy_(o[:, :, :-1])"),
    "padding guard missing": planted("padding", live="torch.ones_like(indices, dtype=torch.bool)"),
    "padding only where the index is -1": planted("padding", live="indices != -1"),
    "beta in bf16": planted("new requests", beta="torch.sigmoid(b.float()).bfloat16().float()[:, :, None]"),
    "offsets of 32 bits": planted(
        "64-bit offsets",
        gather=f"None\n    {FAR_OFFSETS}",
        store="state.view(-1)[(flat[:, None] + torch.arange(HV * V * K))] = S.flatten(1).to(state.dtype)",
    ),
    "race": planted(
        "reference",
        before="""
def add(out, part):
    seen = out.clone()
    time.sleep(0.002)
    out.copy_(seen + part)
""",
        finish="""halves = [torch.einsum("bhvk,bhk->bhv", S[..., n::2], qf[..., n::2]) for n in (0, 1)]
    sums = torch.zeros_like(o)
    threads = [threading.Thread(target=add, args=(sums, half)) for half in halves]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    out.copy_(sums)""",
    ),
    "output not initialised": planted("reference", finish="out.add_(o)"),
    "output late, from a thread": planted(
        "late writes",
        finish="""def late():
        time.sleep(0.03)
        out.copy_(o)
    threading.Thread(target=late).start()""",
    ),
    "output one call late": planted(
        "reference",
        before="waiting = []",
        finish="""for other, value in waiting:
        other.copy_(value)
    waiting[:] = [(out, o)]""",
    ),
    "output cached by pointer": planted(
        "steps in a row",
        before="cache = {}",
        first="""key = (q.data_ptr(), k.data_ptr(), v.data_ptr(), state.data_ptr(), out.data_ptr(), out.shape)
    if key in cache:
        out.copy_(cache[key])
        return""",
        finish="out.copy_(torch.where(live[:, None, None], o, 0.0))\n    cache[key] = out.clone()",
    ),
    "patched timer": planted(
        "nothing patched", before="clock = time.perf_counter_ns\ntime.perf_counter_ns = lambda: clock() // 10"
    ),
    "patched comparison": planted("nothing patched", before="torch.equal = lambda x, y: True"),
    "ignores strides": planted("strides", first="q = q.as_strided(q.shape, (q.shape[1] * q.shape[2], q.shape[2], 1))"),
    "ignores the dtype of indices": planted("shapes and dtypes", first="indices = indices.view(torch.int32)[: len(q)]"),
    "no epsilon in the norm": planted("hard inputs", eps="0.0"),
    "epsilon outside of the root": planted(
        "norms and scales", norm="(x * x).sum(-1, keepdim=True).sqrt().add(1e-6).square()", eps="0.0"
    ),
    "no scale": planted("reference", scale="1.0"),
    "scale of its own": planted("norms and scales", scale="K**-0.5"),
    "no norm": planted("norms and scales", first="use_qk_l2norm = True"),
    "wrong heads": planted("reference", heads="torch.arange(HV, device=q.device) % HK"),
    "a state stored for padding rows": planted(
        "padding", store="state[torch.where(live, indices, len(state) - 1).long()] = S.to(state.dtype)"
    ),
    "softplus without its threshold": planted("gates at their limits", threshold="float('inf')"),
    "threshold of softplus too low": planted("gates at their limits", threshold="2.0"),
    "state stored in the wrong layout": planted(
        "reference", store="state.index_copy_(0, slots, S.transpose(-1, -2).to(state.dtype))"
    ),
    "reads a stale state": planted(
        "steps in a row",
        before="kept = {}",
        gather="kept.setdefault((state.data_ptr(), *indices.tolist()), state[slots].float())",
    ),
    "decays after the update": planted(
        "reference",
        update="""S = S + (beta * (vf - torch.einsum("bhvk,bhk->bhv", S, kf)))[..., None] * kf[:, :, None, :]
    S = g * S
    o = torch.einsum("bhvk,bhk->bhv", S, qf)""",
    ),
    "output from the state before": planted(
        "reference",
        update="""S = g * S
    o = torch.einsum("bhvk,bhk->bhv", S, qf)
    S = S + (beta * (vf - torch.einsum("bhvk,bhk->bhv", S, kf)))[..., None] * kf[:, :, None, :]""",
    ),
    "synchronises with the host": planted("no synchronisation", first="largest = int(indices.max())"),
    "not deterministic": planted(
        "determinism", finish="out.copy_(o * (1 + 4e-3 * torch.randint(0, 2, o.shape) * live[:, None, None]))"
    ),
    "changes its inputs": planted("reference", first="k.copy_(torch.nn.functional.normalize(k.float(), dim=-1))"),
    "changes a gate after a right call": planted(
        "reference", finish="out.copy_(torch.where(live[:, None, None], o, 0.0))\n    dt_bias.add_(1.0)"
    ),
    "shifts the convolution windows after a right call": planted(
        "reference",
        before="import gc",
        finish="""out.copy_(torch.where(live[:, None, None], o, 0.0))
    pools = [x for x in gc.get_objects() if type(x).__name__ == "StatePool"]
    [pool.conv.add_(1.0) for pool in pools if pool.state.data_ptr() == state.data_ptr()]""",
    ),
    "writes behind out": planted(
        "reference",
        finish="""out.copy_(torch.where(live[:, None, None], o, 0.0))
    out.as_strided((1,), (1,), out.storage_offset() + out.numel()).fill_(0.0)""",
    ),
    "touches another slot": planted(
        "other slots",
        finish="""out.copy_(torch.where(live[:, None, None], o, 0.0))
    free = [slot for slot in range(1, len(state)) if slot not in indices.tolist()]
    state.view(torch.int16)[free[:1], -1, -1, -1] ^= 1""",
    ),
    "NaN leaks from a row": planted("NaN elsewhere", finish="out.copy_(o + 0.0 * o.sum())"),
    "no more than 64 rows": planted("large batches", finish="out[:64].copy_(o[:64])"),
    "adds to what out holds": planted("out", finish="out.copy_(torch.where(out.abs() < 1e3, o + 0.1 * out, o))"),
    "writes out before it has read v": planted(
        "out", first="out.zero_()", finish="out.copy_(torch.where(live[:, None, None], o, 0.0))"
    ),
    "rounds the state too early": planted(
        "reference", state_dtypes='("float32",)', gather="state[slots].bfloat16().float()"
    ),
}
