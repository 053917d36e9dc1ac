"""Scripts in a fork of a process that has imported torch: milliseconds instead of seconds.

`run_script` starts that process once; for each script it forks as often as there are
ranks, sets what torchrun would set, and runs the file as `__main__`. What the tests of the
recipes ask is what a script computes; that the real launchers start it is a test of its
own. Where Python cannot fork (Windows), each rank is a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

IMPORTED = ("torch.distributed", "torch.utils.data", "accelerate", "sklearn.datasets")
IMPORTED += ("torchvision.transforms.v2", "optuna", "safetensors.torch")
_server: subprocess.Popen | None = None


def run_script(
    script: Path, folder: Path | str, processes: int = 1, timeout: float = 300.0
) -> subprocess.CompletedProcess:
    """Run a script in a folder as one process, or as ranks that find each other.

    When one rank fails the others are ended. Returns the exit code of the first that
    failed, or 0, and what all ranks printed.
    """
    environments = [dict(os.environ)]
    if processes > 1:
        from dlcourse.lab import launching  # here: the process that forks is without it

        port = launching._free_port()
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environments = [
            os.environ
            | meeting
            | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            | {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
            for rank in range(processes)
        ]
    with tempfile.TemporaryDirectory() as place:
        job = {"script": str(script), "folder": str(folder), "place": place}
        job |= {"environments": environments, "timeout": timeout}
        code = _ask(job) if hasattr(os, "fork") else _run(job, _start)
        printed = (Path(place) / "out").read_text(encoding="utf-8")
        said = (Path(place) / "err").read_text(encoding="utf-8")
    return subprocess.CompletedProcess([str(script)], code, printed, said)


def _ask(job: dict) -> int:
    """Hand a job to the process that has imported everything; start that if need be."""
    global _server
    if _server is None or _server.poll() is not None:
        _server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    assert _server.stdin is not None and _server.stdout is not None
    print(json.dumps(job), file=_server.stdin, flush=True)
    return json.loads(_server.stdout.readline())


def _run(job: dict, start) -> int:
    """Start all ranks, wait, and return the first exit code that is not 0, or 0."""
    for name in ("out", "err"):
        (Path(job["place"]) / name).touch()
    running = {start(job, environment) for environment in job["environments"]}
    until = time.monotonic() + job["timeout"]
    code = 0
    while running:
        late = time.monotonic() > until
        for rank in running if code or late else ():
            _end(rank)
        code = code or (124 if late else 0)
        for rank in list(running):
            its = _exit_code(rank)
            if its is not None:
                running.remove(rank)
                code = code or its
        time.sleep(0.005)
    return code


def _fork(job: dict, environment: dict[str, str]) -> int:
    """Return the process id of a fork that runs the script and ends."""
    rank = os.fork()
    if rank:
        return rank
    code = 1
    try:
        os.setsid()
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(Path(job["place"]) / name, os.O_WRONLY | os.O_APPEND)
            os.dup2(file, number)
        sys.argv = [job["script"]]
        sys.path[0] = str(Path(job["script"]).parent)
        runpy.run_path(job["script"], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # gloo's threads now and then abort an ordinary exit


def _start(job: dict, environment: dict[str, str]) -> subprocess.Popen:
    with (
        open(Path(job["place"]) / "out", "ab") as out,
        open(Path(job["place"]) / "err", "ab") as err,
    ):
        command = [sys.executable, job["script"]]
        return subprocess.Popen(
            command, cwd=job["folder"], env=environment, stdout=out, stderr=err
        )


def _exit_code(rank) -> int | None:
    if isinstance(rank, subprocess.Popen):
        return rank.poll()
    ended, status = os.waitpid(rank, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _end(rank) -> None:
    if isinstance(rank, subprocess.Popen):
        rank.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(rank, signal.SIGKILL)


if __name__ == "__main__":
    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            __import__(name)
    answers = os.dup(1)
    os.dup2(2, 1)  # nothing but answers goes to the pipe
    for line in sys.stdin:
        answer = _run(json.loads(line), _fork)
        os.write(answers, (json.dumps(answer) + "\n").encode())
