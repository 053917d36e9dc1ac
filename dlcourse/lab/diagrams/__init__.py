"""Shapes that draw a mechanism, and drawings made of them: values in, Axes out.

A drawing lies on a sheet whose unit is one inch where the figure is as wide as the sheet
(7 inches); a narrower figure has no room for the text. `canvas` lays an empty sheet, on
which `box`, `arrow`, `note`, `grid` and `ring` are placed: x to the right, y upwards.
`steps`, `timeline`, `bit_fields`, `number_line`, `tree` and `landscape` lay their own,
and more shapes may be placed on it afterwards.

A colour is a number: an index of `COLORS` in dlcourse/lab/plotting.py, or None for white.
"""

from dlcourse.lab.diagrams.layouts import (
    bit_fields,
    landscape,
    number_line,
    steps,
    timeline,
    tree,
)
from dlcourse.lab.diagrams.shapes import arrow, box, canvas, grid, note, ring

__all__ = [
    "arrow",
    "bit_fields",
    "box",
    "canvas",
    "grid",
    "landscape",
    "note",
    "number_line",
    "ring",
    "steps",
    "timeline",
    "tree",
]
