"""Make a folder for a workshop: `python -m dlcourse.handout OUT --chapters 04 11`.

OUT gets copies of the chapters without the outputs of the exercises and without
solutions, a README.md for participants, and a PLAN.md for teachers: timed plans of half a
day, one day and two days, made from the minutes on the chapters' cards. The plan is
printed too.

Exit codes: 0 where the folder is written, 1 for a failure, 2 for misuse.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dlcourse.check import (
    GUIDES,
    ROOT,
    Book,
    Misuse,
    Parser,
    Unreadable,
    cells_of,
    joined,
    load_book,
    plain,
    section,
)

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
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
HALF_DAY, DAY = 210, 480  # minutes
START_UP, QUESTIONS, CLOSING, BREAK, LUNCH = 15, 10, 10, 15, 60
REST_AFTER = 60  # between chapters, a break follows so many minutes of work ...
WORK = 105  # ... and none is longer than this without one
LUNCH_FROM, LUNCH_BY = 165, 255  # minutes from the start of the day
PIECE = 75  # a longer part of a chapter is divided
ASSUMED = (45, 30)  # to read, for the exercises, where a card does not say


class Failure(Exception):
    """The folder could not be made; the message says what to do."""


# --- the chapters ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chapter:
    """A chapter's file, its title, its minutes, and the numbers of those to be read
    before it.
    """

    path: Path
    title: str
    reading: int
    exercises: int
    needs: frozenset[int] = frozenset()  # it imports their modules
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


def find_folder(given: Path | None) -> Path:
    """Return the folder of chapters: the given one, or the one beside the package.

    Raises Misuse where it does not exist or holds no chapters.
    """
    folder = given or ROOT / "chapters"
    if next(folder.glob("[0-9][0-9]_*.ipynb"), None):
        return folder
    if given:
        raise Misuse(
            f"--from {given} holds no chapters such as 04_gradient_clipping.ipynb"
        )
    raise Misuse(
        f"no chapters in {folder}; name the folder that holds them with --from DIR"
    )


def card_line(text: str, label: str) -> str:
    """Return the text after a label of a chapter's card, or ""."""
    found = re.search(rf"^- \*\*{label}:?\*\*(.*)$", text, re.M)
    return found[1].strip() if found else ""


def helpers_on(text: str) -> set[int]:
    """Return the chapters that "Know first" recommends: `(chapter 1)`, or `chapter 4
    helps`.

    Those that it calls not needed are left out, and so are those that it only points to.

    >>> sorted(helpers_on("splits (chapter 1); chapters 7 and 8 help. Chapter 9 is not needed."))
    [1, 7, 8]
    """
    found = set()
    for sentence in re.split(r"[.;](?:\s|$)", text):
        if "not needed" in sentence:
            continue
        if re.search(r"\(chapters? |\bhelps?\b|\bneed|\bfrom chapters? ", sentence):
            for numbers in re.findall(
                r"[Cc]hapters?((?:\W+(?:and\W+|to\W+)?\d+)+)", sentence
            ):
                found |= {int(number) for number in re.findall(r"\d+", numbers)}
    return found


def read_chapters(folder: Path) -> list[Chapter]:
    """Return the chapters of a folder by number; raise Failure where one cannot be read."""
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    number = {path.stem[3:]: int(path.stem[:2]) for path in paths}
    chapters = []
    for path in paths:
        try:
            cells = cells_of(load_book(path))
        except Unreadable as error:
            raise Failure(f"{path} {error}") from None
        text = "\n".join(cell.source for cell in cells[:2] if cell.kind == "markdown")
        title = re.search(r"^# +\d+ +(.*?)(?: \(.*)?$", text, re.M)
        minutes = [int(n) for n in re.findall(r"\d+", card_line(text, "Minutes"))]
        known = len(minutes) >= 2
        used = set(Book(cells).modules.values()) - {path.stem[3:]}
        chapters.append(
            Chapter(
                path,
                title[1] if title else path.stem[3:].replace("_", " "),
                *(minutes[:2] if known else ASSUMED),
                frozenset(number[name] for name in used if name in number),
                frozenset(helpers_on(card_line(text, "Know first"))),
                not known,
            )
        )
    return chapters


