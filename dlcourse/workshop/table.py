"""What the check tells: one row an exercise, as a report and as a CSV."""

from __future__ import annotations

import contextlib
import csv
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dlcourse.workshop.reading import Misuse

VERDICTS = ("pass", "hint", "not started", "error", "time-out")
COLUMNS = ("participant", "chapter", "exercise", "question", "verdict", "hint", "seconds")
LONGEST = 500  # characters of a hint
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@dataclass(frozen=True)
class Row:
    """One exercise of one participant; without a number, a notebook nobody can check."""

    participant: str
    chapter: str
    exercise: int | str
    question: str
    verdict: str
    hint: str = ""
    seconds: float = 0.0


def short(question: str) -> str:
    """Return the first words of a question: `Write f(x): ...` gives `Write f(x)`."""
    return one_line(question.split(":")[0], 70)


def one_line(text: object, longest: int = LONGEST) -> str:
    """Return a text in one line, without control characters, cut at `longest`."""
    clean = "".join(c if c.isprintable() else " " for c in str(text))
    clean = " ".join(clean.split())
    return clean if len(clean) <= longest else clean[: longest - 1].rstrip() + "…"


def safe(value: object) -> str:
    """Return a cell of the CSV that no spreadsheet takes for a formula."""
    text = f"{value:.1f}" if isinstance(value, float) else one_line(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def width(text: str) -> int:
    """Return the columns that a text takes in a terminal."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def aligned(rows: list[list[str]]) -> list[str]:
    """Return rows of text as lines with aligned columns; rows may differ in length."""
    widths: dict[int, int] = {}
    for row in rows:
        for column, text in enumerate(row):
            widths[column] = max(width(text), widths.get(column, 0))
    lines = []
    for row in rows:
        padded = [text + " " * (widths[n] - width(text)) for n, text in enumerate(row)]
        lines.append("  ".join(padded).rstrip())
    return lines


def counted(rows: list[Row]) -> str:
    """Return how many exercises passed, what became of the others, and of notebooks."""
    by = Counter(row.verdict for row in rows if row.exercise)
    others = [f"{by[verdict]} {verdict}" for verdict in VERDICTS[1:] if by[verdict]]
    text = f"{by['pass']} of {by.total()} passed"
    if others:
        text += f" ({', '.join(others)})"
    unread = len(rows) - by.total()
    if unread:
        text += f"; {unread} notebook{'s' * (unread > 1)} could not be checked"
    return text


def grouped(rows: list[Row], key: Callable[[Row], tuple]) -> dict[tuple, list[Row]]:
    """Return rows by key, in the order of the rows."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def report(batches: list[list[Row]]) -> str:
    """Return a line a notebook, the hints, totals by participant and by exercise."""
    rows = [row for batch in batches for row in batch]
    numbers = [row.exercise for row in rows if isinstance(row.exercise, int)]
    head = ["participant", "chapter", *map(str, range(1, max(numbers, default=0) + 1))]
    overview, hints = [head], []
    for batch in filter(None, batches):
        name = [one_line(batch[0].participant, 40), one_line(batch[0].chapter, 40)]
        overview.append([*name, *(row.verdict for row in batch)])
        for row in batch:
            told = [str(row.exercise), row.verdict, one_line(row.hint, 110)]
            hints += [[*name, *told]] if row.hint else []
    people = []
    for (person,), group in grouped(rows, lambda row: (row.participant,)).items():
        people.append([one_line(person, 40), counted(group)])
    exercises = []
    asked = [row for row in rows if row.exercise]
    groups = grouped(asked, lambda row: (row.chapter, row.exercise, row.question))
    for (chapter, number, question), group in sorted(groups.items()):
        line = [f"{chapter} {number}", counted(group), one_line(question, 50)]
        said = Counter(row.hint for row in group if row.verdict == "hint").most_common(1)
        exercises.append([*line, *(f"most often: {one_line(h, 70)}" for h, _ in said)])
    lines = aligned(overview)
    titles = ("What the checks say", "By participant", "By exercise")
    for title, part in zip(titles, (hints, people, exercises), strict=True):
        lines += ["", title, *aligned(part)] if part else []
    return "\n".join(lines)


@contextlib.contextmanager
def writer(path: Path | None) -> Iterator[Callable[[list[Row]], None]]:
    """Give a function that appends rows to the CSV at `path`, if there is a path."""
    if path is None:
        yield lambda rows: None
        return
    if path.suffix == ".ipynb" or path.is_dir():
        raise Misuse(
            f"--csv {path} would not be a table; give a name such as results.csv"
        )
    try:
        file = open(path, "w", encoding="utf-8-sig", newline="")
    except OSError as error:
        raise Misuse(
            f"cannot write {path} ({error.strerror}); choose another --csv"
        ) from None
    with file:
        out = csv.writer(file)
        out.writerow(COLUMNS)

        def write(rows: list[Row]) -> None:
            out.writerows([safe(getattr(row, name)) for name in COLUMNS] for row in rows)
            file.flush()

        yield write
