"""A new Python in milliseconds: a fork of a helper that has imported what is slow to import.

`start` takes the command line of a Python. The first of a kind starts a helper: a fresh
Python that imports packages such as torch, and nothing else. For each command the helper
forks a child, which gets the command's own environment, folder, files, random state and
`__main__`, and reads all other code anew. Between the two stands a process that waits for
the child and tells how it ended. The process that calls `start` is never forked, so no
Accelerator, CUDA context or thread pool of its own gets into a child; and the helper has
one thread, or it is not used.

Variables that a Python reads only when it starts or imports, such as OMP_NUM_THREADS,
decide which helper serves: another value, another helper. Three differences to an
ordinary start are left: children of one helper hash strings alike; limits, umask and
processors are those of the time at which the helper started; and objects that live to
the end of the process are not taken apart.
Elsewhere than on Linux, and where a helper fails, the process is an ordinary one.

A process that starts many, such as a suite's kernels, can lend them its helpers (`lend`),
so that each need not start one of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import itertools
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from importlib.machinery import SourceFileLoader
from multiprocessing.connection import Connection, Pipe
from types import ModuleType
from typing import IO, Any

# the last is what torch imports, in a second and a half, when it makes an optimizer
IMPORTS = ("torch.distributed", "torch.utils.data", "accelerate", "torch._dynamo")
MOST = 3  # helpers at a time
PATIENCE = 120.0  # seconds for a helper's imports
LARGEST = 1 << 20  # bytes of a request
LENT = "DLCOURSE_HELPERS"  # the variable that says where helpers can be borrowed
OFTEN = 8  # requests after which a helper makes the next ones cheaper
HUGE = 2 << 20  # bytes of a large page of memory
# variables that Python or a package reads once, when it starts or is imported
READ_ONCE = tuple(
    """
    PYTHON TORCH PYTORCH ATEN_ ACCELERATE_LOG HF_ TRANSFORMERS_ USE_TORCH CUDA_ OMP_
    KMP_ GOMP_ MKL_ OPENBLAS_ BLIS_ NUMEXPR_ NPY_ NUMPY_ SCIPY_ SKLEARN_ JOBLIB_ LOKY_ TQDM_
    MPL LD_ MALLOC_ GLIBC_ LC_ LANG HOME XDG_ COVERAGE_
    """.split()
)
# no reason for another helper: torchrun tells each process other values, matplotlib's is
# read anew in each child, and scikit-learn and torch set the others when they are imported,
# so after some of a process's work
LEFT_OUT = (
    "TORCHELASTIC_",
    "TORCH_NCCL_",
    "PYTHON_EXEC",
    "MPLBACKEND",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "TORCHINDUCTOR_CACHE_DIR",
)

# --- the process that asks ------------------------------------------------------------------------


class Process:
    """A child of a helper, with what is used of subprocess.Popen."""

    stdout = stderr = None

    def __init__(self, pid: int, end: Connection, stdin: IO[bytes] | None):
        self.pid, self.stdin = pid, stdin
        self.returncode: int | None = None
        self._end = end  # the exit code comes from here

    def poll(self) -> int | None:
        """Return the exit code, or minus the signal, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raises subprocess.TimeoutExpired after `timeout` seconds."""
        if self.returncode is None:
            if not self._end.poll(timeout):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            try:
                self.returncode = self._end.recv()
            except EOFError:  # the process that waits for it has been killed
                self.returncode = -signal.SIGKILL
            self._end.close()
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


def start(
    command: list[str],
    env: dict[str, str],
    cwd: str | None = None,
    imports: tuple[str, ...] | None = None,
    **files: Any,
) -> subprocess.Popen | Process:
    """Start a Python in a session of its own, by a fork of a helper where that can be.

    `command` starts with sys.executable, then perhaps -P, then -m and a module, -c and
    code, or a script. `files`: stdin, stdout and stderr as in subprocess.Popen; of pipes,
    only stdin's. The helper imports `imports`, else IMPORTS, without those that are missing,
    or it is there already and has imported more.
    """
    if sys.platform == "linux" and _understood(command):
        folder = os.path.abspath(cwd or "")
        request = [command, env, folder, IMPORTS if imports is None else imports]
        with contextlib.suppress(OSError, EOFError), _lock:
            helper = _borrowed() or _helper_for(*request[1:])
            return helper.fork(request, files)
    return start_cold(command, env, cwd, **files)


def start_cold(
    command: list[str], env: dict[str, str], cwd: str | None = None, **files: Any
) -> subprocess.Popen:
    """Start a process in a session of its own, on Windows in a group, in the usual way."""
    own: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        own = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return subprocess.Popen(command, env=env, cwd=cwd, **files, **own)


def get_ready(env: dict[str, str]) -> None:
    """Start the helper for such an environment, and do not wait for its imports."""
    if sys.platform == "linux":
        request = [[], env, os.getcwd(), IMPORTS]
        with contextlib.suppress(OSError), _lock:
            lender = _borrowed()
            if lender is None:
                _helper_for(*request[1:])
            else:
                lender.send(request, [])


def lend() -> dict[str, str]:
    """Lend this process's helpers, and return the variable by which others find them.

    A process that has borrowed passes on what it has borrowed.
    """
    global _place
    if sys.platform != "linux":
        return {}
    with _lock:
        if lender := _borrowed():
            lender.close()
            return {LENT: os.environ[LENT]}
        if _place is None:
            _place = tempfile.TemporaryDirectory()  # nobody else may look into it
            asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            asked.bind(os.path.join(_place.name, "helpers"))
            asked.listen(64)
            threading.Thread(target=_pass_on, args=[asked], daemon=True).start()
        return {LENT: os.path.join(_place.name, "helpers")}


def _pass_on(asked: socket.socket) -> None:
    """Hand each request and its files to a helper, which answers the one who asks."""
    while True:
        asking, _ = asked.accept()
        files: list[int] = []
        with asking, contextlib.suppress(OSError, ValueError):
            text, files, *_ = socket.recv_fds(asking, LARGEST, 4)
            request = json.loads(text)
            with _lock:
                helper = _helper_for(*request[1:])
                if files:
                    helper.send(request, files)
        # where no helper has taken them, the one who asks sees the end of its pipe
        for file in files:
            os.close(file)


def _borrowed() -> _Lender | None:
    """Return the process whose helpers this one may use, if there is one."""
    with contextlib.suppress(OSError, KeyError):
        return _Lender(os.environ[LENT])
    return None


class _Asked:
    """The end of a socket at whose other end children are forked."""

    socket: socket.socket

    def send(self, request: list, files: list[int]) -> None:
        """Send a request and its files: stdin, stdout, stderr, and where to answer."""
        socket.send_fds(self.socket, [json.dumps(request).encode()], files)

    def close(self) -> None:
        """Ask nothing more."""
        self.socket.close()

    def fork(self, request: list, files: dict[str, Any]) -> Process:
        """Have a child forked; raises OSError or EOFError where that fails."""
        end, its_end = Pipe(duplex=False)
        stdin = None
        with contextlib.ExitStack() as opened:
            opened.enter_context(its_end)
            if files.get("stdin") == subprocess.PIPE:
                there, here = os.pipe()
                opened.callback(os.close, there)
                stdin, files = open(here, "wb"), files | {"stdin": there}  # noqa: SIM115
            numbers = []
            for number, name in enumerate(("stdin", "stdout", "stderr")):
                file = files.get(name)
                if file == subprocess.DEVNULL:
                    file = opened.enter_context(open(os.devnull, "r+b", buffering=0))
                if file is not None:
                    number = file if isinstance(file, int) else file.fileno()
                numbers.append(number)
            self.send(request, [*numbers, its_end.fileno()])
        try:
            if not end.poll(PATIENCE):
                raise EOFError("the helper has not answered")
            return Process(end.recv(), end, stdin)
        except (EOFError, OSError):
            self.close()
            if stdin is not None:
                stdin.close()
            raise


class _Lender(_Asked):
    """Another process that lends its helpers, for one request."""

    def __init__(self, place: str):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.socket.connect(place)
        except OSError:
            self.socket.close()
            raise

    def send(self, request: list, files: list[int]) -> None:
        with self.socket:
            super().send(request, files)


class _Helper(_Asked):
    """A helper that this process has started."""

    def __init__(self, env: dict[str, str], folder: str, imports: tuple[str, ...]):
        self.imports, self._ready = frozenset(imports), False
        self.socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            number = there.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(number), *imports],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={name: env[name] for name in env if name != "MPLBACKEND"},
                cwd=folder,
                pass_fds=[number],
                start_new_session=True,
            )

    @property
    def good(self) -> bool:
        """Whether it has imported all and can serve."""
        with contextlib.suppress(OSError):
            self._ready = self._ready or bool(self.socket.recv(1, socket.MSG_DONTWAIT))
        return self._ready

    def close(self) -> None:
        """Let it end; its children go on."""
        super().close()
        self.process.kill()
        self.process.wait()


_helpers: dict[tuple[str, frozenset[str]], _Helper] = {}  # by kind and imports
_place: tempfile.TemporaryDirectory | None = None  # of the socket at which they are lent
_lock = threading.Lock()


def _helper_for(env: dict[str, str], folder: str, imports: tuple[str, ...]) -> _Helper:
    """Return a helper, perhaps a new one in the place of the longest unused.

    Raises OSError for a kind whose helper has ended before it served once.
    """
    variables = {
        name: value
        for name, value in env.items()
        if name.startswith(READ_ONCE) and not name.startswith(LEFT_OUT)
    }
    paths = env.get("PYTHONPATH", "")
    absolute = not paths or all(map(os.path.isabs, paths.split(os.pathsep)))
    kind = json.dumps([variables, "" if absolute else folder], sort_keys=True)
    for known, helper in _helpers.items():
        if known[0] == kind and helper.imports.issuperset(imports):
            break
    else:
        known, helper = (kind, frozenset(imports)), None
    _helpers.pop(known, None)
    if helper is None or (helper.good and helper.process.poll() is not None):
        if len(_helpers) == MOST:
            _helpers.pop(next(iter(_helpers))).close()
        helper = _Helper(env, folder, imports)
    _helpers[known] = helper  # at the end: the last one used
    if not helper.good and helper.process.poll() is not None:
        raise OSError("no helper can serve this kind of process")
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


# --- the helper -----------------------------------------------------------------------------------


def _help(number: int, imports: list[str]) -> tuple[list, list[int]]:
    """Fork for each request; return the request and its files, in the fork."""
    for name in imports:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        os._exit(1)  # a fork would lack the other threads, and may keep their locks
    # at the end of each child torch would take 200 libraries of operators apart
    for end in getattr(weakref.finalize, "_registry", ()):
        end.atexit = False
    importlib.invalidate_caches()  # each child does so, with little left to write to
    gc.collect()
    gc.freeze()  # the collector writes to no page that the children share
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # none of them is waited for
    control = socket.socket(fileno=number)
    control.send(b"!")  # it can serve
    for served in itertools.count(1):
        request, files, *_ = socket.recv_fds(control, LARGEST, 4)
        if not request:  # the process that asks has ended
            os._exit(0)
        if os.fork() == 0:
            control.close()
            return json.loads(request)[:3], files
        for file in files:
            os.close(file)
        if served == OFTEN:
            use_large_pages()
    raise AssertionError("it serves to its end")


def use_large_pages() -> None:
    """Move this process's memory into large pages where Linux can: one entry of the page
    table stands for 512, so a fork takes a third of the time.

    It takes about half a second, and pays where many forks follow. A child that writes
    gets a small page of its own, as ever.
    """
    import ctypes  # only here: libffi may keep a file open, which every child would have

    collapse = 25  # MADV_COLLAPSE of Linux 6.1; an older one refuses
    with open("/proc/self/maps") as file:
        areas = [line.split() for line in file]
    advise = ctypes.CDLL(None).madvise
    for place, mode, _, _, inode, *_ in areas:
        if mode == "rw-p" and inode == "0":  # this process's own, and of no file
            first, end = (int(bound, 16) for bound in place.split("-"))
            for start in range(-(-first // HUGE) * HUGE, end - HUGE + 1, HUGE):
                advise(ctypes.c_void_p(start), ctypes.c_size_t(HUGE), collapse)


def _become_new(env: dict[str, str], folder: str, files: list[int]) -> None:
    """Make this fork what a new Python would be; return in a child that this one awaits."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *files, number = files
    for which, file in enumerate(files):
        os.dup2(file, which)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    time.tzset()
    with Connection(number, readable=False) as end:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        child = os.fork()
        if child:
            _wait_for(child, end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        os.setsid()
        end.send(os.getpid())
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # pyright: ignore
    importlib.invalidate_caches()
    loaded: Any = sys.modules  # the states that a new process draws or notes for itself
    if "torch" in loaded:
        loaded["torch"].default_generator.seed()
    if "numpy" in loaded:
        loaded["numpy"].random.seed()
    if "tempfile" in loaded:
        loaded["tempfile"].tempdir = None
    backend = env.get("MPLBACKEND")
    if "matplotlib" in loaded and backend:
        # where it names no backend, matplotlib draws as if there were no variable
        with contextlib.suppress(ValueError):
            loaded["matplotlib"].rcParams["backend"] = backend
    loaded["multiprocessing.process"].ORIGINAL_DIR = folder


def _wait_for(child: int, end: Connection) -> None:
    """Send how the child ends, and end; sooner where nobody is left who would read it.

    Then the child, if it asks, sees that its parent is gone: so a kernel ends.
    """
    os.closerange(0, 3)
    unread = select.poll()
    unread.register(end, 0)  # for what is always told: that the other side is closed
    while True:
        ended, how = os.waitpid(child, os.WNOHANG)
        if ended:
            end.send(os.waitstatus_to_exitcode(how))
        if ended or unread.poll(0):
            os._exit(0)
        signal.sigtimedwait([signal.SIGCHLD], 1.0)


def _play(command: list[str]) -> None:
    """Carry out a command line as Python does."""
    main: Any = ModuleType("__main__")
    main.__builtins__ = __builtins__
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    sys.modules["__main__"] = main
    sys.orig_argv = command
    safe = command[1] == "-P"
    what, *arguments = command[2:] if safe else command[1:]
    file, first = "<string>", ""
    if what == "-m":
        first = os.getcwd()
        sys.argv = ["-m", *arguments[1:]]
    elif what == "-c":
        sys.argv = ["-c", *arguments[1:]]
    else:
        file, first = os.path.abspath(what), os.path.dirname(os.path.realpath(what))
        main.__file__, main.__cached__ = file, None
        main.__loader__ = SourceFileLoader("__main__", file)
        sys.argv = [what, *arguments]
    if not safe:
        sys.path.insert(0, first)
    if what == "-m":
        runpy._run_module_as_main(arguments[0])  # pyright: ignore
        return
    text = arguments[0] if what == "-c" else main.__loader__.get_data(file)
    exec(compile(text, file, "exec", dont_inherit=True), main.__dict__)


def _dynamo_s_table() -> Any:
    module: Any = sys.modules.get("torch._dynamo.utils")
    return getattr(module, "dump_compile_times", None)


def _live(command: list[str]) -> None:
    """Be the process that was asked for, to its end."""
    code, by_signal = 0, False
    try:
        _play(command)
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
        if not logging.getLogger("torch._dynamo.utils").isEnabledFor(logging.INFO):
            # it would write a table of times, at a fifth of a short child's cost, to no log
            atexit.unregister(_dynamo_s_table())
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
    (asked, its_env, its_folder), its_files = _help(int(sys.argv[1]), sys.argv[2:])
    _become_new(its_env, its_folder, its_files)
    _live(asked)
