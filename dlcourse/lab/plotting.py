"""Values in, Axes out: every figure of the course. Nothing is computed here.

Colours are Okabe and Ito's (2008), which readers with any common colour blindness can
tell apart; each line also has its own dash, so that the figures survive a grey printer.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))
STYLE: dict[Any, Any] = {
    "figure.dpi": 100,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.8,
    "image.cmap": "cividis",
}


def figure(
    columns: int = 1, width: float = 7.0, height: float = 3.4, **kwargs
) -> tuple[Figure, Any]:
    """Return (figure, axes) in the style of the course; `axes` is one Axes or an array."""
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(
            1, columns, figsize=(width, height), layout="constrained", **kwargs
        )
    return fig, axes


def show(fig: Figure, caption: str) -> None:
    """Display `fig` as a PNG with its caption below it, and close it.

    The caption says in a sentence what to see. It is also the picture's alternative text,
    for readers who do not see it. Raises ValueError where it has fewer than 20 characters.
    """
    if len(caption) < 20:
        raise ValueError(
            "say in the caption what the figure shows (20 characters or more)"
        )
    drawn, buffer = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(STYLE):
        fig.savefig(drawn, format="png", dpi=100)
    plt.close(fig)
    picture = Image.open(drawn).convert("RGB")
    # 256 colours do for a plot, in a third of the bytes
    picture = picture.quantize(256, dither=Image.Dither.NONE)
    picture.save(buffer, format="png", optimize=True)
    image = {
        "image/png": base64.b64encode(buffer.getvalue()).decode(),
        "text/plain": f"Figure: {caption}",
    }
    try:
        from IPython.display import display
    except ImportError:
        print(image["text/plain"])
        return
    display(image, raw=True, metadata={"image/png": {"alt": caption}})
    # JupyterLab and nbconvert show no alternative text, so it stands below as text, too
    below = {"text/markdown": f"*{caption}*", "text/plain": caption}
    display(below, raw=True)


def _label(ax: Axes, title: str, x: str, y: str) -> Axes:
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    return ax


def curves(
    ax: Axes,
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    *,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    title: str = "",
    xlabel: str = "update",
    ylabel: str = "loss",
    xscale: str = "linear",
    yscale: str = "linear",
    legend: bool = True,
) -> Axes:
    """Draw one line a name over `x`, with bands from low to high where given."""
    for number, (name, y) in enumerate(lines.items()):
        color, dash = COLORS[number % len(COLORS)], DASHES[number % len(DASHES)]
        ax.plot(x, y, color=color, linestyle=dash, label=name)
        if bands and name in bands:
            ax.fill_between(x, *bands[name], color=color, alpha=0.18, linewidth=0)
    ax.set_xscale(xscale)
    ax.set_yscale(yscale)
    if legend and len(lines) > 1:
        ax.legend(frameon=False)
    return _label(ax, title, xlabel, ylabel)


def paired_dots(
    ax: Axes,
    arms: Mapping[str, Sequence[float]],
    *,
    title: str = "",
    ylabel: str = "accuracy",
) -> Axes:
    """Draw a column of dots for each arm, and a thin line between the dots of one seed."""
    values = [np.asarray(v) for v in arms.values()]
    for row in zip(*values, strict=True):
        ax.plot(range(len(row)), row, color="0.75", linewidth=0.8, zorder=1)
    for number, column in enumerate(values):
        color = COLORS[number % len(COLORS)]
        ax.scatter([number] * len(column), column, color=color, s=24, zorder=2)
    ax.set_xticks(range(len(values)), list(arms))
    ax.set_xlim(-0.5, len(values) - 0.5)
    return _label(ax, title, "", ylabel)


def intervals(
    ax: Axes,
    rows: Mapping[str, tuple[float, float, float]],
    *,
    title: str = "",
    xlabel: str = "",
) -> Axes:
    """Draw a dot with its interval (mean, low, high) for each name, and a line at zero."""
    for number, (mean, low, high) in enumerate(rows.values()):
        ax.plot([low, high], [number, number], color=COLORS[0], linewidth=2)
        ax.plot(mean, number, "o", color=COLORS[0], markersize=5)
    ax.axvline(0, color="0.4", linewidth=1, linestyle=":")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    return _label(ax, title, xlabel, "")


def heat_map(
    ax: Axes,
    values,
    rows: Sequence,
    columns: Sequence,
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    fmt: str = ".2f",
    spread=None,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Draw `values` (rows, columns) as coloured cells with their numbers written in.

    `spread`, of the same shape, is written below each number with a plus-minus sign.
    `limits` are the ends of the colour scale: give all maps of a figure the same.
    """
    values = np.asarray(values)
    low, high = limits or (np.nanmin(values), np.nanmax(values))
    image = ax.imshow(values, aspect="auto", cmap="cividis", vmin=low, vmax=high)
    middle = (low + high) / 2
    for i, j in np.ndindex(values.shape):
        color = "white" if not values[i, j] > middle else "black"
        text = format(values[i, j], fmt)
        if spread is not None:
            text += f"\n\u00b1{format(np.asarray(spread)[i, j], fmt)}"
        ax.text(
            j,
            i,
            text,
            ha="center",
            va="center",
            color=color,
            fontsize=9,
        )
    ax.set_xticks(range(len(columns)), [str(c) for c in columns])
    ax.set_yticks(range(len(rows)), [str(r) for r in rows])
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax)
    return _label(ax, title, xlabel, ylabel)
