"""One function on n fresh processes of this machine, from a notebook, a script or a test.

This process is never forked: each of the others is a new Python, to which cloudpickle
sends the function, so an earlier Accelerator, CUDA context or thread pool here cannot do
harm.
On a CPU under Linux the new Python is a fork of a helper that has imported torch and
nothing of the course (`lab.warm`): the first launch starts that, later ones are quick. In
a notebook this import starts it, beside what the first cells do.
"""

from __future__ import annotations

import contextlib
import faulthandler
import linecache
import math
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, cast

import cloudpickle

from dlcourse.lab import warm
from dlcourse.lab.progress import bar
from dlcourse.lab.scripts import run_script

ROOT = str(Path(__file__).resolve().parents[2])
# seconds after the first failure, or after the timeout, in which the rest is noted
GRACE = 0.3
# seconds after Ctrl-C for processes to save their work
SAVING = 0.0 if os.name == "nt" else 5.0
CREW_LIFE = 240.0  # seconds after which the processes of a crew end by themselves
PORT_TAKEN = "EADDRINUSE|address already in use|only one usage of each socket address"


class LaunchError(RuntimeError):
    """A launch failed; the message holds the rank and its traceback, exit code or stacks."""


def launch(
    fn: Callable,
    processes: int = 2,
    args: tuple | list = (),
    kwargs: dict | None = None,
    timeout: float = 60.0,
    cpu: bool = True,
    echo: bool = True,
    live: bool = False,
) -> list:
    """Run fn(*args, **kwargs) in `processes` >= 1 fresh processes; return the results by
    rank.

    fn is importable, or is defined in the notebook or script: then it is sent with the
    globals that it uses. `timeout` is in seconds and includes starting Python. What the
    processes print appears at the end, by rank, unless echo is False; with live=True rank
    0 prints straight to this process's stdout and stderr instead, as a long run with a
    bar should. Ctrl-C reaches the processes (not on Windows), which have 5 seconds to
    save their work. Raises what pickle does for an fn or an argument that cannot be sent,
    ValueError for a count or timeout out of range, LaunchError when a rank raises, dies,
    hangs, or returns what cannot be sent.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, not {processes}")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
    if "DLCOURSE_LAUNCHED" in os.environ:
        raise LaunchError(
            "launch was called inside a launched process: call it from the notebook, or in a "
            "script below `if __name__ == '__main__':`"
        )
    job = _packed(fn, *args, **(kwargs or {}))
    if not cpu:
        import torch

        if torch.cuda.device_count() < processes:
            raise LaunchError(
                f"cpu=False with {processes} processes needs {processes} GPUs and this machine "
                f"shows {torch.cuda.device_count()}: pass cpu=True, or fewer processes"
            )
    results, printed, failure = _run(job, processes, timeout, cpu, live)
    if echo:
        print("".join(line + "\n" for line in printed), end="")
    if failure:
        raise LaunchError(_with_source(failure, fn))
    return results


class Crew:
    """Processes that stay, so that several functions share the seconds of one start.

    They are joined in one group of torch.distributed, over gloo, with one thread each.
    They start at once, beside what this process does, and end with `close`, with this
    process, where a function fails, or CREW_LIFE seconds after their start; `run` then
    starts new ones. Raises ValueError for fewer than one process.
    """

    def __init__(self, processes: int = 2) -> None:
        if processes < 1:
            raise ValueError(f"processes must be at least 1, not {processes}")
        self.processes = processes
        self._thread: threading.Thread | None = None
        self._start()

    def run(self, fn: Callable) -> list:
        """Call fn(rank, processes) on each process; return the results by rank.

        What holds for the function and the results of `launch` holds here. Raises
        LaunchError where a process raises, dies, or hangs.
        """
        return self._send(fn)

    def script(self, text: str) -> str:
        """Run a script on the processes, as torchrun would; return what the first prints.

        They share an empty folder, which goes afterwards. Raises LaunchError as `run` does.
        """
        return self._send(run_script, text)[0]

    def _send(self, fn: Callable, *args) -> list:
        """Call fn(rank, processes, *args) on each process; return the results by rank."""
        job = cloudpickle.dumps((fn, args))
        if not self._usable():
            self.close()
            self._start()
        folder, number = self._folder, self._jobs
        self._jobs += 1
        _write(folder / f"job{number}", job)
        answers = [folder / f"answer{number}_{rank}" for rank in range(self.processes)]
        try:
            while not all(answer.exists() for answer in answers):
                if self._thread is None or not self._thread.is_alive():
                    raise LaunchError(_with_source(self._failure, fn))
                time.sleep(0.002)
        except KeyboardInterrupt:  # they may be in the middle of a message
            (folder / "stop").touch()
            self._thread = None
            raise
        return [pickle.loads(answer.read_bytes()) for answer in answers]

    def close(self) -> None:
        """Let the processes end; a later `run` starts new ones."""
        if self._thread is not None:
            (self._folder / "stop").touch()
            self._thread.join()
            self._thread = None
            shutil.rmtree(self._folder, ignore_errors=True)

    def _usable(self) -> bool:
        """Tell whether the processes are there, and young enough for one more function."""
        if self._thread is None or not self._thread.is_alive():
            return False
        return time.monotonic() - self._born < CREW_LIFE / 2

    def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="crew"))
        self._born, self._jobs, self._failure = time.monotonic(), 0, ""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        """Start the processes and wait for their end; a thread of its own does that."""
        job = _packed(_serve, self._folder)
        _, _, failure = _run(job, self.processes, CREW_LIFE, True, False, quiet=True)
        self._failure = failure or "the processes have ended"


def _packed(fn: Callable, *args, **kwargs) -> bytes:
    return cloudpickle.dumps((fn, args, kwargs))


def _with_source(failure: str, fn: Callable) -> str:
    """Add the line of source where a traceback names fn: cloudpickle sends no source."""
    code = getattr(fn, "__code__", None)
    if code is None:
        return failure

    def shown(found: re.Match) -> str:
        line = linecache.getline(code.co_filename, int(found[1])).strip()
        return f"{found[0]}\n    {line}" if line else found[0]

    frame = rf'  File "<dynamic-code>", line (\d+), in {code.co_name}$'
    return re.sub(frame, shown, failure, flags=re.MULTILINE)


def _write(path: Path, packed: bytes) -> None:
    """Write a file in one step, so that it is never seen half written."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(packed)
    part.replace(path)


