"""Safetensors files: eight bytes of header length, a JSON header, then the tensors' bytes one after the other.

Reads only the tensors that are asked for. Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from .files import replacing

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
MOST_HEADER = 100_000_000  # bytes; the format's own limit


def write_tensors(path, tensors: dict[str, Tensor], notes: dict[str, str] | None = None) -> None:
    """Write tensors by name, and notes (text by name) into the header. The file is whole or not there."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, data, end = ({"__metadata__": notes} if notes else {}), [], 0
    for name, tensor in tensors.items():
        if tensor.dtype not in names:
            raise ValueError(f"tensors: expected {', '.join(map(str, names))}, got {tensor.dtype} in {name!r}")
        data.append(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        end += len(data[-1])
        offsets = [end - len(data[-1]), end]
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(data)


def tensor_header(path) -> dict[str, dict]:
    """Return {name: {"dtype", "shape", "data_offsets"}}, notes under "__metadata__". ValueError for another format."""
    return _header(Path(path))[0]


def read_tensors(path, names=None) -> dict[str, Tensor]:
    """Read the tensors of these names, by default all, onto the CPU. ValueError names one that is missing or broken."""
    path = Path(path)
    header, start = _header(path)
    size = path.stat().st_size - start
    found = {}
    with open(path, "rb") as file:
        for name in [each for each in header if each != "__metadata__"] if names is None else names:
            if name not in header:
                raise ValueError(f"{path}: expected a tensor {name!r}, got none of that name")
            entry = header[name]
            first, last = entry["data_offsets"]
            dtype = DTYPES.get(entry["dtype"])
            if dtype is None:
                raise ValueError(f"{path}: expected {name!r} of {', '.join(DTYPES)}, got {entry['dtype']}")
            if not 0 <= first <= last <= size or last - first != math.prod(entry["shape"]) * dtype.itemsize:
                raise ValueError(f"{path}: the file is cut off or damaged at tensor {name!r}; fetch or write it again")
            file.seek(start + first)
            data = bytearray(file.read(last - first))
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            found[name] = flat.reshape(entry["shape"])
    return found


def _header(path: Path) -> tuple[dict, int]:
    """The header of a file and where its data start."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= MOST_HEADER else b""
    try:
        header = json.loads(text)
        if len(text) < length or not isinstance(header, dict):
            raise ValueError
    except ValueError:
        raise ValueError(f"{path}: expected a safetensors file, got another format or one that is cut off") from None
    return header, 8 + length
