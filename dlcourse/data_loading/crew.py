"""Worker processes: one pipe each, which carries orders out and batches back."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import pickle
import signal
import traceback
from collections import deque
from multiprocessing.connection import wait

import torch

from dlcourse.data_loading import workers
from dlcourse.data_loading.workers import WorkerInfo, _seed_everything


class WorkerError(RuntimeError):
    """A worker raised or died; the message holds its traceback or exit code, and what to
    do. Where it raised, the error is of the raised type, too.
    """

    def __init__(self, message: str) -> None:
        self.message = message

    def __str__(self) -> str:
        return self.message


@functools.cache
def _error_class(kind: type[Exception]) -> type[WorkerError]:
    """Return WorkerError and `kind` in one, so that `except` of either catches it."""
    try:
        both = type("WorkerError", (WorkerError, kind), {"__module__": __name__})
        both("")
    except Exception:  # `kind` cannot be built from a message
        return WorkerError
    return both


class Worker:
    """One worker process, as its parent sees it."""

    def __init__(self, loader, number: int, base_seed: int) -> None:
        context = multiprocessing.get_context(loader.multiprocessing_context)
        self.number, self.of = number, loader.num_workers
        self.ordered: deque = deque()  # and not yet received
        self.received = 0
        # orders that the worker has begun with, to be read also after its death
        self.begun = context.RawValue("l", 0)
        self.pipe, other = context.Pipe()
        info = WorkerInfo(number, self.of, 0, loader.dataset)
        settings = (loader._reader(), loader.worker_init_fn, info, base_seed)
        self.process = context.Process(
            target=_work, args=(other, self.pipe, self.begun, *settings), daemon=True
        )
        try:
            self.process.start()
        except Exception as error:  # under spawn everything is pickled on the way
            self.pipe.close()
            raise WorkerError(
                f"worker {number} could not start: {error}. Under spawn the dataset and its "
                "functions must be importable: define them in a module, not in a cell or a function"
            ) from error
        finally:
            other.close()  # so that the worker's end closes with the worker

    def order(self, indices: list[int] | None, more: bool = True) -> None:
        """Let the worker read one more batch, or none any more."""
        self.ordered.append(indices)
        with contextlib.suppress(OSError):  # it has died: `receive` says so
            self.pipe.send((more, indices))

    def receive(self) -> tuple[str, object]:
        """Return ("batch", batch), ("error", (type, traceback)) or ("end", None).

        Raises WorkerError where the worker has died or could not begin.
        """
        ready = wait([self.pipe, self.process.sentinel])
        try:
            kind, value = self.pipe.recv() if self.pipe in ready else ("died", None)
        except (EOFError, OSError):
            kind, value = "died", None
        if kind == "failed":
            assert value is not None  # the type and the traceback
            raise _error_class(value[0])(f"{self} could not begin:\n{value[1]}")
        if kind != "died":
            self.ordered.popleft()
            self.received += 1
            return kind, value

        self.process.join()
        # batches that it had sent may have died with it: which one did it read?
        place = min(max(self.begun.value - 1 - self.received, 0), len(self.ordered) - 1)
        indices = self.ordered[place]
        code = self.process.exitcode
        cause = {-9: " (killed, often for lack of memory)", -11: " (native code crashed)"}
        raise WorkerError(
            f"{self} died with exit code {code}{cause.get(code, '')} while it read "
            f"{_named(indices)}. Read them with num_workers=0 to see why; with less memory, use "
            "fewer workers. A worker that dies at once under spawn could not import the dataset: "
            "define it in a module"
        )

    def error(
        self, indices: list[int] | None, kind: type[Exception], text: str
    ) -> WorkerError:
        """Return the error that the worker raised, with its traceback as the message."""
        message = f"{self} raised while it read {_named(indices)}:\n{text}"
        return _error_class(kind)(message)

    def __str__(self) -> str:
        return f"worker {self.number} of {self.of}"

    def release(self) -> None:
        """Tell the process that nothing more is wanted."""
        self.order(None, more=False)
        self.pipe.close()

    def end(self) -> None:
        """Wait for the process, and kill it where it is in the middle of a sample."""
        self.process.join(0.5)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()


def _named(indices: list[int] | None) -> str:
    return "its part of the stream" if indices is None else f"the samples {indices}"


def _work(
    pipe, parents, begun, reader, worker_init_fn, info: WorkerInfo, base_seed: int
) -> None:
    """Run in a worker: read one batch for each order."""
    parents.close()  # this copy of its end: else the pipe would outlive the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    info.seed = _seed_everything(base_seed, info.id)
    info.dataset = reader.dataset
    workers._worker_info = info
    try:
        if worker_init_fn is not None:
            try:
                worker_init_fn(info.id)
            except Exception as error:
                _take_order(pipe)
                pipe.send(("failed", _told(error)))
        while True:
            indices = _take_order(pipe)
            begun.value += 1
            try:
                answer = ("batch", reader.read(indices))
            except StopIteration as error:
                answer = ("end", None)
                if indices is not None:  # a bug of the dataset, as PyTorch sees it
                    answer = ("error", _told(error))
            except Exception as error:
                answer = ("error", _told(error))
            try:
                pipe.send(answer)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                pipe.send(("error", _told(error)))
    except (_NothingWanted, BrokenPipeError, ConnectionResetError):
        # what was sent may live in this process's memory: it ends only when told to
        return


def _told(error: Exception) -> tuple[type[Exception], str]:
    """Return an error's type, where another process can know it, and its traceback."""
    kind = type(error)
    try:
        pickle.dumps(kind)
    except Exception:
        kind = RuntimeError
    if issubclass(kind, StopIteration):  # would end the parent's loop in silence
        kind = RuntimeError
    return kind, traceback.format_exc()


class _NothingWanted(BaseException):
    """The parent has had enough, or is gone."""


def _take_order(pipe) -> list[int] | None:
    try:
        more, indices = pipe.recv()
    except (EOFError, OSError):
        more, indices = False, None
    if not more:
        raise _NothingWanted
    return indices