def _serve(folder: Path) -> None:
    """Run the functions of a crew, one after the other, as their files appear."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    rank, number = dist.get_rank(), 0
    while True:
        job = folder / f"job{number}"
        if job.exists():
            fn, args = pickle.loads(job.read_bytes())
            value = fn(rank, dist.get_world_size(), *args)
            _write(folder / f"answer{number}_{rank}", cloudpickle.dumps(value))
            number += 1
        elif (folder / "stop").exists():
            break
        else:
            time.sleep(0.002)
    dist.barrier()  # none leaves while another may still wait for its message
    dist.destroy_process_group()


# --- the parent -----------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment(processes: int, cpu: bool) -> dict[str, str]:
    """Return the variables that all ranks share."""
    left_by_others = ("TORCHELASTIC_", "GROUP_", "ROLE_", "ACCELERATE_")
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(left_by_others)
    }
    path = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), ROOT]
    env |= {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(map(os.path.abspath, path))),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": "1",
        "DLCOURSE_LAUNCHED": "1",
    }
    if cpu:
        env |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    # gloo looks the host's name up unless told; that fails or hangs where the name has no
    # address
    interfaces = {name for _, name in getattr(socket, "if_nameindex", list)()}
    for loopback in interfaces & {"lo", "lo0"}:
        env.setdefault("GLOO_SOCKET_IFNAME", loopback)
    return env


class _Rank:
    """One child process; its files hold what it printed, reported, and where it stood."""

    def __init__(
        self,
        rank: int,
        folder: Path,
        until: str,
        env: dict[str, str],
        live: bool,
        begin: Callable,
    ):
        self.rank, self.folder = rank, folder
        self.report: Any = None  # what the process has left
        with (
            open(folder / f"stdout{rank}", "wb") as out,
            open(folder / f"stderr{rank}", "wb") as err,
        ):
            self.process = begin(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "dlcourse.lab.launching",
                    str(folder),
                    until,
                ],
                env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=None if live else out,
                stderr=None if live else err,
            )

    @property
    def stdin(self) -> IO[bytes]:
        """The pipe to the process."""
        return cast(IO[bytes], self.process.stdin)

    def lines(self, name: str) -> list[str]:
        """Return the lines of one of this rank's files."""
        path = self.folder / f"{name}{self.rank}"
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        return text.splitlines()

    def state(self) -> str:
        """Return "running", "returned", "raised" or "died"."""
        # asked first: a process reports, then ends
        ended = self.process.poll() is not None
        result = self.folder / f"result{self.rank}"
        if self.report is None and result.exists():
            self.report = pickle.loads(result.read_bytes())
        if self.report is not None:
            return "raised" if "error" in self.report else "returned"
        return "died" if ended else "running"

    def failure(self) -> str:
        """Return why this rank failed: its traceback, or its end or stacks and last
        words.
        """
        state = self.state()
        if state == "raised":
            return f"rank {self.rank} raised:\n{self.report['error'].rstrip()}"
        if state == "running":
            threads = "\n".join(self.lines("stacks")).split("\n\n")
            stack = "\n".join(
                part for part in threads if "in _lifeline" not in part
            ).splitlines()
            frames = [
                line
                for line in stack
                if line.startswith("  File ")
                and "<frozen" not in line
                and __file__ not in line
            ]
            text = [f"rank {self.rank} stood at (most recent call first):"]
            text += frames or ["  no Python function: it may still have been starting"]
        else:
            code = self.process.returncode
            how = (
                f"by signal {-code} ({signal.strsignal(-code)})"
                if code < 0
                else f"with exit code {code}" + (f" ({code:#x})" if code > 255 else "")
            )
            if code == -9:
                how += ", perhaps for lack of memory"
            text = [f"rank {self.rank} died {how}, before the function returned."]
        words = self.lines("stderr")[-20:]
        return "\n".join(text + (["Its last words on stderr:", *words] if words else []))

    def interrupt(self) -> None:
        """Pass Ctrl-C on; on Windows a process in a group of its own cannot receive it."""
        if os.name != "nt" and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End the process and those that it started."""
        # without killpg: ask for the tree
        if os.name == "nt" and self.process.poll() is None:
            command = ["taskkill", "/F", "/T", "/PID", str(self.process.pid)]
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (AttributeError, ProcessLookupError, PermissionError):
            self.process.kill()
        self.process.wait()
        try:
            self.stdin.close()
        except OSError:
            pass


def _run(job: bytes, *settings, **more) -> tuple[list, list[str], str]:
    """Run a job; once more, and yet once, where another program took the port first."""
    for _ in range(3):
        results, printed, failure = _run_once(job, *settings, **more)
        if not re.search(PORT_TAKEN, failure, re.IGNORECASE):
            break
    return results, printed, failure


def _run_once(
    job: bytes,
    processes: int,
    timeout: float,
    cpu: bool,
    live: bool,
    quiet: bool = False,
) -> tuple[list, list[str], str]:
    """Start the ranks, wait, leave none behind; return results, printed lines and the
    failure.
    """
    ranks: list[_Rank] = []
    message = ""
    with tempfile.TemporaryDirectory(prefix="launch", ignore_cleanup_errors=True) as name:
        folder, env, start = Path(name), _environment(processes, cpu), time.monotonic()
        # not in PYTHONPATH: for another one `warm` starts another helper
        path = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
        (folder / "job").write_bytes(pickle.dumps((path, job)))
        try:
            begin = warm.start if cpu else warm.start_cold
            until = str(time.time() + timeout)
            for rank in range(processes):
                own = live and rank == 0
                ranks.append(_Rank(rank, folder, until, env, own, begin))
            waiting = f"{processes} processes: {{elapsed}}"
            # a rank that prints by itself has a bar of its own
            with bar(
                show=False if live or quiet else None, bar_format=waiting
            ) as progress:
                while True:
                    states = {rank.state() for rank in ranks}
                    late = time.monotonic() - start > timeout
                    if late or states & {"raised", "died"} or states == {"returned"}:
                        break
                    progress.update()
                    time.sleep(0.01)
            if states != {"returned"}:
                time.sleep(GRACE)
                message = _failure(ranks, timeout)
            else:
                _release(ranks)
        except KeyboardInterrupt:
            for rank in ranks:
                rank.interrupt()
            until = time.monotonic() + SAVING
            while (
                any(rank.state() == "running" for rank in ranks)
                and time.monotonic() < until
            ):
                time.sleep(0.01)
            raise
        finally:
            for rank in ranks:
                rank.kill()
        printed = [
            f"[rank {rank.rank}] {line}"
            for rank in ranks
            for line in rank.lines("stdout")
        ]
    return [(rank.report or {}).get("value") for rank in ranks], printed, message


def _release(ranks: list[_Rank]) -> None:
    """Let the processes end, now that every rank has returned."""
    # a rank that has died, or is slow: its result is here, and it is killed next
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        for rank in ranks:
            rank.stdin.write(b"e")
            rank.stdin.flush()
        for rank in ranks:
            rank.process.wait(5.0)


def _failure(ranks: list[_Rank], timeout: float) -> str:
    """Say what went wrong: a death before an error that may be its consequence, then a
    hang.
    """
    states = [rank.state() for rank in ranks]
    worst = next(
        (state for state in ("died", "raised", "running") if state in states), None
    )
    failed = [rank for rank, state in zip(ranks, states, strict=True) if state == worst]
    names = ", ".join(str(rank.rank) for rank in failed)
    if worst is None:  # the last result came in just now
        return ""
    if worst == "running":
        return "\n".join(
            [
                f"after {timeout:g} seconds still running: rank {names} (of {len(ranks)} "
                "processes). Look for a collective (all_reduce, gather, barrier, "
                "wait_for_everyone, a backward pass under DDP) that not every rank calls, or raise "
                "timeout.",
                *(rank.failure() for rank in failed),
            ]
        )
    also = f"\n(ranks that {worst}: {names})" if len(failed) > 1 else ""
    return failed[0].failure() + also


# --- the child ------------------------------------------------------------------------------------


def _lifeline(pipe: int, released: threading.Event) -> None:
    """Wait for the parent's word; end this process and its children when the parent is
    gone.
    """
    while os.read(pipe, 1):
        released.set()
    if hasattr(os, "killpg"):
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os._exit(1)


def _child(folder: Path, until: float) -> None:
    """Run the job of a folder, report by file, and end when the parent says so."""
    released = threading.Event()
    pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    threading.Thread(target=_lifeline, args=(pipe, released), daemon=True).start()
    faulthandler.enable()
    rank = os.environ["RANK"]
    stacks = open(folder / f"stacks{rank}", "w")  # noqa: SIM115  open until the process ends
    faulthandler.dump_traceback_later(max(0.01, until - time.time()), file=stacks)
    try:
        path, job = pickle.loads((folder / "job").read_bytes())
        sys.path[:] = dict.fromkeys([*path, *sys.path])
        fn, args, kwargs = pickle.loads(job)
        report = cloudpickle.dumps({"value": fn(*args, **kwargs)})
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next  # without our own frames
        words = "".join(traceback.format_exception(type(error), error, trace))
        report = pickle.dumps({"error": words})
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
    sys.stderr.flush()
    _write(folder / f"result{rank}", report)
    released.wait()  # no rank leaves while another may still need it
    distributed = sys.modules.get("torch.distributed")
    try:
        if distributed and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
    finally:
        os._exit(0)  # gloo's threads now and then abort an ordinary exit


if "ipykernel.kernelapp" in sys.modules and "DLCOURSE_LAUNCHED" not in os.environ:
    warm.get_ready(_environment(1, cpu=True))

if __name__ == "__main__":
    _child(Path(sys.argv[1]), float(sys.argv[2]))
