"""Running a handed-in notebook through nbclient, in a kernel process of its own.

First run: of the cells that are the chapter's own, only imports, definitions and plain
constants; of all others, everything. So no cell of the chapter trains for an answer.
Where a name is then missing that the chapter defines, the whole notebook runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nbclient
import psutil
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.v4 import new_code_cell, new_notebook

from dlcourse.workshop.judging import BLANK, ERROR, HINT, MIME, PASS, TIME_OUT
from dlcourse.workshop.kernels import ForkedProvisioner
from dlcourse.workshop.reading import ROOT, Cell, Task, sites

START_LIMIT = 120  # seconds that Python, torch and the chapter's imports may take
GONE = "Its cell is not in the notebook."


class Result(NamedTuple):
    """What an answer gets."""

    verdict: str
    hint: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Limits:
    """Seconds for a cell or an answer, seconds for all cells, GB, and whether to run all."""

    cell: float = 60.0
    cells: float = 300.0
    memory: float = 4.0
    full: bool = False


class Ended(Exception):
    """A cell has used up its time or ended the kernel; the arguments are a Result's."""


class NotReady(Exception):
    """The kernel does not start."""


# --- a kernel ---


class OwnPython(KernelSpecManager):
    """Knows one kernel: the Python that runs the check, whatever else is installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return it, for any name."""
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        # of a traceback we tell the line alone; with torch loaded a plain one takes 1 ms, not 50
        command += ["--InteractiveShell.xmode=Plain"]
        return KernelSpec(argv=command, display_name="", language="python")


class Client(nbclient.NotebookClient):
    """A client that keeps errors and what the judge says; a notebook may print gigabytes."""

    def output(self, outs, msg, display_id, cell_index):
        """Keep an output, or leave it."""
        ours = MIME in msg["content"].get("data", {})
        if msg["msg_type"] != "error" and not ours:
            return None
        return super().output(outs, msg, display_id, cell_index)


