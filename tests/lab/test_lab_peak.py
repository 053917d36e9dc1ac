"""The memory a computation takes while it runs."""

from __future__ import annotations

import torch
from torch import nn

from dlcourse.lab.peak import peak_bytes


def test_two_tensors_that_live_at_once_are_both_counted():
    def both():
        first = torch.zeros(100)  # 400 bytes
        second = torch.zeros(50)  # 200 bytes
        return first, second

    assert peak_bytes(both) == 600


def test_a_tensor_that_is_gone_is_counted_no_more():
    def one_after_another():
        for _ in range(5):
            torch.zeros(100)

    assert peak_bytes(one_after_another) == 400


def test_views_inputs_and_weights_are_not_counted():
    layer = nn.Linear(8, 4)
    inputs = torch.randn(2, 8)
    with torch.no_grad():
        assert peak_bytes(layer, inputs) == 2 * 4 * 4
        assert peak_bytes(torch.flatten, inputs) == 0
        assert peak_bytes(inputs.add_, 1.0) == 0
