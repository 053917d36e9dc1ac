"""Your own copy of the course: `dlcourse-lab FOLDER` fills it, and opens JupyterLab in it.

FOLDER gets the chapters and the recipes. Work there: a later version of the course
replaces what you have not touched, and never what you have. The new version of a file
that you changed is put below FOLDER/new, so that you can compare.

Exit codes: that of JupyterLab, 1 where the folder cannot be written, 2 for misuse.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from dlcourse import __version__
from dlcourse.lab.source import COURSE
from dlcourse.workshop.check import Parser, cannot_write, require
from dlcourse.workshop.reading import Misuse

COPIED = ("chapters/[0-9][0-9]_*.ipynb", "chapters/conftest.py", "chapters/nbval.cfg",
          "recipes/[0-9][0-9]_*.py")  # fmt: skip
NOTES = ".dlcourse.json"  # in the folder: which version of each file was put there
START = "chapters/00_start_here.ipynb"


@dataclass
class Filled:
    """What `fill` did: names of files, relative to the folder."""

    copied: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # changed by the reader


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def course_files(course: Path) -> list[str]:
    """Return the names of the files that a reader gets, relative to the course."""
    found = [path for pattern in COPIED for path in sorted(course.glob(pattern))]
    return [path.relative_to(course).as_posix() for path in found]


def read_notes(folder: Path) -> dict[str, str]:
    """Return which version of each file was put into the folder; empty at first."""
    try:
        return dict(json.loads((folder / NOTES).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def fill(folder: Path, course: Path = COURSE) -> Filled:
    """Copy the course into a folder, without losing a change of the reader.

    A file is replaced only where it is still what `fill` put there. Where the reader has
    changed it and the course has a new version, that goes to folder/new. Files of the
    reader's own are left alone.

    Raises Misuse where the folder is the course itself, or a file; OSError where it
    cannot be written.
    """
    if folder.resolve() == course.resolve():
        raise Misuse(f"{folder} is the course itself; name a folder of your own")
    if folder.exists() and not folder.is_dir():
        raise Misuse(f"{folder} is a file; name a folder")

    put_there = read_notes(folder)
    filled = Filled()
    for name in course_files(course):
        source, target = course / name, folder / name
        new = digest(source)
        there = digest(target) if target.exists() else None
        if there not in (None, new, put_there.get(name)):  # the reader's own
            filled.kept.append(name)
            if new == put_there.get(name):
                continue
            target = folder / "new" / name
        elif there != new:
            filled.copied.append(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        put_there[name] = new

    notes = {"version": __version__, "files": put_there}
    (folder / NOTES).write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
    return filled


def open_jupyterlab(folder: Path, options: list[str]) -> int:
    """Run JupyterLab in the folder until it is closed; return its exit code."""
    command = [sys.executable, "-m", "jupyterlab", START, *options]
    settings = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.call(command, cwd=folder, env={**settings, **os.environ})


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and those that are meant for JupyterLab."""
    parser = Parser(prog="dlcourse-lab", description=str(__doc__).partition("\n")[0])
    default, about = "dlcourse-chapters", "yours; made where it is missing"
    parser.add_argument(
        "folder", nargs="?", type=Path, default=default, help=f"{about} ({default})"
    )
    parser.add_argument("--copy-only", action="store_true", help="copy, and open nothing")
    parser.epilog = "Other options, such as --no-browser, go to JupyterLab."
    options, rest = parser.parse_known_args(arguments)
    strange = [word for word in rest if not word.startswith("-")]
    if strange or (rest and options.copy_only):
        parser.error(f"{(strange or rest)[0]} is not understood")
    return options, rest


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options, rest = parse(arguments)
    try:
        if not options.copy_only:
            require("jupyterlab")
        filled = fill(options.folder)
    except Misuse as error:
        print(f"dlcourse-lab: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"dlcourse-lab: {cannot_write(error, options.folder)}", file=sys.stderr)
        return 1
    print(f"{len(filled.copied)} files copied into {options.folder}.")
    if filled.kept:
        print(f"Yours, and left as they are: {', '.join(filled.kept)}.")
        new = options.folder / "new"
        if new.exists():
            print(f"Newer versions of what you changed stand in {new}.")
    return 0 if options.copy_only else open_jupyterlab(options.folder, rest)


if __name__ == "__main__":
    raise SystemExit(main())
