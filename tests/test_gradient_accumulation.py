"""Gradient accumulation: equal to one full batch, on one process and two, and resumable."""

import contextlib
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dlcourse.gradient_accumulation import (
    DelayedSGD,
    GradientAccumulator,
    SavedBytes,
    accumulate_gradients,
    critical_learning_rate,
    effective_batch_size,
    split_microbatches,
)
from dlcourse.lab.launching import launch
from dlcourse.lab.models import MLP
from dlcourse.lab.training import (
    fit,
    train_step,
    use_one_thread,
)

use_one_thread()
TOKENS = functools.partial(lambda targets: int((targets != -100).sum()))


def problem(seed, rows, features=5, classes=4):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, classes, (rows,), generator=generator)
    model = MLP(features, classes, width=7, activation="tanh", seed=seed).double()
    return model, inputs, targets


def gradient(model):
    return torch.cat([parameter.grad.ravel() for parameter in model.parameters()])


def weights(model):
    return torch.cat([parameter.detach().ravel() for parameter in model.parameters()])


def full_gradient(model, inputs, targets, loss_fn=F.cross_entropy):
    model.zero_grad()
    loss = loss_fn(model(inputs), targets)
    loss.backward()
    found = gradient(model).clone()
    model.zero_grad()
    return found, loss.detach()


