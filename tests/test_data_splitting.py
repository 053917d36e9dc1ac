"""Data splitting: the same rows and the same errors as scikit-learn, and every leak is
found.
"""

import itertools
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    GroupShuffleSplit,
    KFold,
    ShuffleSplit,
    StratifiedKFold,
    StratifiedShuffleSplit,
    TimeSeriesSplit,
    train_test_split,
)
from sklearn.model_selection import cross_val_score as their_cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from dlcourse.data_splitting import (
    Leak,
    NestedScores,
    check_leakage,
    corrected_standard_error,
    cross_val_score,
    group_kfold_indices,
    hold_out_split,
    kfold_indices,
    nested_cross_val_score,
    stratified_group_split,
    stratified_kfold_indices,
    time_series_split,
    train_val_test_split,
    wilson_interval,
)
from dlcourse.exercises.data_splitting import EXERCISES


def outcome(make):
    """Return the row numbers that `make()` gives, or "error"."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [[part.tolist() for part in fold] for fold in make()]
    except (ValueError, TypeError):
        return "error"


def split_by(splitter, settings, *data):
    return list(splitter(**settings).split(*data))


def same(ours, theirs):
    mine, other = outcome(ours), outcome(theirs)
    assert mine == other
    return other != "error"


def random_labels(rng, n):
    return rng.choice(["cat", "dog", "ant", "bee"][: rng.randint(1, 5)], n)


def random_groups(rng, n):
    return rng.randint(0, rng.randint(1, 9), n) * 7 - 3


def some_of_both(worked):
    """A comparison that only ever worked, or only ever failed, compared one half."""
    assert any(worked) and not all(worked)


# --------------------------------------------------------------------------- folds


@pytest.mark.parametrize("shuffle", [False, True])
def test_kfold_is_that_of_scikit_learn(shuffle):
    worked = []
    for n, k, seed in itertools.product(
        (1, 2, 3, 7, 20, 101), (0, 1, 2, 3, 5, 7), (0, 1)
    ):
        settings = {"n_splits": k} | (
            {"shuffle": True, "random_state": seed} if shuffle else {}
        )
        worked.append(
            same(
                partial(kfold_indices, n, k, shuffle=shuffle, seed=seed),
                partial(split_by, KFold, settings, np.zeros(n)),
            )
        )
    some_of_both(worked)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "ours, peer, draw, columns",
    [
        (stratified_kfold_indices, StratifiedKFold, random_labels, lambda v: (v, v)),
        (group_kfold_indices, GroupKFold, random_groups, lambda v: (v, None, v)),
    ],
    ids=["stratified", "group"],
)
def test_other_kfolds_are_those_of_scikit_learn(ours, peer, draw, columns, shuffle):
    worked = []
    for seed in range(120):
        rng = np.random.RandomState(seed)
        n, k = rng.randint(1, 40), rng.randint(1, 8)
        values = draw(rng, n)
        settings = {"n_splits": k} | (
            {"shuffle": True, "random_state": seed} if shuffle else {}
        )
        worked.append(
            same(
                partial(ours, values, k, shuffle=shuffle, seed=seed),
                partial(split_by, peer, settings, *columns(values)),
            )
        )
    some_of_both(worked)


def test_time_series_split_is_that_of_scikit_learn():
    worked = []
    for n, k, gap, size, most in itertools.product(
        (1, 3, 6, 20, 41), (1, 2, 5), (0, 1, 4), (None, 1, 3, 9), (None, 1, 7)
    ):
        settings = {"gap": gap, "test_size": size, "max_train_size": most}
        worked.append(
            same(
                partial(time_series_split, n, k, **settings),
                partial(
                    split_by, TimeSeriesSplit, {"n_splits": k} | settings, np.zeros(n)
                ),
            )
        )
    some_of_both(worked)


def test_negative_gap_is_refused_where_scikit_learn_leaks():
    train, held = next(TimeSeriesSplit(2, gap=-2).split(np.zeros(9)))
    assert np.intersect1d(train, held).size
    with pytest.raises(ValueError, match="gap"):
        time_series_split(9, 2, gap=-2)


@pytest.mark.parametrize("seed", range(20))
def test_invariants_of_folds(seed):
    rng = np.random.RandomState(seed)
    n, k = rng.randint(30, 90), rng.randint(2, 6)
    labels, groups = rng.randint(0, 3, n), rng.randint(0, 12, n)
    shuffle = bool(seed % 2)
    by_class = stratified_kfold_indices(labels, k, shuffle=shuffle, seed=seed)
    by_group = group_kfold_indices(groups, k, shuffle=shuffle, seed=seed)
    for folds in (kfold_indices(n, k, shuffle=shuffle, seed=seed), by_class, by_group):
        for train, held in folds:
            assert sorted([*train, *held]) == list(range(n))
            assert (np.diff(train) > 0).all() and (np.diff(held) > 0).all()
        assert sorted(np.concatenate([held for _, held in folds])) == list(range(n))
    for number in range(3):
        counts = [(labels[held] == number).sum() for _, held in by_class]
        assert max(counts) - min(counts) <= 1
    for train, held in by_group:
        assert not set(groups[train]) & set(groups[held])
    if not shuffle:
        sizes = [len(held) for _, held in by_group]
        assert max(sizes) - min(sizes) <= np.bincount(groups).max()
    for gap in (0, 3):
        folds = time_series_split(n, k, gap=gap)
        assert all(held.min() - train.max() == gap + 1 for train, held in folds)
        assert (np.diff(np.concatenate([held for _, held in folds])) == 1).all()
        assert folds[-1][1][-1] == n - 1


def test_rare_class_warns_and_bad_labels_are_errors():
    with pytest.warns(UserWarning, match="some folds lack it"):
        stratified_kfold_indices([0] * 9 + [1] * 2, 3)
    for labels in ([0.5, 0.1, 0.7, 0.2], [[0, 1], [1, 0]], [0.0, math.nan, 1.0, 0.0]):
        with pytest.raises(ValueError):
            stratified_kfold_indices(labels, 2)
        with pytest.raises(ValueError):
            next(StratifiedKFold(2).split(labels, labels))
    with pytest.raises(ValueError, match="NaN"):
        group_kfold_indices([0.0, math.nan, 1.0], 2)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: kfold_indices(4, 5), "use fewer splits"),
        (lambda: kfold_indices(4, 1), "at least 2"),
        (lambda: kfold_indices(4, 2.0), "whole number"),
        (lambda: kfold_indices(4, True), "whole number"),
        (lambda: kfold_indices(4, 2, shuffle=True, seed=-1), "seed"),
        (lambda: group_kfold_indices([1, 1, 2], 3), "only 2 groups"),
        (lambda: group_kfold_indices([[1], [2]], 2), "one for each row"),
        (lambda: time_series_split(10, 3, test_size=3, gap=1), "smaller gap"),
        (lambda: time_series_split(10, 3, test_size=0), "test_size"),
        (lambda: hold_out_split(10, 1.5), "share in"),
        (lambda: hold_out_split(10, 0), "whole number of rows"),
        (lambda: hold_out_split(10, True), "share in"),
        (lambda: hold_out_split(10, 0.95), "smaller share"),
        (lambda: hold_out_split(3, 0.5, labels=[0, 1, 1]), "single row"),
        (lambda: hold_out_split(3, 0.5, labels=[0, 1]), "one for each row"),
        (lambda: hold_out_split(6, 1, labels=[0, 0, 1, 1, 2, 2]), "row in both parts"),
        (lambda: hold_out_split(4, 0.5, labels=[0] * 4, groups=[0] * 4), "not both"),
        (lambda: train_val_test_split(10, 0.5, 0.5), "nothing is left"),
        (lambda: stratified_group_split([0, 1], [1, 2], 0.0), "share in"),
        (lambda: stratified_group_split([0, 1], [1, 2], 0.5, 0.5), "nothing to train"),
        (lambda: stratified_group_split([0, 1], [1, 2]), "cut the groups finer"),
        (
            lambda: nested_cross_val_score({}, None, None, outer=[], inner=None),
            "no candidates",
        ),
        (lambda: wilson_interval(5, 4), "correct"),
        (lambda: wilson_interval(1, 4, 1.0), "level"),
        (lambda: corrected_standard_error([1.0], 8, 2), "two scores"),
        (lambda: kfold_indices(0), "n=0: give a whole number of at least 1"),
        (lambda: kfold_indices(4, 5), "n_splits=5, but there are only 4 rows"),
        (lambda: stratified_kfold_indices([0, 0, 1], 4), "only 3 rows"),
        (lambda: stratified_kfold_indices([0, 0, 1, 1], 3), "largest class has 2 rows"),
        (
            lambda: stratified_kfold_indices([[0, 1]], 2),
            r"labels .* shape \(1, 2\).*\(n,\)",
        ),
        (lambda: stratified_kfold_indices([math.inf, 1.0], 2), "labels holds NaN"),
        (lambda: stratified_kfold_indices([0.5, 1.0], 2), "labels are fractions"),
        (lambda: group_kfold_indices([[1], [2]], 2), r"groups has the shape \(2, 1\)"),
        (lambda: group_kfold_indices([0.0, math.nan], 2), "groups holds NaN"),
        (lambda: time_series_split(0), "n=0: give a whole number of at least 1"),
        (lambda: time_series_split(4, 4), "only 3 rows after the first"),
        (lambda: time_series_split(9, 2, gap=-1), "gap=-1: .* at least 0"),
        (lambda: time_series_split(9, 2, max_train_size=0), "max_train_size=0: .* 1"),
        (lambda: time_series_split(9, 2, test_size=0), "test_size=0: .* at least 1"),
        (lambda: hold_out_split(1), "n=1: give a whole number of at least 2"),
        (lambda: hold_out_split(9, 9), "test=9: .* rows from 1 to 8"),
        (lambda: hold_out_split(9, 0.95), "test=0.95 holds out all 9 rows"),
        (lambda: hold_out_split(9, 1.0), "test=1.0: give a share"),
        (lambda: hold_out_split(9, 0.0), "test=0.0: give a share"),
        (
            lambda: hold_out_split(4, 3, groups=[0, 0, 1, 2]),
            "test=3: .* groups from 1 to 2",
        ),
        (lambda: hold_out_split(4, 0.9, groups=[0, 0, 1, 2]), "holds out all 3 groups"),
        (lambda: hold_out_split(3, 2, groups=[0, 1]), r"groups has .* \(2,\): .*\(3,\)"),
        (lambda: hold_out_split(3, 2, labels=[0, 1]), r"labels has .* \(2,\): .*\(3,\)"),
        (
            lambda: hold_out_split(4, 4, labels=[0, 0, 1, 1]),
            "test=4: .* rows from 1 to 3",
        ),
        (
            lambda: hold_out_split(6, 1, labels=[0, 0, 1, 1, 2, 2]),
            "1 rows held out of 6 cannot give each of 3 classes",
        ),
        (lambda: train_val_test_split(9, 9), "validation=9: .* rows from 1 to 8"),
        (lambda: train_val_test_split(9, 4, 5), "validation takes 4 .* leaves only 4"),
        (
            lambda: train_val_test_split(6, 5, 1, groups=[0, 0, 1, 1, 2, 2]),
            "validation=5: .* groups from 1 to 2",
        ),
        (lambda: stratified_group_split([0, 1], [1, 2], 0.0), "validation=0.0: give"),
        (lambda: stratified_group_split([0, 1], [1, 2], 1.0), "validation=1.0: give"),
        (lambda: stratified_group_split([0, 1], [1, 2], 0.1, 0.0), "test=0.0: give"),
        (lambda: stratified_group_split([0, 1], [1, 2], 0.5, 0.75), "take 1.25 and"),
        (lambda: stratified_group_split([0], [[1]]), "groups has the shape"),
        (
            lambda: stratified_group_split([0, 1, 1], [1, 2]),
            r"labels has .*\(3,\): .*\(2,\)",
        ),
        (lambda: stratified_group_split([0], [1], 0.1, 0.1), "1 groups leave no valid"),
        (lambda: stratified_group_split([0, 0], [1, 2], 0.3), "2 groups leave no test"),
        (lambda: stratified_group_split([0, 0], [1, 2], 0.4, 0.5), "no training rows"),
        (lambda: wilson_interval(0, 0), "total=0: give a whole number of at least 1"),
        (lambda: wilson_interval(-1, 4), "correct=-1: give a number from 0 to total=4"),
        (lambda: wilson_interval(1, 4, 0.0), "level=0.0: give a share"),
        (lambda: corrected_standard_error([1.0, 2.0], 0, 2), "train_rows=0: .* 1"),
        (lambda: corrected_standard_error([1.0, 2.0], 8, 0), "test_rows=0: .* 1"),
    ],
)
def test_errors_say_what_to_do(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_numbers_at_the_edge_are_taken():
    (first, second), (third, fourth) = time_series_split(3, 2, max_train_size=1)
    assert [part.tolist() for part in (first, second, third, fourth)] == [
        [0],
        [1],
        [1],
        [2],
    ]
    assert time_series_split(4, 2, gap=1, test_size=1)[0][0].tolist() == [0]
    assert stratified_kfold_indices([0, 0, 1, 1], 2)[0][1].tolist() == [0, 2]
    assert [len(part) for part in hold_out_split(2, 1)] == [1, 1]
    assert [len(part) for part in hold_out_split(4, 2, labels=[0, 0, 1, 1])] == [2, 2]
    assert [len(part) for part in train_val_test_split(9, 4, 4)] == [1, 4, 4]
    assert corrected_standard_error([1.0, 2.0], 1, 1) == pytest.approx(math.sqrt(0.75))


def test_settings_left_out():
    """Five folds in order, a quarter held out, or 15 % for validation and for test."""
    labels, groups = np.arange(40) % 2, np.arange(40) // 2
    for ours, columns, peer in (
        (kfold_indices, (40,), KFold(5)),
        (stratified_kfold_indices, (labels,), StratifiedKFold(5)),
        (group_kfold_indices, (groups,), GroupKFold(5)),
        (time_series_split, (40,), TimeSeriesSplit(5)),
    ):
        theirs = partial(peer.split, labels, labels, groups)
        assert same(partial(ours, *columns), theirs)
        if ours is not time_series_split:
            shuffled = partial(ours, *columns, shuffle=True)
            assert outcome(shuffled) == outcome(partial(shuffled, seed=0))
    drawn = hold_out_split(40), train_val_test_split(40)
    given = hold_out_split(40, 0.25, seed=0), train_val_test_split(40, 0.15, 0.15, seed=0)
    assert str(drawn) == str(given)
    by_group = stratified_group_split(labels, groups)
    assert str(by_group) == str(
        stratified_group_split(labels, groups, 0.15, 0.15, seed=0)
    )
    assert wilson_interval(3, 9) == wilson_interval(3, 9, 0.95)


def test_a_warning_counts_the_rows_of_the_rare_class():
    with pytest.warns(UserWarning, match="a class has 2 rows, fewer than the 3"):
        stratified_kfold_indices([0] * 9 + [1] * 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stratified_kfold_indices([0] * 9 + [1] * 3, 3)


def test_a_warning_points_to_the_line_of_the_call():
    with pytest.warns(UserWarning) as found:
        stratified_kfold_indices([0] * 9 + [1] * 2, 3)
    assert [warning.filename for warning in found] == [__file__]


# --------------------------------------------------------------------------- hold-out


def test_hold_out_is_that_of_scikit_learn():
    worked = []
    for seed in range(150):
        rng = np.random.RandomState(seed)
        n = rng.randint(2, 40)
        size = [rng.uniform(0.02, 0.98), int(rng.randint(0, n + 2))][seed % 2]
        labels, groups, x = random_labels(rng, n), random_groups(rng, n), np.zeros(n)
        for ours, splitter, args in (
            ({}, ShuffleSplit, (x,)),
            ({"labels": labels}, StratifiedShuffleSplit, (x, labels)),
            ({"groups": groups}, GroupShuffleSplit, (x, None, groups)),
        ):
            settings = {"n_splits": 1, "test_size": size, "random_state": seed}
            worked.append(
                same(
                    lambda ours=ours, n=n, size=size, seed=seed: [
                        hold_out_split(n, size, seed=seed, **ours)
                    ],
                    partial(split_by, splitter, settings, *args),
                )
            )
    some_of_both(worked)


def test_rounding_of_shares_draws_the_same_rows_as_scikit_learn():
    """1 / 49 * 49 is below 1 in floats, so that a lot is drawn where none seems due."""
    labels = np.array([0] * 2 + [1] * 96)
    settings = {"n_splits": 1, "test_size": 49, "random_state": 0}
    peer = partial(split_by, StratifiedShuffleSplit, settings, labels, labels)
    assert same(lambda: [hold_out_split(98, 49, labels=labels)], peer)


@pytest.mark.parametrize("seed", range(30))
def test_three_parts_are_train_test_split_twice(seed):
    rng = np.random.RandomState(seed)
    n = rng.randint(40, 90)
    labels = rng.randint(0, 3, n)
    for given in (None, labels):
        rest, test = train_test_split(
            np.arange(n), test_size=0.2, stratify=given, random_state=seed
        )
        train, val = train_test_split(
            rest,
            test_size=math.ceil(0.15 * n),
            stratify=None if given is None else given[rest],
            random_state=seed,
        )
        ours = train_val_test_split(n, 0.15, 0.2, labels=given, seed=seed)
        for mine, theirs in zip(ours, (train, val, test), strict=True):
            assert mine.tolist() == theirs.tolist()


@pytest.mark.parametrize("seed", range(10))
def test_invariants_of_three_parts(seed):
    rng = np.random.RandomState(seed)
    n, groups = 60, rng.permutation(np.arange(60) % 12)
    labels = rng.randint(0, 3, n)
    for given in ({}, {"labels": labels}, {"groups": groups}):
        parts = train_val_test_split(n, 0.15, 0.2, seed=seed, **given)
        assert sorted(np.concatenate(parts)) == list(range(n))
        other = train_val_test_split(n, 0.3, 0.2, seed=seed, **given)
        assert other[2].tolist() == parts[2].tolist()
        if "groups" in given:
            sets = [set(groups[part]) for part in parts]
            assert not sets[0] & sets[1] and not sets[2] & (sets[0] | sets[1])
            assert [len(s) for s in sets] == [7, 2, 3]
    held = hold_out_split(n, 0.25, labels=labels, seed=seed)[1]
    for number in range(3):
        assert abs((labels[held] == number).sum() - 0.25 * (labels == number).sum()) < 1


def test_seeds_differ_and_repeat():
    first, again, other = (hold_out_split(50, 0.2, seed=s)[1].tolist() for s in (0, 0, 1))
    assert first == again != other


# --------------------------------------------------------------------------- both at once


@pytest.mark.parametrize("seed", range(20))
def test_three_parts_of_whole_groups(seed):
    rng = np.random.RandomState(seed)
    n = rng.randint(150, 300)
    labels = rng.choice(["cat", "dog", "ant"], n, p=[0.6, 0.3, 0.1])
    groups = rng.randint(0, 60, n)
    parts = stratified_group_split(labels, groups, 0.2, 0.25, seed=seed)
    assert sorted(np.concatenate(parts)) == list(range(n))
    names = [set(groups[part]) for part in parts]
    assert not names[0] & names[1] and not names[2] & (names[0] | names[1])
    for part, share in zip(parts, (0.55, 0.2, 0.25), strict=True):
        for label in ("cat", "dog", "ant"):
            whole = (labels == label).sum()
            assert abs((labels[part] == label).sum() / whole - share) < 0.1
    again = stratified_group_split(labels, groups, 0.2, 0.25, seed=seed)
    other = stratified_group_split(labels, groups, 0.2, 0.25, seed=seed + 1)
    assert [p.tolist() for p in parts] == [p.tolist() for p in again]
    assert [p.tolist() for p in parts] != [p.tolist() for p in other]


@pytest.mark.parametrize("seed", range(20))
def test_three_parts_of_single_rows_are_stratified(seed):
    rng = np.random.RandomState(seed)
    labels = rng.randint(0, 4, 200)
    parts = stratified_group_split(labels, np.arange(200), 0.1, 0.3, seed=seed)
    for part, share in zip(parts, (0.6, 0.1, 0.3), strict=True):
        off = np.bincount(labels[part], minlength=4) - share * np.bincount(labels)
        assert abs(off).max() < 2


@pytest.mark.parametrize("seed", range(5))
def test_each_group_goes_where_it_brings_the_shares_nearest(seed):
    """The largest first, by the squares of what is missing, over what there is."""
    rng = np.random.RandomState(seed)
    labels, groups = rng.randint(0, 3, 120), rng.randint(0, 30, 120)
    parts = stratified_group_split(labels, groups, 0.2, 0.25, seed=seed)
    names = np.unique(groups)
    totals = np.bincount(labels, minlength=3)
    there = np.array([np.bincount(labels[groups == g], minlength=3) for g in names])
    order = np.random.RandomState(seed).permutation(len(names))
    order = sorted(order, key=lambda group: -there[group].sum())
    missing = np.outer([0.55, 0.2, 0.25], totals)
    want = [[], [], []]
    for group in order:
        off = []
        for part in range(3):
            left = missing.copy()
            left[part] -= there[group]
            off.append(((left / totals) ** 2).sum())
        missing[np.argmin(off)] -= there[group]
        want[np.argmin(off)].append(names[group])
    for part, members in zip(parts, want, strict=True):
        assert set(groups[part]) == set(members)


def test_classes_may_be_whole_numbers_in_floats():
    labels = np.array([0.0, 1.0, 2.0] * 4)
    folds = stratified_kfold_indices(labels, 2)
    assert str(folds) == str(stratified_kfold_indices(labels.astype(int), 2))


def test_a_row_at_the_distance_of_near_is_near():
    x = np.array([[1.0, 1.0], [-1.0, -1.0], [2.0, 1.0]])  # 1 away; two rows are 2 apart
    (leak,) = check_leakage(x, [0, 1], [2], near=0.5)
    assert leak.kind == "near-duplicate"
    assert check_leakage(x, [0, 1], [2], near=0.49) == []


def test_a_group_larger_than_its_part_trains():
    groups = np.repeat([0, 1, 2, 3, 4], [60, 10, 10, 10, 10])
    train, validation, test = stratified_group_split(np.zeros(100, int), groups, 0.2, 0.2)
    assert set(groups[train]) == {0} and len(validation) == len(test) == 20


# --------------------------------------------------------------------------- scores


def classification(seed, n=60, noise=1.5):
    rng = np.random.RandomState(seed)
    y = rng.randint(0, 2, n)
    return y[:, None] * np.array([1.0, 0.5, 0.0]) + noise * rng.randn(n, 3), y


@pytest.mark.parametrize("seed", range(5))
def test_cross_val_score_is_that_of_scikit_learn(seed):
    x, y = classification(seed)
    folds = kfold_indices(len(x), 4, shuffle=True, seed=seed)
    theirs = their_cross_val_score(LogisticRegression(), x, y, cv=folds)
    np.testing.assert_array_equal(
        cross_val_score(LogisticRegression, x, y, folds), theirs
    )


@pytest.mark.parametrize("seed", range(5))
def test_nested_is_grid_search_in_cross_val_score(seed):
    x, y = classification(seed)
    grid = [1, 3, 5, 9, 15]
    found = nested_cross_val_score(
        {str(k): lambda k=k: KNeighborsClassifier(k) for k in grid},
        x,
        y,
        outer=kfold_indices(len(x), 4, shuffle=True, seed=seed),
        inner=lambda rows: kfold_indices(len(rows), 3),
    )
    assert isinstance(found, NestedScores)
    search = GridSearchCV(KNeighborsClassifier(), {"n_neighbors": grid}, cv=KFold(3))
    outer = KFold(4, shuffle=True, random_state=seed)
    np.testing.assert_array_equal(
        found.scores, their_cross_val_score(search, x, y, cv=outer)
    )
    for (train, _), name, score in zip(
        outer.split(x), found.chosen, found.inner_scores, strict=True
    ):
        search.fit(x[train], y[train])
        assert str(search.best_params_["n_neighbors"]) == name
        assert search.best_score_ == pytest.approx(score, abs=1e-12)


def test_nested_with_one_candidate_is_plain_cross_validation():
    x, y = classification(0)
    folds = kfold_indices(len(x), 5)
    found = nested_cross_val_score(
        {"only": LogisticRegression},
        x,
        y,
        outer=folds,
        inner=lambda r: kfold_indices(len(r), 2),
    )
    plain = cross_val_score(LogisticRegression, x, y, folds)
    np.testing.assert_array_equal(found.scores, plain)


class Spy(BaseEstimator):
    """Notes which rows it is fitted and scored on; column 0 is the row's number."""

    log: list = []

    def fit(self, x, y):
        self.log.append(("fit", set(x[:, 0].tolist())))

    def score(self, x, y):
        self.log.append(("score", set(x[:, 0].tolist())))
        return 0.5


