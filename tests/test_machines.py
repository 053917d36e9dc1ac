"""Two machines of two processes: real TCP between two network namespaces of Linux."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import warm_python
from warm import run_script

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"


def load_tools():
    """Return tools/machines.py as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        return importlib.import_module("machines")


tools = load_tools()
WHY_NOT = tools.missing()
with_namespaces = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "they work here")


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Two machines on one network, each with a server of `warm_python`."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with tools.Machines(2) as made:
        for machine in made:
            machine.place = tmp_path_factory.mktemp("place") / "socket"
            server = machine.start(
                [sys.executable, warm_python.__file__, str(machine.place)],
                {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert server.stdout.readline() == "up\n"
        yield made


def forking(launcher):
    """Return a launcher whose Pythons, its own among them, are forks."""

    def command(machine, *more):
        return warm_python.command(machine.place, launcher(machine, *more))

    return command


def result(text: str) -> dict[str, float]:
    """Return the numbers of the line that holds the test accuracy."""
    (line,) = [line for line in text.splitlines() if line.startswith("test accuracy")]
    return {
        name: float(number) for name, number in re.findall(r"(\w+ \w+) ([\d.]+)", line)
    }


def alone(script: Path, folder: Path) -> dict[str, float]:
    """Return the numbers of a script in one process."""
    folder.mkdir()
    done = run_script(script, folder)
    assert done.returncode == 0, done.stderr
    return result(done.stdout)


@with_namespaces
def test_machines_reach_each_other_through_their_cards(machines):
    first, second = machines
    ask = "import socket; socket.create_connection(({!r}, 29500), timeout=5)"
    listen = "import socket; s = socket.create_server(({!r}, 29500)); print('up', flush=True); s.accept()"
    server = first.start(
        [sys.executable, "-c", listen.format(first.address)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout.readline() == "up\n"
    before = second.bytes_sent()
    asking = second.start([sys.executable, "-c", ask.format(first.address)])
    assert asking.wait(30) == 0 and server.wait(30) == 0
    assert 100 < second.bytes_sent() - before < 10_000


def equal_one_process(machines, launcher, script: Path, updates: int, folder: Path):
    """Run a script on two machines of two processes; return what the first printed, once
    it is what one process prints, and as much has passed each card as it must.
    """
    before = [machine.bytes_sent() for machine in machines]
    done = tools.run(machines, forking(launcher), 2, script, folder=folder)
    after = [machine.bytes_sent() for machine in machines]
    assert [process.returncode for process in done] == [0, 0], (
        done[1].stderr + done[0].stderr
    )
    four, one = result(done[0].stdout), alone(script, folder / "alone")
    assert result(done[1].stdout) == four  # Accelerate prints once on each machine
    assert set(four) == set(one) and "test accuracy" in one
    for name, number in four.items():
        near = 0.001 if name == "test loss" else 0.004
        assert number == pytest.approx(one[name], abs=near), name
    # ring of four: in an update 1.5 times 4,810 weights of 4 bytes pass each card
    for start, end in zip(before, after, strict=True):
        assert end - start > updates * 1.5 * 4 * 4810
    return four


@with_namespaces
def test_two_machines_of_two_processes_equal_one_process(machines, tmp_path):
    script = RECIPES / "11_gradient_accumulation.py"
    equal_one_process(machines, tools.accelerate, script, 60, tmp_path)


DIE = """
    if epoch == 4 and os.environ.get("RANK") == "3":
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            open("killed", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def dying(folder: Path) -> Path:
    """Return a copy of recipe 14 in which a process of the second machine is killed in
    epoch 4, between two updates.
    """
    text = (RECIPES / "14_lr_schedulers.py").read_text(encoding="utf-8")
    place = "    for inputs, targets in train:\n"
    assert text.count(place) == 1 and text.count("import shutil\n") == 1
    killed = "".join(f"    {line}\n" for line in DIE.strip("\n").splitlines())
    text = text.replace(place, place + killed)
    text = text.replace("import shutil\n", "import os\nimport shutil\nimport signal\n")
    script = folder / "dying.py"
    script.write_text(text, encoding="utf-8")
    return script


@with_namespaces
def test_two_machines_train_as_one_and_from_the_checkpoint_after_a_death(
    machines, tmp_path
):
    script, whole = RECIPES / "14_lr_schedulers.py", tmp_path / "whole"
    whole.mkdir()
    undisturbed = equal_one_process(machines, tools.torchrun, script, 230, whole)
    done = tools.run(
        machines, forking(tools.torchrun), 2, dying(tmp_path), "--max_restarts", "3",
        folder=tmp_path,
    )  # fmt: skip
    said = done[0].stderr + done[1].stderr
    assert [process.returncode for process in done] == [0, 0], said[-3000:]
    # of the dead and those that it leaves alone torchrun names whichever ended first
    assert (tmp_path / "killed").exists() and re.search(r"exitcode:? +?\(?-?\d", said), (
        said
    )
    assert result(done[0].stdout) == undisturbed


# --- the page -------------------------------------------------------------------------------------


def page() -> str:
    return (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def test_the_page_quotes_the_recipe_that_is_killed():
    recipe = (RECIPES / "14_lr_schedulers.py").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page(), re.S)
    assert len(blocks) == 3
    for block in blocks:
        assert block in recipe


def test_the_page_shows_the_commands_that_are_tested():
    first = tools.Machine("first", "HOST")
    shown = " ".join(page().replace("\\\n", " ").split())
    for name in ("torchrun", "accelerate"):
        command = getattr(tools, name)(first, 0, first, 2, 2)
        options = re.findall(r"--(\w+)", " ".join(command))
        for option in set(options) - {"rdzv_conf", "local_addr"}:  # of namespaces only
            assert f"--{option}" in shown
    for setting in tools.FRESH_STORE:
        assert setting in shown


def test_the_page_shows_the_forecast():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        scale = importlib.import_module("scale")
    assert scale.forecast() in page()
    assert scale.ring_bytes(4, 1000) == 6000
