"""The questions of guide 00: which difference may be claimed, and the first loss."""

from __future__ import annotations

import re
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


CASES = {
    "A": "mean 0.012, interval [0.003, 0.021]; both rates tuned on the same grid",
    "B": "mean 0.031, interval [-0.004, 0.066]; both rates tuned on the same grid",
    "C": "mean 0.045, interval [0.020, 0.070]; its rate tuned, the baseline's left as it was",
}


def letters_in(answer: Any) -> set[str]:
    """Return the letters of the cases that an answer names, such as "A and B" or ["a"].

    Raises Hint where it names anything else.
    """
    parts = [answer] if isinstance(answer, str) else answer
    known = isinstance(parts, (list, tuple, set, frozenset))
    known = isinstance(answer, str) or (known and all(isinstance(p, str) for p in parts))
    expect(known, 'Give the letters as text, such as "AB".')
    words = re.findall(r"[^\W_]+", " ".join(parts).upper())
    letters = set("".join(word for word in words if word != "AND"))
    expect(letters <= set(CASES), f"Give letters of {', '.join(CASES)} only.")
    return letters


def which_to_claim() -> Exercise:
    """Return guide 00's question on intervals: which gains may be claimed?"""

    def check(answer: Any) -> None:
        letters = letters_in(answer)
        expect(
            "B" not in letters,
            "The interval of B holds 0, so these seeds do not tell a gain from none. "
            "That its mean is larger than another's changes nothing.",
        )
        expect(
            "C" not in letters,
            "The interval of C leaves out 0, but only one side was tuned: the gain may "
            "be that of the tuning.",
        )
        expect(
            "A" in letters,
            "One of the three keeps both parts of the rule. A gain may be small, and "
            "still be one.",
        )

    cases = "\n".join(f"  {letter}: {text}" for letter, text in CASES.items())
    return Exercise(
        "Three techniques, each minus its baseline, seed by seed (accuracy):\n"
        f'{cases}\nWhich may be claimed as gains? Write the letters, such as "AB".',
        check,
        "A",
        {
            "the largest mean": Wrong("C", "only one side was tuned"),
            "every mean above 0": Wrong("ABC", "holds 0"),
            "every interval without 0": Wrong("AC", "only one side was tuned"),
            "none": Wrong("", "keeps both parts"),
        },
    )
