"""Batch normalisation and its kin: standardise what a layer hands on, then let it learn a
scale.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from dlcourse.lab.exercises import Exercise, Wrong, expect


class Standardize(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps), with the backward pass written out.

    `Standardize.apply(x, dims, eps, center, group)` returns (y, mean, var). `dims`:
    negative, those that a mean runs over; var is the biased variance. Without `center`,
    mean is 0 and var the mean square. With a process `group`, every mean also runs over
    its processes. Statistics are at least float32, and y has the dtype of x.
    Differentiable once, and in y only.
    Source: Ioffe & Szegedy (2015), section 3. Invariants: the gradient of x sums to zero
    over `dims`, and where eps is small against var so does the gradient times y.
    """

    @staticmethod
    def forward(
        x: Tensor, dims: tuple[int, ...], eps: float, center: bool = True, group=None
    ):
        wide = _wide(x)
        mean = _mean(wide, dims, group)
        mean = mean if center else torch.zeros_like(mean)
        var = _mean((wide - mean).square(), dims, group)
        return ((wide - mean) * (var + eps).rsqrt()).to(x.dtype), mean, var

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.dims, ctx.eps, ctx.center, ctx.group = inputs
        y, mean, var = output
        ctx.save_for_backward(y, var)
        ctx.mark_non_differentiable(mean, var)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_):
        y, var = ctx.saved_tensors
        y, wide = _wide(y), _wide(grad)
        # what only rescales x is lost
        change = wide - y * _mean(wide * y, ctx.dims, ctx.group)
        if ctx.center:
            change = change - _mean(wide, ctx.dims, ctx.group)  # and what only shifts it
        return (change * (var + ctx.eps).rsqrt()).to(grad.dtype), None, None, None, None

    @staticmethod
    def vmap(info, in_dims, x: Tensor, *settings):
        # `dims` count from the end, so one more dimension in front changes nothing
        return Standardize.apply(x.movedim(in_dims[0], 0), *settings), (0, 0, 0)


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 where it has half precision: its squares would overflow or
    round off.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check_dtype(x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"the input is {x.dtype}: convert it to a floating-point dtype")


