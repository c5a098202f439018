"""Every kernel launch that the workbook can make at the models' sizes, driven with meta tensors and recorded.

Batches 1 to 512 on one GPU and on one of eight, all dtypes, layouts, phases and modes: what a launch chooses by any of
these is met here, so a new tile needs no entry anywhere.
"""

import functools
from itertools import product
from unittest import mock

import torch

from ..backends.base import VERIFY_MODES, Call, State, assumed_capability, dtype_name
from ..backends.registry import BACKENDS
from ..e4m3 import draft_dtype
from ..models import CONV_WINDOW, MODELS, GDNShape
from ..ring import make_ring
from ..rounding import DTYPES as STOCHASTIC_DTYPES
from ..rounding import FP8, Stochastic
from .launches import Compilation, recording

ARCHITECTURES = {"sm_90a": (9, 0), "sm_100a": (10, 0), "sm_120a": (12, 0)}  # Hopper, Blackwell B200, Blackwell RTX
BATCHES = tuple(1 << power for power in range(10))  # 1 to 512
LENGTHS = (1, 64, 8192)  # tokens of a prefill sequence
LARGEST = "qwen3.5-397b-a17b"
DRAFT_TOKENS = range(2, 17)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
GPU = torch.device("cuda", 0)

empty = functools.partial(torch.empty, device="meta")


def shapes() -> list[GDNShape]:
    """Return the largest model's shape on one GPU and on one of eight."""
    return [GDNShape.from_model(LARGEST, tp) for tp in (1, 8)]


