"""Every kernel as compiled for Hopper and both Blackwells, without a GPU: launches recorded, no spills, wide loads."""

import math
import re
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="there is no Triton for this operating system")

from triton.runtime.jit import JITFunction  # noqa: E402

import gdn_lab  # noqa: E402
from gdn_lab.backends.base import assumed_capability, dtype_name  # noqa: E402
from gdn_lab.backends.registry import VARIANTS  # noqa: E402
from gdn_lab.backends.triton import (  # noqa: E402
    prefill,
    recurrent,
    verify,
)
from gdn_lab.cli import main, resources  # noqa: E402
from gdn_lab.cli.catalogue import ARCHITECTURES, compilations  # noqa: E402
from gdn_lab.cli.launches import compiled, recording  # noqa: E402
from gdn_lab.engine import all_reduce_launch  # noqa: E402

ROOM = {"sm_90a": 227 << 10, "sm_100a": 227 << 10, "sm_120a": 99 << 10}  # shared memory that a block may have
ELEMENTWISE = ("gates", "commit", "layer")  # no products, so they are compiled alike for every architecture
LEFT_OUT = {"sm_90a": (), "sm_100a": ELEMENTWISE, "sm_120a": (*ELEMENTWISE, "all-reduce", "sampling")}  # see hardest()
NOT_IN_A_MODEL = "negate_kernel"  # of bench/stream_kernel.py, which measures the bandwidth
FEW = 3  # draft tokens: a first, one between and a last
NO_TILE = (
    "HK",
    "HV",
    "HQ",
    "HKV",
    "T",
    "SPLIT",
    "SPLITS",
    "PARTS",
    "AHEAD",
)  # constants that no thread's share of a tile depends on

GROUPS = (
    "decode",
    "verify",
    "prefill",
    "gates",
    "commit",
    "layer",
    "linear",
    "experts",
    "all-reduce",
    "attention",
    "sampling",
)


