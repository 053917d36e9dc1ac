"""Regularization: small or few weights, noise, softer targets, averages, flat places, a
stop.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dlcourse.lab.exercises import Exercise, Wrong, expect

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

# --- penalties ------------------------------------------------------------------------------------


def l1_penalty(weights: Tensor | Iterable[Tensor]) -> Tensor:
    """Return the sum of absolute values of all `weights`, a scalar; of no weights, zero.

    Times a strength, it is added to the loss. Its gradient at 0 is 0, so that gradient
    steps leave exact zeros alone and do not make any. Source: Tibshirani (1996).
    Invariant: scaling the weights by c scales it by |c|.
    """
    return sum((weight.abs().sum() for weight in _tensors(weights)), torch.zeros(()))


def l2_penalty(weights: Tensor | Iterable[Tensor]) -> Tensor:
    """Return half the sum of squares of all `weights`, a scalar; of no weights, zero.

    The half makes its gradient the weight itself, so that a strength means what
    `weight_decay` means in torch. Invariant: scaling the weights by c scales it by c
    squared.
    """
    return (
        sum((weight.square().sum() for weight in _tensors(weights)), torch.zeros(())) / 2
    )


def elastic_net_penalty(
    weights: Tensor | Iterable[Tensor], alpha: float = 1.0, l1_ratio: float = 0.5
) -> Tensor:
    """Return alpha * (l1_ratio * L1 + (1 - l1_ratio) * L2), a scalar, as scikit-learn
    counts it.

    `alpha` >= 0 is the strength and `l1_ratio`, from 0 (all L2) to 1 (all L1), the mix.
    Raises ValueError outside these ranges. Source: Zou & Hastie (2005).
    Invariants: l1_ratio=1 is alpha * l1_penalty, l1_ratio=0 is alpha * l2_penalty.
    """
    _check_at_least_zero("alpha", alpha)
    if not 0 <= l1_ratio <= 1:
        raise ValueError(f"l1_ratio={l1_ratio}: give the share of L1, from 0 to 1")
    weights = list(_tensors(weights))
    return alpha * (l1_ratio * l1_penalty(weights) + (1 - l1_ratio) * l2_penalty(weights))


def soft_threshold(x: Tensor, threshold: float | Tensor) -> Tensor:
    """Move every entry of `x` towards 0 by `threshold` >= 0, and stop there: zeros are
    exact.

    It is the w that makes (w - x)**2 / 2 + threshold * |w| smallest. `threshold` is a
    number or a tensor that broadcasts (its signs are not checked). NaN stays NaN. Raises
    ValueError for a number below 0.
    Invariants: no entry grows or changes its sign; what is at most `threshold` long
    becomes 0.
    """
    if not isinstance(threshold, Tensor):
        _check_at_least_zero("threshold", threshold)
    return x - x.clamp(-threshold, threshold)


# --- optimizers -----------------------------------------------------------------------------------


class ProximalSGD(torch.optim.Optimizer):
    """SGD on the loss, then the proximal step of an elastic net with strengths `l1` and
    `l2`.

    After w - lr * gradient (with `momentum` as in torch's SGD), each weight moves towards
    0 by lr * l1 and stops there, then is divided by 1 + lr * l2. `l1`, `l2` >= 0 and lr >
    0 may differ by parameter group. The penalty stands in no loss and in no `.grad`, so
    neither accumulation nor a loss scale can change it. Raises ValueError for numbers out
    of range.
    Source: the proximal gradient method (Parikh & Boyd, 2014).
    Invariants: with l1 = l2 = 0 it is torch's SGD to the bit; its fixed points on a
    convex loss are the minima of loss + l1 * L1 + l2 * L2.
    """

    def __init__(
        self, params, lr: float, momentum: float = 0.0, l1: float = 0.0, l2: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "l1": l1, "l2": l2})
        for group in self.param_groups:
            _check_rate(group["lr"])
            for name in ("momentum", "l1", "l2"):
                _check_at_least_zero(name, group[name])

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Make one update of every parameter that has a gradient."""
        loss = _call(closure)
        for group in self.param_groups:
            lr, l1, l2 = group["lr"], group["l1"], group["l2"]
            for weight in _with_grad(group["params"]):
                grad = weight.grad
                if group["momentum"]:
                    state = self.state[weight]
                    if not state:
                        state["momentum_buffer"] = grad.clone()
                    else:
                        state["momentum_buffer"].mul_(group["momentum"]).add_(grad)
                    grad = state["momentum_buffer"]
                weight.add_(grad, alpha=-lr)
                if l1:
                    weight.copy_(soft_threshold(weight, lr * l1))
                if l2:
                    weight.div_(1 + lr * l2)
        return loss


class AdamW(torch.optim.Optimizer):
    """Adam whose weight decay does not pass through Adam: w shrinks by 1 - lr *
    weight_decay.

    lr > 0, 0 <= betas < 1, eps >= 0, weight_decay >= 0; each may differ by parameter
    group. The defaults are torch's. Raises ValueError for numbers out of range.
    Source: Loshchilov & Hutter (2019), with torch's order of operations (for-loop form),
    which it equals to the bit. Invariant: without a gradient the weights shrink as a
    geometric series.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings)
        for group in self.param_groups:
            _check_rate(group["lr"])
            _check_at_least_zero("weight_decay", group["weight_decay"])
            _check_at_least_zero("eps", group["eps"])
            if not all(0 <= beta < 1 for beta in group["betas"]):
                raise ValueError(
                    f"betas={group['betas']}: give two numbers from 0 to below 1"
                )

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Make one update of every parameter that has a gradient."""
        loss = _call(closure)
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for weight in _with_grad(group["params"]):
                state = self.state[weight]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(weight)
                    state["exp_avg_sq"] = torch.zeros_like(weight)
                state["step"] += 1
                t = state["step"].item()
                # the one line that makes it AdamW
                weight.mul_(1 - lr * group["weight_decay"])
                mean = state["exp_avg"].lerp_(weight.grad, 1 - beta1)
                square = state["exp_avg_sq"].mul_(beta2)
                square.addcmul_(weight.grad, weight.grad, value=1 - beta2)
                root = (square.sqrt() / (1 - beta2**t) ** 0.5).add_(group["eps"])
                weight.addcdiv_(mean, root, value=-lr / (1 - beta1**t))
        return loss


def param_groups(
    model: nn.Module, weight_decay: float, skip: Iterable[str] = ()
) -> list[dict]:
    """Return two parameter groups: those that decay, and those that do not (weight_decay
    0).

    What does not decay: biases and all other tensors of at most one dimension, the scales
    of torch's norm layers, and names that hold one of the strings in `skip` (any of its
    names, for a tied tensor). Raises ValueError for a negative `weight_decay`, or an
    entry of `skip` that no name holds. Invariant: each parameter of the model is in
    exactly one group, tied ones once.
    """
    _check_at_least_zero("weight_decay", weight_decay)
    skip = [skip] if isinstance(skip, str) else list(skip)
    names = {name: id(w) for name, w in model.named_parameters(remove_duplicate=False)}
    for part in skip:
        if not any(part in name for name in names):
            raise ValueError(
                f"skip={part!r} is in no name of the model: {', '.join(names)}"
            )
    skipped = {
        number for name, number in names.items() if any(part in name for part in skip)
    }
    exempt = {
        id(w)
        for m in model.modules()
        if isinstance(m, NORMS)
        for w in m.parameters(False)
    }
    decayed, spared = [], []
    for weight in model.parameters():
        spare = weight.ndim <= 1 or id(weight) in exempt | skipped
        (spared if spare else decayed).append(weight)
    groups = (
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


# --- noise and targets ----------------------------------------------------------------------------


class Dropout(nn.Module):
    """In training, zero each entry with probability `p` and divide the others by 1 - p.

    So the expected output is the input, and evaluation changes nothing ("inverted"
    dropout). p is from 0 to 1; raises ValueError outside. Source: Srivastava et al.
    (2014).
    Invariants: identity in eval mode and at p = 0; zeros at p = 1; with the same random
    state the output is torch's to the bit on the CPU.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p={p}: give the share to drop, from 0 to 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape."""
        if not self.training or self.p == 0:
            return x
        if self.p == 1:
            return x * 0
        keep = torch.empty_like(x).bernoulli_(1 - self.p)
        return x * keep.div_(1 - self.p)

    def extra_repr(self) -> str:
        """Return what stands between the brackets when the module is printed."""
        return f"p={self.p}"


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Return the cross entropy, in nats, of logits (n, classes) and class numbers (n,).

    A share `label_smoothing` in [0, 1] of each target is spread evenly over all classes.
    Rows with the target `ignore_index` do not count; where none counts the mean is NaN,
    as in torch.
    `reduction`: "mean", "sum" or "none" (n,). Raises ValueError for other shapes or
    settings.
    Source: Szegedy et al. (2016).
    Invariant: the smallest value it can take is the entropy of the smoothed target.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(
            f"label_smoothing={label_smoothing}: give a share from 0 to 1, such as .1"
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r}: choose mean, sum or none")
    if (
        logits.ndim != 2
        or targets.shape != logits.shape[:1]
        or targets.is_floating_point()
    ):
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} of {targets.dtype}: "
            "give (n, classes) and n class numbers"
        )
    counts = targets != ignore_index
    log_probabilities = F.log_softmax(logits, dim=1)
    picked = torch.where(counts, targets, 0).unsqueeze(1)
    loss = -log_probabilities.gather(1, picked).squeeze(1)
    if label_smoothing > 0:  # else 0 times infinity where a class is impossible
        uniform = -log_probabilities.mean(1)
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    loss = torch.where(counts, loss, 0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / counts.sum()


# --- averages and flat places ---------------------------------------------------------------------


class ExponentialMovingAverage(nn.Module):
    """Keep, in `module`, a copy of `model` whose weights are an average over the updates.

    Call `update_parameters(model)` once an update, after the optimizer's step; evaluate
    `module`, or call the average itself. The first call copies the weights. Each later
    one keeps the share `decay`, from 0 (the last weights) to 1 (the first), of the
    average and takes the rest from the model: it looks back over some 1 / (1 - decay)
    updates. With `warmup` call t, from 0, keeps no more than (1 + t) / (10 + t), to
    forget the first weights sooner. Buffers are copied, with `use_buffers` averaged like
    weights; integers are always copied.
    Raises ValueError for a `decay` out of range, and for a model whose tensors have other
    shapes.
    Source: torch's AveragedModel with get_ema_multi_avg_fn, which it equals to the bit;
    averages with equal shares are from Polyak & Juditsky (1992).
    Invariants: of weights that stand still it is these weights; no entry leaves the range
    of the values that it has seen; resumed from its `state_dict` it goes on to the bit.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.999,
        warmup: bool = False,
        use_buffers: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(
                f"decay={decay}: give the share to keep, from 0 to 1, such as 0.99"
            )
        self.module = copy.deepcopy(model)
        self.decay, self.warmup, self.use_buffers = decay, warmup, use_buffers
        self.register_buffer("n_averaged", torch.tensor(0))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take up the weights and buffers that `model` has now."""
        averaged = _pairs(self.module.parameters(), model.parameters())
        copied = _pairs(self.module.buffers(), model.buffers())
        if self.use_buffers:
            averaged, copied = averaged + copied, []
        t, decay = self.n_averaged.item(), self.decay
        if self.warmup:
            decay = min(decay, (1 + t) / (10 + t))
        for average, now in averaged:
            if t == 0 or not (average.is_floating_point() or average.is_complex()):
                average.copy_(now)
            else:
                average.lerp_(now.to(average), 1 - decay)
        for buffer, now in copied:
            buffer.copy_(now)
        self.n_averaged += 1

    def forward(self, *args, **kwargs):
        """Return what the averaged model makes of its inputs."""
        return self.module(*args, **kwargs)


def sam_perturbation(grads: Iterable[Tensor], rho: float) -> list[Tensor]:
    """Return the step of length `rho` along the gradient, a tensor for each of `grads`.

    The length is the Euclidean norm over all tensors together. To first order, no step of
    this length raises the loss by more. Of a gradient of zeros it is zero. Scaling the
    gradient changes nothing, so a loss scale does no harm. Source: Foret et al. (2021).
    """
    grads = list(grads)
    sizes = [grad.abs().amax() for grad in grads if grad.numel()]
    if not sizes:
        return [grad.clone() for grad in grads]
    largest = torch.stack(sizes).amax()  # divided by it, no square can overflow or vanish
    grads = [grad / torch.where(largest == 0, 1, largest) for grad in grads]
    norm = torch.stack([torch.linalg.vector_norm(grad) for grad in grads]).norm()
    return [grad * (rho / torch.where(norm == 0, 1, norm)) for grad in grads]


def sam_step(rho: float, perturbation: Callable = sam_perturbation) -> Callable:
    """Return a step for `fit` with sharpness-aware minimisation (SAM): two gradients an
    update.

    The first gradient says where the loss rises most. The weights move there by `rho` >=
    0, the second gradient is taken on the same batch, the weights go back, also where the
    loss raises an error, and the optimizer steps with the second gradient. Both are over
    all micro-batches and processes, which so change nothing. Running statistics keep what
    the first pass made of them; dropout draws anew. The loss returned is that of the
    first pass. `perturbation(grads, rho)` makes the move from the gradients of all
    weights that the optimizer trains.
    Raises ValueError for a negative `rho`. Source: Foret et al. (2021).
    Invariant: with rho = 0 it is `train_step` to the bit, with one gradient.
    """
    _check_at_least_zero("rho", rho)

    def step(run, batch) -> Tensor:
        run.optimizer.zero_grad()
        loss = run.gradients(batch)
        if rho > 0:
            groups = run.optimizer.param_groups
            weights = [
                weight for group in groups for weight in _with_grad(group["params"])
            ]
            changed = [tensor.detach() for tensor in (*weights, *run.model.buffers())]
            kept = [tensor.clone() for tensor in changed]
            try:
                moves = perturbation([weight.grad for weight in weights], rho)
                for weight, move in zip(weights, moves, strict=True):
                    weight.detach().add_(move)
                run.optimizer.zero_grad()
                run.gradients(batch)
            finally:
                for tensor, before in zip(changed, kept, strict=True):
                    tensor.copy_(before)
        run.optimizer.step()
        return loss

    return step


# --- when to stop ---------------------------------------------------------------------------------


class EarlyStopping:
    """Keep the best weights seen so far, and say when `patience` rounds brought nothing
    better.

    Call it once a round with the validation value and the model; it returns True when
    training should end. `restore(model)` then puts the best weights and buffers back.
    Better is lower, or higher with mode="max", by more than `min_delta` >= 0. NaN is
    never better. With `accelerator`, the value is first averaged over all processes, so
    that all stop together; give each as many rows. Attributes: `best`, `best_round` (from
    1; 0 before any), `rounds`.
    Raises ValueError for settings out of range, RuntimeError on restoring before anything
    finite.
    """

    def __init__(
        self, patience: int, min_delta: float = 0.0, mode: str = "min", accelerator=None
    ):
        if (
            not isinstance(patience, Integral)
            or isinstance(patience, bool)
            or patience < 1
        ):
            raise ValueError(
                f"patience={patience!r}: give a number of rounds of at least 1"
            )
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode!r}: choose min (a loss) or max (an accuracy)")
        _check_at_least_zero("min_delta", min_delta)
        self.patience, self.min_delta, self.mode = patience, min_delta, mode
        self.accelerator = accelerator
        self.best = math.inf if mode == "min" else -math.inf
        self.rounds = self.best_round = 0
        self._weights: dict | None = None

    def __call__(self, value: float | Tensor, model: nn.Module) -> bool:
        """Note one round, and return whether to stop."""
        if self.accelerator is not None:
            device = self.accelerator.device
            value = torch.as_tensor(value, dtype=torch.float32, device=device)
            value = self.accelerator.reduce(value, "mean")
        value = float(value)
        self.rounds += 1
        gain = self.best - value if self.mode == "min" else value - self.best
        if gain > self.min_delta:
            self.best, self.best_round = value, self.rounds
            self._weights = copy.deepcopy(model.state_dict())
        return self.rounds - self.best_round >= self.patience

    def restore(self, model: nn.Module) -> None:
        """Put the weights and buffers of the best round back into `model`."""
        if self._weights is None:
            raise RuntimeError(
                "no finite value has been noted yet: there is nothing to restore"
            )
        model.load_state_dict(self._weights)

    def state_dict(self) -> dict:
        """Return what a checkpoint needs: "best", "rounds", "best_round", and "weights"
        or None.

        Invariant: a run resumed from it stops, and restores, where the uninterrupted one
        would.
        """
        names = ("best", "rounds", "best_round")
        return {name: getattr(self, name) for name in names} | {"weights": self._weights}

    def load_state_dict(self, state: dict) -> None:
        """Take up what `state_dict` returned; patience, min_delta and mode stay this
        object's.
        """
        self.best, self._weights = state["best"], state["weights"]
        self.rounds, self.best_round = state["rounds"], state["best_round"]


