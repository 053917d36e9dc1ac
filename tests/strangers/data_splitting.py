"""Answers by a stranger to the exercises of chapter 01_data_splitting."""

import functools
import operator
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, LeaveOneGroupOut

# Exercise 0: folds_by_writer(groups, n_splits)


def folds_unique(groups, n_splits):
    groups = np.asarray(groups)
    folds = []
    for writers in np.array_split(np.unique(groups), n_splits):
        held = np.isin(groups, writers)
        folds.append((np.flatnonzero(~held), np.flatnonzero(held)))
    return folds


def folds_sklearn(groups, n_splits):
    rows = np.zeros(len(groups))
    return list(GroupKFold(n_splits=n_splits).split(rows, groups=groups))


def folds_shuffled(groups, n_splits):
    names, number = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    fold_of_writer = np.empty(len(names), dtype=int)
    fold_of_writer[order] = np.arange(len(names)) % n_splits
    fold = fold_of_writer[number]
    return tuple(
        (np.where(fold != k)[0], np.where(fold == k)[0]) for k in range(n_splits)
    )


def folds_lists(groups, n_splits):
    seen = {}
    for writer in groups:
        seen.setdefault(writer, len(seen) % n_splits)
    folds = []
    for k in range(n_splits):
        train = [row for row, writer in enumerate(groups) if seen[writer] != k]
        held = [row for row, writer in enumerate(groups) if seen[writer] == k]
        folds.append((train, held))
    return folds


def folds_by_rows(groups, n_splits):
    """The largest writer first, each to the fold with the fewest rows."""
    rows_of = defaultdict(list)
    for row, writer in enumerate(groups):
        rows_of[writer].append(row)
    held = [[] for _ in range(n_splits)]
    for rows in sorted(rows_of.values(), key=len, reverse=True):
        min(held, key=len).extend(rows)
    every = set(range(len(groups)))
    return [(sorted(every - set(rows)), rows) for rows in held]


def folds_any_order_by_rows(groups, n_splits):
    """Any writer next, always to the fold with the fewest rows."""
    loads = [0] * n_splits
    fold_of = {}
    for writer, count in Counter(list(groups)).items():
        k = loads.index(min(loads))
        fold_of[writer] = k
        loads[k] += count
    fold = np.array([fold_of[writer] for writer in groups])
    return [(np.nonzero(fold != k)[0], np.nonzero(fold == k)[0]) for k in range(n_splits)]


def folds_pandas(groups, n_splits):
    codes, _ = pd.factorize(np.asarray(groups))
    frame = pd.Series(codes % n_splits)
    rows = np.arange(len(frame))
    return [[rows[frame != k], rows[frame == k]] for k in range(n_splits)]


def folds_torch(groups, n_splits):
    number = torch.tensor(np.unique(groups, return_inverse=True)[1])
    fold = number.remainder(n_splits)
    pairs = [((fold != k).nonzero(), (fold == k).nonzero()) for k in range(n_splits)]
    return [(a.flatten().numpy(), b.flatten().numpy()) for a, b in pairs]