@pytest.mark.parametrize("tensor", [False, True])
def test_outer_rows_are_kept_from_every_fit_and_choice(tensor):
    x, y = np.arange(24.0)[:, None], np.arange(24)
    if tensor:
        x, y = torch.from_numpy(x), torch.from_numpy(y)
    for number, (train, held) in enumerate(kfold_indices(24, 4, shuffle=True)):
        Spy.log = []
        seen = []
        found = nested_cross_val_score(
            {"a": Spy, "b": Spy}, x, y, outer=[(train, held)],
            inner=lambda rows, seen=seen: seen.append(rows) or kfold_indices(len(rows), 3),
        )  # fmt: skip
        assert found.chosen == ["a"], number
        assert [rows.tolist() for rows in seen] == [train.tolist()]
        *before, last_fit, last_score = Spy.log
        assert all(not rows & set(held.tolist()) for _, rows in before)
        assert last_fit == ("fit", set(train.tolist()))
        assert last_score == ("score", set(held.tolist()))


def test_wilson_interval_is_that_of_scipy():
    for total in (1, 2, 10, 269, 10_000):
        for share in (0.0, 0.1, 0.5, 0.97, 1.0):
            for level in (0.5, 0.95, 0.999):
                correct = round(share * total)
                low, high = wilson_interval(correct, total, level)
                want = binomtest(correct, total).proportion_ci(level, method="wilson")
                assert low == pytest.approx(want.low, abs=1e-12)
                assert high == pytest.approx(want.high, abs=1e-12)
                assert 0 <= low <= correct / total <= high <= 1
    widths = [np.diff(wilson_interval(n // 2, n))[0] for n in (10, 100, 1000)]
    assert widths[0] > widths[1] > widths[2]


def test_corrected_standard_error():
    scores = np.random.RandomState(0).rand(10)
    usual = scores.std(ddof=1) / math.sqrt(10)
    found = corrected_standard_error(scores, 80, 20)
    assert found == pytest.approx(usual * math.sqrt(1 + 10 * 20 / 80), rel=1e-12)
    many = corrected_standard_error(np.tile(scores, 1000), 80, 20)
    assert many == pytest.approx(scores.std() * math.sqrt(0.25), rel=1e-3)


# --------------------------------------------------------------------------- leakage


def clean_data(seed, n=200, columns=12):
    return np.random.RandomState(seed).randn(n, columns)


def kinds(leaks):
    return {leak.kind: leak.rows.tolist() for leak in leaks}


@pytest.mark.parametrize("seed", range(25))
def test_a_clean_split_has_no_leak(seed):
    x = clean_data(seed)
    train, test = np.arange(150), np.arange(150, 200)
    facts = {"groups": np.arange(200) // 10, "times": np.arange(200.0), "gap": 0.5}
    stats = {"mean": x[:150].mean(0), "std": x[:150].std(0, ddof=1), "max": x[:150].max()}
    assert check_leakage(x, train, test, statistics=stats, **facts) == []
    assert check_leakage(torch.from_numpy(x), torch.arange(150), test) == []


@pytest.mark.parametrize("seed", range(25))
def test_planted_leaks_are_found_and_nothing_else(seed):
    rng, x = np.random.RandomState(seed), clean_data(seed)
    order = rng.permutation(200)
    train, test = order[:150], order[150:]
    equal, close = test[:3], test[3:5]
    x[equal] = x[train[:3]]
    x[close] = x[train[3:5]] + 0.05 * rng.randn(2, 12)
    with_shared = np.append(test, train[7:9])
    groups = np.where(np.isin(np.arange(200), train), 0, 1)
    groups[test[10:14]] = 0
    times = np.where(np.isin(np.arange(200), train), 0.0, 5.0)
    times[train[20]] = 4.5
    found = check_leakage(x, train, with_shared, groups=None, times=None)
    assert kinds(found) == {
        "shared row": train[7:9].tolist(),
        "duplicate": equal.tolist(),
        "near-duplicate": close.tolist(),
    }
    assert kinds(check_leakage(x, train, test, groups=groups, near=0))["group"] == (
        test[10:14].tolist()
    )
    assert all(isinstance(leak, Leak) for leak in found)
    assert "time" not in kinds(check_leakage(x, train, test, times=times, gap=0.4))
    late = next(
        leak
        for leak in check_leakage(x, train, test, times=times, gap=0.6)
        if leak.kind == "time"
    )
    assert "first test row: 1" in str(late) and len(late.rows) == 50
    shuffled = rng.permutation(150), rng.permutation(len(with_shared))
    again = check_leakage(x, train[shuffled[0]], with_shared[shuffled[1]])
    assert {k: sorted(v) for k, v in kinds(again).items()} == {
        k: sorted(v) for k, v in kinds(found).items()
    }


def test_near_off_finds_exact_copies_only_and_minus_zero_is_zero():
    x = clean_data(0)
    x[0, 0], x[190] = 0.0, x[0]
    x[190] = x[0]
    x[190, 0] = -0.0
    x[191] = x[1] + 1e-9
    train, test = np.arange(150), np.arange(150, 200)
    assert kinds(check_leakage(x, train, test, near=0)) == {"duplicate": [190]}
    assert kinds(check_leakage(x, train, test)) == {
        "duplicate": [190],
        "near-duplicate": [191],
    }
    assert kinds(check_leakage(np.ones((4, 2)), [0, 1], [2, 3])) == {"duplicate": [2, 3]}


def test_each_leak_says_what_was_found_and_how_often():
    x = clean_data(0)
    x[150], x[151:153] = x[0], x[1:3] + 1e-9
    train, test = np.arange(150), np.arange(148, 200)
    groups, times = np.arange(200), np.arange(200.0)
    groups[155:159] = [7, 7, 9, 9]
    told = check_leakage(
        x, train, test, groups=groups, times=times, statistics={"mean": x.mean(0)}
    )
    assert [str(leak) for leak in told] == [
        "shared row: rows in both parts: 2",
        "duplicate: test rows equal to a training row: 1",
        "near-duplicate: test rows nearly equal to a training row: 2",
        "group: test rows of 4 groups that also train: 6",
        "time: training rows at the time of the first test row or later: 2",
        "statistics: the values of mean were computed on training and test rows together",
    ]
    (late,) = check_leakage(x, train[:148], test[5:], times=times, gap=6)
    assert late.rows.tolist() == [153] and late.message == (
        "training rows without a gap of more than 6 to the first test row: 1"
    )


@pytest.mark.parametrize("rows", [1, 2])
def test_spread_of_few_rows_is_compared_by_both_conventions(rows):
    """Over n and over n - 1; of a single row there is only the first."""
    x = clean_data(1)
    train, test = np.arange(150), np.arange(150, 150 + rows)
    spread = x[test].std(0)
    (leak,) = check_leakage(x, train, test, statistics={"std": spread})
    assert leak.message == "the values of std were computed on the test rows"


@pytest.mark.parametrize("name", ["mean", "std", "min", "max"])
@pytest.mark.parametrize("seed", range(5))
def test_statistics_fitted_outside(name, seed):
    rng = np.random.RandomState(seed)
    images = rng.rand(60, 3, 4, 4).astype(np.float32)
    # the test rows hold the smallest and largest values
    images[50:] = images[50:] * 1.5 - 0.2
    train, test = np.arange(50), np.arange(50, 60)
    for axis in ((0,), (0, 2, 3), (0, 1, 2, 3)):
        for rows, words in (
            (train, None),
            (np.arange(60), "together|test rows"),
            (test, "test rows"),
            (train[:20], "not those of the training rows"),
        ):
            values = getattr(np, name)(images[rows], axis=axis)
            found = check_leakage(images, train, test, statistics={name: values})
            if words is None:
                assert found == []
            elif name in ("min", "max") and rows is not test and len(rows) == 20:
                continue  # the extremes of a part may be those of the whole
            else:
                (leak,) = found
                assert leak.kind == "statistics" and len(leak.rows) == 10
                assert any(word in leak.message for word in words.split("|"))


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"train": [0, 9]}, "outside 0 to 3"),
        ({"train": [0.5]}, "row numbers"),
        ({"train": []}, "row numbers"),
        ({"test": [0, 9]}, "test has row numbers outside 0 to 3"),
        ({"test": [-1]}, "test has row numbers outside 0 to 3"),
        ({"train": [4]}, "train has row numbers outside 0 to 3"),
        ({"test": [[1]]}, "test must be row numbers"),
        ({"near": 1.0}, "near=1.0: give"),
        ({"near": -0.1}, "near=-0.1: give"),
        ({"groups": [1, 2]}, r"groups has the shape \(2,\): .*\(4,\)"),
        ({"times": [1, 2]}, r"times has the shape \(2,\): .*\(4,\)"),
        ({"statistics": {"median": 0.0}}, "'median': choose from mean, std, min, max"),
        (
            {"statistics": {"mean": np.zeros(5)}},
            r"mean has the shape \(5,\): .* column \(2,\), each channel \(2,\)",
        ),
        ({"near": 1.5}, "near"),
        ({"groups": [1, 2]}, "one for each row"),
        ({"times": [1.0, math.nan, 2.0, 3.0]}, "NaN"),
        ({"times": [1, 2, 3, 4], "gap": -1}, "gap"),
        ({"statistics": {"median": 0.0}}, "choose from mean"),
        ({"statistics": {"mean": np.zeros(5)}}, "one value for each column"),
    ],
)
def test_bad_questions_are_refused(kwargs, words):
    given = {"train": [0, 1], "test": [2, 3]} | kwargs
    with pytest.raises(ValueError, match=words):
        check_leakage(clean_data(0, 4, 2), **given)


