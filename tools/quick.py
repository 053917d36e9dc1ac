"""The tests of what you changed: `python tools/quick.py`, or with `--list` their names only.

Looks at the files that differ from the branch point with main (or from the last commit, on
main itself), finds the unit tests that mirror them, and runs those and the rules of the
house. It runs no notebook: `make test` does.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALWAYS = ("tests/test_house.py",)


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
    if parts[0] == "recipes":
        return ["tests/test_recipes.py"]
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
        found = [f"tests/{room}"]  # no file of its own: the room's tests
    return found


def selection(paths: list[str], root: Path = ROOT) -> tuple[list[str], list[str]]:
    """Return (test files to run, numbers of the changed chapters) for some changed files."""
    tests = {*ALWAYS}
    for path in paths:
        tests.update(tests_of(path, root))
    chapters = [Path(path).name[:2] for path in paths if path.startswith("chapters/")]
    numbers = sorted({number for number in chapters if number.isdigit()})
    return sorted(tests), numbers


def main(arguments: list[str]) -> int:
    tests, chapters = selection(changed_files())
    commands = [[sys.executable, "-m", "pytest", "-q", "-x", *tests]]
    for number in chapters:  # the rules for its text; its cells are not run
        rules = ["tests/test_chapters.py", "-k", f"{number}_"]
        commands.append([sys.executable, "-m", "pytest", "-q", "-x", *rules])
    for command in commands:
        print(" ".join(["python", *command[1:]]), flush=True)
        if "--list" not in arguments:
            code = subprocess.run(command, cwd=ROOT).returncode
            if code:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