@functools.cache
def compilations(architecture: str) -> list[Compilation]:
    """Return every compilation of a Triton kernel that the workbook makes on `architecture`, a key of ARCHITECTURES."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: {architecture!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
    with assumed_capability(*ARCHITECTURES[architecture]), recording() as recorder:
        gdn_launches(recorder)
        gate_launches(recorder)
        commit_launches(recorder)
        all_reduce_launches(recorder)
        for name, tp, precision in product(MODELS, (1, 2, 4, 8), ("fp8", "bf16")):
            layer_launches(recorder, name, tp, precision)
        recorder.what = "attention"
        for name in (LARGEST, "qwen3.5-27b"):  # 16 and 6 query heads share a key head
            attention_launches(MODELS[name])
        recorder.what = "sampling"
        sampling_launches(MODELS[LARGEST])
    return recorder.compilations


def inputs(shape: GDNShape, *lead: int, dtype=torch.bfloat16) -> tuple[torch.Tensor, ...]:
    """Return q, k, v, a, b as make_inputs() lays them out: views of packed tensors."""
    HK, HV, K, V = shape.dims
    q, k, v = empty(*lead, shape.conv_dim, dtype=dtype).split([HK * K, HK * K, HV * V], dim=-1)
    b, a = empty(*lead, 2 * HV, dtype=dtype).split([HV, HV], dim=-1)
    return q.view(*lead, HK, K), k.view(*lead, HK, K), v.view(*lead, HV, V), a, b


def arguments(shape: GDNShape, call: Call, rows: int) -> dict:
    """Return the keyword arguments that every launch takes, but `out`."""
    HK, HV, K, V = shape.dims
    inner = (V, K) if call.layout == "VK" else (K, V)
    fp8 = call.state_dtype is FP8  # which is always rounded stochastically, and has a scale for each row
    counters = (rows + 1, HV, V, 0, "meta", call.state_dtype)
    stochastic = Stochastic.of(*counters) if call.stochastic or fp8 else None
    scales = empty(rows + 1, HV, V) if fp8 else None
    dtypes = {"dtype": call.state_dtype, "key_dtype": call.io_dtype}
    ring = make_ring(shape, rows + 1, call.ring, **dtypes, device="meta") if call.ring else None
    return {
        "A_log": empty(HV),
        "dt_bias": empty(HV),
        "state": State(
            empty(rows + 1, HV, *inner, dtype=call.state_dtype), rounding=stochastic, ring=ring, scales=scales
        ),
        "indices": empty(rows, dtype=call.index_dtype),
        "scale": shape.scale,
        "use_qk_l2norm": True,
    }


def gdn_launches(recorder) -> None:
    """Launch decode, verify and prefill of every variant of `triton`."""
    backend = BACKENDS["triton"]
    for variant, shape in product(backend.variants, shapes()):
        for phase, state_dtype, io_dtype in product(variant.phases, variant.state_dtypes, DTYPES):
            if io_dtype not in (torch.bfloat16, state_dtype):
                continue
            call = Call(phase, variant.layout, state_dtype, io_dtype, torch.int32, shape, GPU)
            call = call._replace(ring=variant.ring, key_dtype=io_dtype)
            if backend.refusal(variant, call):
                continue
            recorder.what = f"{phase} {variant.full_name} {dtype_name(state_dtype)}"
            if io_dtype is not torch.bfloat16:
                recorder.what += f" on {dtype_name(io_dtype)} inputs"
            launch = getattr(backend, f"{phase}_launch")(variant, call)
            LAUNCHES[phase](launch, shape, call)
            if phase in variant.stochastic and state_dtype in STOCHASTIC_DTYPES:
                recorder.what += ", stochastic"
                call = call._replace(stochastic=True)
                LAUNCHES[phase](backend.decode_launch(variant, call), shape, call)


def decode_launches(launch, shape: GDNShape, call: Call) -> None:
    """Launch decode for every batch, and with a ring the write of what is pending."""
    from ..backends.triton import replay_fold, replay_fp8_copies

    for batch in BATCHES:
        q, k, v, a, b = inputs(shape, batch, dtype=call.io_dtype)
        options = arguments(shape, call, batch)
        launch(q, k, v, a, b, **options, out=empty(v.shape, dtype=v.dtype))
        state = options["state"]
        if call.state_dtype is FP8:
            replay_fp8_copies.settle(state.data, state.scales, state.ring, options["indices"])
        elif call.ring:
            replay_fold.settle(state.data, state.ring, options["indices"])


def verify_launches(launch, shape: GDNShape, call: Call) -> None:
    """Launch verify for every batch, number of draft tokens and mode.

    On an FP8 pool the smallest and largest do: its copies go to the kernels of a bf16 pool, launched for all.
    """
    fp8 = call.state_dtype is FP8
    for batch, tokens in product((1, 512) if fp8 else BATCHES, (2, 16) if fp8 else DRAFT_TOKENS):
        q, k, v, a, b = inputs(shape, batch, tokens, dtype=call.io_dtype)
        options = arguments(shape, call, batch) | {"out": empty(v.shape, dtype=v.dtype)}
        state = options.pop("state")
        buffer = empty(batch, tokens, *state.data.shape[1:], dtype=draft_dtype(call.state_dtype))
        for mode in VERIFY_MODES[:3]:  # those that engines use
            taken = state._replace(intermediate=buffer if "intermediate" in mode else None)
            launch(q, k, v, a, b, **options, state=taken, update_state="update" in mode)


def prefill_launches(launch, shape: GDNShape, call: Call) -> None:
    """Launch prefill of one and of 512 sequences of several lengths, with and without normalising q and k."""
    for sequences, length, normalise in product((1, 512), LENGTHS, (True, False)):
        q, k, v, a, b = inputs(shape, sequences * length, dtype=call.io_dtype)
        options = arguments(shape, call, sequences) | {"use_qk_l2norm": normalise}
        bounds = empty(sequences + 1, dtype=torch.int32)
        launch(q, k, v, a, b, **options, cu_seqlens=bounds, out=empty(v.shape, dtype=v.dtype))


LAUNCHES = {"decode": decode_launches, "verify": verify_launches, "prefill": prefill_launches}


def gate_launches(recorder) -> None:
    """Launch the kernel that makes decay and beta for other libraries' prefill."""
    from ..backends.triton.gates import gates

    recorder.what = "gates"
    for shape in shapes():
        *_, a, b = inputs(shape, 8192)
        gates(a, b, empty(shape.num_v_heads), empty(shape.num_v_heads))


