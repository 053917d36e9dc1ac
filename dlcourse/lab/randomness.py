"""The state of the global random generators."""

from __future__ import annotations

import random
from typing import cast

import numpy as np
import torch


def rng_state() -> dict:
    """Return the state of every global random generator, in types that load without code."""
    name, keys, *rest = cast(tuple, np.random.get_state())
    version, state, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": [version, list(state), gauss],
    }


def set_rng_state(state: dict) -> None:
    """Set every global random generator to what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
