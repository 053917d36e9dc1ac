"""Data splitting: which rows a model learns from, which choose it, and which judge it
once.

Every splitter returns row numbers (int64 arrays), never data. They draw from NumPy's
`RandomState`, whose numbers are frozen for good: a split made today is the same on any
machine and in any year. With the same seed they return the rows that scikit-learn's
splitters return.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Fold = tuple[np.ndarray, np.ndarray]

# --------------------------------------------------------------------------- hold-out


def hold_out_split(
    n: int, test: float | int = 0.25, *, labels=None, groups=None, seed: int = 0
) -> Fold:
    """Return (rest, held out): the numbers 0 to n - 1, cut in two at random.

    test: the share to hold out, a float in (0, 1) and rounded up, or an int from 1 to n -
    1. labels: (n,) class numbers or names; each class is then cut in proportion
    (stratified). groups: (n,) names; whole groups are then held out, and `test` counts
    groups, not rows.

    Raises ValueError where a part or a class would be empty, or `labels` and `groups` are
    given.

    Invariants: the two parts are disjoint and cover all rows; with groups none is in
    both; a class is off its proportion by less than one row in each part; equal to
    scikit-learn's ShuffleSplit, StratifiedShuffleSplit and GroupShuffleSplit with
    random_state=seed.
    """
    _check_count("n", n, 2)
    rng = _random(seed)
    if labels is not None and groups is not None:
        raise ValueError(
            "give labels or groups, not both: groups cannot be cut to fit classes"
        )
    if groups is not None:
        names, of_row = np.unique(_column("groups", groups, n), return_inverse=True)
        rest, held = _draw(len(names), test, rng, "groups")
        return np.flatnonzero(np.isin(of_row, rest)), np.flatnonzero(
            np.isin(of_row, held)
        )
    if labels is None:
        return _draw(n, test, rng, "rows")
    return _draw_by_class(_classes(labels, n), test, rng)


def train_val_test_split(
    n: int,
    validation: float | int = 0.15,
    test: float | int = 0.15,
    *,
    labels=None,
    groups=None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (train, validation, test): the numbers 0 to n - 1, cut in three at random.

    validation, test: shares of all n rows (or of all groups) in (0, 1), rounded up, or
    whole numbers. labels, groups, seed: as for `hold_out_split`.

    Raises ValueError where a part or a class would be empty.

    Invariants: disjoint and covering; the test rows depend on `test` and `seed` but not
    on `validation`, so that another validation share never moves a test row into
    training; the same as scikit-learn's train_test_split called twice.
    """
    rest, held = hold_out_split(n, test, labels=labels, groups=groups, seed=seed)
    labels, groups = (None if v is None else np.asarray(v) for v in (labels, groups))
    units = n if groups is None else len(np.unique(groups))
    size = _held_count(
        units, validation, "validation", "rows" if groups is None else "groups"
    )
    left = len(rest) if groups is None else len(np.unique(groups[rest]))
    if size >= left:
        raise ValueError(
            f"validation takes {size} and test leaves only {left}, so nothing is left to train on: "
            "choose smaller shares"
        )
    train, val = hold_out_split(
        len(rest),
        size,
        labels=None if labels is None else labels[rest],
        groups=None if groups is None else groups[rest],
        seed=seed,
    )
    return rest[train], rest[val], held


def _held_count(n: int, share: float | int, name: str, of: str) -> int:
    """Return how many of n are held out: a share rounded up, or the number itself."""
    whole = isinstance(share, (int, np.integer)) and not isinstance(share, bool)
    part = isinstance(share, (float, np.floating)) and 0 < share < 1
    if not part and not (whole and 0 < share < n):
        raise ValueError(
            f"{name}={share!r}: give a share in (0, 1) such as 0.2, or a whole number of {of} from "
            f"1 to {n - 1}"
        )
    held = int(share) if whole else math.ceil(share * n)
    if held >= n:
        raise ValueError(
            f"{name}={share!r} holds out all {n} {of}: choose a smaller share"
        )
    return held


