"""The idea: every weight gets a leading dimension, and one product serves all replicas.

A chain of linear layers and activations runs as batched matrix products, any other model
under `torch.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.utils._pytree import tree_map

from dlcourse.lab.models import ACTIVATIONS, MLP
from dlcourse.lab.trials.noise import DropoutNoise, is_dropout
from dlcourse.lab.trials.settings import Job

ELEMENTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity,
)  # fmt: skip


Model = TypeVar("Model", bound=nn.Module)


class StackError(RuntimeError):
    """Raised where the replicas cannot be stacked."""


def built(build: Callable[[int], Model], seeds: Sequence[int], rates: int) -> list[Model]:
    """Return the first model of each rate and seed: one object for all rates of a seed,
    where the seed alone decides.

    Building takes milliseconds, most of them `torch.manual_seed`. A second model of the
    first seed tells whether `build` draws without a seed; then each rate has its own.
    """
    models = [build(seed) for seed in seeds]
    if rates == 1:
        return models
    state = torch.get_rng_state()
    again = build(seeds[0])
    pairs = zip(models[0].state_dict().values(), again.state_dict().values(), strict=True)
    if all(torch.equal(one, other) for one, other in pairs):
        torch.set_rng_state(state)
        return models * rates
    left = [*seeds[1:], *[seed for _ in range(rates - 2) for seed in seeds]]
    return [*models, again, *[build(seed) for seed in left]]


def each(function: Callable, replicas: int) -> Callable:
    """Return the function for values that have a leading dimension of replicas.

    One replica needs no vmap, which lets a function look at its values.
    """
    if replicas > 1:
        return torch.vmap(function, randomness="different")

    def alone(*values):
        outputs = function(*tree_map(lambda value: value[0], values))
        return tree_map(lambda value: value.unsqueeze(0), outputs)

    return alone


def chain_forward(steps: list[Callable | list[int]]) -> Callable:
    """Return a function of the stacked weights and x (replicas, batch, ...) to outputs.

    It holds the values as (replicas, units, batch): so the gradients of the weights come
    out contiguous, and the softmax runs over a dimension that is not the last, which is
    many times faster for few classes.
    """

    def forward(weights: list[Tensor], x: Tensor) -> Tensor:
        x = x.flatten(2).mT
        for step in steps:
            if not isinstance(step, list):
                x = step(x)
            elif len(step) == 2:
                weight, bias = weights[step[0]], weights[step[1]]
                x = torch.baddbmm(bias.unsqueeze(2), weight, x)
            else:
                x = torch.bmm(weights[step[0]], x)
        return x.mT

    return forward


class Stack:
    """The parameters of all replicas: `weights`, each (replicas, ...), are views of
    `flat`.

    `flat` is (replicas, parameters a replica), so that an optimizer has one tensor to
    update.
    """

    def __init__(self, models: list[nn.Module]):
        self.skeleton = models[0].train()
        try:
            params, self.buffers = stack_module_state(models)
        except (RuntimeError, ValueError) as error:
            raise StackError(str(error).splitlines()[0]) from error
        trained = {name: p.detach() for name, p in params.items() if p.requires_grad}
        self.names = list(trained)
        self.frozen = {name: p for name, p in params.items() if name not in trained}
        if len({p.dtype for p in trained.values()}) != 1:
            raise StackError("its trained parameters are not all of one dtype")
        self.flat = torch.cat([p.reshape(len(models), -1) for p in trained.values()], 1)
        self.weights = []
        self.shapes = [p.shape for p in trained.values()]
        self.sizes = [p[0].numel() for p in trained.values()]
        self.weights = [weight.requires_grad_() for weight in self.views(self.flat)]
        self.grad = torch.empty_like(self.flat)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the parameters, each (replicas, ...), as views of a `flat` tensor."""
        parts = flat.split(self.sizes, dim=1)
        return [
            part.view(shape).detach()
            for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def flatten(self, grads) -> Tensor:
        """Return the gradients in the shape of `flat`, in a buffer that the next call
        reuses.
        """
        parts = [grad.reshape(len(self.flat), -1) for grad in grads]
        return torch.cat(parts, 1, out=self.grad)


def stacked_forward(
    job: Job, stack: Stack, noise: DropoutNoise
) -> Callable[[list[Tensor], Tensor], Tensor]:
    """Return a function of the stacked weights and x (replicas, batch, ...) to all
    outputs.
    """
    steps = _chain(stack)
    if steps:
        # for the model's own words on inputs that do not fit
        first = job.inputs[0, :1] if job.own_rows else job.inputs[:1]
        noise.measure(stack.skeleton, first)
        return chain_forward(steps)

    def forward_one(values, frozen, buffers, masks, x):
        weights = dict(zip(stack.names, values, strict=True))
        with noise.handed_out(masks):
            return functional_call(stack.skeleton, (weights, frozen, buffers), x)

    forward = each(forward_one, job.replicas)

    def all_at_once(weights, x):
        return forward(weights, stack.frozen, stack.buffers, noise.rest(), x)

    return all_at_once


def _chain(stack: Stack) -> list:
    """Return the steps of a chain, or [] where the model is none: places of weights for
    a linear layer, a function for all else.
    """
    position = {name: number for number, name in enumerate(stack.names)}
    names = {id(p): name for name, p in stack.skeleton.named_parameters()}
    steps = []
    for piece in _pieces(stack.skeleton):
        if type(piece) is nn.Linear:
            pair = [names[id(p)] for p in (piece.weight, piece.bias) if p is not None]
            if any(name not in position for name in pair):  # frozen
                return []
            steps.append([position[name] for name in pair])
        elif is_dropout(piece):
            steps.append(piece.in_chain)
        elif isinstance(piece, nn.Module) and type(piece) not in ELEMENTWISE:
            return []
        elif type(piece) in ELEMENTWISE or piece in ACTIVATIONS.values():
            steps.append(piece)
        else:  # somebody's function, which may mix units or rows but never replicas
            steps.append(_one_by_one(piece))
    return steps


def _one_by_one(activation) -> Callable[[Tensor], Tensor]:
    activation = torch.vmap(activation, randomness="different")
    return lambda x: activation(x.mT).mT


def _pieces(model: nn.Module) -> list:
    """Return the layers and functions that a model applies to flat rows, or [] if it has
    others.
    """
    own_forward = any("forward" in vars(module) for module in model.modules())
    if own_forward or any(_has_hooks(module) for module in model.modules()):
        return []
    if type(model) is MLP:
        hidden = [piece for layer in model.layers for piece in (layer, model.activation)]
        return [*hidden, model.head]
    if type(model) is nn.Sequential and len(model) and _is_flatten(model[0]):
        return list(model)[1:]
    return []


def _has_hooks(module: nn.Module) -> bool:
    names = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
    )
    return any(getattr(module, name) for name in names)


def _is_flatten(module: nn.Module) -> bool:
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
