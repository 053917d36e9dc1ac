"""A statement, its measured value and its bound, on one line.

The notebook stops where a claim does not hold. Bounds are set for the embedded images. On
other data (`DLCOURSE_DATA`) a claim that fails says so and the chapter goes on: the course
never claimed it there.

`DLCOURSE_CLAIMS`, the path of a file, turns a chapter into a measurement: each claim adds
one line of JSON to that file, and none stops the run. `tools/seeds.py` uses it.
"""

from __future__ import annotations

import json
import math
import os
import re
from typing import SupportsFloat

# What nbval reads: the value is masked, sentence and bound are compared (chapters/nbval.cfg).
LINE = re.compile(
    r"^HOLDS  (?P<sentence>.*): (?P<value>\S+)  \((?P<bound>[^()]*)\)$", re.MULTILINE
)


class ClaimError(AssertionError):
    """Raised by `claim` when a statement does not hold."""


def claim(
    sentence: str,
    value: SupportsFloat,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    between: tuple[float, float] | None = None,
    equals: float | bool | None = None,
    tol: float = 0.0,
) -> None:
    """Print `sentence`, the rounded value and its bound; raise ClaimError if it fails.

    Exactly one bound: `at_least`, `at_most`, `between` (both ends included) or `equals`
    (within `tol`). NaN keeps no bound.

    Raises ValueError for an empty sentence, or for no bound or several.

    >>> claim("two over one", 2, at_least=1.5)
    HOLDS  two over one: 2  (at least 1.5)
    """
    if not sentence.strip():
        raise ValueError("a claim needs a sentence that says what holds")
    given = [bound for bound in (at_least, at_most, between, equals) if bound is not None]
    if len(given) != 1:
        raise ValueError(
            f"{len(given)} bounds: give exactly one of at_least=, at_most=, between=, equals="
        )

    number = float(value)
    if at_least is not None:
        low, high, bound = at_least, math.inf, f"at least {at_least:g}"
    elif at_most is not None:
        low, high, bound = -math.inf, at_most, f"at most {at_most:g}"
    elif between is not None:
        low, high = between
        bound = f"from {low:g} to {high:g}"
    else:
        assert equals is not None
        low, high = float(equals) - tol, float(equals) + tol
        bound = f"equal to {equals:g}" + (f" within {tol:g}" if tol else "")
    holds = low <= number <= high  # never for NaN

    facts: dict[str, object] = {"sentence": sentence, "value": number, "holds": holds}
    facts |= {"low": low} if math.isfinite(low) else {}
    facts |= {"high": high} if math.isfinite(high) else {}
    measuring = record(facts)
    data = os.environ.get("DLCOURSE_DATA") or "digits"
    if holds:
        print(f"HOLDS  {sentence}: {rounded(number)}  ({bound})")
    elif measuring or data != "digits":
        print(f"DOES NOT HOLD on {data}  {sentence}: {number:.6g}  (should be {bound})")
    else:
        raise ClaimError(f"{sentence}: measured {number:.6g}, should be {bound}")


def rounded(value: float) -> str:
    """Return a number with three digits, or whole where it has more before the point.

    >>> rounded(0.94349), rounded(12.0), rounded(71684.2), rounded(2.2e-16)
    ('0.943', '12', '71,684', '2.2e-16')
    """
    if abs(value) >= 1000 and math.isfinite(value):
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    return f"{value:.3g}"


def record(facts: dict[str, object]) -> bool:
    """Add one line to the file of measurements, if there is one, and tell whether."""
    file = os.environ.get("DLCOURSE_CLAIMS")
    if not file:
        return False
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(facts) + "\n")
    return True
