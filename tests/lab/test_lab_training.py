"""The loop: equal to a bare PyTorch loop, resumable to the bit, and clear about what is
wrong.
"""

import json
import math
import os
import random
import signal
import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dlcourse.lab import progress
from dlcourse.lab.accelerator import make_accelerator
from dlcourse.lab.batches import Batches, as_tensors, epoch_order
from dlcourse.lab.checkpoints import load_checkpoint, replacing, save_atomically
from dlcourse.lab.datasets import ImageData, load
from dlcourse.lab.evaluation import evaluate
from dlcourse.lab.models import MLP
from dlcourse.lab.parts import NonFiniteLossError
from dlcourse.lab.randomness import rng_state, set_rng_state
from dlcourse.lab.training import fit, train_step, use_one_thread

use_one_thread()
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(90, 1, 4, 4, generator=GENERATOR)
Y = torch.randint(0, 3, (90,), generator=GENERATOR)
DATA = (X, Y)


class Noisy(nn.Module):
    """A model that draws from the global generator at each forward pass."""

    def __init__(self):
        super().__init__()
        self.inner = MLP(16, 3, width=8, seed=1)

    def forward(self, x):
        return F.dropout(self.inner(x), 0.3, self.training)


def model_and_optimizer(lr=0.1, kind=torch.optim.SGD, **kwargs):
    model = MLP(16, 3, width=8, depth=2, seed=1)
    return model, kind(model.parameters(), lr=lr, **kwargs)


def weights(model):
    return torch.cat([p.detach().ravel() for p in model.parameters()])


def bare_loop(model, optimizer, steps, batch_size, seed, schedule=None):
    losses, epoch = [], 0
    base = optimizer.param_groups[0]["lr"]
    while True:
        for rows in epoch_order(len(X), seed, epoch).split(batch_size):
            if schedule:
                optimizer.param_groups[0]["lr"] = base * schedule(len(losses))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X[rows]), Y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == steps:
                return losses
        epoch += 1


@pytest.mark.parametrize("schedule", [None, lambda t: 1 / (1 + t)])
def test_fit_equals_a_bare_loop_to_the_bit(schedule):
    model, optimizer = model_and_optimizer(momentum=0.9)
    history = fit(
        model, DATA, optimizer, steps=17, batch_size=20, seed=3, schedule=schedule
    )
    twin, twin_optimizer = model_and_optimizer(momentum=0.9)
    losses = bare_loop(twin, twin_optimizer, 17, 20, 3, schedule)
    assert history.loss == losses
    assert torch.equal(weights(model), weights(twin))
    if schedule:
        assert history.lr == [0.1 * schedule(t) for t in range(17)]


@pytest.mark.parametrize("pieces", [2, 3, 7, 20])
def test_accumulation_leaves_the_result_as_it_was(pieces):
    results = []
    for number in (1, pieces):
        model, optimizer = model_and_optimizer()
        model.double()
        data = (X.double(), Y)
        fit(model, data, optimizer, epochs=2, batch_size=20, accumulation_steps=number)
        results.append(weights(model))
    assert torch.allclose(*results, atol=1e-7, rtol=0)


def test_epochs_count_short_last_batches_too():
    model, optimizer = model_and_optimizer()
    assert len(fit(model, DATA, optimizer, epochs=2, batch_size=40).loss) == 6


def run_once(path, steps, model_class=Noisy, loader=False, **kwargs):
    torch.manual_seed(5)
    model = model_class()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    data = (
        DataLoader(TensorDataset(X, Y), batch_size=20, shuffle=True) if loader else DATA
    )
    history = fit(
        model, data, optimizer, steps=steps, batch_size=20, checkpoint=path, **kwargs
    )
    return weights(model), history