def find(words: str, architecture: str = "sm_90a", **constants):
    """The compilations whose label begins with these words, and with these constants."""
    return [
        x for x in compilations(architecture) if x.label.startswith(words) and constants.items() <= x.constants.items()
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_is_launched(architecture):
    launched = {x.kernel.__name__ for x in compilations(architecture)}
    sources = "\n".join(path.read_text() for path in Path(gdn_lab.__file__).parent.rglob("*.py"))
    assert launched | {NOT_IN_A_MODEL} == set(re.findall(r"^@triton\.jit.*\ndef (\w+_kernel)\(", sources, re.MULTILINE))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_variant_phase_and_dtype_is_launched(architecture):
    for variant in VARIANTS.values():
        for phase, dtype in product(variant.phases, variant.state_dtypes) if variant.backend == "triton" else ():
            first = {"verify": "vk" if variant.layout == "VK" else "kv32"}.get(phase, variant.name)
            words = f"{phase} triton/{first} {dtype_name(dtype)}:"
            if phase != "decode" and variant.ring:  # on copies of an FP8 state, by the kernels of vk
                words = f"{phase} triton/vk {'bfloat16' if phase == 'verify' else 'float32'}:"
            assert find(words, architecture), (variant, phase, dtype)


def test_every_tile_is_launched():
    """All that the functions which choose tiles can return, at the models' numbers of heads."""
    heads = [batch * number for batch in range(1, 513) for number in (64, 8)]
    for overlap, words in ((True, "decode triton/vk bfloat16:"), (False, "decode triton/vk-serial bfloat16:")):
        tiles = {recurrent.decode_tile(number, overlap).rows for number in heads}
        assert {x.constants["TILE"] for x in find(words)} == tiles
    for architecture, (major, _) in ARCHITECTURES.items():
        import torch

        chosen = {
            verify.tiling(number, tokens, torch.bfloat16, update, 1, major == 9)
            for number, tokens, update in product(heads, range(2, 17), (True, False))
            if not recurrent.use_recurrent(number, tokens, torch.bfloat16, torch.bfloat16, False, update)
        }
        found = {
            (x.constants["TILE"], x.num_warps, x.options.get("maxnreg"))
            for x in find("verify triton/vk bfloat16:", architecture)
            if x.kernel is verify.verify_kernel
        }
        assert found == {(tile.rows, tile.warps, tile.registers) for tile in chosen}


def test_prefill_loads_further_ahead_where_no_multiprocessor_has_two_programs():
    def stages(words, architecture="sm_90a"):
        found = [x for x in find(words, architecture) if x.kernel is prefill.scan_kernel]
        return {x.constants["STAGES"] for x in found if x.constants["TILE"] == 64}

    assert stages("prefill triton/vk bfloat16:") == stages("prefill triton/kv32 float32:") == {2, 3}
    assert stages("prefill triton/vk float16 on float16 inputs") == {2}  # three spill
    assert stages("prefill", "sm_100a") == {2}


def test_a_recorded_launch_does_not_run_and_recording_ends():
    run = JITFunction.run
    with assumed_capability(9), recording() as recorder:
        assert JITFunction.run is not run
    assert JITFunction.run is run and recorder.compilations == []


def multiplies(kernel: JITFunction) -> bool:
    """Whether the kernel, or a device function that it calls, has a product of matrices."""
    found = {kernel.__name__: kernel}
    for function in (followed := [kernel]):
        called = (function.fn.__globals__.get(name) for name in re.findall(r"\b(\w+)\(", function.src))
        new = {x.__name__: x for x in called if isinstance(x, JITFunction) and x.__name__ not in found}
        found |= new
        followed += new.values()
    return any("tl.dot(" in function.src for function in followed)


def every_size(words: str, architecture: str):
    """Everything for Hopper; for Blackwell inputs of bf16, and splits of 1 and 8 parts."""
    return [
        x
        for x in find(words, architecture)
        if architecture == "sm_90a"
        or " inputs" not in x.label
        and x.constants.get("SPLIT", 1) in (1, 8)
        and x.constants.get("RANKS", 2) == 2
    ]


def hardest(words: str, architecture: str):
    """Of launches of a kernel that differ in sizes alone, that whose threads hold most; for Blackwell, and where K is
    not last, of all dtypes.

    Decode and recurrent_kernel make float32 of their inputs as they load them, so inputs of bf16 stand for all. The
    draft tokens of recurrent_kernel and verify_kernel are a loop that is unrolled, so FEW of them stand for many. What
    multiplies no matrices is for sm_120a the PTX of sm_100a, or in the maximum of a row that of sm_90a.
    """
    groups = {}
    for x in every_size(words, architecture):
        if architecture == "sm_120a" and not multiplies(x.kernel):
            continue
        as_float32 = words == "decode" or x.kernel is recurrent.recurrent_kernel
        if not as_float32 or " inputs" not in x.label:
            groups.setdefault(code_of(x, architecture), []).append(x)
    return [shortened(max(group, key=held)) for group in groups.values()]


def code_of(x, architecture: str) -> tuple:
    """What chooses the lines of a kernel. OVERLAP adds two instructions, L2NORM is always there but in prefill."""
    flags = [(name, str(value)) for name, value in x.constants.items() if type(value) is not int and name != "OVERLAP"]
    split = [name for name in ("SPLIT", "SPLITS") if x.constants.get(name, 1) > 1]
    if architecture != "sm_90a" or x.constants.get("K_LAST") is False:
        return x.kernel.__name__, *flags, *split
    pointers = [kind for kind in x.types.values() if kind.startswith("*")]
    return x.kernel.__name__, *flags, *split, *pointers, "maxnreg" in x.options


def held(x) -> tuple:
    """Elements of a tile that a thread holds, up to a factor that a kernel's launches share; then its draft tokens."""
    sizes = {name: value for name, value in x.constants.items() if type(value) is int and name not in NO_TILE}
    return math.prod(size or 1 for size in sizes.values()) / x.num_warps, x.constants.get("T", 1)


def shortened(x):
    if x.kernel not in (recurrent.recurrent_kernel, verify.verify_kernel):
        return x
    return x._replace(constants=x.constants | {"T": min(x.constants["T"], FEW)})


def check_resources(group, architecture):
    assert group
    for compilation in group:
        found = resources.resources(compilation, architecture)
        assert found.stack_bytes <= spills_allowed(found.label, architecture), found
        assert 8 <= found.registers <= 255 and found.shared_bytes <= ROOM[architecture], found


@pytest.mark.parametrize(
    "words, architecture",
    [(words, name) for words, name in product(GROUPS, ARCHITECTURES) if words not in LEFT_OUT[name]],
)
def test_no_spills(words, architecture):
    """Verify may spill where it updates a float32 state, still the fastest tile, and where inputs are float32."""
    check_resources(hardest(words, architecture), architecture)


def test_no_spills_in_many_steps():
    """The launch of recurrent_kernel with most registers. Sixteen steps, which take four times as long to compile, take
    205 where eight take 168, so eight leave that many."""
    [longest] = find("verify triton/kv32 float32 on float32 inputs", STORE_STATES=True, T=16)
    found = resources.resources(longest._replace(constants=longest.constants | {"T": 8}), "sm_90a")
    assert found.stack_bytes == 0 and found.registers <= 255 - (205 - 168), found


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("words", GROUPS)
def test_no_spills_at_any_size(words, architecture):
    check_resources(every_size(words, architecture), architecture)


def spills_allowed(label: str, architecture: str) -> int:
    """Bytes a thread: of verify, a few of a sum, and of a ring's step, faster with a limit of registers than without.

    float32 inputs multiply as three TF32 products each. Stochastic float16 without PDL never ran on sm_100a.
    """
    if label.startswith("decode triton/vk-serial float16, stochastic") and architecture == "sm_100a":
        return 16
    if label.startswith("decode triton/replay bfloat16:"):
        return 64
    if label.startswith("all-reduce"):
        return 128 if "RANKS=8" in label else 16
    if not label.startswith("verify"):
        return 0
    return 128 if " on float32 inputs" in label else 80 if " float32:" in label and " UPDATE" in label else 0


def test_every_group_is_compiled():
    assert all(x.label.startswith(GROUPS) for x in compilations("sm_90a"))


@pytest.mark.parametrize("variant, tile", [("vk", 32), ("vk-serial", 16), ("kv8", 8)])
def test_state_travels_in_pieces_of_16_bytes(variant, tile):
    """In PTX: each thread of the warp loads and stores its share of the [TILE, 128] tile 8 bf16 at a time."""
    [compilation] = find(f"decode triton/{variant} bfloat16:", TILE=tile)
    ptx = compiled(compilation, 90).asm["ptx"]
    pieces = tile * 128 * 2 // 16 // (32 * compilation.num_warps)
    for instruction in ("ld", "st"):
        assert len(re.findall(rf"{instruction}\.global[.\w]*\.v4\.b32", ptx)) >= pieces, ptx


@pytest.mark.parametrize("ranks, norm", [(2, False), (4, True)])
def test_all_programs_of_a_sum_run_at_once_and_wait_for_16_bytes_at_a_time(ranks, norm):
    """Programs wait for each other, so none may wait for a place: WARPS_PER_SM warps leave a thread 128 registers."""
    for compilation in find("all-reduce", RANKS=ranks, NORM=norm, BLOCK=4096):
        found = resources.resources(compilation, "sm_90a")
        warps = all_reduce_launch.WARPS_PER_SM
        assert found.registers * 32 * warps <= 65536 and found.shared_bytes * warps // compilation.num_warps < 227 << 10
        ptx = compiled(compilation, 90).asm["ptx"]
        assert "ld.volatile.global.v4.b32" in ptx and not re.search(r"ld\.volatile\.global\.(b16|u16|b32)", ptx)
        assert "st.global.v4.b32" in ptx and not re.search(r"st\.global\.(b16|u16)", ptx)


def test_weights_go_to_the_tensor_cores_as_they_are_stored():
    """In PTX for Hopper: copied 16 bytes at a time into shared memory, multiplied from there as e4m3."""
    products = [*find("experts fp8: gate_up", BLOCK_M=16, TILE=64), *find("experts fp8: down", BLOCK_M=16, TILE=128)]
    assert products
    for compilation in products:
        ptx = compiled(compilation, 90).asm["ptx"]
        assert "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3" in ptx
        assert "cvt.rn.f16x2.e4m3x2" not in ptx
        copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], (0x)?(\d+)", ptx)
        assert copies and {size for _, size in copies} == {"10"}, copies[:3]  # hexadecimal: 16