class Folds:
    """A recursion over the writers that are left."""

    def __call__(self, groups, n_splits):
        groups = np.array(groups)
        every = np.arange(len(groups))

        def cut(writers, parts):
            if parts == 0:
                return []
            size = -(-len(writers) // parts)
            held = every[np.isin(groups, list(writers[:size]))]
            rest = cut(writers[size:], parts - 1)
            return [(np.setdiff1d(every, held), held), *rest]

        return cut(sorted(set(groups.tolist())), n_splits)


folds_object = Folds()


def wrong_folds_rows(groups, n_splits):
    rows = np.random.default_rng(0).permutation(len(groups))
    folds = []
    for held in np.array_split(rows, n_splits):
        folds.append((np.setdiff1d(rows, held), held))
    return folds


def wrong_folds_blocks(groups, n_splits):
    rows = np.arange(len(groups))
    return [(np.setdiff1d(rows, h), h) for h in np.array_split(rows, n_splits)]


def wrong_folds_sorted_blocks(groups, n_splits):
    rows = np.argsort(groups, kind="stable")
    return [(np.setdiff1d(rows, h), h) for h in np.array_split(rows, n_splits)]


def wrong_folds_modulo(groups, n_splits):
    groups = np.asarray(groups)
    fold = groups % n_splits
    return [
        (np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_splits)
    ]


def wrong_folds_first_letter(groups, n_splits):
    fold = np.array([ord(str(writer)[0]) % n_splits for writer in groups])
    return [
        (np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_splits)
    ]


def wrong_folds_writers(groups, n_splits):
    writers = np.unique(groups)
    return [(np.setdiff1d(writers, h), h) for h in np.array_split(writers, n_splits)]


def wrong_folds_masks(groups, n_splits):
    folds = []
    for writers in np.array_split(np.unique(groups), n_splits):
        held = np.isin(groups, writers)
        folds.append((~held, held))
    return folds


def wrong_folds_swapped(groups, n_splits):
    folds = []
    for writers in np.array_split(np.unique(groups), n_splits):
        held = np.isin(groups, writers)
        folds.append((np.flatnonzero(held), np.flatnonzero(~held)))
    return folds


def wrong_folds_leave_one_out(groups, n_splits):
    return list(LeaveOneGroupOut().split(np.zeros(len(groups)), groups=groups))


def wrong_folds_shuffle_split(groups, n_splits):
    cut = GroupShuffleSplit(n_splits, test_size=1 / n_splits, random_state=0)
    return list(cut.split(np.zeros(len(groups)), groups=groups))


def wrong_folds_earlier_only(groups, n_splits):
    folds, before = [], np.array([], dtype=int)
    for writers in np.array_split(np.unique(groups), n_splits):
        held = np.flatnonzero(np.isin(groups, writers))
        folds.append((before, held))
        before = np.concatenate([before, held])
    return folds


def wrong_folds_remainder_lost(groups, n_splits):
    writers = np.unique(groups)
    size = len(writers) // n_splits
    folds = []
    for k in range(n_splits):
        held = np.isin(groups, writers[k * size : (k + 1) * size])
        folds.append((np.flatnonzero(~held), np.flatnonzero(held)))
    return folds


def wrong_folds_remainder_last(groups, n_splits):
    writers = np.unique(groups)
    size = len(writers) // n_splits
    folds = []
    for k in range(n_splits):
        end = (k + 1) * size if k < n_splits - 1 else len(writers)
        held = np.isin(groups, writers[k * size : end])
        folds.append((np.flatnonzero(~held), np.flatnonzero(held)))
    return folds


def wrong_folds_runs(groups, n_splits):
    groups = np.asarray(groups)
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    run = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(groups)]))
    fold = run % n_splits
    return [
        (np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_splits)
    ]


def wrong_folds_one_each(groups, n_splits):
    writers = np.unique(groups)
    folds = []
    for k in range(n_splits):
        mine = writers[k : k + 1] if k < n_splits - 1 else writers[k:]
        held = np.isin(groups, mine)
        folds.append((np.flatnonzero(~held), np.flatnonzero(held)))
    return folds


def wrong_folds_train_everything(groups, n_splits):
    folds = []
    for writers in np.array_split(np.unique(groups), n_splits):
        held = np.flatnonzero(np.isin(groups, writers))
        folds.append((np.arange(len(groups)), held))
    return folds


def wrong_folds_gap(groups, n_splits):
    """Leaves the rows of the next fold out of the training, too."""
    parts = np.array_split(np.unique(groups), n_splits)
    folds = []
    for k, writers in enumerate(parts):
        held = np.isin(groups, writers)
        aside = np.isin(groups, parts[(k + 1) % n_splits])
        folds.append((np.flatnonzero(~held & ~aside), np.flatnonzero(held)))
    return folds


def wrong_folds_first_fold(groups, n_splits):
    writers = np.array_split(np.unique(groups), n_splits)[0]
    held = np.isin(groups, writers)
    return [(np.flatnonzero(~held), np.flatnonzero(held))]


def wrong_folds_writer_cleaned(groups, n_splits):
    """Cuts the rows, and throws the held writers out of the training rows."""
    groups = np.asarray(groups)
    rows = np.random.default_rng(0).permutation(len(groups))
    folds = []
    for held in np.array_split(rows, n_splits):
        train = rows[~np.isin(groups[rows], groups[held])]
        folds.append((train, held))
    return folds


def wrong_folds_position(groups, n_splits):
    """Cuts the list of names, not their rows: positions in np.unique."""
    count = len(np.unique(groups))
    rows = np.arange(count)
    return [(np.setdiff1d(rows, h), h) for h in np.array_split(rows, n_splits)]


