"""What can go wrong while training, really made to go wrong.

Each docstring of a test is a row of docs/reliability.md: what happens | what you
see. Every message is one line, the exit code is not 0, and no process is left behind.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import test_own
import torch
from PIL import Image
from processes import alive
from warm import IMPORTED, environment, run

from dlcourse.capstone import ablation, running, studies
from dlcourse.capstone.cli import main
from dlcourse.capstone.folder import load_model
from dlcourse.capstone.settings import Problem, Recipe
from dlcourse.lab import warm
from dlcourse.lab.datasets import ImageData, Split

pytestmark = pytest.mark.usefixtures("pictures_are_drawn_once")

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
FAST = ["--model", "mlp", "--width", "2", "--train-limit", "321", "--norm", "none"]
COMMAND = [sys.executable, "-m", "dlcourse.train", *FAST]
LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="uses fork, /proc or mount of Linux"
)


def command(*arguments: str, env: dict | None = None, timeout: float = 120):
    """Run it in a fork of a process that has imported torch."""
    return run(*COMMAND[1:], *arguments, env=env or environment(), timeout=timeout)


def one_line(text: str) -> str:
    """Return the last line of stderr, having seen that it is the only one of ours."""
    lines = [line for line in text.splitlines() if line.startswith("dlcourse-train: ")]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


def refused(capsys, *arguments: str, code: int = 2) -> str:
    assert main([*FAST, *arguments]) == code
    return one_line(capsys.readouterr().err)


def bytes_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def children(pid: int) -> list[int]:
    """Return the living processes below one, at any depth."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        mine = [child for child, of in parents.items() if of == parent]
        found += mine
        todo += mine
    return found


def wait_for(condition, seconds: float = 120.0):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return value


def gone(pids: list[int]) -> bool:
    return not any(map(alive, pids))


# --------------------------------------------------------------------------- killed, and gone on

# Each starts forks, in which gc.freeze() saves the copying of all that was imported.
KILLS = """
import gc, os, random, signal, sys, time
from pathlib import Path

sys.path.append(sys.argv.pop(1))  # of the tests
import pytest
import torch
from pictures import draw_once

from dlcourse.train import main

draw_once(pytest.MonkeyPatch())
folder, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)
arguments, steps = sys.argv[3:], []
main(["--out", str(folder / "first"), *arguments, "--epochs", "1"])  # for the imports
gc.freeze()


def written(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def done(out):
    saved = out / "resume.pt"
    return torch.load(saved, weights_only=True)["step"] if saved.exists() else 0


def attempt(out, saves=None, seconds=0.0):
    # to its end; or killed so long after it has saved so often, while it starts before it does
    saved, begun = out / "resume.pt", time.monotonic()
    seen = written(saved)
    resume = ["--resume"] if (out / "recipe.toml").exists() else arguments
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(["--out", str(out), *resume]))
    if saves is not None:
        for _ in range(saves):
            while written(saved) == seen:
                time.sleep(0.001)
            seen, begun = written(saved), time.monotonic()
        while time.monotonic() < begun + seconds and (saves or written(saved) == seen):
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == (0 if saves is None else -signal.SIGKILL), code


attempt(folder / "whole")
near_the_end = done(folder / "whole") - 150  # from there on it is killed while it starts
for _ in range(kills):
    at_work = rng.random() < 0.7 and done(folder / "killed") < near_the_end
    saves = rng.randint(1, 3) if at_work else 0
    attempt(folder / "killed", saves, rng.uniform(0, 0.02 if at_work else 0.2))
    steps.append(done(folder / "killed"))
attempt(folder / "killed")
print()
print(*steps)
"""


@LINUX
def test_killed_many_times(tmp_path):
    """`kill -9`, or the power fails | run it again with `--resume`: the same weights to
    the bit
    """
    arguments = [*FAST, "--epochs", "80", "--dropout", "0.1"]
    done = run("-c", KILLS, TESTS, tmp_path, 25, *arguments, env=environment())
    assert done.returncode == 0, done.stderr
    steps = [int(word) for word in done.stdout.splitlines()[-1].split()]
    assert len(steps) == 25 and steps == sorted(steps)
    assert len(set(steps)) >= 10 and steps[-1] < 480, steps
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
    assert (tmp_path / "killed/history.csv").read_text() == (
        tmp_path / "whole/history.csv"
    ).read_text()