# --- calibration ----------------------------------------------------------------------------------


def reliability(
    probabilities: Tensor, targets: Tensor, bins: int = 10
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (confidence, accuracy, count), each (bins,), by the probability of the
    chosen class.

    `probabilities` is (n, classes), `targets` (n,). Bin b holds confidences in (b/bins,
    (b+1)/bins]; the mean of an empty bin is NaN, and so is that of the last one if a
    value is NaN.
    Raises ValueError for other shapes, for values below 0 or above 1 (logits), and for
    bins < 1.
    Invariant: the counts add up to n.
    """
    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} and targets {tuple(targets.shape)}: give "
            "(n, classes) and (n,)"
        )
    if bins < 1:
        raise ValueError(f"bins={bins}: give at least 1")
    if ((probabilities < 0) | (probabilities > 1 + 1e-6)).any():
        raise ValueError(
            "not all values are from 0 to 1: give probabilities, logits.softmax(1)"
        )
    confidence, chosen = probabilities.detach().double().max(1)
    right = (chosen == targets).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    number = torch.bucketize(confidence, edges[1:-1])
    count = torch.bincount(number, minlength=bins)
    means = [
        torch.bincount(number, values, minlength=bins) / count
        for values in (confidence, right)
    ]
    return means[0], means[1], count


def expected_calibration_error(
    probabilities: Tensor, targets: Tensor, bins: int = 10
) -> Tensor:
    """Return the mean distance of confidence and accuracy over the bins, from 0 to 1, a
    scalar.

    Each bin counts by its rows. It is never below 0, so with few rows it is above 0 also
    for a perfectly calibrated model. Shapes and errors as in `reliability`; NaN of no
    rows, or of NaN.
    Source: Guo et al. (2017).
    """
    confidence, accuracy, count = reliability(probabilities, targets, bins)
    gaps = torch.where(count > 0, (confidence - accuracy).abs() * count, 0)
    return gaps.sum() / count.sum()


def fit_temperature(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the T from 0.01 to 100 for which the cross entropy of logits / T is
    smallest.

    `logits` (..., n, classes) and `targets` (..., n) are of validation rows, not of
    training rows; the result is (...), one T for each set of rows. Dividing by T changes
    no accuracy. The loss is convex in 1 / T, so bisection on its slope finds the minimum.
    Raises ValueError for other shapes, no rows, or logits that are not finite. Source:
    Guo et al. (2017).
    """
    if (
        targets.shape != logits.shape[:-1]
        or not logits.numel()
        or not logits.isfinite().all()
    ):
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}: give finite logits "
            "(..., n, classes) and class numbers (..., n), of at least one row"
        )
    # softmax is slow over a short last axis
    logits = logits.detach().double().mT.contiguous()
    wanted = logits.gather(-2, targets.unsqueeze(-2)).mean((-2, -1))
    low, high = torch.full_like(wanted, 1e-2), torch.full_like(wanted, 1e2)  # of 1 / T
    for _ in range(40):
        middle = (low * high).sqrt()
        scaled = logits * middle[..., None, None]
        # the loss, as 1 / T grows
        falls = (scaled.softmax(-2) * logits).sum(-2).mean(-1) < wanted
        low, high = torch.where(falls, middle, low), torch.where(falls, high, middle)
    return 1 / (low * high).sqrt()


