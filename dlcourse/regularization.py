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