def _draw(n: int, test: float | int, rng: np.random.RandomState, of: str) -> Fold:
    held = _held_count(n, test, "test", of)
    order = rng.permutation(n)
    return order[held:], order[:held]


def _draw_by_class(
    classes: np.ndarray, test: float | int, rng: np.random.RandomState
) -> Fold:
    counts = np.bincount(classes)
    held = _held_count(len(classes), test, "test", "rows")
    if counts.min() < 2:
        raise ValueError(
            "a class has a single row, which cannot be in both parts: merge it with another, get "
            "more rows, or leave labels out"
        )
    if min(held, len(classes) - held) < len(counts):
        raise ValueError(
            f"{held} rows held out of {len(classes)} cannot give each of {len(counts)} classes a "
            "row in both parts: change the share"
        )
    kept_of = _apportion(counts, len(classes) - held, rng)
    held_of = _apportion(counts - kept_of, held, rng)
    parts: tuple[list, list] = ([], [])
    for number, kept in enumerate(kept_of):
        rows = rng.permutation(np.flatnonzero(classes == number))
        parts[0].append(rows[:kept])
        parts[1].append(rows[kept : kept + held_of[number]])
    rest, out = (rng.permutation(np.concatenate(part)) for part in parts)
    return rest, out


def _apportion(counts: np.ndarray, seats: int, rng: np.random.RandomState) -> np.ndarray:
    """Share seats out in proportion to counts: whole parts, then largest remainders, then
    lots.
    """
    exact = counts / counts.sum() * seats
    given = np.floor(exact)
    remainder, left = exact - given, int(seats - given.sum())
    for value in np.unique(remainder)[::-1]:
        if left == 0:
            break
        tied = np.flatnonzero(remainder == value)
        lucky = rng.choice(tied, size=min(len(tied), left), replace=False)
        given[lucky] += 1
        left -= len(lucky)
    return given.astype(int)


# --------------------------------------------------------------------------- folds


def kfold_indices(
    n: int, n_splits: int = 5, *, shuffle: bool = False, seed: int = 0
) -> list[Fold]:
    """Return n_splits pairs (train, held out): each row of 0 to n - 1 is held out exactly
    once.

    n_splits: from 2 to n. Without `shuffle` the folds are runs of neighbouring rows.
    Raises ValueError for other numbers. Source: Stone (1974).

    Invariants: train and held out are sorted, disjoint and cover all rows; the sizes of
    the folds differ by at most one; equal to scikit-learn's KFold.

    >>> [held.tolist() for _, held in kfold_indices(5, 2)]
    [[0, 1, 2], [3, 4]]
    """
    _check_count("n", n, 1)
    _check_splits(n_splits, n, "rows")
    order = np.arange(n)
    if shuffle:
        _random(seed).shuffle(order)
    fold_of = np.empty(n, dtype=int)
    for number, rows in enumerate(np.array_split(order, n_splits)):
        fold_of[rows] = number
    return _folds(fold_of, n_splits)


def stratified_kfold_indices(
    labels, n_splits: int = 5, *, shuffle: bool = False, seed: int = 0
) -> list[Fold]:
    """Return n_splits pairs (train, held out), each fold with the classes in proportion.

    labels: (n,) class numbers or names. n_splits: at least 2, at most the rows of the
    largest class. Warns where a class has fewer rows than there are folds: some folds
    then lack it.
    Raises ValueError for other numbers, or for labels that are no classes.

    Invariants: as for `kfold_indices`; the rows of one class in two folds differ by at
    most one; equal to scikit-learn's StratifiedKFold.
    """
    classes = _classes(labels)
    _check_splits(n_splits, len(classes), "rows")
    counts = np.bincount(classes)
    if n_splits > counts.max():
        raise ValueError(
            f"{n_splits} folds, but the largest class has {counts.max()} rows: use fewer folds"
        )
    if n_splits > counts.min():
        warnings.warn(
            f"a class has {counts.min()} rows, fewer than the {n_splits} folds: some folds lack it",
            UserWarning,
            stacklevel=2,
        )
    rng = _random(seed)
    # Deal the rows, sorted by class, to the folds in turn, as cards: the share of every
    # class in every fold is then right to within one row, and so is every fold's size.
    dealt = np.arange(len(classes)) % n_splits
    in_order = np.sort(classes)
    fold_of = np.empty(len(classes), dtype=int)
    for number in range(len(counts)):
        folds = np.sort(dealt[in_order == number])
        if shuffle:
            rng.shuffle(folds)
        fold_of[classes == number] = folds
    return _folds(fold_of, n_splits)


