"""Drawings that lay their own sheet, 7 inches wide: values in, Axes out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from dlcourse.lab.diagrams.shapes import (
    PADDING,
    WIDTH,
    arrow,
    box,
    canvas,
    extent,
    grid,
    note,
)
from dlcourse.lab.plotting import COLORS


def steps(
    ax: Axes,
    names: Sequence[str],
    *,
    colors: Sequence[int | None] | None = None,
    loop: str = "",
    title: str = "",
) -> Axes:
    """Draw the names as boxes in a row with arrows between; `loop` leads back to the first.

    Raises ValueError where the row is wider than the sheet.
    """
    widths = [extent(name)[0] + 2 * PADDING for name in names]
    height = max(extent(name)[1] for name in names) + 2 * PADDING
    gap = (WIDTH - 0.2 - sum(widths)) / max(len(names) - 1, 1)
    if gap < 0.25:
        raise ValueError(f"{len(names)} steps are too wide: break their lines with \\n")
    gap = min(gap, 0.9)
    room = 0.75 if loop else 0.1
    canvas(ax, WIDTH, height + 0.1 + room, title=title)
    left = (WIDTH - sum(widths) - gap * (len(names) - 1)) / 2
    middles: list[tuple[float, float]] = []
    for number, (name, width) in enumerate(zip(names, widths, strict=True)):
        middles.append((left + width / 2, room + height / 2))
        color = colors[number] if colors else 0
        box(ax, *middles[-1], name, color=color, width=width, height=height)
        left += width + gap
    for start, end in zip(middles, middles[1:], strict=False):
        arrow(ax, start, end)
    if loop:
        right, first = middles[-1][0], middles[0][0]
        arrow(ax, (right, room), (right, 0.35), style="-")
        arrow(ax, (right, 0.35), (first, 0.35), loop, style="-", below=True)
        arrow(ax, (first, 0.35), (first, room))
    return ax


def _legend(ax: Axes, key: Mapping[str, int | None], left: float, y: float) -> None:
    """Write a row of coloured squares with their names, from `left` on."""
    for name, color in key.items():
        grid(ax, left, y + 0.08, [[color]], size=0.16)
        note(ax, left + 0.24, y, name, align="left")
        left += 0.24 + extent(name)[0] + 0.3


def timeline(
    ax: Axes,
    rows: Mapping[str, Sequence[tuple[float, float, str, int | None]]],
    *,
    key: Mapping[str, int | None] | None = None,
    title: str = "",
) -> Axes:
    """Draw a row of slots for each name; a slot is (start, length, text, colour).

    `key` says what the colours mean. Raises ValueError where a text is wider than its slot.
    """
    left = max(extent(name)[0] for name in rows) + 0.2
    slots = [slot for row in rows.values() for slot in row]
    scale = (WIDTH - left - 0.1) / max(start + length for start, length, *_ in slots)
    bottom = 0.72 if key else 0.42
    canvas(ax, WIDTH, bottom + 0.4 * len(rows), title=title)
    for number, (name, row) in enumerate(rows.items()):
        y = bottom + 0.4 * (len(rows) - number) - 0.2
        note(ax, left - 0.1, y, name, align="right")
        for start, length, text, color in row:
            x = left + scale * (start + length / 2)
            box(ax, x, y, text, color=color, width=scale * length, height=0.32)
    arrow(ax, (left, bottom - 0.1), (WIDTH - 0.05, bottom - 0.1), "time", below=True)
    if key:
        _legend(ax, key, left, 0.13)
    return ax


def bit_fields(
    ax: Axes,
    formats: Mapping[str, tuple[int, int, int]],
    *,
    title: str = "",
) -> Axes:
    """Draw the bits (sign, exponent, mantissa) of each format, all to one scale."""
    left = max(extent(name)[0] for name in formats) + 0.2
    size = (WIDTH - left - 0.1) / max(sum(bits) for bits in formats.values())
    canvas(ax, WIDTH, 0.3 + 0.55 * len(formats), title=title)
    for number, (name, bits) in enumerate(formats.items()):
        top = 0.3 + 0.55 * (len(formats) - number) - 0.02
        note(ax, left - 0.1, top - 0.1, name, align="right")
        start = left
        for color, count in zip((1, 2, 0), bits, strict=True):
            if count:
                grid(ax, start, top, [[color] * count], size=size, height=0.22)
                note(ax, start + count * size / 2, top - 0.33, str(count))
            start += count * size
    _legend(ax, {"sign": 1, "exponent": 2, "mantissa": 0}, left, 0.13)
    return ax


def number_line(
    ax: Axes,
    values: Sequence[float],
    snapped: Sequence[float],
    ticks: Sequence[float],
    *,
    names: tuple[str, str] = ("values", "grid"),
    fmt: str = "g",
) -> Axes:
    """Draw values on a line, the ticks of a grid on another, and arrows from each value to
    the one that it is snapped to. Ticks whose numbers would touch go without.
    """
    left = max(extent(name)[0] for name in names) + 0.5
    low, high = min(*values, *ticks), max(*values, *ticks)
    scale = (WIDTH - left - 0.4) / (high - low)
    canvas(ax, WIDTH, 1.7)
    for name, y in zip(names, (1.4, 0.55), strict=True):
        note(ax, left - 0.35, y, name, align="right")
        arrow(ax, (left - 0.2, y), (WIDTH - 0.1, y), style="-")
    end = -math.inf
    for tick in sorted(ticks):
        x, text = left + scale * (tick - low), format(tick, fmt)
        arrow(ax, (x, 0.45), (x, 0.65), style="-")
        if x - extent(text)[0] / 2 > end + PADDING:
            note(ax, x, 0.25, text)
            end = x + extent(text)[0] / 2
    for value, place in zip(values, snapped, strict=True):
        x, target = left + scale * (value - low), left + scale * (place - low)
        ax.plot(x, 1.4, "o", color=COLORS[0], markersize=6, zorder=4)
        arrow(ax, (x, 1.4), (target, 0.6), color=1)
    return ax


def landscape(
    ax: Axes,
    x: Sequence[float],
    y: Sequence[float],
    heights,
    arrows: Sequence[tuple],
    *,
    title: str = "",
) -> Axes:
    """Draw contours of `heights` (y, x) and arrows (start, end, text, colour) upon them."""
    width, height = max(x) - min(x), max(y) - min(y)
    canvas(ax, width, height, origin=(min(x), min(y)), title=title)
    ax.contour(x, y, heights, 12, colors="0.7", linewidths=0.9)
    for start, end, text, color in arrows:
        arrow(ax, start, end, text, color=color)
    return ax


def tree(ax: Axes, root, *, title: str = "") -> Axes:
    """Draw questions from left to right, each answer a branch, each leaf an advice.

    A leaf is a text; a question is (text, {answer: leaf or question, ...}). Raises
    ValueError where the tree is wider than the sheet.
    """
    leaves: list[float] = []  # the lower edge of each leaf so far, from the top downwards
    widths: dict[int, float] = {}
    placed: list[tuple] = []  # (depth, y, text, is a leaf, [(answer, its place), ...])

    def place(node, depth: int) -> tuple:
        text, answers = (node, {}) if isinstance(node, str) else node
        width, height = extent(text)
        widths[depth] = max(widths.get(depth, 0.0), width + 2 * PADDING)
        branches = [
            (answer, place(child, depth + 1)) for answer, child in answers.items()
        ]
        if branches:
            y = (branches[0][1][1] + branches[-1][1][1]) / 2
        else:
            above = leaves[-1] if leaves else 0.0
            y = above - height / 2 - 0.2
            leaves.append(y - height / 2 - 0.2)
        placed.append((depth, y, text, not branches, branches))
        return placed[-1]

    place(root, 0)
    gap = (WIDTH - 0.1 - sum(widths.values())) / max(len(widths) - 1, 1)
    longest = max(extent(answer)[0] for *_, row in placed for answer, _ in row)
    if gap < longest + 0.3:
        raise ValueError("the tree is too wide: break the lines of its texts with \\n")
    gap = min(gap, longest + 0.8)
    lefts = {0: (WIDTH - sum(widths.values()) - gap * (len(widths) - 1)) / 2}
    for depth in range(1, len(widths)):
        lefts[depth] = lefts[depth - 1] + widths[depth - 1] + gap
    canvas(ax, WIDTH, -leaves[-1], origin=(0.0, leaves[-1]), title=title)
    for depth, y, text, is_leaf, _ in placed:
        x = lefts[depth] + widths[depth] / 2
        box(ax, x, y, text, color=2 if is_leaf else 4, width=widths[depth])
    for depth, y, _, _, branches in placed:
        right = lefts[depth] + widths[depth]
        for answer, (_, target, *_) in branches:
            arrow(ax, (right, y), (right + gap, target), answer, below=target < y)
    return ax