def machine_code(words, architecture, **constants):
    """The instructions, one a line, and the resources of the one kernel that these words name."""
    [compilation] = find(words, architecture, **constants)
    major, minor = ARCHITECTURES[architecture]
    code = resources.dumped(compiled(compilation, 10 * major + minor).asm["cubin"], "-sass")
    lines = re.findall(r"/\*[0-9a-f]{4,5}\*/ +(.*?);", code)
    return [line for line in lines if line.strip() != "NOP"], resources.resources(compilation, architecture)


@pytest.mark.parametrize("architecture", ["sm_90a", "sm_100a"])
@pytest.mark.parametrize("dtype, most", [("bfloat16", 5), ("float16", 6)])
def test_stochastic_rounding_takes_few_instructions_more_and_no_program_off_an_sm(architecture, dtype, most):
    """Of 28 an element for which a warp scheduler of an H200 has time while the state's 4 bytes travel."""
    nearest, plain = machine_code(f"decode triton/vk {dtype}:", architecture, TILE=16)
    code, found = machine_code(f"decode triton/vk {dtype}, stochastic:", architecture, TILE=16)
    assert len(code) - len(nearest) <= most * 16 * 128 // 32
    assert 65536 // (32 * found.registers) >= 65536 // (32 * plain.registers) == 16


@pytest.mark.parametrize("architecture", ["sm_90a", "sm_100a"])
def test_stochastic_rounding_to_float16_takes_three_and_a_half_instructions_an_element(architecture):
    """Bits, their sum with the element, the product with 2^112, and a cut of two at once. An earlier form was taken for
    0 by ptxas, which shifted a product with 2^-112."""
    code, _ = machine_code("decode triton/vk float16, stochastic:", architecture, TILE=16)
    elements = 16 * 128 // 32  # of the tile, for each thread of the warp
    assert sum(re.search(r"^LEA\.HI R.*, R.*, R.*, RZ, 0x1d *$", line) is not None for line in code) == elements
    assert sum("FMUL" in line and "5.1922968" in line for line in code) == elements
    assert sum(line.startswith("F2FP.F16.F32.PACK_AB.RZ") for line in code) == elements // 2


def test_an_unknown_architecture_is_refused(capsys):
    assert main.main(["resources", "sm_80"]) == 2
    assert "architecture: sm_80 unknown; choose some of sm_90a, sm_100a, sm_120a" in capsys.readouterr().err
    with pytest.raises(ValueError, match="architecture: 'sm_80' is unknown; choose one of sm_90a, sm_100a, sm_120a"):
        compilations("sm_80")