# --- helpers --------------------------------------------------------------------------------------


def _tensors(weights: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    return [weights] if isinstance(weights, Tensor) else weights


def _pairs(
    ours: Iterable[Tensor], theirs: Iterable[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    ours, theirs = list(ours), list(theirs)
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the average holds tensors of shapes {shapes[0]}, the model {shapes[1]}: give the "
            "model that it was made from"
        )
    return list(zip(ours, theirs, strict=True))


def _with_grad(weights: Iterable[Tensor]) -> list[Tensor]:
    return [weight for weight in weights if weight.grad is not None]


def _call(closure: Callable | None):
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _check_rate(lr: float) -> None:
    if not 0 < lr < math.inf:
        raise ValueError(f"lr={lr}: give a learning rate above 0, such as 0.01")


def _check_at_least_zero(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value}: give a number of at least 0, such as 0.01")


# --- exercises ------------------------------------------------------------------------------------


def _sparse_regression() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 200, generator=draw)
    y = x[:, :5] @ torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    return x, y + 0.1 * torch.randn(60, generator=draw)


def _check_zeros(answer: Callable) -> None:
    w = torch.tensor([1.0, -1.0, 0.005, -0.004, 0.0])
    got = answer(w.clone(), torch.zeros(5), 0.1, 0.1)
    expect(
        isinstance(got, Tensor) and got.shape == w.shape,
        "Return the new w, a tensor like w.",
    )
    expect(bool(got.isfinite().all()), "The new w is not finite: do not divide by w.")
    small = got[2:].tolist()
    expect(
        not (small[0] < 0 or small[1] > 0),
        f"0.005 and -0.004 became {small[:2]}: the subgradient jumps over 0 and will jump back. It "
        "hits 0 only by accident. Stop there.",
    )
    expect(
        small == [0, 0, 0],
        f"0.005, -0.004 and 0 became {small}. A step that shrinks by a share, as L2 does, comes "
        "close to 0 and never gets there: move by a fixed length, and stop at 0.",
    )
    big = got[:2]
    expect(
        bool((big.abs() < 1).all()), "The long weights must shrink too, by lr * strength."
    )
    expect(
        not torch.allclose(big, torch.tensor([0.9, -0.9]), atol=1e-4),
        "The weights moved by strength: one step of rate lr moves them by lr * strength.",
    )
    wanted = torch.tensor([0.99, -0.99])
    expect(
        torch.allclose(big, wanted, atol=1e-4),
        f"1 and -1 became {big.tolist()}, not +-0.99.",
    )
    got = answer(torch.tensor([0.05, 3.0]), torch.tensor([1.0, 0.0]), 0.2, 0.15)
    expect(
        torch.allclose(got, torch.tensor([-0.12, 2.97]), atol=1e-5),
        f"w = (0.05, 3), gradient (1, 0), lr 0.2, strength 0.15 gave {got.tolist()}, wanted "
        "(-0.12, 2.97): take the gradient step first, then move towards 0.",
    )
    x, y = _sparse_regression()
    w = torch.zeros(200)
    for _ in range(600):
        w = answer(w.clone(), x.T @ (x @ w - y) / 60, 0.1, 0.1)
    share = (w == 0).float().mean().item()
    expect(
        share > 0.9,
        f"After 600 steps {share:.0%} of 200 weights are 0, wanted more than 90 %.",
    )
    expect(
        bool((w[:5] != 0).all()), "The five weights that matter must not all become 0."
    )


def _solve_zeros(w, grad, lr, strength):
    w = w - lr * grad
    return w.sign() * (w.abs() - lr * strength).clamp(min=0)


def _subgradient(w, grad, lr, strength):
    return w - lr * (grad + strength * w.sign())


def _l2_step(w, grad, lr, strength):
    return w - lr * (grad + strength * w)


def _hard_threshold(w, grad, lr, strength):
    w = w - lr * grad
    return torch.where(w.abs() > lr * strength, w, 0)


def _threshold_by_strength(w, grad, lr, strength):
    w = w - lr * grad
    return w.sign() * (w.abs() - strength).clamp(min=0)


def _threshold_first(w, grad, lr, strength):
    return w.sign() * (w.abs() - lr * strength).clamp(min=0) - lr * grad


def _check_groups(answer: Callable) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4, 4),
        nn.LayerNorm(4),
    )
    groups = answer(model, 0.1)
    expect(
        groups is not None,
        "Return a list of dictionaries, as a torch optimizer takes it.",
    )
    try:
        found = torch.optim.AdamW(groups, lr=0.1).param_groups
    except (TypeError, ValueError, KeyError) as error:
        expect(False, f"torch's AdamW does not take these groups: {error}")
    decay = {
        id(weight): group["weight_decay"] for group in found for weight in group["params"]
    }
    names = {name: id(weight) for name, weight in model.named_parameters()}
    lost = [name for name, number in names.items() if number not in decay]
    expect(not lost, f"{', '.join(lost)} would never be trained: what does not decay must be in a "
           "group of its own, not left out.")  # fmt: skip
    expect(
        any(value != decay[names["0.weight"]] for value in decay.values()),
        "Everything decays alike, biases and norms too: they need a group with weight_decay 0.",
    )
    by_default = [name for name, number in names.items() if decay[number] == 0.01]
    expect(not by_default, f"{', '.join(by_default)}: a group without the key weight_decay gets "
           "the optimizer's default, 0.01 in AdamW. Write 0.")  # fmt: skip
    for name in ("0.weight", "3.weight"):
        expect(
            decay[names[name]] == 0.1,
            f"{name} is a weight matrix and must decay, with 0.1.",
        )
    for name in ("0.bias", "3.bias", "1.bias", "4.bias"):
        expect(decay[names[name]] == 0, f"{name} decays: a bias must not.")
    for name in ("1.weight", "4.weight"):
        expect(
            decay[names[name]] == 0,
            f"{name} decays: it is the scale of a norm layer, though its name says weight. Go by "
            "its one dimension, or by the layer.",
        )
    model = nn.ModuleDict({"scale": nn.LayerNorm(3), "head": nn.Linear(3, 2)})
    found = torch.optim.AdamW(answer(model, 0.3), lr=0.1).param_groups
    decay = {
        id(weight): group["weight_decay"] for group in found for weight in group["params"]
    }
    names = model.named_parameters()
    got = {name: round(float(decay.get(id(weight), -1)), 4) for name, weight in names}
    expect(
        got == {name: 0.3 * (name == "head.weight") for name in got},
        f"With another model and a weight_decay of 0.3 the decay is {got}: use the arguments, and "
        "go by no name of one model.",
    )


