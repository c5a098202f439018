"""`cutedsl` without a GPU: its kernel compiled for Hopper and Blackwell, the cache of compiled kernels, refusals."""

import functools
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("cutlass", reason="there is no CuTe DSL for this operating system")
pytest.importorskip("triton", reason="cuobjdump comes with Triton, of which there is none for this operating system")

from gdn_lab import GDNShape  # noqa: E402
from gdn_lab.backends import registry  # noqa: E402
from gdn_lab.backends.base import Call, State  # noqa: E402
from gdn_lab.backends.cutedsl import backend as cutedsl  # noqa: E402
from gdn_lab.backends.cutedsl import cache  # noqa: E402
from gdn_lab.cli import resources  # noqa: E402
from gdn_lab.cli.catalogue import cutedsl_builds  # noqa: E402

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
BUILDS = [*cutedsl_builds("sm_90a"), *(x for x in cutedsl_builds("sm_100a") if x.aligned)]
KEEPING = [x._replace(keep=True) for x in cutedsl_builds("sm_90a") if x.rows == 32 and x.aligned]  # of an H200
SMALL = ("sm_90a", 1, 2, "bfloat16", "int32", 4, 4, True, 1, False, True, True)  # the fields of a Build


artifacts = functools.cache(resources.cutedsl_compiled)


def named(builds):
    alignment = {True: "aligned", False: "unaligned"}
    ids = [
        f"{x.architecture}-{x.state_dtype}-{x.rows}-{x.tiles}-{x.ahead}-{x.keep}-{alignment[x.aligned]}" for x in builds
    ]
    return pytest.mark.parametrize("build", [pytest.param(x, marks=left_out(x)) for x in builds], ids=ids)


def left_out(build):
    """What of make test-all make test leaves out."""
    return [pytest.mark.exhaustive] if (build.architecture, build.state_dtype) == ("sm_100a", "float16") else []


@named(BUILDS + KEEPING)
def test_no_spills_and_loads_of_16_bytes(build, monkeypatch):
    """Of state, q and k; only what need not be aligned is read by the element."""
    monkeypatch.setattr(resources, "cutedsl_compiled", artifacts)
    found = resources.cutedsl_resources(build)
    staged = build.warps * build.tiles * build.rows * 128 * 2 if build.tiles > 1 else 0
    assert found.stack_bytes == 0 and (found.shared_bytes >= staged if staged else found.shared_bytes == 0), found
    assert 16 <= found.registers <= 255 and found.num_warps == build.warps, found

    short = build.state_dtype != "float32"
    pieces = build.rows * build.tiles * 128 * (2 if short else 4) // 16 // 32  # of the state, for each thread
    ptx = artifacts(build).PTX
    wide = {name: len(re.findall(rf"{name}\.global[.:\w]*\.(?:v4\.b32|v2\.b64)", ptx)) for name in ("ld", "st")}
    assert wide == {"ld": (0 if staged else pieces) + (2 if short and build.aligned else 0), "st": pieces}, wide
    assert len(re.findall(r"ld\.global[.\w]*\.v4\.b16", ptx)) == (2 if not short and build.aligned else 0)
    assert ptx.count("cp.async.bulk.shared") == bool(staged)
    assert len(re.findall(r"ld\.shared\.v4\.b32", ptx)) == (pieces if staged else 0)
    assert ("prefetch.global.L2" in ptx) == build.ahead
    assert len(re.findall(r"ld\.global\.L2::cache_hint\.v4\.b32", ptx)) == (pieces if build.keep else 0)
    assert "bar.sync" not in ptx and ptx.count("griddepcontrol.wait") == 1, "a warp waits for the kernel before, only"
    assert ("fma.rn.f32x2" in ptx) == (build.architecture == "sm_100a"), "packed multiply-adds"


