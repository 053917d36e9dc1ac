"""Progress bars that leave nothing behind in a saved notebook.

In a terminal a bar is tqdm's own. In a Jupyter kernel tqdm would make a widget, and a
saved notebook would hold a view of it whose model is gone. Here all bars of a cell share
one line of plain text below it. When the cell ends, its outputs are cleared and what the
cell itself had shown is sent once more: the notebook is as if there had been no bar.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import time
import uuid

from tqdm import tqdm

DELAY = 2.0  # seconds before a bar is drawn: what is quicker needs none
SOONEST = 0.2  # seconds, in a cell that has already worked for DELAY
OUTPUTS = {
    "stream",
    "display_data",
    "update_display_data",
    "execute_result",
    "error",
    "clear_output",
}


def show_progress() -> bool:
    """Tell whether a bar has a reader: a terminal or a notebook, and not a test."""
    if os.environ.get("DLCOURSE_PROGRESS") == "0" or "PYTEST_CURRENT_TEST" in os.environ:
        return False
    return "ipykernel" in sys.modules or sys.stderr.isatty()


def bar(iterable=None, *, show: bool | None = None, **settings) -> tqdm:
    """Return a tqdm bar which appears after DELAY seconds and is gone when it is done.

    `show`: True or False; None asks `show_progress`. `settings` are tqdm's: total,
    initial, unit, desc, bar_format. Over an iterable it is used as
    ``for item in bar(items)``, else as ``with bar(total=9) as progress`` and
    ``progress.update()``. The cell that first imports this module shows no bar, since
    what it had shown before the import is not known.
    """
    if show is None:
        show = show_progress()
    settings = {"leave": False, "miniters": 1} | settings
    if not show:
        return tqdm(iterable, disable=True, **settings)
    if CELL is None:
        return tqdm(iterable, delay=DELAY, **settings)
    return _CellBar(CELL, iterable, delay=CELL.delay(), **settings)


class _CellBar(tqdm):
    """A bar that is a line of text below the running cell."""

    monitor_interval = 0  # no thread that draws: only the cell itself does

    def __init__(self, cell: _Cell, iterable=None, **settings):
        self.cell = cell
        # The file only keeps tqdm from writing to stderr, which would be an output.
        super().__init__(iterable, file=io.StringIO(), ascii=False, ncols=80, **settings)

    def display(self, msg=None, pos=None):
        if msg is None:
            self.cell.draw(self, str(self))

    def close(self):
        super().close()
        self.cell.forget(self)


class _Cell:
    """The running cell of this kernel: what it has shown, and its line of bars.

    Every output passes through the kernel's `session.send`, from the thread that runs
    the cell or from the one that flushes its prints. So that is where they are kept.
    """

    def __init__(self, shell):
        self.publisher = shell.display_pub
        self.session = shell.kernel.session
        self.send = self.session.send
        self.lock = threading.RLock()
        self.process = os.getpid()
        self.parent = None  # header of the request that runs the cell
        self._reset()
        self.session.send = self._send_and_keep
        shell.events.register("pre_run_cell", self._start)
        shell.events.register("post_run_cell", self._end)

    def delay(self) -> float:
        """Return in how many seconds a bar that starts now may be drawn."""
        return max(SOONEST, DELAY - (time.monotonic() - self.started))

    def draw(self, bar: _CellBar, text: str) -> None:
        """Show the text of one bar; a bar around it stands on the line above."""
        if self.parent is None or os.getpid() != self.process:
            return
        self.lines[id(bar)] = text
        self.publisher.publish(
            {"text/plain": "\n".join(self.lines.values())},
            transient={"display_id": self.display_id},
            update=self.drawn,
        )
        self.drawn = True

    def forget(self, bar: _CellBar) -> None:
        """Draw this bar no more; the last text stays until the next bar or the end."""
        self.lines.pop(id(bar), None)

    def _reset(self) -> None:
        self.started = time.monotonic()
        self.display_id = uuid.uuid4().hex
        self.drawn = False
        self.lines = {}
        self.kept = []

    def _start(self, info) -> None:
        with self.lock:
            self._reset()
            self.parent = self.publisher.parent_header

    def _send_and_keep(self, stream, *args, **kwargs):
        if os.getpid() != self.process:  # forked: it has no cell of its own
            return self.send(stream, *args, **kwargs)
        with self.lock:
            message = self.send(stream, *args, **kwargs)
            if message and self._is_output(message):
                self.kept.append((stream, message))
        return message

    def _is_output(self, message: dict) -> bool:
        """Tell whether a message is an output of this cell, and not one of its bars."""
        if self.parent is None or message["header"]["msg_type"] not in OUTPUTS:
            return False
        if message["parent_header"].get("msg_id") != self.parent.get("msg_id"):
            return False
        transient = message["content"].get("transient", {})
        return transient.get("display_id") != self.display_id

    def _end(self, result) -> None:
        """Take the bars away: clear the cell, and send again what was not a bar."""
        if not self.drawn:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        with self.lock:
            kept, self.kept = self.kept, []
            # with wait=True the old outputs go in the moment in which the first new one
            # comes, so that the page does not jump
            content = {"wait": bool(kept)}
            socket = self.publisher.pub_socket
            self.send(socket, "clear_output", content, parent=self.parent)
            for stream, message in kept:
                kind = message["header"]["msg_type"]
                self.send(stream, kind, message["content"], parent=self.parent)
            self._reset()
            self.parent = None


def _running_cell() -> _Cell | None:
    """Return the outputs of this kernel's cells, or None outside of a kernel."""
    if "ipykernel" not in sys.modules or os.environ.get("DLCOURSE_PROGRESS") == "0":
        return None
    from IPython import get_ipython

    shell = get_ipython()
    return _Cell(shell) if hasattr(shell, "kernel") else None


CELL = _running_cell()
