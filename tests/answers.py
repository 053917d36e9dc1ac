"""What the tests of exercises ask of a check: it accepts an answer, or rejects it in words."""

from __future__ import annotations

from dlcourse.lab.exercises import Exercise


def accepts(exercise: Exercise, answer: object) -> None:
    """Assert that an answer is right."""
    assert exercise.hint_for(answer) is None


def rejects(exercise: Exercise, answer: object, words: str) -> None:
    """Assert that an answer is wrong, with a hint that holds these words."""
    hint = exercise.hint_for(answer)
    assert hint is not None and words in hint, hint
