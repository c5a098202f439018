"""Safetensors files: what is written is read again, and a broken file is named."""

import json

import pytest
import torch

from gdn_lab.tensor_file import read_tensors, tensor_header, write_tensors

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "none": torch.empty(0, 4, dtype=torch.float16),
    "scalar": torch.tensor(7),
}


def test_what_is_written_is_read_again(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS, {"made by": "a test"})
    found = read_tensors(tmp_path / "x.safetensors")
    assert list(found) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert tensor_header(tmp_path / "x.safetensors")["__metadata__"] == {"made by": "a test"}


def test_the_bytes_are_those_of_the_format(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    data = bytes.fromhex("0000803f000000c0")  # 1.0, -2.0, little-endian
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert read_tensors(tmp_path / "x.safetensors")["x"].tolist() == [1.0, -2.0]


def test_only_the_tensors_asked_for_are_read(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    assert list(read_tensors(tmp_path / "x.safetensors", ["b"])) == ["b"]
    with pytest.raises(ValueError, match="expected a tensor 'c', got none of that name"):
        read_tensors(tmp_path / "x.safetensors", ["c"])


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match="x.safetensors: the file is cut off or damaged at tensor"):
        read_tensors(path)
    for content in (b"", b"PK\x03\x04 something else entirely", whole[:20]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="expected a safetensors file"):
            read_tensors(path)


def test_a_dtype_that_the_format_lacks_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(ValueError, match="torch.complex64 in 'z'"):
        write_tensors(tmp_path / "x.safetensors", {"z": torch.zeros(1, dtype=torch.complex64)})
    assert not list(tmp_path.iterdir())