def commit_launches(recorder) -> None:
    """Launch StatePool.commit() for every dtype and a few batches and numbers of draft tokens."""
    from .. import pool_kernels

    for dtype, shape, rows, tokens in product(DTYPES, shapes(), (1, 64, 512), (2, 16)):
        recorder.what = f"commit {dtype_name(dtype)}"
        HK, HV, K, V = shape.dims
        pool_kernels.commit(
            empty(rows + 1, HV, V, K, dtype=dtype),
            empty(rows + 1, shape.conv_dim, CONV_WINDOW, dtype=torch.bfloat16),
            empty(rows, dtype=torch.int32),
            empty(rows, dtype=torch.int64),
            empty(rows, tokens, HV, V, K, dtype=dtype),
            empty(rows, shape.conv_dim, tokens, dtype=torch.bfloat16),
        )


def all_reduce_launches(recorder) -> None:
    """Launch the sums over 2, 4 and 8 GPUs, alone and with residual, norm and FP8, for rows of 4,096 and 5,120."""
    from ..engine import all_reduce_launch
    from ..layer.gdn_layer import Activation

    recorder.what = "all-reduce"
    for ranks, hidden in product((2, 4, 8), (4096, 5120)):
        scratch = empty(2, all_reduce_launch.scratch_elements(512, hidden, ranks), dtype=torch.int16)
        addresses, counter = empty(ranks, dtype=torch.int64), empty(1, dtype=torch.int32)
        peers = all_reduce_launch.Peers(1, ranks, scratch, addresses, counter, multiprocessors=132)
        x, made = empty(512, hidden, dtype=torch.bfloat16), Activation(512, hidden, True, "meta")
        norm = all_reduce_launch.Norm(x, x[0], x, *made.quantized().values())
        for launch, follows in product((all_reduce_launch.one_shot, all_reduce_launch.two_shot), (None, norm)):
            launch(x, made.live, peers=peers, norm=follows)


def layer_launches(recorder, name: str, tp: int, precision: str) -> None:
    """Launch the kernels around GDN for one rank of a model in the table, every batch, with PDL and without."""
    entry = MODELS[name]
    if entry.num_k_heads % tp or (entry.moe_intermediate or entry.ffn_intermediate) % tp:
        return
    shape = GDNShape.from_model(name, tp)
    for batch in BATCHES:
        recorder.what = f"layer {precision}"
        for overlap in (False, True):
            elementwise_launches(entry, shape, batch, precision, overlap)
        recorder.what = f"linear {precision}"
        projection_launches(entry, shape, batch, tp, precision)
        recorder.what = f"experts {precision}"
        if entry.experts:
            expert_launches(entry, batch, tp, precision)


