"""What a backend refuses, and which one serves a call, on GPUs and installations that are simulated."""

import importlib.metadata
import importlib.util
import subprocess
import sys
import types

import pytest
import torch
from against_reference import filled_pool, same_bits
from test_refusals import refused

from gdn_lab import GDNShape, StatePool, backends, decode
from gdn_lab.backends import flashinfer as flashinfer_file
from gdn_lab.backends import refusal, registry
from gdn_lab.backends.base import Call
from gdn_lab.ops import make_inputs

BIG = GDNShape(2, 4)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CUDA = torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    """machine(capability, ...): what PyTorch, Python's package list and FlashInfer say on such a machine."""

    def forget():
        registry.launch_for.cache_clear()
        flashinfer_file._not_installed.cache_clear()

    def pretend(capability=None, *, amd=False, flashinfer="0.7.2.post1", cutlass=True, decode=None, kernels=print):
        """decode: FlashInfer's function, or what importing it raises. kernels: of its CuTe DSL; None: did not load."""
        forget()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None or amd)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(capability is not None or amd))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.version, "hip", "6.4" if amd else None)
        find_version, find_spec = importlib.metadata.version, importlib.util.find_spec

        def version(name):
            if name != "flashinfer-python":
                return find_version(name)
            if flashinfer is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return flashinfer

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: (cutlass or None) if name == "cutlass" else find_spec(name)
        )
        library = types.ModuleType("flashinfer")
        library.gdn_kernels = types.ModuleType("flashinfer.gdn_kernels")
        library.gdn_kernels.gated_delta_rule = kernels
        monkeypatch.setitem(sys.modules, "flashinfer", library)
        monkeypatch.setitem(sys.modules, "flashinfer.gdn_kernels", library.gdn_kernels)
        if isinstance(decode, Exception):
            library.__path__ = []

            class Broken:
                def find_spec(self, name, path=None, target=None):
                    if name == "flashinfer.gdn_decode":
                        raise decode

            monkeypatch.delitem(sys.modules, "flashinfer.gdn_decode", raising=False)
            monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
        else:
            library.gdn_decode = types.ModuleType("flashinfer.gdn_decode")
            library.gdn_decode.gated_delta_rule_decode_pretranspose = decode or print
            monkeypatch.setitem(sys.modules, "flashinfer.gdn_decode", library.gdn_decode)

    yield pretend
    forget()


def why(name, shape=BIG, **call):
    return refusal(name, shape, device=CUDA, **call)


@pytest.mark.parametrize(
    "capability, triton, flashinfer, auto, prefill",
    [
        ((7, 5), "8.0 or newer; this is 7.5", "9.0 or newer; this is 7.5", "torch", "torch"),
        ((8, 0), None, "9.0 or newer; this is 8.0", "triton", "triton"),
        ((8, 9), None, "9.0 or newer; this is 8.9", "triton", "triton"),
        ((9, 0), None, None, "cutedsl", "triton"),
        ((10, 0), None, None, "cutedsl", "triton"),
        ((12, 0), None, None, "cutedsl", "triton"),
    ],
    ids=str,
)
def test_who_serves_which_gpu(machine, monkeypatch, capability, triton, flashinfer, auto, prefill):
    monkeypatch.setattr(flashinfer_file, "no_prefill", lambda major: None)
    machine(capability)
    needs = "needs an NVIDIA GPU of compute capability "
    assert why("triton") == (triton and needs + triton)
    assert why("flashinfer") == (flashinfer and needs + flashinfer)
    assert why("torch") is None and why("auto") is None
    call = Call("decode", "VK", BF16, BF16, torch.int32, BIG, CUDA)
    assert registry.serving("auto", call) == f"{auto}/vk"
    assert registry.serving("auto", call._replace(state_dtype=FP32)) == f"{auto}/vk"
    by_triton = "torch" if auto == "torch" else "triton"
    kv = {"torch": "torch/kv", "triton": "triton/kv32"}[by_triton]
    for dtype in (BF16, FP32):
        verify = call._replace(phase="verify", mode="update", state_dtype=dtype)
        assert registry.serving("auto", verify) == f"{by_triton}/vk"
        assert registry.serving("auto", call._replace(phase="prefill", state_dtype=dtype)) == f"{prefill}/vk"
    for phase, mode in (("decode", None), ("verify", "output"), ("prefill", None)):
        assert registry.serving("auto", call._replace(phase=phase, mode=mode, layout="KV")) == kv
    reports = {report.name: report for report in backends(CUDA)}
    assert reports["triton"].reason == why("triton") and reports["flashinfer"].reason == why("flashinfer")
    assert reports["torch"].reason is None and reports["torch"].installed
    assert reports["flashinfer"].version == "0.7.2.post1"


