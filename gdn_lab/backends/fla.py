"""`fla`: flash-linear-attention's kernels, for comparison where it is installed (requirements-peers.txt).

They know no pool. Each call gathers its states into a batch, in the pool's memory order ([n, HV, V, K]: the library's
state_v_first), receives the new states as a float32 tensor, and scatters that into the pool; q, k, v, a and b are
copied where they are views of a packed tensor. All of this counts as part of the call. Gates, norms and beta are left
to the library's kernels. Padding works on the null slot, and its output is undefined.

Its prefill reads cu_seqlens on the host once for each new tensor; int32 ones would be copied, and so read, every time.
"""

import functools
import importlib.metadata

import torch
from packaging.version import Version

from .base import Backend, Variant, dtype_name, needs_capability

DISTRIBUTION = "fla-core"  # of flash-linear-attention, the package that has the kernels
MINIMUM_VERSION = "0.6.0"


class FlashLinearAttentionBackend(Backend):
    name = "fla"
    distribution = DISTRIBUTION
    variants = (
        Variant(
            "vk",
            "VK",
            (torch.bfloat16, torch.float32, torch.float16),
            "flash-linear-attention: fused_recurrent or chunk on gathered states",
            ("decode", "prefill"),
            role="peer",
            order=90,
            colour="#8C6D31",
            marker="*",
            note="gathers and scatters states in each call",
            needs=(8, 0),
            copies=True,
        ),
    )

    def missing(self, device):
        return needs_capability(device, 8) or _not_installed()

    def refusal_of_sizes(self, call):
        if call.io_dtype not in (torch.bfloat16, torch.float16):
            return f"takes inputs of bfloat16 or float16; these are {dtype_name(call.io_dtype)}"
        return None

    def decode_launch(self, variant, call):
        from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule

        def launch(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
            slots, S = _gather(state.data, indices)
            q, k, v, a, b = (x.contiguous().unsqueeze(1) for x in (q, k, v, a, b))  # [B, 1, …]
            o, final = fused_recurrent_gated_delta_rule(
                q, k, v, a, beta=b, initial_state=S, **_options(A_log, dt_bias, scale, use_qk_l2norm)
            )
            _scatter(state.data, slots, final)
            out.copy_(o.squeeze(1))

        return launch

    def prefill_launch(self, variant, call):
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        def launch(q, k, v, a, b, *, A_log, dt_bias, state, indices, cu_seqlens, scale, use_qk_l2norm, out):
            slots, S = _gather(state.data, indices)
            q, k, v, a, b = (x.contiguous().unsqueeze(0) for x in (q, k, v, a, b))  # [1, tokens, …]
            bounds = cu_seqlens if cu_seqlens.dtype is torch.int64 else cu_seqlens.long()
            o, final = chunk_gated_delta_rule(
                q, k, v, a, b, initial_state=S, cu_seqlens=bounds, **_options(A_log, dt_bias, scale, use_qk_l2norm)
            )
            _scatter(state.data, slots, final)
            out.copy_(o.squeeze(0))

        return launch


def _options(A_log, dt_bias, scale, use_qk_l2norm):
    return {
        "A_log": A_log,
        "dt_bias": dt_bias,
        "scale": scale,
        "use_qk_l2norm_in_kernel": use_qk_l2norm,
        "use_gate_in_kernel": True,
        "use_beta_sigmoid_in_kernel": True,
        "state_v_first": True,
        "output_final_state": True,
    }


def _gather(state, indices):
    slots = indices.clamp(min=0).long()
    return slots, state.index_select(0, slots)


def _scatter(state, slots, final):
    state.index_copy_(0, slots, final.to(state.dtype))


@functools.cache
def _not_installed() -> str | None:
    """Why flash-linear-attention cannot be used: one sentence, or None."""
    try:
        version = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "flash-linear-attention is not installed; pip install -r requirements-peers.txt"
    if Version(version) < Version(MINIMUM_VERSION):
        return f"needs {DISTRIBUTION} {MINIMUM_VERSION} or newer; {version} is installed"
    try:
        import fla.ops.gated_delta_rule  # noqa: F401
    except Exception as error:  # a broken installation fails in many ways; each is a reason, given in full
        return f"{DISTRIBUTION} {version} cannot be imported ({type(error).__name__}: {error}); reinstall it"
    return None


BACKEND = FlashLinearAttentionBackend()
