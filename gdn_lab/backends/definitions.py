"""The GDN definitions of flashinfer-bench: gdn_decode_qk4_v8_d128_k_last, gdn_mtp_… and gdn_prefill_….

Source: flashinfer-ai/flashinfer-bench, flashinfer_trace/definitions/gdn/*.json (read at commits 0372f27 and 654ce32).

A definition takes q and k as they are: whoever calls it has normalised them. It knows no pool: each call gets the
states of its rows, [B, HV, V, K] float32, and gives new ones. Its mtp leaves the states alone and stores the one after
each token.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import torch

from ..models import GDNShape
from .base import Launch, State

PHASES = {"decode": "decode", "mtp": "verify", "prefill": "prefill"}
STATE, IO = torch.float32, torch.bfloat16  # dtypes of the states, and of q, k, v, a, b and the output
INPUTS = {  # in order, as a solution is called
    "decode": ("q", "k", "v", "state", "A_log", "a", "dt_bias", "b", "scale"),
    "verify": (
        *("q", "k", "v", "initial_state", "initial_state_indices", "A_log", "a", "dt_bias", "b", "scale"),
        "intermediate_states_buffer",
    ),
    "prefill": ("q", "k", "v", "state", "A_log", "a", "dt_bias", "b", "cu_seqlens", "scale"),
}
OUTPUTS = {
    "decode": ("output", "new_state"),
    "verify": ("output", "final_state"),
    "prefill": ("output", "new_state"),
}


class Definition(NamedTuple):
    """One definition: its name, our phase, and the heads that it fixes."""

    name: str
    phase: str
    shape: GDNShape

    @property
    def inputs(self) -> tuple[str, ...]:
        return INPUTS[self.phase]

    @property
    def outputs(self) -> tuple[str, ...]:
        return OUTPUTS[self.phase]


def definition(name: str) -> Definition:
    """Return the definition of this name. ValueError, one sentence, if it is none of GDN with a K-last state."""
    found = re.fullmatch(r"gdn_(decode|mtp|prefill)_qk(\d+)_v(\d+)_d(\d+)_k_last", name)
    if not found:
        raise ValueError(f"definition: expected a name such as gdn_decode_qk4_v8_d128_k_last, got {name!r}")
    heads, size = (int(found[2]), int(found[3])), int(found[4])
    return Definition(name, PHASES[found[1]], GDNShape(*heads, size, size))


def definition_of(phase: str, shape: GDNShape) -> Definition:
    """Return the definition of a phase and of heads. ValueError for heads whose K and V differ."""
    if shape.head_k_dim != shape.head_v_dim:
        raise ValueError(f"shape: a definition has one head size, this has K {shape.head_k_dim}, V {shape.head_v_dim}")
    word = {ours: theirs for theirs, ours in PHASES.items()}[phase]
    return definition(f"gdn_{word}_qk{shape.num_k_heads}_v{shape.num_v_heads}_d{shape.head_k_dim}_k_last")


# ---- a solution called as a kernel of ours ---------------------------------------------------------------------------


def as_kernel(found: Definition, function, writes_outputs: bool):
    """Wrap a function with a definition's arguments as a kernel of ours (author.py), whose pool it gathers from.

    writes_outputs: outputs are its last arguments (destination-passing style); otherwise it returns them, in order, or
    by name in a dict. Padding rows work on the null slot.
    """

    def called(values: dict, **outputs) -> dict:
        arguments = [values[name] for name in found.inputs]
        if writes_outputs:
            function(*arguments, *(outputs[name] for name in found.outputs))
            return outputs
        returned = function(*arguments)
        return returned if isinstance(returned, dict) else dict(zip(found.outputs, returned, strict=True))

    def decode(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
        _refuse_l2norm(found, use_qk_l2norm)
        slots = indices.clamp(min=0).long()
        S = state.index_select(0, slots)
        q, k, v, a, b = (x.contiguous().unsqueeze(1) for x in (q, k, v, a, b))  # [B, 1, …]
        values = dict(q=q, k=k, v=v, state=S, A_log=A_log, a=a, dt_bias=dt_bias, b=b, scale=scale)
        results = called(values, output=torch.empty_like(v), new_state=torch.empty_like(S))
        state.index_copy_(0, slots, results["new_state"])
        out.copy_(results["output"].squeeze(1))

    def verify(
        q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, intermediate_states, update_state
    ):
        _refuse_l2norm(found, use_qk_l2norm)
        slots = indices.clamp(min=0).long()
        S = state.index_select(0, slots)
        q, k, v, a, b = (x.contiguous() for x in (q, k, v, a, b))
        keeps = update_state or intermediate_states is not None
        buffer = S.new_empty(len(S), q.shape[1], *S.shape[1:]) if keeps else None
        rows = torch.arange(len(S), dtype=torch.int32, device=S.device)
        values = dict(q=q, k=k, v=v, initial_state=S, initial_state_indices=rows, A_log=A_log, a=a, dt_bias=dt_bias)
        values |= dict(b=b, scale=scale, intermediate_states_buffer=buffer)
        out.copy_(called(values, output=torch.empty_like(v), final_state=torch.empty_like(S))["output"])
        if intermediate_states is not None:
            intermediate_states.copy_(buffer)
        if update_state:
            state.index_copy_(0, slots, buffer[:, -1])

    def prefill(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, cu_seqlens):
        _refuse_l2norm(found, use_qk_l2norm)
        slots = indices.clamp(min=0).long()
        S = state.index_select(0, slots)
        q, k, v, a, b = (x.contiguous() for x in (q, k, v, a, b))
        values = dict(q=q, k=k, v=v, state=S, A_log=A_log, a=a, dt_bias=dt_bias, b=b, scale=scale)
        values["cu_seqlens"] = cu_seqlens.long()
        results = called(values, output=torch.empty_like(v), new_state=torch.empty_like(S))
        state.index_copy_(0, slots, results["new_state"])
        out.copy_(results["output"])

    return {"decode": decode, "verify": verify, "prefill": prefill}[found.phase]


def _refuse_l2norm(found: Definition, use_qk_l2norm: bool) -> None:
    if use_qk_l2norm:
        raise ValueError(
            f"use_qk_l2norm: {found.name} takes q and k as they are; normalise them and pass use_qk_l2norm=False"
        )


# ---- a kernel of ours called as a solution ---------------------------------------------------------------------------


def as_solution(found: Definition, launch: Launch):
    """Return a function with a definition's arguments, outputs last, that a launch of ours serves."""

    def run(*arguments):
        values = dict(zip((*found.inputs, *found.outputs), arguments, strict=True))
        output = values["output"]
        state = values.get("state" if found.phase != "verify" else "initial_state")
        new = values[found.outputs[1]]
        new.copy_(state) if state is not None else new.zero_()
        names = ("q", "k", "v", "a", "b")
        inputs = [values[name].squeeze(1) if found.phase == "decode" else values[name] for name in names]
        options = {name: values[name] for name in ("A_log", "dt_bias")}
        options |= {"scale": values["scale"] or found.shape.scale, "use_qk_l2norm": False}
        if found.phase == "verify":
            slots, buffer = values["initial_state_indices"], values["intermediate_states_buffer"]
            kept = None if buffer is None else buffer.new_empty(len(slots), *buffer.shape[1:])
            launch(*inputs, **options, state=State(new, kept), indices=slots, out=output, update_state=False)
            if kept is not None:
                buffer.index_copy_(0, slots.long(), kept)
            return
        rows = torch.arange(len(new), dtype=torch.int32, device=new.device)
        options |= {"state": State(new), "indices": rows}
        if found.phase == "decode":
            launch(*inputs, **options, out=output.squeeze(1))
        else:
            launch(*inputs, **options, out=output, cu_seqlens=values["cu_seqlens"])

    return run


