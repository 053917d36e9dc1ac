"""Each drawing of the chapters in small: its texts lie in the figure, and none touch."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch
from matplotlib.text import Text

from dlcourse.lab import diagrams
from dlcourse.lab.diagrams.shapes import extent
from dlcourse.lab.plotting import COLORS, STYLE, figure

PICTURES = os.environ.get("DLCOURSE_PICTURES")  # a folder for whoever wants to look


def faults(fig) -> list[str]:
    """Return what is wrong with the texts of a figure as it is drawn."""
    with matplotlib.rc_context(STYLE):
        fig.draw_without_rendering()
        children = [child for ax in fig.axes for child in ax.get_children()]
        texts = [child for child in children if isinstance(child, Text)]
        texts = [text for text in texts if text.get_text()]
        boxes = [text.get_window_extent() for text in texts]
    problems = []
    for text, where in zip(texts, boxes, strict=True):
        name = text.get_text()
        if text.get_fontsize() < 9:
            problems.append(f"{name!r} is smaller than 9 points")
        if where.x0 < 0 or where.y0 < 0:
            problems.append(f"{name!r} is cut off at the left or below")
        if where.x1 > fig.bbox.width or where.y1 > fig.bbox.height:
            problems.append(f"{name!r} is cut off at the right or above")
    for one, other in itertools.combinations(range(len(texts)), 2):
        if boxes[one].overlaps(boxes[other]):
            pair = texts[one].get_text(), texts[other].get_text()
            problems.append(f"{pair[0]!r} lies over {pair[1]!r}")
    return problems


def micro_batches(ax, count=8):
    """Chapter 11: gradients add up in one place, then one step."""
    diagrams.canvas(ax, 7, 2.6, title=f"{count} micro-batches, one step")
    pitch = 6.6 / count
    for number in range(count):
        x = 0.2 + pitch * (number + 0.5)
        diagrams.box(ax, x, 2.25, f"$m_{{{number + 1}}}$", color=5, width=0.5)
    diagrams.box(ax, 3.5, 1.1, "weight.grad\n(64, 128)", color=4, width=1.5)
    for number in range(count):
        x = 0.2 + pitch * (number + 0.5)
        diagrams.arrow(ax, (x, 2.25), (2.9 + 1.2 * (number + 0.5) / count, 1.3))
    diagrams.note(ax, 6.9, 1.5, "each backward() adds", align="right")
    diagrams.box(ax, 3.5, 0.25, "optimizer.step()", color=2)
    diagrams.arrow(ax, (3.5, 1.1), (3.5, 0.25), "once")
    return ax


def ring_of_three(ax):
    """Chapter 12: reduce-scatter, two of its moments."""
    diagrams.canvas(ax, 7, 2.5, title="reduce-scatter with three processes")
    start = [[1, 2, 3], [10, 20, 30], [100, 200, 300]]
    end = [[1, 222, 303], [11, 20, 333], [111, 220, 300]]
    done = [[None, 2, None], [None, None, 2], [2, None, None]]
    sent = ["1", "20", "300"]
    diagrams.ring(ax, 1.7, 1.0, start, sent=sent, radius=1.1)
    diagrams.ring(ax, 5.3, 1.0, end, colors=done, radius=1.1)
    return diagrams.arrow(ax, (3.1, 2.1), (3.9, 2.1), "2 sends")


def pipeline(ax, stages=4, batches=4):
    """Chapter 12: forward and backward passes of micro-batches through the stages."""
    rows = {}
    for stage in range(stages):
        slots = [(stage + batch, 1, str(batch), 5) for batch in range(batches)]
        first = batches + stages - 1 + 2 * (stages - 1 - stage)
        slots += [(first + 2 * batch, 2, str(batch), 1) for batch in range(batches)]
        rows[f"stage {stage}"] = slots
    key = {"forward": 5, "backward": 1}
    return diagrams.timeline(ax, rows, key=key, title=f"{stages} stages")


def zero_shards(ax, processes=4):
    """Chapter 12: what each process keeps."""
    height = 0.45 * processes + 0.5
    diagrams.canvas(ax, 7, height, title="ZeRO stage 2: who keeps what")
    kinds = {"parameters": 0, "gradients": 1, "optimizer state": 2}
    for process in range(processes):
        y = height - 0.45 - 0.45 * process
        diagrams.note(ax, 0.95, y - 0.15, f"process {process}", align="right")
        for number, color in enumerate(kinds.values()):
            kept = [color if number == 0 or s == process else None for s in range(4)]
            diagrams.grid(ax, 1.1 + 2 * number, y, [kept], size=0.3)
    for number, kind in enumerate(kinds):
        diagrams.note(ax, 1.1 + 2 * number, height - 0.2, kind, align="left")
    return ax


def bits(ax):
    """Chapter 15: four formats."""
    formats = {
        "fp32": (1, 8, 23),
        "bf16": (1, 8, 7),
        "fp16": (1, 5, 10),
        "fp8": (1, 4, 3),
    }
    return diagrams.bit_fields(ax, formats, title="bits of a number")


def who_looks(ax):
    """Chapter 1: which part of the data is read when."""
    rows = {
        "training": [(0, 6, "fit", 0), (7, 2, "fit again", 0)],
        "validation": [(1, 1, "look", 4), (3, 1, "look", 4), (5, 1, "look", 4)],
        "test": [(9.2, 0.8, "once", 1)],
    }
    return diagrams.timeline(ax, rows, title="who may look, and when")


def nested_folds(ax, outer=3):
    """Chapter 1: each outer fold has inner folds."""
    rows = {}
    for fold in range(outer):
        order = [1 if block == fold else 0 for block in range(outer)]
        names = {0: "inner folds", 1: "test"}
        rows[f"outer {fold + 1}"] = [(b, 0.97, names[c], c) for b, c in enumerate(order)]
    rows["inner"] = [(0, 0.97, "validate", 4)]
    rows["inner"] += [(block, 0.97, "fit", 0) for block in range(1, outer)]
    return diagrams.timeline(ax, rows, title="nested folds")


def snapping(ax, bits=3):
    """Chapter 9: weights and the numbers that a few bits can write."""
    half = 2 ** (bits - 1)
    ticks = [step / half for step in range(-half, half)]
    values = [-0.93, -0.66, -0.3, -0.05, 0.17, 0.44, 0.6]
    snapped = [min(ticks, key=lambda tick, v=value: abs(tick - v)) for value in values]
    names = ("weights", f"{bits}-bit grid")
    return diagrams.number_line(ax, values, snapped, ticks, names=names)


def distillation(ax):
    """Chapter 9: the student learns from the labels and from the teacher."""
    diagrams.canvas(ax, 7, 2.3, title="teacher and student")
    diagrams.box(ax, 0.6, 1.15, "images\n(32, 3, 8, 8)", color=None)
    diagrams.box(ax, 2.6, 1.9, "teacher\n(frozen)", color=4)
    diagrams.box(ax, 2.6, 0.4, "student", color=0, width=0.85, height=0.5)
    diagrams.box(ax, 5.9, 1.15, "loss", color=1, outline="circle")
    diagrams.arrow(ax, (0.6, 1.15), (2.6, 1.9))
    diagrams.arrow(ax, (0.6, 1.15), (2.6, 0.4))
    diagrams.arrow(ax, (2.6, 1.9), (5.9, 1.15), "soft targets")
    diagrams.arrow(ax, (2.6, 0.4), (5.9, 1.15), "logits", below=True)
    return diagrams.arrow(ax, (5.9, 1.15), (2.6, 0.4), "gradient", bend=-0.2)


def train_and_eval(ax):
    """Chapter 7: which statistics batch normalization uses."""
    diagrams.canvas(ax, 7, 2.4, title="batch normalization")
    diagrams.box(ax, 0.7, 1.2, "x\n(32, 64)", color=None)
    diagrams.box(ax, 2.3, 1.2, "mode", color=4, outline="circle")
    diagrams.box(ax, 4.3, 1.95, "mean and variance\nof the batch", color=0)
    diagrams.box(ax, 4.3, 0.45, "running mean\nand variance", color=2)
    diagrams.box(ax, 6.3, 1.2, "normalize", color=None)
    diagrams.arrow(ax, (0.7, 1.2), (2.3, 1.2))
    diagrams.arrow(ax, (2.3, 1.2), (4.3, 1.95), "train()", bend=-0.1)
    diagrams.arrow(ax, (2.3, 1.2), (4.3, 0.45), "eval()", bend=0.1)
    diagrams.arrow(ax, (4.3, 1.95), (4.3, 0.45), "update")
    diagrams.arrow(ax, (4.3, 1.95), (6.3, 1.2))
    return diagrams.arrow(ax, (4.3, 0.45), (6.3, 1.2))


def queue(ax):
    """Chapter 16: workers fill a queue, the trainer empties it."""
    diagrams.canvas(ax, 7, 1.7, title="prefetching")
    for number in range(2):
        diagrams.box(ax, 0.7, 1.25 - 0.7 * number, f"worker {number}", color=2)
    diagrams.box(ax, 3.5, 0.9, color=None, width=1.8, height=0.6)
    texts = [["b6", "b5", "b4", "b3"]]
    diagrams.grid(ax, 2.7, 1.1, [[4, 4, 4, 4]], texts=texts, size=0.4)
    diagrams.note(ax, 3.5, 1.35, "queue")
    diagrams.box(ax, 6.2, 0.9, "trainer", color=0)
    diagrams.arrow(ax, (0.7, 1.25), (3.5, 0.9), "put")
    diagrams.arrow(ax, (0.7, 0.55), (3.5, 0.9))
    diagrams.arrow(ax, (3.5, 0.9), (6.2, 0.9), "get")
    look = {"style": "|-|", "below": True}
    return diagrams.arrow(ax, (2.6, 0.4), (4.4, 0.4), "prefetch_factor × workers", **look)


def which_split(ax):
    """Chapter 1: a decision tree."""
    grouped = (
        "several examples\nof one person?",
        {"yes": "by group", "no": "stratified"},
    )
    root = (
        "does the order\nmatter?",
        {"yes": "by time:\nlast part is test", "no": grouped},
    )
    return diagrams.tree(ax, root, title="which split?")


def which_schedule(ax):
    """Chapter 14: a larger decision tree."""
    known = (
        "length known?",
        {"yes": "cosine or linear", "no": "warm-up, then\nconstant"},
    )
    noisy = ("validation noisy?", {"yes": "step by epoch", "no": "on plateau"})
    root = (
        "budget in\nupdates?",
        {"yes": known, "no": noisy, "unsure": "constant first"},
    )
    return diagrams.tree(ax, root, title="which schedule?")


def order_of_a_step(ax):
    """Chapter 11: the order of one update."""
    names = ["accumulate", "average", "unscale", "clip", "step"]
    colors = [0, 0, 4, 4, 2]
    return diagrams.steps(ax, names, colors=colors, loop="next batch", title="one update")


def sharpness(ax):
    """Chapter 3: the two gradients of SAM."""
    x, y = np.linspace(-3.5, 3.5, 71), np.linspace(-1.2, 1.6, 57)
    heights = x[None, :] ** 2 / 6 + y[:, None] ** 2
    arrows = [
        ((-2.5, 0.5), (-2.9, 1.15), "climb", 1),
        ((-2.5, 0.5), (-1.9, -0.8), "step by the gradient\nat the upper end", 0),
    ]
    return diagrams.landscape(ax, x, y, heights, arrows, title="SAM")


DRAWINGS = (
    micro_batches,
    ring_of_three,
    pipeline,
    zero_shards,
    bits,
    who_looks,
    nested_folds,
    snapping,
    distillation,
    train_and_eval,
    queue,
    which_split,
    which_schedule,
    order_of_a_step,
    sharpness,
)


@pytest.mark.parametrize("width", [7.0, 12.0])
@pytest.mark.parametrize("draw", DRAWINGS, ids=lambda draw: draw.__name__)
def test_texts_of_a_drawing_lie_inside_and_apart(draw, width):
    fig, ax = figure(width=width)
    assert draw(ax) is ax
    assert faults(fig) == []
    assert fig.get_facecolor() == (1, 1, 1, 1)
    if PICTURES and width == 7.0:
        with matplotlib.rc_context(STYLE):
            fig.savefig(Path(PICTURES) / f"{draw.__name__}.png", dpi=100)
    plt.close(fig)


@pytest.mark.parametrize("count", [2, 5, 12])
def test_other_numbers_of_parts_fit_as_well(count):
    names = ["a", "b", "c", "d", "e", "f", "g", "h"]
    calls = [
        lambda ax: micro_batches(ax, count),
        lambda ax: pipeline(ax, min(count, 6), min(count, 8)),
        lambda ax: zero_shards(ax, count),
        lambda ax: nested_folds(ax, min(count, 6)),
        lambda ax: snapping(ax, min(count, 5)),
        lambda ax: diagrams.steps(ax, names[:count]),
    ]
    for call in calls:
        fig, ax = figure()
        call(ax)
        assert faults(fig) == []
        plt.close(fig)


@pytest.mark.parametrize("count, radius", [(2, 0.9), (3, 1.1), (4, 1.5), (5, 1.8)])
def test_rings_of_several_sizes(count, radius):
    fig, ax = figure()
    diagrams.canvas(ax, 7, 2 * radius + 1.2)
    chunks = [
        [10 * process + chunk for chunk in range(count)] for process in range(count)
    ]
    sent = [f"c{process}" for process in range(count)]
    diagrams.ring(ax, 3.5, radius + 0.6, chunks, sent=sent, radius=radius)
    assert faults(fig) == []
    assert (
        len([patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)])
        == count
    )
    plt.close(fig)


def test_texts_are_as_large_as_measured_without_a_renderer():
    for text in ("accumulate", "weight\n(64, 3, 3, 3)", "$w + \\epsilon$", "0"):
        fig, ax = figure()
        diagrams.note(diagrams.canvas(ax), 3, 1, text)
        drawn = ax.texts[0].get_window_extent(fig.canvas.get_renderer())
        width, height = extent(text)
        assert abs(width - drawn.width / 100) < 0.05
        assert drawn.height / 100 < height + 0.02
        plt.close(fig)


def test_an_arrow_ends_at_the_smallest_box_around_its_end():
    fig, ax = figure()
    diagrams.canvas(ax)
    diagrams.box(ax, 1, 1, width=1.6, height=1.6)
    diagrams.box(ax, 1, 1, "inner", outline="circle")
    inner = ax.patches[-1]
    diagrams.box(ax, 5, 1, "right")
    right = ax.patches[-1]
    diagrams.arrow(ax, (1, 1), (5, 1))
    line = ax.patches[-1]
    assert line.patchA is inner and line.patchB is right
    diagrams.arrow(ax, (3, 2), (5, 2))
    assert ax.patches[-1].patchA is None and ax.patches[-1].patchB is None
    plt.close(fig)


def test_black_text_on_every_colour_has_a_strong_contrast():
    """WCAG asks for a ratio of 7 at its strictest level."""
    fig, ax = figure()
    diagrams.canvas(ax)
    diagrams.grid(ax, 0, 1, [[*range(len(COLORS)), None]])
    for patch in ax.patches:
        red, green, blue = (part**2.2 for part in patch.get_facecolor()[:3])
        luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        assert (luminance + 0.05) / 0.05 > 7
    plt.close(fig)


def test_a_sheet_alone_in_a_subfigure_leaves_the_height_as_it_is():
    whole = plt.figure(figsize=(7, 3))
    left, _ = whole.subfigures(1, 2)
    ax = left.subplots()
    assert diagrams.canvas(ax, 3.5, 2) is ax
    assert whole.get_figheight() == 3
    plt.close(whole)


def test_a_sheet_alone_sets_the_height_of_its_figure_and_one_of_two_does_not():
    fig, ax = figure(height=9)
    diagrams.canvas(ax, 7, 2)
    assert fig.get_figheight() < 2.2
    other, axes = figure(2, height=2.5)
    diagrams.canvas(axes[0], 3.5, 2)
    assert other.get_figheight() == 2.5
    plt.close(fig)
    plt.close(other)


def test_what_does_not_fit_is_refused():
    fig, ax = figure()
    with pytest.raises(ValueError, match="does not fit its box"):
        diagrams.box(ax, 1, 1, "a long text", width=0.4)
    diagrams.box(diagrams.canvas(ax), 1, 1, "both ends are in here")
    with pytest.raises(ValueError, match="move them apart"):
        diagrams.arrow(ax, (0.9, 1), (1.1, 1), "text")
    with pytest.raises(ValueError, match="outline must be one of"):
        diagrams.box(ax, 1, 1, "a", outline="star")
    with pytest.raises(ValueError, match="too wide"):
        diagrams.steps(ax, ["a rather long name of a step"] * 4)
    with pytest.raises(ValueError, match="tree is too wide"):
        diagrams.tree(ax, ("a long question " * 5, {"yes": "a", "no": "b" * 30}))
    with pytest.raises(ValueError, match="does not fit its box"):
        diagrams.timeline(ax, {"row": [(0, 1, "a text too long", 0), (1, 99, "", 1)]})
    plt.close(fig)