def _solve_groups(model, weight_decay):
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _decay_everything(model, weight_decay):
    return [{"params": list(model.parameters()), "weight_decay": weight_decay}]


def _spare_biases_only(model, weight_decay):
    named = list(model.named_parameters())
    biases = [weight for name, weight in named if name.endswith("bias")]
    others = [weight for name, weight in named if not name.endswith("bias")]
    return [
        {"params": others, "weight_decay": weight_decay},
        {"params": biases, "weight_decay": 0.0},
    ]


def _leave_out(model, weight_decay):
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    return [{"params": matrices, "weight_decay": weight_decay}]


def _no_key(model, weight_decay):
    groups = _solve_groups(model, weight_decay)
    return [groups[0], {"params": groups[1]["params"]}]


def _groups_swapped(model, weight_decay):
    first, second = _solve_groups(model, weight_decay)
    return [{**first, "weight_decay": 0.0}, {**second, "weight_decay": weight_decay}]


class _Adam:
    """Adam's step on one tensor: called with a gradient, it returns what to subtract."""

    def __init__(self, lr: float) -> None:
        self.lr, self.t, self.mean, self.square = lr, 0, 0.0, 0.0

    def __call__(self, grad: Tensor) -> Tensor:
        self.t += 1
        self.mean = 0.9 * self.mean + 0.1 * grad
        self.square = 0.999 * self.square + 0.001 * grad**2
        root = (self.square / (1 - 0.999**self.t)) ** 0.5
        return self.lr * self.mean / (1 - 0.9**self.t) / (root + 1e-8)


