"""Scripts and commands of Python in forks of `lab.warm`, and what they print.

What most tests ask is what a script or a command does; that the real launchers start it is
a test of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dlcourse.lab import launching, warm

RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
RANKS += ("MASTER_ADDR", "MASTER_PORT")
IMPORTED = (
    *warm.IMPORTS,
    "sklearn.datasets",
    "torchvision.transforms.v2",
    "optuna",
    "safetensors.torch",
    "matplotlib.pyplot",
    "nbformat",
)
warm.IMPORTS = IMPORTED  # a helper takes seconds to start: one serves `launch` as well


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment with what `launch` adds for every rank, and more:
    a helper for other variables of Python would be another helper.
    """
    env = launching._environment(1, cpu=True) | {"DLCOURSE_PROGRESS": "0"}
    for name in (*RANKS, "DLCOURSE_LAUNCHED"):
        env.pop(name, None)
    # what they launch borrows our helpers
    return env | warm.lend() | more


def run_script(
    script: Path, folder: Path | str, processes: int = 1, timeout: float = 300.0
) -> subprocess.CompletedProcess:
    """Run a script in a folder as one process, or as ranks that find each other.

    When one rank fails the others are ended. Returns the exit code of the first that
    failed, or 0, and what all ranks printed.
    """
    if processes == 1:
        return run(script, cwd=folder, timeout=timeout)
    return run_ranks(script, cwd=folder, processes=processes, timeout=timeout)


def run_ranks(
    *arguments,
    cwd: Path | str = ".",
    processes: int = 2,
    timeout: float = 300.0,
    **more: str,
) -> subprocess.CompletedProcess:
    """Run what stands behind `python`, or `torchrun`, as ranks that find each other."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launching._free_port())}
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    environments = [
        environment(**meeting, **world, **more, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(processes)
    ]
    return _run(list(map(str, arguments)), environments, cwd, timeout, IMPORTED)


def run(
    *arguments,
    cwd: Path | str = ".",
    env: dict | None = None,
    timeout: float = 300.0,
    imports: tuple[str, ...] = IMPORTED,
) -> subprocess.CompletedProcess:
    """Run what stands behind `python` on a command line; return its end and its words."""
    env = environment() if env is None else env
    return _run(list(map(str, arguments)), [env], cwd, timeout, imports)


def _run(arguments, environments, folder, timeout, imports):
    """Start all ranks, wait, and return the first exit code that is not 0, or 0."""
    command = [sys.executable, *arguments]
    with tempfile.TemporaryDirectory() as place:
        names = [Path(place) / "out", Path(place) / "err"]
        with open(names[0], "ab") as out, open(names[1], "ab") as err:
            running = [
                warm.start(
                    command,
                    env,
                    cwd=str(folder),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    imports=imports,
                )
                for env in environments
            ]
            code = _end_of(running, timeout)
        printed, said = (name.read_text(encoding="utf-8") for name in names)
    return subprocess.CompletedProcess(command, code, printed, said)


def _end_of(running: list, timeout: float) -> int:
    until = time.monotonic() + timeout
    code = 0
    while running:
        late = time.monotonic() > until
        for rank in running if code or late else ():
            with contextlib.suppress(OSError, AttributeError):  # no killpg on Windows
                os.killpg(rank.pid, signal.SIGKILL)
            rank.kill()
        code = code or (124 if late else 0)
        for rank in list(running):
            its = rank.poll()
            if its is not None:
                running.remove(rank)
                code = code or its
        time.sleep(0.005)
    return code