def _mean(values: Tensor, dims: tuple[int, ...], group) -> Tensor:
    """Return the mean over `dims`, and over the processes of `group`: each value counts
    once.
    """
    if group is None:
        return values.mean(dims, keepdim=True)
    total = values.sum(dims, keepdim=True)
    count = total.new_tensor([values.numel() // total.numel()])
    sums = torch.cat([total.ravel(), count])
    dist.all_reduce(sums, group=group)
    return (sums[:-1] / sums[-1]).view_as(total)


# --- batch normalisation --------------------------------------------------------------------------


class _BatchNorm(nn.Module):
    """What BatchNorm1d, BatchNorm2d and SyncBatchNorm share."""

    ndims: tuple[int, ...] = ()  # of the inputs that the layer takes

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features={num_features}: give the number of channels")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        tracked = (torch.zeros(num_features), torch.ones(num_features), torch.tensor(0))
        for name, value in zip(
            ("running_mean", "running_var", "num_batches_tracked"), tracked, strict=True
        ):
            self.register_buffer(name, value if track_running_stats else None)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        column = (-1,) + (1,) * (x.ndim - 2)  # (C, 1, ...): one value a channel
        if self.training or not self.track_running_stats:
            dims = (-x.ndim, *range(2 - x.ndim, 0))  # all but the channels
            group = self._group()
            count = self._count(x, group)
            y, mean, var = Standardize.apply(x, dims, self.eps, True, group)
            if self.training and self.track_running_stats:
                self._update(mean.flatten(), var.flatten() * count / (count - 1))
        else:  # a fixed map, whatever else is in the batch
            scale = (_wide(self.running_var) + self.eps).rsqrt()
            y = (_wide(x) - self.running_mean.view(column)) * scale.view(column)
        y = y if self.weight is None else y * self.weight.view(column)
        y = y if self.bias is None else y + self.bias.view(column)
        return y.to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased_var: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        new = self.momentum
        if new is None:
            new = 1 / self.num_batches_tracked.to(mean.dtype)
        self.running_mean.mul_(1 - new).add_(new * mean)
        self.running_var.mul_(1 - new).add_(new * unbiased_var)

    def reset_running_stats(self) -> None:
        """Forget the statistics: mean 0, variance 1, no batch seen."""
        if self.track_running_stats:
            (
                self.running_mean.zero_(),
                self.running_var.fill_(1),
                self.num_batches_tracked.zero_(),
            )

    def _group(self):
        return None

    def _count(self, x: Tensor, group) -> int:
        """Return the values a channel; raise where they have no variance."""
        count = x.numel() // self.num_features
        if group is not None:
            total = torch.tensor(count, device=x.device)
            dist.all_reduce(total, group=group)
            count = int(total)
        if count < 2:
            raise ValueError(
                f"training needs more than 1 value per channel, and this batch {tuple(x.shape)} "
                f"has {count}: use a larger batch, call eval(), or use LayerNorm or GroupNorm"
            )
        return count

    def _check(self, x: Tensor) -> None:
        _check_dtype(x)
        if x.ndim not in self.ndims:
            wanted = " or ".join(map(str, self.ndims))
            raise ValueError(
                f"{type(self).__name__} takes inputs of {wanted} dimensions, (batch, channels, "
                f"...), not {tuple(x.shape)}"
            )
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"the input {tuple(x.shape)} has {x.shape[1]} channels in dimension 1, this layer "
                f"has {self.num_features}: build it with num_features={x.shape[1]}"
            )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class BatchNorm1d(_BatchNorm):
    """Standardise each channel of (N, C) or (N, C, L) over the rest, then scale and shift
    it.

    In training by the batch's mean and biased variance; running averages of the mean and
    of the unbiased variance are kept, in which a new value weighs `momentum` (None: all
    batches alike). In evaluation by those averages. Parameters and buffers are named as
    torch's.
    Raises ValueError for other shapes, and in training for fewer than two values a
    channel; TypeError for integers.
    Source: Ioffe & Szegedy (2015). Invariants: in evaluation a row's output does not
    depend on the other rows; in training the output does not change when the input is
    scaled (up to eps).
    """

    ndims = (2, 3)


class BatchNorm2d(_BatchNorm):
    """The same for images (N, C, H, W): a channel's statistics run over N, H and W."""

    ndims = (4,)


class SyncBatchNorm(_BatchNorm):
    """Batch norm whose statistics in training run over all processes of `process_group`.

    (N, C, ...) of two to five dimensions; N may differ between processes, and may be 1.
    Works on the CPU with gloo, where torch's refuses. Without processes it is plain batch
    norm.
    Invariant: n processes with equal shares give the outputs and gradients of the whole
    batch.
    """

    ndims = (2, 3, 4, 5)

    def __init__(self, num_features: int, *args, process_group=None, **kwargs) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.process_group = process_group

    def _group(self):
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return None
        group = self.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group=None) -> nn.Module:
        """Return `module` with each batch norm, ours or torch's, replaced; weights are
        shared.
        """
        if is_batch_norm(module) and not isinstance(module, cls):
            new = cls(
                module.num_features, module.eps, module.momentum, module.affine,
                module.track_running_stats, process_group=process_group,
            )  # fmt: skip
            for name in (
                "weight",
                "bias",
                "running_mean",
                "running_var",
                "num_batches_tracked",
            ):
                setattr(new, name, getattr(module, name))  # None where it has none
            return new.train(module.training)
        for name, child in module.named_children():
            setattr(module, name, cls.convert_sync_batchnorm(child, process_group))
        return module


def is_batch_norm(module: nn.Module) -> bool:
    """Tell whether `module` is a batch norm layer, ours or torch's."""
    return isinstance(module, (_BatchNorm, nn.modules.batchnorm._BatchNorm))


# --- norms that look at one example ---------------------------------------------------------------