def _check_decoupled(answer: Callable) -> None:
    lr, decay = 0.01, 0.1
    w, adam = torch.tensor([1.0, -2.0]), _Adam(lr)
    got = answer(w.clone(), torch.zeros(2), adam, lr, decay)
    expect(
        isinstance(got, Tensor) and got.shape == w.shape,
        "Return the new w, a tensor like w.",
    )
    expect(
        adam.t == 1,
        f"Call adam once a step: it keeps running means. You called it {adam.t}x.",
    )
    moved = (w - got).abs()
    expect(bool((moved > 0).any()), "Without a gradient the weights must still decay.")
    expect(
        not torch.allclose(moved, torch.full((2,), lr), rtol=1e-3),
        "Without a gradient 1 and -2 both moved by lr: the decay went through Adam, which divides "
        "its size away. Keep it out of the gradient.",
    )
    expect(
        not torch.allclose(moved, decay * w.abs(), rtol=1e-3),
        "The weights shrank by weight_decay in one step: the share is lr * weight_decay.",
    )
    wanted = lr * decay * w
    expect(
        torch.allclose(w - got, wanted, rtol=1e-3),
        f"w - new w is {w - got}, wanted {wanted}.",
    )
    got = answer(w.clone(), torch.zeros(2), _Adam(0.02), 0.02, 0.3)
    expect(
        torch.allclose(w - got, 0.006 * w, rtol=1e-2),
        f"With lr 0.02 and weight_decay 0.3, w - new w is {w - got}, wanted {0.006 * w}: use the "
        "arguments.",
    )
    ours, adam = torch.ones(2), _Adam(lr)
    theirs, reference = torch.ones(2), _Adam(lr)
    sizes, draw = torch.tensor([100.0, 0.01]), torch.Generator().manual_seed(0)
    for _ in range(50):
        grad = torch.randn(2, generator=draw) * sizes
        ours = answer(ours.clone(), grad.clone(), adam, lr, decay)
        theirs = theirs * (1 - lr * decay) - reference(grad)
    expect(
        torch.allclose(ours, theirs, atol=1e-3),
        f"After 50 steps w is {ours.tolist()}, wanted {theirs.tolist()}: subtract adam(grad), of "
        "the gradient alone.",
    )