@pytest.mark.parametrize("loader", [False, True])
@pytest.mark.parametrize("cut", [1, 4, 5, 7, 12])
def test_resume_continues_to_the_bit(tmp_path, cut, loader):
    whole, history = run_once(
        tmp_path / "whole.pt", 13, loader=loader, schedule=lambda t: 0.9**t
    )
    path = tmp_path / "cut.pt"
    run_once(path, cut, loader=loader, schedule=lambda t: 0.9**t)
    torch.manual_seed(999)
    model = Noisy()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    data = (
        DataLoader(TensorDataset(X, Y), batch_size=20, shuffle=True) if loader else DATA
    )
    resumed = fit(
        model, data, optimizer, steps=13, batch_size=20, checkpoint=path, resume=True,
        schedule=lambda t: 0.9**t,
    )  # fmt: skip
    assert torch.equal(weights(model), whole)
    assert resumed.loss == history.loss and resumed.lr == history.lr


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path):
    path = tmp_path / "run.pt"
    whole, history = run_once(tmp_path / "whole.pt", 30)

    def interrupting(run, batch):
        if run.step == 11:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(run, batch)

    with pytest.raises(KeyboardInterrupt):
        run_once(path, 30, step=interrupting)
    assert load_checkpoint(path)["step"] == 12
    final, resumed = run_once(path, 30, resume=True)
    assert torch.equal(final, whole) and resumed.loss == history.loss


def test_signal_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    model, optimizer = model_and_optimizer()
    fit(model, DATA, optimizer, steps=1)
    assert signal.getsignal(signal.SIGINT) is before


def test_fit_runs_outside_the_main_thread():
    done = []
    model, optimizer = model_and_optimizer()
    thread = threading.Thread(
        target=lambda: done.append(fit(model, DATA, optimizer, steps=2))
    )
    thread.start()
    thread.join()
    assert len(done[0].loss) == 2


def test_checkpoint_is_not_overwritten(tmp_path):
    run_once(tmp_path / "run.pt", 2)
    with pytest.raises(FileExistsError, match="resume=True"):
        run_once(tmp_path / "run.pt", 2)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut short"])
def test_foreign_checkpoints_are_refused(tmp_path, content):
    path = tmp_path / "run.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        run_once(path, 2, resume=True)


def test_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"format": 1, "x": Evil()}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        run_once(tmp_path / "run.pt", 2, resume=True)
    assert not (tmp_path / "ran").exists()


def test_another_runs_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    run_once(path, 2)
    with pytest.raises(ValueError, match="seed=0, this run has seed=1"):
        run_once(path, 4, resume=True, seed=1)
    model, optimizer = model_and_optimizer()
    with pytest.raises(ValueError, match="another model"):
        fit(model, DATA, optimizer, steps=4, batch_size=20, checkpoint=path, resume=True)


def test_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    run_once(path, 2)
    old = path.read_bytes()

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        run_once(path, 4, resume=True)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_non_finite_loss_stops_with_the_facts():
    def logging_step(run, batch):
        loss = train_step(run, batch)
        run.log("grad_norm", 7.0)
        return loss

    model, optimizer = model_and_optimizer(lr=1e30)
    with pytest.raises(
        NonFiniteLossError, match=r"update \d+, learning rate 1e\+30.*norm 7"
    ):
        fit(model, DATA, optimizer, steps=20, step=logging_step)