WRITES = """
import gc, os, signal, sys
from pathlib import Path

sys.path.append(sys.argv.pop(1))  # of the tests
import pytest
from pictures import draw_once

from dlcourse.train import main

draw_once(pytest.MonkeyPatch())
folder, arguments, written = Path(sys.argv[1]), sys.argv[2:], []
doomed = 0  # the number of the file at whose opening, or taking its place, the process is killed


def note(event, details):
    if event == "open" and isinstance(details[1], str) and set(details[1]) & set("wa"):
        written.append(str(details[0]))
    elif event == "os.rename":
        written.append("")  # whole, and on the disk
    else:
        return
    if str(folder) in "".join(map(str, details)) and len(written) == doomed:
        last = written[-2] if len(written) > 1 else ""
        if last and not ".part" in last and os.path.exists(last):
            os.truncate(last, os.path.getsize(last) // 2)  # it was not on the disk yet: half is
        os.kill(os.getpid(), signal.SIGKILL)


def attempt(out):
    begun = any((out / name).exists() for name in ("recipe.toml", "untuned.toml"))
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.addaudithook(note)
        os._exit(main([*(["--resume"] if begun else []), "--out", str(out), *arguments]))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


assert main(["--out", str(folder / "0" / "run"), *arguments]) == 0
gc.freeze()
while True:
    doomed += 1
    out, number = folder / str(doomed) / "run", doomed
    code = attempt(out)
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    doomed = 0
    assert attempt(out) == 0, number
    doomed = number
(folder / "kills").write_text(str(doomed - 1))
"""


@LINUX
def test_killed_while_writing(tmp_path):
    """`kill -9` while a file is written | `--resume`, or a new start: every file comes
    out whole
    """
    studies = ["--tune", "2", "--compress", "quantize", "--log", "csv"]
    arguments = [*FAST, "--epochs", "1", *studies]
    done = run("-c", WRITES, TESTS, tmp_path, *arguments, env=environment())
    assert done.returncode == 0, done.stderr
    kills = int((tmp_path / "kills").read_text())
    assert kills >= 20
    whole = {
        path.relative_to(tmp_path / "0"): path.read_bytes()
        for path in (tmp_path / "0").rglob("*") if path.is_file()
    }  # fmt: skip
    for number in range(1, kills + 1):
        for path, content in whole.items():
            if path.name != "resume.pt":  # torch.save's zip
                assert (tmp_path / str(number) / path).read_bytes() == content, (
                    number,
                    path,
                )
        assert not list((tmp_path / str(number)).rglob("*.part*")), number


CTRL_C = """
import os, signal, sys, threading, time
from pathlib import Path

from dlcourse.train import main

saved = Path(sys.argv[-1]) / "resume.pt"


def press():
    while not saved.exists():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)


threading.Thread(target=press, daemon=True).start()
sys.exit(main())
"""


@LINUX
def test_interrupted(tmp_path):
    """Ctrl-C | it ends the update, saves, and says how to go on; the result is the same"""
    arguments = ["--epochs", "25"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*FAST, *arguments, "--out", str(whole)]) == 0
    done = run("-c", CTRL_C, *FAST, *arguments, "--out", cut, env=environment())
    assert done.returncode == 130
    assert one_line(done.stderr).endswith(
        f"go on with: dlcourse-train --resume --out {cut}"
    )
    assert 0 < torch.load(cut / "resume.pt", weights_only=True)["step"] < 150
    assert main(["--resume", "--out", str(cut)]) == 0
    assert bytes_of(cut) == bytes_of(whole)