def elementwise_launches(entry, shape: GDNShape, batch: int, precision: str, overlap: bool) -> None:
    """Launch the norms, the convolution, the activations and the quantiser."""
    from ..layer.gdn_layer import Activation
    from ..layer.kernels import elementwise
    from ..layer.kernels.conv_and_gates import conv_and_gates

    HK, HV, K, V = shape.dims
    fp8 = precision == "fp8"
    bf16 = functools.partial(empty, dtype=torch.bfloat16)
    hidden, o = Activation(batch, entry.hidden, fp8, "meta"), Activation(batch, HV * V, fp8, "meta")
    width = entry.ffn_intermediate
    up = Activation(batch, width, fp8, "meta")
    qkvz, ba = bf16(batch, shape.conv_dim + HV * V), bf16(batch, 2 * HV)
    mixed, z = bf16(batch, shape.conv_dim), bf16(batch, HV, V)
    norm = bf16(entry.hidden)
    rows = bf16(batch, entry.hidden)
    elementwise.add_norm(rows, rows, norm, rows, hidden.live, **hidden.quantized(), overlap=overlap)
    elementwise.split(qkvz, ba, mixed, z.view(batch, -1), ba[:, :HV].contiguous(), ba[:, HV:].contiguous())
    window, weight = bf16(batch + 1, shape.conv_dim, CONV_WINDOW), bf16(shape.conv_dim, CONV_WINDOW + 1)
    indices = empty(batch, dtype=torch.int32)
    elementwise.conv_update(qkvz[:, : shape.conv_dim], window, weight, indices, mixed, overlap=overlap)
    conv_and_gates(
        hidden.y,
        bf16(2 * HV, entry.hidden),
        bf16(len(hidden.y), 2 * HV),
        qkvz[:, : shape.conv_dim],
        window,
        weight,
        indices,
        mixed,
        scratch=None,
        overlap=overlap,
    )
    starts, drafts = empty(2, dtype=torch.int32), bf16(1, shape.conv_dim, batch)
    for given in (None, drafts):
        elementwise.conv_sequences(
            qkvz[:, : shape.conv_dim], window, weight, indices[:1], indices, starts, mixed, drafts=given
        )
    gate_up = bf16(batch, 2 * width)
    if fp8:
        elementwise.quantize(rows, hidden.y8, hidden.scale, overlap=overlap)
        elementwise.gated_norm(z, z, bf16(V), **o.quantized(), overlap=overlap)
        elementwise.silu_mul(gate_up, **up.quantized(), overlap=overlap)
    else:
        elementwise.gated_norm(z, z, bf16(V), o.live, overlap=overlap)
        elementwise.silu_mul(gate_up, up.live, overlap=overlap)


