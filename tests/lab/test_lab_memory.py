"""The memory that a process holds, and its peak."""

from __future__ import annotations

from dlcourse.lab.launching import launch
from dlcourse.lab.memory import memory_in_use, peak_memory


def hold_and_let_go(size):
    from dlcourse.lab.memory import memory_in_use, peak_memory

    before = memory_in_use()
    block = bytearray(b"x") * size
    during = memory_in_use()
    del block
    return before, during, memory_in_use(), peak_memory()


def test_a_block_is_seen_while_it_is_held_and_in_the_peak():
    size = 400 * 2**20  # far more than starting Python leaves behind
    before, during, after, peak = launch(hold_and_let_go, processes=1, args=[size])[0]
    assert 0.95 * size < during - before < 1.1 * size
    assert after - before < 0.05 * size
    assert during <= 1.01 * peak
    assert peak - before < 1.3 * size


def test_the_peak_is_in_bytes_and_at_least_what_is_in_use():
    assert 10 * 2**20 < memory_in_use() <= 1.05 * peak_memory() < 2**40