class LayerNorm(nn.Module):
    """Standardise each example over its last dimensions `normalized_shape`, then scale
    and shift.

    Raises ValueError where the input does not end in `normalized_shape`, or that is
    empty; TypeError for integers. Source: Ba, Kiros & Hinton (2016). Invariant: training
    and evaluation are the same, row by row.
    """

    center = True

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        whole = isinstance(normalized_shape, int)
        self.normalized_shape = (normalized_shape,) if whole else tuple(normalized_shape)
        if not self.normalized_shape:
            raise ValueError(
                "normalized_shape is empty: give the sizes of the last dimensions"
            )
        self.eps = eps
        ones, zeros = (
            torch.ones(self.normalized_shape),
            torch.zeros(self.normalized_shape),
        )
        self.weight = nn.Parameter(ones) if elementwise_affine else None
        self.bias = (
            nn.Parameter(zeros) if elementwise_affine and bias and self.center else None
        )

    def forward(self, x: Tensor) -> Tensor:
        _check_dtype(x)
        size = len(self.normalized_shape)
        if x.ndim < size:
            raise ValueError(
                f"the input {tuple(x.shape)} needs {size} dimensions or more"
            )
        if x.shape[-size:] != self.normalized_shape:
            raise ValueError(
                f"the input {tuple(x.shape)} must end in {self.normalized_shape}: build the layer "
                f"with normalized_shape={tuple(x.shape[-size:])}"
            )
        eps = torch.finfo(_wide(x).dtype).eps if self.eps is None else self.eps
        y, _, _ = Standardize.apply(x, tuple(range(-size, 0)), eps, self.center, None)
        y = y if self.weight is None else y * self.weight
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype)


class RMSNorm(LayerNorm):
    """Divide each example by its root mean square over the last dimensions; no mean, no
    shift.

    eps None is the machine epsilon. Raises as LayerNorm does.
    Source: Zhang & Sennrich (2019).
    """

    center = False

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias=False)


class GroupNorm(nn.Module):
    """Standardise each example of (N, C, ...) within `num_groups` groups of channels.

    One group normalises a whole example, C groups each channel by itself. Raises
    ValueError where the groups do not divide the channels, or the input has others;
    TypeError for integers.
    Source: Wu & He (2018).
    Invariant: training and evaluation are the same, row by row.
    """

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels < 1 or num_channels % num_groups:
            raise ValueError(
                f"num_groups={num_groups} does not divide num_channels={num_channels}"
            )
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        _check_dtype(x)
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise ValueError(
                f"the input {tuple(x.shape)} must be (batch, {self.num_channels}, ...): build the "
                "layer with num_channels of your input"
            )
        # (N, groups, channels a group, ...)
        groups = x.unflatten(1, (self.num_groups, -1))
        y, _, _ = Standardize.apply(
            groups, tuple(range(2 - groups.ndim, 0)), self.eps, True, None
        )
        y = y.flatten(1, 2)
        if self.weight is not None:
            column = (-1,) + (1,) * (x.ndim - 2)
            y = y * self.weight.view(column) + self.bias.view(column)
        return y.to(x.dtype)


# --- after training -------------------------------------------------------------------------------


@torch.no_grad()
def fold_batch_norm(layer: nn.Linear | nn.Conv1d | nn.Conv2d, bn: nn.Module) -> nn.Module:
    """Return a copy of `layer` that computes bn(layer(x)) of evaluation by itself.

    `bn` is ours or torch's. Raises TypeError for other layers, ValueError for a batch
    norm in training mode, without running statistics, or of another size.
    Invariant: the output is that of the pair, for any input.
    """
    if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) or not is_batch_norm(bn):
        raise TypeError(
            f"cannot fold {type(bn).__name__} into {type(layer).__name__}: give a Linear, Conv1d "
            "or Conv2d and the batch norm that follows it"
        )
    if bn.running_mean is None:
        raise ValueError(
            "this batch norm has no running statistics, so there is no fixed map"
        )
    if bn.training:
        raise ValueError("in training mode batch norm is no fixed map: call eval() first")
    if len(layer.weight) != bn.num_features:
        raise ValueError(
            f"the layer has {len(layer.weight)} outputs, the norm {bn.num_features}"
        )
    scale = (bn.running_var + bn.eps).rsqrt()
    scale = scale if bn.weight is None else scale * bn.weight
    shift = -bn.running_mean * scale + (0 if bn.bias is None else bn.bias)
    folded, weight = copy.deepcopy(layer), layer.weight
    folded.weight.copy_(weight * scale.view(-1, *(1,) * (weight.ndim - 1)))
    shift = shift if layer.bias is None else shift + layer.bias * scale
    folded.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)
    return folded


