"""Exercises: the answers of somebody who had seen the questions, and never a check.

Each module of tests/strangers holds, by the number of an exercise, RIGHT: unusual answers
that are right by the words of the question; WRONG: pairs of what learners write and why it
is wrong. Where the question decides neither, an answer is not here.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from answers import accepts

from dlcourse.exercises import data_loading, parallelism
from dlcourse.lab.exercises import BLANK

NAMES = sorted(path.stem for path in Path(__file__).with_name("strangers").glob("*.py"))
CASES = [
    (name, number)
    for name in NAMES
    for number in importlib.import_module(f"strangers.{name}").RIGHT
]


def of(name: str, number: int) -> tuple:
    """Return an exercise, the right answers to it, and the wrong ones with the reasons."""
    answers = importlib.import_module(f"strangers.{name}")
    exercise = importlib.import_module(f"dlcourse.exercises.{name}").EXERCISES[number]
    return exercise, answers.RIGHT[number], answers.WRONG[number]


@pytest.mark.parametrize("name, number", CASES)
def test_right_answers_are_accepted(name, number):
    exercise, right, _ = of(name, number)
    assert len(right) >= 5
    for answer in right:
        accepts(exercise, answer)


@pytest.mark.parametrize("name, number", CASES)
def test_wrong_answers_are_rejected(name, number, monkeypatch):
    exercise, _, wrong = of(name, number)
    for waits in (data_loading, parallelism):  # some of the wrong ones wait for ever
        monkeypatch.setattr(waits, "PATIENCE", 1.0)
    assert len(wrong) >= 10
    for answer, why in wrong:
        hint = exercise.hint_for(answer)
        assert hint is not None and hint != BLANK, why