@pytest.mark.parametrize("seed", range(5))
def test_each_splitter_passes_the_check_of_its_kind(seed):
    rng, x = np.random.RandomState(seed), clean_data(seed)
    groups = rng.randint(0, 14, 200)
    for train, held in group_kfold_indices(groups, 5):
        assert check_leakage(x, train, held, groups=groups) == []
    for train, held in kfold_indices(200, 5, shuffle=True, seed=seed):
        assert "group" in kinds(check_leakage(x, train, held, groups=groups))
    for gap in (0, 6):
        for train, held in time_series_split(200, 5, gap=gap):
            assert check_leakage(x, train, held, times=np.arange(200), gap=gap) == []
            late = check_leakage(x, train, held, times=np.arange(200), gap=gap + 1)
            assert list(kinds(late)) == ["time"]


# --------------------------------------------------------------------------- exercises


WRITERS, SCALER, REPORT, BOTH_NEW = EXERCISES


def by_round_robin(groups, n_splits):
    names = sorted(set(groups.tolist()))
    fold = [names.index(name) % n_splits for name in groups.tolist()]
    for number in range(n_splits):
        held = [row for row, f in enumerate(fold) if f == number]
        yield [row for row, f in enumerate(fold) if f != number], held


@pytest.mark.parametrize(
    "answer",
    [
        by_round_robin,
        lambda groups, k: GroupKFold(k).split(groups, None, groups),
        lambda groups, k: group_kfold_indices(groups, k, shuffle=True),
        lambda groups, k: [
            (torch.tensor(a).flip(0), b.tolist()) for a, b in WRITERS.solve(groups, k)
        ],
    ],
)
def test_whole_writers_in_every_right_style(answer):
    assert WRITERS.hint_for(answer) is None


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda g, k: WRITERS.solve(g, k)[:1] * k, "exactly one fold"),
        (lambda g, k: WRITERS.solve(g, k)[0], "pairs of two"),
        (lambda g, k: [(b, a) for a, b in WRITERS.solve(g, k)], "exactly one fold"),
        (lambda g, k: [(a[::2], b) for a, b in WRITERS.solve(g, k)], "Train on all"),
        (lambda g, k: [(g != n, g == n) for n in np.unique(g)[:k]], "mask"),
        (lambda g, k: WRITERS.solve(g, len(np.unique(g))), "n_splits pairs"),
        (lambda g, k: WRITERS.solve(np.sort(g), k), "need not be stored in order"),
        (lambda g, k: None, "returns None"),
    ],
)
def test_whole_writers_refused(answer, words):
    assert words in WRITERS.hint_for(answer)