def test_no_gpu_and_an_amd_gpu(machine):
    machine(None)
    assert why("triton").endswith("; PyTorch finds none here")
    assert refusal("triton", BIG, device="cpu").endswith("; this is a CPU")
    machine(amd=True)
    assert why("triton") == "needs an NVIDIA GPU of compute capability 8.0 or newer; this is an AMD GPU"
    assert why("flashinfer").endswith("; this is an AMD GPU") and why("auto") is None


@pytest.mark.parametrize(
    "capability, options, sentence",
    [
        (
            (9, 0),
            dict(flashinfer=None),
            "flashinfer-python is not installed; pip install the version that requirements",
        ),
        (
            (9, 0),
            dict(flashinfer="0.6.3"),
            "needs flashinfer-python 0.6.4 or newer on compute capability 9.x; 0.6.3 is installed",
        ),
        (
            (10, 0),
            dict(flashinfer="0.6.4.post2"),
            "needs flashinfer-python 0.6.5 or newer on compute capability 10.x; 0.6.4.post2 is installed",
        ),
        ((12, 0), dict(flashinfer="0.6.5rc1"), "needs flashinfer-python 0.6.5 or newer on compute capability 12.x"),
        ((9, 0), dict(cutlass=False), "need the CuTe DSL, which is not installed; pip install nvidia-cutlass-dsl"),
        (
            (9, 0),
            dict(decode=ImportError("libcudart.so.13: not found")),
            "flashinfer-python 0.7.2.post1 cannot be imported (ImportError: libcudart.so.13: not found); reinstall it",
        ),
        ((10, 0), dict(decode=RuntimeError("no nvcc")), "cannot be imported (RuntimeError: no nvcc)"),
        ((9, 0), dict(kernels=None), "could not load its CuTe DSL kernels; reinstall nvidia-cutlass-dsl"),
    ],
)
def test_a_flashinfer_that_cannot_serve(machine, capability, options, sentence):
    machine(capability, **options)
    assert sentence in why("flashinfer")
    assert why("auto") is None  # triton serves
    report = next(report for report in backends(CUDA) if report.name == "flashinfer")
    assert report.reason == why("flashinfer") and report.installed == (options.get("flashinfer", "") is not None)


@pytest.mark.parametrize("version", ["0.6.4", "0.6.4.post1", "0.6.10", "0.7", "1.0.0+cu13"])
def test_new_enough_versions_of_flashinfer(machine, version):
    machine((9, 0), flashinfer=version)
    assert why("flashinfer") is None


@pytest.mark.parametrize(
    "backend, call, sentence",
    [
        ("flashinfer", dict(layout="KV"), "needs a pool of layout VK; this one is KV"),
        ("flashinfer", dict(dtype=FP16), "takes a state of bfloat16 or float32; this one is float16"),
        ("flashinfer", dict(io_dtype=FP16), "takes inputs of bfloat16; these are float16"),
        ("flashinfer", dict(index_dtype=torch.int64), "takes indices of int32 (it would copy int64 on every call)"),
        ("flashinfer", dict(shape=GDNShape(2, 4, 64, 128)), "head_k_dim and head_v_dim of 128; these are 64 and 128"),
        ("flashinfer", dict(shape=GDNShape(1, 1)), "takes two value heads or more; this is one"),
        ("triton/kv8", dict(layout="VK"), "needs a pool of layout KV; this one is VK"),
        ("triton/vk", dict(layout="KV"), "needs a pool of layout VK; this one is KV"),
        ("triton", dict(io_dtype=torch.float64), "takes inputs of bfloat16 or float16 or float32; these are float64"),
        ("triton", dict(shape=GDNShape(2, 4, 48, 128)), "and head_v_dim in multiples of 32; these are 48 and 128"),
        ("triton", dict(shape=GDNShape(2, 4, 128, 40)), "and head_v_dim in multiples of 32; these are 128 and 40"),
        ("triton", dict(dtype=torch.float8_e4m3fn), "a state of bfloat16 or float32 or float16; this one is float8"),
        ("torch", dict(phase="train"), "has no train kernel"),
        (
            "auto",
            dict(phase="train"),
            "finds no backend for this call: none has a train kernel",
        ),
    ],
)  # fmt: skip
def test_calls_that_a_backend_does_not_take(machine, backend, call, sentence):
    machine((9, 0))
    assert sentence in why(backend, **call)


def test_a_refusing_backend_is_never_replaced(machine):
    """An explicit name is honoured or raises; what "auto" would take instead does not run."""
    machine(None)
    pool = filled_pool(BIG, 4, layout="VK", dtype=BF16)
    before = pool.state.clone()
    x = make_inputs(BIG, 2)
    for name in ("triton", "triton/vk", "flashinfer"):
        refused(
            lambda name=name: decode(
                *x.arguments(), **x.gates(), pool=pool, indices=torch.tensor([1, 2], dtype=torch.int32), backend=name
            ),
            f"backend {name!r} needs an NVIDIA GPU",
        )
    assert same_bits(pool.state, before)