def wrong_folds_count_numbers(groups, n_splits):
    folds = []
    for numbers in np.array_split(np.arange(len(np.unique(groups))), n_splits):
        held = np.isin(groups, numbers)  # as if the writers were 0, 1, 2, ...
        folds.append((np.flatnonzero(~held), np.flatnonzero(held)))
    return folds


def wrong_folds_half(groups, n_splits):
    """The first half of the writers in one fold, the rest in the others."""
    writers = np.unique(groups)
    middle = len(writers) // 2
    parts = [writers[:middle], *np.array_split(writers[middle:], n_splits - 1)]
    folds = []
    for mine in parts:
        held = np.isin(groups, mine)
        folds.append((np.flatnonzero(~held), np.flatnonzero(held)))
    return folds


# Exercise 1: score_folds(make_scaler, make_model, inputs, targets, folds)


def score_plain(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        model.fit(scaler.fit_transform(inputs[train]), targets[train])
        scores.append(model.score(scaler.transform(inputs[held]), targets[held]))
    return scores


def score_two_calls(make_scaler, make_model, inputs, targets, folds):
    scores = np.zeros(len(folds))
    for i, (train, held) in enumerate(folds):
        scaler = make_scaler()
        scaler.fit(inputs[train])
        model = make_model()
        model.fit(scaler.transform(inputs[train]), targets[train])
        scores[i] = model.score(scaler.transform(inputs[held]), targets[held])
    return scores


def score_all_transformed(make_scaler, make_model, inputs, targets, folds):
    out = ()
    for train, held in folds:
        scaler = make_scaler()
        scaler.fit(inputs[train])
        scaled = scaler.transform(inputs)  # fitted on the training rows alone
        model = make_model()
        model.fit(scaled[train], targets[train])
        out += (model.score(scaled[held], targets[held]),)
    return out


def score_recursive(make_scaler, make_model, inputs, targets, folds):
    if len(folds) == 0:
        return []
    train, held = folds[0]
    model, scaler = make_model(), make_scaler()
    model.fit(scaler.fit_transform(inputs.take(train, 0)), targets.take(train, 0))
    first = model.score(scaler.transform(inputs.take(held, 0)), targets.take(held, 0))
    rest = score_recursive(make_scaler, make_model, inputs, targets, folds[1:])
    return [first, *rest]


def score_map(make_scaler, make_model, inputs, targets, folds):
    def one(fold):
        train, held = map(list, fold)
        scaler = make_scaler()
        model = make_model()
        a, b = scaler.fit_transform(inputs[train]), targets[train]
        model.fit(a, b)
        return float(model.score(scaler.transform(inputs[held]), targets[held]))

    return list(map(one, folds))


class OneFold:
    """A scaler and a model as one thing with fit and score."""

    def __init__(self, scaler, model):
        self.scaler, self.model = scaler, model

    def fit(self, x, y):
        self.model.fit(self.scaler.fit_transform(x.copy()), y.copy())
        return self

    def score(self, x, y):
        return self.model.score(self.scaler.transform(x.copy()), y.copy())


def score_pair(make_scaler, make_model, inputs, targets, folds):
    pairs = [OneFold(make_scaler(), make_model()) for _ in folds]
    for pair, (train, _) in zip(pairs, folds):
        pair.fit(inputs[train], targets[train])
    return [pair.score(inputs[h], targets[h]) for pair, (_, h) in zip(pairs, folds)]


def score_backwards(make_scaler, make_model, inputs, targets, folds):
    scores = {}
    for i in reversed(range(len(folds))):
        train, held = folds[i]
        scaler, model = make_scaler(), make_model()
        model.fit(scaler.fit_transform(inputs[np.array(train)]), targets[np.array(train)])
        x, y = inputs[np.array(held)], targets[np.array(held)]
        scores[i] = model.score(scaler.transform(x), y)
    return [scores[i] for i in range(len(folds))]


def wrong_score_scaler_all(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        scaled = scaler.fit_transform(inputs)
        model.fit(scaled[train], targets[train])
        scores.append(model.score(scaled[held], targets[held]))
    return scores


def wrong_score_scaler_once(make_scaler, make_model, inputs, targets, folds):
    scaled = make_scaler().fit_transform(inputs)
    scores = []
    for train, held in folds:
        model = make_model()
        model.fit(scaled[train], targets[train])
        scores.append(model.score(scaled[held], targets[held]))
    return scores


def wrong_score_fit_on_held(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        model.fit(scaler.fit_transform(inputs[train]), targets[train])
        scores.append(model.score(scaler.fit_transform(inputs[held]), targets[held]))
    return scores


def wrong_score_two_scalers(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        model = make_model()
        model.fit(make_scaler().fit_transform(inputs[train]), targets[train])
        scaled = make_scaler().fit_transform(inputs[held])
        scores.append(model.score(scaled, targets[held]))
    return scores


def wrong_score_one_model(make_scaler, make_model, inputs, targets, folds):
    model = make_model()
    scores = []
    for train, held in folds:
        scaler = make_scaler()
        model.fit(scaler.fit_transform(inputs[train]), targets[train])
        scores.append(model.score(scaler.transform(inputs[held]), targets[held]))
    return scores


def wrong_score_one_scaler(make_scaler, make_model, inputs, targets, folds):
    scaler = make_scaler()
    scores = []
    for train, held in folds:
        model = make_model()
        model.fit(scaler.fit_transform(inputs[train]), targets[train])
        scores.append(model.score(scaler.transform(inputs[held]), targets[held]))
    return scores


def wrong_score_on_train(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, _ in folds:
        scaler, model = make_scaler(), make_model()
        scaled = scaler.fit_transform(inputs[train])
        model.fit(scaled, targets[train])
        scores.append(model.score(scaled, targets[train]))
    return scores


def wrong_score_held_raw(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        model.fit(scaler.fit_transform(inputs[train]), targets[train])
        scores.append(model.score(inputs[held], targets[held]))
    return scores


def wrong_score_no_scaler(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        model = make_model()
        model.fit(inputs[train], targets[train])
        scores.append(model.score(inputs[held], targets[held]))
    return scores


def wrong_score_swapped(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for held, train in folds:
        scaler, model = make_scaler(), make_model()
        model.fit(scaler.fit_transform(inputs[train]), targets[train])
        scores.append(model.score(scaler.transform(inputs[held]), targets[held]))
    return scores


def wrong_score_mean(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        model.fit(scaler.fit_transform(inputs[train]), targets[train])
        scores.append(model.score(scaler.transform(inputs[held]), targets[held]))
    return sum(scores) / len(scores)


def wrong_score_sorted(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        model.fit(scaler.fit_transform(inputs[train]), targets[train])
        scores.append(model.score(scaler.transform(inputs[held]), targets[held]))
    return sorted(scores, reverse=True)


def wrong_score_first(make_scaler, make_model, inputs, targets, folds):
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        model.fit(scaler.fit_transform(inputs[train]), targets[train])
        return [model.score(scaler.transform(inputs[held]), targets[held])]


def wrong_score_model_all(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        scaler.fit(inputs[train])
        model.fit(scaler.transform(inputs), targets)
        scores.append(model.score(scaler.transform(inputs[held]), targets[held]))
    return scores


def wrong_score_overwrites(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        inputs[train] = scaler.fit_transform(inputs[train])
        inputs[held] = scaler.transform(inputs[held])
        model.fit(inputs[train], targets[train])
        scores.append(model.score(inputs[held], targets[held]))
    return scores


def wrong_score_scaler_fit_on_held(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        scaler.fit(inputs[held])
        model.fit(scaler.transform(inputs[train]), targets[train])
        scores.append(model.score(scaler.transform(inputs[held]), targets[held]))
    return scores


def wrong_score_block(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        model.fit(scaler.fit_transform(inputs[train]), targets[train])
        block = slice(min(held), max(held) + 1)
        scores.append(model.score(scaler.transform(inputs[block]), targets[block]))
    return scores


def wrong_score_all_rows(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, _ in folds:
        scaler, model = make_scaler(), make_model()
        model.fit(scaler.fit_transform(inputs[train]), targets[train])
        scores.append(model.score(scaler.transform(inputs), targets))
    return scores


def wrong_score_mixed_order(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        model.fit(scaler.fit_transform(inputs[np.sort(train)]), targets[train])
        x = scaler.transform(inputs[np.sort(held)])
        scores.append(model.score(x, targets[held]))
    return scores


def wrong_score_refit(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler(), make_model()
        model.fit(scaler.fit_transform(inputs[train]), targets[train])
        x = scaler.transform(inputs[held])
        model.fit(x, targets[held])
        scores.append(model.score(x, targets[held]))
    return scores


def wrong_score_not_called(make_scaler, make_model, inputs, targets, folds):
    scores = []
    for train, held in folds:
        scaler, model = make_scaler, make_model
        model.fit(scaler.fit_transform(inputs[train]), targets[train])
        scores.append(model.score(scaler.transform(inputs[held]), targets[held]))
    return scores


# Exercise 2: report(validation, test)


def report_index(validation, test):
    return test[validation.index(max(validation))]


def report_argmax(validation, test):
    return np.asarray(test)[np.argmax(validation)]


def report_torch(validation, test):
    best = torch.tensor(validation, dtype=torch.float64).argmax()
    return torch.tensor(test, dtype=torch.float64)[best]


def report_pairs(validation, test):
    return max(zip(validation, test), key=lambda pair: pair[0])[1]


def report_item(validation, test):
    order = sorted(range(len(test)), key=validation.__getitem__)
    return operator.itemgetter(order[-1])(test)


def report_loop(validation, test):
    best, chosen = -1.0, None
    for i in range(len(validation)):
        if validation[i] > best:
            best, chosen = validation[i], test[i]
    return float(chosen)


def report_pandas(validation, test):
    return pd.Series(test).loc[pd.Series(validation).idxmax()]


def report_reduce(validation, test):
    models = zip(validation, test)
    return functools.reduce(lambda a, b: b if b[0] > a[0] else a, models)[1]


def report_recursive(validation, test):
    if len(validation) == 1:
        return test[0]
    if validation[0] >= max(validation[1:]):
        return test[0]
    return report_recursive(validation[1:], test[1:])


def wrong_report_best_test(validation, test):
    return max(test)


def wrong_report_validation(validation, test):
    return max(validation)


def wrong_report_validation_of_best_test(validation, test):
    return validation[test.index(max(test))]


def wrong_report_mean_test(validation, test):
    return sum(test) / len(test)


def wrong_report_worst(validation, test):
    return test[validation.index(min(validation))]


def wrong_report_index(validation, test):
    return validation.index(max(validation))


def wrong_report_pair(validation, test):
    best = validation.index(max(validation))
    return validation[best], test[best]


def wrong_report_average(validation, test):
    best = validation.index(max(validation))
    return (validation[best] + test[best]) / 2


def wrong_report_first(validation, test):
    return test[0]


def wrong_report_last(validation, test):
    return test[-1]


def wrong_report_both(validation, test):
    sums = [v + t for v, t in zip(validation, test)]
    return test[sums.index(max(sums))]


def wrong_report_lowest_test(validation, test):
    return min(test)


def wrong_report_median(validation, test):
    return float(np.median(test))


def wrong_report_smaller(validation, test):
    best = validation.index(max(validation))
    return min(validation[best], test[best])


def wrong_report_gap(validation, test):
    gaps = [abs(v - t) for v, t in zip(validation, test)]
    return test[gaps.index(min(gaps))]


def wrong_report_list(validation, test):
    return [t for v, t in zip(validation, test) if v == max(validation)]


def wrong_report_sorted(validation, test):
    ordered = sorted(validation)
    return test[ordered.index(max(validation))]


def wrong_report_best_pair(validation, test):
    return max(zip(test, validation))[0]


def wrong_report_rounded(validation, test):
    return round(test[validation.index(max(validation))], 1)


def wrong_report_above_mean(validation, test):
    mean = sum(validation) / len(validation)
    good = [t for v, t in zip(validation, test) if v >= mean]
    return sum(good) / len(good)


# Exercise 3: split_both(users, days, new_users, first_day, ahead)


def split_masks(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(new & (days >= first_day))
    train = np.flatnonzero(~new & (days + ahead < first_day))
    return train, test


def split_lists(users, days, new_users, first_day, ahead):
    new_users = set(new_users)
    train, test = [], []
    for row, (user, day) in enumerate(zip(users, days)):
        if user in new_users:
            if day >= first_day:
                test.append(row)
        elif day + ahead < first_day:
            train.append(row)
    return train, test


def split_pandas(users, days, new_users, first_day, ahead):
    frame = pd.DataFrame({"user": users, "day": days})
    new = frame.user.isin(list(new_users))
    late = frame.day.ge(first_day)
    known = frame.day.add(ahead).lt(first_day)
    return frame.index[~new & known].to_numpy(), frame.index[new & late].to_numpy()


def split_sets(users, days, new_users, first_day, ahead):
    every = set(range(len(users)))
    new = {row for row in every if users[row] in list(new_users)}
    late = {row for row in every if not days[row] < first_day}
    unknown = {row for row in every if not first_day - days[row] > ahead}
    return sorted(every - new - unknown), sorted(new & late)


def split_lambda_body(users, days, new_users, first_day, ahead):
    is_new = np.array([user in set(new_users) for user in users], dtype=bool)
    pick = lambda mask: np.arange(len(users))[mask]  # noqa: E731
    days = np.asarray(days)
    return [
        pick(~is_new & (first_day - days > ahead)),
        pick(is_new & (first_day <= days)),
    ]


def split_torch(users, days, new_users, first_day, ahead):
    names, code = np.unique(users, return_inverse=True)
    chosen = torch.tensor([str(n) in {str(u) for u in new_users} for n in names])
    new = chosen[torch.from_numpy(code)]
    day = torch.from_numpy(np.asarray(days))
    train = torch.nonzero(~new & (day + ahead < first_day)).squeeze(1)
    test = torch.nonzero(new & (day >= first_day)).squeeze(1)
    return train.tolist(), test.tolist()


class Split:
    """Decide row by row, late days first; the order of the rows is free."""

    def side(self, new, day, first_day, ahead):
        if new:
            return "test" if first_day <= day else None
        return "train" if day < first_day - ahead else None

    def __call__(self, users, days, new_users, first_day, ahead):
        sides = defaultdict(list)
        for row in np.argsort(-np.asarray(days), kind="stable"):
            new = any(users[row] == user for user in new_users)
            sides[self.side(new, days[row], first_day, ahead)].append(int(row))
        return tuple(sides["train"]), tuple(sides["test"])


split_object = Split()


def wrong_split_at_once(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(new & (days >= first_day))
    train = np.flatnonzero(~new & (days + ahead <= first_day))
    return train, test


def wrong_split_no_ahead(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(new & (days >= first_day))
    train = np.flatnonzero(~new & (days < first_day))
    return train, test


def wrong_split_test_all_days(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    train = np.flatnonzero(~new & (days + ahead < first_day))
    return train, np.flatnonzero(new)


def wrong_split_train_all_users(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(new & (days >= first_day))
    return np.flatnonzero(days + ahead < first_day), test


def wrong_split_test_all_users(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    train = np.flatnonzero(~new & (days + ahead < first_day))
    return train, np.flatnonzero(days >= first_day)


def wrong_split_train_all_days(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(new & (days >= first_day))
    return np.flatnonzero(~new), test


def wrong_split_strict(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(new & (days > first_day))
    train = np.flatnonzero(~new & (days + ahead < first_day))
    return train, test


def wrong_split_test_ahead(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(new & (days >= first_day + ahead))
    train = np.flatnonzero(~new & (days + ahead < first_day))
    return train, test


def wrong_split_masks(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    return ~new & (days + ahead < first_day), new & (days >= first_day)


def wrong_split_swapped(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(new & (days >= first_day))
    train = np.flatnonzero(~new & (days + ahead < first_day))
    return test, train


def wrong_split_complement(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(new & (days >= first_day))
    return np.setdiff1d(np.arange(len(users)), test), test


def wrong_split_minus(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(new & (days >= first_day))
    train = np.flatnonzero(~new & (days - ahead < first_day))
    return train, test


def wrong_split_sorted_days(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    rows = np.arange(len(users))
    known = np.searchsorted(days, first_day - ahead)
    late = np.searchsorted(days, first_day)
    return rows[:known][~new[:known]], rows[late:][new[late:]]


def wrong_split_sorted_rows(users, days, new_users, first_day, ahead):
    order = np.argsort(days, kind="stable")
    users, days = users[order], days[order]
    new = np.isin(users, new_users)
    test = np.flatnonzero(new & (days >= first_day))
    train = np.flatnonzero(~new & (days + ahead < first_day))
    return train, test


def wrong_split_first_user(users, days, new_users, first_day, ahead):
    new = users == new_users[0]
    test = np.flatnonzero(new & (days >= first_day))
    train = np.flatnonzero(~new & (days + ahead < first_day))
    return train, test


def wrong_split_relative(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(days[new] >= first_day)
    train = np.flatnonzero(days[~new] + ahead < first_day)
    return train, test


def wrong_split_names(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = users[new & (days >= first_day)]
    train = users[~new & (days + ahead < first_day)]
    return train, test


def wrong_split_that_day(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(new & (days == first_day))
    train = np.flatnonzero(~new & (days + ahead < first_day))
    return train, test


def wrong_split_one_day(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(new & (days >= first_day))
    train = np.flatnonzero(~new & (days + 1 < first_day))
    return train, test


def wrong_split_either(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(new | (days >= first_day))
    train = np.flatnonzero(~new & (days + ahead < first_day))
    return train, test


def wrong_split_users_flipped(users, days, new_users, first_day, ahead):
    old = ~np.isin(users, new_users)
    test = np.flatnonzero(old & (days >= first_day))
    train = np.flatnonzero(~old & (days + ahead < first_day))
    return train, test


def wrong_split_too_early(users, days, new_users, first_day, ahead):
    new = np.isin(users, new_users)
    test = np.flatnonzero(new & (days >= first_day))
    train = np.flatnonzero(~new & (days + ahead < first_day - 1))
    return train, test


RIGHT = {
    0: [
        folds_unique,
        folds_sklearn,
        folds_shuffled,
        folds_lists,
        folds_by_rows,
        folds_any_order_by_rows,
        folds_pandas,
        folds_torch,
        folds_object,
    ],
    1: [
        score_plain,
        score_two_calls,
        score_all_transformed,
        score_recursive,
        score_map,
        score_pair,
        score_backwards,
    ],
    2: [
        report_index,
        report_argmax,
        report_torch,
        report_pairs,
        report_item,
        report_loop,
        report_pandas,
        report_reduce,
        report_recursive,
    ],
    3: [
        split_masks,
        split_lists,
        split_pandas,
        split_sets,
        split_lambda_body,
        split_torch,
        split_object,
    ],
}

WRONG = {
    0: [
        (wrong_folds_rows, "It cuts rows, so writers are on both sides."),
        (wrong_folds_blocks, "It cuts the rows as they stand."),
        (wrong_folds_sorted_blocks, "A cut may go through the rows of one writer."),
        (wrong_folds_modulo, "It breaks with names, and is uneven with gaps."),
        (wrong_folds_first_letter, "The first letters need not be even."),
        (wrong_folds_writers, "It returns writers, not row numbers."),
        (wrong_folds_masks, "It returns masks, not row numbers."),
        (wrong_folds_swapped, "Train and held out are swapped."),
        (wrong_folds_leave_one_out, "It makes one fold per writer."),
        (wrong_folds_shuffle_split, "Some rows are held out twice, others never."),
        (wrong_folds_earlier_only, "It trains on the earlier folds only."),
        (wrong_folds_remainder_lost, "The writers that are left are never held out."),
        (wrong_folds_remainder_last, "The last fold gets all that are left."),
        (wrong_folds_runs, "It takes each run of rows for another writer."),
        (wrong_folds_one_each, "One writer per fold, and the rest in the last."),
        (wrong_folds_train_everything, "The held-out rows are trained on."),
        (wrong_folds_gap, "It does not train on all the other rows."),
        (wrong_folds_first_fold, "It makes one fold."),
        (wrong_folds_writer_cleaned, "It does not train on all the other rows."),
        (wrong_folds_position, "It returns positions of names, not rows."),
        (wrong_folds_count_numbers, "It takes the writers for 0, 1, 2, ..."),
        (wrong_folds_half, "One fold has half of the writers."),
    ],
    1: [
        (wrong_score_scaler_all, "The scaler is fitted on all rows."),
        (wrong_score_scaler_once, "One scaler for all, fitted on all rows."),
        (wrong_score_fit_on_held, "The scaler is fitted anew on the held-out rows."),
        (wrong_score_two_scalers, "The held-out rows get a scaler of their own."),
        (wrong_score_one_model, "One model for all folds."),
        (wrong_score_one_scaler, "One scaler for all folds."),
        (wrong_score_on_train, "It scores on the training rows."),
        (wrong_score_held_raw, "The held-out rows are not scaled."),
        (wrong_score_no_scaler, "No scaler at all."),
        (wrong_score_swapped, "Train and held out are swapped."),
        (wrong_score_mean, "It returns the mean."),
        (wrong_score_sorted, "The scores are sorted."),
        (wrong_score_first, "It returns after the first fold."),
        (wrong_score_model_all, "The model is fitted on all rows."),
        (wrong_score_overwrites, "It writes scaled rows into the inputs."),
        (wrong_score_scaler_fit_on_held, "The scaler is fitted on held-out rows."),
        (wrong_score_block, "It takes the held-out rows for one block."),
        (wrong_score_all_rows, "It scores on all rows."),
        (wrong_score_mixed_order, "Inputs sorted, targets not: rows get mixed up."),
        (wrong_score_refit, "The model is fitted on the held-out rows, too."),
        (wrong_score_not_called, "It makes neither scaler nor model."),
    ],
    2: [
        (wrong_report_best_test, "The best of the test accuracies."),
        (wrong_report_validation, "The accuracy by which it was chosen."),
        (wrong_report_validation_of_best_test, "Chosen by test, and validation."),
        (wrong_report_mean_test, "The mean of all models, but one is used."),
        (wrong_report_worst, "The worst model is chosen."),
        (wrong_report_index, "It returns the place of the model."),
        (wrong_report_pair, "It returns two numbers."),
        (wrong_report_average, "Half of it is the accuracy of the choice."),
        (wrong_report_first, "Always the first model."),
        (wrong_report_last, "Always the last model."),
        (wrong_report_both, "The test takes part in the choice."),
        (wrong_report_lowest_test, "The test chooses the worst model."),
        (wrong_report_median, "The median of all models."),
        (wrong_report_smaller, "It may be the accuracy of the choice."),
        (wrong_report_gap, "It chooses by the gap, which needs the test."),
        (wrong_report_list, "It returns a list."),
        (wrong_report_sorted, "Always the last: a place in the sorted list."),
        (wrong_report_best_pair, "The best of the test accuracies."),
        (wrong_report_rounded, "It rounds to one place."),
        (wrong_report_above_mean, "The mean of several models."),
    ],
    3: [
        (wrong_split_at_once, "A label known on first_day is not known before."),
        (wrong_split_no_ahead, "It ignores when labels are known."),
        (wrong_split_test_all_days, "The test has days before first_day."),
        (wrong_split_train_all_users, "It trains on new users."),
        (wrong_split_test_all_users, "It tests on other users, too."),
        (wrong_split_train_all_days, "It trains on the future."),
        (wrong_split_strict, "The test lacks first_day itself."),
        (wrong_split_test_ahead, "The test starts too late."),
        (wrong_split_masks, "It returns masks, not row numbers."),
        (wrong_split_swapped, "Train and test are swapped."),
        (wrong_split_complement, "All the rest is trained on."),
        (wrong_split_minus, "It subtracts `ahead` where it must add."),
        (wrong_split_sorted_days, "It takes the days for sorted."),
        (wrong_split_sorted_rows, "The row numbers are those after sorting."),
        (wrong_split_first_user, "It holds out the first new user only."),
        (wrong_split_relative, "The row numbers are those within a part."),
        (wrong_split_names, "It returns users, not row numbers."),
        (wrong_split_that_day, "The test has first_day only."),
        (wrong_split_one_day, "It takes one day, whatever `ahead` is."),
        (wrong_split_either, "The test takes rows that are new or late."),
        (wrong_split_users_flipped, "New and other users are swapped."),
        (wrong_split_too_early, "It leaves out a day whose labels are known."),
    ],
}

UNCLEAR = {
    0: [
        "May the pairs come from a generator, or as zip?",
        "Fewer writers than n_splits: an empty fold, or an error?",
        "Are row numbers as tensors allowed? I return arrays or lists.",
    ],
    1: [
        "May fit of the scaler get the targets, too, as scikit-learn allows?",
        "May all rows be transformed, with a scaler fitted on the training rows?",
        "Must each of the two functions be called exactly once a fold?",
    ],
    2: [
        "A tie in validation: the test accuracy of either may be reported, I think.",
        "A tensor of 0 dims as the one number.",
    ],
    3: [
        "Must the row numbers be in order?",
        "Days of another kind, such as datetime64, with `ahead` a timedelta.",
    ],
}