def group_kfold_indices(
    groups, n_splits: int = 5, *, shuffle: bool = False, seed: int = 0
) -> list[Fold]:
    """Return n_splits pairs (train, held out) with every group whole in one fold.

    groups: (n,) names or numbers: the writer, patient, user, shop or machine of each row.
    n_splits: from 2 to the number of groups. Without `shuffle` the groups go, largest
    first, to the fold that has the fewest rows; with it, equal numbers of groups go to
    the folds by lot.
    Raises ValueError for other numbers.

    Invariants: disjoint and covering; no group is in two folds; without `shuffle` two
    folds differ by at most the rows of the largest group; equal to scikit-learn's
    GroupKFold.
    """
    names, of_row = np.unique(_column("groups", groups), return_inverse=True)
    _check_splits(n_splits, len(names), "groups")
    fold_of_group = np.empty(len(names), dtype=int)
    if shuffle:
        order = _random(seed).permutation(len(names))
        for number, members in enumerate(np.array_split(order, n_splits)):
            fold_of_group[members] = number
    else:
        sizes, filled = np.bincount(of_row), np.zeros(n_splits)
        for group in np.argsort(sizes, kind="stable")[::-1]:
            lightest = filled.argmin()
            fold_of_group[group] = lightest
            filled[lightest] += sizes[group]
    return _folds(fold_of_group[of_row], n_splits)


def time_series_split(
    n: int,
    n_splits: int = 5,
    *,
    gap: int = 0,
    test_size: int | None = None,
    max_train_size: int | None = None,
) -> list[Fold]:
    """Return n_splits pairs (train, held out) for rows in order of time: learn first,
    test later.

    gap: the rows left out between the two, 0 or more. A label that looks h rows ahead
    needs h. test_size: the rows of each test, by default n // (n_splits + 1).
    max_train_size: the most recent rows to train on, by default all.
    Raises ValueError where the first training part would be empty, or a number is out of
    range.

    Invariants: every training row is more than `gap` rows before every test row; the
    tests do not overlap and end with the last row; equal to scikit-learn's
    TimeSeriesSplit (which does not refuse a negative gap).

    >>> [(train.tolist(), held.tolist()) for train, held in time_series_split(6, 2, gap=1)]
    [([0], [2, 3]), ([0, 1, 2], [4, 5])]
    """
    _check_count("n", n, 1)
    _check_splits(n_splits, n - 1, "rows after the first")
    _check_count("gap", gap, 0)
    if max_train_size is not None:
        _check_count("max_train_size", max_train_size, 1)
    size = n // (n_splits + 1) if test_size is None else test_size
    _check_count("test_size", size, 1)
    first = n - n_splits * size
    if first - gap < 1:
        raise ValueError(
            f"{n_splits} tests of {size} rows and a gap of {gap} leave nothing of {n} rows to "
            "train on: use fewer splits, a smaller test_size or a smaller gap"
        )
    rows, folds = np.arange(n), []
    for start in range(first, n, size):
        end = start - gap
        begin = 0 if max_train_size is None else max(0, end - max_train_size)
        folds.append((rows[begin:end], rows[start : start + size]))
    return folds


def _folds(fold_of: np.ndarray, n_splits: int) -> list[Fold]:
    return [
        (np.flatnonzero(fold_of != number), np.flatnonzero(fold_of == number))
        for number in range(n_splits)
    ]


# --------------------------------------------------------------------------- scores


