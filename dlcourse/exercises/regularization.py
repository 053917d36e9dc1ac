"""Exercises of chapter 3, regularization: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlcourse.lab.exercises import Exercise, Wrong, expect

# --- 1: the proximal step of L1 -----------------------------------------------------------


def _step_cases() -> list[tuple[Tensor, Tensor, float, float]]:
    """Return (w, grad, lr, strength) of many sizes, with entries near zero and far."""
    draw = torch.Generator().manual_seed(5)
    cases = []
    for shape, lr, strength in (
        ((40,), 0.2, 0.5),
        ((5, 8), 0.05, 2.0),
        ((1,), 1.0, 0.3),
        ((3, 2, 4), 0.5, 0.1),
        ((30,), 0.1, 0.0),
    ):
        w = torch.randn(shape, generator=draw) * 0.3
        grad = torch.randn(shape, generator=draw)
        cases.append((w, grad, lr, strength))
    return cases


def _shown_step(w: Tensor, grad: Tensor, lr: float, strength: float) -> Tensor:
    v = w - lr * grad
    return v.sign() * (v.abs() - lr * strength).clamp(min=0)


def _check_zeros(answer: Callable) -> None:
    cases = _step_cases()
    found = []
    for w, grad, lr, strength in cases:
        got = answer(w.clone(), grad.clone(), lr, strength)
        expect(got is not None, "Return the new w.")
        got = torch.as_tensor(got)
        expect(
            got.shape == w.shape,
            f"A w of shape {tuple(w.shape)} came back as {tuple(got.shape)}: return all of "
            "it.",
        )
        expect(bool(got.isfinite().all()), "The new w is not finite: do not divide by w.")
        found.append(got.to(w.dtype))

    def same(function: Callable) -> bool:
        results = [function(*case) for case in cases]
        pairs = zip(found, results, strict=True)
        return all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)

    if same(_shown_step):
        for got, case in zip(found, cases, strict=True):
            zero = _shown_step(*case) == 0
            expect(
                bool((got[zero] == 0).all()),
                "Entries that should be exactly 0 are only close to it: stop at 0.",
            )
        return

    for mistake, hint in _STEP_HINTS:
        expect(not same(mistake), hint)
    expect(False, _furthest_entry(found, cases))


def _furthest_entry(found: list[Tensor], cases: list) -> str:
    """Return a hint that shows the entry that is furthest from the right one."""
    gaps = []
    for got, case in zip(found, cases, strict=True):
        gaps.append((got - _shown_step(*case)).abs().flatten())
    number = int(torch.stack([gap.max() for gap in gaps]).argmax())
    place = int(gaps[number].argmax())
    w, grad, lr, strength = cases[number]
    wanted = _shown_step(w, grad, lr, strength).flatten()[place]
    return (
        f"w = {w.flatten()[place]:.4f}, gradient {grad.flatten()[place]:.4f}, lr {lr:g}, "
        f"strength {strength:g} gave {found[number].flatten()[place]:.4f}, wanted "
        f"{wanted:.4f}: first the gradient step, then lr * strength towards 0, and no "
        "further than 0."
    )


def _solve_zeros(w, grad, lr, strength):
    v = w - lr * grad
    return v.sign() * (v.abs() - lr * strength).clamp(min=0)


def _subgradient(w, grad, lr, strength):
    return w - lr * (grad + strength * w.sign())


def _l2_step(w, grad, lr, strength):
    return w - lr * (grad + strength * w)


def _l2_proximal(w, grad, lr, strength):
    return (w - lr * grad) / (1 + lr * strength)


def _hard_threshold(w, grad, lr, strength):
    v = w - lr * grad
    return torch.where(v.abs() > lr * strength, v, 0)


def _threshold_by_strength(w, grad, lr, strength):
    v = w - lr * grad
    return v.sign() * (v.abs() - strength).clamp(min=0)


def _threshold_first(w, grad, lr, strength):
    return w.sign() * (w.abs() - lr * strength).clamp(min=0) - lr * grad


def _truncated(w, grad, lr, strength):
    new = w - lr * (grad + strength * w.sign())
    return torch.where(new * w > 0, new, 0)


def _past_zero(w, grad, lr, strength):
    v = w - lr * grad
    return v - lr * strength * v.sign()


def _positive_only(w, grad, lr, strength):
    return (w - lr * grad - lr * strength).clamp(min=0)


def _no_sign(w, grad, lr, strength):
    return ((w - lr * grad).abs() - lr * strength).clamp(min=0)


def _old_sign(w, grad, lr, strength):
    v = w - lr * grad
    return w.sign() * (v.abs() - lr * strength).clamp(min=0)


def _uphill(w, grad, lr, strength):
    return _solve_zeros(w, -grad, lr, strength)


def _no_gradient(w, grad, lr, strength):
    return _solve_zeros(w, torch.zeros_like(grad), lr, strength)


def _gradient_only(w, grad, lr, strength):
    return w - lr * grad


_STEP_HINTS = (
    (
        _subgradient,
        "This is the gradient of the penalty: it jumps over 0 and back, and hits 0 only by "
        "accident. Take the gradient step first, then move towards 0 and stop there.",
    ),
    (
        _past_zero,
        "The second move starts after the gradient step, as it should, but it jumps over 0: "
        "stop there.",
    ),
    (
        _l2_step,
        "A step that shrinks by a share, as L2 does, comes close to 0 and never gets there: "
        "move by a fixed length, and stop at 0.",
    ),
    (
        _l2_proximal,
        "Dividing shrinks by a share, which is the proximal step of L2 and never gets to 0: "
        "move by a fixed length, and stop at 0.",
    ),
    (
        _hard_threshold,
        "You cut off the short ones and leave the long ones: those must shrink too, by "
        "lr * strength.",
    ),
    (
        _threshold_by_strength,
        "You moved by strength towards 0: one step of rate lr moves by lr * strength.",
    ),
    (
        _threshold_first,
        "You moved towards 0 first: take the gradient step first, then move what came out.",
    ),
    (
        _truncated,
        "You set to 0 what the step would carry over 0. That gives exact zeros, but it is "
        "the truncated gradient and not the proximal step: no entry can change its sign, "
        "not even where the gradient alone carries it over 0. Take the gradient step first.",
    ),
    (_positive_only, "Entries below 0 became 0: they must move up towards 0."),
    (_no_sign, "The signs are lost: put back the sign of what the gradient step gave."),
    (
        _old_sign,
        "You put back the sign of w, and the gradient step may have changed it: take the "
        "sign of what came out of that step.",
    ),
    (_uphill, "You went up the gradient: subtract lr * grad."),
    (_no_gradient, "The gradient has no effect: subtract lr * grad first."),
    (
        _gradient_only,
        "The penalty has no effect: after the gradient step move towards 0.",
    ),
)

# --- 2: parameter groups ------------------------------------------------------------------


class _Block(nn.Module):
    """A model whose names say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 4, 3, bias=False)
        self.second = nn.BatchNorm1d(4)
        self.third = nn.RMSNorm(4)
        self.fourth = nn.Linear(4, 3)


