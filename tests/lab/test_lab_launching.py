"""Launching: really n processes, no trap of forking, every failure named, nobody left
behind.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from processes import alive

from dlcourse.lab import launching, warm
from dlcourse.lab.launching import Crew, LaunchError, launch

ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


# --- what the processes run -----------------------------------------------------------------------


def describe(value, scale=1):
    return {"rank": int(os.environ["RANK"]), "value": value, "scaled": value[0] * scale}


def environment():
    names = (
        "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS".split()
    )
    return {name: os.environ[name] for name in names} | {"torch": "torch" in sys.modules}


def train_together():
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator()
    total = accelerator.reduce(
        torch.tensor([1.0 + accelerator.process_index]), reduction="sum"
    )
    return [accelerator.num_processes, accelerator.device.type, total.item()]


def accelerate_on_uneven_rows():
    """Return what Accelerate does, by its documentation, where course code must know of
    it.
    """
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    accelerator = Accelerator(gradient_accumulation_steps=2)
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0)
    loader = DataLoader(TensorDataset(torch.arange(11)), batch_size=2)
    prepared = accelerator.prepare(model, optimizer, loader, scheduler)
    model, optimizer, loader, scheduler = prepared
    rows, counted, updates, weights = 0, [], 0, []
    for (batch,) in loader:
        with accelerator.accumulate(model):
            accelerator.backward(-model(torch.ones(1, 1)).sum())
            optimizer.step()
            scheduler.step()
            updates += accelerator.sync_gradients
            optimizer.zero_grad()
        weights.append(accelerator.unwrap_model(model).weight.item())
        rows += len(accelerator.gather(batch))
        counted += accelerator.gather_for_metrics(batch).tolist()
    return {
        "gathered rows": rows,
        "counted rows": sorted(counted),
        "scheduler steps an update": scheduler.scheduler.last_epoch / updates,
        "updates": [
            round(b - a, 6) for a, b in zip([0.0, *weights], weights, strict=False)
        ],
    }


def with_accelerate():
    return {"together": train_together(), "uneven": accelerate_on_uneven_rows()}


def abort_after_returning():
    import threading

    if os.environ["RANK"] == "0":
        # as gloo's threads may, once the work is done
        threading.Timer(0.2, os.abort).start()
    else:
        time.sleep(0.8)
    return os.environ["RANK"]


def abort_at_exit():
    import atexit

    atexit.register(os.abort)
    return os.environ["RANK"]


def start_a_child_then_fail(folder, how):
    """Start a process, write both ids, then raise or die on rank 1 and sleep on rank 0."""
    own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    rank = os.environ["RANK"]
    (Path(folder) / f"part{rank}").write_text(json.dumps([os.getpid(), own.pid]))
    (Path(folder) / f"part{rank}").rename(Path(folder) / f"pids{rank}")
    while len(list(Path(folder).glob("pids*"))) < 2:
        time.sleep(0.01)
    if rank == "1":
        if how == "raise":
            raise ValueError("crash")
        os._exit(4)
    time.sleep(60)


def save_at_ctrl_c(folder):
    """Write the ids, then wait for Ctrl-C, and save as a training run does."""
    rank = os.environ["RANK"]
    try:  # it may come as soon as the parent sees the ids
        (Path(folder) / f"part{rank}").write_text(json.dumps([os.getpid()]))
        (Path(folder) / f"part{rank}").rename(Path(folder) / f"pids{rank}")
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.3)
        (Path(folder) / f"saved{rank}").touch()
        raise


def die_in_a_collective():
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        os._exit(3)
    dist.all_reduce(torch.ones(1))


def skip_a_collective(folder):
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    (Path(folder) / f"ready{dist.get_rank()}").touch()
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1))


def speak():
    rank = int(os.environ["RANK"])
    time.sleep(0.2 * (1 - rank))
    print(f"first of {rank}\nsecond of {rank}")
    print("a warning with a process id", os.getpid(), file=sys.stderr)


def fail_on_one():
    if os.environ["RANK"] == "1":
        print("careful", file=sys.stderr)
        raise ValueError("no such row")
    time.sleep(30)


def end_by_exit_code():
    if os.environ["RANK"] == "1":
        print("out of ideas", file=sys.stderr)
        os._exit(3)
    time.sleep(30)


def end_by_signal():
    if os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(30)


def write_pid_and_sleep(folder):
    """Write this process's id and that of a child of its own, then hang."""
    own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    path = Path(folder) / f"part{os.environ['RANK']}"
    path.write_text(json.dumps([os.getpid(), own.pid]))
    path.rename(Path(folder) / f"pids{os.environ['RANK']}")
    time.sleep(60)


