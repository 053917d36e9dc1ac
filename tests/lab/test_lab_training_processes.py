"""`fit` in several real processes: equal to one process, resumable, and never left
hanging.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dlcourse.lab.accelerator import all_reduce, make_accelerator
from dlcourse.lab.checkpoints import load_checkpoint
from dlcourse.lab.evaluation import evaluate
from dlcourse.lab.launching import launch
from dlcourse.lab.models import MLP
from dlcourse.lab.parts import NonFiniteLossError
from dlcourse.lab.training import fit, train_step, use_one_thread

ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
ROWS = 45

# settings of fit, and rows; with two processes the comments say what falls to the second
CASES = {
    "even split": {"rows": 40, "batch_size": 20},
    "uneven last batch": {"rows": 45, "batch_size": 20},  # 2 rows of 5
    "every batch uneven": {"rows": 45, "batch_size": 7},
    "a batch of one row": {"rows": 41, "batch_size": 20},  # none of 1
    "micro-batches": {"rows": 40, "batch_size": 20, "accumulation_steps": 2},
    "uneven micro-batches": {"rows": 45, "batch_size": 20, "accumulation_steps": 3},
    "more micro-batches than rows": {
        "rows": 41,
        "batch_size": 7,
        "accumulation_steps": 7,
    },
    "momentum": {"rows": 45, "batch_size": 20, "momentum": 0.9},
    "float32": {"rows": 45, "batch_size": 20, "momentum": 0.9, "dtype": "float32"},
}


# --- what the processes run -----------------------------------------------------------------------


def rows_and_labels(rows=ROWS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, 1, 4, 4, generator=generator, dtype=torch.float64).to(
        dtype
    )
    return inputs[:rows], torch.randint(0, 3, (ROWS,), generator=generator)[:rows]


def weights(model) -> list[float]:
    return torch.cat([p.detach().ravel() for p in model.parameters()]).tolist()


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def train(case: str) -> dict:
    use_one_thread()
    settings = dict(CASES[case])
    dtype = getattr(torch, settings.pop("dtype", "float64"))
    data = rows_and_labels(settings.pop("rows"), dtype)
    model = MLP(16, 3, width=8, depth=2, seed=1).to(dtype)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.3, momentum=settings.pop("momentum", 0.0)
    )
    processes = []

    def noting_step(run, batch):
        processes.append(run.accelerator.num_processes)
        return train_step(run, batch)

    history = fit(
        model,
        data,
        optimizer,
        epochs=3,
        seed=4,
        schedule=lambda t: 0.9**t,
        step=noting_step,
        validation=rows_and_labels(dtype=dtype),
        validate_every=2,
        **settings,
    )
    return {"weights": weights(model), "processes": processes[0], **history.as_dict()}


def train_all() -> dict:
    return {case: train(case) for case in CASES}


class Noisy(nn.Module):
    """A model that draws from the global generator at each forward pass, and has buffers."""

    def __init__(self):
        super().__init__()
        self.inner = MLP(16, 3, width=8, seed=1)
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        return self.drop(self.norm(self.inner(x)))


def run_once(path, steps, resume=False, seed=5, loader=False):
    """Train a noisy model with Adam up to update `steps`, saving to `path`."""
    torch.manual_seed(seed)
    model = Noisy().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    data = rows_and_labels()
    if loader:
        data = DataLoader(TensorDataset(*data), batch_size=20, shuffle=True)
    history = fit(
        model, data, optimizer, steps=steps, batch_size=20, checkpoint=path, resume=resume
    )
    return weights(model), history.loss


def resume_in_many_places(folder) -> list:
    """Return [cut, equal to the uncut run] for runs cut at each place, and both
    histories.
    """
    use_one_thread()
    results = []
    for loader in (False, True):
        whole = run_once(f"{folder}/whole{loader}.pt", 8, loader=loader)
        for cut in (1, 3, 5):
            path = f"{folder}/cut{loader}{cut}.pt"
            run_once(path, cut, loader=loader)
            resumed = run_once(path, 8, resume=True, seed=999, loader=loader)
            results.append([cut, resumed == whole])
    return [results, whole]


def evaluate_all(rows_and_batch_sizes) -> list:
    """Evaluate after each update on several numbers of rows, with buffers in the model."""
    use_one_thread()
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3)).double()
    results, states = [], []

    def step(run, batch):
        loss = train_step(run, batch)
        for rows, batch_size in rows_and_batch_sizes:
            data = rows_and_labels(rows)
            row = evaluate(
                run.model, data, batch_size=batch_size, accelerator=run.accelerator
            )
            results.append(row)
        plain = run.accelerator.unwrap_model(run.model)
        states.append(
            {name: value.tolist() for name, value in plain.state_dict().items()}
        )
        return loss

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, rows_and_labels(), optimizer, steps=2, batch_size=20, step=step)
    return [results, states]


def stop_for_nan() -> list:
    """Return the errors of runs in which the loss of one rank alone, or a row, is NaN."""
    use_one_thread()
    told = []
    for broken_rank, at in ((0, 3), (1, 3), (1, 11), (None, 0)):
        model = MLP(16, 3, width=8, seed=1).double()
        inputs, labels = rows_and_labels()
        if broken_rank is None:
            inputs[44] = float("nan")

        def step(run, batch, broken_rank=broken_rank, at=at):
            loss = train_step(run, batch)
            return (
                loss * float("nan") if (rank(), run.step) == (broken_rank, at) else loss
            )

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        try:
            fit(model, (inputs, labels), optimizer, steps=12, batch_size=20, step=step)
            told.append("finished")
        except (
            NonFiniteLossError
        ) as error:  # here each process goes on, and none may be waiting
            told.append(str(error))
            again = fit(model, rows_and_labels(), optimizer, steps=2, stop_on_nan=False)
            told.append(len(again.loss))
    return told


def stop_for_ctrl_c(folder, places) -> list:
    """For each (at, steps) return where a run stood that got Ctrl-C on one rank, and its
    end.
    """
    use_one_thread()
    told = []
    for at, steps in places:

        def step(run, batch, at=at):
            if (rank(), run.step) == (1, at):
                os.kill(os.getpid(), signal.SIGINT)
            return train_step(run, batch)

        model = MLP(16, 3, width=8, seed=1).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        settings = {
            "steps": steps,
            "batch_size": 20,
            "checkpoint": f"{folder}/{at}-{steps}.pt",
        }
        try:
            fit(model, rows_and_labels(), optimizer, step=step, **settings)
            told.append("finished")
        except KeyboardInterrupt as stop:
            saved = load_checkpoint(settings["checkpoint"])["step"]
            history = fit(model, rows_and_labels(), optimizer, resume=True, **settings)
            told.append([str(stop), saved, len(history.loss)])
    return told


def rows_drawn_from_a_loader() -> list:
    """Return the rows of each batch of two epochs, as this process drew them."""
    use_one_thread()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(1, 9), nn.Dropout(0.3), nn.Linear(9, 3))
    data = TensorDataset(
        torch.arange(ROWS).float().unsqueeze(1) / ROWS, rows_and_labels()[1]
    )
    drawn = []

    def note(inputs, targets):
        drawn.append((inputs[:, 0] * ROWS).round().int().tolist())
        return inputs, targets

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(
        model,
        DataLoader(data, batch_size=20, shuffle=True),
        optimizer,
        epochs=2,
        transform=note,
    )
    return drawn


def sum_and_mean_of_ranks() -> list:
    """Return the sum and the mean of 1 on the first process and 2 on the second."""
    accelerator = make_accelerator()
    mine = torch.tensor(float(rank() + 1))
    return [all_reduce(mine, accelerator, how).item() for how in ("sum", "mean")]


ASKED = [(1, 1024), (45, 1024), (45, 2), (7, 2), (5, 2), (2, 1)]  # rows and batch sizes


def all_in_turn(folder) -> dict:
    """Return what two processes give for each test; started once, since each start takes
    seconds.

    The first error ends both processes, and its traceback names the function.
    """
    results = {
        "train": train_all(),
        "evaluate": evaluate_all(ASKED),
        "resume": resume_in_many_places(folder),
        "nan": stop_for_nan(),
        "loader": rows_drawn_from_a_loader(),
        "reduced": sum_and_mean_of_ranks(),
    }
    if os.name != "nt":
        results["ctrl-c"] = stop_for_ctrl_c(folder, [[11, 30], [11, 15]])
    return results


def train_until_stopped(folder) -> None:
    """Train on and on, showing after the first updates that the run is under way."""
    use_one_thread()
    model = MLP(16, 3, width=8, seed=1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(run, batch):
        if run.step == 20:
            (Path(folder) / f"started{rank()}").touch()
        return train_step(run, batch)

    fit(
        model, rows_and_labels(), optimizer, steps=1_000_000, step=step,
        checkpoint=f"{folder}/run.pt",
    )  # fmt: skip


# --- equal to one process -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone():
    """Return each case's result in this one process."""
    return train_all()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Return what each of two processes found, by the name of the question."""
    first, second = launch(
        all_in_turn, args=[str(tmp_path_factory.mktemp("pair"))], timeout=240.0
    )
    return {name: [first[name], second[name]] for name in first}


@pytest.fixture(scope="module", params=[2, 3])
def together(request):
    """Return the processes and each rank's results of all cases."""
    if request.param == 2:
        return 2, request.getfixturevalue("pair")["train"]
    return 3, launch(train_all, 3, timeout=240.0)


