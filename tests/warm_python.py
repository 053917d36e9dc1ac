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
from pathlib import Path

from warm import IMPORTED

from dlcourse.lab import warm

PLACE = "DLCOURSE_WARM_PYTHON"  # the variable with the path of the server's socket
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
    script = place.with_name("python")
    if not script.exists():
        script.write_text(SCRIPT)
        script.chmod(0o755)
    settings = [f"{PLACE}={place}", f"PYTHON_EXEC={script}", "PYTHONUNBUFFERED=1"]
    return ["env", *settings, str(script), *words[1:]]


def serve(place: str) -> None:
    """Start what is asked for, until this process is killed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(place)
    listener.listen()
    print("up", flush=True)
    while True:
        asking, _ = listener.accept()
        threading.Thread(target=answer, args=[asking], daemon=True).start()


def answer(asking: socket.socket) -> None:
    """Start one process and say how it ended; end it where nobody waits for that."""
    request, files, *_ = socket.recv_fds(asking, warm.LARGEST, 3)
    words, env, folder = json.loads(request)
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