def with_a_pipeline(make_scaler, make_model, inputs, targets, folds):
    for train, held in folds:
        model = make_pipeline(make_scaler(), make_model())
        model.fit(inputs[train], targets[train])
        model.score(inputs[train], targets[train])  # looking at it does no harm
        yield model.score(inputs[held], targets[held])


def all_fits_first(make_scaler, make_model, inputs, targets, folds):
    scalers = [make_scaler().fit(inputs[train]) for train, _ in folds]
    models = [make_model() for _ in folds]
    scores = []
    for model, scaler, (train, _) in zip(models, scalers, folds, strict=True):
        model.fit(scaler.transform(inputs)[train], targets[train])
    for model, scaler, (_, held) in zip(models, scalers, folds, strict=True):
        scores.append(model.score(scaler.transform(inputs)[held], targets[held]))
    return torch.tensor(scores)


@pytest.mark.parametrize(
    "answer",
    [
        with_a_pipeline,
        all_fits_first,
        lambda s, m, x, y, folds: cross_val_score(
            lambda: make_pipeline(s(), m()), x, y, folds
        ),
        lambda s, m, x, y, folds: their_cross_val_score(
            make_pipeline(s(), m()), x, y, cv=folds
        ),
    ],
)
def test_scaler_in_every_right_style(answer):
    assert SCALER.hint_for(answer) is None


