"""Change a technique's lines one at a time, and see whether its tests notice.

``python tools/mutants.py gradient_clipping warmup`` needs mutmut (``pip install mutmut``)
on Linux or macOS. It works on a copy, with the tests of the same name, prints how many
changed lines were noticed, and writes the others to ``build/mutants/NAME.txt``. Changes of
a message's words alone count apart: whether a text reads well is no question for a test.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ("tests", "recipes", "chapters", "tools", "docs")  # what the tests read
SETTINGS = """
[tool.mutmut]
source_paths = ["dlcourse"]
only_mutate = ["{source}"]
pytest_add_cli_args_test_selection = ["{tests}"]
pytest_add_cli_args = ["-q", "-x", "-p", "no:cacheprovider"]
also_copy = {beside}
use_setproctitle = false
"""


def tests_of(name: str) -> str:
    """Return the file of tests of a technique."""
    tests = f"tests/test_{name}.py"
    if not (ROOT / tests).exists():
        sys.exit(f"there is no {tests}")
    return tests


def source_of(name: str) -> str:
    """Return the pattern of a technique's files."""
    whole = ROOT / "dlcourse" / name
    return f"dlcourse/{name}/*.py" if whole.is_dir() else f"dlcourse/{name}.py"


def mutmut(folder: Path, *arguments: str) -> str:
    """Run mutmut in a folder, and return what it prints."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return done.stdout


def words_only(diff: str) -> bool:
    """Tell whether a change is one of text: other letters, or XX around it."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    old, new = (
        [line[1:] for line in lines if line.startswith(sign)] for sign in ("-", "+")
    )
    plain = ["".join(part).replace("XX", "").casefold() for part in (old, new)]
    return plain[0] == plain[1] and bool(re.search("[\"']", "".join(old)))


def examine(name: str, children: int) -> tuple[int, int, list[str]]:
    """Return how many changed lines were tried, how many were words, and those unnoticed."""
    with tempfile.TemporaryDirectory(prefix="mutants") as keeper:
        folder = Path(keeper)
        for part in ("dlcourse", *BESIDE):
            shutil.copytree(ROOT / part, folder / part)
        given = {"source": source_of(name), "tests": tests_of(name)}
        settings = SETTINGS.format(**given, beside=json.dumps(BESIDE))
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        (folder / "pyproject.toml").write_text(project + settings, encoding="utf-8")
        mutmut(folder, "run", "--max-children", str(children))
        ends = {}
        for path in sorted((folder / "mutants" / "dlcourse").rglob("*.meta")):
            ends |= json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        tried, words, unnoticed = 0, 0, []
        for mutant, code in ends.items():
            if code not in (0, 33):  # survived, or run by no test
                tried += 1
                continue
            diff = mutmut(folder, "show", mutant)
            if words_only(diff):
                words += 1
            else:
                tried += 1
                unnoticed.append(diff)
    return tried, words, unnoticed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME", help="such as warmup")
    parser.add_argument("--children", type=int, default=2, help="processes at a time")
    options = parser.parse_args()
    kept = ROOT / "build" / "mutants"
    kept.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        start = time.perf_counter()
        tried, words, unnoticed = examine(name, options.children)
        (kept / f"{name}.txt").write_text("\n".join(unnoticed), encoding="utf-8")
        share = (tried - len(unnoticed)) / tried
        print(
            f"{name}: {tried - len(unnoticed)} of {tried} noticed ({share:.1%}), "
            f"{words} of words left out, {time.perf_counter() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