def cross_val_score(
    make: Callable[[], object], inputs, targets, folds: Iterable[Fold]
) -> np.ndarray:
    """Return the score of each fold, (folds,): a fresh `make()` is fitted and scored for
    each.

    make(): a new object with fit(inputs, targets) and score(inputs, targets). All that is
    learned from data belongs inside it: scaling and the choice of features too.

    Invariant: fit sees rows of the training part only.
    """
    return np.array([_score(make, inputs, targets, *fold) for fold in folds])


@dataclass(frozen=True, eq=False)
class NestedScores:
    """What `nested_cross_val_score` found, one entry for each outer fold.

    `scores` (folds,): on the outer held-out rows. `chosen`: the candidate's name.
    `inner_scores` (folds,): the winner's mean inner score, which chose it and so is too
    high.
    """

    scores: np.ndarray
    chosen: list[str]
    inner_scores: np.ndarray


def nested_cross_val_score(
    candidates: Mapping[str, Callable[[], object]],
    inputs,
    targets,
    *,
    outer: Iterable[Fold],
    inner: Callable[[np.ndarray], Iterable[Fold]],
) -> NestedScores:
    """Choose among candidates inside each outer fold, then score the choice on its
    held-out rows.

    candidates: names to functions that make a new object with fit and score. outer:
    (train, held out) pairs. inner(rows): from the outer training rows' numbers, (m,), the
    inner folds as positions 0 to m - 1 in them, such as `lambda rows:
    kfold_indices(len(rows))`. Of equal candidates the first one wins.

    Raises ValueError where there is no candidate.
    Source: Stone (1974); Varma & Simon (2006).

    Invariants: no outer held-out row takes part in a fit or a choice before it is scored;
    with one candidate the scores are those of `cross_val_score`; equal to scikit-learn's
    cross_val_score of a GridSearchCV.
    """
    if not candidates:
        raise ValueError(
            "no candidates: give at least one name with a function that makes it"
        )
    scores, chosen, inner_scores = [], [], []
    for train, held in outer:
        folds = list(inner(train))
        x, y = inputs[train], targets[train]
        means = {
            name: cross_val_score(make, x, y, folds).mean()
            for name, make in candidates.items()
        }
        best = max(means, key=means.get)
        chosen.append(best)
        inner_scores.append(means[best])
        scores.append(_score(candidates[best], inputs, targets, train, held))
    return NestedScores(np.array(scores), chosen, np.array(inner_scores))


def _score(make: Callable[[], object], inputs, targets, train, held) -> float:
    estimator = make()
    estimator.fit(inputs[train], targets[train])
    return float(estimator.score(inputs[held], targets[held]))