def attention_launches(entry) -> None:
    """Launch full attention for decode, draft tokens and prompts, of short and long requests."""
    from ..engine import attention_kernels
    from ..engine.model_sizes import HEAD_DIM, ROTARY
    from ..engine.token_rows import TokenRows
    from ..layer.gdn_layer import Activation
    from ..layer.workspace import Workspace

    ints, bf16 = functools.partial(empty, dtype=torch.int32), functools.partial(empty, dtype=torch.bfloat16)
    HQ, HKV, page_size = entry.attn_q_heads, entry.attn_kv_heads, 64
    pages, norm = bf16(1024, page_size, HKV, HEAD_DIM), bf16(HEAD_DIM)
    for sequences, tokens, length in [(1, 1, 1 << 17), (256, 1, 4096), (256, 4, 4096), (4, 512, 4096)]:
        N = sequences * tokens
        rows = TokenRows(ints(N), ints(N), ints(sequences + 1), ints(sequences), ints(sequences, length), tokens)
        qkv, q = bf16(N, 2 * (HQ + HKV) * HEAD_DIM), bf16(N, HQ, HEAD_DIM)
        table = empty(length, ROTARY // 2), empty(length, ROTARY // 2)
        attention_kernels.store_qkv(qkv, norm, norm, table, rows, q, pages, pages)
        for fp8 in (False, True):
            y = Activation(N, HQ * HEAD_DIM, fp8, "meta")
            options = {"take": Workspace("meta").take, "max_length": length}
            attention_kernels.attend(q, qkv, pages, pages, rows, y.live, **y.quantized(), **options)


def sampling_launches(entry) -> None:
    """Launch the sampler."""
    from ..engine.sampling import SamplingRows
    from ..engine.sampling_kernels import sample

    rows, ints = 256, functools.partial(empty, dtype=torch.int32)
    logits, tokens = empty(rows, entry.vocab, dtype=torch.bfloat16), empty(rows, dtype=torch.int64)
    sample(logits, tokens, SamplingRows(empty(rows, 2), ints(rows, 2)), ints(rows))


def linear_weight(*shape: int, precision: str):
    """Return a weight [..., N, K] as a checkpoint stores it."""
    from ..layer.fp8 import E4M3, Linear, blocks

    if precision == "bf16":
        return Linear(empty(*shape, dtype=torch.bfloat16))
    *lead, n, k = shape
    return Linear(empty(*shape, dtype=E4M3), empty(*lead, blocks(n), blocks(k)))


def projection_launches(entry, shape: GDNShape, batch: int, tp: int, precision: str) -> None:
    """Launch the product of each of a layer's projections and of a dense feed-forward."""
    from ..layer.gdn_layer import Activation
    from ..layer.kernels.projections import linear

    HK, HV, K, V = shape.dims
    width = entry.ffn_intermediate // tp
    sizes = [(shape.conv_dim + HV * V, entry.hidden), (2 * HV, entry.hidden), (entry.hidden, HV * V)]
    sizes += [(entry.experts, entry.hidden)] if entry.experts else [(2 * width, entry.hidden), (entry.hidden, width)]
    for N, K in sizes:
        x, x8, scale = Activation(batch, K, precision == "fp8", "meta").padded
        weight = linear_weight(N, K, precision=precision)
        linear(x if x8 is None else x8, scale, weight, empty(len(x), N, dtype=torch.bfloat16), overlap=True)


def expert_launches(entry, batch: int, tp: int, precision: str) -> None:
    """Launch the mixture of experts with the shared expert fused and apart."""
    from ..layer.experts import Experts, ExpertWeights
    from ..layer.gdn_layer import Activation

    E, H = entry.experts, entry.hidden
    inner, shared = entry.moe_intermediate // tp, entry.ffn_intermediate // tp
    weight = functools.partial(linear_weight, precision=precision)
    weights = ExpertWeights(
        router=empty(E, H, dtype=torch.bfloat16),
        w13=weight(E, 2, inner, H),
        w2=weight(E, H, inner),
        shared_w13=weight(1, 2, shared, H),
        shared_w2=weight(1, H, shared),
        shared_gate=empty(H, dtype=torch.bfloat16),
    )
    with mock.patch.object(ExpertWeights, "can_fuse", inner == shared):  # it compares addresses, which meta has not
        for fused in {False, inner == shared}:
            experts = Experts(weights, entry.top_k, batch, fused=fused, overlap=True)
            x = Activation(batch, H, precision == "fp8", "meta").unpadded
            experts.route(empty(batch, E, dtype=torch.bfloat16))
            experts.routed(*x)
            experts.shared(*x)
            experts.combine(x[0], empty(batch, H, dtype=torch.bfloat16))


def cutedsl_builds(architecture: str) -> list:
    """Return every build (backends.cutedsl.decode.Build) that `cutedsl` compiles on `architecture`."""
    from ..backends.cutedsl import backend as cutedsl
    from ..backends.cutedsl.decode import Build

    builds = {}

    def decode_function(*fields):
        build = Build(*fields)

        def kernel(q, k, *others):
            if build.aligned and not (cutedsl.is_aligned(q) and cutedsl.is_aligned(k)):
                raise ValueError("q: begins at no multiple of 16 bytes")

        builds.setdefault(build._replace(num_k_heads=0, num_v_heads=0), build)
        return kernel

    backend = BACKENDS["cutedsl"]
    with (
        assumed_capability(*ARCHITECTURES[architecture]),
        mock.patch.object(cutedsl, "decode_function", decode_function),
    ):
        for variant, shape in product(backend.variants, shapes()):
            for state_dtype, batch, offset in product(variant.state_dtypes, BATCHES, (0, 1)):
                call = Call("decode", variant.layout, state_dtype, torch.bfloat16, torch.int32, shape, GPU)
                HK, HV, K, V = shape.dims
                q = empty(batch, HK * K + offset, dtype=torch.bfloat16)[:, : HK * K].view(batch, HK, K)
                v, a = empty(batch, HV, V, dtype=torch.bfloat16), empty(batch, HV, dtype=torch.bfloat16)
                launch = backend.decode_launch(variant, call)
                launch(q, q, v, a, a, **arguments(shape, call, batch), out=empty(v.shape, dtype=v.dtype))
    return list(builds.values())
