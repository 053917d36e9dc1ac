"""A fork of the helper is what a new Python would be, and no process is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import alive

from dlcourse.lab import warm

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks under Linux only")

FACTS = """
import json, os, random, signal, sys, threading
import __main__
tail = sys.argv.pop()
facts = {
    "argv": sys.argv, "original": sys.orig_argv[:-1], "path": sys.path,
    "folder": os.getcwd(),
    "variables": {k: v for k, v in os.environ.items() if k != "_"},
    "main": sorted(vars(__main__)), "name": __name__, "file": vars().get("__file__"),
    "spec": __spec__ and __spec__.name, "package": vars().get("__package__"),
    "leads": [os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()],
    "signals": [str(signal.getsignal(n)).split(" at ")[0] for n in signal.valid_signals()],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "threads": threading.active_count(), "read": sys.stdin.read(),
    "files": sorted(os.listdir("/proc/self/fd"), key=int)[:3],
    "many": len(os.listdir("/proc/self/fd")),
    "streams": [sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering],
    "faults": __import__("faulthandler").is_enabled(), "umask": os.umask(0),
    "course": sorted(name for name in sys.modules if name.startswith("dlcourse")),
}
with open(tail, "w") as file:
    json.dump(facts, file)
"""


@pytest.fixture(autouse=True)
def helpers_are_our_own(monkeypatch):
    """Not those that the controller of pytest-xdist lends its workers."""
    monkeypatch.delenv(warm.LENT, raising=False)


def end_of(process) -> int:
    return process.wait(60)


def run(start, command, tmp_path, env=None, **options) -> tuple[int, str, str]:
    """Return the exit code and what was printed."""
    # with more threads torch starts some when it is imported: no helper for forks then
    env = os.environ | {"OMP_NUM_THREADS": "1"} if env is None else env
    with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
        process = start(
            [sys.executable, *command],
            env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            **options,
        )
        code = end_of(process)
    assert isinstance(process, warm.Process) == (start is not warm.start_cold)
    return code, (tmp_path / "out").read_text(), (tmp_path / "err").read_text()


def bare(*args, **options):
    """Start by a helper that has imported nothing: it is there in a moment."""
    return warm.start(*args, imports=(), **options)


def test_a_fork_is_as_a_new_python(tmp_path):
    (tmp_path / "script.py").write_text(FACTS)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "mine.py").write_text(FACTS)
    ways = [
        ["-P", "-m", "mine", "one"],
        ["-m", "mine"],
        ["-c", FACTS, "one", "two"],
        ["script.py", "one"],
        ["-P", str(tmp_path / "script.py")],
    ]
    paths = [str(tmp_path / "inside"), str(ROOT), "/nowhere"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "SOMETHING": "new"}
    os.environ.pop("SOMETHING", None)
    for way in ways:
        told = []
        for start in (warm.start_cold, bare):
            command = [*way, str(tmp_path / "facts")]
            done = run(start, command, tmp_path, env, cwd=str(tmp_path))
            assert done == (0, "", "")
            told.append(json.loads((tmp_path / "facts").read_text()))
        assert told[0] == told[1]
        shell_s = {"_"}  # the last command
        wanted = {name: env[name] for name in env.keys() - shell_s}
        assert told[0]["variables"] == wanted and not told[0]["course"]


@pytest.mark.parametrize(
    "code",
    [
        "import sys; print('out'); print('err', file=sys.stderr)",
        "def f():\n    raise ValueError('no')\nf()",
        "import sys; sys.exit(7)",
        "import sys; sys.exit('words')",
        "import sys; sys.exit()",
        "import sys; sys.exit(-1)",
        "import os; os._exit(3)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "raise KeyboardInterrupt",
        "import os, signal; os.kill(os.getpid(), signal.SIGINT); input()",
        "import atexit; atexit.register(print, 'at the end'); print('first')",
        "import threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
        "this is no Python",
        "import missing_module",
    ],
)
def test_ends_and_words_are_those_of_a_new_python(tmp_path, code):
    own, cold = [run(start, ["-c", code], tmp_path) for start in (bare, warm.start_cold)]
    if sys.version_info >= (3, 13):  # it shows the lines of a -c program, ours does not
        own, cold = without_lines(own), without_lines(cold)
    assert own == cold


def without_lines(done):
    """Return (code, out, errors) without the lines of source that a traceback shows."""
    code, out, errors = done
    kept = [line for line in errors.splitlines() if not line.startswith("    ")]
    return code, out, kept


def test_a_broken_module_or_script_ends_as_in_a_new_python(tmp_path):
    (tmp_path / "broken.py").write_text("def f():\n    1 / 0\nf()\n")
    for command in (["broken.py"], ["-m", "broken"], ["-m", "gone"]):
        ends = [
            run(start, command, tmp_path, cwd=str(tmp_path))
            for start in (warm.start_cold, bare)
        ]
        assert ends[0] == ends[1] and ends[0][0] == 1


def test_random_numbers_differ_from_process_to_process(tmp_path):
    code = "import random, numpy, torch\nprint(random.random(), numpy.random.rand(), "
    code += "torch.rand(1).item(), torch.initial_seed())"
    lines = {run(warm.start, ["-c", code], tmp_path)[1] for _ in range(3)}
    numbers = list(zip(*(line.split() for line in lines), strict=True))
    assert [len(set(drawn)) for drawn in numbers] == [3] * 4


def test_an_edited_module_is_read_anew(tmp_path):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    for text in ("first", "other"):  # of one length, perhaps in one second
        (tmp_path / "edited.py").write_text(f"print('{text}')")
        later = time.time() + (text == "other")
        os.utime(tmp_path / "edited.py", (later, later))
        assert run(bare, ["-c", "import edited"], tmp_path, env) == (0, text + "\n", "")


def test_packages_are_there_at_once_and_nothing_of_the_course(tmp_path):
    code = "import sys; print(*sorted(name for name in sys.modules if '.' not in name))"
    names = run(warm.start, ["-c", code], tmp_path)[1].split()
    assert {"torch", "numpy", "accelerate"} <= set(names) and "dlcourse" not in names


def test_what_python_reads_once_gets_a_helper_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "_helpers", {})
    try:
        code = "import sys; print(sys.flags.hash_randomization, hash('a'))"
        for seed in ("0", "1", "0"):
            env = os.environ | {"PYTHONHASHSEED": seed}
            got = run(bare, ["-c", code], tmp_path, env)
            assert got == run(warm.start_cold, ["-c", code], tmp_path, env)
        assert len(warm._helpers) == 2
    finally:
        warm.close()


def test_one_helper_serves_for_every_backend_of_matplotlib(tmp_path, monkeypatch):
    """Also where the first that asks wants another one."""
    monkeypatch.setattr(warm, "_helpers", {})
    code = (
        "import matplotlib; own = matplotlib.get_backend(auto_select=False); "
        "from matplotlib import pyplot; print(own, matplotlib.get_backend())"
    )
    try:
        for backend in ("svg", "Agg", "module://matplotlib_inline.backend_inline", ""):
            env = os.environ | {"MPLBACKEND": backend}
            got = run(
                warm.start, ["-c", code], tmp_path, env, imports=("matplotlib.figure",)
            )
            assert got == run(warm.start_cold, ["-c", code], tmp_path, env)
            assert backend in got[1]
        assert len(warm._helpers) == 1
    finally:
        warm.close()


def test_a_helper_that_was_made_ready_serves_after_more_imports(tmp_path, monkeypatch):
    """Not only what it was made for: scikit-learn and torch set variables meanwhile."""
    monkeypatch.setattr(warm, "_helpers", {})
    monkeypatch.setattr(warm, "IMPORTS", ())
    try:
        warm.get_ready(dict(os.environ))
        (helper,) = warm._helpers.values()
        code = "import os; print(os.environ['KMP_INIT_AT_FORK'])"
        env = os.environ | {name: "FALSE" for name in warm.LEFT_OUT}
        assert run(warm.start, ["-c", code], tmp_path, env)[1] == "FALSE\n"
        assert list(warm._helpers.values()) == [helper] and helper.good
    finally:
        warm.close()


@pytest.mark.parametrize("loaded", [True, False])
def test_a_notebook_starts_the_helper_with_its_imports(loaded):
    code = "import sys; from types import ModuleType; name = 'ipykernel.kernelapp'\n"
    code += f"if {loaded}: sys.modules[name] = ModuleType(name)\n"
    code += "from dlcourse.lab import launching, warm; print(len(warm._helpers))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{int(loaded)}\n", done.stderr


@pytest.mark.parametrize("path", ["", str(ROOT), os.pathsep.join(["there", str(ROOT)])])
def test_one_helper_serves_in_many_folders(tmp_path, monkeypatch, path):
    """But where the path begins in the folder, a new Python would have another path."""
    monkeypatch.setattr(warm, "_helpers", {})
    env = os.environ | {"PYTHONPATH": path}
    try:
        for folder in (tmp_path / "one", tmp_path / "two"):
            folder.mkdir()
            code = "import os, sys; print(os.getcwd(), sys.path)"
            got = run(bare, ["-c", code], tmp_path, env, cwd=str(folder))
            assert got == run(
                warm.start_cold, ["-c", code], tmp_path, env, cwd=str(folder)
            )
        assert len(warm._helpers) == (2 if path.startswith("there") else 1)
    finally:
        warm.close()


def test_a_helper_makes_room_for_another_and_its_process_goes_on(monkeypatch):
    monkeypatch.setattr(warm, "_helpers", {})
    monkeypatch.setattr(warm, "MOST", 1)
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    seeds = [os.environ | {"PYTHONHASHSEED": seed} for seed in "12"]
    try:
        first = bare(sleeping, seeds[0])
        second = bare(sleeping, seeds[1])
        assert len(warm._helpers) == 1
        for process, number in ((first, signal.SIGTERM), (second, signal.SIGKILL)):
            assert isinstance(process, warm.Process) and process.poll() is None
            process.send_signal(number)
            assert process.wait(20) == -number
    finally:
        warm.close()


def test_a_helper_that_is_asked_often_goes_on_serving(tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "_helpers", {})
    helpers = set()
    try:
        for number in range(warm.OFTEN + 3):
            done = run(bare, ["-c", f"print({number})"], tmp_path)
            assert done == (0, f"{number}\n", "")
            helpers.update(warm._helpers.values())
        assert len(helpers) == 1  # one has served them all
    finally:
        warm.close()


LARGE_PAGES = """
import os, random
from dlcourse.lab import warm
words = random.Random(0).randbytes(16 << 20)  # of eight large pages
numbers = list(range(200_000))
held = bytearray(words)
warm.use_large_pages()
assert held == words and numbers == list(range(200_000))
child = os.fork()
if child == 0:
    held[:] = bytes(len(held))
    os._exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3 and held == words
