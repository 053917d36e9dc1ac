"""A new Python in milliseconds: a fork of a helper that has imported what is slow to import.

`start` takes the command line of a Python. The first of a kind starts a helper: a fresh
Python that imports packages such as torch, and nothing else. For each command the helper
forks a child, which gets the command's own environment, folder, files, random state and
`__main__`, and reads all other code anew. The process that calls `start` is never forked,
so no Accelerator, CUDA context or thread pool of its own gets into a child; and the helper
has one thread, or it is not used.

What a Python reads only when it starts or imports (variables such as OMP_NUM_THREADS,
limits, processors it may use) decides which helper serves: another value, another helper.
Two differences to an ordinary start are left: children of one helper hash strings alike,
and objects that live to the end of the process are not taken apart.
Elsewhere than on Linux, and where a helper fails, the process is an ordinary one.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import IO, Any
from weakref import WeakSet

# the last is what torch imports, in a second and a half, when it makes an optimizer
IMPORTS = ("torch.distributed", "torch.utils.data", "accelerate", "torch._dynamo")
MOST = 3  # helpers at a time
PATIENCE = 120.0  # seconds for a helper's imports
LARGEST = 1 << 20  # bytes of a request
NUMBER = struct.Struct("i")  # a process id, then an exit code
TOLD = "TORCHELASTIC_"  # variables of torchrun, which tells each process other values
# variables that Python or a package reads once, when it starts or is imported
READ_ONCE = tuple(
    """
    PYTHON TORCH PYTORCH ATEN_ ACCELERATE_LOG HF_ TRANSFORMERS_ USE_TORCH CUDA_ OMP_ KMP_
    GOMP_ MKL_ OPENBLAS_ BLIS_ NUMEXPR_ NPY_ NUMPY_ SCIPY_ SKLEARN_ JOBLIB_ LOKY_ TQDM_ MPL
    LD_ MALLOC_ GLIBC_ LC_ LANG HOME XDG_ COVERAGE_
    """.split()
)

# variables that scikit-learn and torch set when they are imported, so that a process has
# them only after some of its work: no reason for another helper
SET_BY_IMPORTS = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR")

# --- the process that asks ------------------------------------------------------------------------


class Process:
    """A child of a helper, with what is used of subprocess.Popen."""

    def __init__(self, pid: int, status: int, stdin: IO[bytes] | None):
        self.pid, self.stdin = pid, stdin
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        """Return the exit code, or minus the signal, or None while the process runs."""
        if self.returncode is None and _readable(self._status, 0.0):
            self._end(os.read(self._status, NUMBER.size))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raises subprocess.TimeoutExpired after `timeout` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = 1.0 if until is None else until - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            if _readable(self._status, left):
                time.sleep(0.001)  # only without a helper is there nothing to read
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process by SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _end(self, read: bytes) -> None:
        if read:
            self.returncode = NUMBER.unpack(read)[0]
        elif not _exists(self.pid):  # its helper is gone, and with it the real code
            self.returncode = -signal.SIGKILL
        if self.returncode is not None:
            os.close(self._status)

    def __del__(self) -> None:
        if self.returncode is None:
            os.close(self._status)


def start(
    command: list[str],
    env: dict[str, str],
    cwd: str | None = None,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    imports: tuple[str, ...] | None = None,
) -> subprocess.Popen | Process:
    """Start a Python in a session of its own, by a fork of a helper where that can be.

    `command` starts with sys.executable, then perhaps -P, then -m and a module, -c and
    code, or a script. The files are as in subprocess.Popen; of pipes, only stdin's. The
    helper imports `imports`, else IMPORTS, and leaves out those that are missing.
    """
    if sys.platform == "linux" and _understood(command):
        folder = os.path.abspath(cwd or "")
        with contextlib.suppress(OSError, EOFError, ValueError):
            wanted = IMPORTS if imports is None else imports
            return _ask(command, env, folder, [stdin, stdout, stderr], wanted)
    return start_cold(command, env, cwd, stdin, stdout, stderr)


def start_cold(
    command: list[str],
    env: dict[str, str],
    cwd: str | None = None,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
) -> subprocess.Popen:
    """Start a process in a session of its own, on Windows in a group, in the usual way."""
    own: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        own = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return subprocess.Popen(
        command, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, **own
    )


def get_ready(env: dict[str, str]) -> None:
    """Start the helper for such an environment, and do not wait for its imports."""
    folder = os.getcwd()
    if sys.platform == "linux":
        with contextlib.suppress(OSError), _lock:
            kind = _kind(env, folder, IMPORTS)
            _helper_of(kind, env, folder, IMPORTS)


class _Helper:
    """The helper of one kind, and the socket to it."""

    def __init__(self, env: dict[str, str], folder: str, imports: tuple[str, ...]):
        self.owner, self.good = os.getpid(), False
        self.served: WeakSet[Process] = WeakSet()
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket, there = pair
        nothing = subprocess.DEVNULL
        with there:
            number = there.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(number), *imports],
                stdin=nothing,
                stdout=nothing,
                stderr=nothing,
                env=env,
                cwd=folder,
                pass_fds=[number],
                start_new_session=True,
            )

    def usable(self) -> bool:
        """Tell whether it lives; a fork of the process that started it has none."""
        return self.owner == os.getpid() and self.process.poll() is None

    def busy(self) -> bool:
        """Tell whether a process runs whose end it is to report."""
        return any(process.poll() is None for process in self.served)

    def close(self) -> None:
        """Let it end; its children go on."""
        self.socket.close()
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()


_helpers: dict[str, _Helper] = {}
_hopeless: set[str] = set()  # kinds whose helper has failed before it served once
_lock = threading.Lock()


def _ask(command, env, folder, files, imports) -> Process:
    """Have a helper fork a child; raises OSError or EOFError where that fails."""
    with contextlib.ExitStack() as opened, _lock:
        kind = _kind(env, folder, imports)
        if kind in _hopeless:
            raise OSError("no helper can serve this kind of process")
        stdin = None
        if files[0] == subprocess.PIPE:
            numbers = os.pipe()
            opened.callback(os.close, numbers[0])
            stdin, files = open(numbers[1], "wb"), [numbers[0], *files[1:]]
        opened.push(lambda kind_of, *_: kind_of and stdin and stdin.close())
        numbers = [_number(file, which, opened) for which, file in enumerate(files)]
        status, end = os.pipe()
        opened.push(lambda kind_of, *_: kind_of and os.close(status))
        try:
            helper = _helper_of(kind, env, folder, imports)
            request = json.dumps({"command": command, "env": env, "folder": folder})
            socket.send_fds(helper.socket, [request.encode()], [*numbers, end])
        finally:
            os.close(end)
        try:
            read = os.read(status, NUMBER.size) if _readable(status, PATIENCE) else b""
            if not read:
                raise EOFError("the helper has not answered")
        except BaseException as error:
            helper.close()
            del _helpers[kind]
            if not helper.good and isinstance(error, EOFError):
                _hopeless.add(kind)
            raise
        process = Process(NUMBER.unpack(read)[0], status, stdin)
        helper.served.add(process)
        helper.good = True
        return process


def _helper_of(kind: str, *arguments) -> _Helper:
    """Return the helper of a kind; a new one may take the place of the longest unused."""
    helper = _helpers.pop(kind, None)
    if helper is None or not helper.usable():
        if len(_helpers) == MOST:
            idle = [key for key, one in _helpers.items() if not one.busy()]
            if not idle:
                raise OSError("all helpers have processes that run")
            _helpers.pop(idle[0]).close()
        helper = _Helper(*arguments)
    _helpers[kind] = helper  # at the end: the last one used
    return helper


@atexit.register
def close() -> None:
    """End the helpers; the next `start` starts new ones."""
    with _lock:
        while _helpers:
            _helpers.popitem()[1].close()


def _understood(command: list[str]) -> bool:
    """Tell whether a command line is one that a fork can carry out as Python would."""
    rest = command[2:] if command[1:2] == ["-P"] else command[1:]
    if command[0] != sys.executable or not rest:
        return False
    return len(rest) > 1 if rest[0] in ("-m", "-c") else rest[0][:1] not in ("-", "")


def _kind(env: dict[str, str], folder: str, imports: tuple[str, ...]) -> str:
    """Return all that a new Python takes over, or reads but once, as one text."""
    import resource

    variables = {
        name: env[name]
        for name in env
        if name.startswith(READ_ONCE)
        and not name.startswith(TOLD)
        and name not in SET_BY_IMPORTS
    }
    paths = env.get("PYTHONPATH", "")
    absolute = not paths or all(map(os.path.isabs, paths.split(os.pathsep)))
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    ignored = [
        int(number)
        for number in signal.valid_signals()
        if signal.getsignal(number) == signal.SIG_IGN
    ]
    with open("/proc/self/status") as file:
        mask = [line for line in file if line.startswith("Umask")]
    facts = [
        *(imports, sys.executable, sorted(variables.items()), sorted(ignored), mask),
        "" if absolute else folder,
        [resource.getrlimit(getattr(resource, name)) for name in limits],
        sorted(os.sched_getaffinity(0)),  # pyright: ignore[reportAttributeAccessIssue]
        os.getpriority(os.PRIO_PROCESS, 0),
    ]
    return json.dumps(facts)


def _number(file: Any, which: int, opened: contextlib.ExitStack) -> int:
    """Return the descriptor that stands for a file as Popen takes it."""
    if file is None:
        return which
    if file == subprocess.DEVNULL:
        file = os.open(os.devnull, os.O_RDWR)
        opened.callback(os.close, file)
    if not isinstance(file, int):
        return file.fileno()
    if file < 0:
        raise ValueError("only stdin can be a pipe")
    return file


def _readable(number: int, seconds: float) -> bool:
    """Wait until there is something to read, or nothing more to come."""
    waiting = select.poll()
    waiting.register(number, select.POLLIN)
    return bool(waiting.poll(max(0, seconds) * 1000))


def _exists(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and is not collected does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


# --- the helper -----------------------------------------------------------------------------------


def _help(number: int, imports: list[str]) -> dict:
    """Fork a child for each request; return the request, in the child."""
    for name in imports:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        os._exit(1)  # a fork would lack the other threads, and may keep their locks
    os.chdir("/")
    gc.collect()
    gc.freeze()  # the collector writes to no page that the children share
    control = socket.socket(fileno=number)
    woken, wakes = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    children: dict[int, int] = {}
    waiting = select.poll()
    waiting.register(number, select.POLLIN)
    waiting.register(woken, select.POLLIN)
    while True:
        ready = {which for which, _ in waiting.poll()}
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)
        for child in list(children):
            ended, how = os.waitpid(child, os.WNOHANG)
            if ended:
                with contextlib.suppress(OSError):  # nobody asks any more
                    os.write(children[child], NUMBER.pack(os.waitstatus_to_exitcode(how)))
                os.close(children.pop(child))
        if number not in ready:
            continue
        request, files, flags, _ = socket.recv_fds(control, LARGEST, 4)
        if not request:  # the process that asks has ended
            os._exit(0)
        whole = len(files) == 4 and not flags & socket.MSG_TRUNC
        try:
            child = os.fork() if whole else -1
        except OSError:
            child = -1
        if child > 0:
            children[child] = files.pop()
        if child:
            for file in files:
                os.close(file)
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        for file in (woken, wakes, *children.values()):
            os.close(file)
        return json.loads(request) | {"files": files}


# --- the child ------------------------------------------------------------------------------------


def _become_new(job: dict) -> None:
    """Make this fork what a new Python with the job's environment and files would be."""
    os.setsid()
    *files, status = job["files"]
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["folder"])
    time.tzset()
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # pyright: ignore
    importlib.invalidate_caches()
    loaded: Any = sys.modules  # the states that a new process draws or notes for itself
    if "torch" in loaded:
        loaded["torch"].default_generator.seed()
    if "numpy" in loaded:
        loaded["numpy"].random.seed()
    if "tempfile" in loaded:
        loaded["tempfile"].tempdir = None
    if "multiprocessing.process" in loaded:
        loaded["multiprocessing.process"].ORIGINAL_DIR = job["folder"]
    os.write(status, NUMBER.pack(os.getpid()))
    os.close(status)


