"""The chapters as their files are: title, promise, card, and what they may show."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import nbformat

from book.settings import ROOT
from dlcourse.workshop.plan import card_line, card_minutes

CARD = ("You will be able to", "Know first", "Minutes", "Seconds to run", "Hardware")
SHOWN = {"image/png", "text/html", "text/markdown", "text/plain"}
ACTIVE = re.compile(r"<\s*(script|iframe|object|embed|link|img)\b|https?://", re.I)
ZERO_WIDTH = "\u200b"  # marks measured numbers for nbval; a reader needs none of them


class BookError(Exception):
    """The book cannot be built from these files; the message says where and why."""


@dataclass(frozen=True)
class Chapter:
    """One notebook, and what its first cell says of it."""

    path: Path

    @property
    def stem(self) -> str:
        """Return the file's name without its ending, such as 04_gradient_clipping."""
        return self.path.stem

    @property
    def number(self) -> int:
        """Return the chapter's number."""
        return int(self.stem[:2])

    @property
    def technique(self) -> str:
        """Return the name of the technique, such as gradient_clipping."""
        return self.stem[3:]

    @property
    def is_lesson(self) -> bool:
        """Tell whether the chapter is one of the sixteen."""
        return 1 <= self.number <= 16

    @cached_property
    def book(self) -> nbformat.NotebookNode:
        """Return the notebook; it is the chapters' tests that validate it."""
        return nbformat.v4.reads(self.path.read_text("utf-8"))

    @property
    def opening(self) -> str:
        """Return the Markdown before the first section: title, promise and card."""
        source = self.book.cells[0].source
        return re.split(r"^## ", source, maxsplit=1, flags=re.MULTILINE)[0]

    @property
    def _title(self) -> re.Match:
        found = re.match(r"# (\d+) (.+?) \((.+)\)\n", self.opening + "\n")
        if not found:
            raise BookError(f"{self.path.name}: the title is not '# N Name (中文)'")
        return found

    @property
    def title(self) -> str:
        """Return the English title, without the number."""
        return self._title[2]

    @property
    def chinese(self) -> str:
        """Return the Chinese title."""
        return self._title[3]

    @property
    def promise(self) -> str:
        """Return the paragraph below the title."""
        below = self.opening.partition("\n")[2].strip()
        return " ".join(below.split("\n\n")[0].split())

    @property
    def card(self) -> dict[str, str]:
        """Return the lines of the card by their labels; raises BookError if one lacks."""
        lines = {label: card_line(self.opening, label) for label in CARD}
        lacking = [label for label, line in lines.items() if not line]
        if lacking:
            raise BookError(f"{self.path.name}: the card has no line {lacking[0]!r}")
        return lines

    @property
    def minutes(self) -> tuple[int, int]:
        """Return the minutes to read and run, and those for the exercises."""
        minutes = card_minutes(self.opening)
        if minutes is None:
            raise BookError(f"{self.path.name}: the card has no two numbers of minutes")
        return minutes

    def section(self, title: str) -> list[nbformat.NotebookNode]:
        """Return the Markdown of a section, cell by cell, without its heading."""
        parts, inside = [], False
        for cell in self.book.cells:
            if cell.cell_type != "markdown":
                continue
            for piece in re.split(r"^(?=## )", cell.source, flags=re.MULTILINE):
                if piece.startswith("## "):
                    heading, _, piece = piece.partition("\n")
                    inside = heading[3:].strip() == title
                if inside and piece.strip():
                    parts.append(piece)
        return parts


@cache
def chapters(root: Path = ROOT) -> list[Chapter]:
    """Return the notebooks of the course in their order."""
    paths = sorted((root / "chapters").glob("[0-9][0-9]_*.ipynb"))
    return [Chapter(path) for path in paths]


def seconds(root: Path = ROOT) -> dict[str, int]:
    """Return the measured seconds of each chapter, by the stem of its file."""
    return json.loads((root / "chapters" / "seconds.json").read_text("utf-8"))


def headings(book: nbformat.NotebookNode) -> list[str]:
    """Return the titles of the sections and subsections of a notebook."""
    return [
        title.strip()
        for cell in book.cells
        if cell.cell_type == "markdown"
        for title in re.findall(r"^#{2,3} (.+)$", cell.source, re.MULTILINE)
    ]


# --- what may be shown ------------------------------------------------------------------


def check_outputs(chapter: Chapter) -> list[str]:
    """Return what the site could not show, one line each with the cell's number."""
    problems = []
    for number, cell in enumerate(chapter.book.cells, 1):
        where = f"{chapter.path.name}, cell {number}"
        if cell.get("attachments"):
            problems.append(f"{where}: an attachment; draw it in a cell with show()")
        for place, output in enumerate(cell.get("outputs", ())):
            problems += [f"{where}: {text}" for text in _complaints(cell, output, place)]
    return problems


def _complaints(cell, output, place: int) -> list[str]:
    """Return what is wrong with one output."""
    if output.output_type == "error":
        expected = "raises-exception" in cell.metadata.get("tags", ())
        return [] if expected else ["an error that no tag expects"]
    if output.output_type == "stream":
        return []
    found = []
    strange = sorted(set(output.data) - SHOWN)
    if strange:
        found.append(f"an output of the kind {strange[0]}, which no page can show")
    if not output.data:
        found.append("an empty output; run the notebook again")
    if ACTIVE.search(str(output.data.get("text/html", ""))):
        found.append("HTML that loads or runs something; show text or a table")
    if "image/png" in output.data and not caption_of(cell, place):
        if output.metadata.get("image/png", {}).get("alt"):
            found.append(
                "the caption is not the alternative text; run the notebook again"
            )
        else:
            found.append('a figure without caption; use show(fig, caption="...")')
    return found


def caption_of(cell, place: int) -> str:
    """Return the caption of the picture at this place among the outputs of a cell, or ''.

    `dlcourse.lab.plotting.show` stores it twice: as the picture's alternative text, and
    as the next output, which is Markdown in italics. Both must be there and agree.
    """
    alt = cell.outputs[place].metadata.get("image/png", {}).get("alt", "")
    below = cell.outputs[place + 1] if place + 1 < len(cell.outputs) else {}
    text = below.get("data", {}).get("text/markdown", "")
    return alt if alt and text == f"*{alt}*" else ""


def captions(chapter: Chapter) -> list[str]:
    """Return the captions of a chapter's pictures, in their order."""
    return [
        caption_of(cell, place)
        for cell in chapter.book.cells
        for place, output in enumerate(cell.get("outputs", ()))
        if "image/png" in output.get("data", {})
    ]


def clean(chapter: Chapter) -> str:
    """Return the notebook as the pages show it: without the marks that nbval reads."""
    book = nbformat.from_dict(json.loads(json.dumps(chapter.book)))
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            if "text" in output:
                output.text = output.text.replace(ZERO_WIDTH, "")
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output.data[kind] = value.replace(ZERO_WIDTH, "")
    return nbformat.writes(book) + "\n"
