"""The package's own source, shown in a chapter: one truth, no copy."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any


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