def _solve_decoupled(w, grad, adam, lr, weight_decay):
    return w * (1 - lr * weight_decay) - adam(grad)


def _decay_in_the_gradient(w, grad, adam, lr, weight_decay):
    return w - adam(grad + weight_decay * w)


def _decay_without_lr(w, grad, adam, lr, weight_decay):
    return w * (1 - weight_decay) - adam(grad)


def _no_decay(w, grad, adam, lr, weight_decay):
    return w - adam(grad)


def _decay_twice(w, grad, adam, lr, weight_decay):
    return w * (1 - lr * weight_decay) - adam(grad + weight_decay * w)


def _add_the_step(w, grad, adam, lr, weight_decay):
    return w * (1 - lr * weight_decay) + adam(grad)


def _check_dropout(answer: Callable) -> None:
    x = torch.linspace(1, 2, 20_000).reshape(200, 100)
    got = answer(x.clone(), 0.2, False)
    expect(
        isinstance(got, Tensor) and got.shape == x.shape,
        "Return a tensor of the shape of x.",
    )
    expect(
        torch.equal(got, x),
        "In evaluation x must come back unchanged: the scaling belongs to training.",
    )
    got = answer(x.clone(), 0.2, True).to(x.dtype)
    dropped = got == 0
    share = dropped.float().mean().item()
    expect(
        abs(share - 0.8) > 0.02, "With p = 0.2 you dropped 80 %: p is the share to drop."
    )
    expect(0 < share < 1, f"With p = 0.2 you dropped {share:.0%} of the entries.")
    kept = (got / x)[~dropped]
    expect(
        not torch.allclose(kept, torch.ones(())),
        "What is kept must be divided by 1 - p, or the mean falls by the share dropped, and the "
        "network sees larger inputs in evaluation.",
    )
    whole = (dropped.all(0) | (~dropped).all(0)).any() or (
        dropped.all(1) | (~dropped).all(1)
    ).any()
    expect(
        not whole, "Whole rows or columns share one decision: draw one for each entry."
    )
    expect(
        abs(share - 0.2) < 0.02, f"With p = 0.2 you dropped {share:.0%} of the entries."
    )
    expect(
        torch.allclose(kept, torch.tensor(1.25)),
        f"Entries that are kept were multiplied by {kept.mean():.3g}, wanted 1 / (1 - p) = 1.25.",
    )
    again = answer(x.clone(), 0.2, True) == 0
    expect(
        not torch.equal(again, dropped), "Two calls dropped the same entries: draw anew."
    )
    expect(
        torch.equal(answer(x.clone(), 0.0, True), x), "With p = 0 nothing may be dropped."
    )
    got = answer(x.clone(), 0.6, True).to(x.dtype)
    share, scale = (got == 0).float().mean().item(), (got / x).max().item()
    expect(
        abs(share - 0.6) < 0.02 and abs(scale - 2.5) < 1e-4,
        f"With p = 0.6 you dropped {share:.0%} and multiplied the others by {scale:.3g}: use p.",
    )


