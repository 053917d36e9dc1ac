"""The three questions of guide 17: settings in words, test pictures, a sick run."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np

from dlcourse.capstone.options import read
from dlcourse.data_splitting import wilson_interval
from dlcourse.lab.exercises import Exercise, Wrong, expect

FLAGS = (
    "--data folder pictures --size 28 --width 8 --batch-size 48 --epochs 8 "
    "--init default --test 0.25"
)
RIGHT, TESTED = 0.9, 90  # the share of the test pictures that is right, and their number
CAUSES = {
    "rate too high": {"lr": 10.0},
    "rate too low": {"lr": 1e-5},
    "labels shuffled": {"labels": "shuffled.csv"},
}
_DRAWN = np.random.default_rng(5).permutation(list(CAUSES)).tolist()
LETTERS = dict(zip("ABC", _DRAWN, strict=True))


def _check_words(words: Any) -> None:
    expect(isinstance(words, str), 'Give one text, such as "--lr 0.003".')
    one = read(shlex.split(f"{FLAGS} {words}"))[1]
    expect(
        one.batch_size == 48,
        "With another --batch-size the update is another one: divide it instead.",
    )
    expect(
        one.accumulation_steps == 4,
        "48 pictures do not fit, 12 do: in how many micro-batches is an update made?",
    )
    expect(one.patience == 3, "Three epochs without a better validation loss: patience.")
    expect(one.augment != "flip", "A mirrored three is no three: which augmentation?")
    expect(one.augment == "affine", "Which one turns each picture?")


def _width(count: int) -> float:
    low, high = wilson_interval(round(RIGHT * count), count)
    return high - low


def _check_count(count: Any) -> None:
    expect(isinstance(count, int) and count > 0, "Give a whole number of pictures.")
    expect(
        abs(count - 2 * TESTED) > 20,
        "The width falls with the square root of the number: twice as many make it "
        "narrower by a factor of 1.4 only.",
    )
    ratio = _width(TESTED) / _width(count)
    expect(
        abs(ratio - 2) < 0.1,
        f"With {count} pictures the interval is {ratio:.2f} times narrower, not 2 times.",
    )


def _check_diagnosis(answer: Any) -> None:
    expect(isinstance(answer, dict) and set(answer) == set("ABC"), "Name A, B and C.")
    hints = {
        "rate too high": "its first updates threw the loss far above guessing.",
        "rate too low": "its loss keeps to guessing, and nothing leaps.",
        "labels shuffled": "its training loss falls, its validation loss does not.",
    }
    for letter, cause in LETTERS.items():
        said = answer[letter]
        expect(said in CAUSES, f"{said!r}: choose one of {', '.join(CAUSES)}.")
        expect(said == cause, f"Look at run {letter} again: {hints[cause]}")


EXERCISES = [
    Exercise(
        "Memory suffices for 12 pictures at a time, but the update must stay one of 48. "
        "Stop after three epochs without a better validation loss. Let each picture be "
        "turned a little, too, and none mirrored (--augment: none; shift; flip mirrors and "
        "shifts; affine turns, moves and scales; colour; trivial makes one change, drawn "
        "for each picture, and shifts; mixup blends two).",
        _check_words,
        "--accumulation-steps 4 --patience 3 --augment affine",
        {"smaller batch": Wrong("--batch-size 12 --patience 3", "divide it instead")},
    ),
    Exercise(
        f"Of {TESTED} test pictures nine in ten are right. How many test pictures, with the "
        "same share, make the interval half as wide? (Within a twentieth.)",
        _check_count,
        360,
        {"twice as many": Wrong(180, "square root")},
    ),
    Exercise(
        "What is wrong with A, B and C? One of each: " + ", ".join(CAUSES) + ".",
        _check_diagnosis,
        LETTERS,
        {"in order": Wrong(dict(zip("ABC", CAUSES, strict=True)), "Look at run")},
    ),
]