def test_fast_exponentials_save_a_few_instructions_and_no_more():
    [build] = [
        x
        for x in BUILDS
        if x[:1] == ("sm_90a",) and x.state_dtype == "float32" and x.rows == 16 and x.aligned and not x.ahead
    ]
    exact, fast = (
        len(re.findall(r"^\s+(?:@%p\d+ )?[a-z]+\.", artifacts(x).PTX, re.MULTILINE))
        for x in (build, build._replace(exact=False))
    )
    assert 0 < exact - fast < 100


def test_builds_cover_tiles_and_dtypes():
    for dtype, name in ((BF16, "bfloat16"), (FP32, "float32"), (FP16, "float16")):
        tiles = {cutedsl.tile_for(heads, dtype) for heads in range(1, 1 << 16)}
        assert {(x.rows, x.warps, x.ahead, x.tiles, x.keep) for x in BUILDS if x.state_dtype == name} == tiles
        kept = {cutedsl.tile_for(heads, dtype, of_h200=True) for heads in range(1, 1 << 16)} - tiles
        assert {(x.rows, x.warps, x.ahead, x.tiles, x.keep) for x in KEEPING if x.state_dtype == name} == kept
        assert all(128 % (tile.rows * tile.tiles * tile.warps) == 0 for tile in tiles)


PREPARE = f"""
from gdn_lab.backends.cutedsl import cache
cache.decode_function(*{SMALL!r})
[kernel] = cache.prepared
print(kernel.from_cache, kernel.seconds > 0, kernel.build.rows)
"""


