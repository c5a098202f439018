"""@variant: one file anywhere, or a notebook cell, is a kernel of the workbook; what it may say and what it may not."""

import os
import subprocess
import sys

import pytest
import torch
from against_reference import check_decode, filled_pool, row_slots
from prefill_against_reference import check_prefill
from verify_against_reference import BOTH, check_verify

from gdn_lab import GDNShape, variant
from gdn_lab.backends import author, author_files, backends, refusal, registry
from gdn_lab.backends.base import State
from gdn_lab.backends.torch import _decode, _prefill, _verify
from gdn_lab.bench.results import Run
from gdn_lab.studies.decode_kernels.sweep import decode_sweep

SHAPE = GDNShape(2, 4, 8, 4)


def test_a_file_is_a_kernel(kernel_file):
    assert author_files.load(kernel_file()) == ["mine/vk"]
    record = registry.VARIANTS["mine/vk"]
    assert record.role == "yours" and record.description == "Decode in eager PyTorch" and record.phases == ("decode",)
    assert record.colour not in {v.colour for v in registry.VARIANTS.values() if v is not record}
    pool = filled_pool(SHAPE, 6, layout="VK", dtype=torch.float32)
    check_decode(pool, row_slots(4, 6, padding=[1]), backend="mine/vk")
    report = next(report for report in backends() if report.name == "mine")
    assert report.reason is None and report.installed and report.version == ""
    assert author.authors_variants() == ["mine/vk"] and author.origin_of("mine/vk").shown == "mine.py"
    assert author.origin_of("torch/vk") is None


def test_a_run_names_the_file_and_its_hash(kernel_file, tmp_path, monkeypatch):
    path = kernel_file()
    author_files.load(path)
    info = Run.create("mine", {}, root=tmp_path / "runs").info
    assert list(info["kernel_files"]) == ["mine.py"] and len(info["kernel_files"]["mine.py"]) == 16
    monkeypatch.setenv(author_files.VARIABLE, f"{path}{os.pathsep}/x/a b.py")
    assert author_files.kernel_words() == " --kernel mine.py --kernel 'a b.py'"


def test_it_stands_among_the_others_in_a_sweep(kernel_file):
    author_files.load(kernel_file())
    rows = decode_sweep(SHAPE, [2], variants=["torch/vk", "mine"], device="cpu", samples=1, progress=False)
    assert {(row["backend"], row["status"]) for row in rows} == {("torch", "ok"), ("mine", "ok")}


def test_one_that_fails_is_a_row_and_the_others_go_on(kernel_file):
    author_files.load(kernel_file('from gdn_lab import variant\n@variant("mine/vk")\ndef f(*_, **__): 1 / 0\n'))
    rows = decode_sweep(
        SHAPE, [2], variants=["torch/vk", "mine"], indexings=["in_place"], device="cpu", samples=1, progress=False
    )
    assert [(row["backend"], row["status"]) for row in rows] == [("mine", "refused"), ("torch", "ok")]
    assert rows[0]["reason"] == "failed with ZeroDivisionError: division by zero"


def test_every_phase(kernel_file):
    def whole(launch):
        def kernel(*arguments, state, intermediate_states=None, **options):
            launch(True, *arguments, state=State(state, intermediate_states), **options)

        return kernel

    for phase, launch in (("decode", _decode), ("verify", _verify), ("prefill", _prefill)):
        variant("mine/kv", layout="KV", state_dtypes=("float32",), phases=(phase,))(whole(launch))
    assert registry.VARIANTS["mine/kv"].phases == ("decode", "verify", "prefill")
    pool = filled_pool(SHAPE, 6, layout="KV", dtype=torch.float32)
    check_decode(pool, row_slots(4, 6, padding=[1]), backend="mine/kv")
    check_verify(pool, row_slots(4, 6, padding=[1]), 3, mode=BOTH, backend="mine/kv")
    check_prefill(pool, [3, 1], row_slots(2, 6), backend="mine/kv", operands=torch.float32)


def test_setup_is_called_once_for_each_kind_of_call_and_its_plan_is_passed_on(kernel_file):
    calls, plans = [], []

    def setup(call):
        calls.append(call)
        return len(calls)

    @variant("mine/vk", state_dtypes=(torch.float32,), setup=setup)
    def kernel(*arguments, plan, state, **options):
        plans.append(plan)
        _decode(False, *arguments, state=State(state), **options)

    pool = filled_pool(SHAPE, 6, layout="VK", dtype=torch.float32)
    for dtype in (torch.int32, torch.int32, torch.int64):
        check_decode(pool, row_slots(4, 6, dtype=dtype), backend="mine/vk")
    assert plans == [1, 1, 2] and [call.index_dtype for call in calls] == [torch.int32, torch.int64]
    assert calls[0].shape == SHAPE and calls[0].phase == "decode"


def test_it_refuses_in_its_own_words(kernel_file):
    def supports(call):
        return None if call.shape.head_k_dim == 128 else f"takes head_k_dim 128; this is {call.shape.head_k_dim}"

    variant("mine/vk", supports=supports)(lambda *_, **__: None)
    variant("mine/new", needs="sm_90")(lambda *_, **__: None)
    assert refusal("mine/vk", SHAPE) == "takes head_k_dim 128; this is 8"
    assert refusal("mine/vk", GDNShape(1, 2)) is None
    assert refusal("mine/vk", SHAPE, dtype=torch.float32) == "takes a state of bfloat16; this one is float32"
    assert "compute capability 9.0 or newer; this is a CPU" in refusal("mine/new", SHAPE)
    variant("mine/vk", supports=lambda call: False)(lambda *_, **__: None)
    with pytest.raises(TypeError, match="must return None or a sentence, got False"):
        refusal("mine/vk", SHAPE)