def close(case):
    tolerance = 2e-6 if CASES[case].get("dtype") == "float32" else 1e-12
    return lambda values: pytest.approx(values, rel=0, abs=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_one_process(alone, together, case):
    processes, results = together
    assert [result[case]["processes"] for result in results] == [processes] * processes
    assert alone[case]["processes"] == 1
    for result in results:
        assert result[case]["weights"] == close(case)(alone[case]["weights"])
        assert result[case]["weights"] == results[0][case]["weights"]  # to the bit


@pytest.mark.parametrize("case", CASES)
def test_history_is_that_of_one_process_on_every_rank(alone, together, case):
    _, results = together
    expected = alone[case]
    for result in results:
        assert result[case]["loss"] == results[0][case]["loss"]
        assert result[case]["validation"] == results[0][case]["validation"]
        assert result[case]["lr"] == expected["lr"]
        # the losses are averaged over the processes in float32
        assert result[case]["loss"] == pytest.approx(expected["loss"], rel=0, abs=2e-6)
        for row, wanted in zip(
            result[case]["validation"], expected["validation"], strict=True
        ):
            assert row == pytest.approx(wanted, rel=0, abs=2e-6)


def test_evaluate_counts_every_row_once_with_buffers_and_uneven_batches(pair):
    results = pair["evaluate"]
    assert results[0][0] == results[1][0]
    rows, states = results[0]
    assert [row["count"] for row in rows] == [count for count, _ in ASKED] * 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3)).double()
    for number, row in enumerate(rows):  # rank 0's state, as a checkpoint would hold it
        state = states[number // len(ASKED)]
        model.load_state_dict(
            {name: torch.tensor(value) for name, value in state.items()}
        )
        expected = evaluate(model, rows_and_labels(ASKED[number % len(ASKED)][0]))
        assert row == pytest.approx(expected, rel=0, abs=1e-6)


def test_values_are_added_or_averaged_over_the_processes(pair):
    assert pair["reduced"] == [[3.0, 1.5], [3.0, 1.5]]


# --- going on and stopping ------------------------------------------------------------------------


def test_resume_in_two_processes_continues_to_the_bit(pair):
    first, second = pair["resume"]
    assert first == second
    assert first[0] == [[cut, True] for cut in (1, 3, 5)] * 2


def test_checkpoint_of_another_number_of_processes_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    run_once(path, 2)
    state = load_checkpoint(path)
    state["facts"]["processes"] = 2
    torch.save(state, path)
    with pytest.raises(ValueError, match="processes=2, this run has processes=1"):
        run_once(path, 4, resume=True)


def test_nan_on_one_rank_stops_all_at_the_same_update(pair):
    first, second = pair["nan"]
    assert first == second
    assert [text for text in first if text == "finished"] == []
    updates = [text.split("update ")[1].split(",")[0] for text in first[::2]]
    assert updates[:3] == ["4", "4", "12"] and int(updates[3]) <= 3
    # the history of a fit inside an except block is whole too
    assert first[1::2] == [2] * 4


@posix
def test_ctrl_c_on_one_rank_stops_all_and_saves(pair):
    # all stop together, at the next multiple of 10 or at the end
    told = [["stopped after update 20", 20, 30], ["stopped after update 15", 15, 15]]
    assert pair["ctrl-c"] == [told, told]


@posix
def test_ctrl_c_in_the_notebook_saves_a_launched_run(tmp_path):
    script = tmp_path / "script.py"  # as a cell: the parent need not import torch
    script.write_text(
        "import sys\n"
        "from dlcourse.lab.launching import launch\n"
        f"sys.path.insert(0, {str(ROOT / 'tests' / 'lab')!r})\n"  # for the ranks, too
        "def train(folder):\n"
        "    from test_lab_training_processes import train_until_stopped\n"
        "    train_until_stopped(folder)\n"
        f"launch(train, args=[{str(tmp_path)!r}], timeout=200)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("started*"))) < 2:
            assert time.monotonic() < until and parent.poll() is None, (
                "the run did not start"
            )
            time.sleep(0.05)
        parent.send_signal(signal.SIGINT)
        _, words = parent.communicate(timeout=120)
    finally:
        parent.kill()
    assert b"KeyboardInterrupt" in words
    saved = load_checkpoint(tmp_path / "run.pt")
    assert saved["step"] > 20 and saved["step"] == len(saved["history"]["loss"])


def test_processes_draw_alike_from_a_shuffling_loader(pair):
    first, second = pair["loader"]
    assert first == second  # also where dropout has drawn for 3 rows here and for 2 there
    for epoch in (first[:3], first[3:]):
        assert sorted(row for batch in epoch for row in batch) == list(range(ROWS))


# --- started from the shell -----------------------------------------------------------------------

SCRIPT = """
import atexit
import json
import os
import sys
import torch
from accelerate import Accelerator

@atexit.register  # registered first, so it runs last
def say():
    with open(sys.argv[1] + ".open" + os.environ["RANK"], "w") as file:
        file.write(str(torch.distributed.is_initialized()))

sys.path.insert(0, TESTS)
from test_lab_training_processes import train
result = train("uneven last batch")
if Accelerator().is_main_process:
    with open(sys.argv[1], "w") as file:
        json.dump(result, file)
"""


@posix
def test_torchrun_runs_a_script_that_calls_fit_unedited(tmp_path, alone):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("TESTS", repr(str(ROOT / "tests" / "lab"))))
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    done = subprocess.run(
        [*start, str(script), str(tmp_path / "out.json")],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "yes", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):  # a group left open aborts one exit in ten
        assert (tmp_path / f"out.json.open{rank}").read_text() == "False"
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["processes"] == 2
    expected = alone["uneven last batch"]["weights"]
    assert result["weights"] == pytest.approx(expected, rel=0, abs=1e-12)