# ---- workloads -------------------------------------------------------------------------------------------------------


class Workload(NamedTuple):
    """One size at which a definition is called. tokens: of a row (verify) or of all sequences (prefill), else 1."""

    definition: Definition
    batch: int
    tokens: int = 1


# The heads of the three decode definitions: Qwen3-Next on one, two and four GPUs. Their batch size is free.
DECODE = tuple(definition(f"gdn_decode_qk{heads}_v{2 * heads}_d128_k_last") for heads in (16, 8, 4))
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
NAMED = {"flashinfer-bench": tuple(Workload(found, batch) for found in DECODE for batch in BATCHES)}


def workloads(name: str | Path) -> list[Workload]:
    """Return a named list (NAMED), or what a workload file of flashinfer-bench (JSONL) holds of GDN, each size once.

    ValueError, one sentence, for a file that holds none or is damaged.
    """
    if str(name) in NAMED:
        return list(NAMED[str(name)])
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"workloads: expected {', '.join(NAMED)} or a JSONL file of flashinfer-bench, got {str(name)!r}"
        )
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            found[_workload(line, f"{path.name}, line {number}")] = None
    if not found:
        raise ValueError(f"workloads: {path.name} is empty")
    return list(found)


def _workload(line: str, where: str) -> Workload:
    try:
        entry = json.loads(line)
        found, axes = definition(entry["definition"]), entry["workload"]["axes"]
        batch = axes["num_seqs" if found.phase == "prefill" else "batch_size"]
        tokens = {"decode": 1, "verify": axes.get("seq_len"), "prefill": axes.get("total_seq_len")}[found.phase]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"workloads: {where} is no workload of flashinfer-bench: {error!r}") from None
    except ValueError as error:
        raise ValueError(f"workloads: {where}: {error}") from None
    if not all(type(number) is int and number > 0 for number in (batch, tokens)):
        raise ValueError(f"workloads: {where}: expected sizes of at least 1, got {axes}")
    return Workload(found, batch, tokens)
