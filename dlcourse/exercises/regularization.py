"""Exercises of chapter 3, regularization: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlcourse.lab.exercises import Exercise, Wrong, expect


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