def test_diverging_run_may_be_watched():
    model, optimizer = model_and_optimizer(lr=1e30)
    history = fit(model, DATA, optimizer, steps=20, stop_on_nan=False)
    assert len(history.loss) == 20 and math.isnan(history.loss[-1])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "either steps="),
        ({"steps": 2, "epochs": 2}, "either steps="),
        ({"steps": 0}, "at least 1"),
        ({"steps": 2, "batch_size": 0}, "at least 1"),
        ({"steps": 2, "accumulation_steps": 33}, "from 1 to batch_size"),
        ({"steps": 2, "resume": True}, "need checkpoint="),
        ({"steps": 2, "mixed_precision": "fp16", "cpu": True}, "bf16"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    model, optimizer = model_and_optimizer()
    with pytest.raises(ValueError, match=message):
        fit(model, DATA, optimizer, **settings)


def test_data_that_cannot_work():
    model, optimizer = model_and_optimizer()
    with pytest.raises(ValueError, match="90 inputs but 89 targets"):
        fit(model, (X, Y[1:]), optimizer, steps=1)
    with pytest.raises(ValueError, match="no rows"):
        fit(model, (X[:0], Y[:0]), optimizer, steps=1)


def test_bf16_runs_and_leaves_the_model_in_float32():
    dtypes = []
    model, optimizer = model_and_optimizer()
    # Accelerate turns the outputs of the whole model back to float32
    layer = model.layers[0]
    handle = layer.register_forward_hook(lambda m, i, o: dtypes.append(o.dtype))
    fit(model, DATA, optimizer, steps=3, mixed_precision="bf16")
    assert set(dtypes) == {torch.bfloat16}
    handle.remove()
    assert model(X).dtype == torch.float32
    model, optimizer = model_and_optimizer()
    fit(model, DATA, optimizer, steps=3, mixed_precision="no")


def test_history_columns_csv_json(tmp_path):
    def sometimes(run, batch):
        if run.step % 2:
            run.log("odd", torch.tensor(float(run.step)))
        return train_step(run, batch)

    model, optimizer = model_and_optimizer()
    history = fit(model, DATA, optimizer, steps=5, step=sometimes, validation=DATA)
    columns = history.columns()
    assert columns["odd"] == [None, 1.0, None, 3.0, None]
    assert {len(column) for column in columns.values()} == {5}
    assert [row["step"] for row in history.validation] == [5]
    json.dumps(history.as_dict())
    history.to_csv(tmp_path / "h.csv")
    lines = (tmp_path / "h.csv").read_text().splitlines()
    assert lines[0] == "step,loss,lr,odd" and len(lines) == 6


def test_evaluate_counts_every_row_once():
    model, _ = model_and_optimizer()
    result = evaluate(model, DATA, batch_size=7)
    assert result["count"] == 90
    with torch.no_grad():
        outputs = model(X)
    assert result["loss"] == pytest.approx(F.cross_entropy(outputs, Y).item(), abs=1e-6)
    assert result["accuracy"] == pytest.approx(
        (outputs.argmax(1) == Y).float().mean().item()
    )


def test_transform_sees_training_batches_only():
    seen = []

    def count(x, y):
        seen.append(len(x))
        return x, y

    model, optimizer = model_and_optimizer()
    fit(model, DATA, optimizer, steps=3, batch_size=40, transform=count, validation=DATA)
    assert seen == [40, 40, 10]


# --- the parts that fit is made of ----------------------------------------------------------------


def test_data_comes_as_pairs_splits_or_image_data():
    data = load("digits")
    for given in (data, data.train, data.train.tensors()):
        inputs, targets = as_tensors(given)
        assert isinstance(data, ImageData) and len(inputs) == len(targets) == len(
            data.train
        )


def test_each_epoch_holds_every_row_once_in_a_new_order():
    batches = iter(
        Batches((torch.arange(10.0), torch.arange(10)), 4, 0, make_accelerator(), None)
    )
    epochs = [torch.cat([next(batches).targets for _ in range(3)]) for _ in range(2)]
    assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(10))] * 2
    assert not torch.equal(*epochs)


def test_random_state_is_put_back():
    state = rng_state()
    first = torch.rand(2).tolist(), np.random.rand(), random.random()
    set_rng_state(state)
    assert (torch.rand(2).tolist(), np.random.rand(), random.random()) == first


def test_saving_replaces_the_file_and_leaves_no_part(tmp_path):
    for value in (1, 2):
        save_atomically({"format": 1, "value": value}, tmp_path / "new" / "file.pt")
        assert load_checkpoint(tmp_path / "new" / "file.pt")["value"] == value
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_progress_bar_shows_loss_and_rate(capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0.0)

    def slow(run, batch):
        time.sleep(0.005)
        return train_step(run, batch)

    model, optimizer = model_and_optimizer()
    fit(model, DATA, optimizer, steps=60, step=slow, progress=True)
    shown = capsys.readouterr().err
    assert "/60" in shown and "loss=" in shown and "update/s" in shown


# --------------------------------------------------------------------------- watching a run


