"""The drift study's gates of checkpoints: real names, files, and what is damaged."""

import json
from argparse import ArgumentParser

import pytest
import torch

from gdn_lab.cli import record_command, run
from gdn_lab.studies import study
from gdn_lab.studies.drift import analysis, sweep
from gdn_lab.studies.drift.checkpoint_gates import checkpoint_gates
from gdn_lab.tensor_file import write_tensors

PARAMETERS = study("drift").parameters
HIDDEN, HK, HV = 24, 2, 6


def layer_tensors(prefix, rng, fused):
    parts = {
        "linear_attn.A_log": torch.randn(HV, generator=rng),
        "linear_attn.dt_bias": torch.randn(HV, generator=rng).bfloat16(),
        "linear_attn.norm.weight": torch.ones(16),
        "linear_attn.conv1d.weight": torch.ones(4, 1, 4),
        "input_layernorm.weight": torch.full((HIDDEN,), 0.5).bfloat16(),
    }
    b, a = torch.randn(HV, HIDDEN, generator=rng), 3 * torch.randn(HV, HIDDEN, generator=rng)
    if fused:
        grouped = [x.view(HK, HV // HK, HIDDEN) for x in (b, a)]
        parts["linear_attn.in_proj_ba.weight"] = torch.stack(grouped, 1).reshape(2 * HV, HIDDEN)
    else:
        parts |= {"linear_attn.in_proj_b.weight": b, "linear_attn.in_proj_a.weight": a}
    return {f"{prefix}.{name}": tensor for name, tensor in parts.items()}, a, b


def made_up(folder, family):
    """A folder with the names of the real ones: layers 0 and 2 are GDN, 3 is attention; two files and an index."""
    rng = torch.Generator().manual_seed(0)
    fused = family == "qwen3_next"
    root = "model" if fused else "model.language_model"
    files, index, made = {1: {}, 2: {}}, {}, {}
    for number, layer in ((1, 0), (2, 2)):
        tensors, a, b = layer_tensors(f"{root}.layers.{layer}", rng, fused)
        files[number] |= tensors
        made[layer] = tensors[f"{root}.layers.{layer}.linear_attn.A_log"], a, b
    files[2][f"{root}.layers.3.self_attn.q_proj.weight"] = torch.ones(4, 4)
    for number, tensors in files.items():
        name = f"model-0000{number}-of-00002.safetensors"
        write_tensors(folder / name, tensors)
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {"linear_num_key_heads": HK}
    (folder / "config.json").write_text(json.dumps(config if fused else {"text_config": config}))
    return made


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5"])
def test_gates_of_a_checkpoint_with_the_real_names(tmp_path, family):
    made = made_up(tmp_path, family)
    found = checkpoint_gates(tmp_path)
    assert found.layers == [0, 2] and len(found.gates.A_log) == 2 * HV
    assert torch.equal(found.gates.A_log, torch.cat([A_log for A_log, _, _ in made.values()]))
    a, b = (torch.cat([each[which] for each in made.values()]) for which in (1, 2))
    assert torch.allclose(found.gates.a_std, 1.5 * a.norm(dim=1)), "the norm multiplies by 1 + 0.5"
    assert torch.allclose(found.gates.b_std, 1.5 * b.norm(dim=1))
    few = found.sample(4)
    rate = few.A_log.exp() * torch.nn.functional.softplus(few.dt_bias)
    assert len(rate) == 4 and torch.equal(rate, rate.sort().values)
    p = PARAMETERS.parse({"checkpoint": str(tmp_path), "gates": "checkpoint", "keys": "full rank", "steps": 3})
    assert p.points == [("checkpoint", "full rank")]
    assert len(analysis.of_ways(sweep.everything(p, None))) == 10


def test_a_checkpoint_is_named_from_the_current_folder(tmp_path, monkeypatch):
    """A notebook runs in the workbook's folder. Notebook 11 has a checkpoint of another kind."""
    (tmp_path / "qwen").mkdir()
    made_up(tmp_path / "qwen", "qwen3_5")
    monkeypatch.chdir(tmp_path)
    for command in (run, record_command):
        parser = ArgumentParser()
        command.add_arguments(parser)
        words = run.given_words(parser.parse_args(["10", "--checkpoint", "qwen", "-p", "steps=3"]).parameters)
        assert words == {"checkpoint": "qwen", "steps": "3"}
    [ten, eleven] = run.find(["10", "11"])
    assert run.values(ten, words) == {"checkpoint": str(tmp_path / "qwen"), "steps": 3}
    with pytest.raises(run.UsageError, match="qwen is a folder, .*: gdn-lab run 10 --checkpoint qwen"):
        run.values(eleven, {"checkpoint": "qwen"})


def test_a_single_file_needs_no_index(tmp_path):
    tensors, _, _ = layer_tensors("model.layers.0", torch.Generator().manual_seed(0), fused=False)
    write_tensors(tmp_path / "model.safetensors", tensors)
    assert checkpoint_gates(tmp_path).layers == [0]


def test_a_damaged_checkpoint_refuses_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="has no tensor layers.N.linear_attn.A_log"):
        checkpoint_gates(tmp_path)
    made_up(tmp_path, "qwen3_next")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="checkpoint: expected linear_num_key_heads in"):
        checkpoint_gates(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"linear_num_key_heads": HK}))
    with pytest.raises(ValueError, match="expected model.layers.2.linear_attn.A_log in .*; fetch the folder whole"):
        checkpoint_gates(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match="index.json is damaged"):
        checkpoint_gates(tmp_path)
