"""The timed plan of a workshop, from the minutes on the chapters' cards."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dlcourse.workshop import reading

# Which chapters come first where not all fit: those on which the results of others rest.
PRIORITY = (
    "start_here",
    "data_splitting",  # every score rests on the split
    "learning_rate_decay",  # the setting that matters most; 13 and 14 build on it
    "regularization",
    "gradient_clipping",
    "initialization",
    "batch_normalization",
    "data_augmentation",
    "warmup",
    "lr_schedulers",
    "activations",
    "gradient_accumulation",
    "hyperparameter_tuning",
    "mixed_precision",
    "data_loading",
    "parallelism",
    "model_compression",
    "your_own_run",  # takes the techniques together
)
HALF_DAY, DAY = 210, 480  # minutes
START_UP, QUESTIONS, CLOSING, BREAK, LUNCH = 15, 10, 10, 15, 60
REST_AFTER = 60  # between chapters, a break follows so many minutes of work ...
WORK = 105  # ... and none is longer than this without one
LUNCH_FROM, LUNCH_BY = 165, 255  # minutes from the start of the day
PIECE = 75  # a longer part of a chapter is divided
ASSUMED = (45, 30)  # to read, for the exercises, where a card does not say


class Failure(Exception):
    """The folder could not be made; the message says what to do."""


# --- the chapters ---


@dataclass(frozen=True)
class Chapter:
    """A chapter's file, title and minutes, and the numbers of those to be read before."""

    path: Path
    title: str
    reading: int
    exercises: int
    helped_by: frozenset[int] = frozenset()  # its card names them
    assumed: bool = False

    @property
    def number(self) -> int:
        """Return the number in the file's name."""
        return int(self.path.stem[:2])

    @property
    def name(self) -> str:
        """Return the technique."""
        return self.path.stem[3:]

    @property
    def minutes(self) -> int:
        """Return the minutes of reading and exercises together."""
        return self.reading + self.exercises

    @property
    def label(self) -> str:
        """Return number and title."""
        return f"{self.number:02d} {self.title}"

    @property
    def better_after(self) -> list[int]:
        """Return the numbers of the other chapters that help."""
        return sorted(self.helped_by - {self.number})


def card_line(text: str, label: str) -> str:
    """Return the text after a label of a chapter's card, or ""."""
    found = re.search(rf"^- \*\*{label}:?\*\*(.*)$", text, re.M)
    return found[1].strip() if found else ""


def card_minutes(text: str) -> tuple[int, int] | None:
    """Return a card's minutes to read and run, and for the exercises; None without two.

    Between them may stand what is for a second visit ("5 more for *Deeper*").
    """
    numbers = [int(n) for n in re.findall(r"\d+", card_line(text, "Minutes"))]
    return (numbers[0], numbers[-1]) if len(numbers) >= 2 else None


def helpers_on(text: str) -> set[int]:
    """Return the chapters that "Know first" recommends: `(chapter 1)`, or `chapter 4
    helps`.

    Those that it calls not needed are left out, and so are those that it only points to.

    >>> sorted(helpers_on("splits (chapter 1); chapters 7 and 8 help. Chapter 9 is not needed."))
    [1, 7, 8]
    >>> sorted(helpers_on("Chapters 11 (sums) and 15 (bf16) help."))
    [11, 15]
    """
    found = set()
    for sentence in re.split(r"[.;](?:\s|$)", text):
        sentence = re.sub(r"(\d) \((?!chapter)[^)]*\)", r"\1", sentence)  # 15 (bf16)
        helps = re.search(r"\(chapters? |\bhelps?\b|\bneed|\bfrom chapters? ", sentence)
        if helps and "not needed" not in sentence:
            named = re.findall(r"[Cc]hapters?((?:\W+(?:and\W+|to\W+)?\d+)+)", sentence)
            found |= {int(number) for number in re.findall(r"\d+", " ".join(named))}
    return found


def read_chapters(folder: Path) -> list[Chapter]:
    """Return the chapters of a folder by number; raise Failure where one cannot be read.

    In the course's own folder a reader's notebooks beside the chapters are passed over.
    """
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if folder.resolve() == reading.CHAPTERS.resolve():
        names = reading.techniques() | set(reading.GUIDES)
        paths = [path for path in paths if path.stem[3:] in names]
    return [read_chapter(path) for path in paths]