def hang_on_one(folder):
    (Path(folder) / f"ready{os.environ['RANK']}").touch()
    if os.environ["RANK"] == "1":
        write_pid_and_sleep(folder)


def take_the_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", int(os.environ["MASTER_PORT"])))
    print("bound")
    return int(os.environ["MASTER_PORT"])


def return_tensors():
    import torch

    return {"losses": (1.0, torch.arange(3))}


def return_a_lock():
    import threading

    return {"lock": threading.Lock()}


def launch_again():
    return launch(environment)


def own_pid():
    return os.getpid()


def read_stdin():
    return sys.stdin.read()


# --- helpers --------------------------------------------------------------------------------------


def pids_in(folder: Path, ranks: int) -> list[int]:
    """Wait for the files of `ranks` processes, then return all process ids in them."""
    until = time.monotonic() + 60
    while len(list(folder.glob("pids*"))) < ranks:
        assert time.monotonic() < until, "the processes did not start"
        time.sleep(0.02)
    return [pid for path in folder.glob("pids*") for pid in json.loads(path.read_text())]


def assert_all_end(pids: list[int], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < until:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"left behind: {left}"


def told_of_a_hang(fn, folder: Path, timeout: float) -> tuple[str, float]:
    """Return what is said of a launch that hangs, and its timeout: longer where starting
    is slow.

    The processes of `fn` leave a file each once they are under way.
    """
    while True:
        for path in folder.iterdir():
            path.unlink()
        end = time.time() + timeout
        with pytest.raises(LaunchError) as caught:
            launch(fn, args=[str(folder)], timeout=timeout)
        ready = [path.stat().st_mtime for path in folder.glob("ready*")]
        if len(ready) == 2 and max(ready) < end - 1:
            return str(caught.value), timeout
        timeout *= 2
        assert timeout < 100, f"the processes did not start: {caught.value}"


def run_script(path: Path, text: str) -> subprocess.CompletedProcess:
    path.write_text(text)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(path)], env=env, capture_output=True, text=True, timeout=60
    )


# --- results and environment ----------------------------------------------------------------------


def test_results_come_by_rank():
    results = launch(describe, 3, args=([2, None],), kwargs={"scale": 5})
    assert results == [{"rank": r, "value": [2, None], "scaled": 10} for r in range(3)]


@pytest.mark.parametrize("warmed", [False, True])
def test_environment_is_that_of_a_distributed_run(monkeypatch, warmed):
    if not warmed:
        monkeypatch.setattr(warm, "start", warm.start_cold)
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    first, second = launch(environment)
    assert first == {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "torch": warmed and sys.platform == "linux",  # a new Python has nothing of it
    }
    assert second == first | {"RANK": "1", "LOCAL_RANK": "1"}


