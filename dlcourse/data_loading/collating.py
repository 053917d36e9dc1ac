"""From samples to one batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from typing import cast

import numpy as np
import torch
import torch.utils.data
from torch import Tensor


def default_collate(samples: Sequence):
    """Stack a list of samples into one batch, as deep as they are nested.

    Tensors and NumPy arrays (...) become a tensor (n, ...), numbers a tensor (n,) (a
    Python float becomes float64), strings stay a list, and mappings, named tuples, tuples
    and lists are stacked field by field; a plain tuple comes back as a list.

    Raises ValueError for no samples or samples of unequal shapes, TypeError for other
    types.

    Invariant: equal to `torch.utils.data.default_collate` in values, dtypes and types.
    """
    if not len(samples):
        raise ValueError("a batch without samples cannot be stacked: give at least one")
    first = samples[0]
    if isinstance(first, np.ndarray) and first.dtype.kind not in "OSU":
        samples = [torch.as_tensor(sample) for sample in samples]
        first = samples[0]
    if isinstance(first, Tensor):
        shapes = list(dict.fromkeys(tuple(sample.shape) for sample in samples))
        if len(shapes) > 1:
            raise ValueError(
                f"samples of shapes {shapes[0]} and {shapes[1]} do not stack: make them equal in "
                "__getitem__, or pass collate_fn=pad_collate to pad the first dimension"
            )
        return torch.stack(list(samples))
    if isinstance(first, float):
        return torch.tensor(samples, dtype=torch.float64)
    if isinstance(first, (int, np.number, np.bool_)):
        return torch.as_tensor(samples)
    if isinstance(first, (str, bytes)):
        return samples
    if isinstance(first, Mapping):
        batch = cast(MutableMapping, copy.copy(first))
        batch.update(
            {key: default_collate([sample[key] for sample in samples]) for key in first}
        )
        return batch
    if isinstance(first, Sequence):
        lengths = {len(sample) for sample in samples}
        if len(lengths) > 1:
            raise ValueError(
                f"samples have from {min(lengths)} to {max(lengths)} fields: return equally many, "
                "or a tensor for each sequence and pass collate_fn=pad_collate"
            )
        fields = [default_collate(field) for field in zip(*samples, strict=True)]
        return type(first)(*fields) if hasattr(first, "_fields") else fields
    raise TypeError(
        f"a sample holds a {type(first).__name__}, which does not stack: return tensors, arrays, "
        "numbers, strings, or tuples, lists and dicts of them, or pass a collate_fn"
    )


def pad_collate(samples: Sequence, padding_value: float = 0.0):
    """Stack sequences of unequal length into (padded, lengths), or (padded, lengths,
    rest...).

    A sample is a tensor (length, ...), or a tuple that begins with one; the other fields
    are stacked by `default_collate`. padded: (n, longest, ...), `padding_value` behind
    each end. lengths: int64 (n,); a mask is `torch.arange(longest) < lengths[:, None]`.

    Raises ValueError for no samples, TypeError where the sequence is no tensor.

    Invariants: equal to `torch.nn.utils.rnn.pad_sequence(batch_first=True)`; cut at their
    lengths the rows are the samples.
    """
    if not len(samples):
        raise ValueError("a batch without samples cannot be stacked: give at least one")
    alone = not isinstance(samples[0], (tuple, list))
    sequences = list(samples) if alone else [sample[0] for sample in samples]
    for sequence in sequences:
        if not isinstance(sequence, Tensor) or sequence.ndim == 0:
            raise TypeError(
                f"pad_collate pads tensors (length, ...), not a {type(sequence).__name__}: return "
                "one from __getitem__, first in a tuple if there is more"
            )
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    shape = (len(sequences), int(lengths.max()), *sequences[0].shape[1:])
    padded = sequences[0].new_full(shape, padding_value)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    if alone:
        return padded, lengths
    rest = [
        default_collate(field) for field in zip(*(s[1:] for s in samples), strict=True)
    ]
    return (padded, lengths, *rest)
