"""Exercises of chapter 1, data splitting: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import numpy as np

from dlcourse.data_splitting import cross_val_score, kfold_indices
from dlcourse.lab.exercises import Exercise, Wrong, expect


class _Recorder:
    """A scaler and a model in one row of parts: notes the numbers of the rows that it is
    shown.

    Column 0 of the inputs is the row's number; transform adds 1000 to it.
    """

    def __init__(self, log: list, role: str) -> None:
        self.log, self.role = log, role

    def _note(self, what: str, inputs) -> None:
        self.log.append(
            (f"{self.role} {what}", [float(v) for v in np.asarray(inputs)[:, 0]])
        )

    def fit(self, inputs, targets=None):
        self._note("fit", inputs)
        return self

    def transform(self, inputs):
        self._note("transform", inputs)
        return np.asarray(inputs) + 1000.0

    def fit_transform(self, inputs, targets=None):
        return self.fit(inputs).transform(inputs)

    def score(self, inputs, targets):
        self._note("score", inputs)
        return float(np.mean(np.asarray(inputs)[:, 0])) / 7


def _check_scaler(answer) -> None:
    inputs = np.arange(12.0)[:, None] * np.ones((1, 2))
    targets = np.arange(12) % 2
    folds = kfold_indices(12, 3, shuffle=True, seed=1)
    log: list = []

    def make_scaler():
        log.append(("new scaler", []))
        return _Recorder(log, "scaler")

    def make_model():
        return _Recorder(log, "model")

    scores = answer(make_scaler, make_model, inputs, targets, folds)
    of = {what: [rows for name, rows in log if name == what] for what, _ in log}
    wanted = [train.tolist() for train, _ in folds]
    for rows in of.get("scaler fit", []):
        expect(
            len(rows) < 12,
            "The scaler was fitted on all rows: it has seen the rows that it is later tested on.",
        )
        expect(
            sorted(rows) not in [held.tolist() for _, held in folds],
            "The scaler was fitted on held-out rows. They may only be transformed, with what the "
            "training rows taught.",
        )
    expect(
        [sorted(rows) for rows in of.get("scaler fit", [])] == wanted,
        "Fit a scaler in each fold, on the training rows of that fold.",
    )
    expect(
        [sorted(v - 1000 for v in rows) for rows in of.get("model fit", [])] == wanted,
        "The model must be fitted on the transformed training rows of each fold.",
    )
    expect(
        [sorted(v - 1000 for v in rows) for rows in of.get("model score", [])]
        == [held.tolist() for _, held in folds],
        "The held-out rows must be transformed too, by the scaler of the training rows, before "
        "they are scored.",
    )
    want = [(1000.0 + held.mean()) / 7 for _, held in folds]
    expect(
        scores is not None and np.allclose(np.asarray(scores, dtype=float), want),
        "Return the list of the folds' scores.",
    )


def _solve_scaler(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        model.fit(scaler.fit_transform(inputs[train]), targets[train])
        scores.append(model.score(scaler.transform(inputs[held]), targets[held]))
    return scores


def _scaler_outside(make_scaler, make_model, inputs, targets, folds):
    scaled = make_scaler().fit_transform(inputs)
    return cross_val_score(make_model, scaled, targets, folds)


def _scaler_twice(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        model = make_model()
        model.fit(make_scaler().fit_transform(inputs[train]), targets[train])
        scores.append(
            model.score(make_scaler().fit_transform(inputs[held]), targets[held])
        )
    return scores


def _scaler_forgotten(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        model = make_model()
        model.fit(make_scaler().fit_transform(inputs[train]), targets[train])
        scores.append(model.score(inputs[held], targets[held]))
    return scores


def _check_blocks(answer) -> None:
    rng = np.random.RandomState(0)
    for count, n_splits in ((6, 3), (5, 2), (9, 4)):
        for sorted_rows in (True, False):
            groups = np.repeat(np.arange(count), rng.randint(3, 12, count))
            if not sorted_rows:
                rng.shuffle(groups)
            folds = list(answer(groups, n_splits))
            expect(
                len(folds) == n_splits,
                f"Return {n_splits} pairs of (train, held out) rows.",
            )
            seen = np.concatenate([np.asarray(held) for _, held in folds])
            expect(
                sorted(seen.tolist()) == list(range(len(groups))),
                "Every row must be held out in exactly one fold.",
            )
            for train, held in folds:
                both = np.intersect1d(groups[np.asarray(train)], groups[np.asarray(held)])
                expect(
                    len(both) == 0,
                    f"Writer {both[0] if len(both) else ''} is in training and held out. Shuffling "
                    "mixes writers, it does not make their rows independent; and rows need not be "
                    "stored in order of writer. Choose the writers of each fold, then take all "
                    "their rows.",
                )
                expect(
                    len(train) + len(held) == len(groups), "Train on all the other rows."
                )


def _solve_blocks(groups, n_splits):
    fold_of = {name: number % n_splits for number, name in enumerate(np.unique(groups))}
    fold = np.array([fold_of[name] for name in groups])
    return [
        (np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_splits)
    ]


def _shuffled_rows(groups, n_splits):
    return kfold_indices(len(groups), n_splits, shuffle=True, seed=0)


def _runs_of_rows(groups, n_splits):
    return kfold_indices(len(groups), n_splits)


def _check_report(answer) -> None:
    rng = np.random.RandomState(0)
    for _ in range(20):
        validation, test = rng.permutation(8) / 10, rng.permutation(8) / 10 + 0.03
        want = test[validation.argmax()]
        if want == test.max():
            continue  # by luck the best on both
        got = answer(validation.tolist(), test.tolist())
        expect(
            got != test.max(),
            "You took the best of the test scores: the test set has chosen the model, and a score "
            "that chose is too high.",
        )
        expect(
            got != validation.max(),
            "That is the validation score of the winner. It chose the winner, so it is too high.",
        )
        expect(
            got == want,
            "Choose the model by validation alone, then look at the test score of that one.",
        )


def _solve_report(validation, test):
    chosen = max(range(len(validation)), key=validation.__getitem__)
    return test[chosen]


def _best_test(validation, test):
    return max(test)


def _best_validation(validation, test):
    return max(validation)


EXERCISES = (
    Exercise(
        "Write score_folds(make_scaler, make_model, inputs, targets, folds): for each (train, held "
        "out) of folds fit a new scaler and a new model, score on the held-out rows, and return "
        "the list of scores. A scaler has fit, transform and fit_transform; a model has fit and "
        "score.",
        _check_scaler,
        _solve_scaler,
        {
            "preprocessing is harmless": Wrong(_scaler_outside, "fitted on all rows"),
            "a scaler for each part": Wrong(_scaler_twice, "fitted on held-out rows"),
            "only training is scaled": Wrong(
                _scaler_forgotten, "must be transformed too"
            ),
        },
    ),
    Exercise(
        "Write folds_by_writer(groups, n_splits): groups is an array with the writer of each row, "
        "in any order. Return n_splits pairs (train, held out) of row numbers. Every row is held "
        "out once, and no writer is on both sides of a pair.",
        _check_blocks,
        _solve_blocks,
        {
            "shuffling makes data i.i.d.": Wrong(
                _shuffled_rows, "Shuffling mixes writers"
            ),
            "rows lie in order of writer": Wrong(
                _runs_of_rows, "need not be stored in order"
            ),
        },
    ),
    Exercise(
        "Write report(validation, test): two lists with the scores of the same models, in the same "
        "order. Return the one number that may be reported.",
        _check_report,
        _solve_report,
        {
            "report the best test score": Wrong(_best_test, "the test set has chosen"),
            "report the score that chose": Wrong(_best_validation, "It chose the winner"),
        },
    ),
)