@pytest.fixture(scope="module")
def beside_an_accelerator():
    """Return the results of two processes of a parent with an Accelerator and busy
    threads.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "4")
        AcceleratorState._reset_state(reset_partial_state=True)
        assert Accelerator(cpu=True, mixed_precision="bf16").num_processes == 1
        torch.set_num_threads(4)
        (torch.rand(700, 700) @ torch.rand(700, 700)).exp().sum().item()
        try:
            return launch(with_accelerate, timeout=120.0)
        finally:
            torch.set_num_threads(threads)
            AcceleratorState._reset_state(reset_partial_state=True)


def test_parent_with_accelerator_and_threads_still_gets_two_processes(
    beside_an_accelerator,
):
    assert [rank["together"] for rank in beside_an_accelerator] == [[2, "cpu", 3.0]] * 2


def test_notebook_with_accelerator_and_threads_launches_its_own_function():
    """In a kernel: an Accelerator and busy threads exist, and fn is defined in a cell."""
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    cells = [
        "import os\nos.environ['OMP_NUM_THREADS'] = '4'\n"
        "import torch\nfrom accelerate import Accelerator\n"
        "accelerator = Accelerator(cpu=True)\ntorch.set_num_threads(4)\n"
        "product = torch.rand(700, 700) @ torch.rand(700, 700)",
        "def add(start):\n"
        "    import torch\n"
        "    from accelerate import Accelerator\n"
        "    accelerator = Accelerator()\n"
        "    assert accelerator.num_processes == 2\n"
        "    print('from', accelerator.process_index)\n"
        "    total = accelerator.reduce(torch.tensor([start + accelerator.process_index]))\n"
        "    return total.item()",
        "from dlcourse.lab.launching import launch\nlaunch(add, args=[10])",
    ]
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells]
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    nbclient.NotebookClient(book, timeout=60, kernel_name="python3").execute(env=env)
    printed, result = book.cells[-1].outputs
    assert printed.text == "[rank 0] from 0\n[rank 1] from 1\n"
    assert result.data["text/plain"] == "[21, 21]"


def test_what_accelerate_does_with_uneven_rows_and_schedulers(beside_an_accelerator):
    """Three facts of its documentation on which fit, which goes around them, relies."""
    for result in [rank["uneven"] for rank in beside_an_accelerator]:
        assert result["gathered rows"] == 12  # 11 rows, padded by repeating one
        assert result["counted rows"] == list(range(11))
        assert result["scheduler steps an update"] == 2  # once a process
        # the short last window, over the full count
        assert result["updates"] == [0, 0.1, 0.05]


def test_import_does_not_import_torch():
    code = "import sys, dlcourse.lab.launching; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_printed_lines_come_by_rank_and_stderr_stays_away(capfd):
    launch(speak)
    out, err = capfd.readouterr()
    assert out.splitlines() == [
        f"[rank {r}] {n} of {r}" for r in (0, 1) for n in ("first", "second")
    ]
    assert err == ""
    launch(speak, echo=False)
    assert capfd.readouterr() == ("", "")


def test_live_shows_what_rank_0_prints_while_it_runs(capfd):
    launch(speak, live=True)
    out, err = capfd.readouterr()
    assert out.splitlines() == [
        "first of 0",
        "second of 0",
        "[rank 1] first of 1",
        "[rank 1] second of 1",
    ]
    assert err.strip()


def test_stdin_is_empty():
    assert launch(read_stdin, 1) == [""]


# --- which functions ------------------------------------------------------------------------------


def test_a_function_of_a_script_is_sent_with_what_it_uses(tmp_path):
    done = run_script(
        tmp_path / "script.py",
        "from dlcourse.lab import warm\n"
        "from dlcourse.lab.launching import launch\n"
        "import json\n"
        "warm.IMPORTS = ()\n"
        "print('top level')\n"
        "factor = 3\n"
        "def count(x, text='''\nat column 0'''):\n"
        "    import os\n"
        "    return json.dumps([factor * x, text, int(os.environ['RANK'])])\n"
        "def forgets(x):\n"
        "    return jason.dumps(x)\n"
        "print(launch(count, args=[1]))\n"
        "try:\n"
        "    launch(forgets, args=[1])\n"
        "except Exception as error:\n"
        "    print(error)\n",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "top level"
    answers = ['[3, "\\nat column 0", 0]', '[3, "\\nat column 0", 1]']
    assert lines[1] == repr(answers)
    assert "return jason.dumps(x)" in done.stdout  # the traceback shows the source
    assert "NameError: name 'jason' is not defined" in done.stdout


def test_a_function_of_any_kind_can_be_sent():
    outer = 3

    def closure(x):
        text = """
