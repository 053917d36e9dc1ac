"""Shapes that are placed on a sheet: values in, Axes out."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch, Patch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from dlcourse.lab.plotting import COLORS

WIDTH = 7.0  # of a sheet, inches
TEXT = 9.5  # points
LINE = 1.25 * TEXT / 72  # the height of a line of text, inches
PADDING = 0.1  # between a text and the edge of its box, inches
OUTLINES = {"rectangle": 1.0, "circle": 1.2}  # room around a text


@functools.cache
def extent(text: str) -> tuple[float, float]:
    """Return the width and height of `text` in inches."""
    lines = text.split("\n")
    paths = [TextPath((0, 0), line, size=TEXT) for line in lines if line.strip()]
    width = max((path.get_extents().x1 for path in paths), default=0.0)
    return width / 72, LINE * len(lines)


def _edge(color: int | None) -> str:
    return "0.3" if color is None else COLORS[color]


def _fill(color: int | None):
    """Return a tint of the colour on which black text is easy to read."""
    if color is None:
        return "white"
    strength = 0.25 if COLORS[color] == "#000000" else 0.4
    return tuple(1 - strength * (1 - part) for part in to_rgb(COLORS[color]))


def canvas(
    ax: Axes,
    width: float = WIDTH,
    height: float = 3.0,
    *,
    origin: tuple[float, float] = (0.0, 0.0),
    title: str = "",
) -> Axes:
    """Make `ax` an empty sheet of `width` by `height` with its lower left at `origin`.

    Where `ax` is alone in its figure, the figure's height becomes that of the sheet.
    """
    left, bottom = origin
    ax.set_xlim(left, left + width)
    ax.set_ylim(bottom, bottom + height)
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set_title(title, loc="left", fontsize=10)
    figure = ax.figure  # a subfigure has no height of its own to set
    if isinstance(figure, Figure) and len(figure.axes) == 1:
        sheet = figure.get_figwidth() * height / width
        figure.set_figheight(sheet + (0.35 if title else 0.05))
    return ax


def note(ax: Axes, x: float, y: float, text: str, *, align: str = "center") -> Axes:
    """Write `text` at (x, y); `align` says what is at x: "left", "center" or "right"."""
    ax.text(x, y, text, ha=align, va="center", fontsize=TEXT, zorder=4)
    return ax


def box(
    ax: Axes,
    x: float,
    y: float,
    text: str = "",
    *,
    color: int | None = 0,
    width: float | None = None,
    height: float | None = None,
    outline: str = "rectangle",
) -> Axes:
    """Draw a box around (x, y), as large as its text needs where no size is given.

    `outline` is "rectangle" or "circle". Raises ValueError where the text is larger than
    the size given.
    """
    if outline not in OUTLINES:
        raise ValueError(f"outline must be one of {', '.join(OUTLINES)}, not {outline!r}")
    text_width, text_height = extent(text)
    if text_width > (width or math.inf) or text_height > (height or math.inf):
        raise ValueError(
            f"{text!r} does not fit its box; break the line or widen the box"
        )
    room = OUTLINES[outline]
    width = width or room * (text_width + 2 * PADDING)
    height = height or room * (text_height + 2 * PADDING)
    if outline == "rectangle":
        patch = Rectangle((x - width / 2, y - height / 2), width, height)
    else:
        patch = Ellipse((x, y), max(width, height), max(width, height))
    patch.set(facecolor=_fill(color), edgecolor=_edge(color), linewidth=1.5, zorder=2)
    patch.set_gid("box")
    ax.add_artist(patch)
    return note(ax, x, y, text) if text else ax


def _box_around(ax: Axes, point: tuple[float, float]) -> tuple[Patch | None, Path]:
    """Return the smallest box that holds `point` and its outline, or None and no path."""
    found, outline, least = None, Path(np.empty((0, 2))), math.inf
    for patch in ax.patches:
        if patch.get_gid() != "box":
            continue
        path = patch.get_patch_transform().transform_path(patch.get_path())
        if path.contains_point(point):
            size = path.get_extents().width * path.get_extents().height
            if size < least:
                found, outline, least = patch, path, size
    return found, outline


def arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    *,
    bend: float = 0.0,
    color: int | None = None,
    style: str = "-|>",
    below: bool = False,
) -> Axes:
    """Draw an arrow; an end that lies in a box stops at the edge of that box.

    `bend` is the height of the arc over its length: positive bends to the right of the
    way from start to end. `style` is Matplotlib's: "<|-|>" points both ways, "-" is a line,
    "|-|" measures a length. The text stands above the line (of a vertical one: to the
    right; of a bent one: outside) or, with `below`, on the other side. Raises ValueError
    where the boxes at its ends leave no room for a text.
    """
    first, first_path = _box_around(ax, start)
    last, last_path = _box_around(ax, end)
    look = {"color": _edge(color), "linewidth": 1.4}
    arc = {"connectionstyle": f"arc3,rad={2 * bend}", "arrowstyle": style}
    ends = {"patchA": first, "patchB": last, "shrinkA": 0, "shrinkB": 0}
    line = FancyArrowPatch(start, end, mutation_scale=11, zorder=3, **look, **arc, **ends)
    ax.add_artist(line)
    if not text:
        return ax

    # the arc is a quadratic curve: the text stands at the middle of what boxes leave of it
    along = np.subtract(end, start)
    right = np.array([along[1], -along[0]])
    time = np.linspace(0, 1, 101)[:, None]
    curve = np.asarray(start) + time * along + 4 * time * (1 - time) * bend * right
    hidden = first_path.contains_points(curve) | last_path.contains_points(curve)
    seen = curve[~hidden]
    if len(seen) == 0:
        raise ValueError(f"no room for {text!r} between the boxes; move them apart")
    return _write_beside(ax, seen[len(seen) // 2], right, text, bend, below)


def _write_beside(
    ax: Axes, middle: np.ndarray, right: np.ndarray, text: str, bend: float, below: bool
) -> Axes:
    """Write a text next to the middle of an arrow, as near as half the text reaches."""
    normal = right / np.linalg.norm(right)
    level = abs(normal[1]) > 0.01
    if bend < 0 or (not bend and (normal[1] if level else normal[0]) < 0):
        normal = -normal
    if below:
        normal = -normal
    reach = abs(normal) @ extent(text) / 2 * 72 + 4
    x, y = middle
    shift_x, shift_y = reach * normal
    label = ax.annotate(
        text, (x, y), xytext=(shift_x, shift_y), textcoords="offset points"
    )
    label.set(ha="center", va="center", fontsize=TEXT, zorder=4)
    label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8})
    return ax


def grid(
    ax: Axes,
    x: float,
    y: float,
    cells: Sequence[Sequence[int | None]],
    *,
    texts: Sequence[Sequence[object]] | None = None,
    size: float = 0.22,
    height: float | None = None,
) -> Axes:
    """Draw squares of side `size`, one colour each, the upper left corner at (x, y).

    `texts` are written into the squares, row by row. With `height` they are rectangles.
    """
    height = height or size
    for i, row in enumerate(cells):
        for j, color in enumerate(row):
            left, bottom = x + j * size, y - (i + 1) * height
            look = {"facecolor": _fill(color), "edgecolor": _edge(color), "linewidth": 1}
            ax.add_artist(Rectangle((left, bottom), size, height, zorder=2.5, **look))
            if texts is not None:
                note(ax, left + size / 2, bottom + height / 2, str(texts[i][j]))
    return ax


def ring(
    ax: Axes,
    x: float,
    y: float,
    chunks: Sequence[Sequence[object]],
    *,
    colors: Sequence[Sequence[int | None]] | None = None,
    sent: Sequence[str] | None = None,
    radius: float = 1.0,
) -> Axes:
    """Draw processes clockwise around (x, y), each with its chunks and an arrow to the next.

    `chunks` and `colors` have a row for each process, `sent` a text for each arrow.
    """
    count = len(chunks)
    text_width = max(extent(str(chunk))[0] for row in chunks for chunk in row)
    size = max(text_width + PADDING, 0.3)
    first = math.pi if count == 2 else math.pi / 2
    angles = [first - 2 * math.pi * number / count for number in range(count)]
    places = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
    for number, (row, (left, middle)) in enumerate(zip(chunks, places, strict=True)):
        title = f"process {number}"
        width = max(len(row) * size, extent(title)[0]) + 2 * PADDING
        box(ax, left, middle, color=None, width=width, height=0.68)
        note(ax, left, middle + 0.19, title)
        cells = [colors[number]] if colors else [[0] * len(row)]
        corner = left - len(row) * size / 2, middle + 0.06
        grid(ax, *corner, cells, texts=[row], size=size, height=0.3)
    for number in range(count):
        label = sent[number] if sent else ""
        arrow(ax, places[number], places[(number + 1) % count], label, bend=-0.12)
    return ax