def _play(command: list[str]) -> None:
    """Carry out a command line as Python does."""
    main: Any = ModuleType("__main__")
    main.__builtins__ = __builtins__
    if "__annotations__" in globals():  # not in every version of Python
        main.__annotations__ = {}
    sys.modules["__main__"] = main
    sys.orig_argv = command
    safe = command[1] == "-P"
    what, *arguments = command[2:] if safe else command[1:]
    if what == "-m":
        import runpy

        first = os.getcwd()
        sys.argv = ["-m", *arguments[1:]]
        carry_out: Any = runpy._run_module_as_main  # pyright: ignore
        given = (arguments[0],)
    else:
        if what == "-c":
            first, text, file = "", arguments[0], "<string>"
            sys.argv = ["-c", *arguments[1:]]
        else:
            with open(what, "rb") as script:
                text = script.read()
            file, first = os.path.abspath(what), os.path.dirname(os.path.realpath(what))
            main.__file__, main.__cached__ = file, None
            main.__loader__ = SourceFileLoader("__main__", file)
            sys.argv = [what, *arguments]
        carry_out = exec
        given = (compile(text, file, "exec", dont_inherit=True), main.__dict__)
    if not safe:
        sys.path.insert(0, first)
    carry_out(*given)


def _live(job: dict) -> None:
    """Be the process that was asked for, to its end."""
    code, by_signal = 0, False
    try:
        _become_new(job)
        _play(job["command"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        code, by_signal = 1, isinstance(error, KeyboardInterrupt)
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next  # without our own frames
        sys.excepthook(type(error), error.with_traceback(trace), trace)
    with contextlib.suppress(BaseException):
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    if by_signal:  # so does Python end where nothing takes Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    # Python would now take all objects apart, which copies every page of the helper's
    os._exit(code & 255)


if __name__ == "__main__":
    atexit.unregister(close)
    _live(_help(int(sys.argv[1]), sys.argv[2:]))
