"""The pixels of a folder, read once: by one process, and above a budget into a file.

The file images.cache lies in the folder of the run. The other processes of a run, and a
run that goes on, take what is there if the files and the size are still the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from torch import Tensor

from dlcourse.capstone.settings import Recipe
from dlcourse.lab.checkpoints import replacing
from dlcourse.lab.folders import Item, Listing, read_pixels
from dlcourse.lab.pixels import OnDisk

NAMES = ("images.cache", "images.json")  # the pixels, and what they are
MEGABYTE = 10**6


def read_once(
    listing: Listing, recipe: Recipe, size: int, beside: Path | None
) -> tuple[Tensor | OnDisk, list[Item], list[str]]:
    """Return what `read_pixels` does, from the run's cache where it is whole."""
    alone = recipe.processes == 1 and "WORLD_SIZE" not in os.environ
    budget = recipe.memory * MEGABYTE if alone or beside is None else 0
    if beside is not None:
        key = _key(listing, size)
        found = _cached(listing, beside, key)
        waits = int(os.environ.get("LOCAL_RANK", 0)) > 0
        while found is None and waits:  # the first process of this machine reads
            time.sleep(0.2)
            found = _cached(listing, beside, key)
        if found is not None:
            return found
        forget(beside)  # what is there belongs to other images
    at = None if beside is None else beside / NAMES[0]
    there = beside is None or beside.exists()
    try:
        stored, items, bad = read_pixels(
            listing, size, skip_corrupt=recipe.skip_corrupt, workers=recipe.workers,
            budget=budget, at=at,
        )  # fmt: skip
    except BaseException:
        if beside is not None:
            forget(beside)
            if not there and beside.exists():
                beside.rmdir()
        raise
    if beside is not None and isinstance(stored, OnDisk):
        facts = {"key": key, "shape": stored.shape, "dtype": stored.dtype, "bad": bad,
                 "files": [item.file for item in items]}  # fmt: skip
        with replacing(beside / NAMES[1]) as file:
            file.write(json.dumps(facts).encode())
    return stored, items, bad


def _key(listing: Listing, size: int) -> str:
    """Return a digest of names, lengths and times of the files, and the wanted side."""
    said = hashlib.blake2b(str(size).encode(), digest_size=16)
    for item in listing.items:
        stat = item.path.stat()
        said.update(os.fsencode(f"{item.file} {stat.st_size} {stat.st_mtime_ns}\n"))
    return said.hexdigest()


def _cached(listing: Listing, beside: Path, key: str):
    try:
        facts = json.loads((beside / NAMES[1]).read_text())
    except (OSError, ValueError):
        return None
    if facts["key"] != key or not (beside / NAMES[0]).exists():
        return None
    of_file = {item.file: item for item in listing.items}
    stored = OnDisk(beside / NAMES[0], tuple(facts["shape"]), facts["dtype"])
    return stored, [of_file[file] for file in facts["files"]], facts["bad"]


def forget(folder: Path) -> None:
    """Remove the cache of a run."""
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)