class Kernel:
    """A kernel process without a terminal, in a folder that vanishes with it."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(
            prefix="dlcourse", ignore_cleanup_errors=True
        )
        self.name = ""
        self.manager = AsyncKernelManager(
            kernel_spec_manager=OwnPython(),
            connection_file=os.path.join(self.folder.name, "kernel.json"),
        )
        self.manager.provisioner = ForkedProvisioner(
            kernel_spec=self.manager.kernel_spec, parent=self.manager
        )
        book = new_notebook(cells=[new_code_cell()])
        self.client = Client(book, km=self.manager, allow_errors=True)
        # What is written past Python's own streams goes nowhere.
        self.client.extra_arguments = ["--IPKernelApp.capture_fd_output=False"]
        self.client.startup_timeout = START_LIMIT

    def environment(self, work: Path) -> dict[str, str]:
        """Return the environment: one thread, no GPU, no profile, files in `work`."""
        given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        paths = [str(ROOT), *(os.path.abspath(path) for path in given if path)]
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            "PYTHONIOENCODING": "utf-8",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "DLCOURSE_PROGRESS": "0",
            "MPLBACKEND": "Agg",
            "CUDA_VISIBLE_DEVICES": "",  # the checks compare numbers made on a CPU
            "IPYTHONDIR": os.path.join(self.folder.name, "ipython"),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work)),
        }

    async def start(self) -> None:
        """Start the process; raise NotReady where it does not."""
        work = Path(self.folder.name) / "work"
        work.mkdir()
        mute = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            await self.client.async_start_new_kernel(
                cwd=str(work), env=self.environment(work), **mute
            )
            await self.client.async_start_new_kernel_client()
        except RuntimeError:
            raise NotReady(f"Python was not ready in {START_LIMIT} s.") from None

    async def begin(self, task: Task, memory: float) -> None:
        """Put the judge of a notebook in; raise NotReady where that fails."""
        self.name = f"_{secrets.token_hex(8)}"  # no name that a notebook can know
        given = (self.name, task.technique, str(task.path.resolve().parent), memory)
        judging = "__import__('dlcourse.workshop.judging', fromlist=['begin'])"
        try:
            error, _ = await self.run(f"{judging}.begin{given!r}", START_LIMIT, ours=True)
        except Ended as ended:
            raise NotReady(f"Python was not ready: {ended.args[1]}") from None
        if error:
            raise NotReady(f"Python was not ready: {error['ename']}: {error['evalue']}")

    async def run(self, source: str, seconds: float, ours: bool = False) -> tuple:
        """Run a cell; return (error output or None, what the judge has said last).

        Raises Ended where the time is over or the kernel has died.
        """
        self.client.timeout = max(1, round(seconds))
        cell = new_code_cell(source)
        # Surrogates, say, are no text that can be sent.
        cell.source = source.encode("utf-8", "replace").decode()
        try:
            await self.client.async_execute_cell(cell, 0, store_history=not ours)
        except CellTimeoutError:
            raise Ended(TIME_OUT, f"Not done in {seconds:g} s.", seconds) from None
        except DeadKernelError:
            current = asyncio.current_task()
            if current and current.cancelling():  # nbclient takes a Ctrl-C for a death
                raise asyncio.CancelledError from None
            raise Ended(ERROR, await self.ending()) from None
        error, said = None, None
        for output in cell.outputs:
            if output.output_type == "error":
                error = output
            else:
                said = output.data[MIME]
        return error, said

    async def ask(self, call: str, seconds: float = START_LIMIT) -> Any:
        """Return what the judge says to a call such as `judge(0)`."""
        return (await self.run(f"{self.name}.{call}", seconds, ours=True))[1]

    async def ending(self) -> str:
        """Return how the process ended."""
        provisioner = self.manager.provisioner
        code = await provisioner.poll() if provisioner else None
        if code is None or code >= 0:
            return f"The notebook ended its process (exit code {code})."
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            more = ", perhaps for too much memory" if name == "SIGKILL" else ""
            return f"The process was ended by {name}{more}."
        return f"The process was ended by signal {-code}."

    async def end(self) -> None:
        """Kill the process with its children, also those that left its group."""
        family = []
        with contextlib.suppress(psutil.Error, AttributeError):
            own = psutil.Process(getattr(self.manager.provisioner, "pid", None) or -1)
            family = own.children(recursive=True)
        with contextlib.suppress(Exception):  # gone already
            await self.manager.shutdown_kernel(now=True)
        for other in family:
            with contextlib.suppress(psutil.Error):
                other.kill()
        if self.client.kc is not None:
            self.client.kc.stop_channels()
        self.folder.cleanup()


# --- one run of a notebook ---


def told(cell: int, error: Any) -> str:
    """Return the error of a cell in one line: `cell 3, line 1: NameError: ...`."""
    text = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.get("traceback", ())))
    line = re.search(r"In ?\[\d*\], line (\d+)", text)
    where = f"cell {cell}, line {line[1]}" if line else f"cell {cell}"
    if error.ename == "SystemExit":
        return f"{where}: it calls exit()"
    what = (error.evalue.strip().splitlines() or [""])[0]
    what = re.sub(r" \([^()]*, line \d+\)$", "", what)  # a file of the kernel's
    return f"{where}: {error.ename}: {what}" if what else f"{where}: {error.ename}"


class Sitting:
    """One run of a notebook. Where a cell or an answer ends the kernel, a new kernel runs
    the cells again without it; what has been judged stays.
    """

    def __init__(self, task: Task, limits: Limits, whole: bool, new_kernel=Kernel):
        self.task, self.limits, self.whole = task, limits, whole
        self.new_kernel = new_kernel
        self.left = limits.cells  # seconds
        self.failed: dict[int, Result] = {}  # cells
        self.deadly: set[int] = set()  # cells
        self.judged: dict[tuple, Result | None] = {}  # (exercise, cell or name, ...)
        self.final: set[int] = set()  # exercises whose answer ended the kernel

    async def results(self) -> dict[int, Result]:
        """Return what each exercise gets."""
        while not await self.attempt():
            pass
        return {number: self.result(number) for number in self.task.names}

    async def attempt(self) -> bool:
        """Run and judge; return False where the kernel ended before that was done."""
        kernel = self.new_kernel()
        try:
            await kernel.start()
            await kernel.begin(self.task, self.limits.memory)
            for cell in self.task.cells:
                await self.run_cell(kernel, cell)
            for number, names in self.task.names.items():
                for name in names:
                    if not self.settled(number):
                        call = f"judge_name({number}, {name!r})"
                        await self.judge(kernel, (number, name), call)
        except Ended:
            return False
        finally:
            await kernel.end()
        return True

    async def run_cell(self, kernel: Kernel, cell: Cell) -> None:
        """Run a cell, and judge the answers that it gives to exercises."""
        short = cell.unchanged and not self.whole
        source = cell.definitions() if short else cell.source
        if cell.number in self.deadly or not source.strip() or self.left <= 0:
            return
        seconds = START_LIMIT if short else min(self.limits.cell, self.left)
        start = time.monotonic()
        try:
            error, _ = await kernel.run(source, seconds)
        except Ended as ended:
            self.failed[cell.number] = Result(*ended.args)
            self.deadly.add(cell.number)
            raise
        finally:
            self.left -= 0 if short else time.monotonic() - start
        if short:
            return
        if error:
            self.failed[cell.number] = Result(ERROR, told(cell.number, error))
        if not re.search("check|hint_for", source):
            return
        for position, number in enumerate(await kernel.ask("hand_over()")):
            call = f"judge({position})"
            await self.judge(kernel, (number, cell.number, position), call)

    async def judge(self, kernel: Kernel, key: tuple, call: str) -> None:
        """Ask the judge for one answer, unless an earlier kernel has done so."""
        if key in self.judged:
            return
        start = time.monotonic()
        try:
            said = await kernel.ask(call, self.limits.cell)
        except Ended as ended:
            self.judged[key] = Result(*ended.args)
            self.final.add(key[0])
            raise
        if said:
            verdict, hint = said
            said = Result(verdict, hint, time.monotonic() - start)
        self.judged[key] = said

    def tries(self, number: int, by_name: bool) -> list[Result]:
        """Return what the answers to an exercise got, those without an answer left out."""
        return [
            result
            for key, result in self.judged.items()
            if key[0] == number and isinstance(key[1], str) == by_name
            if result and result.verdict != BLANK
        ]

    def settled(self, number: int) -> bool:
        """Tell whether what the notebook's own calls gave to the check is enough."""
        found = [result.verdict for result in self.tries(number, by_name=False)]
        return number in self.final or PASS in found or found[-1:] == [HINT]

    def result(self, number: int) -> Result:
        """Return a pass if there is one, else what the last answer gets, else why none."""
        checked, ends = self.tries(number, False), self.tries(number, True)
        passed = [result for result in checked + ends if result.verdict == PASS]
        better = [result for result in ends if result.verdict == HINT]
        best = [*passed, *better, *checked[::-1], *ends]
        if best:
            return self.with_first_failure(best[0])
        for cell in self.task.cells:
            if cell.number in self.failed and self.mentions(cell, number):
                return self.with_first_failure(self.failed[cell.number])
        if self.left <= 0 and not any(key[0] == number for key in self.judged):
            return Result(TIME_OUT, f"Not done in {self.limits.cells:g} s.")
        known = any(result for key, result in self.judged.items() if key[0] == number)
        return Result(BLANK, "" if known or number in self.task.asked else GONE)

    def mentions(self, cell: Cell, number: int) -> bool:
        """Tell whether a cell names the answer of an exercise, or checks it."""
        count = len(self.task.questions)
        if any(index % count == number - 1 for index, _ in sites(cell.source)):
            return True
        names = self.task.names[number]
        return any(re.search(rf"\b{name}\b", cell.source) for name in names)

    def with_first_failure(self, result: Result) -> Result:
        """Add the first cell that failed to an error that may come from it."""
        if result.verdict != ERROR or "NameError" not in result.hint or not self.failed:
            return result
        first = self.failed[min(self.failed)].hint
        if first in result.hint:
            return result
        more = f" (The first cell that failed: {first})"
        return result._replace(hint=result.hint + more)


