"""Compressed models in files: the bytes that they really take."""

from __future__ import annotations

import io
import json
import math
from typing import BinaryIO

import torch
from torch import Tensor, nn

from dlcourse.model_compression.pruning import bake
from dlcourse.model_compression.quantization import pack_bits, unpack_bits


def save_compact(model: nn.Module, file: BinaryIO) -> None:
    """Write the numbers of `model` to an open binary file, tensors with many zeros
    sparsely.

    A header in JSON, then raw bytes. A tensor of n entries with k that are not zero goes
    as n bits and k entries where that is shorter. Nothing is lost: `load_compact` returns
    every number.
    """
    table, data = [], []
    for name, tensor in bake(model).state_dict().items():
        mask, size = tensor != 0, tensor.element_size()
        short = (
            math.ceil(tensor.numel() / 8) + int(mask.sum()) * size < tensor.numel() * size
        )
        parts = [pack_bits(mask, 1), tensor[mask]] if short else [tensor]
        table.append([name, str(tensor.dtype).split(".")[1], list(tensor.shape), short])
        data += [
            part.reshape(-1).view(torch.uint8).cpu().numpy().tobytes() for part in parts
        ]
    header = json.dumps(table, separators=(",", ":")).encode()
    file.write(len(header).to_bytes(8, "little") + header + b"".join(data))


def load_compact(model: nn.Module, file: BinaryIO) -> nn.Module:
    """Read what `save_compact` wrote into a model of the same structure, and return it."""
    table = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    state = {}
    for name, kind, shape, short in table:
        dtype, count = getattr(torch, kind), math.prod(shape)
        if short:
            mask = _read(file, math.ceil(count / 8), torch.uint8)
            mask = unpack_bits(mask, 1, shape).bool()
            state[name] = torch.zeros(shape, dtype=dtype)
            state[name][mask] = _read(file, int(mask.sum()), dtype)
        else:
            state[name] = _read(file, count, dtype).view(shape)
    model.load_state_dict(state)
    return model


def _read(file: BinaryIO, count: int, dtype: torch.dtype) -> Tensor:
    data = bytearray(file.read(count * dtype.itemsize))
    return torch.frombuffer(data, dtype=dtype) if count else torch.empty(0, dtype=dtype)


def model_size(model: nn.Module) -> int:
    """Return the bytes of the file that `save_compact` writes for `model`."""
    file = io.BytesIO()
    save_compact(model, file)
    return file.getbuffer().nbytes