def _group_models() -> list[nn.Module]:
    first = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4, affine=True),
        nn.Flatten(),
        nn.Linear(4, 4),
        nn.LayerNorm(4),
        nn.Linear(4, 2, bias=False),
        nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 1))),
    )
    second = nn.ModuleDict({"scale": nn.LayerNorm(3), "norm": nn.Linear(3, 2)})
    tied = nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)})
    tied["two"].weight = tied["one"].weight
    words = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm([5, 4]), nn.Linear(4, 9))
    return [first, second, _Block(), tied, words]


_DECAYS = (0.1, 0.3, 0.02, 0.7, 0.4)  # of each model


def _must_decay(model: nn.Module) -> dict[str, bool]:
    """Return, for each parameter, whether it belongs to a linear or convolution layer
    and is no bias.
    """
    answers = {}
    for name, _ in model.named_parameters():
        owner, _, last = name.rpartition(".")
        layer = model.get_submodule(owner)
        matrix = isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))
        answers[name] = matrix and last == "weight"
    return answers


def _check_groups(answer: Callable) -> None:
    for model, weight_decay in zip(_group_models(), _DECAYS, strict=True):
        groups = answer(model, weight_decay)
        expect(
            groups is not None,
            "Return a list of dictionaries, as a torch optimizer takes it.",
        )
        try:
            found = torch.optim.AdamW(list(groups), lr=0.1, weight_decay=0.0123)
        except (TypeError, ValueError, KeyError) as error:
            expect(False, f"torch's AdamW does not take these groups: {error}")
        decay = {}
        for group in found.param_groups:
            for weight in group["params"]:
                decay[id(weight)] = float(group["weight_decay"])
        _check_decays(model, decay, weight_decay)


