"""Check what participants handed in: `dlcourse-check FOLDER --csv results.csv`.

FOLDER is a notebook, a participant's folder, or a folder with one sub-folder a
participant; files named `anna__04_gradient_clipping.ipynb` work too. Each notebook runs
in a kernel of its own, without what is the chapter's and takes time, and each exercise
gets a verdict: pass, hint, not started, error or time-out.

The verdict is the package's own: printing "Right." or replacing EXERCISES changes
nothing. This is no sandbox. A notebook runs with your rights and could read or delete
your files, or find a way to cheat. Check only what people you know have written, or work
in a container.

Exit codes: 0 where every exercise passes, 1 where one does not, 2 for misuse, 130 for
Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from dlcourse.lab.progress import bar
from dlcourse.workshop.reading import Misuse, Task, collect, prepare
from dlcourse.workshop.table import Row, one_line, report, short, writer


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str):
        """Print what is wrong and what to do; exit with 2."""
        self.exit(2, f"{self.prog}: {message}; --help shows what can be given\n")


def require(*modules: str) -> None:
    """Raise Misuse where one of the modules that run or read notebooks is missing."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError:
            raise Misuse(
                f"needs {name}, which is not installed: pip install 'dlcourse[notebooks]'"
            ) from None


def cannot_write(error: OSError, folder: Path) -> str:
    """Return in words what could not be written into a folder, and what to do."""
    place = error.filename or folder
    return f"cannot write {place} ({error.strerror}); name another folder"


def positive(text: str) -> float:
    """Return a number above 0; raise ArgumentTypeError otherwise."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line; leave with 2 where they are wrong."""
    parser = Parser(
        prog="dlcourse-check",
        description="Check the exercises of participants' notebooks. This is no sandbox.",
    )
    add = parser.add_argument
    add("path", nargs="+", type=Path, help="a notebook, or a folder of them")
    add("--csv", type=Path, metavar="FILE", help="write one row an exercise")
    seconds = "seconds an exercise (60), with --full in all (300)"
    add("--timeout", type=positive, metavar="S", help=seconds)
    add("--memory", type=positive, default=4.0, metavar="GB", help="at most (4)")
    add("--jobs", type=positive, metavar="N", help="notebooks at a time (cores)")
    add("--full", action="store_true", help="run the whole notebook, every cell")
    return parser.parse_args(arguments)


def cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


async def rows_of(task: Task, limits) -> list[Row]:
    """Return the rows of one notebook; whatever it does, there are rows."""
    from dlcourse.workshop import running

    problem, results = task.problem, {}
    if not problem and task.questions:
        try:
            results = await running.judge_task(task, limits)
        except Exception as error:  # one strange notebook must not stop the others
            told = f"{type(error).__name__}: {error}"
            problem = f"{task.path.name} cannot be checked ({told})"
    if problem:
        return [Row(task.participant, task.chapter, "", "", "error", problem)]
    rows = []
    for number, question in enumerate(task.questions, 1):
        result = results[number]
        rows.append(Row(task.participant, task.chapter, number, short(question), *result))
    return rows


async def check_all(
    tasks: list[Task], limits, jobs: int, take: Callable[[list[Row]], None]
) -> None:
    """Give the rows of each task to `take`, in order; no process is left afterwards.

    When stopped, the rows of the notebooks that are done are still given.
    """
    gate = asyncio.Semaphore(jobs)

    async def check(task: Task) -> list[Row]:
        async with gate:
            return await rows_of(task, limits)

    waiting = [asyncio.create_task(check(task)) for task in tasks]
    given = 0
    try:
        for job in bar(waiting, unit="notebook"):
            await asyncio.wait([job])  # which a Ctrl-C leaves alone, unlike `await job`
            given += 1
            take(job.result())
    finally:
        done = [job for job in waiting[given:] if job.done()]
        for job in waiting:
            job.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)  # their kernels end
        for job in done:
            if not job.cancelled() and not job.exception():
                take(job.result())


def run(options: argparse.Namespace) -> int:
    """Check, print the report, and return the exit code; raise Misuse for wrong paths."""
    notes: list[str] = []
    found = collect(options.path, notes)
    require("nbformat", "nbclient", "ipykernel")
    from dlcourse.workshop.running import Limits

    cell = options.timeout or (300.0 if options.full else 60.0)
    cells = cell if options.full else 5 * cell
    limits = Limits(cell, cells, options.memory, options.full)
    batches: list[list[Row]] = []
    with writer(options.csv) as write:

        def take(batch: list[Row]) -> None:
            write(batch)
            batches.append(batch)

        try:
            tasks = [prepare(path, owner, notes) for path, owner in found]
            jobs = max(1, int(options.jobs or cores()))
            asyncio.run(check_all(tasks, limits, jobs, take))
        except KeyboardInterrupt:
            kept = f"; their rows are in {options.csv}" if options.csv else ""
            text = f"Stopped: {len(batches)} of {len(found)} notebooks checked{kept}."
            print(text, file=sys.stderr)
            return 130
    print(report(batches))
    for note in notes:
        print(f"note: {one_line(note)}")
    return 0 if all(row.verdict == "pass" for batch in batches for row in batch) else 1


def interrupt(number, frame) -> None:
    """Treat a request to end like Ctrl-C, so that no process is left."""
    signal.raise_signal(signal.SIGINT)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 (all pass), 1 (not), 2 for misuse, or 130 for Ctrl-C."""
    options = parse(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        return run(options)
    except Misuse as error:
        print(f"dlcourse-check: {error}", file=sys.stderr)
    except BrokenPipeError:  # the reader of the report has left: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        what = f"{error}; free the disk or choose another place"
        print(f"dlcourse-check: {what}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
