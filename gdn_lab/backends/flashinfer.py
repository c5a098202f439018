"""`flashinfer`: FlashInfer's K-last decode, verify and prefill kernels on the pool in place.

A bf16 pool takes its CuTe DSL kernels for bf16 state, a float32 pool an older, slower one. Called the fair way: pool
and indices passed straight in, int32 indices, a preallocated output, `backend="flashinfer"` (its "auto" walks a
validator and catches an exception on every call).

A padding row reads and writes slot 0 with a bf16 pool, and its output is undefined; with a float32 pool it is zero
(decode) or not written (verify).

Verify has a second kernel, `wy`: output only, bf16 pools, the state read once. It rounds A_log and dt_bias to bf16, and
into an output that it did not make itself it copies (but for T = 16).

Prefill takes decay and beta ready-made in float32 (one kernel of ours before it), q, k and v contiguous (copied where
they are views of a packed tensor), all at multiples of 16 bytes (copied where they are not, the output back), and
normalises q and k by a kernel of its own. Padding sequences work on the null slot, and their output means nothing.
"""

import functools
import importlib.metadata
import importlib.util
import inspect

import torch

from .base import Backend, Variant, dtype_name, needs_capability

MINIMUM_VERSION = {9: (0, 6, 4), 10: (0, 6, 5)}  # by compute capability: the first release with its pool-mode kernels
HEAD_DIM = 128
ALIGNMENT = {torch.bfloat16: 32, torch.float32: 16}  # bytes, by state dtype: where its kernels need tensors to begin


class FlashInferBackend(Backend):
    name = "flashinfer"
    distribution = "flashinfer-python"
    variants = (
        Variant(
            "vk", "VK", (torch.bfloat16, torch.float32), "gated_delta_rule_decode_pretranspose on the pool in place",
            ("decode", "verify", "prefill"), role="peer", order=50, colour="#009E73", marker="D", needs=(9, 0),
        ),
        Variant(
            "wy", "VK", (torch.bfloat16,), "gated_delta_rule_mtp_wy_output_only: A_log, dt_bias rounded to bf16",
            ("verify",), role="peer", order=55, colour="#DDCC77", marker="d", needs=(9, 0),
        ),
    )  # fmt: skip
    auto = {"decode": 30, "verify": 30, "prefill": 30}

    def auto_rank(self, call):
        # On compute capability 9.x its prefill takes down to 0.4 of triton's time from about 2,048 tokens up.
        hopper = (
            call.phase == "prefill"
            and torch.cuda.is_available()
            and torch.cuda.get_device_capability(call.device)[0] == 9
            if call.device.type == "cuda"
            else False
        )
        return 5 if hopper else super().auto_rank(call)

    def missing(self, device):
        return needs_capability(device, 9) or _not_installed(torch.cuda.get_device_capability(device)[0])

    def refusal(self, variant, call):
        if reason := super().refusal(variant, call) or _refusal_of_mode(variant.name, call.mode):
            return reason
        return no_prefill(torch.cuda.get_device_capability(call.device)[0]) if call.phase == "prefill" else None

    def refusal_of_sizes(self, call):
        K, V = call.shape.head_k_dim, call.shape.head_v_dim
        if (K, V) != (HEAD_DIM, HEAD_DIM):
            return f"takes head_k_dim and head_v_dim of {HEAD_DIM}; these are {K} and {V}"
        if call.io_dtype != torch.bfloat16:
            return f"takes inputs of bfloat16; these are {dtype_name(call.io_dtype)}"
        if call.index_dtype != torch.int32:
            return f"takes indices of int32 (it would copy {dtype_name(call.index_dtype)} on every call); pass int32"
        return None

    def decode_launch(self, variant, call):
        from flashinfer.gdn_decode import gated_delta_rule_decode_pretranspose

        alignment = ALIGNMENT[call.state_dtype]
        gates_too = call.state_dtype is torch.bfloat16

        def launch(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
            _check_alignment(alignment, q=q, k=k, v=v, indices=indices, out=out)
            if gates_too:
                _check_alignment(alignment, A_log=A_log, dt_bias=dt_bias)
            # [B, heads, dim] -> [B, 1, heads, dim], views
            gated_delta_rule_decode_pretranspose(
                q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), None, A_log, a.unsqueeze(1), dt_bias, b.unsqueeze(1),
                scale=scale, output=out.unsqueeze(1), use_qk_l2norm=use_qk_l2norm,
                initial_state=state.data, initial_state_indices=indices, backend="flashinfer",
            )  # fmt: skip

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
        q, k, v, g, beta, scale, initial_state=state.data, output_final_state=True, cu_seqlens=cu_seqlens, output=o,
        output_state=state.data, state_indices=indices.clamp(min=0), use_qk_l2norm_in_kernel=use_qk_l2norm,
        backend="flashinfer",
    )  # fmt: skip
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
    except Exception as error:  # versions without it, and broken installations: each is a reason, told in full
        return f"its prefill cannot be imported ({type(error).__name__}: {error})"

    if "state_indices" not in inspect.signature(chunk_gated_delta_rule).parameters:
        version = importlib.metadata.version("flashinfer-python")
        return f"{version} has no prefill kernel that takes a pool; pip install the version that requirements.txt pins"
    if capability_major not in (9, 10, 12):
        return f"has prefill kernels for compute capability 9.x, 10.x and 12.x; this is {capability_major}.x"
    if capability_major == 10 and int((torch.version.cuda or "0").split(".")[0]) < 13:
        return f"has a prefill kernel for compute capability 10.x from CUDA 13 on; torch here has {torch.version.cuda}"
    return None


