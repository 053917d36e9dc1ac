"""The tests of what you changed: `python tools/quick.py`, or with `--list` their names only.

Looks at the files that differ from the branch point with main (or from the last commit, on
main itself), finds the unit tests that mirror them, and runs those and the rules of the
house. It runs no notebook: `make test` does.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALWAYS = ("tests/test_house.py",)
# modules that no test imports, and the tests of those that call them
TESTED_BY = {
    "tests/lab/test_lab_datasets.py": ("folders", "images", "pixels"),
    "tests/lab/test_lab_launching.py": ("scripts",),
    "tests/capstone/test_own.py": ("cache", "fingerprint", "grouping", "sides"),
    "tests/capstone/test_cli.py": ("command", "plan", "result"),
    "tests/capstone/test_running.py": ("card",),
    "tests/workshop/test_check.py": ("kernels",),
    "tests/capstone/test_questions.py": ("first_question",),
}


def changed_files(root: Path = ROOT) -> list[str]:
    """Return the paths that differ from the branch point, and the new ones."""
    base = _git(root, "merge-base", "HEAD", "main") or ["HEAD"]
    changed = _git(root, "diff", "--name-only", "--diff-filter=d", base[0])
    new = _git(root, "ls-files", "--others", "--exclude-standard")
    return sorted({*changed, *new})


def _git(root: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def tests_of(path: str, root: Path = ROOT) -> list[str]:
    """Return the test files that mirror one file of the repository."""
    parts = Path(path).parts
    stem = Path(path).stem
    if parts[0] == "tests":
        return [path] if stem.startswith("test_") else []
    if parts[0] == "tools":
        return ["tests/test_tools.py"]
    if parts[0] != "dlcourse" or len(parts) < 2:
        return []
    room = Path(parts[1]).stem
    if room == "lab" and len(parts) > 2:
        names = [f"tests/lab/test_lab_{Path(parts[2]).stem}*.py"]
    elif room in ("capstone", "workshop"):
        names = [f"tests/{room}/test_{stem}.py"]
    elif room == "exercises":
        names = [f"tests/test_{stem}.py", f"tests/test_exercises_{stem}.py"]
    else:  # a technique, alone or as a folder
        names = [f"tests/test_{room}.py"]
    found = [str(file.relative_to(root)) for name in names for file in root.glob(name)]
    if not found and room in ("lab", "capstone", "workshop"):
        found = users_of(f"dlcourse.{room}", stem, root)
        found = found or [test for test, stems in TESTED_BY.items() if stem in stems]
        found = found or [f"tests/{room}"]
    return found


def users_of(room: str, stem: str, root: Path) -> list[str]:
    """Return the tests of a room that import a module which has no file of tests."""
    imports = re.compile(rf"from {room} import .*\b{stem}\b|from {room}\.{stem}\b")
    files = (root / "tests" / room.rpartition(".")[2]).glob("test_*.py")
    users = [file for file in files if imports.search(file.read_text(encoding="utf-8"))]
    return sorted(str(file.relative_to(root)) for file in users)


def numbers(paths: list[str], folder: str) -> list[str]:
    """Return the numbers of the changed files of a folder, such as "04"."""
    names = [Path(path).name for path in paths if path.startswith(f"{folder}/")]
    return sorted({name[:2] for name in names if name[:2].isdigit()})


def selection(paths: list[str], root: Path = ROOT) -> list[list[str]]:
    """Return the arguments of each run of pytest that some changed files ask for."""
    tests = {*ALWAYS}
    for path in paths:
        tests.update(tests_of(path, root))
    runs = [sorted(tests)]
    for number in numbers(paths, "recipes"):
        runs.append(["tests/test_recipes.py", "-k", f"{number}_"])
    for number in numbers(paths, "chapters"):  # the rules for its text; no cell is run
        runs.append(["tests/test_chapters.py", "-k", f"{number}_"])
    return runs


def main(arguments: list[str]) -> int:
    for run in selection(changed_files()):
        command = [sys.executable, "-m", "pytest", "-q", "-x", *run]
        print(" ".join(["python", *command[1:]]), flush=True)
        if "--list" not in arguments:
            code = subprocess.run(command, cwd=ROOT).returncode
            if code:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
