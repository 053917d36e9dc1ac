"""The most memory that a piece of code needs."""

from __future__ import annotations

from dlcourse.lab.launching import launch


def hold(sizes):
    """Hold blocks of these bytes one after another; return what each and all of them add."""
    import time

    from dlcourse.lab.memory import PeakMemory

    alone = []
    with PeakMemory() as whole:
        for size in sizes:
            with PeakMemory() as memory:
                block = bytearray(b"x") * size
                time.sleep(0.2)
                del block
            alone.append(memory.added)
    with PeakMemory() as nothing:
        time.sleep(0.2)
    return [*alone, whole.added, nothing.added]


def test_the_peak_is_that_of_the_largest_block_and_ends_with_it():
    sizes = [100 * 2**20, 300 * 2**20, 200 * 2**20]
    first, second, third, whole, nothing = launch(hold, processes=1, args=[sizes])[0]
    for found, size in zip(
        (first, second, third, whole), [*sizes, max(sizes)], strict=True
    ):
        assert 0.95 * size < found < 1.1 * size
    assert 0 <= nothing < 10 * 2**20