@torch.no_grad()
def recalibrate_bn(model: nn.Module, batches: Iterable) -> int:
    """Set the running statistics of `model` to the mean over `batches`; return their
    number.

    `batches`: inputs, or tuples that start with the inputs; each batch counts the same.
    Only the batch norms run in training mode meanwhile, so that dropout stays off. Modes
    and momenta are as before at the end. Raises ValueError where there is no batch, or no
    batch norm that tracks.
    Source: Wu & Johnson (2021), who call it PreciseBN. Invariant: no parameter changes.
    """
    norms = [
        m for m in model.modules() if is_batch_norm(m) and m.running_mean is not None
    ]
    if not norms:
        raise ValueError("this model has no batch norm with running statistics")
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    count = 0
    try:
        for count, batch in enumerate(batches, start=1):
            if count == 1:  # an empty iterable leaves the statistics as they were
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None
                    norm.training = True
            model(batch[0] if isinstance(batch, (tuple, list)) else batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if not count:
        raise ValueError("no batches: give at least one")
    return count


# --- exercises ------------------------------------------------------------------------------------


def _close(a: Tensor, b: Tensor, tol: float = 1e-6) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=tol)


def _draw(*shape: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


class _ByHand(TorchFunctionMode):
    """Refuse the calls that would be the whole answer."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        expect(
            not name.endswith("batch_norm"), f"Write it yourself, without torch's {name}."
        )
        expect(
            name not in ("grad", "backward"), "Write the formula down, without autograd."
        )
        return func(*args, **(kwargs or {}))


def _check_layer(answer: Callable) -> None:
    x = (2 * _draw(5, 3, seed=0) + torch.tensor([1.0, -3.0, 0.5])).requires_grad_()
    weight, bias = (
        torch.tensor([2.0, 0.5, -1.0]).double(),
        torch.tensor([0.3, 0.0, 1.0]).double(),
    )
    start = (
        torch.tensor([4.0, -2.0, 1.0]).double(),
        torch.tensor([3.0, 0.5, 2.0]).double(),
    )
    mean, var = (tensor.clone() for tensor in start)
    momentum, eps = 0.2, 0.1
    center = x - x.mean(0)
    biased, unbiased = x.var(0, correction=0), x.var(0)

    def affine(y: Tensor) -> Tensor:
        return y * weight + bias

    with _ByHand():
        got = answer(x, weight, bias, mean, var, True, momentum, eps)
    expect(isinstance(got, Tensor), "Return the output, a tensor of the shape of x.")
    expect(
        got.shape == x.shape, f"The output has shape {tuple(got.shape)}, x has (5, 3)."
    )
    expect(
        not _close(got, affine(center / (unbiased + eps).sqrt())),
        "In training the output uses the biased variance of the batch, divided by N.",
    )
    expect(
        not _close(got, affine(center / (biased.sqrt() + eps))),
        "eps belongs under the square root, with the variance.",
    )
    rows = (x - x.mean(1, keepdim=True)) / (
        x.var(1, correction=0, keepdim=True) + eps
    ).sqrt()
    expect(
        not _close(got, affine(rows)),
        "You standardised each row, which is layer norm. Batch norm takes each column over the "
        "rows.",
    )
    right = affine(center / (biased + eps).sqrt())
    expect(
        _close(got, right),
        "In training: take off the batch's mean, divide by sqrt(var + eps), then weight and bias.",
    )
    _check_running(mean, var, start, x.detach().mean(0), biased, unbiased, momentum)

    grad = _draw(5, 3, seed=1)
    (wanted,) = torch.autograd.grad((right * grad).sum(), x)
    expect(got.requires_grad, "The output must carry a gradient: keep x in the graph.")
    (found,) = torch.autograd.grad((got * grad).sum(), x)
    expect(
        _close(found, wanted),
        "The output is right and its gradient is not: mean and variance depend on x, so do not "
        "detach them.",
    )
    _check_evaluation(answer, weight, bias, eps, affine)


def _check_running(mean, var, start, new_mean, biased, unbiased, momentum) -> None:
    expect(
        not (mean.requires_grad or var.requires_grad),
        "The running statistics have become part of the graph: update them under torch.no_grad().",
    )
    expect(
        not _close(mean, start[0]) and not _close(var, start[1]),
        "After a training batch running_mean and running_var must have changed, in place.",
    )
    keep = 1 - momentum
    expect(
        not _close(mean, momentum * start[0] + keep * new_mean),
        "In PyTorch momentum is the weight of the new value: 0.1 keeps nine tenths of the old one.",
    )
    expect(_close(mean, keep * start[0] + momentum * new_mean), "running_mean is wrong.")
    expect(
        not _close(var, keep * start[1] + momentum * biased),
        "The running variance takes the unbiased variance, divided by N - 1: it is an estimate for "
        "data to come.",
    )
    expect(_close(var, keep * start[1] + momentum * unbiased), "running_var is wrong.")


def _check_evaluation(answer, weight, bias, eps, affine) -> None:
    mean, var = (
        torch.tensor([4.0, -2.0, 1.0]).double(),
        torch.tensor([3.0, 0.5, 2.0]).double(),
    )
    x = _draw(4, 3, seed=2)

    def evaluate(rows: Tensor) -> Tensor:
        return answer(rows, weight, bias, mean, var, False, 0.2, eps)

    got = evaluate(x)
    expect(
        mean.tolist() == [4.0, -2.0, 1.0] and var.tolist() == [3.0, 0.5, 2.0],
        "Evaluation must leave the running statistics alone.",
    )
    expect(
        not _close(got, x) and not _close(got, affine(x)),
        "In evaluation the input is standardised too, by the running statistics.",
    )
    mates = torch.cat([x[:1], 10 * _draw(3, 3, seed=3)])
    expect(
        _close(got[:1], evaluate(mates)[:1], 1e-5)
        and _close(got[:1], evaluate(x[:1]), 1e-5),
        "In evaluation a row's output changed with the other rows: evaluation uses the running "
        "statistics, not the batch.",
    )
    wanted = affine((x - mean) / (var + eps).sqrt())
    expect(
        _close(got, wanted),
        "In evaluation: (x - running_mean) / sqrt(running_var + eps).",
    )


def _solve_layer(x, weight, bias, running_mean, running_var, training, momentum, eps):
    if training:
        mean, var = x.mean(0), x.var(0, correction=0)
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(x.var(0), momentum)
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def _layer_with(
    correction=0, running_correction=1, swap=False, always_batch=False, skip_evaluation=False,
    detach=False, eps_outside=False, update_always=False,
):  # fmt: skip
    """Return a batch norm with one mistake."""

    def layer(x, weight, bias, running_mean, running_var, training, momentum, eps):
        if not training and skip_evaluation:
            return x
        mean, var = running_mean, running_var
        if training or always_batch:
            mean, var = x.mean(0), x.var(0, correction=correction)
            mean, var = (mean.detach(), var.detach()) if detach else (mean, var)
        if training or update_always:
            with torch.no_grad():
                new = 1 - momentum if swap else momentum
                running_mean.lerp_(x.mean(0), new)
                running_var.lerp_(x.var(0, correction=running_correction), new)
        std = var.sqrt() + eps if eps_outside else (var + eps).sqrt()
        return (x - mean) / std * weight + bias

    return layer


def _layer_over_rows(x, weight, bias, *_):
    return nn.functional.layer_norm(x, x.shape[1:], weight, bias, 0.1)


def _pair(
    bias: bool = True, affine: bool = True, outputs: int = 4
) -> tuple[nn.Linear, nn.BatchNorm1d]:
    """Return a Linear and a batch norm in evaluation mode, with numbers that differ
    everywhere.
    """
    linear, norm = (
        nn.Linear(4, outputs, bias=bias),
        nn.BatchNorm1d(outputs, 0.1, affine=affine),
    )
    linear, norm = linear.double().eval(), norm.double().eval()
    with torch.no_grad():
        for seed, tensor in enumerate((*linear.parameters(), *norm.parameters())):
            tensor.copy_(_draw(*tensor.shape, seed=seed))
        norm.running_mean.copy_(_draw(outputs, seed=10))
        norm.running_var.copy_(_draw(outputs, seed=11).square() + 0.2)
    return linear, norm


def _check_fold(answer: Callable) -> None:
    linear, norm = _pair()
    given = nn.Sequential(linear, norm)
    folded = answer(*given)
    x = _draw(6, 4, seed=20)
    expect(
        isinstance(folded, nn.Linear),
        f"Return one nn.Linear, not {type(folded).__name__}: in evaluation batch norm is a scale "
        "and a shift for each output, which the weights and the bias can hold. It then costs "
        "nothing.",
    )
    linear, norm = _pair()  # as they came in
    before, after = nn.Sequential(linear, norm).state_dict(), given.state_dict()
    same = all(_close(before[name], after[name]) for name in before)
    expect(
        folded is not given[0] and same, "Build a new layer: what came in has changed."
    )
    with torch.no_grad():
        got, right = copy.deepcopy(folded).double()(x), norm(linear(x))
        scale = (norm.running_var + norm.eps).rsqrt() * norm.weight
        shift = norm.bias - norm.running_mean * scale
        product = x @ linear.weight.T * scale
        bare = norm.running_var.rsqrt() * norm.weight
        mistakes = {
            "You left out eps: the variance gets it before the square root.": (
                linear(x) - norm.running_mean) * bare + norm.bias,
            "You lost the bias of the linear layer, or did not scale it: it passes through the "
            "norm too.": (product + shift, product + linear.bias + shift),
            "You lost the running mean.": linear(x) * scale + norm.bias,
            "You lost the bias of the norm.": linear(x) * scale + shift - norm.bias,
            "You lost the weight of the norm.": norm(linear(x)) * 0 + norm.bias + (
                linear(x) - norm.running_mean) * (norm.running_var + norm.eps).rsqrt(),
            "You divided by the variance: take its square root.": norm.bias + norm.weight * (
                linear(x) - norm.running_mean) / (norm.running_var + norm.eps),
            "Scale the rows of the weight, one for each output, not its columns.": x @ (
                linear.weight * scale).T + linear.bias * scale + shift,
        }  # fmt: skip
    for hint, outputs in mistakes.items():
        for output in outputs if isinstance(outputs, tuple) else (outputs,):
            expect(not _close(got, output, 1e-5), hint)
    expect(
        _close(got, right, 1e-5),
        "The outputs differ from bn(linear(x)). Use the running statistics that bn holds, and "
        "write down what it does to one output: (z - mean) / sqrt(var + eps) * weight + bias.",
    )
    for setting, what in (
        ({"bias": False}, "a layer built with bias=False"),
        ({"affine": False}, "a norm built with affine=False"),
        ({"outputs": 3}, "a layer with more inputs than outputs"),
    ):
        linear, norm = _pair(**setting)
        with torch.no_grad():
            right, folded = norm(linear(x)), copy.deepcopy(answer(linear, norm)).double()
            fits = folded.in_features == linear.in_features and _close(
                folded(x), right, 1e-5
            )
            expect(fits, f"It is right for one pair, and wrong for {what}.")


def _solve_fold(linear, bn):
    scale = (bn.running_var + bn.eps).rsqrt() * (1 if bn.weight is None else bn.weight)
    old = 0 if linear.bias is None else linear.bias
    folded = nn.Linear(linear.in_features, linear.out_features).to(linear.weight.dtype)
    with torch.no_grad():
        folded.weight.copy_(linear.weight * scale[:, None])
        folded.bias.copy_(
            (old - bn.running_mean) * scale + (0 if bn.bias is None else bn.bias)
        )
    return folded


def _fold_with(eps=True, bias=True, columns=False, mean=True):
    """Return a folding with one mistake."""

    def fold(linear, bn):
        scale = (bn.running_var + (bn.eps if eps else 0)).rsqrt() * bn.weight
        folded = copy.deepcopy(linear)
        with torch.no_grad():
            folded.weight.copy_(linear.weight * (scale if columns else scale[:, None]))
            shift = bn.bias - bn.running_mean * scale * mean
            folded.bias.copy_(shift + linear.bias * scale if bias else shift)
        return folded

    return fold


def _fold_nothing(linear, bn):
    return nn.Sequential(linear, bn)


def _fold_batch_statistics(linear, bn):
    z = linear(_draw(64, linear.in_features, seed=30))
    twin = copy.deepcopy(bn)
    with torch.no_grad():
        twin.running_mean.copy_(z.mean(0)), twin.running_var.copy_(z.var(0))
    return _solve_fold(linear, twin)


def _check_gradient(answer: Callable) -> None:
    for rows, seed in ((4, 0), (7, 5)):
        x, grad, eps = (
            1.5 * _draw(rows, 3, seed=seed) + 2,
            _draw(rows, 3, seed=seed + 1),
            0.1,
        )
        rstd = (x.var(0, correction=0) + eps).rsqrt()
        y = (x - x.mean(0)) * rstd
        with _ByHand():
            got = answer(x.clone(), grad.clone(), eps)
        expect(
            isinstance(got, Tensor) and got.shape == x.shape,
            "Return a tensor of x's shape.",
        )
        through_y = (grad * y).mean(0) * y
        mistakes = {
            "You treated the mean and the variance as constants: both depend on every row.": grad,
            "The mean's part is there, the variance's is missing: the scale depends on x too.": (
                grad - grad.mean(0)),
            "The variance's part is there, the mean's is missing.": grad - through_y,
            "Take means over the rows, not sums: each row has 1/N of the mean.": (
                grad - grad.sum(0) - (grad * y).sum(0) * y),
        }  # fmt: skip
        for hint, change in mistakes.items():
            expect(not _close(got, change * rstd), hint)
        right = (grad - grad.mean(0) - through_y) * rstd
        expect(
            not _close(got, right / rstd),
            "Divide by sqrt(var + eps) at the end: a steeper map has a larger gradient.",
        )
        expect(
            _close(got, right),
            "Not the gradient. Write y = (x - mean) / sqrt(var + eps) and follow x on its three "
            "ways to y: by itself, through the mean, and through the variance.",
        )


def _solve_gradient(x, grad, eps):
    rstd = (x.var(0, correction=0) + eps).rsqrt()
    y = (x - x.mean(0)) * rstd
    return (grad - grad.mean(0) - (grad * y).mean(0) * y) * rstd


def _gradient_with(mean=True, var=True, sums=False, scale=True):
    """Return a backward pass with one mistake."""

    def gradient(x, grad, eps):
        rstd = (x.var(0, correction=0) + eps).rsqrt()
        y = (x - x.mean(0)) * rstd
        average = (
            (lambda values: values.sum(0)) if sums else (lambda values: values.mean(0))
        )
        change = (
            grad - (average(grad) if mean else 0) - (average(grad * y) * y if var else 0)
        )
        return change * rstd if scale else change

    return gradient


EXERCISES = (
    Exercise(
        "Write your_layer(x, weight, bias, running_mean, running_var, training, momentum, eps): "
        "batch norm of x (N, C), by hand. It returns the output, and in training it updates the "
        "running statistics in place.",
        _check_layer,
        _solve_layer,
        {
            "evaluation uses the batch": Wrong(
                _layer_with(always_batch=True), "not the batch"
            ),
            "no standardisation at test": Wrong(
                _layer_with(skip_evaluation=True), "standardised too"
            ),
            "unbiased in the output": Wrong(
                _layer_with(correction=1), "biased variance of"
            ),
            "biased in the running variance": Wrong(
                _layer_with(running_correction=0), "takes the unbiased"
            ),
            "momentum weights the old": Wrong(
                _layer_with(swap=True), "weight of the new value"
            ),
            "statistics are constants": Wrong(_layer_with(detach=True), "do not detach"),
            "eps beside the root": Wrong(
                _layer_with(eps_outside=True), "under the square root"
            ),
            "evaluation updates": Wrong(
                _layer_with(update_always=True), "leave the running"
            ),
            "layer norm": Wrong(_layer_over_rows, "which is layer norm"),
        },
    ),
    Exercise(
        "Write your_fold(linear, bn): one new nn.Linear with the outputs of bn(linear(x)), for bn "
        "in evaluation mode. linear.bias may be None, and so may bn.weight and bn.bias.",
        _check_fold,
        _solve_fold,
        {
            "batch norm costs at inference": Wrong(_fold_nothing, "one nn.Linear"),
            "forgets eps": Wrong(_fold_with(eps=False), "left out eps"),
            "forgets the bias": Wrong(_fold_with(bias=False), "bias of the linear layer"),
            "forgets the mean": Wrong(_fold_with(mean=False), "lost the running mean"),
            "scales the columns": Wrong(_fold_with(columns=True), "not its columns"),
            "batch statistics": Wrong(
                _fold_batch_statistics, "running statistics that bn holds"
            ),
        },
    ),
    Exercise(
        "Write your_gradient(x, grad, eps), without autograd: the gradient with respect to x "
        "(N, C), where grad is that with respect to y = (x - mean) / sqrt(var + eps).",
        _check_gradient,
        _solve_gradient,
        {
            "statistics are constants": Wrong(
                _gradient_with(mean=False, var=False), "constants"
            ),
            "forgets the variance": Wrong(
                _gradient_with(var=False), "the variance's is missing"
            ),
            "forgets the mean": Wrong(
                _gradient_with(mean=False), "the mean's is missing"
            ),
            "sums": Wrong(_gradient_with(sums=True), "not sums"),
            "forgets the scale": Wrong(_gradient_with(scale=False), "at the end"),
        },
    ),
)