def test_studies_stopped(tmp_path, monkeypatch, capsys):
    """A search or an ablation is stopped | told how to go on; finished trials are not run
    again
    """
    real, runs = studies.train, []

    def stops(*arguments, **more):
        runs.append(arguments)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    for module in (studies, ablation):
        monkeypatch.setattr(module, "train", stops)
    for study, table in (
        (["--tune", "4"], "tune"),
        (["--ablate", "--seeds", "2"], "ablation"),
    ):
        out = str(tmp_path / table)
        line = refused(capsys, "--epochs", "1", *study, "--out", out, code=130)
        said = line.partition("dlcourse-train --resume")[2].split()
        assert said == ["--out", out, *study]
        if "--tune" in study:
            assert "add --tune N" in refused(capsys, "--epochs", "1", "--out", out)
        assert main(["--resume", *said]) == 0
        _, *rows = (tmp_path / table / f"{table}.csv").read_text().splitlines()
        assert len(set(rows)) == len(rows) >= 4 and len(runs) == 1 + len(rows)
        runs.clear()


# --------------------------------------------------------------------------- disks and files


FULL = """
import ctypes, gc, os, shutil, subprocess, sys
from pathlib import Path

user, group, new_mounts, new_user = os.getuid(), os.getgid(), 0x20000, 0x10000000
if ctypes.CDLL(None).unshare(new_mounts | new_user):  # as `unshare -rm`, in this process
    sys.exit(77)
try:
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
except (OSError, subprocess.CalledProcessError):
    sys.exit(77)

from dlcourse.train import main

small, arguments = sys.argv[1], sys.argv[2:]


def attempt(*words):
    pid = os.fork()
    if pid == 0:
        os._exit(main([*words, "--out", small + "/run"]))
    print("code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=104k", "tmpfs", small]).returncode:
    sys.exit(77)
gc.freeze()
attempt(*arguments)  # a checkpoint has 40 kB at first, and 60 at the end; there are two at a time
print("saved", os.path.exists(small + "/run/resume.pt"))
subprocess.run(["mount", "-o", "remount,size=20m", small], check=True)
attempt("--resume")
shutil.copy(small + "/run/model.safetensors", small + "/..")
"""


@LINUX
def test_full_disk(tmp_path):
    """The disk is full | "no space left"; the last checkpoint is whole: free some,
    `--resume`
    """
    mounted, arguments = tmp_path / "small", [*FAST, "--epochs", "100"]
    mounted.mkdir()
    done = run("-c", FULL, mounted, *arguments, env=environment(), timeout=120)
    if done.returncode == 77:
        pytest.skip("this machine does not let a test mount a small disk")
    assert re.findall(r"^code (\d+)$", done.stdout, re.M) == ["1", "0"], (
        done.stdout + done.stderr
    )
    assert "saved True" in done.stdout
    assert "no space left on the disk: free some, then go on with" in one_line(
        done.stderr
    )
    whole = tmp_path / "whole"
    assert main([*arguments, "--out", str(whole)]) == 0
    assert bytes_of(tmp_path) == bytes_of(whole)


def test_folder_that_may_not_be_written(capsys):
    """The folder may not be written | said before any work: choose another with `--out`"""
    folder = "/sys/dlcourse" if sys.platform == "linux" else "/dlcourse-is-not-root"
    assert "choose another folder with --out" in refused(capsys, "--out", folder)


def test_checkpoint_cut_short_or_foreign(tmp_path, capsys):
    """A checkpoint is cut short, foreign or a pickle with code | refused by name; no code
    runs
    """
    folder = tmp_path / "run"
    assert main([*FAST, "--epochs", "1", "--out", str(folder)]) == 0
    whole = (folder / "resume.pt").read_bytes()
    resume = ("--epochs", "1", "--resume", "--out", str(folder))
    for content in (whole[:999], b"", b"cos\nsystem\n(S'touch owned'\ntR."):
        (folder / "resume.pt").write_bytes(content)
        line = refused(capsys, *resume, code=1)
        assert (
            "resume.pt cannot be read as a checkpoint" in line
            and "Delete the file" in line
        )
    assert not Path("owned").exists()


