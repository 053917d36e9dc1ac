"""The sixteen chapters in one table: what each asks, how long it takes, and one result.

Titles, minutes and what helps come from the chapters' first cells, the values from the
claims among their stored outputs. Only the words around the values stand here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dlcourse.lab.claims import LINE
from dlcourse.workshop import plan, reading

# The columns of the map of chapters, by number.
COLUMNS = {
    "measure": [1, 2],
    "the data": [10, 16],
    "the network": [3, 5, 6, 7, 9],
    "the updates": [8, 13, 14, 4],
    "the machine": [11, 12, 15],
}
NOT_STORED = "(run the chapter)"
CLAIM = r"\{(.+?)\}"  # in a result


@dataclass(frozen=True)
class Entry:
    """A chapter's question, and one result.

    In braces stand sentences of the chapter's claims, in whose place come the values.
    """

    question: str
    result: str

    @property
    def claims(self) -> list[str]:
        """Return these sentences."""
        return re.findall(CLAIM, self.result)


ENTRIES = {
    "data_splitting": Entry(
        "Does a score hold for what is new?",
        "tested on rows of writers whose other rows it had learned, a network promised "
        "{shuffled minus truth} more accuracy than it had with new writers",
    ),
    "hyperparameter_tuning": Entry(
        "How do I choose settings, and compare fairly?",
        "momentum gained {gain of momentum at the used rate} of accuracy at one rate, "
        "and nothing sure ({gain of momentum, each at its best rate}) with the rate "
        "tuned for both",
    ),
    "regularization": Entry(
        "What stops a network from learning wrong labels?",
        "three methods at once gained {three at once: gain at 0.006} of accuracy at a "
        "rate too high, and little ({three at once: gain}) at the best rates",
    ),
    "gradient_clipping": Entry(
        "How do I stop gradients that explode?",
        "of 5 runs at a high rate {unclipped: dead runs of 5} died without clipping, "
        "{clipped: dead runs of 5} with it",
    ),
    "initialization": Entry(
        "From which weights does a deep network learn?",
        "in eight layers, weights scaled by the width gained "
        "{8 layers: the rule's gain} of accuracy over PyTorch's start",
    ),
    "activations": Entry(
        "Which function between the layers?",
        "a start fitted to tanh gained {tanh: accuracy gained} of accuracy over "
        "PyTorch's; in residual blocks SwiGLU gained {half inverted: SwiGLU over GELU} "
        "over GELU, where images needed the blocks",
    ),
    "batch_normalization": Entry(
        "When does batch norm help, and when does it hurt?",
        "its lead in accuracy over layer norm: {16 images: difference} with 16 images a "
        "batch, {2 images: difference} with 2",
    ),
    "learning_rate_decay": Entry(
        "Which learning rate, and should it fall?",
        "there is a cliff: doubling the rate from 0.64 to 1.28 cost "
        "{rate 0.64: accuracy above that of 1.28} of accuracy",
    ),
    "model_compression": Entry(
        "How small may a trained network be?",
        "4 bits a weight in place of 32, with a scale for each row, cost "
        "{4 bits, a row: accuracy lost} of accuracy",
    ),
    "data_augmentation": Entry(
        "Which random changes of the images help?",
        "small turns, shifts and scalings lost {the shortest run: affine loses} of "
        "accuracy in a short run, and gained {the longest run: affine gains} in a long "
        "one",
    ),
    "gradient_accumulation": Entry(
        "How do I train with a batch that does not fit?",
        "a batch in sixteen parts took {activations, at once over accumulated} times "
        "less memory for activations, and gave the same curve",
    ),
    "parallelism": Entry(
        "How do several processes train one model?",
        "`fully_shard` divides the memory over the processes, and sent "
        "{sent by fully_shard over DDP} times what DDP sends",
    ),
    "warmup": Entry(
        "Why begin with a small rate, and for how long?",
        "ten updates of it gained {at rate 0.2: 10 updates gain} of accuracy at a high "
        "rate, and nothing sure ({each at its best rate: 10 updates gain}) with each "
        "rate tuned",
    ),
    "lr_schedulers": Entry(
        "Which shape should the rate follow?",
        "a rate that falls to 0 in a line changed the loss of a constant rate by "
        "{best peaks: linear to 0 minus constant}, each at its best",
    ),
    "mixed_precision": Entry(
        "What may be computed in 16 bits?",
        "autocast changed nothing that shows "
        "({best rates: accuracy gained with autocast}); all in bfloat16 lost "
        "{lowest rate: accuracy lost with all in bfloat16} at a low rate",
    ),
    "data_loading": Entry(
        "In which order, and how fast, do samples arrive?",
        "images read in the order in which they are stored, class by class, cost "
        "{lost: as stored} of accuracy",
    ),
}


def claims_in(book) -> dict[str, str]:
    """Return the values of the claims that hold in a notebook's outputs, by sentence."""
    found: dict[str, str] = {}
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            for line in LINE.finditer(str(output.get("text", ""))):
                found.setdefault(line["sentence"], line["value"])
    return found


def result_of(entry: Entry, values: Mapping[str, str]) -> str:
    """Return a chapter's result with its values; one that is not stored says so.

    Each value stands between marks, so that a rerun of its chapter breaks no test.
    """
    from dlcourse.lab.tables import measured

    def shown(claim: re.Match) -> str:
        value = values.get(claim[1])
        return measured(NOT_STORED if value is None else f"{round(float(value), 3):g}")

    return re.sub(CLAIM, shown, entry.result)


def chapter_table(folder: Path = reading.CHAPTERS) -> str:
    """Return the table of the chapters in a folder, as Markdown with links.

    Guides and chapters that have no entry here are passed over.
    """
    lines = [
        "| Chapter | It asks | Minutes | Helps before | One result |",
        "| --- | --- | --- | --- | --- |",
    ]
    for chapter in plan.read_chapters(folder):
        entry = ENTRIES.get(chapter.name)
        if entry is None:
            continue
        cells = [
            f"[{chapter.number} {chapter.title}]({chapter.path.name})",
            entry.question,
            f"{chapter.reading} + {chapter.exercises}",
            ", ".join(map(str, chapter.better_after)),
            result_of(entry, claims_in(reading.load_book(chapter.path))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def show_chapters(folder: Path = reading.CHAPTERS) -> None:
    """Show that table under a cell, with links that open the chapters."""
    from IPython.display import display

    text = chapter_table(folder)
    display({"text/markdown": text, "text/plain": text}, raw=True)