def prepared_here(folder, monkeypatch):
    """The kernel that this process makes ready with that folder of caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(cache, "prepared", [])
    cache.decode_function.__wrapped__(*SMALL)
    [kernel] = cache.prepared
    return kernel


def test_a_second_process_finds_the_kernel(tmp_path, monkeypatch):
    """And where there is half a file, as no process of ours leaves it, a warning says so and it is compiled anew."""
    kernel = prepared_here(tmp_path, monkeypatch)
    [file] = tmp_path.rglob("*.*")
    assert not kernel.from_cache and kernel.seconds > 0 and kernel.build.rows == 4
    assert file.suffix == ".o" and file.parent == tmp_path / "gdn_lab" / "cutedsl"
    command = [sys.executable, "-W", "always::UserWarning", "-c", PREPARE]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and (done.stdout.split(), done.stderr) == (["True", "True", "4"], "")
    assert list(tmp_path.rglob("*.*")) == [file]
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.warns(UserWarning, match="cannot be loaded"):
        assert not prepared_here(tmp_path, monkeypatch).from_cache
    assert list(tmp_path.rglob("*.*")) == [file] and file.stat().st_size > 5000


def test_a_cache_that_takes_no_files(tmp_path, monkeypatch):
    not_a_folder = tmp_path / "file"
    not_a_folder.write_text("")
    with pytest.warns(UserWarning, match="takes no files .* each process compiles its kernels anew"):
        assert not prepared_here(not_a_folder, monkeypatch).from_cache


@pytest.mark.parametrize("different", ["build", "compiler", "source"])
def test_a_kernel_is_kept_under_all_that_it_depends_on(different, monkeypatch):
    from gdn_lab.backends.cutedsl.decode import Build

    build = Build(*SMALL)
    before = cache.fingerprint(build)
    assert before == cache.fingerprint(Build(*SMALL))
    if different == "build":
        build = build._replace(architecture="sm_100a")
    elif different == "compiler":
        monkeypatch.setattr(cache, "compiler", lambda: "another version")
    else:
        monkeypatch.setattr(cache.Path, "read_text", lambda path, **_: "another kernel")
    assert cache.fingerprint(build) != before


def call(**options):
    options = dict(layout="VK", dtype=BF16, io_dtype=BF16, index_dtype=torch.int32, shape=GDNShape(1, 2)) | options
    return Call(
        "decode", options["layout"], options["dtype"], options["io_dtype"], options["index_dtype"], options["shape"],
        torch.device("cuda", 0),
    )  # fmt: skip


@pytest.fixture
def hopper(monkeypatch):
    """A GPU of compute capability 9.0, for as long as nothing is run on it."""
    monkeypatch.setattr(cutedsl, "needs_capability", lambda device, major: None)
    monkeypatch.setattr(cutedsl, "architecture_of", lambda device: "sm_90a")
    monkeypatch.setattr(cutedsl, "is_h200", lambda device: False)
    cutedsl._not_installed.cache_clear()
    yield monkeypatch
    cutedsl._not_installed.cache_clear()


def why(**options):
    backend = registry.BACKENDS["cutedsl"]
    return backend.refusal(backend.variants[0], call(**options))


def test_what_it_takes(hopper):
    assert why() is None and why(dtype=FP32) is None and why(index_dtype=torch.int64) is None
    assert why(shape=GDNShape(16, 64)) is None
    assert why(layout="KV") == "needs a pool of layout VK; this one is KV"
    float8 = why(dtype=torch.float8_e4m3fn)
    assert float8 == "takes a state of bfloat16 or float32 or float16; this one is float8_e4m3fn"
    assert why(io_dtype=FP32) == "takes inputs of bfloat16; these are float32"
    assert why(shape=GDNShape(1, 2, 64, 128)) == "takes head_k_dim and head_v_dim of 128; these are 64 and 128"


@pytest.mark.parametrize(
    "version, sentence",
    [
        (None, "nvidia-cutlass-dsl is not installed; pip install the version that requirements.txt pins"),
        ("4.7.2", "needs nvidia-cutlass-dsl 4.8 or newer; 4.7.2 is installed"),
    ],
)
def test_versions_it_cannot_use(hopper, version, sentence):
    def installed(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    hopper.setattr(importlib.metadata, "version", installed)
    assert why() == sentence


def test_without_tvm_ffi(hopper):
    found = importlib.util.find_spec
    hopper.setattr(importlib.util, "find_spec", lambda name: None if name == "tvm_ffi" else found(name))
    assert why() == "needs apache-tvm-ffi, which is not installed; pip install apache-tvm-ffi"


def test_only_unaligned_heads_take_the_slower_kernel(hopper):
    """The fast one refuses what is not aligned; if all is, its error is the caller's to see."""
    made, ran = [], []

    def decode_function(*build):
        aligned = build[-1]
        made.append(aligned)

        def kernel(q, k, *others):
            if aligned and (q.data_ptr() % 16 or k.data_ptr() % 16 or q.stride(0) % 8 or torch.isnan(q).any()):
                raise ValueError("refused by the kernel")
            ran.append(aligned)

        return kernel

    hopper.setattr(cutedsl, "decode_function", decode_function)
    launch = registry.BACKENDS["cutedsl"].decode_launch(None, call())
    whole = torch.zeros(4 * 136 + 8, dtype=BF16)
    rows = whole[: 4 * 136].view(4, 1, 136)

    def run(q):
        others = dict.fromkeys(("A_log", "dt_bias", "indices", "out"))
        launch(q, rows[..., :128], None, None, None, state=State(None), scale=1.0, use_qk_l2norm=True, **others)

    for _ in range(2):
        run(rows[..., :128])
    assert made == [True] and ran == [True, True]
    run(rows[..., 3:131])
    run(whole[: 4 * 133].view(4, 1, 133)[..., :128])
    assert ran[2:] == [False, False]
    with pytest.raises(ValueError, match="refused by the kernel"):
        run(torch.full((4, 1, 128), torch.nan, dtype=BF16))


def test_what_preparing_cost_in_words(monkeypatch):
    monkeypatch.setattr(cache, "prepared", [])
    assert cache.preparation() == "cutedsl prepared no kernel in this process."
    cache.prepared += [cache.Prepared(None, True, 0.25), cache.Prepared(None, False, 2.0)]
    said = "cutedsl kernels made ready before their first call: 1 compiled in 2.0 s, 1 loaded from the cache folder in "
    assert cache.preparation().startswith(said)
