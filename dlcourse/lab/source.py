"""The course's own files, shown in a chapter: one truth, no copy."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
# where chapters/ and recipes/ lie: beside the package, or inside it where a wheel was installed
COURSE = next(
    (f for f in (PACKAGE.parent, PACKAGE / "course") if (f / "recipes").is_dir()),
    PACKAGE.parent,
)


def recipe_path(name: str) -> Path:
    """Return the absolute path of a recipe, such as "11_gradient_accumulation.py".

    The reader's own copy counts where there is one: `../recipes` seen from the folder of
    the notebook. Else it is the course's. Raises FileNotFoundError where there is neither.
    """
    for folder in (Path.cwd().parent, COURSE):
        path = folder / "recipes" / name
        if path.is_file():
            return path.resolve()
    there = ", ".join(sorted(path.name for path in (COURSE / "recipes").glob("*.py")))
    raise FileNotFoundError(f"there is no recipe {name}; there are {there}")


def source_of(thing: Any) -> str:
    """Return the source of a function, method or class, dedented and without its
    docstrings.

    Raises TypeError for what has no source, such as a function of C.

    Invariants: the result is Python that parses to the same code as the original;
    comments stay.
    """
    lines = textwrap.dedent(inspect.getsource(thing)).splitlines()
    drop: set[int] = set()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if ast.get_docstring(node, clean=False) is None or len(node.body) == 1:
            continue  # a docstring alone is the body
        first, second = node.body[:2]
        last = first.end_lineno or first.lineno
        while last < second.lineno and not lines[last].strip():
            last += 1  # the blank lines after it
        drop.update(range(first.lineno - 1, last))
    return "\n".join(line for number, line in enumerate(lines) if number not in drop)


def show_source(*things: Any) -> None:
    """Print what `source_of` returns for each thing, with a blank line between two."""
    print("\n\n".join(source_of(thing) for thing in things))
