"""Shapes that draw a mechanism, and drawings made of them: values in, Axes out.

A drawing lies on a sheet whose unit is one inch where the figure is as wide as the sheet
(7 inches); a narrower figure has no room for the text. `canvas` lays an empty sheet,
on which `box`, `arrow`, `note`, `grid` and `ring` are placed: x to the right, y upwards.
`steps`, `timeline`, `bit_fields`, `number_line`, `tree`, `halving`, `layers` and
`landscape` lay their own, and more shapes may be placed on it afterwards.

A colour is a number: an index of `COLORS` in dlcourse/lab/plotting.py, or None for white.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Ellipse, FancyArrowPatch, Patch, Polygon, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from dlcourse.lab.plotting import COLORS

WIDTH = 7.0  # of a sheet, inches
TEXT = 9.5  # points
LINE = 1.25 * TEXT / 72  # the height of a line of text, inches
PADDING = 0.1  # between a text and the edge of its box, inches
OUTLINES = {"rectangle": 1.0, "circle": 1.2, "diamond": 1.7}  # room around a text


def _extent(text: str) -> tuple[float, float]:
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
    if len(ax.figure.axes) == 1:
        sheet = ax.figure.get_figwidth() * height / width
        ax.figure.set_figheight(sheet + (0.35 if title else 0.05))
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
    shape: Sequence[int] | None = None,
    color: int | None = 0,
    width: float | None = None,
    height: float | None = None,
    outline: str = "rectangle",
    dashed: bool = False,
) -> Axes:
    """Draw a box around (x, y), as large as its text needs where no size is given.

    `shape` is a tensor's shape, written below the text. `outline` is "rectangle",
    "circle" or "diamond". Raises ValueError where the text is larger than the size given.
    """
    if outline not in OUTLINES:
        raise ValueError(f"outline must be one of {', '.join(OUTLINES)}, not {outline!r}")
    if shape is not None:
        text = f"{text}\n{tuple(shape)}"
    text_width, text_height = _extent(text)
    if text_width > (width or math.inf) or text_height > (height or math.inf):
        raise ValueError(
            f"{text!r} does not fit its box; break the line or widen the box"
        )
    room = OUTLINES[outline]
    width = width or room * (text_width + 2 * PADDING)
    height = height or room * (text_height + 2 * PADDING)
    if outline == "rectangle":
        patch = Rectangle((x - width / 2, y - height / 2), width, height)
    elif outline == "circle":
        patch = Ellipse((x, y), max(width, height), max(width, height))
    else:
        right, top = x + width / 2, y + height / 2
        corners = [(right, y), (x, top), (x - width / 2, y), (x, y - height / 2)]
        patch = Polygon(corners, closed=True)
    patch.set(facecolor=_fill(color), edgecolor=_edge(color), linewidth=1.5, zorder=2)
    patch.set(linestyle="--" if dashed else "-", gid="box")
    ax.add_patch(patch)
    return note(ax, x, y, text) if text else ax


def _box_around(ax: Axes, point: tuple[float, float]) -> tuple[Patch | None, Path]:
    """Return the smallest box that holds `point` and its outline, or None and no path."""
    found, outline, least = None, Path(np.empty((0, 2))), math.inf
    for patch in ax.patches:
        path = patch.get_patch_transform().transform_path(patch.get_path())
        size = path.get_extents().width * path.get_extents().height
        if patch.get_gid() == "box" and size < least and path.contains_point(point):
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
    dashed: bool = False,
    below: bool = False,
) -> Axes:
    """Draw an arrow; an end that lies in a box stops at the edge of that box.

    `bend` is the height of the arc over its length: positive bends to the right of the
    way from start to end. `style` is Matplotlib's: "<|-|>" points both ways, "-" is a line,
    "|-|" measures a length. The text stands above the line (of a vertical one: to the
    right; of a bent one: outside) or, with `below`, on the other side.
    """
    first, first_path = _box_around(ax, start)
    last, last_path = _box_around(ax, end)
    look = {"color": _edge(color), "linestyle": "--" if dashed else "-", "linewidth": 1.4}
    arc = {"connectionstyle": f"arc3,rad={2 * bend}", "arrowstyle": style}
    ends = {"patchA": first, "patchB": last, "shrinkA": 0, "shrinkB": 0}
    line = FancyArrowPatch(start, end, mutation_scale=11, zorder=3, **look, **arc, **ends)
    ax.add_patch(line)
    if not text:
        return ax

    # the arc is a quadratic curve: find the middle of the part outside the boxes
    start, end = np.asarray(start, float), np.asarray(end, float)
    along = end - start
    right = np.array([along[1], -along[0]])
    time = np.linspace(0, 1, 101)[:, None]
    curve = start + time * along + 4 * time * (1 - time) * bend * right
    hidden = first_path.contains_points(curve) | last_path.contains_points(curve)
    middle = np.median(curve[~hidden], axis=0)

    normal = right / np.linalg.norm(right) * (math.copysign(1, bend) if bend else 1)
    if not bend and (normal[1] < -0.01 or (abs(normal[1]) <= 0.01 and normal[0] < 0)):
        normal = -normal
    if below:
        normal = -normal
    ax.annotate(
        text,
        middle,
        xytext=4 * normal,
        textcoords="offset points",
        ha="left" if normal[0] > 0.4 else "right" if normal[0] < -0.4 else "center",
        va="bottom" if normal[1] > 0.4 else "top" if normal[1] < -0.4 else "center",
        fontsize=TEXT,
        zorder=4,
    )
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
            ax.add_patch(Rectangle((left, bottom), size, height, zorder=2.5, **look))
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
    name: str = "process",
) -> Axes:
    """Draw processes clockwise around (x, y), each with its chunks and an arrow to the next.

    `chunks` and `colors` have a row for each process, `sent` a text for each arrow.
    """
    count = len(chunks)
    text_width = max(_extent(str(chunk))[0] for row in chunks for chunk in row)
    size = max(text_width + PADDING, 0.3)
    first = math.pi if count == 2 else math.pi / 2
    angles = [first - 2 * math.pi * number / count for number in range(count)]
    places = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
    for number, (row, (left, middle)) in enumerate(zip(chunks, places, strict=True)):
        title = f"{name} {number}"
        width = max(len(row) * size, _extent(title)[0]) + 2 * PADDING
        box(ax, left, middle, color=None, width=width, height=0.68)
        note(ax, left, middle + 0.19, title)
        cells = [colors[number]] if colors else [[0] * len(row)]
        corner = left - len(row) * size / 2, middle + 0.06
        grid(ax, *corner, cells, texts=[row], size=size, height=0.3)
    for number in range(count):
        label = sent[number] if sent else ""
        arrow(ax, places[number], places[(number + 1) % count], label, bend=-0.12)
    return ax


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
    widths = [_extent(name)[0] + 2 * PADDING for name in names]
    height = max(_extent(name)[1] for name in names) + 2 * PADDING
    gap = (WIDTH - 0.2 - sum(widths)) / max(len(names) - 1, 1)
    if gap < 0.25:
        raise ValueError(f"{len(names)} steps are too wide: break their lines with \\n")
    gap = min(gap, 0.9)
    room = 0.75 if loop else 0.1
    canvas(ax, WIDTH, height + 0.1 + room, title=title)
    left = (WIDTH - sum(widths) - gap * (len(names) - 1)) / 2
    middles = []
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
        left += 0.24 + _extent(name)[0] + 0.3


def timeline(
    ax: Axes,
    rows: Mapping[str, Sequence[tuple[float, float, str, int | None]]],
    *,
    key: Mapping[str, int | None] | None = None,
    time: str = "time",
    title: str = "",
) -> Axes:
    """Draw a row of slots for each name; a slot is (start, length, text, colour).

    `key` says what the colours mean. Raises ValueError where a text is wider than its slot.
    """
    left = max(_extent(name)[0] for name in rows) + 0.2
    slots = [slot for row in rows.values() for slot in row]
    scale = (WIDTH - left - 0.1) / max(start + length for start, length, *_ in slots)
    bottom = 0.85 if key else 0.5
    canvas(ax, WIDTH, bottom + 0.4 * len(rows), title=title)
    for number, (name, row) in enumerate(rows.items()):
        y = bottom + 0.4 * (len(rows) - number) - 0.2
        note(ax, left - 0.1, y, name, align="right")
        for start, length, text, color in row:
            x = left + scale * (start + length / 2)
            box(ax, x, y, text, color=color, width=scale * length, height=0.32)
    arrow(ax, (left, bottom - 0.1), (WIDTH - 0.05, bottom - 0.1), time, below=True)
    if key:
        _legend(ax, key, left, 0.15)
    return ax


def bit_fields(
    ax: Axes,
    formats: Mapping[str, tuple[int, int, int]],
    *,
    title: str = "",
) -> Axes:
    """Draw the bits (sign, exponent, mantissa) of each format, all to one scale."""
    left = max(_extent(name)[0] for name in formats) + 0.2
    size = (WIDTH - left - 0.1) / max(sum(bits) for bits in formats.values())
    canvas(ax, WIDTH, 0.4 + 0.6 * len(formats), title=title)
    for number, (name, bits) in enumerate(formats.items()):
        top = 0.4 + 0.6 * (len(formats) - number) - 0.05
        note(ax, left - 0.1, top - 0.1, name, align="right")
        start = left
        for color, count in zip((1, 2, 0), bits, strict=True):
            if count:
                grid(ax, start, top, [[color] * count], size=size, height=0.22)
                note(ax, start + count * size / 2, top - 0.33, str(count))
            start += count * size
    _legend(ax, {"sign": 1, "exponent": 2, "mantissa": 0}, left, 0.15)
    return ax


def number_line(
    ax: Axes,
    values: Sequence[float],
    snapped: Sequence[float],
    ticks: Sequence[float],
    *,
    names: tuple[str, str] = ("values", "grid"),
    fmt: str = "g",
    title: str = "",
) -> Axes:
    """Draw values on a line, the ticks of a grid on another, and arrows from each value to
    the one that it is snapped to. Ticks whose numbers would touch go without.
    """
    left = max(_extent(name)[0] for name in names) + 0.5
    low, high = min(*values, *ticks), max(*values, *ticks)
    scale = (WIDTH - left - 0.4) / (high - low)
    canvas(ax, WIDTH, 1.7, title=title)
    for name, y in zip(names, (1.4, 0.55), strict=True):
        note(ax, left - 0.35, y, name, align="right")
        arrow(ax, (left - 0.2, y), (WIDTH - 0.1, y), style="-")
    end = -math.inf
    for tick in sorted(ticks):
        x, text = left + scale * (tick - low), format(tick, fmt)
        arrow(ax, (x, 0.45), (x, 0.65), style="-")
        if x - _extent(text)[0] / 2 > end + PADDING:
            note(ax, x, 0.25, text)
            end = x + _extent(text)[0] / 2
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
    levels: int = 12,
    title: str = "",
) -> Axes:
    """Draw contours of `heights` (y, x) and arrows (start, end, text, colour) upon them."""
    width, height = max(x) - min(x), max(y) - min(y)
    canvas(ax, width, height, origin=(min(x), min(y)), title=title)
    ax.contour(x, y, heights, levels, colors="0.7", linewidths=0.9)
    for start, end, text, color in arrows:
        arrow(ax, start, end, text, color=color)
    return ax