def test_checkpoint_of_another_version(tmp_path, capsys):
    """A checkpoint is of another version | refused with both numbers"""
    folder = tmp_path / "run"
    assert main([*FAST, "--epochs", "1", "--out", str(folder)]) == 0
    state = torch.load(folder / "resume.pt", weights_only=True)
    torch.save(state | {"format": 7}, folder / "resume.pt")
    line = refused(capsys, "--epochs", "1", "--resume", "--out", str(folder), code=1)
    assert "has format 7, this version reads 1" in line


def test_folder_of_another_run(tmp_path, capsys):
    """The folder holds a run or other files | nothing is overwritten: `--resume` or
    `--out`
    """
    folder = tmp_path / "run"
    assert main([*FAST, "--epochs", "1", "--out", str(folder)]) == 0
    before = bytes_of(folder)
    assert "continue it with --resume" in refused(
        capsys, "--epochs", "1", "--out", str(folder)
    )
    line = refused(capsys, "--epochs", "2", "--resume", "--out", str(folder))
    assert "epochs was 1" in line and bytes_of(folder) == before
    assert "holds no run to resume" in refused(
        capsys, "--resume", "--out", str(tmp_path / "none")
    )
    (tmp_path / "mine.txt").write_text("mine")
    assert "holds other files" in refused(capsys, "--out", str(tmp_path))


def test_what_this_machine_lacks(tmp_path, capsys, monkeypatch):
    """float16 without a GPU, or a tracker that is not installed | said before any work"""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(running, "get_available_trackers", lambda: [])
    out = ("--out", str(tmp_path / "run"))
    assert "use --precision bf16" in refused(capsys, "--precision", "fp16", *out)
    assert "pip install tensorboard" in refused(capsys, "--log", "tensorboard", *out)
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------- images


@pytest.fixture
def pictures(tmp_path):
    """Two classes of twenty images."""
    for number in range(40):
        folder = tmp_path / "images" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (6 * number, 99, 0)).save(folder / f"{number}.png")
    return tmp_path / "images"


def in_folder(pictures: Path) -> list[str]:
    own = ["--data", "folder", str(pictures), "--model", "mlp", "--width", "2"]
    return [
        *own,
        "--batch-size",
        "8",
        "--epochs",
        "1",
        "--out",
        str(pictures.parent / "run"),
    ]


def fails(capsys, arguments: list[str]) -> str:
    assert main(arguments) == 2
    assert not Path(arguments[-1]).exists()  # nothing was begun
    return one_line(capsys.readouterr().err)


def test_corrupt_image(pictures, capsys):
    """An image is corrupt | its path is named; `--skip-corrupt` leaves it out"""
    (pictures / "cat" / "bad.png").write_bytes(b"\x89PNG but no more")
    line = fails(capsys, in_folder(pictures))
    assert "bad.png" in line and "Mend or remove" in line
    with pytest.warns(UserWarning, match="left out"):
        assert main(["--skip-corrupt", *in_folder(pictures)]) == 0


def test_class_without_images(pictures, capsys):
    """A class has no image | the class is named"""
    (pictures / "empty").mkdir()
    assert "no readable image for empty" in fails(capsys, in_folder(pictures))


def test_one_class(pictures, capsys):
    """There is one class only | said, with the layout that is wanted"""
    shutil.rmtree(pictures / "dog")
    assert "two are needed" in fails(capsys, in_folder(pictures))


def test_labels_out_of_range_and_nan():
    """Labels are out of range, or pixels NaN (images of your own) | said before the first
    update
    """
    for images, labels, words in (
        (torch.full((64, 1, 8, 8), torch.nan), torch.arange(64) % 2, "hold NaN"),
        (torch.rand(64, 1, 8, 8), torch.arange(64) % 3, "labels run from 0 to 2"),
    ):
        rows = Split(images, labels)
        one, zero = torch.ones(1), torch.zeros(1)
        data = ImageData("own", rows, rows, rows, ("a", "b"), zero, one)
        with pytest.raises(Problem, match=words):
            running.train(Recipe(), data=data)


