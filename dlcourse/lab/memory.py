"""How much memory this process holds, and the most that it has held."""

from __future__ import annotations

import sys


def memory_in_use() -> int:
    """Return the bytes of memory that this process holds now (its resident set)."""
    import psutil

    return psutil.Process().memory_info().rss


def peak_memory() -> int:
    """Return the most bytes of memory that this process has held since it started.

    It never falls, so what is measured later in the same process must need more.
    """
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset

    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