def read_chapter(path: Path) -> Chapter:
    """Return what a notebook's first cells say; raise Failure where it is none."""
    try:
        cells = reading.load_book(path).cells[:2]
    except reading.Unreadable as error:
        raise Failure(f"{path} {error}") from None
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    title = re.search(r"^# +\d+ +(.*?)(?: \(.*)?$", text, re.M)
    minutes = card_minutes(text)
    return Chapter(
        path,
        title[1] if title else path.stem[3:].replace("_", " "),
        *(minutes or ASSUMED),
        helped_by=frozenset(helpers_on(card_line(text, "Know first"))),
        assumed=minutes is None,
    )


# --- the plan ---


@dataclass(frozen=True)
class Slot:
    """A part of a day: its start (minutes from midnight), its minutes, and what it is."""

    start: int
    minutes: int
    what: str


def priority(chapter: Chapter) -> tuple[int, int]:
    """Return the rank of a chapter; one that PRIORITY does not name comes last."""
    known = chapter.name in PRIORITY
    return (PRIORITY.index(chapter.name) if known else len(PRIORITY), chapter.number)


def in_order(chapters: list[Chapter]) -> list[Chapter]:
    """Return chapters in the order of reading: after those that help, by priority.

    Where cards recommend each other in a circle, the one of first priority begins.
    """
    left, ordered = sorted(chapters, key=priority), []
    while left:
        numbers = {chapter.number for chapter in left}
        ready = [c for c in left if numbers.isdisjoint(c.better_after)] or left
        ordered.append(ready[0])
        left.remove(ready[0])
    return ordered