"""


def test_memory_in_large_pages_holds_what_it_held(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    assert run(bare, ["-c", LARGE_PAGES], tmp_path, env) == (0, "", "")


def test_a_fork_leaves_to_the_system_what_torch_would_take_apart(tmp_path):
    """Its own ends run, also those that a package registers while it is imported."""
    (tmp_path / "ends.py").write_text(
        "import atexit, weakref\nclass Kept: pass\nkept = Kept()\n"
        "atexit.register(print, 'the end')\nweakref.finalize(kept, print, 'apart')\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    code = "import ends, weakref; weakref.finalize(ends.kept, print, 'own')"
    # in this order: a helper with more imports would serve for fewer
    for imports, want in (((), "own\napart\nthe end\n"), (("ends",), "own\nthe end\n")):
        done = run(warm.start, ["-c", code], tmp_path, env, imports=imports)
        assert done == (0, want, "")


def test_a_command_that_is_not_understood_starts_in_the_usual_way(tmp_path):
    for command in (["-X", "utf8", "-c", ""], ["-W", "error", "-c", ""], ["-V"]):
        process = warm.start([sys.executable, *command], dict(os.environ), imports=())
        assert isinstance(process, subprocess.Popen) and process.wait(60) == 0


def test_waiting_killing_and_signals():
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    process = bare(command, dict(os.environ))
    assert process.poll() is None and alive(process.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == process.poll() == process.returncode == -signal.SIGTERM
    process.kill()  # of one that has ended: nothing
    assert not Path(f"/proc/{process.pid}").exists()  # no zombie
    killed = bare(command, dict(os.environ))
    killed.kill()
    assert killed.wait(20) == -signal.SIGKILL


def test_a_pipe_to_stdin():
    code = "import sys; sys.exit(int(sys.stdin.read()))"
    process = bare([sys.executable, "-c", code], dict(os.environ), stdin=subprocess.PIPE)
    process.stdin.write(b"4")
    process.stdin.flush()
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(20) == 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_after_the_death_of_a_helper_the_next_start_works(monkeypatch, number):
    monkeypatch.setattr(warm, "_helpers", {})
    monkeypatch.setattr(warm, "PATIENCE", 2.0)
    try:
        sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
        first = bare(sleeping, dict(os.environ))
        (helper,) = warm._helpers.values()
        os.kill(helper.process.pid, number)
        command = [sys.executable, "-c", "raise SystemExit(5)"]
        second = bare(command, dict(os.environ))
        assert second.wait(20) == 5
        assert isinstance(bare(command, dict(os.environ)), warm.Process)
        assert first.poll() is None and alive(first.pid)
        first.kill()
        assert first.wait(20) == -signal.SIGKILL
    finally:
        warm.close()


def test_a_helper_that_cannot_serve_is_not_asked_twice(monkeypatch, tmp_path):
    """One that has a second thread ends, and every process is an ordinary one."""
    monkeypatch.setattr(warm, "_helpers", {})
    threads = "import threading, time\n"
    threads += "threading.Thread(target=time.sleep, args=[60], daemon=True).start()"
    (tmp_path / "threads.py").write_text(threads)
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    helpers = set()
    for _ in range(2):
        command = [sys.executable, "-c", "raise SystemExit(5)"]
        process = warm.start(command, env, imports=("threads",))
        assert isinstance(process, subprocess.Popen) and process.wait(60) == 5
        helpers.update(warm._helpers.values())
    assert len(helpers) == 1 and not helpers.pop().good


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, None])
def test_the_helper_ends_with_its_parent(tmp_path, end):
    script = (
        "import os, sys, time\nfrom dlcourse.lab import warm\n"
        "done = warm.start([sys.executable, '-c', ''], dict(os.environ), imports=())\n"
        "(helper,) = warm._helpers.values()\n"
        "print(helper.process.pid, done.wait(), flush=True)\n"
        # in parts: Ctrl-C just before a sleep is seen at its end
        f"for _ in range({600 if end else 0}):\n    time.sleep(0.1)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with parent:
        assert parent.stdout is not None
        pid, code = parent.stdout.readline().split()
        assert int(code) == 0
        if end:
            assert alive(int(pid))
            parent.send_signal(end)
        parent.wait(30)
    until = time.monotonic() + 20
    while alive(int(pid)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(int(pid))


BORROWS = """
import os, sys
from dlcourse.lab import warm
warm.IMPORTS = ()
warm.get_ready(dict(os.environ))
codes = [warm.start([sys.executable, "-c", f"raise SystemExit({n})"], dict(os.environ)).wait()
         for n in (5, 6)]