# --- a notebook ---


async def judge_task(task: Task, limits: Limits, new_kernel=Kernel) -> dict[int, Result]:
    """Return what each exercise of a notebook gets; no kernel starts where nothing is new."""
    if all(cell.unchanged for cell in task.cells):
        asked = {number: number in task.asked for number in task.names}
        return {n: Result(BLANK, "" if there else GONE) for n, there in asked.items()}
    if limits.full:
        return await Sitting(task, limits, True, new_kernel).results()
    results = await Sitting(task, limits, False, new_kernel).results()
    for number in results:
        if untouched(task, number):
            results[number] = Result(BLANK, "")
    lacking = [n for n, result in results.items() if lacks_chapter(task, result)]
    if lacking:
        whole = await Sitting(task, limits, True, new_kernel).results()
        for number in lacking:
            if whole[number].verdict in (PASS, HINT):
                results[number] = whole[number]
    return results


def untouched(task: Task, number: int) -> bool:
    """Tell whether an exercise stands as the chapter gave it, its starting code included."""
    index = rf"EXERCISES\[{number - 1}\]"
    asked = [cell for cell in task.cells if re.search(index, cell.source)]
    found = re.findall(rf"{index}\.check\((\w+)\)", "\n".join(c.source for c in asked))
    if not found:
        return False
    name = re.compile(rf"\b{found[-1]}\b")
    about = [cell for cell in task.cells if cell in asked or name.search(cell.source)]
    return all(cell.unchanged for cell in about)


def lacks_chapter(task: Task, result: Result) -> bool:
    """Tell whether a name is missing that stands in the chapter's own cells."""
    missing = re.search(r"NameError: (?:free variable|name) '(\w+)'", result.hint)
    if result.verdict != ERROR or not missing:
        return False
    name = re.compile(rf"\b{missing[1]}\b")
    return any(cell.unchanged and name.search(cell.source) for cell in task.cells)
