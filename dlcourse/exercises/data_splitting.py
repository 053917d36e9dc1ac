"""Exercises of chapter 1, data splitting: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator

from dlcourse.data_splitting import cross_val_score, kfold_indices, time_series_split
from dlcourse.lab.exercises import Exercise, Wrong, expect


def _row_numbers(part, what: str) -> list[int]:
    """Return the row numbers of an answer, sorted; a list, an array or a tensor may hold
    them.
    """
    rows = np.asarray(part)
    expect(
        rows.dtype != bool,
        f"The {what} rows are a mask of True and False. Return row numbers: "
        "np.flatnonzero(mask).",
    )
    whole = rows.size == 0 or (rows.dtype.kind in "iuf" and (rows == rows.round()).all())
    expect(
        rows.ndim == 1 and bool(whole), f"The {what} rows must be a row of row numbers."
    )
    return sorted(int(row) for row in rows)


def _two_parts(pair, names: str) -> tuple:
    """Return the two parts of a pair, whatever holds them."""
    parts = tuple(pair) if hasattr(pair, "__iter__") else ()
    expect(len(parts) == 2, f"Return pairs of two: {names}.")
    return parts


# --- whole writers --------------------------------------------------------------------------------


def _writers(case: int) -> np.ndarray:
    """Return the writers of some rows: numbers, even numbers or names, in order or not."""
    rng = np.random.RandomState(case)
    count = (6, 5, 9, 12, 4, 11)[case % 6]
    rows = 5 if count == 11 else rng.randint(3, 12, count)
    groups = np.repeat(np.arange(count), rows)
    if case % 3 == 1:
        groups = 2 * groups + 10
    if case % 3 == 2:
        groups = np.array([f"writer {number}" for number in groups])
    if case % 2:
        rng.shuffle(groups)
    return groups


def _check_writers(answer) -> None:
    for case in range(12):
        groups = _writers(case)
        names, sizes = np.unique(groups, return_counts=True)
        for n_splits in (2, 3, 4, len(names)):
            _check_folds(answer(groups.copy(), n_splits), groups, n_splits, sizes.max())


def _check_folds(folds, groups: np.ndarray, n_splits: int, largest: int) -> None:
    expect(folds is not None, "Return the folds: your function returns None.")
    folds = [
        _two_parts(fold, "the training rows and the held-out rows") for fold in folds
    ]
    expect(
        len(folds) == n_splits, f"Return n_splits pairs: {n_splits}, not {len(folds)}."
    )
    train = [_row_numbers(fold[0], "training") for fold in folds]
    held = [_row_numbers(fold[1], "held-out") for fold in folds]
    rows = set(range(len(groups)))
    for part in (*train, *held):
        expect(set(part) <= rows, "A row number lies outside 0 to len(groups) - 1.")
    every = sorted(sum(held, []))
    expect(
        every == sorted(rows),
        "Every row must be held out in exactly one fold. (Return row numbers, not writers.)",
    )
    for trained, kept in zip(train, held, strict=True):
        expect(
            not set(trained) & set(kept),
            "Rows that a fold holds out are in its training rows, too.",
        )
        both = np.intersect1d(groups[trained], groups[kept])
        name = both[0] if len(both) else ""
        expect(
            len(both) == 0,
            f"Writer {name} is in training and held out. Shuffling mixes writers, it does "
            "not make their rows independent; and rows need not be stored in order of "
            "writer. Choose the writers of each fold, then take all their rows.",
        )
    for trained, kept in zip(train, held, strict=True):
        expect(
            trained == sorted(rows - set(kept)),
            "Train on all the rows that the fold does not hold out, each once.",
        )
    writers = [len(np.unique(groups[kept])) for kept in held]
    counts = [len(kept) for kept in held]
    even = max(writers) - min(writers) <= 1 or max(counts) - min(counts) <= largest
    expect(
        even and min(writers) > 0,
        f"The folds are uneven: they hold out {', '.join(map(str, writers))} writers. Deal "
        "the writers out evenly, whatever their names are.",
    )


def _solve_writers(groups, n_splits):
    names = np.random.default_rng(0).permutation(np.unique(groups))
    folds = []
    for held_names in np.array_split(names, n_splits):
        held = np.isin(groups, held_names)
        folds.append((np.flatnonzero(~held), np.flatnonzero(held)))
    return folds


def _shuffled_rows(groups, n_splits):
    return kfold_indices(len(groups), n_splits, shuffle=True, seed=0)


def _runs_of_rows(groups, n_splits):
    return kfold_indices(len(groups), n_splits)


def _by_remainder(groups, n_splits):
    _, numbers = np.unique(groups, return_inverse=True)
    fold = (2 * numbers + 10) % n_splits  # as if the names were even numbers
    return [
        (np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_splits)
    ]


def _all_in_the_last(groups, n_splits):
    rows, none = np.arange(len(groups)), np.arange(0)
    return [(rows, none)] * (n_splits - 1) + [(none, rows)]


# --- the scaler inside the folds ------------------------------------------------------------------


class _Log(list):
    """What the parts of an answer did. A clone of a part goes on writing here."""

    def __deepcopy__(self, memo):
        return self


class _Part(BaseEstimator):
    """A scaler or a model that notes what it is shown, and may stand in a pipeline.

    Column 0 of the inputs is the row's number; transform adds 1000 times the scaler's own
    number to it. Column 1 counts how often the rows were transformed.
    """

    def __init__(self, log: _Log) -> None:
        self.log = log
        self.number = 1 + sum(what == "new" for what, *_ in log)
        log.append(("new", type(self), self.number))

    def _note(self, what: str, inputs, targets=None) -> None:
        column = np.asarray(inputs)[:, 0]
        rows = [int(value) for value in np.round(column % 1000)]
        scalers = {int(value) for value in column // 1000}
        times = {int(value) for value in np.asarray(inputs)[:, 1]}
        seen = None if targets is None else [int(value) for value in targets]
        self.log.append((what, self.number, rows, scalers, times, seen))


class _Scaler(_Part):
    def fit(self, inputs, targets=None):
        self._note("scaler fit", inputs)
        self.fitted_ = True
        return self

    def transform(self, inputs):
        return np.asarray(inputs) + np.array([1000.0 * self.number, 1.0])

    def fit_transform(self, inputs, targets=None):
        return self.fit(inputs).transform(inputs)


class _Model(_Part):
    def fit(self, inputs, targets):
        self._note("model fit", inputs, targets)
        self.fitted_ = True
        return self

    def score(self, inputs, targets):
        self._note("score", inputs, targets)
        return float(np.mean(np.asarray(inputs)[:, 0] % 1000)) / 7


def _check_scaler(answer) -> None:
    for folds in (
        kfold_indices(12, 3, shuffle=True, seed=1),
        kfold_indices(20, 5, shuffle=True, seed=2)[::-1],
        time_series_split(30, 4, gap=2),
        [(rows[::-1], held[::-1]) for rows, held in kfold_indices(9, 3)],  # in any order
    ):
        _check_scaled_folds(answer, folds, 1 + max(held.max() for _, held in folds))


def _check_scaled_folds(answer, folds, n: int) -> None:
    inputs = np.stack([np.arange(float(n)), np.zeros(n)], axis=1)
    targets = 500 + np.arange(n)
    log = _Log()
    scores = answer(lambda: _Scaler(log), lambda: _Model(log), inputs, targets, folds)
    # a generator does its work only when it is read
    scores = list(scores) if hasattr(scores, "__iter__") else []
    train = [sorted(rows.tolist()) for rows, _ in folds]
    held = [sorted(rows.tolist()) for _, rows in folds]
    _check_scaler_fits(log, train, held, n)
    _check_model_fits(log, train)
    _check_scores(log, train, held)
    want = [float(np.mean(rows)) / 7 for rows in held]
    found = [float(score) for score in scores]
    expect(
        len(found) == len(want) and np.allclose(found, want),
        "Return the scores of the held-out rows: one for each fold, in their order.",
    )


def _check_scaler_fits(log, train, held, n: int) -> None:
    """See that scalers were fitted on the training rows of the folds, and on no others."""
    fitted_on = [sorted(rest[0]) for what, _, *rest in log if what == "scaler fit"]
    for rows in fitted_on:
        expect(
            len(rows) < n,
            "The scaler was fitted on all rows: it has seen the rows that it is later "
            "tested on.",
        )
        expect(
            rows not in held or rows in train,
            "The scaler was fitted on held-out rows. They may only be transformed, with "
            "what the training rows taught.",
        )
        expect(
            rows in train, "Fit the scaler on the training rows of the fold, no others."
        )
    expect(
        all(rows in fitted_on for rows in train),
        "Fit a scaler in each fold, on the training rows of that fold.",
    )


def _check_model_fits(log, train) -> None:
    """See that each model was fitted on the transformed rows of a fold, with their targets."""
    fitted, used = {}, []
    for what, number, *rest in log:
        if what == "scaler fit":
            fitted[number] = sorted(rest[0])
        if what != "model fit":
            continue
        rows, scalers, times, seen = rest
        expect(
            times == {1} and len(scalers) == 1 and sorted(rows) in train,
            "The model must be fitted on the training rows of a fold, transformed once.",
        )
        expect(
            fitted.get(min(scalers)) == sorted(rows),
            "The training rows were transformed by the scaler of another fold.",
        )
        expect(
            seen == [500 + row for row in rows],
            "The model was fitted on targets of other rows than its inputs: give it "
            "targets[train].",
        )
        used.append(sorted(rows))
    expect(
        all(rows in used for rows in train),
        "Fit a model in each fold, on the transformed training rows of that fold.",
    )


def _check_scores(log, train, held) -> None:
    """See that the held-out rows of each fold were scored, by parts that are of that fold."""
    fitted, learned = {}, {}  # the rows last fitted on, by the number of the part
    judges = {}  # the scaler and the model of each fold
    for what, number, *rest in log:
        if what == "scaler fit":
            fitted[number] = sorted(rest[0])
        if what == "model fit":
            learned[number] = sorted(rest[0])
        if what != "score" or sorted(rest[0]) not in held:
            continue
        rows, scalers, times, seen = rest
        fold = held.index(sorted(rows))
        expect(
            times == {1} and len(scalers) == 1,
            "The held-out rows must be transformed too, once, by the scaler of the training "
            "rows, before they are scored.",
        )
        expect(
            fitted.get(min(scalers)) == train[fold],
            "The held-out rows must be transformed by the scaler of their own fold.",
        )
        expect(
            learned.get(number) == train[fold],
            "The held-out rows must be scored by the model of their own fold.",
        )
        expect(
            seen == [500 + row for row in rows],
            "The score compares with targets of other rows: give it targets[held].",
        )
        judges[fold] = (min(scalers), number)
    expect(len(judges) == len(held), "Score the held-out rows of every fold.")
    for part in zip(*judges.values(), strict=True):
        expect(
            len(set(part)) == len(held),
            "Make a new scaler and a new model in each fold: what was fitted before may go "
            "on from there.",
        )


def _solve_scaler(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler = make_scaler()
        model = make_model()
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


def _one_for_all(make_scaler, make_model, inputs, targets, folds):
    scaler, model = make_scaler(), make_model()
    return _solve_scaler(lambda: scaler, lambda: model, inputs, targets, folds)


def _targets_of_held(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        model.fit(scaler.fit_transform(inputs[train]), targets[held])
        scores.append(model.score(scaler.transform(inputs[held]), targets[held]))
    return scores


# --- the number to report -------------------------------------------------------------------------


def _check_report(answer) -> None:
    rng = np.random.RandomState(0)
    found, tables = [], []
    for case in range(30):
        models = 3 + case % 6
        validation, test = rng.uniform(0.5, 1, models), rng.uniform(0.5, 1, models)
        got = answer(validation.tolist(), test.tolist())
        expect(got is not None, "Return a number: your function returns None.")
        expect(
            not isinstance(got, (list, tuple)),
            "Return the number itself, not a list: one may be reported.",
        )
        got = np.asarray(got, dtype=float).ravel()
        expect(len(got) == 1, "One number may be reported: you return several.")
        found.append(float(got[0]))
        tables.append((validation, test))

    def always(pick) -> bool:
        return np.allclose(found, [pick(*table) for table in tables])

    expect(
        not always(lambda validation, test: test.max()),
        "You took the best of the test scores: the test set has chosen the model, and a "
        "score that chose is too high.",
    )
    expect(
        not always(lambda validation, test: validation.max()),
        "That is the validation score of the winner. It chose the winner, so it is too high.",
    )
    expect(
        not always(lambda validation, test: validation.argmax()),
        "That is the winner's place in the list: return its score.",
    )
    expect(
        always(lambda validation, test: test[validation.argmax()]),
        "Choose the model by validation alone, then look at the test score of that one.",
    )


def _solve_report(validation, test):
    chosen = int(np.argmax(validation))
    return test[chosen]


def _best_test(validation, test):
    return max(test)


def _best_validation(validation, test):
    return max(validation)


def _mean_of_both(validation, test):
    chosen = int(np.argmax(validation))
    return (validation[chosen] + test[chosen]) / 2


# --- new users, later -----------------------------------------------------------------------------


def _check_both_new(answer) -> None:
    for case in range(12):
        rng = np.random.RandomState(case)
        n = 40 + 10 * case
        names = [f"user {number}" for number in range(8)] if case % 2 else list(range(8))
        users = np.array([names[number] for number in rng.randint(0, 8, n)])
        days = rng.randint(0, 50, n)
        new_users = [names[number] for number in rng.permutation(8)[: 2 + case % 3]]
        first_day, ahead = 30, (0, 7, 3)[case % 3]
        found = answer(users.copy(), days.copy(), list(new_users), first_day, ahead)
        expect(found is not None, "Return two parts: your function returns None.")
        parts = _two_parts(found, "the training rows and the test rows")
        train = _row_numbers(parts[0], "training")
        test = _row_numbers(parts[1], "test")
        _check_both_parts(train, test, users, days, set(new_users), first_day, ahead)


def _check_both_parts(train, test, users, days, new_users, first_day, ahead) -> None:
    n = len(users)
    for part in (train, test):
        expect(set(part) <= set(range(n)), "A row number lies outside 0 to n - 1.")
        expect(len(part) == len(set(part)), "A row stands twice in a part.")
    new = [users[row].item() in new_users for row in range(n)]
    expect(all(new[row] for row in test), "The test holds a user who is not new.")
    expect(
        all(days[row] >= first_day for row in test),
        "The test holds a row from before first_day.",
    )
    expect(
        not any(new[row] for row in train),
        "A new user is in training: leave out the early rows of new users.",
    )
    expect(
        all(days[row] < first_day for row in train),
        "Training holds a row of first_day or later: leave out the late rows of the other "
        "users.",
    )
    expect(
        all(days[row] + ahead < first_day for row in train),
        "Training holds a row whose label is known only on first_day or later: stop `ahead` "
        "days earlier.",
    )
    expect(
        len(test) == sum(new[row] and days[row] >= first_day for row in range(n)),
        "The test lacks rows: take all rows of new users from first_day on.",
    )
    known = [not new[row] and days[row] + ahead < first_day for row in range(n)]
    expect(
        len(train) == sum(known),
        "Training lacks rows: take every row of the other users whose label is known "
        "before first_day.",
    )


def _solve_both_new(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    train = ~new & (days + ahead < first_day)
    test = new & (days >= first_day)
    return np.flatnonzero(train), np.flatnonzero(test)


def _the_rest_trains(users, days, new_users, first_day, ahead):
    test = np.isin(users, new_users) & (days >= first_day)
    return np.flatnonzero(~test), np.flatnonzero(test)


def _either_new(users, days, new_users, first_day, ahead):
    test = np.isin(users, new_users) | (days >= first_day)
    return np.flatnonzero(~test), np.flatnonzero(test)


def _no_gap(users, days, new_users, first_day, ahead):
    return _solve_both_new(users, days, new_users, first_day, 0)


def _gap_too_short(users, days, new_users, first_day, ahead):
    return _solve_both_new(users, days, new_users, first_day, ahead - 1)


EXERCISES = (
    Exercise(
        "Write folds_by_writer(groups, n_splits): groups is an array with the writer of each "
        "row, numbers or names, in any order. Return n_splits pairs (train, held out) of row "
        "numbers. Every row is held out once, and the fold trains on all rows that it does "
        "not hold out. No writer is on both sides of a pair. The folds are even: their "
        "numbers of writers differ by at most one, or their numbers of rows by at most the "
        "rows of the largest writer.",
        _check_writers,
        _solve_writers,
        {
            "shuffling makes data i.i.d.": Wrong(
                _shuffled_rows, "Shuffling mixes writers"
            ),
            "rows lie in order of writer": Wrong(
                _runs_of_rows, "need not be stored in order"
            ),
            "the writer's number modulo k": Wrong(_by_remainder, "uneven"),
            "everything in the last fold": Wrong(_all_in_the_last, "uneven"),
        },
    ),
    Exercise(
        "Write score_folds(make_scaler, make_model, inputs, targets, folds): for each (train, "
        "held out) of folds make a new scaler and a new model with the two functions, fit "
        "both, score on the held-out rows, and return the scores in the order of the folds. "
        "A scaler has fit, transform and fit_transform; a model has fit and score. inputs and "
        "targets are NumPy arrays.",
        _check_scaler,
        _solve_scaler,
        {
            "preprocessing is harmless": Wrong(_scaler_outside, "fitted on all rows"),
            "a scaler for each part": Wrong(_scaler_twice, "fitted on held-out rows"),
            "only training is scaled": Wrong(
                _scaler_forgotten, "must be transformed too"
            ),
            "one scaler and model for all": Wrong(
                _one_for_all, "new scaler and a new model"
            ),
            "targets of other rows": Wrong(_targets_of_held, "targets of other rows"),
        },
    ),
    Exercise(
        "Write report(validation, test): two lists with the accuracies of the same models, in "
        "the same order. One model will be used. Return the one number that may be reported "
        "for it.",
        _check_report,
        _solve_report,
        {
            "report the best test score": Wrong(_best_test, "the test set has chosen"),
            "report the score that chose": Wrong(_best_validation, "It chose the winner"),
            "the mean of both": Wrong(_mean_of_both, "validation alone"),
        },
    ),
    Exercise(
        "The model will meet new users, in the future. Write split_both(users, days, "
        "new_users, first_day, ahead): users and days are arrays with the user and the day of each row, "
        "in any order; new_users lists the users who are held out. The label of a row is "
        "known `ahead` days after its day. Return (train, test) as row numbers: test has all "
        "rows of new users from first_day on; train has every row of the other users whose "
        "label is known before first_day. Some rows are in neither.",
        _check_both_new,
        _solve_both_new,
        {
            "what is not test trains": Wrong(
                _the_rest_trains, "leave out the early rows"
            ),
            "either is new": Wrong(_either_new, "not new"),
            "labels are known at once": Wrong(_no_gap, "`ahead` days earlier"),
            "one day too late": Wrong(_gap_too_short, "`ahead` days earlier"),
        },
    ),
)
