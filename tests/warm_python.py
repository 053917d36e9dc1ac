"""A Python for launchers such as torchrun, whose starts are forks of `lab.warm`.

A launcher starts each of its processes in a new Python, and there the imports take longer
than a small training. `command` puts in its place a script that asks a server for a fork,
passes its files and environment on, and ends as the fork does; the server runs where the
forks are to run, in a network namespace, say. The launcher itself is the real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from warm import IMPORTED

from dlcourse.lab import warm

PLACE = "DLCOURSE_WARM_PYTHON"  # the variable with the path of the server's socket
# `accelerate launch --cpu` sets them, for Intel's OpenMP: where its threads run and how long
# they wait for work. Another helper for that would take longer than the tests
WAITING = ("KMP_AFFINITY", "KMP_BLOCKTIME")
SCRIPT = f"""#!{sys.executable} -IS
import json, os, signal, socket, sys

server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect(os.environ["{PLACE}"])
words = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()])
socket.send_fds(server, [words.encode()], [0, 1, 2])
code = int(server.recv(16) or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def command(place: Path, words: list[str]) -> list[str]:
    """Return a launcher's command, which starts with a Python, with forks in its place."""
    settings = [f"{name}={value}" for name, value in variables(place).items()]
    return ["env", *settings, "PYTHONUNBUFFERED=1", str(stand_in(place)), *words[1:]]


def stand_in(place: Path) -> Path:
    """Return the script that takes the place of Python, and asks the server of a socket."""
    script = place.with_name("python")
    if not script.exists():
        script.write_text(SCRIPT)
        script.chmod(0o755)
    return script


def variables(place: Path) -> dict[str, str]:
    """Return what makes torchrun start the stand-in."""
    return {PLACE: str(place), "PYTHON_EXEC": str(stand_in(place))}


def serve(place: str) -> None:
    """Start what is asked for, here and nowhere else, until this process is killed."""
    os.environ.pop(warm.LENT, None)
    listener = listen(place)
    print("up", flush=True)
    accept(listener)


@contextlib.contextmanager
def serving(place: Path) -> Iterator[None]:
    """Start what is asked for from this process, whose helpers others use as well."""
    with listen(str(place)) as listener:
        threading.Thread(target=accept, args=[listener], daemon=True).start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # ends the thread


def listen(place: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(place)
    listener.listen()
    return listener


def accept(listener: socket.socket) -> None:
    """Answer each that asks in a thread, until the listener is shut down."""
    with contextlib.suppress(OSError):
        while True:
            asking, _ = listener.accept()
            threading.Thread(target=answer, args=[asking], daemon=True).start()


def answer(asking: socket.socket) -> None:
    """Start one process and say how it ended; end it where nobody waits for that."""
    request, files, *_ = socket.recv_fds(asking, warm.LARGEST, 3)
    words, env, folder = json.loads(request)
    for name in WAITING:
        env.pop(name, None)
    if words[:1] == ["-u"]:
        del words[0]
    streams = dict(zip(("stdin", "stdout", "stderr"), files, strict=True))
    process = warm.start([sys.executable, *words], env, folder, IMPORTED, **streams)
    for file in files:
        os.close(file)
    while process.poll() is None:
        if select.select([asking], [], [], 0.01)[0]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return
    asking.send(str(process.returncode).encode())
    asking.close()


if __name__ == "__main__":
    serve(sys.argv[1])
