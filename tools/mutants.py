"""Change a technique's lines one at a time, and see whether its tests notice.

``python tools/mutants.py gradient_clipping warmup`` needs mutmut (``pip install mutmut``)
on Linux or macOS. It works on a copy, with the tests of the same name, prints how many
changed lines were noticed, and writes the others to ``build/mutants/NAME.txt``. Changes of
a message's words alone are left out: whether a text reads well is no question for a test.

``--sample 120 --seed 1`` tries so many changes, drawn at random, and prints the share
with its 95 % interval. ``--again`` tries those that went unnoticed last time.
``--without launch`` leaves out tests by a part of their names, and says so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "mutants"
BESIDE = ("tests", "recipes", "chapters", "tools", "docs")  # what the tests read
SETTINGS = """
[tool.mutmut]
source_paths = ["dlcourse"]
only_mutate = ["{source}"]
pytest_add_cli_args_test_selection = ["{tests}"]
pytest_add_cli_args = {arguments}
also_copy = {beside}
use_setproctitle = false
timeout_multiplier = 5
"""
NO_TEST_FAILED, NO_TEST_RUNS_IT = 0, 33  # of mutmut
OUT_OF_TIME = (-24, 24, 36, 152, 255)
# what `mutmut show` does, for all mutants at once
SHOW = """
import json, sys
from mutmut.mutation.diff_apply import get_diff_for_mutant
names = json.load(sys.stdin)
print(json.dumps({name: get_diff_for_mutant(name) for name in names}))
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


def make_copy(folder: Path, name: str, without: str) -> None:
    """Copy what the tests of a technique need to a folder, with settings for mutmut."""
    for part in ("dlcourse", *BESIDE):
        shutil.copytree(ROOT / part, folder / part)
    arguments = ["-q", "-x", "-p", "no:cacheprovider"]
    if without:
        arguments += ["-k", f"not ({without})"]
    settings = SETTINGS.format(
        source=source_of(name),
        tests=tests_of(name),
        arguments=json.dumps(arguments),
        beside=json.dumps(BESIDE),
    )
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(project + settings, encoding="utf-8")


def python(folder: Path, *arguments: str, given: str = "", stops_with: str = "") -> str:
    """Run Python in a folder, and return what it prints; one error may be expected."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=env,
        input=given,
        capture_output=True,
        text=True,
    )
    expected = stops_with and stops_with in done.stderr
    if done.returncode and not expected:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return done.stdout


def exit_codes(folder: Path) -> dict[str, int | None]:
    """Return by mutant how its tests ended: 0 means unnoticed, None that it was not tried."""
    codes = {}
    for path in sorted((folder / "mutants" / "dlcourse").rglob("*.meta")):
        codes |= json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    return codes


def words_only(diff: str) -> bool:
    """Tell whether a change is one of text: other letters, or XX around it."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    old, new = (
        [line[1:] for line in lines if line.startswith(sign)] for sign in ("-", "+")
    )
    plain = ["".join(part).replace("XX", "").casefold() for part in (old, new)]
    return plain[0] == plain[1] and bool(re.search("[\"']", "".join(old)))


def make_mutants(folder: Path) -> dict[str, str]:
    """Make all mutants and time the tests; return the changes by name, words left out."""
    # asked for a name that none has, mutmut stops when it has done just that
    python(folder, "-m", "mutmut", "run", "none", stops_with="nothing matches")
    names = json.dumps(sorted(exit_codes(folder)))
    diffs = json.loads(python(folder, "-c", SHOW, given=names))
    return {name: diff for name, diff in diffs.items() if not words_only(diff)}


def draw(names: list[str], count: int, seed: int) -> list[str]:
    """Return `count` of the names, drawn at random; all where there are no more."""
    if count >= len(names):
        return names
    return random.Random(seed).sample(names, count)


def share(noticed: int, tried: int) -> str:
    """Return a share with its 95 % interval (Wilson).

    >>> share(90, 100)
    '90.0%, 95% interval 82.6% to 94.5%'
    """
    low, high = binomtest(noticed, tried).proportion_ci(method="wilson")
    return f"{noticed / tried:.1%}, 95% interval {low:.1%} to {high:.1%}"


def write_report(name: str, unnoticed: dict[str, str]) -> None:
    """Write down the changes that went unnoticed, by the names of their mutants."""
    lines = [f"# {mutant}\n{diff}\n" for mutant, diff in unnoticed.items()]
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")


def unnoticed_last_time(name: str) -> set[str]:
    """Return the names of the mutants in the report of the last run."""
    report = (KEPT / f"{name}.txt").read_text(encoding="utf-8")
    return set(re.findall("^# (.+)$", report, flags=re.MULTILINE))


def examine(name: str, options: argparse.Namespace) -> str:
    """Try the mutants of a technique, write down the unnoticed, return a line of result."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutants") as keeper:
        folder = Path(keeper)
        make_copy(folder, name, options.without)
        diffs = make_mutants(folder)
        tried = sorted(diffs)
        drawn = ""
        if options.again:
            tried = sorted(unnoticed_last_time(name) & diffs.keys())
            drawn = f" that were unnoticed, of {len(diffs)}"
        elif options.sample:
            tried = draw(tried, options.sample, options.seed)
            drawn = f" drawn with seed {options.seed} of {len(diffs)}"
        children = ("--max-children", str(options.children))
        python(folder, "-m", "mutmut", "run", *children, *tried)
        codes = exit_codes(folder)
    missed = (NO_TEST_FAILED, NO_TEST_RUNS_IT)
    unnoticed = {key: diffs[key] for key in tried if codes[key] in missed}
    late = sum(codes[key] in OUT_OF_TIME for key in tried)
    write_report(name, unnoticed)
    noticed = len(tried) - len(unnoticed)
    left_out = f" (without the tests {options.without})" if options.without else ""
    return (
        f"{name}: {noticed} of {len(tried)}{drawn} noticed{left_out}, {late} of them by a "
        f"timeout: {share(noticed, len(tried))}; {time.perf_counter() - start:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME", help="such as warmup")
    parser.add_argument("--children", type=int, default=2, help="processes at a time")
    parser.add_argument("--sample", type=int, default=0, help="how many to try")
    parser.add_argument("--seed", type=int, default=1, help="which ones are drawn")
    parser.add_argument("--again", action="store_true", help="those unnoticed last time")
    parser.add_argument("--without", default="", help="tests to leave out, as for -k")
    options = parser.parse_args()
    for name in options.names:
        print(examine(name, options), flush=True)


if __name__ == "__main__":
    main()