def _verify(
    alignment, q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, update_state
):  # fmt: skip
    from flashinfer.gdn_decode import gated_delta_rule_decode_pretranspose

    _check_alignment(alignment, q=q, k=k, v=v, indices=indices, out=out)
    intermediate_states = state.intermediate
    if intermediate_states is not None:
        _check_alignment(alignment, intermediate_states=intermediate_states)
        if not intermediate_states.is_contiguous():  # its kernels count on rows of T tokens and would write elsewhere
            raise ValueError(
                "intermediate_states: backend 'flashinfer' takes a contiguous buffer; this one has strides "
                f"{list(intermediate_states.stride())}; reserve as many draft tokens as the call has"
            )
    gated_delta_rule_decode_pretranspose(
        q, k, v, None, A_log, a, dt_bias, b, scale=scale, output=out, use_qk_l2norm=use_qk_l2norm,
        initial_state=state.data, initial_state_indices=indices, intermediate_states_buffer=intermediate_states,
        disable_state_update=not update_state, backend="flashinfer",
    )  # fmt: skip


def _verify_wy(
    q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out, update_state
):  # fmt: skip
    from flashinfer.gdn_kernels import gated_delta_rule_mtp_wy_output_only

    if not use_qk_l2norm:
        raise ValueError("use_qk_l2norm: backend 'flashinfer/wy' always normalises q and k; got False")
    _check_alignment(16, q=q, k=k, v=v, indices=indices, out=out)
    gated_delta_rule_mtp_wy_output_only(
        A_log, a, dt_bias, q=q, k=k, v=v, b=b, initial_state_source=state.data, initial_state_indices=indices,
        disable_state_update=True, scale=scale, output=out,
    )  # fmt: skip


def _refusal_of_mode(variant: str, mode: str | None) -> str | None:
    """Why a variant cannot serve a verify call of this mode: one sentence, or None."""
    if mode == "update and intermediate":
        return "either moves the state on or stores the states after each token; pass update_state=False and commit()"
    if variant == "wy" and mode not in (None, "output"):
        return f"has no verify kernel wy for mode {mode!r}, only output alone"
    return None


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
    if release(version) < needed:
        return (
            f"needs flashinfer-python {'.'.join(map(str, needed))} or newer on compute capability "
            f"{capability_major}.x; {version} is installed"
        )
    if importlib.util.find_spec("cutlass") is None:
        return "its GDN kernels need the CuTe DSL, which is not installed; pip install nvidia-cutlass-dsl"
    try:
        from flashinfer.gdn_decode import gated_delta_rule_decode_pretranspose  # noqa: F401
        from flashinfer.gdn_kernels import gated_delta_rule as kernels
    except Exception as error:  # a broken installation fails in many ways; each is a reason, told in full
        return f"flashinfer-python {version} cannot be imported ({type(error).__name__}: {error}); reinstall it"
    if kernels is None:
        return f"flashinfer-python {version} could not load its CuTe DSL kernels; reinstall nvidia-cutlass-dsl"
    return None


def release(version: str) -> tuple[int, ...]:
    """(0, 7, 2) of "0.7.2.post1"."""
    numbers = []
    for part in version.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


BACKEND = FlashInferBackend()