def _check_decays(model: nn.Module, decay: dict[int, float], wanted: float) -> None:
    numbers = {name: id(weight) for name, weight in model.named_parameters()}
    lost = [name for name, number in numbers.items() if number not in decay]
    expect(
        not lost,
        f"{', '.join(lost)} would never be trained: each parameter itself, and no copy, must "
        "be in a group, also those that do not decay, and those of layers inside layers.",
    )
    got = {name: decay[number] for name, number in numbers.items()}
    by_default = [name for name, value in got.items() if value == 0.0123]
    expect(
        not by_default,
        f"{', '.join(by_default)}: a group without the key weight_decay gets the "
        "optimizer's default, 0.01 in AdamW. Write the number.",
    )
    frozen = [
        name for name, weight in model.named_parameters() if not weight.requires_grad
    ]
    expect(
        not frozen,
        f"{', '.join(frozen)} no longer trains: what does not decay is still trained.",
    )
    must = _must_decay(model)
    expect(
        len(set(got.values())) > 1,
        "Everything is treated alike, weight matrices, biases and norms: you need a group "
        "with weight_decay 0, and one with the number given.",
    )
    for name, decays in must.items():
        layer = type(model.get_submodule(name.rpartition(".")[0])).__name__
        if decays:
            expect(
                got[name] != 0,
                f"{name}, the weight of a {layer}, must decay, and does not.",
            )
            expect(
                abs(got[name] - wanted) < 1e-9,
                f"{name} decays by {got[name]:g}, wanted {wanted:g}: use the argument.",
            )
        elif name.endswith("bias"):
            expect(got[name] == 0, f"{name}, of a {layer}, decays: a bias must not.")
        elif layer == "Embedding":
            expect(
                got[name] == 0,
                f"{name} decays: it has two dimensions, but it is the weight of an "
                "Embedding. Go by the layer.",
            )
        else:
            expect(
                got[name] == 0,
                f"{name} decays: it is the scale of a norm layer, {layer}, though its name "
                "says weight. Go by the layer.",
            )


