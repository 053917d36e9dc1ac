"""The bytes that weights, gradients, optimizer and activations take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Bytes a number, by what it is: weight, gradient, master copy, optimizer state,
    activation.

    `copies`: bytes a weight for the 16-bit copy that autocast keeps for the backward
    pass.
    """

    weights: int
    gradients: int
    master: int
    states: int
    activations: int
    copies: int = 0


RECIPES = {
    "float32": Recipe(4, 4, 0, 4, 4),
    "autocast": Recipe(4, 4, 0, 4, 2, copies=2),
    "master": Recipe(2, 2, 4, 4, 2),
    "master, gradients moved": Recipe(2, 4, 4, 4, 2),  # MasterWeightOptimizer
    "16-bit only": Recipe(2, 2, 0, 2, 2),
}


def memory_estimate(
    parameters: int, recipe: str | Recipe, *, states: int = 2, activations: int = 0
) -> dict[str, int]:
    """Return the bytes that training takes, by part, with their "total".

    `parameters`: numbers in the model. `states`: numbers an optimizer keeps for each
    (Adam 2, momentum 1, SGD 0). `activations`: numbers saved for the backward pass. Not
    counted: the data, workspace, and what the allocator keeps. Raises ValueError for
    unknown recipes and counts below 0. Source: Rajbhandari et al. (2020), whose 16 bytes
    a parameter are recipe "master".
    Invariant: "total" is the sum of the others; it is linear in the counts.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"no recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    if min(parameters, states, activations) < 0:
        raise ValueError("parameters, states and activations are counts: give 0 or more")
    parts = {
        "weights": parameters * recipe.weights,
        "gradients": parameters * recipe.gradients,
        "master": parameters * recipe.master,
        "states": parameters * states * recipe.states,
        "activations": activations * recipe.activations,
        "copies": parameters * recipe.copies,
    }
    return parts | {"total": sum(parts.values())}
