"""The parts of the loop, each by itself, on a run that only counts."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlcourse.lab.accelerator import keep_precision, make_accelerator, prepared
from dlcourse.lab.batches import Batches
from dlcourse.lab.checkpoints import Checkpoint
from dlcourse.lab.history import Recorder
from dlcourse.lab.parts import (
    FiniteCheck,
    Interrupts,
    NonFiniteLossError,
    Part,
    Progress,
    Validation,
)
from dlcourse.lab.training import Rates, Run, fit

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


def new_run(steps=40, rates=(0.1,)):
    """Return a run that has not begun, with one parameter group a rate."""
    layers = [nn.Linear(4, 3) for _ in rates]
    groups = []
    for layer, rate in zip(layers, rates, strict=True):
        groups.append({"params": layer.parameters(), "lr": rate})
    optimizer = torch.optim.SGD(groups, lr=0.1)
    run = Run(layers[0], optimizer, F.cross_entropy, make_accelerator(cpu=True))
    run.steps = steps
    return run


def on_a_gpu(recorder):
    """Let a recorder keep tensors, as it does where reading one has to wait."""
    recorder.on_cpu = False
    return recorder


def update(run, recorder, loss, parts=()):
    """Count one update of this loss, as the loop does."""
    run.step += 1
    recorder.add(run, torch.tensor(loss))
    for part in parts:
        part.after_update(run)


# --- the rate, and the record ---------------------------------------------------------------------


def test_each_group_keeps_its_own_first_rate():
    run = new_run(rates=(0.1, 0.3))
    rates = Rates(run.optimizer, lambda t: 1 / (1 + t))
    for t in (0, 1, 4):
        rates.set(t)
        now = [group["lr"] for group in run.optimizer.param_groups]
        assert now == [0.1 * (1 / (1 + t)), 0.3 * (1 / (1 + t))]


def test_without_a_schedule_the_rate_is_left_to_the_step():
    run = new_run()
    run.optimizer.param_groups[0]["lr"] = 0.7
    Rates(run.optimizer).set(3)
    assert run.optimizer.param_groups[0]["lr"] == 0.7


@pytest.mark.parametrize("gpu", [False, True])
def test_recorder_keeps_columns_of_one_length_over_several_flushes(gpu):
    run = new_run()
    recorder = Recorder(run.accelerator)
    if gpu:
        on_a_gpu(recorder)
    for number in range(1, 6):
        if number in (2, 5):
            run.log("norm", torch.tensor(float(number)))
        update(run, recorder, float(number))
        if number == 3:
            recorder.flush()
            assert recorder.history.extra == {"norm": [None, 2.0, None]}
    assert isinstance(recorder.losses[0], torch.Tensor) == gpu
    recorder.flush()
    recorder.flush()
    assert recorder.history.loss == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert recorder.history.lr == [0.1] * 5
    assert recorder.history.extra == {"norm": [None, 2.0, None, None, 5.0]}


# --- the parts ------------------------------------------------------------------------------------


def test_finite_check_on_a_gpu_reads_every_20_updates_and_names_the_first():
    run = new_run()
    recorder = on_a_gpu(Recorder(run.accelerator))
    check = FiniteCheck(recorder)
    for number in range(1, 20):
        loss = float("nan") if number in (7, 8) else 1.0
        update(run, recorder, loss, [check])
    with pytest.raises(NonFiniteLossError, match="the loss is nan at update 8,"):
        update(run, recorder, 1.0, [check])


def test_finite_check_on_a_gpu_reads_at_the_end_too():
    run = new_run(steps=3)
    recorder = on_a_gpu(Recorder(run.accelerator))
    check = FiniteCheck(recorder)
    update(run, recorder, float("inf"), [check])
    update(run, recorder, 1.0, [check])
    with pytest.raises(NonFiniteLossError, match="the loss is inf at update 1,"):
        update(run, recorder, 1.0, [check])


@pytest.mark.parametrize("every, expected", [(2, [2, 4, 5]), (None, [5]), (5, [5])])
def test_validation_comes_at_multiples_and_at_the_end(every, expected):
    run = new_run(steps=5)
    recorder = Recorder(run.accelerator)
    validation = Validation((X, Y), every, recorder)
    for _ in range(5):
        update(run, recorder, 1.0, [validation])
    assert [row["step"] for row in recorder.history.validation] == expected
    assert {row["count"] for row in recorder.history.validation} == {12}


def test_watch_ends_the_run():
    run = new_run(steps=5)
    recorder = Recorder(run.accelerator)
    validation = Validation((X, Y), 1, recorder, lambda run, row: row["step"] == 2)
    update(run, recorder, 1.0, [validation])
    assert not run.over
    update(run, recorder, 1.0, [validation])
    assert run.ended and run.over


@posix
def test_ctrl_c_counts_after_the_update_and_a_second_one_at_once():
    run = new_run()
    before = signal.getsignal(signal.SIGINT)
    interrupts = Interrupts()
    interrupts.start(run)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert not run.interrupted
        interrupts.after_update(run)
        assert run.interrupted and run.over
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        interrupts.end(run)
    assert signal.getsignal(signal.SIGINT) is before


def test_progress_bar_that_never_started_can_end():
    run = new_run()
    Progress(Recorder(run.accelerator)).end(run)


def test_a_part_does_nothing_unless_told_to():
    run = new_run()
    before = dict(vars(run))
    for method in (Part().start, Part().after_update, Part().end):
        method(run)
    assert vars(run) == before


def test_parts_end_also_where_the_step_fails(monkeypatch):
    ended = []
    monkeypatch.setattr(Interrupts, "end", lambda self, run: ended.append(run.step))

    def failing_step(run, batch):
        raise RuntimeError("out of memory")

    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            fit(model, (X, Y), optimizer, steps=3, step=failing_step)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == [0]


def test_checkpoint_is_written_when_due_and_where_the_run_is_over(tmp_path, monkeypatch):
    run = new_run(steps=8)
    recorder = Recorder(run.accelerator)
    batches = Batches((X, Y), 4, 0, run.accelerator, None)
    saver = Checkpoint(
        tmp_path / "run.pt", 3, run.model, run.optimizer, batches, recorder
    )
    written = []
    monkeypatch.setattr(saver, "save", lambda run: written.append(run.step))
    for _ in range(8):
        update(run, recorder, 1.0, [saver])
    assert written == [3, 6, 8]


def test_checkpoint_puts_all_of_a_run_back(tmp_path):
    run = new_run()
    recorder = Recorder(run.accelerator)
    batches = Batches((X, Y), 4, 0, run.accelerator, None)
    draw = iter(batches)
    for _ in range(4):
        next(draw)
        update(run, recorder, 1.5)
    path = tmp_path / "run.pt"
    Checkpoint(path, None, run.model, run.optimizer, batches, recorder).save(run)
    expected = next(draw).targets, torch.rand(2)

    again = new_run()
    new_recorder = Recorder(run.accelerator)
    new_batches = Batches((X, Y), 4, 0, run.accelerator, None)
    Checkpoint(
        path, None, again.model, again.optimizer, new_batches, new_recorder
    ).restore(again)
    assert again.step == 4 and new_recorder.history.loss == [1.5] * 4
    assert torch.equal(again.model.weight, run.model.weight)
    assert torch.equal(next(iter(new_batches)).targets, expected[0])
    assert torch.equal(torch.rand(2), expected[1])


# --- the accelerator ------------------------------------------------------------------------------


def test_prepared_model_is_plain_again_also_after_an_error():
    model = nn.Linear(4, 3).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with keep_precision():
        accelerator = make_accelerator("bf16", cpu=True)
        with pytest.raises(RuntimeError):
            with prepared(model, optimizer, accelerator) as (wrapped, _):
                wrapped(X).sum().backward()
                assert model.training and model.weight.grad is not None
                raise RuntimeError
    assert not model.training and model.weight.grad is None
    in_float32 = F.linear(X, model.weight, model.bias)
    assert torch.equal(model(X), in_float32)  # and no longer in bfloat16


def test_run_is_over_at_its_last_update_or_when_it_is_stopped():
    keys = ("step", "ended", "interrupted")
    cases = {(39, False, False): False, (40, False, False): True}
    cases |= {(1, True, False): True, (1, False, True): True}
    for values, expected in cases.items():
        run = SimpleNamespace(steps=40, **dict(zip(keys, values, strict=True)))
        assert Run.over.fget(run) is expected