def wilson_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return (low, high), in [0, 1], for the accuracy behind `correct` of `total`
    independent rows.

    correct: from 0 to total. total: at least 1. level: in (0, 1). Raises ValueError for
    others.
    Source: Wilson (1927). Rows of one writer are not independent: then count writers.

    Invariants: holds correct / total; narrows as rows are added; never leaves [0, 1].
    """
    _check_count("total", total, 1)
    if not 0 <= correct <= total:
        raise ValueError(f"correct={correct}: give a number from 0 to total={total}")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: give a share between 0 and 1, such as 0.95")
    z, share = NormalDist().inv_cdf(0.5 + level / 2), correct / total
    middle = share + z**2 / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    low, high = ((middle + sign * half) / (1 + z**2 / total) for sign in (-1, 1))
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def corrected_standard_error(
    scores: Sequence[float], train_rows: int, test_rows: int
) -> float:
    """Return the standard error of the mean of scores whose training parts overlap.

    scores: (k,), k at least 2, from k random splits of the same rows into `train_rows`
    and `test_rows`. The usual sqrt(variance / k) takes them for independent and is too
    small; here 1 / k becomes 1 / k + test_rows / train_rows.
    Raises ValueError for fewer scores or rows. Source: Nadeau & Bengio (2003).

    Invariants: larger than the usual one; does not go to 0 as k grows.
    """
    scores = np.asarray(scores, dtype=float).ravel()
    if len(scores) < 2:
        raise ValueError("a standard error needs at least two scores: make more splits")
    _check_count("train_rows", train_rows, 1)
    _check_count("test_rows", test_rows, 1)
    return math.sqrt((1 / len(scores) + test_rows / train_rows) * scores.var(ddof=1))


# --------------------------------------------------------------------------- leakage


@dataclass(frozen=True, eq=False)
class Leak:
    """One way in which test rows are known to the training: `kind`, the test `rows`,
    `message`.

    `kind`: "shared row", "duplicate", "near-duplicate", "group", "time" or "statistics".
    `rows`: int64 (m,), the numbers of the test rows concerned; all of them for
    statistics.
    """

    kind: str
    rows: np.ndarray
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


def check_leakage(
    inputs,
    train,
    test,
    *,
    near: float = 0.1,
    groups=None,
    times=None,
    gap: float = 0,
    statistics: Mapping[str, object] | None = None,
) -> list[Leak]:
    """Return what of the test rows is known in training: a list of `Leak`, empty if none
    is found.

    inputs: (n, ...) numbers. train, test: row numbers. near: rows are near-duplicates
    whose distance is at most this share of the root-mean-square distance of two training
    rows; 0 looks for exact copies only. Bring the columns to like scales first. groups:
    (n,) names that may not be on both sides. times: (n,) numbers; every training time
    must be more than `gap` before the first test time. statistics: "mean", "std", "min"
    or "max" with the values that scaled the data, computed on these same inputs: one for
    each column (n's other axes), each channel (axis 1) or one for all.

    Raises ValueError for row numbers out of range, shapes that do not match or unknown
    names.
    Source: Kapoor & Narayanan (2023) collect such leaks. What it cannot see: a column
    that holds the answer, or tests that were looked at too often.

    Invariants: the kinds do not overlap (a shared row is not also a duplicate); the order
    of rows does not matter; a clean split gives an empty list.
    """
    inputs = np.asarray(inputs)
    n = len(inputs)
    train, test = (
        _rows(name, rows, n) for name, rows in (("train", train), ("test", test))
    )
    if not 0 <= near < 1:
        raise ValueError(f"near={near}: give a share from 0 up to 1, such as 0.1")
    leaks = _copies(inputs.reshape(n, -1), train, test, near)
    if groups is not None:
        groups = _column("groups", groups, n)
        rows = test[np.isin(groups[test], groups[train])]
        shared = len(np.unique(groups[rows]))
        leaks.append(
            Leak(
                "group",
                rows,
                f"test rows of {shared} groups that also train: {len(rows)}",
            )
        )
    if times is not None:
        if gap < 0:
            raise ValueError(f"gap={gap}: give 0 or more, in the units of times")
        times = _column("times", times, n)
        late = int((times[train] + gap >= times[test].min()).sum())
        rows = test[times[test] <= times[train].max() + gap]
        text = f"training rows not more than {gap:g} before the first test row: {late}"
        leaks.append(Leak("time", rows if late else rows[:0], text))
    for name, values in (statistics or {}).items():
        leaks.append(
            _fitted_elsewhere(name, np.asarray(values, dtype=float), inputs, train, test)
        )
    return [leak for leak in leaks if len(leak.rows)]


def _copies(
    flat: np.ndarray, train: np.ndarray, test: np.ndarray, near: float
) -> list[Leak]:
    shared = np.isin(test, train)
    flat = flat + 0  # -0.0 becomes 0.0, which has other bytes
    known = {flat[row].tobytes() for row in train}
    copied = (
        np.array([flat[row].tobytes() in known for row in test], dtype=bool) & ~shared
    )
    close = np.zeros(len(test), dtype=bool)
    left = np.flatnonzero(~shared & ~copied)
    if near > 0:
        close[left] = _closest(flat, train, test[left]) <= near
    return [
        Leak("shared row", test[shared], f"rows in both parts: {shared.sum()}"),
        Leak(
            "duplicate",
            test[copied],
            f"test rows equal to a training row: {copied.sum()}",
        ),
        Leak(
            "near-duplicate",
            test[close],
            f"test rows nearly equal to a training row: {close.sum()}",
        ),
    ]


def _closest(flat: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return each test row's distance to its nearest training row, over that of two at
    random.
    """
    known = flat[train].astype(float)
    center = known.mean(axis=0)
    known -= center
    squares = (known**2).sum(axis=1)
    # the mean square distance of two rows drawn at random
    scale = math.sqrt(2 * squares.mean())
    if not scale > 0:
        return np.full(len(test), np.inf)
    found = []
    # bounds the memory
    for rows in np.array_split(test, max(1, math.ceil(len(test) / 256))):
        x = flat[rows] - center
        gaps = squares - 2 * x @ known.T + (x**2).sum(axis=1, keepdims=True)
        found.append(gaps.min(axis=1))
    return np.sqrt(np.maximum(np.concatenate(found), 0)) / scale


STATISTICS = {
    "mean": np.mean,
    "std": np.std,
    "min": np.min,
    "max": np.max,
}


def _fitted_elsewhere(name: str, values: np.ndarray, inputs, train, test) -> Leak:
    if name not in STATISTICS:
        raise ValueError(f"statistics has {name!r}: choose from {', '.join(STATISTICS)}")
    if values.shape == inputs.shape[1:]:
        axis = (0,)
    elif inputs.ndim > 2 and values.shape == inputs.shape[1:2]:
        axis = (0, *range(2, inputs.ndim))
    elif values.shape == ():
        axis = tuple(range(inputs.ndim))
    else:
        raise ValueError(
            f"{name} has the shape {values.shape}: give one value for each column "
            f"{inputs.shape[1:]}, each channel {inputs.shape[1:2]}, or one for all"
        )
    unit = float(np.std(inputs[train])) or 1.0

    def differs(rows) -> bool:
        part = inputs[rows].astype(float)
        wanted = [STATISTICS[name](part, axis=axis)]
        count = math.prod(part.shape[a] for a in axis)
        if name == "std" and count > 1:  # both conventions, over n and over n - 1
            wanted.append(wanted[0] * math.sqrt(count / (count - 1)))
        return min(float(np.abs(values - want).max()) for want in wanted) > 1e-5 * unit

    if not differs(train):
        return Leak("statistics", test[:0], "")
    source = "are not those of the training rows"
    if not differs(np.union1d(train, test)):
        source = "were computed on training and test rows together"
    elif not differs(test):
        source = "were computed on the test rows"
    return Leak("statistics", test, f"the values of {name} {source}")


# --------------------------------------------------------------------------- checks


def _check_count(name: str, value: object, least: int) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or value < least
    ):
        raise ValueError(f"{name}={value!r}: give a whole number of at least {least}")


