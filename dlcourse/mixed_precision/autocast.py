"""Which dtype autocast gives each operation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_PROBES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda a, image: a @ a,
    "linear": lambda a, image: F.linear(a, a),
    "baddbmm": lambda a, image: torch.baddbmm(a[None], a[None], a[None]),
    "einsum": lambda a, image: torch.einsum("ij,jk->ik", a, a),
    "conv2d": lambda a, image: F.conv2d(image, image),
    "attention": lambda a, image: F.scaled_dot_product_attention(
        a[None], a[None], a[None]
    ),
    "relu": lambda a, image: a.relu(),
    "gelu": lambda a, image: F.gelu(a),
    "add": lambda a, image: a + a,
    "exp": lambda a, image: a.exp(),
    "log": lambda a, image: a.log(),
    "pow": lambda a, image: a**2,
    "sum": lambda a, image: a.sum(),
    "mean": lambda a, image: a.mean(),
    "norm": lambda a, image: a.norm(),
    "cumsum": lambda a, image: a.cumsum(0),
    "prod": lambda a, image: a.prod(),
    "softmax": lambda a, image: a.softmax(1),
    "log_softmax": lambda a, image: a.log_softmax(1),
    "layer_norm": lambda a, image: F.layer_norm(a, a.shape[1:]),
    "group_norm": lambda a, image: F.group_norm(image, 1),
    "batch_norm": lambda a, image: F.batch_norm(image, None, None, training=True),
    "cross_entropy": lambda a, image: F.cross_entropy(
        a, torch.zeros_like(a[0], dtype=torch.long)
    ),
    "mse_loss": lambda a, image: F.mse_loss(a, a),
}


def autocast_policy(
    device_type: str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> dict[str, str]:
    """Run some ops under autocast on this device, and say in which precision each
    answered.

    Returns {op: "16-bit" | "float32" | "as its inputs" | "widens" | "refuses"}: "16-bit"
    also from float32 inputs, "float32" also from 16-bit ones, "refuses" where the op
    raises. The lists differ between devices and versions of PyTorch; this looks instead
    of remembering.
    Raises ValueError for a dtype that has not 16 bits.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"{dtype}: choose torch.bfloat16 or torch.float16")
    policy = {}
    for name, probe in _PROBES.items():
        found = []
        for given in (torch.float32, dtype):
            a = torch.ones(4, 4, device=device_type, dtype=given)
            image = torch.ones(2, 2, 3, 3, device=device_type, dtype=given)
            try:
                with torch.autocast(device_type, dtype):
                    found.append(probe(a, image).dtype)
            except RuntimeError:
                found.append(None)
        policy[name] = {
            (dtype, dtype): "16-bit",
            (torch.float32, torch.float32): "float32",
            (torch.float32, dtype): "as its inputs",
        }.get(tuple(found), "refuses" if None in found else "widens")
    return policy