def choose(chapters: list[Chapter], wanted: list[str]) -> list[Chapter]:
    """Return the chapters named: 4, 04, gradient_clipping, or all; raise Misuse for
    another.
    """
    names = [part for word in wanted for part in word.split(",") if part]
    if not names or "all" in names:
        return chapters
    chosen = []
    for name in names:
        stem = name.removesuffix(".ipynb")
        fitting = [
            c
            for c in chapters
            if stem in (c.path.stem, c.name)
            or (stem.isdecimal() and int(stem) == c.number)
        ]
        if not fitting:
            there = ", ".join(f"{chapter.number:02d}" for chapter in chapters)
            raise Misuse(f"there is no chapter {name}; there are {there}, and all")
        if fitting[0] not in chosen:
            chosen.append(fitting[0])
    return chosen


# --- the plan -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """A part of a day: when it starts (minutes from midnight), its minutes, and what it
    is.
    """

    start: int
    minutes: int
    what: str


def priority(chapter: Chapter) -> tuple[int, int]:
    """Return the rank of a chapter; one that PRIORITY does not name comes last."""
    known = chapter.name in PRIORITY
    return (PRIORITY.index(chapter.name) if known else len(PRIORITY), chapter.number)


def in_order(chapters: list[Chapter]) -> list[Chapter]:
    """Return chapters in the order of reading: each after those it needs, then by
    priority.

    Where cards recommend each other in a circle, only what a chapter imports counts.
    """
    left, ordered = sorted(chapters, key=priority), []
    while left:
        numbers = {chapter.number for chapter in left}
        ready = [c for c in left if not (c.needs | c.helped_by) & (numbers - {c.number})]
        ready = ready or [c for c in left if not c.needs & numbers] or left
        ordered.append(ready[0])
        left.remove(ready[0])
    return ordered


class Day:
    """The slots of one day, from `start` (minutes from midnight), never over its length."""

    def __init__(self, start: int, length: int, first: tuple[int, str]):
        self.start, self.length = start, length
        self.slots: list[Slot] = []
        self.worked, self.lunch, self.now = 0, length <= HALF_DAY, start
        self._work(*first)

    def _add(self, minutes: int, what: str) -> None:
        """Append a slot."""
        self.slots.append(Slot(self.now, minutes, what))
        self.now += minutes

    def _work(self, minutes: int, what: str) -> None:
        """Append a slot of work."""
        self._add(minutes, what)
        self.worked += minutes

    def _rest(self, minutes: int, between: bool) -> None:
        """Append a break or lunch where one is due before work of so many minutes."""
        elapsed = self.now - self.start
        if not self.lunch and (
            (between and elapsed >= LUNCH_FROM)
            or elapsed + minutes > max(LUNCH_BY, minutes)
        ):
            self._add(LUNCH, "Lunch" if 660 <= self.now <= 870 else "Long break")
            self.lunch, self.worked = True, 0
        elif self.worked and (
            self.worked + minutes > WORK or (between and self.worked >= REST_AFTER)
        ):
            self._add(BREAK, "Break")
            self.worked = 0

    def try_to_add(self, chapter: Chapter) -> bool:
        """Append a chapter, or leave the day as it was and return False where it does not
        fit.
        """
        before = self.slots[:], self.worked, self.lunch, self.now
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
                    self._work(size, f"{chapter.label}: {what}{part}")
                between = False
        if self.now + CLOSING <= self.start + self.length:
            return True
        self.slots, self.worked, self.lunch, self.now = before
        return False

    def close(self) -> None:
        """Append the last slot."""
        self._add(CLOSING, "Closing: save, hand in, what to remember")


def lay_out(
    chapters: list[Chapter], start: int, days: int, length: int
) -> list[Day] | None:
    """Return the days on which the chapters are read in this order, or None if they do
    not fit.

    A chapter is not divided between two days.
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
    taken, left, best = [], [], lay_out([], start, days, length)
    for chapter in chapters if chosen else sorted(chapters, key=priority):
        trial = [*taken, chapter] if chosen else in_order([*taken, chapter])
        laid = lay_out(trial, start, days, length)
        if laid is None:
            left.append(chapter)
        else:
            taken, best = trial, laid
    return best, left


