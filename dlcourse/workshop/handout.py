"""Make a folder for a workshop: `dlcourse-handout OUT --chapters 04 11`.

OUT gets copies of the chapters without the outputs of the exercises and without
solutions, a README.md for participants, and a PLAN.md for teachers: timed plans of half a
day, one day and two days, made from the minutes on the chapters' cards. The plan is
printed too.

Exit codes: 0 where the folder is written, 1 for a failure, 2 for misuse.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from dlcourse.workshop.check import Parser, cannot_write, require
from dlcourse.workshop.plan import Chapter, Failure, plan, read_chapters
from dlcourse.workshop.reading import (
    CHAPTERS,
    GUIDES,
    ROOT,
    Misuse,
    Unreadable,
    exercise_cells,
    load_book,
)

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

# --- which chapters ---


def find_folder(given: Path | None) -> Path:
    """Return the folder of chapters: the given one, or the one beside the package.

    Raises Misuse where it does not exist or holds no chapters.
    """
    folder = given or CHAPTERS
    if next(folder.glob("[0-9][0-9]_*.ipynb"), None):
        return folder
    if given:
        example = "chapters such as 04_gradient_clipping.ipynb"
        raise Misuse(f"--from {given} holds no {example}")
    raise Misuse(
        f"no chapters in {folder}; name the folder that holds them with --from DIR"
    )


def choose(chapters: list[Chapter], wanted: list[str]) -> list[Chapter]:
    """Return the chapters named: 4, 04, gradient_clipping, or all; else raise Misuse."""
    names = [part for word in wanted for part in word.split(",") if part]
    if not names or "all" in names:
        return chapters
    called: dict[str, Chapter] = {}
    for chapter in chapters:
        for name in (chapter.path.stem, chapter.name, str(chapter.number)):
            called.setdefault(name, chapter)
    chosen = []
    for name in names:
        stem = name.removesuffix(".ipynb")
        chapter = called.get(str(int(stem)) if stem.isdecimal() else stem)
        if chapter is None:
            there = ", ".join(f"{chapter.number:02d}" for chapter in chapters)
            raise Misuse(f"there is no chapter {name}; there are {there}, and all")
        if chapter not in chosen:
            chosen.append(chapter)
    return chosen


# --- the copies ---


def gives_away(node: ast.AST) -> bool:
    """Tell whether a statement shows the solution of an exercise."""
    text = ast.unparse(node)
    if "EXERCISES" in text and re.search(r"\.(solution|solve|wrong)\b", text):
        return True
    return bool(re.search(r"\b_solve|\.solution\(\)", text))


def without_solutions(source: str) -> str:
    """Return code without the statements that show a solution; "" where nothing is left."""
    try:
        body = ast.parse(source).body
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


def handed_out(path: Path, outputs: str) -> str:
    """Return the text of a chapter for participants.

    `outputs` says which to keep: "keep" (all), "exercises" (all but those of cells that
    check an exercise or hold its stub) or "none". Raises Failure where it is no notebook.
    """
    import nbformat

    try:
        book = load_book(path)
    except Unreadable as error:
        raise Failure(f"{path} {error}") from None
    cleared = {"keep": set(), "none": set(range(len(book.cells)))}
    clear = cleared.get(outputs, exercise_cells(book))
    kept, count = [], 0
    for position, cell in enumerate(book.cells):
        source = cell.source
        for key in set(cell.metadata) - {"tags", "jupyter"}:
            del cell.metadata[key]
        if cell.cell_type != "code":
            cell.source = without_offers(source)
            kept.append(cell)
            continue
        cell.source = without_solutions(source)
        if source.strip() and not cell.source.strip():
            continue
        kept.append(cell)
        if position in clear or cell.source != source or cell.execution_count is None:
            cell.outputs, cell.execution_count = [], None
            continue
        count += 1
        cell.execution_count = count
        for out in cell.outputs:
            if out.output_type == "execute_result":
                out.execution_count = count
    book.cells, book.metadata = kept, nbformat.from_dict(METADATA)
    return nbformat.writes(book) + "\n"


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

Put your own code in place of the dots and run the cell: it
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


# --- the command ---


def time_of_day(text: str) -> int:
    """Return a time such as 09:00 in minutes; raise ArgumentTypeError where it is none."""
    try:
        time = datetime.strptime(text, "%H:%M")
    except ValueError:
        said = f"{text!r} is no time of day such as 09:00"
        raise argparse.ArgumentTypeError(said) from None
    return time.hour * 60 + time.minute


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line; leave with 2 where they are wrong."""
    parser = Parser(
        prog="dlcourse-handout",
        description="Copy chapters for participants, with a README and a timed plan.",
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="the folder to make")
    which = "numbers or names, or all (default)"
    add("--chapters", nargs="+", default=[], metavar="N", help=which)
    outputs = "keep all, clear those of the exercises (default), or keep none"
    kinds = ("keep", "exercises", "none")
    add("--outputs", choices=kinds, default="exercises", help=outputs)
    add("--start", type=time_of_day, default=540, metavar="HH:MM", help="09:00")
    add("--from", type=Path, dest="folder", metavar="DIR", help="where chapters are")
    add("--force", action="store_true", help="write into a folder with files in it")
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
        require("nbformat")
        files = dict(files_of(options))  # all of them, before the first is written
        options.out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (options.out / name).write_text(text, encoding="utf-8", newline="\n")
    except (Misuse, Failure) as error:
        print(f"dlcourse-handout: {error}", file=sys.stderr)
        return 2 if isinstance(error, Misuse) else 1
    except OSError as error:
        print(f"dlcourse-handout: {cannot_write(error, options.out)}", file=sys.stderr)
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    print(files["PLAN.md"], end="")
    print(f"\n{len(files) - 2} chapters, README.md and PLAN.md are in {options.out}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