print(codes, len(warm._helpers), warm.lend() == {warm.LENT: os.environ.get(warm.LENT)})
"""


def test_what_is_lent_serves_another_process_and_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "_helpers", {})
    try:
        env = os.environ | warm.lend() | {"PYTHONPATH": str(ROOT)}
        assert run(bare, ["-c", BORROWS], tmp_path, env) == (0, "[5, 6] 0 True\n", "")
        assert warm.lend().items() <= env.items() and len(warm._helpers) == 1
        (helper,) = warm._helpers.values()
        os.kill(helper.process.pid, signal.SIGKILL)  # then another one serves
        helper.process.wait()
        assert run(bare, ["-c", BORROWS], tmp_path, env) == (0, "[5, 6] 0 True\n", "")
    finally:
        warm.close()


def test_a_request_that_no_helper_takes_is_no_process_of_ours(tmp_path, monkeypatch):
    """What borrows starts the process itself, in the usual way, and the next is served."""
    monkeypatch.setattr(warm, "_helpers", {})
    try:
        env = os.environ | warm.lend() | {"PYTHONPATH": str(ROOT)}
        monkeypatch.setattr(warm, "LARGEST", 50)  # bytes: what comes is cut short
        cut = run(warm.start_cold, ["-c", BORROWS], tmp_path, env)
        assert cut == (0, "[5, 6] 0 True\n", "") and not warm._helpers
        monkeypatch.setattr(warm, "LARGEST", 1 << 20)
        assert run(warm.start_cold, ["-c", BORROWS], tmp_path, env) == cut
        assert len(warm._helpers) == 1
    finally:
        warm.close()


def test_where_the_lender_is_gone_a_process_has_helpers_of_its_own(tmp_path):
    env = os.environ | {warm.LENT: str(tmp_path / "gone"), "PYTHONPATH": str(ROOT)}
    assert run(bare, ["-c", BORROWS], tmp_path, env) == (0, "[5, 6] 1 False\n", "")
