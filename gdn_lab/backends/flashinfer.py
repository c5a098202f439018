"""`flashinfer`: FlashInfer's K-last decode, verify and prefill kernels, on the pool in place.

A bf16 pool takes its CuTe DSL kernels for bf16 state, a float32 pool an older, slower one. Each is called in its
fastest form: pool and indices passed straight in, int32 indices, a preallocated output, `backend="flashinfer"` (its
"auto" tries a validator and catches an exception on every call).

A padding row reads and writes slot 0 with a bf16 pool, and its output is undefined; with a float32 pool it is zero
(decode) or not written (verify).

Verify has a second kernel, `wy`: output only, bf16 pools, the state read once. It rounds A_log and dt_bias to bf16, and
copies its result into an output that it did not allocate itself (except for T = 16).

Prefill takes decay and beta ready-made in float32 (one kernel of ours computes them), and q, k and v contiguous and at
multiples of 16 bytes; they are copied where they are not, and so is the output. It normalises q and k by a kernel of
its own. Padding sequences work on the null slot, and their output is undefined. It is not isolated: the last chunk of a
sequence also multiplies the first rows of the next one, by zeros, so that NaN there reaches it. Only padding every
sequence to whole chunks would prevent that, which copies every input; the adapter does not do it, the record says so
(leaks), and "auto" takes another backend.
"""

import functools
import importlib.metadata
import importlib.util
import inspect

import torch
from packaging.version import Version

from ..minimum_versions import FLASHINFER as MINIMUM_VERSION
from .base import Backend, Variant, capability, dtype_name, needs_capability

HEAD_DIM = 128
ALIGNMENT = {torch.bfloat16: 32, torch.float32: 16}  # bytes, by state dtype: where its kernels need tensors to begin


