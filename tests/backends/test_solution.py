"""Solutions of flashinfer-bench: argument order, round trips through JSON in all phases, refusals, workload lists."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gdn_lab import GDNShape, StatePool, decode, ops, prefill, reference, verify
from gdn_lab.backends import author, author_files, definitions, solution
from gdn_lab.backends.registry import VARIANTS, refusal
from gdn_lab.bench.roof import Roof
from gdn_lab.judge.candidate import Candidate
from gdn_lab.studies.decode_kernels.sweep import decode_sweep

SHAPE = GDNShape(2, 4)
NAMES = {"decode": "gdn_decode_qk2_v4_d128_k_last", "verify": "gdn_mtp_qk2_v4_d128_k_last"}
NAMES["prefill"] = "gdn_prefill_qk2_v4_d128_k_last"

# The operation of a definition, in the definition's own order of arguments, outputs returned.
DECODE = """
import torch

def run(q, k, v, state, A_log, a, dt_bias, b, scale):
    g = torch.exp(-torch.exp(A_log) * torch.nn.functional.softplus(a.float() + dt_bias))[:, 0, :, None, None]
    q, k = (x[:, 0].float().repeat_interleave(v.shape[2] // x.shape[2], 1) for x in (q, k))
    S = g * state
    u = torch.sigmoid(b[:, 0].float())[..., None] * (v[:, 0].float() - (S @ k[..., None])[..., 0])
    S = S + u[..., None] * k[:, :, None, :]
    return ((S @ q[..., None])[..., 0] * scale).to(torch.bfloat16)[:, None], S
"""


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = set(VARIANTS)
    yield
    for name in set(VARIANTS) - before:
        author.remove(name)
    author_files._loaded.clear()


def a_solution(tmp_path, source=DECODE, **changes):
    """A Solution's file; changes: fields of it or of its spec."""
    spec = {"language": "python", "target_hardware": ["cpu"], "entry_point": "main.py::run"}
    spec |= {"destination_passing_style": False}
    whole = {"name": "mine v1", "definition": NAMES["decode"], "author": "me", "spec": spec}
    whole["sources"] = [{"path": "main.py", "content": source}]
    for name, value in changes.items():
        (spec if name in (*spec, "binding") else whole)[name] = value
    path = tmp_path / "solution.json"
    path.write_text(json.dumps(whole))
    return path


def pool_and_slots(rows):
    pool = StatePool(SHAPE, rows + 3, dtype=torch.float32, device="cpu")
    slots = pool.acquire(rows)
    pool.write(slots, torch.randn(rows, 4, 128, 128, generator=torch.Generator().manual_seed(1)))
    return pool, slots


def near(actual, expected, tolerance=0.01):
    assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()


def check_decode(name):
    pool, slots = pool_and_slots(3)
    x, before = ops.normalised(ops.make_inputs(SHAPE, 4)), pool.read(slots)
    indices = torch.cat([slots, torch.tensor([-7], dtype=slots.dtype)])
    o = decode(*x.arguments(), **x.gates(), pool=pool, indices=indices, backend=name, use_qk_l2norm=False)
    live = [part[:3] for part in x.arguments()]
    expected, S = reference.decode(*live, **x.gates(), state=before, use_qk_l2norm=False)
    near(o[:3], expected)
    near(pool.read(slots), S, 1e-5)


def test_a_solution_is_called_in_its_definitions_order(tmp_path):
    assert solution.load(a_solution(tmp_path)) == "solution/mine-v1"
    check_decode("solution/mine-v1")


def test_it_is_read_wherever_a_kernel_file_is(tmp_path):
    assert author_files.load(a_solution(tmp_path)) == ["solution/mine-v1"]


def test_outputs_may_be_arguments_or_a_dict(tmp_path):
    in_place = DECODE + "\n\ndef into(*arguments):\n    o, S = run(*arguments[:9])\n"
    in_place += "    arguments[9].copy_(o)\n    arguments[10].copy_(S)\n"
    path = a_solution(tmp_path, in_place, entry_point="main.py::into", destination_passing_style=True, name="into")
    check_decode(solution.load(path))
    named = DECODE + "\n\ndef by_name(*arguments):\n    o, S = run(*arguments)\n"
    named += "    return {'new_state': S, 'output': o}\n"
    check_decode(solution.load(a_solution(tmp_path, named, entry_point="main.py::by_name", name="by-name")))


@pytest.mark.parametrize("phase", NAMES)
def test_a_kernel_of_ours_makes_the_round_trip(tmp_path, phase):
    path = tmp_path / "torch_vk.json"
    solution.write("torch/vk", NAMES[phase], path)
    name = solution.load(path)
    assert name == "solution/gdn_lab_torch_vk" and VARIANTS[name].phases == (phase,)
    if phase == "decode":
        return check_decode(name)
    pool, slots = pool_and_slots(2)
    before = pool.read(slots)
    gates = {"use_qk_l2norm": False, "pool": pool, "indices": slots, "backend": name}
    if phase == "verify":
        x = ops.normalised(ops.make_inputs(SHAPE, 2, tokens=3))
        expected, states = reference.verify(*x.arguments(), **x.gates(), state=before, use_qk_l2norm=False)
        pool.reserve_drafts(2, 3)
        kept = pool.intermediate_states[:2, :3]
        o = verify(*x.arguments(), **x.gates(), **gates, intermediate_states=kept, update_state=False)
        near(kept, states, 1e-5)
        assert torch.equal(pool.read(slots), before)
        near(verify(*x.arguments(), **x.gates(), **gates), expected)
        near(pool.read(slots), states[:, -1], 1e-5)
    else:
        x = ops.normalised(ops.make_inputs(SHAPE, 5))
        bounds = torch.tensor([0, 3, 5], dtype=torch.int32)
        options = {"state": before, "cu_seqlens": bounds, "use_qk_l2norm": False}
        expected, S = reference.prefill(*x.arguments(), **x.gates(), **options)
        o = prefill(*x.arguments(), **x.gates(), **gates, cu_seqlens=bounds)
        near(pool.read(slots), S, 1e-4)
    near(o, expected)


def test_a_kernel_of_an_authors_carries_its_file(tmp_path):
    text = "from gdn_lab import variant\nfrom gdn_lab.backends.torch import _decode\n\n\n"
    text += '@variant("carried/vk", state_dtypes=("float32",))\ndef kernel(*inputs, state, **options):\n'
    text += (
        "    from gdn_lab.backends.base import State\n\n    _decode(False, *inputs, state=State(state), **options)\n"
    )
    (tmp_path / "carried.py").write_text(text)
    author_files.load(tmp_path / "carried.py")
    path = tmp_path / "carried.json"
    solution.write("carried/vk", NAMES["decode"], path, {"carried.py": text})
    author.remove("carried/vk")
    assert [source["path"] for source in json.loads(path.read_text())["sources"]] == ["main.py", "carried.py"]
    check_decode(solution.load(path))


def test_a_compiled_solution_gets_its_sources_and_is_compiled_once(tmp_path, monkeypatch):
    """Compiling torch/extension.h takes a minute, so here the compiler is replaced and its arguments are looked at."""
    builds = []

    def load(name, sources, extra_include_paths, build_directory):
        builds.append([Path(path).read_text() for path in sources])
        assert name.isidentifier() and (Path(extra_include_paths[0]) / "kernel.h").read_text() == "// a header"
        return SimpleNamespace(run=lambda q, k, v, state, *rest: [v + 1, state * 2])

    monkeypatch.setattr("torch.utils.cpp_extension.load", load)
    sources = [{"path": "kernel.h", "content": "// a header"}, {"path": "main.cpp", "content": "// C++"}]
    spec = {"language": "cpp", "binding": "torch", "entry_point": "main.cpp::run"}
    name = solution.load(a_solution(tmp_path, sources=sources, name="compiled", **spec))
    pool, slots = pool_and_slots(2)
    x, before = ops.make_inputs(SHAPE, 2), pool.read(slots)
    for times in (2, 4):
        o = decode(*x.arguments(), **x.gates(), pool=pool, indices=slots, backend=name, use_qk_l2norm=False)
        assert torch.equal(o, x.v + 1) and torch.equal(pool.read(slots), before * times)
    assert builds == [["// C++"]]


def test_a_solution_in_triton_is_judged_as_the_interpreter_computes(tmp_path, monkeypatch):
    """Which cuts float32 to bfloat16: without a GPU a right kernel of Triton would be wrong by a rounding."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for language, cuts in (("triton", True), ("python", False)):
        of_a_model = {"definition": "gdn_decode_qk4_v8_d128_k_last"}
        name = solution.load(a_solution(tmp_path, language=language, name=f"in-{language}", **of_a_model))
        assert Candidate(name, torch.device("cpu"), seed=0).cuts == cuts


def test_what_a_solution_cannot_serve_is_refused(tmp_path):
    name = solution.load(a_solution(tmp_path))
    options = {"dtype": torch.float32}
    assert refusal(name, SHAPE, **options) is None
    assert "for HK 2, HV 4; this is HK 4, HV 8" in refusal(name, GDNShape(4, 8), **options)
    assert "takes inputs of bfloat16" in refusal(name, SHAPE, io_dtype=torch.float32, **options)
    assert "takes a state of float32" in refusal(name, SHAPE)
    pool, slots = pool_and_slots(2)
    x = ops.make_inputs(SHAPE, 2)
    with pytest.raises(ValueError, match="takes q and k as they are; normalise them"):
        decode(*x.arguments(), **x.gates(), pool=pool, indices=slots, backend=name)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"definition": "gemm_n128_k2048"}, "expected a name such as gdn_decode_qk4_v8_d128_k_last"),
        ({"definition": "gdn_decode_qk2_v4_d128_v_last"}, "got 'gdn_decode_qk2_v4_d128_v_last'"),
        ({"author": ""}, "'author' is missing or empty"),
        ({"language": "fortran"}, "spec.language: expected one of python"),
        ({"language": "cuda", "binding": "tvm-ffi"}, "needs binding 'torch'"),
        ({"entry_point": "other.py::run"}, "spec.entry_point: expected one of its sources"),
        ({"entry_point": "main.py::walk"}, "main.py has no function walk"),
        ({"sources": [{"path": "../main.py", "content": ""}]}, "expected paths inside of the solution"),
        ({"sources": [{"path": "main.py"}]}, "expected objects with path and content"),
    ],
)
def test_what_is_wrong_with_a_solution_is_said(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        solution.load(a_solution(tmp_path, **changes))


def test_only_what_a_definition_asks_for_is_written(tmp_path):
    with pytest.raises(ValueError, match="on a KV pool; gdn_decode_qk2_v4_d128_k_last needs decode on a K-last"):
        solution.write("triton/kv8", NAMES["decode"], tmp_path / "x.json")
    with pytest.raises(ValueError, match="triton/vk-serial serves decode on a VK pool; gdn_mtp"):
        solution.write("triton/vk-serial", NAMES["verify"], tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("phase", NAMES)
def test_a_definitions_name_makes_the_round_trip(phase):
    found = definitions.definition_of(phase, SHAPE)
    assert (found.name, found) == (NAMES[phase], definitions.definition(NAMES[phase]))
    with pytest.raises(ValueError, match="K 128, V 64"):
        definitions.definition_of(phase, GDNShape(2, 4, 128, 64))


# ---- in a sweep


def test_kernels_are_compared_on_normalised_inputs_if_one_needs_them(tmp_path):
    name = solution.load(a_solution(tmp_path))
    roof = Roof(10.0, 10.0, 10.0, 1, 1, "made up")
    options = {"dtype": torch.float32, "device": "cpu", "samples": 1, "slots": 16, "roof": roof, "progress": False}
    rows = decode_sweep(SHAPE, [3], variants=[name, "torch/vk"], **options)
    timed = {f"{row['backend']}/{row['variant']}": row for row in rows if row["status"] == "ok"}
    assert set(timed) == {name, "torch/vk"}, rows
    assert not any(row["use_qk_l2norm"] for row in timed.values())


# ---- workloads


def test_the_three_decode_definitions_are_a_named_list_of_public_heads():
    found = definitions.workloads("flashinfer-bench")
    heads = {(work.definition.shape.num_k_heads, work.definition.shape.num_v_heads) for work in found}
    assert heads == {tuple(GDNShape.from_model("qwen3-next-80b-a3b", tp).dims[:2]) for tp in (1, 2, 4)}
    assert {work.definition.phase for work in found} == {"decode"} and len(found) == len(set(found))


def a_workload(definition, **axes):
    return json.dumps({"definition": definition, "workload": {"uuid": "x", "axes": axes, "inputs": {}}})


def test_a_workload_file_is_read_and_each_size_counts_once(tmp_path):
    lines = [
        a_workload(NAMES["decode"], batch_size=8),
        a_workload(NAMES["decode"], batch_size=8),
        a_workload(NAMES["verify"], batch_size=4, seq_len=3, pool_size=9),
        "",
        a_workload(NAMES["prefill"], num_seqs=2, total_seq_len=300, len_cu_seqlens=3),
    ]
    (tmp_path / "w.jsonl").write_text("\n".join(lines))
    found = definitions.workloads(tmp_path / "w.jsonl")
    sizes = [(work.definition.phase, work.batch, work.tokens) for work in found]
    assert sizes == [("decode", 8, 1), ("verify", 4, 3), ("prefill", 2, 300)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "w.jsonl is empty"),
        ("{", "w.jsonl, line 1: Expecting"),
        ("[]", "line 1 is no workload"),
        (a_workload("gemm_n128_k2048", M=1), "line 1: definition: expected a name"),
        (a_workload(NAMES["decode"], M=1), "line 1 is no workload of flashinfer-bench: KeyError"),
        (a_workload(NAMES["verify"], batch_size=1), "expected sizes of at least 1"),
        (a_workload(NAMES["decode"], batch_size=0), "expected sizes of at least 1"),
    ],
)
def test_what_is_wrong_with_a_workload_file_is_said(tmp_path, text, sentence):
    (tmp_path / "w.jsonl").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        definitions.workloads(tmp_path / "w.jsonl")


def test_a_list_that_is_not_there_is_said():
    with pytest.raises(ValueError, match="expected flashinfer-bench or a JSONL file"):
        definitions.workloads("nothing.jsonl")