def _solve_groups(model, weight_decay):
    matrices = {}  # by the number of each, so that a shared one is there once
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            matrices[id(layer.weight)] = layer.weight
    others = [weight for weight in model.parameters() if id(weight) not in matrices]
    return [
        {"params": list(matrices.values()), "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _by_dimensions(model, weight_decay):
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


def _two_norms_only(model, weight_decay):
    spared = []
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
            spared += list(layer.parameters())
    numbers = [id(weight) for weight in spared]
    named = list(model.named_parameters())
    for name, weight in named:
        if name.endswith("bias") and id(weight) not in numbers:
            spared.append(weight)
    numbers = [id(weight) for weight in spared]
    others = [weight for _, weight in named if id(weight) not in numbers]
    return [
        {"params": others, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]


def _by_name(model, weight_decay):
    named = list(model.named_parameters())
    spared = [w for name, w in named if name.endswith("bias") or "norm" in name]
    others = [w for name, w in named if not (name.endswith("bias") or "norm" in name)]
    return [
        {"params": others, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]


def _always_a_tenth(model, weight_decay):
    return _solve_groups(model, 0.1)


# --- 3: decoupled decay -------------------------------------------------------------------


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


def _run_updates(answer: Callable, shape, lr: float, decay: float, scale: float):
    """Return (the weights after 50 updates, how often the answer called adam)."""
    draw = torch.Generator().manual_seed(len(shape))
    w, adam = torch.randn(shape, generator=draw), _Adam(lr)
    for _ in range(50):
        grad = torch.randn(shape, generator=draw) * scale
        w = answer(w.clone(), grad, adam, lr, decay)
        expect(w is not None, "Return the new w.")
        w = torch.as_tensor(w, dtype=torch.float32)
        expect(w.shape == shape, f"A w of shape {tuple(shape)} became {tuple(w.shape)}.")
    return w, adam.t


_UPDATE_CASES = (
    (torch.Size([4]), 0.01, 0.5, 100.0),
    (torch.Size([2, 3]), 0.02, 0.3, 0.01),
    (torch.Size([5]), 0.005, 2.0, 0.0),
)


def _check_decoupled(answer: Callable) -> None:
    found = []
    for case in _UPDATE_CASES:
        w, calls = _run_updates(answer, *case)
        expect(
            calls == 50,
            f"Call adam once a step: it keeps running means. In 50 steps you called it "
            f"{calls} times.",
        )
        found.append(w)

    def same(function: Callable) -> bool:
        results = [_run_updates(function, *case)[0] for case in _UPDATE_CASES]
        pairs = zip(found, results, strict=True)
        return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)

    if same(_solve_decoupled) or same(_decay_last):
        return
    for mistake, hint in _DECAY_HINTS:
        expect(not same(mistake), hint)
    expect(
        False,
        "After 50 steps the weights are others: shrink w by the share lr * weight_decay, "
        "and subtract adam(grad), of the gradient alone.",
    )


def _solve_decoupled(w, grad, adam, lr, weight_decay):
    return w * (1 - lr * weight_decay) - adam(grad)


def _decay_last(w, grad, adam, lr, weight_decay):
    return (w - adam(grad)) * (1 - lr * weight_decay)


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


def _rate_twice(w, grad, adam, lr, weight_decay):
    return w * (1 - lr * weight_decay) - lr * adam(grad)


def _grow(w, grad, adam, lr, weight_decay):
    return w * (1 + lr * weight_decay) - adam(grad)


def _decay_by_length(w, grad, adam, lr, weight_decay):
    return w - lr * weight_decay * w.sign() - adam(grad)


def _step_unused(w, grad, adam, lr, weight_decay):
    adam(grad)
    return w * (1 - lr * weight_decay)


_DECAY_HINTS = (
    (
        _decay_in_the_gradient,
        "The decay went through Adam, which divides its size away: that is L2. Keep it out "
        "of the gradient.",
    ),
    (
        _decay_without_lr,
        "The weights shrank by weight_decay in one step: the share is lr * weight_decay.",
    ),
    (_no_decay, "Nothing decays: without a gradient the weights must still decay."),
    (
        _decay_twice,
        "It decays twice, outside of Adam and in its gradient: keep the first only.",
    ),
    (_add_the_step, "You went up the gradient: subtract adam(grad)."),
    (_rate_twice, "adam(grad) holds the rate already: do not multiply by lr again."),
    (_grow, "The weights grow: the factor is 1 - lr * weight_decay."),
    (
        _decay_by_length,
        "All weights moved by one length, as L1 does: decay is a share of w.",
    ),
    (_step_unused, "The step of Adam has no effect: subtract adam(grad)."),
)

# --- 4: dropout ---------------------------------------------------------------------------


def _check_dropout(answer: Callable) -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(40, 50, generator=draw) + 3
    kept = x.clone()
    got = answer(x, 0.2, False)
    expect(
        isinstance(got, Tensor), "Return a torch tensor: gradients must pass through it."
    )
    expect(
        torch.equal(x, kept),
        "You changed x itself: the layer before may need it. Return a new tensor.",
    )
    expect(
        got.shape == x.shape, f"x is {tuple(x.shape)} and came back {tuple(got.shape)}."
    )
    got = got.to(x.dtype)
    dropped = (got == 0).float().mean().item()
    expect(
        dropped < 0.05,
        f"In evaluation {dropped:.0%} of the entries were dropped: x must come back "
        "unchanged.",
    )
    expect(
        torch.equal(got, x),
        "In evaluation x must come back unchanged: the scaling belongs to training.",
    )
    for p in (0.2, 0.6):
        _check_masks(answer, x, p)
    _check_gradients(answer)
    _check_ends(answer, x)


def _check_masks(answer: Callable, x: Tensor, p: float) -> None:
    before = x.clone()
    got = answer(x, p, True)
    expect(
        isinstance(got, Tensor), "Return a torch tensor: gradients must pass through it."
    )
    expect(
        torch.equal(x, before),
        "You changed x itself: the layer before may need it. Return a new tensor.",
    )
    expect(
        got.shape == x.shape, f"x is {tuple(x.shape)} and came back {tuple(got.shape)}."
    )
    got = got.to(x.dtype)
    dropped = got == 0
    share = dropped.float().mean().item()
    expect(
        bool(dropped.any()), f"With p = {p:g} nothing was dropped: entries must become 0."
    )
    rows = (dropped.all(0) | (~dropped).all(0)).all() or (
        dropped.all(1) | (~dropped).all(1)
    ).all()
    expect(not rows, "Whole rows or columns share one decision: draw one for each entry.")
    expect(
        abs(share - 1 + p) > 0.05,
        f"With p = {p:g} you dropped {share:.0%}: p is the share to drop, not to keep.",
    )
    expect(
        abs(share - p) < 0.05,
        f"With p = {p:g} you dropped {share:.0%} of the entries.",
    )
    factors = (got / x)[~dropped]
    expect(
        not torch.allclose(factors, torch.ones(())),
        "What is kept must be divided by 1 - p, or the mean falls by the share dropped, and "
        "the network sees larger inputs in evaluation.",
    )
    expect(
        torch.allclose(factors, torch.tensor(1 / (1 - p))),
        f"With p = {p:g} entries that are kept were multiplied by {factors.mean():.5g} on "
        f"average, wanted 1 / (1 - p) = {1 / (1 - p):.5g} for each, in every draw.",
    )
    again = answer(x, p, True).to(x.dtype) == 0
    expect(
        not torch.equal(again, dropped), "Two calls dropped the same entries: draw anew."
    )
    counts = []
    for _ in range(20):
        counts.append(int((answer(torch.ones(100), p, True) == 0).sum()))
    expect(
        len(set(counts)) > 1,
        f"Of 100 entries exactly {counts[0]} are dropped each time: each entry must be "
        "dropped on its own, whatever happens to the others.",
    )


def _check_gradients(answer: Callable) -> None:
    leaf = torch.rand(7, 3, 4) + 1
    leaf.requires_grad_()
    got = answer(leaf * 1, 0.4, True)
    expect(
        got.requires_grad,
        "No gradient passes through: the result is cut off from x by detach, NumPy or "
        "no_grad.",
    )
    expect(
        answer(leaf * 1, 0.4, False).requires_grad,
        "No gradient passes through in evaluation: x comes back as it is, not detached.",
    )
    got.sum().backward()
    wanted = torch.where(got == 0, 0.0, 1 / 0.6)
    assert leaf.grad is not None
    expect(
        torch.allclose(leaf.grad, wanted),
        "The gradient must be 1 / (1 - p) where an entry was kept and 0 where it was "
        "dropped: multiply x by a mask.",
    )


def _check_ends(answer: Callable, x: Tensor) -> None:
    got = answer(x.clone(), 0.0, True)
    expect(torch.equal(got.to(x.dtype), x), "With p = 0 nothing may be dropped.")
    try:
        got = answer(x.clone(), 1.0, True)
    except ZeroDivisionError:
        expect(False, "With p = 1 your code divides by 0: all entries must be 0.")
    expect(
        not bool(got.isnan().any()),
        "With p = 1 the result is NaN, from 0 / 0: all entries must be 0.",
    )
    expect(bool((got == 0).all()), "With p = 1 all entries must be 0.")


def _solve_dropout(x, p, training):
    if not training:
        return x
    if p == 1:
        return x * 0
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


def _detached(x, p, training):
    if not training:
        return x
    return x.detach() * (torch.rand_like(x) >= p) / (1 - p)


def _through_numpy(x, p, training):
    if not training:
        return x
    keep = (torch.rand(x.shape) >= p).numpy()
    return x.detach().numpy() * keep / (1 - p)


def _in_place(x, p, training):
    if training:
        x *= (torch.rand_like(x) >= p) / (1 - p)
    return x


def _exact_count(x, p, training):
    if not training:
        return x
    order = torch.rand(x.numel()).argsort()
    keep = torch.ones(x.numel())
    keep[order[: round(p * x.numel())]] = 0
    return x * keep.view(x.shape) / max(1 - p, 1e-9)


def _nan_at_one(x, p, training):
    return x * (torch.rand_like(x) >= p) / (1 - p) if training else x


EXERCISES = (
    Exercise(
        "Write your_step(w, grad, lr, strength): one proximal step for a loss with an L1 "
        "penalty. First the gradient step on w, with the gradient `grad` of the loss "
        "alone; then each entry of what came out moves by lr * strength towards 0, and "
        "stops there. w has any shape. Returns the new w.",
        _check_zeros,
        _solve_zeros,
        {
            "subgradient L1 sparsifies": Wrong(_subgradient, "jumps over 0 and back"),
            "no stop": Wrong(_past_zero, "jumps over 0: stop"),
            "L2 sparsifies": Wrong(_l2_step, "never gets there"),
            "the proximal step of L2": Wrong(_l2_proximal, "Dividing shrinks"),
            "cut off the small ones": Wrong(_hard_threshold, "must shrink too"),
            "forget the rate": Wrong(_threshold_by_strength, "lr * strength"),
            "threshold first": Wrong(_threshold_first, "gradient step first"),
            "the truncated gradient": Wrong(_truncated, "truncated gradient"),
            "positive weights only": Wrong(_positive_only, "below 0 became 0"),
            "forget the sign": Wrong(_no_sign, "signs are lost"),
            "the sign before the step": Wrong(_old_sign, "sign of w"),
            "uphill": Wrong(_uphill, "up the gradient"),
            "no gradient": Wrong(_no_gradient, "gradient has no effect"),
            "no penalty": Wrong(_gradient_only, "penalty has no effect"),
        },
    ),
    Exercise(
        "Write your_groups(model, weight_decay): parameter groups for torch.optim.AdamW. "
        "The weights of linear and convolution layers decay by weight_decay. Biases, the "
        "scales of norm layers (batch, group, instance, layer or RMS norm, also over two "
        "dimensions), and the weights of nn.Embedding do not decay. All are trained.",
        _check_groups,
        _solve_groups,
        {
            "decay everything": Wrong(_decay_everything, "a group with weight_decay 0"),
            "biases only": Wrong(_spare_biases_only, "scale of a norm layer"),
            "leave them out": Wrong(_leave_out, "never be trained"),
            "trust the default": Wrong(_no_key, "Write the number"),
            "the wrong way round": Wrong(_groups_swapped, "must decay"),
            "two kinds of norm": Wrong(_two_norms_only, "GroupNorm"),
            "go by the name norm": Wrong(_by_name, "scale of a norm layer"),
            "go by the dimensions": Wrong(_by_dimensions, "Go by the layer"),
            "always 0.1": Wrong(_always_a_tenth, "use the argument"),
        },
    ),
    Exercise(
        "Write your_update(w, grad, adam, lr, weight_decay): one update of the tensor w with "
        "decoupled weight decay. `adam(g)` returns Adam's step for a gradient g, rate "
        "included, to be subtracted; it keeps the running means, so call it once. Returns "
        "the new w.",
        _check_decoupled,
        _solve_decoupled,
        {
            "L2 in the gradient": Wrong(_decay_in_the_gradient, "went through Adam"),
            "forget the rate": Wrong(_decay_without_lr, "lr * weight_decay"),
            "no decay": Wrong(_no_decay, "must still decay"),
            "both": Wrong(_decay_twice, "decays twice"),
            "the wrong sign": Wrong(_add_the_step, "subtract adam(grad)"),
            "the rate twice": Wrong(_rate_twice, "holds the rate already"),
            "growth": Wrong(_grow, "grow"),
            "a fixed length": Wrong(_decay_by_length, "as L1 does"),
            "the step unused": Wrong(_step_unused, "has no effect"),
        },
    ),
    Exercise(
        "Write your_dropout(x, p, training): in training each entry of x, a torch tensor of "
        "any shape, is set to 0 with probability p, each on its own and anew in every call, "
        "and the others are scaled so that the mean stays. In evaluation x comes back "
        "unchanged. x itself is not changed, gradients pass through the result, and p may "
        "be anything from 0 to 1.",
        _check_dropout,
        _solve_dropout,
        {
            "no scaling": Wrong(_forget_to_scale, "divided by 1 - p"),
            "scaling in evaluation": Wrong(_scale_in_evaluation, "belongs to training"),
            "p is what stays": Wrong(_keep_with_p, "share to drop"),
            "whole rows": Wrong(_drop_rows, "one for each entry"),
            "drop in evaluation": Wrong(_always_drop, "must come back unchanged"),
            "one mask for all": Wrong(_one_mask, "draw anew"),
            "detached": Wrong(_detached, "No gradient passes"),
            "through NumPy": Wrong(_through_numpy, "Return a torch tensor"),
            "in place": Wrong(_in_place, "changed x itself"),
            "exactly p n entries": Wrong(_exact_count, "on its own"),
            "NaN at p = 1": Wrong(_nan_at_one, "With p = 1"),
        },
    ),
)