def one_model_for_all(make_scaler, make_model, x, y, folds):
    model = make_model()
    return SCALER.solve(make_scaler, lambda: model, x, y, folds)


def one_scaler_for_all(make_scaler, make_model, x, y, folds):
    scaler = make_scaler()
    return SCALER.solve(lambda: scaler, make_model, x, y, folds)


def one_fold_after_the_other(work):
    """Return an answer that does `work(scaler, model, x, y, train, held)` in each fold."""

    def answer(make_scaler, make_model, x, y, folds):
        return [work(make_scaler(), make_model(), x, y, *fold) for fold in folds]

    return answer


def targets_of_all_rows(scaler, model, x, y, train, held):
    model.fit(scaler.fit_transform(x[train]), y)
    return model.score(scaler.transform(x[held]), y[held])


def scores_training_rows(scaler, model, x, y, train, held):
    model.fit(scaler.fit_transform(x[train]), y[train])
    return model.score(scaler.transform(x[train]), y[train])


def transforms_twice(scaler, model, x, y, train, held):
    model.fit(scaler.transform(scaler.fit_transform(x[train])), y[train])
    return model.score(scaler.transform(x[held]), y[held])


def scaler_never_used(scaler, model, x, y, train, held):
    scaler.fit(x[train])
    model.fit(x[train], y[train])
    return model.score(x[held], y[held])


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda *given: [score + 1 for score in SCALER.solve(*given)], "in their order"),
        (lambda *given: SCALER.solve(*given)[::-1], "in their order"),
        (lambda *given: np.mean(SCALER.solve(*given)), "in their order"),
        (lambda *given: [0.0] * 3, "Fit a scaler in each fold"),
        (lambda s, m, x, y, f: SCALER.solve(s, m, x, y, f[:1]), "in each fold"),
        (one_model_for_all, "new model"),
        (one_scaler_for_all, "new scaler"),
        (one_fold_after_the_other(targets_of_all_rows), "targets of other rows"),
        (one_fold_after_the_other(scores_training_rows), "Score the held-out rows"),
        (one_fold_after_the_other(transforms_twice), "transformed once"),
        (one_fold_after_the_other(scaler_never_used), "transformed once"),
    ],
)
def test_scaler_refused(answer, words):
    assert words in SCALER.hint_for(answer)


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda v, t: -1.0, "validation alone"),
        (lambda v, t: t[-1], "validation alone"),
        (lambda v, t: v[int(np.argmax(t))], "validation alone"),
        (lambda v, t: int(np.argmax(v)), "place in the list"),
        (lambda v, t: (max(v), t[int(np.argmax(v))]), "not a list"),
        (lambda v, t: torch.tensor(t)[torch.tensor(v).argmax()], None),
        (lambda v, t: sorted(zip(v, t, strict=True))[-1][1], None),
    ],
)
def test_report_answers(answer, words):
    hint = REPORT.hint_for(answer)
    assert hint is None if words is None else words in hint