def clock(minutes: int) -> str:
    """Return minutes from midnight as a time of day.

    >>> clock(545)
    '09:05'
    """
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def plan_of(
    title: str, chapters: list[Chapter], start: int, days: int, length: int, chosen: bool
):
    """Yield the lines of one plan."""
    yield f"## {title}"
    yield ""
    if start + length > 24 * 60:
        latest = clock(24 * 60 - length)
        yield f"Not from {clock(start)}: it would end after midnight. Start by {latest}."
        yield ""
        return
    laid, left = fit(chapters, start, days, length, chosen)
    for number, day in enumerate(laid, 1):
        if days > 1:
            yield f"### Day {number}"
            yield ""
        yield "| from | to | minutes | |"
        yield "| --- | --- | ---: | --- |"
        for slot in day.slots:
            times = f"{clock(slot.start)} | {clock(slot.start + slot.minutes)}"
            yield f"| {times} | {slot.minutes} | {slot.what} |"
        yield ""
        spare = day.start + length - day.now
        if spare:
            yield f"Free until {clock(day.start + length)}: {spare} minutes."
            yield ""
    if len(laid) < days:
        yield f"{len(laid)} of {days} days are enough."
        yield ""
    if left:
        names = ", ".join(f"{chapter.label} ({chapter.minutes} min)" for chapter in left)
        yield f"Left out for want of time: {names}."
    else:
        yield "Nothing is left out."
    yield ""


def plan(chapters: list[Chapter], start: int, chosen: bool) -> str:
    """Return PLAN.md: the chapters with their minutes, and the plans of three lengths."""
    order = chapters if chosen else in_order(chapters)
    rank = {chapter: n for n, chapter in enumerate(sorted(chapters, key=priority), 1)}
    lines = [
        "# Plan of the workshop",
        "",
        "For teachers. The minutes are those on the chapters' cards.",
        "",
        "| chapter | read and run | exercises | in all | better after |"
        + ("" if chosen else " priority |"),
        "| --- | ---: | ---: | ---: | --- |" + ("" if chosen else " ---: |"),
    ]
    for chapter in order:
        before = sorted((chapter.needs | chapter.helped_by) - {chapter.number})
        after = ", ".join(f"{number:02d}" for number in before)
        more = "" if chosen else f" {rank[chapter]} |"
        minutes = f"{chapter.reading} | {chapter.exercises} | {chapter.minutes}"
        lines.append(f"| {chapter.label} | {minutes} | {after} |{more}")
    lines.append("")
    if any(chapter.assumed for chapter in chapters):
        names = ", ".join(chapter.label for chapter in chapters if chapter.assumed)
        lines += [
            f"No minutes on the card, {ASSUMED[0]} and {ASSUMED[1]} assumed: {names}.",
            "",
        ]
    for title, days, length in (
        ("Half a day", 1, HALF_DAY),
        ("One day", 1, DAY),
        ("Two days", 2, DAY),
    ):
        lines += plan_of(title, chapters, start, days, length, chosen)
    lines += [
        "## Afterwards",
        "",
        "Put the folders that were handed in into one folder, then:",
        "",
        "    python -m dlcourse.check HANDED_IN --csv results.csv",
        "",
        "It runs the participants' code with your rights, and is no sandbox.",
    ]
    return "\n".join(lines) + "\n"


# --- the copies -----------------------------------------------------------------------------------

GIVEAWAYS = {"solution", "solve", "wrong"}
ANYBODYS = r"(?:/(?:home|Users|root|tmp|private|var/folders)/|[A-Za-z]:\\+Users\\+)"
TAIL = r"[^\s'\"<>|,;)]*[/\\]"


def gives_away(node: ast.AST) -> bool:
    """Tell whether a statement shows the solution of an exercise."""
    words = {
        getattr(part, "attr", None) or getattr(part, "id", "") for part in ast.walk(node)
    }
    texts = {
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    }
    if any(re.search(r"\b_solve", text) for text in words | texts):
        return True
    calls = any(
        isinstance(part, ast.Call)
        and getattr(part.func, "attr", "") == "solution"
        and not part.args
        for part in ast.walk(node)
    )
    return calls or ("EXERCISES" in words and bool(words & GIVEAWAYS))