@pytest.mark.parametrize("needs", ["sm_90", "sm_90a", (9, 0)])
def test_needs_is_a_compute_capability(kernel_file, needs, monkeypatch):
    variant("mine/new", needs=needs)(lambda *_, **__: None)
    assert registry.VARIANTS["mine/new"].needs == (9, 0)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which runs Triton's kernels, and no others, on a CPU
    assert "this is a CPU" in refusal("mine/new", SHAPE)


KERNEL = "import triton\n\n@triton.jit\ndef kernel(x): pass\n\n"
USES = 'from gdn_lab import variant\n\n@variant("mine/new", needs="sm_90")\ndef f(*_, **__): pass\n'


@pytest.mark.parametrize(
    "files",
    [
        {"mine": KERNEL + USES},
        {"mine": "import other_module\n" + USES},
        {"mine": "from other_module import launch\n" + USES},
    ],
    ids=["in the file", "in a module", "behind a function of a module"],
)
def test_triton_kernels_are_interpreted_on_a_cpu(kernel_file, tmp_path, monkeypatch, files):
    pytest.importorskip("triton", reason="there is no Triton for this operating system")
    monkeypatch.delitem(sys.modules, "other_module", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "other_module.py").write_text(KERNEL + "def launch(): pass\n")
    author_files.load(kernel_file(files["mine"]))
    assert "this is a CPU" in refusal("mine/new", SHAPE)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert refusal("mine/new", SHAPE) is None


def test_a_cell_that_runs_again_replaces_its_kernel(kernel_file):
    for note in ("first", "second"):
        variant("mine/vk", note=note)(lambda *_, **__: None)
    assert registry.VARIANTS["mine/vk"].note == "second" and len(registry.BACKENDS["mine"].variants) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("mine",), 'expected a name such as "mine/vk"'),
        (("triton/mine",), "'triton' is a backend of the workbook"),
        (("mine/vk", {"layout": "VKV"}), "layout: expected VK or KV"),
        (("mine/vk", {"state_dtypes": "bfloat16"}), "are tuples"),
        (("mine/vk", {"state_dtypes": ("int8",)}), "state_dtypes: expected some of float32"),
        (("mine/vk", {"phases": ("train",)}), "phases: expected some of decode"),
        (("mine/vk", {"needs": "hopper"}), "needs: expected a compute capability"),
        (("mine/vk", {"phases": ("verify",)}), "a verify kernel is called with"),
    ],
)
def test_what_cannot_be_registered_is_said(kernel_file, words, sentence):
    name, *options = words

    def decode_only(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out): ...

    with pytest.raises(ValueError, match=sentence):
        variant(name, **(options[0] if options else {}))(decode_only)
    assert not author.authors_variants()


def test_two_files_cannot_have_one_name(kernel_file):
    author_files.load(kernel_file())
    with pytest.raises(author_files.KernelFileError, match="mine/vk is registered by mine.py already"):
        author_files.load(kernel_file(name="other.py"))
    assert author.authors_variants() == ["mine/vk"]


BROKEN = {
    "missing.py": ("import nothere", "missing.py, line 1: ModuleNotFoundError: No module named 'nothere'"),
    "syntax.py": ("def f(:", "SyntaxError"),
    "leaves.py": ("import sys\nsys.exit(3)", "leaves.py, line 2: SystemExit: 3"),
    "empty.py": ("x = 1", "empty.py registers no kernel; decorate one with @variant"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_imported_is_listed_and_the_others_go_on(kernel_file, name, monkeypatch):
    source, sentence = BROKEN[name]
    paths = [kernel_file(source, name), kernel_file()]
    monkeypatch.setenv(author_files.VARIABLE, os.pathsep.join(map(str, paths)))
    author_files.load_named()
    with pytest.raises(author_files.KernelFileError) as failed:
        author_files.load(paths[0])
    assert sentence in str(failed.value) and str(paths[0].parent) not in str(failed.value)
    assert name == "empty.py" or failed.value.shown.startswith(("Traceback", "  File")) and name in failed.value.shown
    listed = next(report for report in backends() if report.name == paths[0].stem)
    assert not listed.installed and sentence in listed.reason
    assert "mine/vk" in registry.VARIANTS and refusal("torch/vk", SHAPE) is None


def test_a_file_may_import_what_lies_next_to_it(kernel_file):
    kernel_file("NAME = 'mine/vk'", "next_to_it.py")
    path = kernel_file(
        "from gdn_lab import variant\nfrom next_to_it import NAME\n@variant(NAME)\ndef f(*_, **__): ...\n"
    )
    assert author_files.load(path) == ["mine/vk"] and author_files.load(path) == ["mine/vk"]


def test_an_installed_package_is_found_by_its_entry_point(kernel_file, forked_python, tmp_path):
    """And every way into the package ends with the kernels registered: here by importing the pool first."""
    kernel_file(name="their_kernels.py")
    (tmp_path / "theirs-1.2.dist-info").mkdir()
    (tmp_path / "theirs-1.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.2\n")
    (tmp_path / "theirs-1.2.dist-info" / "entry_points.txt").write_text("[gdn_lab.kernels]\nx = their_kernels\n")
    code = """
from gdn_lab.pool import StatePool
from gdn_lab import backends, decode
print([(r.version, [v.full_name for v in r.variants]) for r in backends() if r.name == "mine"])
"""
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout == "[('1.2', ['mine/vk'])]\n", done.stderr
