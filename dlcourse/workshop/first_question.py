"""The exercise of guide 00: the first loss of a network."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlcourse.lab.exercises import Exercise, Wrong, expect


def first_loss(classes: int) -> Exercise:
    """Return guide 00's question: the cross entropy where all classes are equally likely."""
    right = float(np.log(classes))

    def check(answer: Any) -> None:
        expect(hasattr(answer, "__float__"), "Give a number, such as 1.5.")
        number = float(answer)
        expect(
            abs(number - 1 / classes) > 0.01,
            "That is the probability of each class. The loss is minus its logarithm.",
        )
        expect(
            abs(number - np.log2(classes)) > 0.01,
            "That is the loss in bits. PyTorch uses the natural logarithm.",
        )
        expect(
            abs(number + right) > 0.01,
            "The size is right and the sign is not: a loss is minus a logarithm.",
        )
        expect(
            abs(number - right) < 0.01,
            "Cross entropy is minus the logarithm of the probability of the right class. "
            "How large is that probability, if all classes get the same?",
        )

    return Exercise(
        f"A network gives each of {classes} classes the same probability. What is its cross "
        "entropy, as PyTorch computes it, to two decimals?",
        check,
        right,
        {"the probability": Wrong(1 / classes, "minus its logarithm")},
    )