def without_solutions(source: str) -> str:
    """Return code without the statements that show a solution; "" where nothing is left."""
    try:
        body = ast.parse(plain(source)).body
    except (SyntaxError, ValueError):
        return "" if ".solution(" in source else source
    guilty = [node for node in body if gives_away(node)]
    if not guilty:
        return source
    if len(guilty) == len(body):
        return ""
    lines = source.splitlines(keepends=True)
    for node in reversed(guilty):
        del lines[node.lineno - 1 : node.end_lineno]
    return "".join(lines).strip("\n")


def without_offers(text: str) -> str:
    """Return prose without the sentences that say how to print a solution.

    >>> without_offers("Run it. `EXERCISES[0].solution()` prints a solution. Go on.")
    'Run it. Go on.'
    """
    lines = []
    for line in text.split("\n"):
        if ".solution(" in line:
            sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z`*(\[])", line)
            line = " ".join(s for s in sentences if ".solution(" not in s)
        lines.append(line)
    return "\n".join(lines)


def own_paths() -> list[str]:
    """Return the folders of this machine that a notebook might name, the longest first."""
    folders = {ROOT, Path.home(), Path(sys.prefix), Path(sys.base_prefix)}
    folders |= {Path(tempfile.gettempdir()), *(f.resolve() for f in tuple(folders))}
    return sorted({str(f) for f in folders if len(f.parts) > 2}, key=len, reverse=True)


def machine_path() -> re.Pattern:
    """Return the pattern of a path of this or of another machine, up to the file's name."""
    own = "|".join(rf"{re.escape(path)}(?![\w-])" for path in own_paths())
    return re.compile(rf"(?:(?:{own})(?:[/\\]{TAIL}|[/\\])?|{ANYBODYS}(?:{TAIL})?)")


def scrubbed(value, pattern: re.Pattern):
    """Return an output without paths of this machine; pictures are left alone."""
    if isinstance(value, str):
        return pattern.sub("", value)
    if isinstance(value, list):
        return [scrubbed(part, pattern) for part in value]
    if isinstance(value, dict):
        return {
            key: part if key.startswith(("image/", "audio/")) else scrubbed(part, pattern)
            for key, part in value.items()
        }
    return value


def handed_out(path: Path, outputs: str) -> str:
    """Return the text of a chapter for participants.

    `outputs` says which to keep: "keep" (all), "exercises" (all but those of the section
    Exercises) or "none". Raises Failure where a source names a folder of this machine.
    """
    try:
        book = load_book(path)
    except Unreadable as error:
        raise Failure(f"{path} {error}") from None
    asked = section(cells_of(book), "Exercises")
    pattern, kept, count = machine_path(), [], 0
    for number, cell in enumerate(book["cells"], 1):
        source = joined(cell.get("source", ""))
        for own in own_paths():
            if own in source:
                raise Failure(
                    f"{path.name}, cell {number} names {own}; write a relative path there"
                )
        cell = {**cell, "source": source}
        tags = cell.get("metadata", {}).get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
        if cell.get("cell_type") != "code":
            cell["source"] = without_offers(source)
        else:
            cell["source"] = without_solutions(source)
            if source.strip() and not cell["source"].strip():
                continue
            clear = outputs == "none" or (outputs == "exercises" and number in asked)
            if clear or cell["source"] != source or cell.get("execution_count") is None:
                cell |= {"outputs": [], "execution_count": None}
            else:
                count += 1
                cell |= {"outputs": scrubbed(cell.get("outputs", []), pattern)}
                cell["execution_count"] = count
                for out in cell["outputs"]:
                    if out.get("output_type") == "execute_result":
                        out["execution_count"] = count
        cell["source"] = cell["source"].splitlines(keepends=True)
        kept.append(cell)
    book |= {"cells": kept, "metadata": METADATA}
    return json.dumps(book, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def readme(chapters: list[Chapter]) -> str:
    """Return README.md for participants."""
    rows = [
        f"| [{c.label}]({c.path.name}) | {c.reading} | {c.exercises} |"
        for c in sorted(chapters, key=lambda chapter: chapter.number)
    ]
    example = min(chapters, key=lambda chapter: chapter.name in GUIDES).path.stem
    return f"""# Workshop

## Open

You need the course itself, once; your teacher says where it is. With Python 3.11 or later, run
`pip install -e ".[notebooks]"` in its folder. `python -m dlcourse.doctor` says what is missing and
what to do.

Then start JupyterLab in this folder, and open a chapter from the list on the left:

    jupyter lab

| chapter | minutes to read and run | for the exercises |
| --- | ---: | ---: |
{chr(10).join(rows)}

Run the cells from the top with Shift+Enter. You may change every cell. If things get mixed up,
choose Kernel, then Restart Kernel and Run All Cells.

## The exercises

They stand near the end of each chapter. Put your own code in place of the dots and run the cell: it
says "Right." or names the mistake that it sees. Helper functions and imports may stand in any cell
of the same notebook.

## Hand in

1. Save the notebook (Ctrl+S), and keep its file name: `{example}.ipynb`.
2. Make one folder with your name, and put your notebooks into it: `your_name/{example}.ipynb`.
3. Give the folder to your teacher. If only single files can be sent, put your name and two
   underscores before the file name: `your_name__{example}.ipynb`.

You need not finish. An exercise that you did not touch counts as not started. Your answers are run
on another machine: they must not need files of yours.
"""


# --- the command ----------------------------------------------------------------------------------


def time_of_day(text: str) -> int:
    """Return a time such as 09:00 in minutes; raise ArgumentTypeError where it is none."""
    found = re.fullmatch(r"(\d{1,2}):(\d\d)", text)
    if not found or int(found[1]) > 23 or int(found[2]) > 59:
        raise argparse.ArgumentTypeError(f"{text!r} is no time of day such as 09:00")
    return int(found[1]) * 60 + int(found[2])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line; leave with 2 where they are wrong."""
    parser = Parser(
        prog="python -m dlcourse.handout",
        description="Copy chapters for participants, with a README and a timed plan.",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument(
        "--chapters",
        nargs="+",
        default=[],
        metavar="N",
        help="numbers or names, or all (default)",
    )
    parser.add_argument(
        "--outputs",
        choices=("keep", "exercises", "none"),
        default="exercises",
        help="keep all, clear those of the exercises (default), or keep none",
    )
    parser.add_argument(
        "--start", type=time_of_day, default=540, metavar="HH:MM", help="09:00"
    )
    parser.add_argument(
        "--from", type=Path, dest="folder", metavar="DIR", help="where chapters are"
    )
    parser.add_argument(
        "--force", action="store_true", help="write into a folder with files in it"
    )
    return parser.parse_args(arguments)


def check_out(out: Path, folder: Path, force: bool) -> None:
    """Raise Misuse where OUT must not be written to."""
    where, chapters = out.resolve(), folder.resolve()
    if where in (ROOT, chapters) or chapters in where.parents:
        raise Misuse(f"{out} belongs to the course; name a folder outside it")
    if out.exists() and not out.is_dir():
        raise Misuse(f"{out} is a file; name a folder that can be made")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise Misuse(
            f"{out} is not empty; name another folder, or replace files with --force"
        )


def files_of(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each file to write, the plan last."""
    folder = find_folder(options.folder)
    check_out(options.out, folder, options.force)
    everything = read_chapters(folder)
    chapters = choose(everything, options.chapters)
    chosen = chapters is not everything
    for chapter in chapters:
        yield chapter.path.name, handed_out(chapter.path, options.outputs)
    yield "README.md", readme(chapters)
    yield "PLAN.md", plan(chapters, options.start, chosen)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, 1 for a failure, or 2 for misuse."""
    options = parse(arguments)
    try:
        files = dict(files_of(options))  # all of them, before the first is written
        options.out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (options.out / name).write_text(text, encoding="utf-8", newline="\n")
    except Misuse as error:
        print(f"python -m dlcourse.handout: {error}", file=sys.stderr)
        return 2
    except Failure as error:
        print(f"python -m dlcourse.handout: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        told = f"cannot write {error.filename or options.out} ({error.strerror})"
        print(f"python -m dlcourse.handout: {told}; name another folder", file=sys.stderr)
        return 1
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    print(files["PLAN.md"], end="")
    print(f"\n{len(files) - 2} chapters, README.md and PLAN.md are in {options.out}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
