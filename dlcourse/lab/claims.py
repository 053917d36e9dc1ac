"""A statement, the measured value and the bound: the notebook fails where the claim does
not hold.

Bounds are set for the embedded digits. On other data (`DLCOURSE_DATA`) a claim that fails
says so and the chapter goes on: the course never claimed it there.
"""

from __future__ import annotations

import math
import os
from typing import cast

_measured: list[tuple[str, float, str]] = []


class ClaimError(AssertionError):
    """Raised by `claim` when a statement does not hold."""


def claim(
    sentence: str,
    value: float | bool,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    between: tuple[float, float] | None = None,
    equals: float | bool | None = None,
    tol: float = 0.0,
) -> None:
    """Print `sentence` with its bound if `value` keeps it, else raise ClaimError with the
    value.

    Exactly one bound: `at_least`, `at_most`, `between` (both ends included) or `equals`
    (within `tol`). NaN keeps no bound. The value itself is printed by `measured`, not
    here, so that the text is the same on every machine.

    Raises ValueError for an empty sentence, or for no bound or several.

    >>> claim("two is more than one", 2, at_least=1.5)
    HOLDS  two is more than one  [at least 1.5]
    """
    bounds = [b for b in (at_least, at_most, between, equals) if b is not None]
    if not sentence.strip():
        raise ValueError("a claim needs a sentence that says what holds")
    if len(bounds) != 1:
        raise ValueError(
            f"{len(bounds)} bounds: give exactly one of at_least=, at_most=, between=, equals="
        )
    number = float(value)
    if at_least is not None:
        holds, bound = number >= at_least, f"at least {at_least:g}"
    elif at_most is not None:
        holds, bound = number <= at_most, f"at most {at_most:g}"
    elif between is not None:
        low, high = between
        holds, bound = low <= number <= high, f"from {low:g} to {high:g}"
    else:
        holds = abs(number - float(cast(float, equals))) <= tol
        bound = f"equal to {equals:g}" + (f" within {tol:g}" if tol else "")
    holds = holds and not math.isnan(number)
    _measured.append((sentence, number, bound))
    if holds:
        print(f"HOLDS  {sentence}  [{bound}]")
        return
    message = f"{sentence}: measured {number:.6g}, should be {bound}"
    data = os.environ.get("DLCOURSE_DATA", "digits")
    if data != "digits":
        print(f"DOES NOT HOLD on {data}  {message}")
        return
    raise ClaimError(message)


def measured() -> None:
    """Print the values behind the claims since the last call, one a line.

    They depend a little on the machine, so the call stands in a cell of its own.
    """
    for sentence, value, bound in _measured:
        print(f"{value:>10.4g}  {bound:<24}  {sentence}")
    _measured.clear()