def misaligned(x):
    """The same numbers, beginning 2 or 4 bytes after a multiple of 32."""
    whole = torch.empty(x.numel() + 1, dtype=x.dtype)
    whole[1:] = x.flatten()
    return whole[1:].view(x.shape)


def flashinfer_arguments(dtype):
    """The arguments of a launch on BIG for 2 rows that FlashInfer takes."""
    x = make_inputs(BIG, 2)
    return dict(
        q=x.q.contiguous(),
        k=x.k.contiguous(),
        v=x.v.contiguous(),
        a=x.a,
        b=x.b,
        A_log=x.A_log,
        dt_bias=x.dt_bias,
        state=StatePool(BIG, 3, dtype=dtype).launch_state,
        indices=torch.tensor([1, 2], dtype=torch.int32),
        scale=1.0,
        use_qk_l2norm=True,
        out=torch.empty(2, 4, 128, dtype=BF16),
    )


@pytest.mark.parametrize("name", ["q", "k", "v", "indices", "out", "A_log", "dt_bias"])
@pytest.mark.parametrize("dtype, alignment", [(BF16, 32), (FP32, 16)], ids=str)
def test_flashinfer_is_not_called_on_tensors_it_cannot_take(machine, name, dtype, alignment):
    """A stand-in for FlashInfer's function counts its calls. The tensors are real: torch aligns them to 64 bytes."""
    calls = []
    machine((9, 0), decode=lambda *arguments, **options: calls.append(options))
    good = flashinfer_arguments(dtype)
    call = Call("decode", "VK", dtype, BF16, torch.int32, BIG, CUDA)
    launch = registry.launch_for("flashinfer", call)
    launch(**good)
    assert len(calls) == 1 and calls[0]["initial_state"] is good["state"].data and calls[0]["backend"] == "flashinfer"
    bad = good | {name: misaligned(good[name])}
    if dtype == FP32 and name in ("A_log", "dt_bias"):
        launch(**bad)  # read one element at a time there
        return
    after = bad[name].data_ptr() % alignment
    refused(
        lambda: launch(**bad),
        f"{name}: backend 'flashinfer' takes tensors that begin at a multiple of {alignment} bytes; this one begins "
        f"{after} bytes after one; pass a copy (clone())",
    )
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["q", "k", "v", "a", "b"])
def test_flashinfer_takes_no_rows_that_share_memory(machine, name):
    calls = []
    machine((9, 0), decode=lambda **options: calls.append(options))
    good = flashinfer_arguments(BF16)
    launch = registry.launch_for("flashinfer", Call("decode", "VK", BF16, BF16, torch.int32, BIG, CUDA))
    shared = good[name][:1].expand(good[name].shape)
    refused(
        lambda: launch(**good | {name: shared}),
        f"{name}: backend 'flashinfer' takes rows that do not share memory; this one has strides [0, ",
    )
    assert not calls


def test_auto_takes_no_variant_that_is_not_isolated(machine, monkeypatch):
    """FlashInfer's prefill, by name, still serves; the reason says why "auto" does not take it."""
    monkeypatch.setattr(flashinfer_file, "no_prefill", lambda major: None)
    machine((9, 0))
    call = Call("prefill", "VK", BF16, BF16, torch.int32, BIG, CUDA)
    assert registry.variant("flashinfer/vk").leaks == ("prefill",)
    assert registry.serving("flashinfer", call) == "flashinfer/vk"
    monkeypatch.setattr(registry, "auto_order", lambda call: ("flashinfer",))
    with pytest.raises(ValueError, match="auto.*flashinfer is not isolated in prefill: NaN in one sequence can reach"):
        registry.serving("auto", call)
    assert registry.serving("auto", call._replace(phase="decode")) == "flashinfer/vk"


def test_variants_are_in_the_order_of_their_records():
    orders = [variant.order for variant in registry.VARIANTS.values()]
    assert orders == sorted(orders) and list(registry.VARIANTS)[0] == "triton/vk"
    assert registry.in_order(reversed(registry.VARIANTS)) == list(registry.VARIANTS)


def test_triton_that_cannot_be_imported():
    """Another operating system: listed all the same, and refuses with the reason."""
    program = """
import sys
sys.modules["triton"] = None
import torch
from gdn_lab import GDNShape, backends
from gdn_lab.backends import refusal
report = next(report for report in backends() if report.name == "triton")
print(report.variants, report.reason)
assert refusal("triton/kv8", GDNShape(1, 1)) == refusal("triton", GDNShape(1, 1)) == report.reason
assert refusal("auto", GDNShape(1, 1)) is None
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "cannot be imported (" in run.stdout and "install what requirements.txt pins" in run.stdout
