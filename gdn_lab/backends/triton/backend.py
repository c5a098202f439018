"""`triton`: our Triton kernels, each for both memory orders of the pool, in place by index.

replay.py      decode that defers the write of the state; replay_fold.py writes it
replay_fp8.py  the same of an FP8 state; replay_fp8_fold.py writes it, replay_fp8_sequences.py is its verify and prefill
recurrent.py   decode, and verify for few tokens or where every state is stored
verify.py      verify for many tokens
prefill.py     prefill
gates.py       decay and beta as tensors, for other libraries' kernels
stochastic.py  device code of stochastic rounding
device.py      device code they share
"""

import functools

import torch

from ...rounding import FP8
from ..base import Backend, Variant, dtype_name, dtype_names, is_h200, needs_capability
from . import prefill, recurrent, replay, replay_fp8, replay_fp8_sequences, verify
from .device import INTERPRETED
from .recurrent import Constants, Tile, can_overlap

STATE_DTYPES = (torch.bfloat16, torch.float32, torch.float16)
IO_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PHASES = ("decode", "verify", "prefill")


class TritonBackend(Backend):
    name = "triton"
    distribution = "triton"
    variants = (
        Variant(
            "vk",
            "VK",
            STATE_DTYPES,
            "K-last pool, programmatic dependent launch (PDL)",
            PHASES,
            order=10,
            colour="#0072B2",
            marker="o",
            needs=(8, 0),
            stochastic=("decode",),
        ),
        Variant(
            "vk-serial",
            "VK",
            STATE_DTYPES,
            "the same kernel without PDL",
            order=20,
            colour="#56B4E9",
            marker="p",
            note="without PDL",
            needs=(8, 0),
            stochastic=("decode",),
        ),
        Variant(
            "kv32",
            "KV",
            STATE_DTYPES,
            "KV pool, value tiles of 32: what SGLang ran before the PR merged",
            PHASES,
            role="baseline",
            order=30,
            colour="#E69F00",
            marker="s",
            needs=(8, 0),
            vk_twin="triton/vk-serial",
        ),
        Variant(
            "kv8",
            "KV",
            STATE_DTYPES,
            "KV pool, value tiles of 8: the baseline of the PR's table",
            role="baseline",
            order=40,
            colour="#D55E00",
            marker="v",
            needs=(8, 0),
            vk_twin="triton/vk-serial",
        ),
        Variant(
            "replay",
            "VK",
            STATE_DTYPES,
            "K-last pool with a ring of deferred updates: reads the state, writes it once in 17 steps",
            order=15,
            colour="#882255",
            marker="h",
            needs=(8, 0),
            ring=16,
        ),
        Variant(
            "replay-fp8",
            "VK",
            (FP8,),
            "as triton/replay, its state in FP8 with a scale for each row, written once in 16 steps, read as stored",
            PHASES,
            order=16,
            colour="#D81B60",
            marker="8",
            needs=(9, 0),
            ring=16,
            stochastic=("decode",),
        ),
    )

    auto = {"decode": 20, "verify": 10, "prefill": 10}

    def auto_rank(self, call):
        # Triton's interpreter is for tests: "auto" never takes it.
        if call.device.type == "cpu":
            return None
        return 0 if call.ring and call.phase == "decode" else super().auto_rank(call)

    def missing(self, device):
        if INTERPRETED.value and device.type == "cpu":
            return None
        return needs_capability(device, 8)

    def refusal_of_sizes(self, call):
        K, V = call.shape.head_k_dim, call.shape.head_v_dim
        if K not in (16, 32, 64, 128, 256) or V % 32:
            return f"takes head_k_dim 16, 32, 64, 128 or 256 and head_v_dim in multiples of 32; these are {K} and {V}"
        if call.io_dtype not in IO_DTYPES:
            return f"takes inputs of {dtype_names(IO_DTYPES)}; these are {dtype_name(call.io_dtype)}"
        if call.state_dtype is FP8 and call.device.type == "cuda" and (reason := needs_capability(call.device, 9)):
            return reason
        if call.state_dtype is FP8 and K < 32:
            return f"takes head_k_dim 32, 64, 128 or 256 with a state of {dtype_name(FP8)}; this is {K}"
        return prefill.refusal(call) if call.phase == "prefill" else None

    def decode_launch(self, variant, call):
        if variant.ring:
            return (replay_fp8 if call.state_dtype is FP8 else replay).decode_launch(call)
        k_last, overlap = variant.layout == "VK", variant.name == "vk" and can_overlap(call.device)
        of_h200 = call.state_dtype.itemsize == 2 and is_h200(call.device)
        fixed = {"kv8": Tile(8, 1), "kv32": Tile(32, 1)}.get(variant.name)
        dims, HV = call.shape.dims, call.shape.num_v_heads

        @functools.cache
        def constants(tile, l2norm):
            return Constants(
                *dims,
                1,
                tile.rows,
                k_last,
                STORE_STATES=False,
                UPDATE=True,
                OVERLAP=overlap,
                L2NORM=l2norm,
                STOCHASTIC=call.stochastic,
                KEEP=tile.keep,
            )

        def launch(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
            tile = fixed or recurrent.decode_tile(q.shape[0] * HV, overlap)
            if of_h200 and not fixed:
                tile = recurrent.h200_tile(tile)
            if call.stochastic:
                tile = recurrent.stochastic_tile(tile)
            (q_row, q_head, _), (k_row, k_head, _), (v_row, v_head, _) = q.stride(), k.stride(), v.stride()
            data = state.data
            recurrent.launch_recurrent(
                constants(tile, use_qk_l2norm),
                tile,
                (q, k, v, a, b, A_log, dt_bias, data, indices, data, out, scale),  # no states are stored
                (q_row, 0, q_head, k_row, 0, k_head, v_row, 0, v_head, a.stride(0), 0, b.stride(0), 0),
                0,
                state.rounding or (None, None),
            )

        return launch

    def verify_launch(self, variant, call):
        return (replay_fp8_sequences if call.state_dtype is FP8 else verify).verify_launch(call)

    def prefill_launch(self, variant, call):
        return (replay_fp8_sequences if call.state_dtype is FP8 else prefill).prefill_launch(call)


BACKEND = TritonBackend()
