"""How long `make test` takes for each chapter: its notebook under nbval, and its unit tests.

    python benchmarks/chapters.py [--only 04 11]

One after the other, on one thread, each in a fresh pytest. So the seconds include start-up (a
kernel with its imports takes some seconds). The share is of the sum of all.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from many_seeds import machine

ROOT = Path(__file__).resolve().parent.parent
NBVAL = ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", "nbval.cfg"]


def seconds(arguments: list[str]) -> float:
    """Return how long a pytest takes; stop where it fails."""
    env = {**os.environ, "DLCOURSE_PROGRESS": "0", "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], metavar="NN")
    only = tuple(parser.parse_args().only)
    rows = []
    for path in sorted((ROOT / "chapters").glob("[0-9][0-9]_*.ipynb")):
        if path.name.startswith(only):
            test = ROOT / "tests" / f"test_{path.stem[3:]}.py"
            units = seconds([str(test)]) if test.exists() else 0.0
            rows.append((path.stem, seconds([*NBVAL, str(path)]), units))
    total = sum(notebook + units for _, notebook, units in rows)
    print(f"# Chapters under test\n\n{machine()}\n")
    print("| Chapter | notebook, s | unit tests, s | share |\n| --- | --- | --- | --- |")
    for name, notebook, units in rows:
        print(f"| {name} | {notebook:.0f} | {units:.0f} | {(notebook + units) / total:.0%} |")
    print(f"| all | {sum(r[1] for r in rows):.0f} | {sum(r[2] for r in rows):.0f} | 100% |")


if __name__ == "__main__":
    main()