class FlashInferBackend(Backend):
    name = "flashinfer"
    distribution = "flashinfer-python"
    variants = (
        Variant(
            "vk",
            "VK",
            (torch.bfloat16, torch.float32),
            "gated_delta_rule_decode_pretranspose on the pool in place",
            ("decode", "verify", "prefill"),
            role="peer",
            order=50,
            colour="#009E73",
            marker="D",
            needs=(9, 0),
            leaks=("prefill",),
        ),
        Variant(
            "wy",
            "VK",
            (torch.bfloat16,),
            "gated_delta_rule_mtp_wy_output_only: A_log, dt_bias rounded to bf16",
            ("verify",),
            role="peer",
            order=55,
            colour="#DDCC77",
            marker="d",
            note="A_log, dt_bias rounded to bf16",
            needs=(9, 0),
        ),
    )
    auto = {"decode": 30, "verify": 30, "prefill": 30}

    def missing(self, device):
        return needs_capability(device, 9) or _not_installed(capability(device)[0])

    def refusal(self, variant, call):
        if reason := super().refusal(variant, call) or refusal_of_mode(variant.name, call.mode):
            return reason
        return no_prefill(capability(call.device)[0]) if call.phase == "prefill" else None

    def refusal_of_sizes(self, call):
        K, V = call.shape.head_k_dim, call.shape.head_v_dim
        if (K, V) != (HEAD_DIM, HEAD_DIM):
            return f"takes head_k_dim and head_v_dim of {HEAD_DIM}; these are {K} and {V}"
        if call.io_dtype != torch.bfloat16:
            return f"takes inputs of bfloat16; these are {dtype_name(call.io_dtype)}"
        if call.index_dtype != torch.int32:
            return f"takes indices of int32 (it would copy {dtype_name(call.index_dtype)} on every call); pass int32"
        if call.shape.num_v_heads == 1 and call.phase != "prefill":  # it cannot tell which dimension of a is contiguous
            return "takes two value heads or more; this is one"
        return None

    def decode_launch(self, variant, call):
        alignment = ALIGNMENT[call.state_dtype]
        gates_too = call.state_dtype is torch.bfloat16

        def launch(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
            check_rows(q=q, k=k, v=v, a=a, b=b)
            _check_alignment(alignment, q=q, k=k, v=v, indices=indices, out=out)
            if gates_too:
                _check_alignment(alignment, A_log=A_log, dt_bias=dt_bias)
            q, k, v, a, b = (x.unsqueeze(1) for x in (q, k, v, a, b))  # [B, heads, dim] -> [B, 1, heads, dim], views
            _recurrent(q, k, v, a, b, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out.unsqueeze(1))

        return launch

    def verify_launch(self, variant, call):
        return _verify_wy if variant.name == "wy" else functools.partial(_verify, ALIGNMENT[call.state_dtype])

    def prefill_launch(self, variant, call):
        return _prefill


def _prefill(q, k, v, a, b, *, A_log, dt_bias, state, indices, cu_seqlens, scale, use_qk_l2norm, out):
    from flashinfer.gdn_prefill import chunk_gated_delta_rule

    from .triton.gates import gates

    q, k, v, cu_seqlens = (_aligned(x.contiguous()) for x in (q, k, v, cu_seqlens))
    g, beta = gates(a, b, A_log, dt_bias)
    o = out if out.data_ptr() % 16 == 0 else torch.empty_like(out)
    chunk_gated_delta_rule(
        q=q,
        k=k,
        v=v,
        g=g,
        beta=beta,
        scale=scale,
        initial_state=state.data,
        output_final_state=True,
        cu_seqlens=cu_seqlens,
        output=o,
        output_state=state.data,
        state_indices=indices.clamp(min=0),
        use_qk_l2norm_in_kernel=use_qk_l2norm,
        backend="flashinfer",
    )
    if o is not out:
        out.copy_(o)


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """x, or a copy of it, that begins at a multiple of 16 bytes."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


@functools.cache
def no_prefill(capability_major: int) -> str | None:
    """Why the installed FlashInfer has no prefill on a pool for this GPU: one sentence, or None."""
    try:
        from flashinfer.gdn_prefill import chunk_gated_delta_rule
    except Exception as error:  # versions without it, and broken installations: each is a reason, given in full
        return f"its prefill cannot be imported ({type(error).__name__}: {error})"

    if "state_indices" not in inspect.signature(chunk_gated_delta_rule).parameters:
        version = importlib.metadata.version("flashinfer-python")
        return f"{version} has no prefill kernel that takes a pool; pip install the version that requirements.txt pins"
    if capability_major not in (9, 10, 12):
        return f"has prefill kernels for compute capability 9.x, 10.x and 12.x; this is {capability_major}.x"
    if capability_major == 10 and int((torch.version.cuda or "0").split(".")[0]) < 13:
        return f"has a prefill kernel for compute capability 10.x from CUDA 13 on; torch here has {torch.version.cuda}"
    return None


def _verify(alignment, q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, update_state):
    check_rows(q=q, k=k, v=v, a=a, b=b)
    _check_alignment(alignment, q=q, k=k, v=v, indices=indices, out=out)
    intermediate_states = state.intermediate
    if intermediate_states is not None:
        _check_alignment(alignment, intermediate_states=intermediate_states)
        if not intermediate_states.is_contiguous():  # its kernels assume rows of T tokens and would write elsewhere
            raise ValueError(
                "intermediate_states: backend 'flashinfer' takes a contiguous buffer; this one has strides "
                f"{list(intermediate_states.stride())}; reserve as many draft tokens as the call has"
            )
    _recurrent(q, k, v, a, b, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, update_state)


def _recurrent(q, k, v, a, b, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, update_state=True):
    """Take T tokens for each row: q, k [B, T, HK, K]; v, out [B, T, HV, V]; a, b [B, T, HV]."""
    from flashinfer.gdn_decode import gated_delta_rule_decode_pretranspose

    gated_delta_rule_decode_pretranspose(
        q=q,
        k=k,
        v=v,
        state=None,
        A_log=A_log,
        a=a,
        dt_bias=dt_bias,
        b=b,
        scale=scale,
        output=out,
        use_qk_l2norm=use_qk_l2norm,
        initial_state=state.data,
        initial_state_indices=indices,
        intermediate_states_buffer=state.intermediate,
        disable_state_update=not update_state,
        backend="flashinfer",
    )


def _verify_wy(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, update_state):
    from flashinfer.gdn_kernels import gated_delta_rule_mtp_wy_output_only

    if not use_qk_l2norm:
        raise ValueError("use_qk_l2norm: backend 'flashinfer/wy' always normalises q and k; got False")
    check_rows(q=q, k=k, v=v, a=a, b=b)
    _check_alignment(16, q=q, k=k, v=v, indices=indices, out=out)
    gated_delta_rule_mtp_wy_output_only(
        A_log=A_log,
        a=a,
        dt_bias=dt_bias,
        q=q,
        k=k,
        v=v,
        b=b,
        initial_state_source=state.data,
        initial_state_indices=indices,
        disable_state_update=True,
        scale=scale,
        output=out,
    )


def refusal_of_mode(variant: str, mode: str | None) -> str | None:
    """Why a variant cannot serve a verify call of this mode: one sentence, or None."""
    if mode == "update and intermediate":
        return "either updates the state or stores the state after each token; pass update_state=False and commit()"
    if variant == "wy" and mode not in (None, "output"):
        return f"has no verify kernel wy for mode {mode!r}, only output alone"
    return None


def check_rows(**tensors):
    """ValueError for a tensor whose rows share memory: its kernels are compiled for that, and refuse later calls."""
    for name, x in tensors.items():
        if not all(x.stride()) and x.numel():
            raise ValueError(
                f"{name}: backend 'flashinfer' takes rows that do not share memory; this one has strides "
                f"{list(x.stride())}; pass a copy (contiguous())"
            )


def _check_alignment(alignment, **tensors):
    for name, x in tensors.items():
        if x.data_ptr() % alignment:
            raise ValueError(
                f"{name}: backend 'flashinfer' takes tensors that begin at a multiple of {alignment} bytes; this one "
                f"begins {x.data_ptr() % alignment} bytes after one; pass a copy (clone())"
            )


@functools.cache
def _not_installed(capability_major: int) -> str | None:
    """Why the installed FlashInfer has no GDN decode for this GPU: one sentence, or None."""
    try:
        version = importlib.metadata.version("flashinfer-python")
    except importlib.metadata.PackageNotFoundError:
        return "flashinfer-python is not installed; pip install the version that requirements.txt pins"
    needed = MINIMUM_VERSION[max(major for major in MINIMUM_VERSION if major <= capability_major)]
    if Version(version) < Version(needed):
        return (
            f"needs flashinfer-python {needed} or newer on compute capability "
            f"{capability_major}.x; {version} is installed"
        )
    if importlib.util.find_spec("cutlass") is None:
        return "its GDN kernels need the CuTe DSL, which is not installed; pip install nvidia-cutlass-dsl"
    try:
        from flashinfer.gdn_decode import gated_delta_rule_decode_pretranspose  # noqa: F401
        from flashinfer.gdn_kernels import gated_delta_rule as kernels
    except Exception as error:  # a broken installation fails in many ways; each is a reason, given in full
        return f"flashinfer-python {version} cannot be imported ({type(error).__name__}: {error}); reinstall it"
    if kernels is None:
        return f"flashinfer-python {version} could not load its CuTe DSL kernels; reinstall nvidia-cutlass-dsl"
    return None


BACKEND = FlashInferBackend()
