"""What it costs to import the course, against importing torch alone.

    python benchmarks/imports.py [--rounds 15]

Each import runs in a fresh Python, in turn with `import torch`; a ratio is to the mean of
the two imports of torch beside it. `import torch, torchvision, accelerate,
matplotlib.pyplot` shows what the libraries that a chapter needs cost without the course.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from many_seeds import machine, spread

LIBRARIES = "import torch, torchvision, accelerate, matplotlib.pyplot"
STATEMENTS = [
    "import torch",
    "import dlcourse",
    "import dlcourse.gradient_clipping",
    "import dlcourse.lab.training",
    "import dlcourse.lab.trials, dlcourse.lab.plotting, dlcourse.lab.datasets",
    "from dlcourse.capstone.options import parser; parser()",
    LIBRARIES,
]


def seconds(statement: str) -> float:
    """Return how long a fresh Python takes for a statement, start and end included."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", statement], check=True, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"# Imports, {rounds} rounds\n\n{machine()}\n")
    print("| Statement | ratio to `import torch` | quartiles | 95 % of the median | s |")
    print("| --- | --- | --- | --- | --- |")
    for statement in STATEMENTS:
        seconds(statement)  # once, so that the files are in memory
        ratios, took = [], []
        for _ in range(rounds):
            before = seconds("import torch")
            took.append(seconds(statement))
            ratios.append(took[-1] / ((before + seconds("import torch")) / 2))
        print(
            f"| `{statement}` | {spread(ratios)} | {sorted(took)[rounds // 2]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