class Day:
    """The slots of one day, from `start` (minutes from midnight), never over its length.

    `worked`: the minutes since the last break; `lunch`: whether it was, or is not due.
    """

    def __init__(self, start: int, length: int, first: tuple[int, str]) -> None:
        self.start, self.length, self.now = start, length, start
        self.slots: list[Slot] = []
        self.worked, self.lunch = 0, length <= HALF_DAY
        self._add(*first)

    def _add(self, minutes: int, what: str) -> None:
        """Append a slot of work."""
        self.slots.append(Slot(self.now, minutes, what))
        self.now += minutes
        self.worked += minutes

    def _rest(self, minutes: int, between: bool) -> None:
        """Append a break or lunch where one is due before work of so many minutes."""
        elapsed = self.now - self.start
        hungry = between and elapsed >= LUNCH_FROM
        tired = between and self.worked >= REST_AFTER
        if not self.lunch and (hungry or elapsed + minutes > max(LUNCH_BY, minutes)):
            self._add(LUNCH, "Lunch" if 660 <= self.now <= 870 else "Long break")
            self.lunch, self.worked = True, 0
        elif self.worked and (tired or self.worked + minutes > WORK):
            self._add(BREAK, "Break")
            self.worked = 0

    def try_to_add(self, chapter: Chapter) -> bool:
        """Append a chapter; where it does not fit, leave the day alone, and say False."""
        before = {**vars(self), "slots": self.slots[:]}
        between = True
        for minutes, what in (
            (chapter.reading, "read and run"),
            (chapter.exercises, "exercises"),
        ):
            pieces = max(1, -(-minutes // PIECE))
            for piece in range(pieces):
                part = f", part {piece + 1} of {pieces}" if pieces > 1 else ""
                size = minutes // pieces + (piece < minutes % pieces)
                if size:
                    self._rest(size, between)
                    self._add(size, f"{chapter.label}: {what}{part}")
                between = False
        if self.now + CLOSING <= self.start + self.length:
            return True
        vars(self).update(before)
        return False

    def close(self) -> None:
        """Append the last slot."""
        self._add(CLOSING, "Closing: save, hand in, what to remember")


def lay_out(
    chapters: list[Chapter], start: int, days: int, length: int
) -> list[Day] | None:
    """Return the days on which the chapters are read, None where they do not fit.

    They come in this order, and no chapter is divided between two days.
    """
    laid = [Day(start, length, (START_UP, "Start-up: open JupyterLab, run the doctor"))]
    for chapter in chapters:
        if laid[-1].try_to_add(chapter):
            continue
        laid.append(Day(start, length, (QUESTIONS, "Questions about the day before")))
        if len(laid) > days or not laid[-1].try_to_add(chapter):
            return None
    for day in laid:
        day.close()
    return laid


def fit(
    chapters: list[Chapter], start: int, days: int, length: int, chosen: bool
) -> tuple[list[Day], list[Chapter]]:
    """Return the days, and the chapters left out.

    Without a choice of the teacher's, chapters are taken by priority and put in the order
    of reading; with one, they are taken and put in the order given.
    """
    if not chosen:
        chapters = sorted(chapters, key=priority)
    taken, left = [], []
    best = lay_out([], start, days, length) or []
    for chapter in chapters:
        trial = [*taken, chapter] if chosen else in_order([*taken, chapter])
        laid = lay_out(trial, start, days, length)
        if laid is None:
            left.append(chapter)
        else:
            taken, best = trial, laid
    return best, left


# --- the text ---


def clock(minutes: int) -> str:
    """Return minutes from midnight as a time of day.

    >>> clock(545)
    '09:05'
    """
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def plan_of(
    title: str, chapters: list[Chapter], start: int, days: int, length: int, chosen: bool
) -> list[str]:
    """Return the paragraphs of one plan."""
    text = [f"## {title}"]
    if start + length > 24 * 60:
        latest = clock(24 * 60 - length)
        late = f"Not from {clock(start)}: it would end after midnight."
        return [*text, f"{late} Start by {latest}."]
    laid, left = fit(chapters, start, days, length, chosen)
    for number, day in enumerate(laid, 1):
        if days > 1:
            text.append(f"### Day {number}")
        rows = ["| from | to | minutes | |", "| --- | --- | ---: | --- |"]
        for slot in day.slots:
            times = f"{clock(slot.start)} | {clock(slot.start + slot.minutes)}"
            rows.append(f"| {times} | {slot.minutes} | {slot.what} |")
        text.append("\n".join(rows))
        end = start + length
        if day.now < end:
            text.append(f"Free until {clock(end)}: {end - day.now} minutes.")
    if len(laid) < days:
        text.append(f"{len(laid)} of {days} days are enough.")
    names = ", ".join(f"{chapter.label} ({chapter.minutes} min)" for chapter in left)
    left_out = f"Left out for want of time: {names}."
    return [*text, left_out if left else "Nothing is left out."]


def plan(chapters: list[Chapter], start: int, chosen: bool) -> str:
    """Return PLAN.md: the chapters with their minutes, and the plans of three lengths."""
    ranked = sorted(chapters, key=priority)
    rows = [
        "| chapter | read and run | exercises | in all | better after |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    if not chosen:
        rows = [rows[0] + " priority |", rows[1] + " ---: |"]
    for chapter in chapters if chosen else in_order(chapters):
        minutes = f"{chapter.reading} | {chapter.exercises} | {chapter.minutes}"
        after = ", ".join(f"{number:02d}" for number in chapter.better_after)
        rank = "" if chosen else f" {ranked.index(chapter) + 1} |"
        rows.append(f"| {chapter.label} | {minutes} | {after} |{rank}")
    text = [
        "# Plan of the workshop",
        "For teachers. The minutes are those on the chapters' cards.",
        "\n".join(rows),
    ]
    names = ", ".join(chapter.label for chapter in chapters if chapter.assumed)
    if names:
        assumed = f"{ASSUMED[0]} and {ASSUMED[1]} assumed"
        text.append(f"No minutes on the card, {assumed}: {names}.")
    text += plan_of("Half a day", chapters, start, 1, HALF_DAY, chosen)
    text += plan_of("One day", chapters, start, 1, DAY, chosen)
    text += plan_of("Two days", chapters, start, 2, DAY, chosen)
    text += [
        "## Afterwards",
        "Put the folders that were handed in into one folder, then:",
        "    dlcourse-check HANDED_IN --csv results.csv",
        "It runs the participants' code with your rights, and is no sandbox.",
    ]
    return "\n\n".join(text) + "\n"