def _check_splits(n_splits: object, most: int, of: str) -> None:
    _check_count("n_splits", n_splits, 2)
    if n_splits > most:
        raise ValueError(
            f"n_splits={n_splits}, but there are only {most} {of}: use fewer splits"
        )


def _random(seed: int) -> np.random.RandomState:
    _check_count("seed", seed, 0)
    return np.random.RandomState(seed)


def _column(name: str, values, n: int | None = None) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or (n is not None and len(values) != n):
        want = "(n,)" if n is None else f"({n},)"
        raise ValueError(
            f"{name} has the shape {values.shape}: give one for each row, {want}"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity: every row needs one")
    return values


def _classes(labels, n: int | None = None) -> np.ndarray:
    """Number the classes 0, 1, ... in order of appearance for folds, or of name for a
    draw.
    """
    labels = _column("labels", labels, n)
    if labels.dtype.kind == "f" and (labels != np.round(labels)).any():
        raise ValueError("labels are fractions, not classes: cut them into classes first")
    _, first, of_row = np.unique(labels, return_index=True, return_inverse=True)
    return of_row if n is not None else np.argsort(np.argsort(first))[of_row]


def _rows(name: str, rows, n: int) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 1 or len(rows) == 0 or rows.dtype.kind not in "iu":
        raise ValueError(f"{name} must be row numbers, one or more whole numbers")
    if rows.min() < 0 or rows.max() >= n:
        raise ValueError(f"{name} has row numbers outside 0 to {n - 1}")
    return rows
