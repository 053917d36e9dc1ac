"""What an exercise is: a question, a check of the reader's object, hints, and a solution.

A check runs what the reader wrote. It says which mistake it sees; it keeps no score.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

BLANK = "Not started: put your own in place of the dots."


class Hint(Exception):
    """Raised inside a check: the answer is wrong, and this is what to think about."""


class _Truth(Protocol):
    """What is true or false: a bool, a NumPy bool, a tensor of one element."""

    def __bool__(self) -> bool: ...


def expect(condition: _Truth, hint: str) -> None:
    """Raise `Hint(hint)` unless `condition` holds."""
    if not condition:
        raise Hint(hint)


@dataclass(frozen=True)
class Wrong:
    """A usual misconception: an answer that shows it, and words that its hint must
    contain.
    """

    answer: object
    hint: str


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    `check_answer(answer)` returns None or raises `Hint`. `solve` is an answer that
    passes.
    `wrong` maps a misconception's name to an answer that the check must reject with its
    hint.
    """

    question: str
    check_answer: Callable[[Any], None]  # a reader's answer may be anything
    solve: object
    wrong: dict[str, Wrong] = field(default_factory=dict)

    def hint_for(self, answer: object) -> str | None:
        """Return None for a right answer, else the hint."""
        if answer is ...:
            return BLANK
        try:
            self.check_answer(answer)
        except Hint as hint:
            return str(hint)
        except Exception as error:  # the reader's own code may fail in any way
            if _is_stub(answer):
                return BLANK
            return f"Your code stopped with {type(error).__name__}: {error}"
        return None

    def check(self, answer: object) -> bool:
        """Run the answer, print the verdict, and return whether it is right."""
        hint = self.hint_for(answer)
        if hint is not None and hint != BLANK and _is_stub(answer):
            hint = BLANK
        print("Right." if hint is None else f"Not yet. {hint}")
        return hint is None

    def solution(self) -> None:
        """Print the source of a solution."""
        print(inspect.getsource(self.solve) if callable(self.solve) else repr(self.solve))


def _is_stub(answer: object) -> bool:
    """Tell whether `answer` is a function whose body is only dots or a docstring."""
    code = getattr(answer, "__code__", None)
    if code is None:
        return False
    steps = [
        step
        for step in dis.get_instructions(code)
        if step.opname not in ("RESUME", "NOP")
    ]
    returned = [
        step.argval for step in steps if step.opname in ("LOAD_CONST", "RETURN_CONST")
    ]
    plain = {"LOAD_CONST", "RETURN_CONST", "RETURN_VALUE"}
    return {step.opname for step in steps} <= plain and set(returned) <= {None, ...}
