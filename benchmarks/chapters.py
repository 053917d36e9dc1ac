"""How long `make test` takes for each chapter: its notebook under nbval, and its unit
tests.

    python benchmarks/chapters.py                   # runs the suite once, as `make test`
    does python benchmarks/chapters.py --junit FILE      # reads a run made with pytest
    --junitxml=FILE

The seconds are those of the cells and tests themselves, set-up included, summed over the
two processes of the suite. Starting Python and importing torch is extra, some seconds a
file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

from many_seeds import machine

ROOT = Path(__file__).resolve().parent.parent
SUITE = ["--nbval", "-n", "2", "--dist", "loadfile", "-q"]


def run_suite(junit: Path) -> None:
    """Run what `make test` runs, and leave a report; stop where a test fails."""
    env = {**os.environ, "DLCOURSE_PROGRESS": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *SUITE, f"--junitxml={junit}"]
    subprocess.run(
        [*command, "chapters", "tests", "dlcourse"], cwd=ROOT, env=env, check=True
    )


def seconds_by_file(junit: Path) -> dict[str, float]:
    """Return the seconds of each notebook or test file, by its name without folder and
    ending.
    """
    total: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(junit).iter("testcase"):
        parts = case.get("classname", "").replace("/", ".").split(".")
        names = [part for part in parts if part.startswith("test_") or part[:2].isdigit()]
        total[names[0] if names else "other"] += float(case.get("time", 0))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--junit", type=Path, metavar="FILE")
    junit = parser.parse_args().junit
    with tempfile.TemporaryDirectory() as folder:
        if junit is None:
            junit = Path(folder) / "junit.xml"
            run_suite(junit)
        seconds = seconds_by_file(junit)
    whole = sum(seconds.values())
    print(f"# The suite by chapter\n\n{machine()}\n")
    print("| Chapter | notebook, s | unit tests, s | share |\n| --- | --- | --- | --- |")
    rest = whole
    for name in sorted(name for name in seconds if name[:2].isdigit()):
        units = seconds.get(f"test_{name[3:]}", 0.0)
        rest -= seconds[name] + units
        share = (seconds[name] + units) / whole
        print(f"| {name} | {seconds[name]:.0f} | {units:.0f} | {share:.0%} |")
    print(f"| lab, commands, rules | | {rest:.0f} | {rest / whole:.0%} |")
    print(f"| all | | {whole:.0f} | 100% |")


if __name__ == "__main__":
    main()