def in_a_loop(users, days, new_users, first_day, ahead):
    train, test = [], []
    for row, (user, day) in enumerate(zip(users.tolist(), days.tolist(), strict=True)):
        if user in new_users and day >= first_day:
            test.append(row)
        if user not in new_users and day + ahead < first_day:
            train.append(row)
    return [train, torch.tensor(test)]


@pytest.mark.parametrize(
    "answer, words",
    [
        (in_a_loop, None),
        (lambda *given: BOTH_NEW.solve(*given)[::-1], "not new"),
        (
            lambda u, d, n, f, a: (np.flatnonzero(d < f), np.flatnonzero(d >= f)),
            "not new",
        ),
        (lambda u, d, n, f, a: BOTH_NEW.solve(u, d, n, f, a + 1), "Training lacks rows"),
        (
            lambda u, d, n, f, a: BOTH_NEW.solve(u, np.sort(d), n, f, a),
            "before first_day",
        ),
        (lambda *given: ([], []), "test lacks rows"),
        (lambda *given: BOTH_NEW.solve(*given)[0], "pairs of two"),
        (lambda u, d, n, f, a: (u == u[0], d > f), "mask"),
    ],
)
def test_new_users_later_answers(answer, words):
    hint = BOTH_NEW.hint_for(answer)
    assert hint is None if words is None else words in hint