def test_fewer_rows_than_the_batch(capsys, tmp_path):
    """There are fewer images than the batch | said, with a size that fits"""
    line = refused(capsys, "--train-limit", "30", "--out", str(tmp_path / "run"))
    assert "30 training images are fewer than batch_size=64: use --batch-size 7" in line


def test_loss_that_is_not_finite(capsys, tmp_path):
    """The loss becomes NaN | the run ends at that update: lower the rate, clip, look at
    the data
    """
    arguments = [
        "--lr",
        "1e30",
        "--optimizer",
        "sgd",
        "--max-norm",
        "inf",
        "--warmup",
        "0",
    ]
    line = refused(capsys, *arguments, "--out", str(tmp_path / "run"), code=1)
    assert "Lower the learning rate" in line


# --------------------------------------------------------------------------- processes


@LINUX
def test_two_processes_with_an_uneven_last_batch(tmp_path):
    """Two processes, and a last batch of one row | the weights of one process, within
    rounding
    """
    models = []
    for processes in ("1", "2"):
        out = tmp_path / processes
        arguments = ["--epochs", "3", "--processes", processes, "--out", str(out)]
        assert main([*FAST, *arguments]) == 0
        models.append(load_model(out)[0].state_dict())
    for name, value in models[0].items():
        assert (value - models[1][name]).abs().max() < 1e-4, name


def job_that_dies(values: dict, out: str, log: list[str]) -> dict:
    """The job of a run; its process of rank 1 is killed once there is a
    checkpoint.
    """
    (Path(out).parent / f"pid{os.environ['RANK']}").write_text(str(os.getpid()))

    def die() -> None:
        while not (Path(out) / "resume.pt").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["RANK"] == "1":
        threading.Thread(target=die, daemon=True).start()
    return running.job(values, out, log)


@LINUX
def test_child_that_dies(tmp_path, monkeypatch, capsys):
    """One of several processes dies | all end at once, none is left; `--resume` goes on"""
    out = str(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(running, "job", job_that_dies)
        arguments = ["--epochs", "15", "--processes", "2", "--out", out]
        line = refused(capsys, *arguments, code=1)
    assert "died by signal 9" in line and line.endswith(f"--resume --out {out}")
    pids = [int(path.read_text()) for path in tmp_path.glob("pid*")]
    assert len(pids) == 2 and gone(pids)
    assert torch.load(f"{out}/resume.pt", weights_only=True)["step"] < 90
    assert main(["--resume", "--out", out]) == 0
    assert torch.load(f"{out}/resume.pt", weights_only=True)["step"] == 90


@LINUX
def test_parent_that_is_killed(tmp_path):
    """The command is killed while its processes train | they end too"""
    out = tmp_path / "run"
    env = environment()
    env.pop(warm.LENT, None)  # so that its ranks descend from it
    process = warm.start(
        [*COMMAND, "--epochs", "30000", "--processes", "2", "--out", str(out)],
        env, imports=IMPORTED,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for((out / "resume.pt").exists)
    ranks = children(process.pid)
    process.kill()
    process.wait()
    assert len(ranks) >= 2
    wait_for(lambda: gone(ranks), 30)


def test_port_in_use(tmp_path):
    """The port of the processes is in use | said; `--processes` itself looks for a free
    one
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ranks = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
        }
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        env = environment(ACCELERATE_USE_CPU="true", **ranks, **place)
        done = command("--out", str(tmp_path / "run"), env=env)
    assert done.returncode == 1
    assert "a port is in use: end the other program or set MASTER_PORT" in one_line(
        done.stderr
    )


# --------------------------------------------------------------------------- the page


def test_the_page_says_what_these_tests_show():
    """docs/reliability.md holds one row for each test above, and for those on images of
    your own in `test_own`, word for word.
    """
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [
        "| " + " ".join(test.__doc__.split()) + " |"
        for name, test in [*globals().items(), *vars(test_own).items()]
        if name.startswith("test_") and " | " in (test.__doc__ or "")
    ]
    assert re.findall(r"^\| (?!what |---).*\|$", page, re.M) == rows