at column 0"""
        return text * x * outer

    def doubled(fn):
        return lambda *args: 2 * fn(*args)

    @doubled
    def decorated():
        return 2

    typed = {"__name__": "__main__"}
    exec("def typed(): return 1", typed)
    assert launch(closure, 1, args=[2]) == ["\nat column 0" * 6]
    assert launch(decorated, 1) == [4]
    assert launch(lambda: outer, 1) == [3]
    assert launch(typed["typed"], 1) == [1]


def test_nested_launch_is_refused():
    with pytest.raises(LaunchError, match="inside a launched process"):
        launch(launch_again, 1)


# --- arguments ------------------------------------------------------------------------------------


def test_arguments_and_results_arrive_as_they_are():
    sent = {"set": {1, 2}, 3: (4, None), "array": np.arange(2)}
    (back,) = launch(dict, 1, args=[sent])
    np.testing.assert_array_equal(back.pop("array"), sent.pop("array"))
    assert back == sent
    (back,) = launch(return_tensors, 1)
    assert back["losses"][0] == 1.0 and back["losses"][1].tolist() == [0, 1, 2]


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(TypeError, match="cannot pickle .*lock"):
        launch(describe, args=[threading.Lock()])
    with pytest.raises(LaunchError, match="(?s)^rank 0 raised.*cannot pickle .*lock"):
        launch(return_a_lock)


@pytest.mark.parametrize("processes", [0, -1])
def test_processes_must_be_positive(processes):
    with pytest.raises(ValueError, match="at least 1"):
        launch(describe, processes)


@pytest.mark.parametrize("processes", [2.0, "2"])
def test_processes_must_be_an_int(processes):
    with pytest.raises(TypeError, match="int"):
        launch(describe, processes)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_timeout_must_be_positive(timeout):
    with pytest.raises(ValueError, match="timeout"):
        launch(describe, timeout=timeout)


def test_more_processes_than_gpus_are_refused():
    with pytest.raises(LaunchError, match="cpu=False with 99 processes needs 99 GPUs"):
        launch(describe, 99, cpu=False)


# --- failures -------------------------------------------------------------------------------------


def test_exception_is_raised_with_rank_and_traceback():
    start = time.monotonic()
    with pytest.raises(
        LaunchError, match="(?s)^rank 1 raised:.*in fail_on_one.*no such row$"
    ):
        launch(fail_on_one)
    assert time.monotonic() - start < 25  # the other process would sleep for 30 s


def test_exit_code_is_named():
    with pytest.raises(
        LaunchError, match="(?s)^rank 1 died with exit code 3.*out of ideas"
    ):
        launch(end_by_exit_code)


@posix
def test_signal_is_named():
    with pytest.raises(LaunchError, match="^rank 0 died by signal 9.*memory"):
        launch(end_by_signal)


def test_death_in_a_collective_is_told_before_its_consequence():
    with pytest.raises(LaunchError, match="^rank 1 died with exit code 3"):
        launch(die_in_a_collective)


@posix
@pytest.mark.parametrize("fn", [abort_after_returning, abort_at_exit])
def test_abort_after_the_result_loses_nothing(fn):
    assert launch(fn) == ["0", "1"]


@posix
@pytest.mark.parametrize(
    "how, message", [("raise", "rank 1 raised"), ("die", "exit code 4")]
)
def test_crash_leaves_nobody(tmp_path, how, message):
    with pytest.raises(LaunchError, match=message):
        launch(start_a_child_then_fail, args=[str(tmp_path), how])
    assert_all_end(pids_in(tmp_path, 2))


def test_on_windows_the_tree_is_ended_and_codes_are_hexadecimal(monkeypatch, tmp_path):
    """What Windows would run, on any machine: no killpg, taskkill, codes above 255."""

    class Process:
        pid, returncode, stdin = 7, None, open(os.devnull, "wb")  # noqa: SIM115

        def poll(self):
            return self.returncode

        def kill(self):
            self.returncode = 3221225477

        def wait(self):
            return self.returncode

    asked = []
    rank = launching._Rank.__new__(launching._Rank)
    rank.rank, rank.folder, rank.report, rank.process = 0, tmp_path, None, Process()
    with monkeypatch.context() as patch:
        patch.setattr(launching.os, "name", "nt")
        patch.delattr(launching.os, "killpg", raising=False)
        patch.delattr(launching.signal, "SIGKILL", raising=False)
        patch.setattr(
            launching.subprocess, "run", lambda command, **_: asked.append(command)
        )
        rank.interrupt()
        rank.kill()
    assert asked == [["taskkill", "/F", "/T", "/PID", "7"]]
    assert rank.failure().startswith("rank 0 died with exit code 3221225477 (0xc0000005)")


@posix
def test_hang_names_ranks_and_stacks_and_leaves_nobody(tmp_path):
    message, timeout = told_of_a_hang(hang_on_one, tmp_path, 3.0)
    start = f"after {timeout:g} seconds still running: rank 1 (of 2 processes)"
    assert message.startswith(start)
    assert "collective" in message and "in write_pid_and_sleep" in message
    assert "in hang_on_one" in message and "_lifeline" not in message
    assert_all_end(pids_in(tmp_path, 1))


def test_skipped_collective_shows_where_the_rank_waits(tmp_path):
    message, _ = told_of_a_hang(skip_a_collective, tmp_path, 8.0)
    assert re.search("(?s)still running: rank 0 .*in skip_a_collective", message)


def parent_that_launches(fn, tmp_path, stderr):
    """Start a Python that launches `fn`, a function of this file, on two processes."""
    places = [str(ROOT / "tests" / "lab"), str(ROOT / "tests")]
    script = (
        f"import sys; sys.path[:0] = {places!r}\n"
        f"from test_lab_launching import launch, warm, {fn.__name__}\n"
        "warm.IMPORTS = ()  # the functions need nothing of them\n"
        f"launch({fn.__name__}, args=[{str(tmp_path)!r}])\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    return subprocess.Popen([sys.executable, "-c", script], env=env, stderr=stderr)


@posix
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_end_of_the_parent_ends_the_processes(tmp_path, end):
    parent = parent_that_launches(write_pid_and_sleep, tmp_path, subprocess.DEVNULL)
    try:
        pids = pids_in(tmp_path, 2)
        assert len(pids) == 4 and all(alive(pid) for pid in pids)
    finally:
        parent.send_signal(end)
        parent.wait(30)
    assert_all_end(pids)


@posix
def test_ctrl_c_lets_the_processes_save(tmp_path):
    parent = parent_that_launches(save_at_ctrl_c, tmp_path, subprocess.PIPE)
    pids = pids_in(tmp_path, 2)
    parent.send_signal(signal.SIGINT)
    _, words = parent.communicate(timeout=120)
    assert b"KeyboardInterrupt" in words and parent.returncode
    assert sorted(path.name for path in tmp_path.glob("saved*")) == ["saved0", "saved1"]
    assert_all_end(pids)


def test_taken_port_is_tried_again(monkeypatch, capsys):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken, free = busy.getsockname()[1], launching._free_port()
        ports = [taken, taken, free]
        monkeypatch.setattr(launching, "_free_port", lambda: ports.pop(0))
        assert launch(take_the_port, 1) == [free]
        assert capsys.readouterr().out == "[rank 0] bound\n"
        ports[:] = [taken] * 3
        with pytest.raises(LaunchError, match="(?i)address already in use"):
            launch(take_the_port, 1)
        assert not ports


@posix
def test_ten_launches_leave_nothing(tmp_path, monkeypatch):
    launch(own_pid, 1)  # from now on there is a helper to fork from
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = Path("/proc/self/fd")
    before = len(list(files.iterdir())) if files.exists() else 0
    pids = [pid for _ in range(10) for pid in launch(own_pid)]
    assert len(set(pids)) == 20
    assert_all_end(pids)
    assert not list(tmp_path.iterdir())
    assert (len(list(files.iterdir())) if files.exists() else 0) == before


# --- a crew ---------------------------------------------------------------------------------------


def where(rank, n):
    return [rank, n, os.getpid()]


def summed(rank, n):
    import torch
    import torch.distributed as dist

    total = torch.tensor([rank + 1.0])
    dist.all_reduce(total)
    return total.item()


def fails_on_one(rank, n):
    if rank == 1:
        raise ValueError("no such row")
    time.sleep(30)


def returns_a_lock(rank, n):
    return threading.Lock()


def test_a_crew_keeps_its_processes_between_functions(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    crew = Crew(2)
    first, second = crew.run(where), crew.run(where)
    assert first == second and [own[:2] for own in first] == [[0, 2], [1, 2]]
    assert crew.run(summed) == [3.0, 3.0]
    crew.close()
    crew.close()  # does nothing more
    assert_all_end([own[2] for own in first])
    assert not list(tmp_path.iterdir())


def test_a_crew_that_has_failed_or_is_old_starts_anew(monkeypatch):
    crew = Crew(2)
    pids = [own[2] for own in crew.run(where)]
    start = time.monotonic()
    with pytest.raises(LaunchError, match="(?s)^rank 1 raised:.*fails_on_one.*such row$"):
        crew.run(fails_on_one)
    assert time.monotonic() - start < 20
    with pytest.raises(LaunchError, match="cannot pickle .*lock"):
        crew.run(returns_a_lock)
    others = [own[2] for own in crew.run(where)]
    assert not set(pids) & set(others)
    monkeypatch.setattr(launching, "CREW_LIFE", 0.0)
    monkeypatch.setattr(crew, "_start", lambda: pytest.fail("as it should"))
    with pytest.raises(pytest.fail.Exception, match="as it should"):
        crew.run(where)
    assert_all_end([*pids, *others])


def test_a_crew_runs_functions_that_the_script_defines():
    def local(rank, n):
        return rank * 10

    crew = Crew(2)
    assert crew.run(local) == [0, 10]

    def forgets_its_import(rank, n):
        return torch.ones(1).item()  # noqa: F821

    with pytest.raises(LaunchError, match="name 'torch' is not defined"):
        crew.run(forgets_its_import)
    crew.close()


SCRIPT = """
import os
import torch
import torch.distributed as dist
assert __name__ == "__main__" and os.environ["WORLD_SIZE"] == "2"
total = torch.tensor(float(dist.get_rank()))
dist.all_reduce(total)
torch.save(total, f"{dist.get_rank()}.pt")
dist.barrier()
print(sorted(os.listdir()), total.item())
dist.destroy_process_group()
"""


def counts_messages(rank, n):
    import torch
    import torch.distributed as dist

    from dlcourse import parallelism as par
    from dlcourse.lab.messages import RingBytes

    found = []
    vector, half = torch.zeros(12), torch.zeros(6)
    for work in (
        lambda: dist.all_reduce(vector),
        lambda: dist.all_reduce(vector.bfloat16()),
        lambda: dist.all_gather_into_tensor(vector, half),
        lambda: dist.reduce_scatter_tensor(half, vector),
        lambda: par.ring_all_reduce(vector),
    ):
        with RingBytes() as sent:
            work()
        found.append(sent.total)
    return found


def test_a_crew_runs_scripts():
    crew = Crew(2)
    assert crew.script(SCRIPT) == "['0.pt', '1.pt'] 1.0\n"
    assert crew.script(SCRIPT) == "['0.pt', '1.pt'] 1.0\n"  # in a new folder
    assert crew.run(counts_messages) == [[48, 24, 24, 24, 48]] * 2
    with pytest.raises(LaunchError, match="ZeroDivisionError"):
        crew.script("1 / 0")
    crew.close()


def test_a_crew_needs_a_process():
    with pytest.raises(ValueError, match="at least 1"):
        Crew(0)
