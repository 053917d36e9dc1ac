"""Run a chapter on other seeds and other splits: `python tools/seeds.py 04 --offsets 1000 2000`.

Every random generator that a chapter starts gets its seed plus the offset, and with
`--splits` the images are split anew. Claims do not stop the run. Printed are the claims that
fail somewhere, those whose bound lies so far from the value that it says little, and best
learning rates that lie at the edge of their grid.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from chapter import CHAPTERS, ThisPython, find, kernel_environment
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

LOOSE = 0.75  # a bound further from the value than this share of it says little
CELL_TIMEOUT = 600

# The module that Python imports when it starts: in the kernel, and in each process that
# the chapter launches.
SHIFT = '''
import random
import numpy
import torch
import dlcourse.lab.datasets as datasets

_OFFSET, _SPLIT = {offset}, {split}


def shifted(start):
    """Return a function like `start`, for the seed plus the offset."""
    def start_elsewhere(seed=None, *rest, **more):
        if isinstance(seed, (int, numpy.integer)):
            seed = int(seed) + _OFFSET
        elif isinstance(seed, (list, tuple)) and _OFFSET:
            seed = [*seed, _OFFSET]
        return start(seed, *rest, **more)
    return start_elsewhere


def also(kind):
    """Return a metaclass: instances of `kind` count as those of the class that replaces it."""
    class Also(type(kind)):
        def __instancecheck__(cls, thing):
            return type.__instancecheck__(kind, thing)
    return Also


class Generator(torch.Generator):
    """A generator of torch whose seeds are shifted."""

    def manual_seed(self, seed):
        super().manual_seed(int(seed) + _OFFSET)
        return self


class RandomState(numpy.random.RandomState, metaclass=also(numpy.random.RandomState)):
    """A generator of NumPy whose seeds are shifted."""

    def __init__(self, seed=None):
        whole = isinstance(seed, (int, numpy.integer))
        super().__init__(int(seed) + _OFFSET if whole else seed)


_load = datasets.load


def load_elsewhere(*names, **settings):
    """Load with the split moved by _SPLIT, and by nothing else."""
    global _OFFSET
    before, _OFFSET = _OFFSET, _SPLIT
    try:
        return _load(*names, **settings)
    finally:
        _OFFSET = before


torch.Generator = Generator
torch.manual_seed = shifted(torch.manual_seed)
numpy.random.default_rng = shifted(numpy.random.default_rng)
numpy.random.RandomState = RandomState
numpy.random.seed = shifted(numpy.random.seed)
random.seed = shifted(random.seed)
datasets.load = load_elsewhere
'''


def measure(path: Path, offset: int, split: int) -> tuple[list[dict], list[str]]:
    """Return (its claims with values, the cells that stopped) of a chapter run elsewhere."""
    book = nbformat.read(path, as_version=4)
    check = f"import sitecustomize\nassert sitecustomize._OFFSET == {offset}"
    book.cells.insert(0, nbformat.v4.new_code_cell(check))
    with tempfile.TemporaryDirectory() as folder:
        shift = Path(folder) / "sitecustomize.py"
        shift.write_text(SHIFT.format(offset=offset, split=split), encoding="utf-8")
        file = Path(folder) / "claims.jsonl"
        file.touch()
        manager = AsyncKernelManager(kernel_spec_manager=ThisPython())
        client = NotebookClient(
            book,
            km=manager,
            timeout=CELL_TIMEOUT,
            allow_errors=True,
            resources={"metadata": {"path": str(path.parent)}},
        )
        environment = {**kernel_environment(), "DLCOURSE_CLAIMS": str(file)}
        paths = [folder, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        client.execute(env=environment)
        claims = [json.loads(line) for line in file.read_text().splitlines()]
    stopped = []
    for number, cell in enumerate(book.cells):
        tagged = "raises-exception" in cell.metadata.get("tags", ())
        for output in cell.get("outputs", ()):
            if output.output_type == "error" and not tagged:
                stopped.append(f"cell {number}: {output.ename}: {output.evalue[:200]}")
    return claims, stopped


def looseness(claim: dict) -> float:
    """Return how far the nearer bound is from the value, as a share of the value's size."""
    distances = [
        abs(claim["value"] - claim[end]) for end in ("low", "high") if end in claim
    ]
    size = abs(claim["value"])
    return min(distances) / size if size else 0.0


def report(runs: dict[str, list[dict]]) -> tuple[list[str], list[str]]:
    """Return (failing claims, loose claims) as lines, from {name of a run: its claims}."""
    by_sentence: dict[str, dict[str, dict]] = {}
    for name, claims in runs.items():
        for claim in claims:
            if "sentence" in claim:
                by_sentence.setdefault(claim["sentence"], {})[name] = claim
    failing, loose = [], []
    for sentence, found in by_sentence.items():
        values = ", ".join(
            f"{name} {claim['value']:.4g}" for name, claim in found.items()
        )
        bounds = next(iter(found.values()))
        bound = f"[{bounds.get('low', '')}, {bounds.get('high', '')}]"
        line = f"{sentence} {bound}: {values}"
        if not all(claim["holds"] for claim in found.values()):
            failing.append(line)
        elif min(map(looseness, found.values())) > LOOSE:
            loose.append(line)
    return failing, loose


def sentences(runs: dict[str, list[dict]]) -> set[str]:
    """Return the sentences of all claims of all runs."""
    return {
        fact["sentence"]
        for facts in runs.values()
        for fact in facts
        if "sentence" in fact
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chapters named on the command line; return 1 where a claim fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapter", nargs="+", help='numbers such as 04, or "all"')
    parser.add_argument("--offsets", nargs="*", type=int, default=[1000, 2000, 3000])
    parser.add_argument("--splits", nargs="*", type=int, default=[1], metavar="SEED")
    options = parser.parse_args(arguments)
    places = [(offset, 0) for offset in options.offsets]
    places += [(0, split) for split in options.splits]
    failed = False
    for path in find(options.chapter, CHAPTERS):
        runs = {}
        for offset, split in places:
            name = f"split {split}" if split else f"seeds +{offset}"
            claims, stopped = measure(path, offset, split)
            runs[name] = claims
            for line in stopped:
                print(f"{path.stem}, {name}: {line}", flush=True)
            failed |= bool(stopped)
        failing, loose = report(runs)
        held = len(sentences(runs))
        edges = [fact for claims in runs.values() for fact in claims if "edge" in fact]
        print(f"{path.stem}: {held - len(failing)} of {held} claims hold", flush=True)
        for line in failing:
            print(f"  FAILS  {line}")
        for line in loose:
            print(f"  LOOSE  {line}")
        for fact in edges:
            print(f"  EDGE   best rate {fact['edge']:g} of {fact['grid']}")
        failed |= bool(failing)
    return 1 if failed else 0


if __name__ == "__main__":
    os.chdir(CHAPTERS.parent)
    sys.exit(main())
