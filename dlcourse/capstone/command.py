"""What the commands share: a path of any letters is printed, a failure is one line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from dlcourse.capstone.settings import Problem


def print_any_letter() -> None:
    """Write what a terminal cannot show, such as a letter of a path, as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def fail(program: str, message: str, code: int) -> int:
    """Print one line to stderr, from the first process only, and return the exit code."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"{program}: {message}", file=sys.stderr, flush=True)
    return code


def answered(program: str, work: Callable[[], int]) -> int:
    """Return the exit code of `work`, 2 where nothing can be done, or 130 for Ctrl-C."""
    print_any_letter()
    try:
        return work()
    except (Problem, OSError) as problem:
        return fail(program, " ".join(str(problem).split()), 2)
    except KeyboardInterrupt:
        return fail(program, "stopped", 130)


def check_csv(path: Path | None) -> None:
    """Raise Problem for a --csv in a folder that does not exist."""
    if path and not path.parent.is_dir():
        raise Problem(f"--csv {path}: there is no folder {path.parent}")