def _solve_dropout(x, p, training):
    if not training:
        return x
    keep = torch.rand_like(x) >= p
    return x * keep / (1 - p)


def _forget_to_scale(x, p, training):
    return x * (torch.rand_like(x) >= p) if training else x


def _scale_in_evaluation(x, p, training):
    return x * (torch.rand_like(x) >= p) if training else x * (1 - p)


def _keep_with_p(x, p, training):
    return x * (torch.rand_like(x) < p) / p if training else x


def _drop_rows(x, p, training):
    return x * (torch.rand(len(x), 1) >= p) / (1 - p) if training else x


def _always_drop(x, p, training):
    return x * (torch.rand_like(x) >= p) / (1 - p)


def _one_mask(x, p, training):
    draw = torch.Generator().manual_seed(0)
    return x * (torch.rand(x.shape, generator=draw) >= p) / (1 - p) if training else x


EXERCISES = (
    Exercise(
        "Write your_step(w, grad, lr, strength): one update of the tensor w for a loss with an L1 "
        "penalty, after which weights that do not matter are exactly 0. Returns the new w.",
        _check_zeros,
        _solve_zeros,
        {
            "subgradient L1 sparsifies": Wrong(_subgradient, "jumps over 0"),
            "L2 sparsifies": Wrong(_l2_step, "never gets there"),
            "cut off the small ones": Wrong(_hard_threshold, "must shrink too"),
            "forget the rate": Wrong(_threshold_by_strength, "lr * strength"),
            "threshold first": Wrong(_threshold_first, "gradient step first"),
        },
    ),
    Exercise(
        "Write your_groups(model, weight_decay): parameter groups for torch.optim.AdamW in which "
        "biases and the scales of norm layers do not decay.",
        _check_groups,
        _solve_groups,
        {
            "decay everything": Wrong(
                _decay_everything, "need a group with weight_decay 0"
            ),
            "biases only": Wrong(_spare_biases_only, "scale of a norm layer"),
            "leave them out": Wrong(_leave_out, "never be trained"),
            "trust the default": Wrong(_no_key, "Write 0"),
            "the wrong way round": Wrong(_groups_swapped, "must decay"),
        },
    ),
    Exercise(
        "Write your_update(w, grad, adam, lr, weight_decay): one update of the tensor w with "
        "decoupled weight decay. `adam(g)` returns Adam's step for a gradient g, rate included, to "
        "be subtracted; it keeps the running means. Returns the new w.",
        _check_decoupled,
        _solve_decoupled,
        {
            "L2 in the gradient": Wrong(_decay_in_the_gradient, "went through Adam"),
            "forget the rate": Wrong(_decay_without_lr, "lr * weight_decay"),
            "no decay": Wrong(_no_decay, "must still decay"),
            "both": Wrong(_decay_twice, "wanted"),
            "the wrong sign": Wrong(_add_the_step, "subtract adam(grad)"),
        },
    ),
    Exercise(
        "Write your_dropout(x, p, training): each entry of x is dropped with probability p in "
        "training; evaluation needs no scaling.",
        _check_dropout,
        _solve_dropout,
        {
            "no scaling": Wrong(_forget_to_scale, "divided by 1 - p"),
            "scaling in evaluation": Wrong(_scale_in_evaluation, "belongs to training"),
            "p is what stays": Wrong(_keep_with_p, "share to drop"),
            "whole rows": Wrong(_drop_rows, "one for each entry"),
            "drop in evaluation": Wrong(_always_drop, "must come back unchanged"),
            "one mask for all": Wrong(_one_mask, "draw anew"),
        },
    ),
)