class StopAfter:
    """Ends a run at the `rounds`-th validation, and counts in a state that can be kept."""

    def __init__(self, rounds):
        self.rounds, self.seen = rounds, []

    def __call__(self, run, row):
        self.seen.append((run.step, row["step"], row["count"]))
        return len(self.seen) == self.rounds

    def state_dict(self):
        return {"seen": [list(row) for row in self.seen]}

    def load_state_dict(self, state):
        self.seen = [tuple(row) for row in state["seen"]]


def watched(watch, **more):
    model, optimizer = model_and_optimizer()
    settings = {
        "steps": 60,
        "validation": DATA,
        "validate_every": 5,
        "watch": watch,
    } | more
    return model, fit(model, DATA, optimizer, **settings)


def test_watch_sees_each_validation_and_may_end_the_run():
    watch = StopAfter(3)
    _, history = watched(watch)
    assert watch.seen == [(5, 5, 90), (10, 10, 90), (15, 15, 90)]
    assert len(history.loss) == 15 and len(history.validation) == 3


def test_watch_that_never_ends_changes_nothing():
    one, first = watched(StopAfter(99))
    two, second = watched(None)
    assert first.loss == second.loss
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_watch_goes_on_where_a_stopped_run_was(tmp_path):
    whole = StopAfter(9)
    _, unbroken = watched(whole, checkpoint=tmp_path / "whole")
    cut = StopAfter(99)

    class Stop(Exception):
        pass

    def stop_at_22(run, batch):
        if run.step == 22:
            raise Stop
        return train_step(run, batch)

    with pytest.raises(Stop):
        watched(cut, checkpoint=tmp_path / "cut", save_every=10, step=stop_at_22)
    again = StopAfter(9)
    _, history = watched(again, checkpoint=tmp_path / "cut", resume=True)
    assert again.seen == whole.seen and history.loss == unbroken.loss
    # a run that was ended is not continued, whatever the new watch says
    ended = StopAfter(99)
    _, history = watched(ended, checkpoint=tmp_path / "cut", resume=True)
    assert len(history.loss) == 45 and ended.seen == whole.seen


def test_watch_without_validation_is_refused():
    with pytest.raises(ValueError, match="give validation="):
        watched(StopAfter(1), validation=None)


def test_replacing_keeps_the_old_file_where_writing_fails(tmp_path):
    path = tmp_path / "new folder" / "file"
    with replacing(path) as file:
        file.write(b"old")
    with pytest.raises(OSError, match="full"):
        with replacing(path) as file:
            file.write(b"half of the n")
            raise OSError(28, "full")
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == [
        "file"
    ]


def test_fit_leaves_the_precision_of_the_process_as_it_was():
    mine = Accelerator()
    assert mine.mixed_precision == "no"
    model, optimizer = model_and_optimizer()
    fit(model, DATA, optimizer, steps=1, mixed_precision="bf16")
    assert mine.mixed_precision == Accelerator().mixed_precision == "no"
    with pytest.raises(ValueError, match="either steps="):
        fit(model, DATA, optimizer, mixed_precision="bf16")
    with pytest.raises(ValueError, match="nothing on cpu"):
        fit(model, DATA, optimizer, steps=1, mixed_precision="fp16", cpu=True)
    assert Accelerator().mixed_precision == "no"


def test_fit_takes_the_precision_of_an_earlier_accelerator():
    AcceleratorState._reset_state()
    try:
        mine, dtypes = Accelerator(mixed_precision="bf16"), []
        model, optimizer = model_and_optimizer()
        model.layers[0].register_forward_hook(lambda m, i, o: dtypes.append(o.dtype))
        fit(model, DATA, optimizer, steps=1)
        fit(model, DATA, optimizer, steps=1, mixed_precision="no")
        assert dtypes == [torch.bfloat16, torch.float32]
        assert mine.mixed_precision == "bf16"
    finally:
        AcceleratorState._reset_state()


def test_persistent_workers_and_a_checkpoint_warn(tmp_path):
    loader = DataLoader(TensorDataset(X, Y), 32, num_workers=1, persistent_workers=True)
    model, optimizer = model_and_optimizer()
    with pytest.warns(UserWarning, match="persistent_workers=False"):
        fit(model, loader, optimizer, steps=1, checkpoint=tmp_path / "run.pt")