def random_sizes(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = []
    while sum(sizes) < rows:
        size = int(torch.randint(1, max(2, rows // 2), (), generator=generator))
        sizes.append(min(size, rows - sum(sizes)))
    return sizes


# --------------------------------------------------------------------------- a batch at hand


@pytest.mark.parametrize("seed", range(12))
def test_accumulated_equals_full_batch(seed):
    rows = 1 + 7 * seed
    model, inputs, targets = problem(seed, rows)
    want, loss = full_gradient(model, inputs, targets)
    for cut in (1, min(3, rows), rows, random_sizes(rows, seed)):
        mean = accumulate_gradients(model, F.cross_entropy, inputs, targets, cut)
        torch.testing.assert_close(gradient(model), want, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(mean, loss, rtol=1e-12, atol=1e-14)
        model.zero_grad()


def test_sizes_with_one_row_and_a_short_last_one():
    model, inputs, targets = problem(3, 64)
    want, _ = full_gradient(model, inputs, targets)
    for sizes in ([40, 20, 3, 1], [1] * 64, [60, 1, 3], [64]):
        accumulate_gradients(model, F.cross_entropy, inputs, targets, sizes)
        torch.testing.assert_close(gradient(model), want, rtol=1e-12, atol=1e-14)
        model.zero_grad()


def test_one_micro_batch_is_a_plain_backward_to_the_bit():
    model, inputs, targets = problem(1, 30)
    model, inputs = model.float(), inputs.float()
    want, loss = full_gradient(model, inputs, targets)
    mean = accumulate_gradients(model, F.cross_entropy, inputs, targets)
    assert torch.equal(gradient(model), want) and torch.equal(mean, loss)


def test_gradients_are_added_to_those_already_there():
    model, inputs, targets = problem(2, 10)
    want, _ = full_gradient(model, inputs, targets)
    for _ in range(2):
        accumulate_gradients(model, F.cross_entropy, inputs, targets, 5)
    torch.testing.assert_close(gradient(model), 2 * want, rtol=1e-12, atol=1e-14)


class TokenModel(nn.Module):
    """Logits (n, classes, tokens), as cross_entropy wants them."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 4, dtype=torch.float64)

    def forward(self, x):
        return self.head(x).transpose(1, 2)


def token_problem(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(9, 6, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 4, (9, 6), generator=generator)
    lengths = torch.randint(0, 7, (9, 1), generator=generator)
    targets[torch.arange(6).expand(9, 6) >= lengths] = -100
    targets[0, 0] = 1  # at least one token counts
    targets[4] = -100  # and one row holds none
    torch.manual_seed(seed)
    return TokenModel(), inputs, targets


@pytest.mark.parametrize("seed", range(6))
def test_tokens_are_weighted_by_their_number(seed):
    model, inputs, targets = token_problem(seed)
    want, loss = full_gradient(model, inputs, targets)
    for cut in (1, 4, 9, [7, 1, 1]):
        mean = accumulate_gradients(
            model, F.cross_entropy, inputs, targets, cut, count=TOKENS
        )
        torch.testing.assert_close(gradient(model), want, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(mean, loss, rtol=1e-12, atol=1e-14)
        model.zero_grad()


def test_total_divides_by_the_items_of_all_processes():
    model, inputs, targets = problem(5, 8)
    want, _ = full_gradient(model, inputs, targets)
    found = torch.zeros_like(want)
    # two processes; DDP then takes the mean of the two
    for part in (slice(0, 5), slice(5, 8)):
        model.zero_grad()
        accumulate_gradients(
            model, F.cross_entropy, inputs[part], targets[part], 2, total=8 / 2
        )
        found += gradient(model) / 2
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-14)


def test_no_sync_wraps_all_but_the_last_micro_batch():
    model, inputs, targets = problem(5, 8)
    seen = []

    @contextlib.contextmanager
    def no_sync():
        seen.append("quiet")
        yield

    def backward(loss):
        seen.append("backward")
        loss.backward()

    accumulate_gradients(
        model, F.cross_entropy, inputs, targets, 3, no_sync=no_sync, backward=backward
    )
    assert seen == ["quiet", "backward", "quiet", "backward", "backward"]


def test_clear_errors():
    model, inputs, targets = problem(0, 6)
    with pytest.raises(ValueError, match="6 inputs but 5 targets"):
        split_microbatches(inputs, targets[:5], 2)
    with pytest.raises(ValueError, match="leave one empty"):
        split_microbatches(inputs, targets, 7)
    with pytest.raises(ValueError, match="add up to 5"):
        split_microbatches(inputs, targets, [4, 1])
    for bad in (0, -1, True, [6, 0], [3.0, 3.0]):
        with pytest.raises(ValueError, match="whole number of at least 1"):
            split_microbatches(inputs, targets, bad)
    with pytest.raises(ValueError, match="at least one must count"):
        masked = torch.full_like(targets, -100)
        accumulate_gradients(model, F.cross_entropy, inputs, masked, 2, count=TOKENS)
    with pytest.raises(ValueError, match="one number"):
        loss_fn = functools.partial(F.cross_entropy, reduction="none")
        accumulate_gradients(model, loss_fn, inputs, targets, 2)
    for bad in ({"micro_batch_size": 0}, {"micro_batch_size": 2, "processes": 1.0}):
        with pytest.raises(ValueError, match="whole number of at least 1"):
            effective_batch_size(**bad)


def test_errors_name_what_was_given():
    model, inputs, targets = problem(0, 6)
    for call, words in (
        (lambda: effective_batch_size(0), "micro_batch_size is 0"),
        (lambda: effective_batch_size(2, True), "accumulation_steps is True"),
        (lambda: effective_batch_size(2, 2, 0.5), "processes is 0.5"),
        (lambda: split_microbatches(inputs, targets, 0), "^micro_batches is 0"),
        (
            lambda: split_microbatches(inputs, targets, [6, 0]),
            "each size in micro_batches is 0",
        ),
        (
            lambda: split_microbatches(inputs, targets, 7),
            "7 micro-batches of 6 rows .* ask for 6 at most",
        ),
        (
            lambda: split_microbatches(inputs, targets, [4, 1]),
            r"sizes \[4, 1\] add up to 5, but the batch has 6 rows",
        ),
        (
            lambda: accumulate_gradients(
                model, F.cross_entropy, inputs, targets, total=0
            ),
            "there are 0 items",
        ),
        (
            lambda: accumulate_gradients(model, lambda out, _: out, inputs, targets, [6]),
            r"the loss has shape \(6, 4\)",
        ),
        (lambda: DelayedSGD([inputs], lr=-0.5), "lr=-0.5"),
        (lambda: DelayedSGD([inputs], delay=-1), "delay=-1"),
        (lambda: critical_learning_rate(-1), "delay=-1"),
        (lambda: critical_learning_rate(1, -1.0), "curvature=-1.0"),
        (lambda: critical_learning_rate(1, math.inf), "curvature=inf"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


class Quiet(nn.Linear):
    """A layer with DDP's no_sync, that notes when it is called."""

    def __init__(self):
        super().__init__(5, 4, dtype=torch.float64)
        self.seen = []

    @contextlib.contextmanager
    def no_sync(self):
        self.seen.append("quiet")
        yield

    def forward(self, x):
        self.seen.append("forward")
        return super().forward(x)


def test_the_models_own_no_sync_is_taken_where_none_is_given():
    """As DDP has it: forward and backward of all but the last micro-batch are within."""
    _, inputs, targets = problem(5, 8)
    want = ["quiet", "forward", "quiet", "forward", "forward"]
    model = Quiet()
    accumulate_gradients(model, F.cross_entropy, inputs, targets, 3)
    assert model.seen == want
    model = Quiet()
    stream = GradientAccumulator(model, F.cross_entropy)
    for number, (x, y) in enumerate(split_microbatches(inputs, targets, 3)):
        stream.add(x, y, last=number == 2)
    assert model.seen == want
    stream.finish()


def test_a_stream_divides_by_the_items_of_all_processes(monkeypatch):
    """DDP leaves the mean of two processes; here the other one has 3 of the 8 rows."""
    model, inputs, targets = problem(5, 8)
    want, _ = full_gradient(model, inputs, targets)
    _, loss = full_gradient(model, inputs[:5], targets[:5])
    others = F.cross_entropy(model(inputs[5:]), targets[5:], reduction="sum")
    others = torch.autograd.grad(others, list(model.parameters()))

    def all_reduce(items):
        assert items.dtype == torch.float64  # whole numbers to 2 ** 53
        items += 3

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    stream = GradientAccumulator(model, F.cross_entropy, no_sync=contextlib.nullcontext)
    stream.add(inputs[:2], targets[:2])
    stream.add(inputs[2:5], targets[2:5], last=True)
    for parameter, other in zip(model.parameters(), others, strict=True):
        parameter.grad.add_(other).div_(2)
    assert stream.finish() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(gradient(model), want, rtol=1e-11, atol=1e-13)
    model.zero_grad()
    # rows of the other process alone: there is no mean loss here
    stream.add(inputs[:0], targets[:0], last=True)
    assert stream.finish() == 0.0


def test_without_a_group_of_processes_no_sync_needs_no_exchange():
    model, inputs, targets = problem(5, 8)
    want, loss = full_gradient(model, inputs, targets)
    stream = GradientAccumulator(model, F.cross_entropy, no_sync=contextlib.nullcontext)
    with pytest.raises(RuntimeError, match="no item came"):
        stream.finish()
    stream.add(inputs, targets, last=True)
    assert stream.finish() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(gradient(model), want, rtol=1e-11, atol=1e-13)


def test_a_micro_batch_without_items_adds_nothing():
    model, inputs, targets = problem(5, 8)
    want, loss = full_gradient(model, inputs, targets)
    empty = torch.full((3,), -100)
    rows = torch.cat([inputs, inputs[:3]]), torch.cat([targets, empty])
    mean = accumulate_gradients(model, F.cross_entropy, *rows, [8, 3], count=TOKENS)
    torch.testing.assert_close(gradient(model), want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(mean, loss, rtol=1e-12, atol=1e-14)
    model.zero_grad()
    stream = GradientAccumulator(model, F.cross_entropy, count=TOKENS)
    assert stream.add(inputs[:3], empty).item() == 0.0
    assert not gradient(model).any()


def test_pieces_joined_are_the_batch():
    inputs, targets = torch.arange(11.0), torch.arange(11)
    for cut in (1, 4, 11, [6, 1, 4]):
        parts = split_microbatches(inputs, targets, cut)
        assert torch.equal(torch.cat([x for x, _ in parts]), inputs)
        assert torch.equal(torch.cat([y for _, y in parts]), targets)
        assert all(len(x) for x, _ in parts)
    sizes = [len(x) for x, _ in split_microbatches(inputs, targets, 4)]
    assert max(sizes) - min(sizes) <= 1


def test_effective_batch_size():
    assert effective_batch_size(8) == 8
    assert effective_batch_size(8, 4, 2) == 64


# --------------------------------------------------------------------------- a stream


@pytest.mark.parametrize("seed", range(8))
def test_stream_equals_full_batch(seed):
    rows = 2 + 5 * seed
    model, inputs, targets = problem(seed, rows)
    want, loss = full_gradient(model, inputs, targets)
    accumulator = GradientAccumulator(model, F.cross_entropy)
    for window in range(3):
        model.zero_grad()
        for x, y in split_microbatches(
            inputs, targets, random_sizes(rows, 10 * window + seed)
        ):
            accumulator.add(x, y)
        assert accumulator.items == rows
        assert accumulator.finish() == pytest.approx(loss.item(), rel=1e-12)
        torch.testing.assert_close(gradient(model), want, rtol=1e-11, atol=1e-13)


def test_stream_of_tokens():
    model, inputs, targets = token_problem(0)
    want, loss = full_gradient(model, inputs, targets)
    accumulator = GradientAccumulator(model, F.cross_entropy, count=TOKENS)
    for x, y in split_microbatches(inputs, targets, 9):
        accumulator.add(x, y)
    assert accumulator.finish() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(gradient(model), want, rtol=1e-11, atol=1e-13)


def test_stream_goes_on_from_its_state_to_the_bit():
    model, inputs, targets = problem(4, 12)
    parts = split_microbatches(inputs, targets, [5, 4, 3])

    def whole():
        accumulator = GradientAccumulator(model, F.cross_entropy)
        for x, y in parts:
            accumulator.add(x, y)
        return accumulator.finish(), gradient(model).clone()

    want_loss, want = whole()
    model.zero_grad()
    first = GradientAccumulator(model, F.cross_entropy)
    first.add(*parts[0])
    state = first.state_dict()
    twin, *_ = problem(4, 12)
    second = GradientAccumulator(twin, F.cross_entropy)
    second.load_state_dict(state)
    for x, y in parts[1:]:
        second.add(x, y)
    assert second.finish() == want_loss
    assert torch.equal(gradient(twin), want)


def test_stream_state_passes_through_a_file(tmp_path):
    model, inputs, targets = problem(4, 12)
    accumulator = GradientAccumulator(model, F.cross_entropy)
    accumulator.add(inputs, targets)
    torch.save(accumulator.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = GradientAccumulator(problem(4, 12)[0], F.cross_entropy)
    other.load_state_dict(state)
    assert other.items == 12 and torch.equal(gradient(other.model), gradient(model))


def test_a_loaded_state_replaces_what_is_there():
    """Also a gradient that was not there when it was saved; not one of another shape."""
    model, inputs, targets = problem(4, 12)
    empty = GradientAccumulator(model, F.cross_entropy).state_dict()
    stream = GradientAccumulator(model, F.cross_entropy)
    stream.add(inputs, targets, last=True)
    name, saved = next(iter(stream.state_dict()["gradients"].items()))
    stream.load_state_dict(empty)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert stream.state_dict() == empty and empty["gradients"] == {}
    for wrong in ({name: saved[:1]}, {"other": saved}):
        with pytest.raises(
            ValueError, match=rf"gradient {[*wrong][0]} \(\d+, 5\) has no"
        ):
            stream.load_state_dict(empty | {"gradients": wrong})
    stream.add(inputs, targets, last=True)
    state = stream.state_dict()
    state["gradients"][name].zero_()  # a copy
    assert model.get_parameter(name).grad.any()


def test_a_window_of_one_row_has_its_loss():
    model, inputs, targets = problem(0, 1)
    want, loss = full_gradient(model, inputs, targets)
    stream = GradientAccumulator(model, F.cross_entropy)
    stream.add(inputs, targets)
    assert stream.finish() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(gradient(model), want, rtol=1e-11, atol=1e-13)


def test_a_saved_gradient_takes_the_dtype_of_the_model_it_is_loaded_into():
    model, inputs, targets = problem(4, 12)
    stream = GradientAccumulator(model, F.cross_entropy)
    stream.add(inputs, targets)
    twin = problem(4, 12)[0].float()
    GradientAccumulator(twin, F.cross_entropy).load_state_dict(stream.state_dict())
    assert gradient(twin).dtype == torch.float32
    torch.testing.assert_close(gradient(twin), gradient(model).float())


def test_stream_errors():
    model, inputs, targets = problem(0, 6)
    accumulator = GradientAccumulator(model, F.cross_entropy)
    with pytest.raises(RuntimeError, match="no item came"):
        accumulator.finish()
    accumulator.add(inputs, targets)
    accumulator.finish()
    with pytest.raises(RuntimeError, match="zero_grad"):
        accumulator.add(inputs, targets)
    model.zero_grad()
    accumulator.add(inputs, targets, last=True)
    with pytest.raises(RuntimeError, match="call finish"):
        accumulator.add(inputs, targets)
    other = GradientAccumulator(nn.Linear(2, 2), F.cross_entropy)
    with pytest.raises(ValueError, match="the model it was saved with"):
        other.load_state_dict(accumulator.state_dict())
    quiet = GradientAccumulator(
        problem(0, 6)[0], F.cross_entropy, no_sync=contextlib.nullcontext
    )
    quiet.add(inputs, targets)
    with pytest.raises(RuntimeError, match="last=True"):
        quiet.finish()


# --------------------------------------------------------------------------- Accelerate


@pytest.fixture
def accelerate_anew():
    """Accelerate keeps its settings in the process: start and leave without any."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def with_accelerate(model, inputs, targets, loss_fn, micro_batch_size, steps, lr):
    accelerator = Accelerator(gradient_accumulation_steps=steps, cpu=True)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=micro_batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    path = []
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss_fn(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            path.append(weights(model).clone())
    return path


@pytest.mark.parametrize("seed", range(4))
def test_equals_accelerate_where_all_windows_are_full(accelerate_anew, seed):
    model, inputs, targets = problem(seed, 48)
    path = with_accelerate(model, inputs, targets, F.cross_entropy, 4, 3, 0.5)
    ours, *_ = problem(seed, 48)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.5)
    assert len(path) == 4
    for want, x, y in zip(path, inputs.split(12), targets.split(12), strict=True):
        optimizer.zero_grad()
        accumulate_gradients(ours, F.cross_entropy, x, y, 3)
        optimizer.step()
        torch.testing.assert_close(weights(ours), want, rtol=1e-12, atol=1e-14)


def one_weight():
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    return model


def slope_one(outputs, targets):
    return outputs.mean()  # the gradient of the weight is 1 for inputs of 1


def test_accelerate_halves_the_update_of_a_last_short_window(accelerate_anew):
    ones = torch.ones(3, 1, dtype=torch.float64)
    path = with_accelerate(one_weight(), ones, ones, slope_one, 1, 2, 0.1)
    updates = (
        torch.stack(path).flatten().diff(prepend=torch.zeros(1, dtype=torch.float64))
    )
    assert updates.tolist() == pytest.approx([-0.1, -0.05])  # the trap

    model = one_weight()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    accumulator = GradientAccumulator(model, slope_one)
    ours = [0.0]
    for number, x in enumerate(ones.split(1), start=1):
        accumulator.add(x, x)
        if number == len(ones) or accumulator.micro_batches == 2:
            accumulator.finish()
            optimizer.step()
            optimizer.zero_grad()
            ours.append(model.weight.item())
    assert torch.tensor(ours).diff().tolist() == pytest.approx([-0.1, -0.1])


def clipped_epoch(steps, micro_batch_size, cpu=True):
    """One epoch under `accumulate`: the sum of the losses over the items of the window,
    times what backward and DDP divide by, clipped once an update.
    """
    model, inputs, targets = problem(8, 40)
    accelerator = Accelerator(gradient_accumulation_steps=steps, cpu=cpu)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=micro_batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    processes = accelerator.num_processes
    left = len(inputs)
    window = micro_batch_size * steps * processes
    items = min(window, left)
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(x), y, reduction="sum")
            accelerator.backward(loss * steps * processes / items)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            left -= items
            items = min(window, left)
    assert left == 0
    return weights(model)


def clipped_epoch_in_large_batches(size):
    model, inputs, targets = problem(8, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for x, y in zip(inputs.split(size), targets.split(size), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    return weights(model)


@pytest.mark.parametrize(("steps", "size"), [(1, 8), (3, 4), (2, 5), (20, 4)])
def test_sum_over_items_equals_the_large_batch(accelerate_anew, steps, size):
    want = clipped_epoch_in_large_batches(steps * size)
    torch.testing.assert_close(clipped_epoch(steps, size), want, rtol=1e-11, atol=1e-13)


# --------------------------------------------------------------------------- a run with fit


def fitted(step, accumulation_steps, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(7)
    data = torch.randn(50, 1, 4, 4, generator=generator), torch.randint(0, 3, (50,))
    data = data[0], (data[0].sum((1, 2, 3)) > 0).long()
    model = MLP(16, 3, width=8, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    history = fit(
        model, data, optimizer, steps=11, batch_size=16, step=step,
        accumulation_steps=accumulation_steps, seed=seed, **kwargs,
    )  # fmt: skip
    return history.loss, weights(model)


# --------------------------------------------------------------------------- two processes


def on_two_processes():
    """Runs in each process: fit with accumulation, and one gradient with all-reduces
    counted.
    """
    import contextlib

    import torch.distributed as dist
    import torch.nn.functional as F
    from accelerate import Accelerator
    from test_gradient_accumulation import clipped_epoch, fitted, gradient, problem
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.debug import CommDebugMode
    from torch.nn.parallel import DistributedDataParallel

    from dlcourse.gradient_accumulation import GradientAccumulator, accumulate_gradients

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    loss, found = fitted(train_step, 3, cpu=True)
    result = {"loss": loss, "weights": found.tolist()}

    mine = (slice(0, 5), slice(5, 8))[accelerator.process_index]
    model, inputs, targets = problem(5, 8)
    counted = []

    def hook(state, bucket):
        counted.append(1)
        work = dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future()
        return work.then(lambda done: done.value()[0])

    parallel = DistributedDataParallel(model)
    parallel.register_comm_hook(None, hook)
    for name, no_sync in (("quiet", None), ("chatty", contextlib.nullcontext)):
        counted.clear()
        model.zero_grad()
        x, y = inputs[mine], targets[mine]
        accumulate_gradients(
            parallel, F.cross_entropy, x, y, 3, total=8 / 2, no_sync=no_sync
        )
        result[name] = {"gradient": gradient(model).tolist(), "all_reduces": len(counted)}
    counted.clear()
    model.zero_grad()
    accumulator = GradientAccumulator(parallel, F.cross_entropy)
    x, y = inputs[mine], targets[mine]
    accumulator.add(x[:2], y[:2])
    accumulator.add(x[2:], y[2:], last=True)
    accumulator.finish()
    result["stream"] = {"gradient": gradient(model).tolist(), "all_reduces": len(counted)}

    for name in ("sharded quiet", "sharded chatty"):
        sharded = fully_shard(problem(5, 8)[0], mesh=init_device_mesh("cpu", (2,)))
        with CommDebugMode() as communication:
            for number in range(3):
                sharded.set_requires_gradient_sync(
                    number == 2 or name == "sharded chatty"
                )
                part = slice(2 * number, 2 * number + 2)
                if len(x[part]):
                    loss = F.cross_entropy(sharded(x[part]), y[part], reduction="sum")
                else:  # a process without rows still takes part in the exchange
                    loss = sharded(x[:1]).sum() * 0.0
                (loss * 2 / 8).backward()
        parts = [
            parameter.grad.full_tensor().ravel() for parameter in sharded.parameters()
        ]
        counts = communication.get_comm_counts().items()
        result[name] = {
            "gradient": torch.cat(parts).tolist(),
            "exchanges": sum(n for kind, n in counts if "reduce_scatter" in str(kind)),
        }
    result["epoch"] = clipped_epoch(2, 4).tolist()
    return result


def test_two_processes_equal_one():
    results = launch(on_two_processes, processes=2, timeout=120)
    want_loss, want = fitted(train_step, 1)
    full, _ = full_gradient(*problem(5, 8))
    epoch = clipped_epoch_in_large_batches(16)
    for result in results:
        found = torch.tensor(result["epoch"], dtype=torch.float64)
        torch.testing.assert_close(found, epoch, rtol=1e-11, atol=1e-13)
        assert result["sharded quiet"]["exchanges"] == 1
        assert result["sharded chatty"]["exchanges"] == 3
        assert result["loss"] == pytest.approx(want_loss, abs=1e-5)
        torch.testing.assert_close(
            torch.tensor(result["weights"]), want, rtol=1e-4, atol=1e-5
        )
        for name in ("quiet", "stream", "sharded quiet", "sharded chatty"):
            found = torch.tensor(result[name]["gradient"], dtype=torch.float64)
            torch.testing.assert_close(found, full, rtol=1e-11, atol=1e-13)
        assert result["quiet"]["all_reduces"] == 1
        assert result["stream"]["all_reduces"] == 1
        assert result["chatty"]["all_reduces"] == 3


# --------------------------------------------------------------------------- stale gradients


def test_no_delay_is_sgd_to_the_bit():
    paths = []
    for kind in (DelayedSGD, torch.optim.SGD):
        model, inputs, targets = problem(6, 20)
        model, inputs = model.float(), inputs.float()
        optimizer = kind(model.parameters(), lr=0.3)
        for x, y in zip(inputs.split(4), targets.split(4), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        paths.append(weights(model))
    assert torch.equal(*paths)


def descend(lr, delay, steps, curvature=1.0):
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = DelayedSGD([weight], lr=lr, delay=delay)
    path = [1.0]
    for _ in range(steps):
        optimizer.zero_grad()
        (curvature * weight**2 / 2).backward()
        optimizer.step()
        path.append(weight.item())
    return torch.tensor(path, dtype=torch.float64)


def test_delay_by_hand():
    assert descend(0.5, 2, 4).tolist() == [1.0, 1.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("curvature", [1.0, 4.0])
@pytest.mark.parametrize("delay", [0, 1, 2, 5])
def test_critical_learning_rate(delay, curvature):
    limit = critical_learning_rate(delay, curvature)
    below = descend(0.98 * limit, delay, 600, curvature).abs()
    above = descend(1.02 * limit, delay, 600, curvature).abs()
    assert below[-20:].max() < 0.5 * below[200:220].max()
    assert above[-20:].max() > 2 * above[200:220].max()


def test_critical_learning_rate_is_where_the_largest_root_has_size_one():
    import numpy as np

    for delay in range(17):
        limit = critical_learning_rate(delay)
        for factor, low, high in ((0.999, 0.9, 1.0), (1.001, 1.0, 1.1)):
            polynomial = np.zeros(delay + 2)
            polynomial[0], polynomial[1] = 1.0, -1.0
            polynomial[-1] += factor * limit
            assert low < np.abs(np.roots(polynomial)).max() < high
    assert critical_learning_rate(0) == 2.0
    assert critical_learning_rate(1) == pytest.approx(1.0)


def test_delayed_sgd_resumes_to_the_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(40, 1, 4, 4, generator=generator), torch.randint(0, 3, (40,))
    paths = []
    for stop in (None, 5):
        model = MLP(16, 3, width=8, seed=1)
        settings = dict(batch_size=8, checkpoint=tmp_path / f"{stop}.pt")
        if stop:
            optimizer = DelayedSGD(model.parameters(), lr=0.1, delay=3)
            fit(model, data, optimizer, steps=stop, **settings)
            model = MLP(16, 3, width=8, seed=2)
        optimizer = DelayedSGD(model.parameters(), lr=0.1, delay=3)
        fit(model, data, optimizer, steps=12, resume=True, **settings)
        paths.append(weights(model))
    assert torch.equal(*paths)


def test_delayed_sgd_closure_and_missing_gradients():
    weight = torch.ones((), requires_grad=True)
    idle = torch.ones((), requires_grad=True)
    optimizer = DelayedSGD([weight, idle], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = weight**2
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert weight.item() == 0.0 and idle.item() == 1.0


def test_delayed_sgd_left_alone_is_sgd_with_a_small_rate():
    assert DelayedSGD([torch.ones(1)]).defaults == {"lr": 0.01, "delay": 0}


def test_delayed_sgd_errors():
    weight = torch.ones((), requires_grad=True)
    for lr in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="above 0"):
            DelayedSGD([weight], lr=lr)
    for delay in (-1, 1.5, True):
        with pytest.raises(ValueError, match="whole number of steps"):
            DelayedSGD([weight], delay=delay)
        with pytest.raises(ValueError, match="whole number of steps"):
            critical_learning_rate(delay)
    with pytest.raises(ValueError, match="above 0"):
        critical_learning_rate(1, curvature=0.0)


# --------------------------------------------------------------------------- memory


def test_saved_bytes_of_one_layer():
    layer = nn.Linear(6, 3)
    x = torch.randn(10, 6)
    with SavedBytes(layer) as saved:
        loss = layer(x).sum()
        # the layer keeps its input, and its weight is its own
        assert saved.live == 10 * 6 * 4
        loss.backward()
        del loss
    assert saved.live == 0 and saved.peak == 10 * 6 * 4


def test_a_tensor_kept_twice_counts_once():
    x = torch.randn(5, requires_grad=True)
    with SavedBytes(nn.Identity()) as saved:
        loss = (x * x).sum()
        assert saved.live == 5 * 4
        loss.backward()
        del loss
    assert saved.live == 0


def test_accumulation_keeps_one_micro_batch():
    model, inputs, targets = problem(0, 64)
    peaks = {}
    for pieces in (1, 4, 16):
        with SavedBytes(model, inputs, targets) as saved:
            accumulate_gradients(model, F.cross_entropy, inputs, targets, pieces)
        assert saved.live == 0
        peaks[pieces] = saved.peak
    x, y = inputs[:4].clone(), targets[:4].clone()
    with SavedBytes(model, x, y) as alone:
        accumulate_gradients(model, F.cross_entropy, x, y)
    assert peaks[1] > peaks[4] > peaks[16] == alone.peak
