"""Hyper-parameter tuning: equal to scipy, scikit-learn and Optuna, edge cases,
invariants.
"""

import contextlib
import json
import math
import re
import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern
from sklearn.model_selection import ParameterGrid
from warm import run_script

from dlcourse import hyperparameter_tuning as ht
from dlcourse.exercises.hyperparameter_tuning import EXERCISES
from dlcourse.hyperparameter_tuning import (
    GaussianProcess,
    Search,
    bayesian,
    gaussian_process,
    loguniform,
    searches,
    spaces,
    uniform,
    whole,
)

COURSE = Path(__file__).parent.parent
RECIPE = COURSE / "recipes" / "02_hyperparameter_tuning.py"
CHAPTER = COURSE / "chapters" / "02_hyperparameter_tuning.ipynb"
PLANE = {"x": uniform(-5, 10), "y": uniform(0, 15)}
LOWEST = 0.39788735772973816


def branin(config):
    x, y = config["x"], config["y"]
    valley = (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
    return valley + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def test_branin_has_the_known_minima():
    for x, y in ((-math.pi, 12.275), (math.pi, 2.275), (3 * math.pi, 2.475)):
        assert branin({"x": x, "y": y}) == pytest.approx(LOWEST, abs=1e-9)


# --- spaces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("low, high", [(1e-5, 1.0), (0.3, 0.4), (1e-12, 1e12)])
def test_loguniform_is_scipys(low, high):
    rng, ours = np.random.default_rng(0), loguniform(low, high)
    draws = np.array([ours.draw(rng) for _ in range(2000)])
    assert (draws >= low).all() and (draws <= high).all()
    assert stats.kstest(draws, stats.loguniform(low, high).cdf).pvalue > 0.01
    shares = np.linspace(0, 1, 101)
    expected = stats.loguniform(low, high).ppf(shares)
    np.testing.assert_allclose([ours.at(share) for share in shares], expected, rtol=1e-9)


def test_uniform_is_scipys():
    rng, ours = np.random.default_rng(0), uniform(-2, 5)
    draws = np.array([ours.draw(rng) for _ in range(2000)])
    assert stats.kstest(draws, stats.uniform(-2, 7).cdf).pvalue > 0.01


def test_each_decade_gets_the_same_share():
    rng, ours = np.random.default_rng(0), loguniform(1e-4, 1)
    decades = np.floor(np.log10([ours.draw(rng) for _ in range(8000)]))
    counts = np.array([(decades == d).sum() for d in (-4, -3, -2, -1)])
    assert counts.sum() == 8000 and (abs(counts - 2000) < 200).all()


@pytest.mark.parametrize(
    "values", [uniform(-3, 8), loguniform(1e-6, 10), loguniform(0.5, 0.6)]
)
def test_at_and_share_are_inverse_and_stay_inside(values):
    for share in np.random.default_rng(0).random(200):
        assert values.share(values.at(share)) == pytest.approx(share, abs=1e-9)
    assert isinstance(values, ht.Range)
    assert values.at(0) == values.low and values.at(1) == values.high


@pytest.mark.parametrize("low, high", [(1, 6), (-2, 3), (0, 1)])
def test_whole_numbers_have_the_same_chance(low, high):
    rng, values = np.random.default_rng(0), whole(low, high)
    draws = [values.draw(rng) for _ in range(6000)]
    assert all(isinstance(draw, int) for draw in draws)
    counts = np.bincount(np.array(draws) - low)
    assert len(counts) == high - low + 1
    assert stats.chisquare(counts).pvalue > 0.001
    assert values.at(0) == low and values.at(1) == high


def test_whole_numbers_on_a_log_scale_double_with_equal_chance():
    rng, values = np.random.default_rng(0), whole(8, 63, log=True)
    draws = np.array([values.draw(rng) for _ in range(6000)])
    assert draws.min() == 8 and draws.max() == 63
    shares = [((low <= draws) & (draws < 2 * low)).mean() for low in (8, 16, 32)]
    assert np.allclose(shares, 1 / 3, atol=0.04)


@pytest.mark.parametrize("values", [whole(1, 6), whole(16, 512, log=True)])
def test_a_whole_number_is_found_again_at_its_place(values):
    for number in range(int(values.low), int(values.high) + 1):
        assert values.at(values.share(number)) == number
        assert 0 <= values.share(number) <= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: whole(1.5, 4),
        lambda: whole(4, 4),
        lambda: whole(0, 4, log=True),
        lambda: uniform(1, 1),
        lambda: uniform(2, 1),
        lambda: uniform(0, math.inf),
        lambda: uniform(math.nan, 1),
        lambda: loguniform(0, 1),
        lambda: loguniform(-1, 1),
        lambda: ht.draw_config({}, np.random.default_rng(0)),
        lambda: ht.draw_config({"a": []}, np.random.default_rng(0)),
        lambda: ht.draw_config({"a": "relu"}, np.random.default_rng(0)),
        lambda: ht.grid_points({"a": uniform(0, 1)}),
        lambda: ht.random_search(branin, PLANE, 0),
        lambda: ht.bayesian_search(branin, PLANE, 0),
        lambda: ht.bayesian_search(branin, PLANE, 5, initial=0),
        lambda: ht.bayesian_search(branin, {"x": [1, 2], "y": uniform(0, 1)}, 6),
        lambda: ht.successive_halving(lambda c, b: 0.0, []),
        lambda: ht.successive_halving(lambda c, b: 0.0, [{}], factor=1),
        lambda: ht.successive_halving(lambda c, b: 0.0, [{}], budget=0),
    ],
)
def test_bad_input_is_refused_with_advice(make):
    with pytest.raises(ValueError, match="give|use|name|needs"):
        make()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: uniform(-math.inf, 1), "low=-inf, high=1: give finite"),
        (lambda: uniform(0, math.inf), "low=0, high=inf: give finite"),
        (lambda: uniform(2, 2), "low=2, high=2"),
        (lambda: loguniform(0, 1), "low=0: a log scale"),
        (lambda: whole(1.5, 4), "low=1.5, high=4: give whole"),
        (lambda: whole(1, 4.5), "low=1, high=4.5: give whole"),
        (lambda: ht.draw_config({"a": []}, np.random.default_rng(0)), "a: give a range"),
        (lambda: ht.grid_points({"b": "relu"}), "b: give a range"),
        (lambda: ht.grid_points({"a": uniform(0, 1)}), "a is a range"),
        (lambda: ht.random_search(branin, PLANE, 0), "trials=0"),
        (lambda: ht.bayesian_search(branin, PLANE, 0), "trials=0"),
        (lambda: ht.bayesian_search(branin, PLANE, 5, initial=0), "initial=0"),
        (lambda: ht.suggest({"a": [1, 2]}, [], [], np.random.default_rng(0)), "a is a l"),
        (lambda: ht.suggest({}, [], [], np.random.default_rng(0)), "space is empty"),
        (lambda: ht.successive_halving(lambda c, b: 0.0, [{}], 0), "budget=0"),
        (lambda: ht.successive_halving(lambda c, b: 0.0, [{}], factor=1), "factor=1"),
        (lambda: ht.random_search(lambda c: math.nan, PLANE, 3).best, "none of 3 trials"),
        (lambda: GaussianProcess().fit([[0.0]], [0.0, 1.0]), "1 points and 2 values"),
        (lambda: GaussianProcess().fit(np.zeros((0, 1)), []), "0 points and 0 values"),
        (lambda: GaussianProcess([0.3, 0.0]), "give length_scale > 0"),
    ],
)
def test_errors_name_what_was_given(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_numbers_at_the_edge_are_taken():
    assert whole(-1, 0).at(0.99) == 0
    assert len(ht.random_search(branin, PLANE, 1).scores) == 1
    assert len(ht.bayesian_search(branin, PLANE, 1, initial=1).scores) == 1
    assert ht.successive_halving(lambda c, b: b, [{}] * 2, 1, 2).best_score == 2
    assert GaussianProcess(noise=0.0).noise == 0.0


def test_settings_left_out():
    process = GaussianProcess()
    assert (process.length_scale, process.variance, process.noise) == (0.3, 1.0, 1e-6)
    assert loguniform(1, 2) == ht.Range(1, 2, log=True, whole=False)
    assert uniform(1, 2) == ht.Range(1, 2, log=False, whole=False)
    assert whole(1, 2) == ht.Range(1, 2, log=False, whole=True)
    drawn = ht.random_search(branin, PLANE, 6)
    assert drawn.configs == ht.random_search(branin, PLANE, 6, seed=0).configs
    first = ht.bayesian_search(branin, PLANE, 6).configs
    assert first == ht.bayesian_search(branin, PLANE, 6, initial=5, seed=0).configs
    assert first[:5] == drawn.configs[:5] and first[5] != drawn.configs[5]
    halving = ht.successive_halving(lambda c, b: 0.0, [{}] * 3)
    assert [rung.budget for rung in halving.rungs] == [1, 3]


# --- grid and random ------------------------------------------------------------------------------


def test_grid_points_are_sklearns():
    rng = np.random.default_rng(0)
    for _ in range(50):
        names = rng.permutation(list("abcde"))[: rng.integers(1, 5)]
        space = {str(n): rng.integers(0, 9, rng.integers(1, 5)).tolist() for n in names}
        assert ht.grid_points(space) == list(ParameterGrid(space))


def test_grid_search_finds_the_best_of_its_points():
    space = {"x": [-5.0, 3.0, 10.0], "y": [0.0, 2.0, 15.0]}
    search = ht.grid_search(branin, space)
    assert len(search.scores) == 9
    assert search.best_config == {"x": 3.0, "y": 2.0}
    assert search.best_score == min(branin(c) for c in ParameterGrid(space))


def test_random_search_draws_everything_and_a_longer_one_begins_alike():
    space = {"lr": loguniform(1e-4, 1), "depth": [1, 2, 3], "decay": uniform(0, 1)}
    short, long = (
        ht.random_search(lambda c: c["decay"], space, n, seed=3) for n in (7, 20)
    )
    assert long.configs[:7] == short.configs
    assert all(set(c) == set(space) for c in long.configs)
    assert (
        len({c["lr"] for c in long.configs})
        == len({c["decay"] for c in long.configs})
        == 20
    )
    assert {c["depth"] for c in long.configs} == {1, 2, 3}
    assert ht.random_search(lambda c: 0, space, 7, seed=[3, 1]).configs != short.configs


def test_a_search_counts_failed_trials_and_goes_on():
    search = Search()
    for score in (math.nan, 3.0, math.inf, 2.0, -math.inf, 5.0):
        search.run(lambda c, score=score: score, {"a": score})
    assert (
        search.best == 3 and search.best_score == 2.0 and search.best_config == {"a": 2.0}
    )
    with pytest.raises(ValueError, match="widen"):
        _ = ht.random_search(lambda c: math.nan, PLANE, 3).best


def test_the_parts_that_searches_share():
    assert searches.failed_as([1.0, math.nan, -math.inf], 9.0).tolist() == [1.0, 9.0, 9.0]
    space = {"lr": loguniform(0.01, 1), "depth": [1, 2, 3, 4], "layers": whole(1, 4)}
    middle = spaces.config_at(space, [0.5, 0.49, 0.99])
    assert middle == {"lr": pytest.approx(0.1), "depth": 2, "layers": 4}
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        spaces.config_at(space, [0.5, 0.5])
    with pytest.raises(ValueError, match="name at least one"):
        spaces.check_space({})
    with pytest.raises(ValueError, match="trials=0: give at least 1"):
        spaces.check_count("trials", 0)


# --- the Gaussian process -------------------------------------------------------------------------


def peer(process):
    kernel = ConstantKernel(process.variance) * Matern(process.length_scale, nu=2.5)
    return GaussianProcessRegressor(kernel, alpha=process.noise, optimizer=None)


@pytest.mark.parametrize("seed", range(20))
def test_process_is_sklearns(seed):
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(1, 40)), int(rng.integers(1, 5))
    scale = rng.uniform(0.1, 2, d) if seed % 2 else float(rng.uniform(0.1, 2))
    ours = GaussianProcess(
        scale, variance=rng.uniform(0.2, 3), noise=10.0 ** rng.integers(-6, 0)
    )
    x, y, new = rng.random((n, d)), rng.normal(size=n), rng.random((30, d))
    theirs = peer(ours).fit(x, y)
    mean, std = ours.fit(x, y).predict(new)
    expected_mean, expected_std = theirs.predict(new, return_std=True)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-7, rtol=1e-7)
    np.testing.assert_allclose(std, expected_std, atol=1e-7)
    assert ours.log_likelihood() == pytest.approx(
        theirs.log_marginal_likelihood(), rel=1e-7
    )


def test_before_any_observation_it_is_the_prior_as_sklearns():
    ours, new = GaussianProcess(0.3, variance=2.0), np.linspace(0, 1, 5)[:, None]
    mean, std = ours.predict(new)
    expected_mean, expected_std = peer(ours).predict(new, return_std=True)
    np.testing.assert_allclose(mean, expected_mean)
    np.testing.assert_allclose(std, expected_std)


def test_without_noise_the_mean_passes_through_and_the_deviation_vanishes():
    rng = np.random.default_rng(0)
    x, y = rng.random((12, 2)), rng.normal(size=12)
    process = GaussianProcess(0.3, noise=0.0).fit(x, y)
    mean, std = process.predict(x)
    np.testing.assert_allclose(mean, y, atol=1e-8)
    assert std.max() < 1e-5
    assert process.predict(rng.random((500, 2)))[1].max() <= 1.0


def test_repeated_points_are_mended_by_jitter():
    x = np.array([[0.2], [0.2], [0.2], [0.7], [0.7]])
    mean, std = (
        GaussianProcess(0.3, noise=0.0).fit(x, [1.0, 1.0, 1.0, -1.0, -1.0]).predict(x)
    )
    np.testing.assert_allclose(mean, [1, 1, 1, -1, -1], atol=1e-3)
    assert np.isfinite(std).all() and std.max() < 1e-2
    mean, _ = (
        GaussianProcess(0.3, noise=0.01).fit(x, [1.0, 2.0, 3.0, -1.0, -1.0]).predict(x)
    )
    assert 1.8 < mean[0] < 2.1  # values that disagree are averaged


def test_jitter_grows_until_there_is_a_factor(monkeypatch):
    tried = []

    def never(matrix, **settings):
        tried.append(matrix[0, 0] - 2.0)
        raise np.linalg.LinAlgError

    monkeypatch.setattr(gaussian_process, "cholesky", never)
    with pytest.raises(ValueError, match="raise noise"):
        GaussianProcess(variance=2.0, noise=0.0).fit([[0.0], [0.0]], [1.0, 1.0])
    want = [0.0, 2e-12, 2e-10, 2e-8, 2e-6]
    assert tried == pytest.approx(want, rel=1e-3, abs=1e-15)


def test_nearly_repeated_points_give_finite_answers():
    x = 0.5 + np.arange(40)[:, None] * 1e-12
    mean, std = (
        GaussianProcess(1.0, noise=0.0).fit(x, np.ones(40)).predict([[0.5], [0.9]])
    )
    assert np.isfinite(mean).all() and np.isfinite(std).all()
    assert mean[0] == pytest.approx(1.0, abs=1e-2)


def test_one_point():
    mean, std = GaussianProcess(0.2).fit([[0.5]], [2.0]).predict([[0.5], [0.9]])
    assert mean[0] == pytest.approx(2.0, abs=1e-4) and std[0] < 0.01
    assert 0 < mean[1] < 2 and 0.5 < std[1] <= 1


def test_process_refuses_bad_input():
    for x, y in (([[0.0]], [math.nan]), ([[math.inf]], [0.0]), ([[0.0]], [0.0, 1.0])):
        with pytest.raises(ValueError):
            GaussianProcess().fit(x, y)
    with pytest.raises(ValueError, match="leave failed trials out"):
        GaussianProcess().fit([[0.1], [0.2]], [0.0, math.nan])
    for bad in ({"length_scale": 0.0}, {"variance": 0.0}, {"noise": -1.0}):
        with pytest.raises(ValueError, match="give"):
            GaussianProcess(**bad)


def test_surrogate_gives_a_long_scale_to_what_does_not_matter():
    for seed in range(5):
        x = np.random.default_rng(seed).random((25, 2))
        y = np.sin(8 * x[:, 0])
        process = ht.surrogate(x, (y - y.mean()) / y.std())
        assert process.length_scale[1] >= 4 * process.length_scale[0]


# --- expected improvement -------------------------------------------------------------------------


def test_expected_improvement_is_the_average_over_draws():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mean, std, best = rng.normal(), rng.uniform(0.05, 2), rng.normal()
        gains = np.maximum(best - rng.normal(mean, std, 200_000), 0)
        error = gains.std() / math.sqrt(len(gains)) + 1e-6
        assert abs(ht.expected_improvement(mean, std, best) - gains.mean()) < 5 * error


def test_expected_improvement_edges_and_invariants():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = ht.expected_improvement([0.2, 0.7, 0.1, 0.2], [0.0, 0.0, 0.0, 1e-300], 0.2)
        np.testing.assert_allclose(got, [0, 0, 0.1, 0], atol=1e-12)
        # far above: underflows, stays finite
        assert ht.expected_improvement(1e3, 1.0, 0.0) == 0
        assert ht.expected_improvement(-1e3, 1.0, 0.0) == pytest.approx(1e3)
    means, stds = np.linspace(-3, 3, 61), np.linspace(0, 3, 61)
    assert (np.diff(ht.expected_improvement(means, 1.0, 0.0)) <= 0).all()
    assert (np.diff(ht.expected_improvement(0.5, stds, 0.0)) >= 0).all()
    assert (ht.expected_improvement(means[:, None], stds, 0.0) >= 0).all()


# --- Bayesian search ------------------------------------------------------------------------------


def test_bayesian_search_begins_as_random_search_and_repeats():
    first = ht.bayesian_search(branin, PLANE, 9, initial=4, seed=2)
    assert first.configs[:4] == ht.random_search(branin, PLANE, 4, seed=2).configs
    assert (
        first.configs == ht.bayesian_search(branin, PLANE, 9, initial=4, seed=2).configs
    )
    assert len(ht.bayesian_search(branin, PLANE, 3, initial=5).scores) == 3
    for config in first.configs:
        assert all(PLANE[n].low <= v <= PLANE[n].high for n, v in config.items())


def test_bayesian_search_tunes_whole_numbers():
    def objective(config):
        return (config["layers"] - 4) ** 2 + math.log(config["width"] / 40) ** 2

    space = {"layers": whole(1, 6), "width": whole(8, 512, log=True)}
    for seed in range(3):
        search = ht.bayesian_search(objective, space, 20, seed=seed)
        assert search.best_config["layers"] == 4
        assert 20 <= search.best_config["width"] <= 80
        assert all(isinstance(v, int) for c in search.configs for v in c.values())


def test_it_is_no_method_for_weights():
    """25 trials leave more of a bowl in 10 dimensions than 25 gradient steps do."""
    weights = {f"w{i}": uniform(0, 1) for i in range(10)}
    steep = np.linspace(1, 4, 10)
    by_process, by_gradient = [], []
    for seed in range(4):
        lowest = np.random.default_rng([8, seed]).random(10)

        def bowl(config, lowest=lowest):
            return float(steep @ (np.array([*config.values()]) - lowest) ** 2)

        search = ht.bayesian_search(bowl, weights, 25, seed=seed)
        w = np.array([*search.configs[0].values()])
        for _ in range(25):
            w = w - 0.1 * 2 * steep * (w - lowest)
        by_process.append(search.best_score / search.scores[0])
        by_gradient.append(steep @ (w - lowest) ** 2 / search.scores[0])
    assert np.mean(by_process) > 0.02 and np.mean(by_gradient) < 0.01


def test_a_third_of_the_candidates_lie_near_the_best():
    space = {"a": uniform(0, 1), "b": loguniform(1e-3, 1), "depth": whole(1, 4)}
    center = np.array([0.5, 0.4, 0.5])
    tries = bayesian._candidates(space, center, np.random.default_rng(0))
    assert tries.shape == (1500, 3) and tries.min() >= 0 and tries.max() <= 1
    assert stats.kstest(tries[:1000, 0], "uniform").pvalue > 0.01
    steps = tries[1000:, :2] - center[:2]
    assert np.abs(steps.mean(axis=0)).max() < 0.015
    # half of them 0.1 wide, half 0.02, both numbers of a try alike
    assert steps.std() == pytest.approx(math.sqrt((0.1**2 + 0.02**2) / 2), rel=0.1)
    near = np.abs(steps) < 0.04
    assert 0.6 < near.mean() < 0.7 and near.all(axis=1).mean() > 0.5
    assert set(tries[:, 2].round(3)) == {0.125, 0.375, 0.625, 0.875}  # whole numbers
    edge = bayesian._candidates(
        {"a": uniform(0, 1)}, np.ones(1), np.random.default_rng(0)
    )
    assert (edge[1000:] == 1).mean() > 0.4


def test_a_suggestion_is_the_candidate_of_largest_expected_improvement():
    """Of a process fitted to standardised scores, below the mean it predicts at best."""
    done = ht.random_search(branin, PLANE, 8, seed=4)
    scores = [*done.scores[:7], math.nan]
    places = bayesian._places(PLANE, done.configs)
    want = np.array([*scores[:7], max(scores[:7])])
    process = ht.surrogate(places, (want - want.mean()) / want.std())
    mean, _ = process.predict(places)
    tries = bayesian._candidates(PLANE, places[mean.argmin()], np.random.default_rng(9))
    gain = ht.expected_improvement(*process.predict(tries), mean.min())
    best = spaces.config_at(PLANE, tries[gain.argmax()])
    found = ht.suggest(PLANE, done.configs, scores, np.random.default_rng(9))
    assert found == best


@pytest.mark.parametrize("seed", range(2))
def test_the_surrogate_has_the_likeliest_noise_and_scales(seed):
    """No other single choice of the lists is likelier."""
    rng = np.random.default_rng(seed)
    x = rng.random((20, 2))
    y = np.sin(6 * x[:, 0]) + [0.0, 0.3][seed] * rng.normal(size=20)
    y = (y - y.mean()) / y.std()
    process = ht.surrogate(x, y)
    scales, noise = list(process.length_scale), process.noise
    likely = process.log_likelihood()
    for level in bayesian.NOISES:
        other = GaussianProcess(scales, noise=level).fit(x, y)
        assert other.log_likelihood() <= likely
    assert noise in bayesian.NOISES and set(scales) <= set(bayesian.LENGTH_SCALES)
    assert (noise < 0.01) == (seed == 0)
    last = GaussianProcess([scales[0], 0.05], noise=noise).fit(x, y)
    assert last.log_likelihood() < likely


def test_a_search_suggests_from_draws_of_its_own():
    """Not from those of its first configurations: they would be drawn again."""
    search = ht.bayesian_search(branin, PLANE, 6, initial=4, seed=7)
    rng = np.random.default_rng([1, 7])
    for end in (4, 5):
        found = ht.suggest(PLANE, search.configs[:end], search.scores[:end], rng)
        assert found == search.configs[end]


def test_constant_objective():
    search = ht.bayesian_search(lambda c: 1.5, PLANE, 12, initial=1)
    assert search.best_score == 1.5
    assert len({tuple(c.values()) for c in search.configs}) == 12  # it explores


def test_failed_trials_are_survived_and_avoided():
    def half_fails(config):
        return math.nan if config["x"] < 2.5 else branin(config)

    failures = []
    for seed in range(5):
        search = ht.bayesian_search(half_fails, PLANE, 25, seed=seed)
        assert search.best_score < 2
        failures.append(np.isnan(search.scores[5:]).mean())
    assert np.mean(failures) < 0.35  # a draw fails in half of the cases
    search = ht.bayesian_search(lambda c: math.nan, PLANE, 8)
    assert len(search.scores) == 8 and len({c["x"] for c in search.configs}) == 8


def test_a_first_failed_trial_and_huge_scores():
    scores = iter([math.inf, 1e30, 1.0, math.nan, *np.linspace(2, 1, 8)])
    search = ht.bayesian_search(lambda c: next(scores), PLANE, 12, initial=1)
    assert search.best_score == 1.0


def test_pending_trials_are_not_suggested_again():
    for seed in range(5):
        done = ht.random_search(branin, PLANE, 8, seed=seed)
        chosen, alone = [], []
        for worker in range(4):
            args = PLANE, done.configs, done.scores
            alone.append(ht.suggest(*args, np.random.default_rng(worker)))
            chosen.append(
                ht.suggest(*args, np.random.default_rng(worker), pending=chosen)
            )
        apart, together = (
            min(
                math.dist(a.values(), b.values())
                for a in points
                for b in points
                if a is not b
            )
            for points in (chosen, alone)
        )
        assert apart > 0.3 > together


def test_branin_regret_beside_random_search_and_optuna():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def peer_search(sampler):
        study = optuna.create_study(sampler=sampler)
        study.optimize(
            lambda t: branin(
                {n: t.suggest_float(n, r.low, r.high) for n, r in PLANE.items()}
            ),
            30,
        )
        return study.best_value - LOWEST

    ours = [
        ht.bayesian_search(branin, PLANE, 30, seed=s).best_score - LOWEST
        for s in range(12)
    ]
    drawn = [
        ht.random_search(branin, PLANE, 30, seed=s).best_score - LOWEST for s in range(12)
    ]
    tpe = [peer_search(optuna.samplers.TPESampler(seed=s)) for s in range(12)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna calls this sampler experimental
        theirs = [peer_search(optuna.samplers.GPSampler(seed=s)) for s in range(3)]
    assert np.median(ours) < 0.15 and max(theirs) < 0.5  # both processes come close
    assert np.median(ours) < np.median(tpe) < np.median(drawn)


# --- successive halving ---------------------------------------------------------------------------


def test_halving_gives_the_hand_computed_rounds():
    configs = [{"a": a} for a in range(27)]
    seen = []

    def objective(config, budget):
        seen.append((config["a"], budget))
        return abs(config["a"] - 20.2) / budget

    halving = ht.successive_halving(objective, configs)
    assert isinstance(halving, ht.Halving) and isinstance(halving.rungs[0], ht.Rung)
    assert [(r.budget, len(r.configs)) for r in halving.rungs] == [
        (1, 27),
        (3, 9),
        (9, 3),
        (27, 1),
    ]
    assert halving.best_config == {"a": 20} and halving.best_score == pytest.approx(
        0.2 / 27
    )
    assert halving.cost() == 81 and halving.cost(resume=False) == 108
    assert sum(budget for _, budget in seen) == 108
    assert [c["a"] for c in halving.rungs[2].configs] == [20, 21, 19]


@pytest.mark.parametrize("count, factor", [(1, 2), (2, 3), (7, 2), (10, 3), (64, 4)])
def test_halving_keeps_a_share_at_least_one(count, factor):
    configs = [{"a": a} for a in range(count)]
    halving = ht.successive_halving(
        lambda c, b: -c["a"], configs, budget=2, factor=factor
    )
    sizes = [len(r.configs) for r in halving.rungs]
    assert sizes[0] == count and sizes[-1] == 1
    assert all(b == max(1, a // factor) for a, b in zip(sizes, sizes[1:], strict=False))
    assert [r.budget for r in halving.rungs] == [2 * factor**i for i in range(len(sizes))]
    assert halving.best_config == {"a": count - 1}


def test_of_equal_scores_halving_keeps_the_first():
    configs = [{"a": a} for a in range(60)]
    halving = ht.successive_halving(lambda c, b: float(c["a"] % 3), configs, factor=2)
    want = sorted(configs, key=lambda c: c["a"] % 3)  # Python's sort is stable
    for rung in halving.rungs[1:]:
        assert rung.configs == want[: len(rung.configs)]


def test_halving_drops_failed_trials_first():
    configs = [{"a": a} for a in range(9)]
    halving = ht.successive_halving(lambda c, b: math.nan if c["a"] < 8 else 5.0, configs)
    assert halving.best_config == {"a": 8}


# --- the exercises --------------------------------------------------------------------------------


def choose(pairs, scores):
    return pairs[int(np.nan_to_num(scores, nan=np.inf).argmin())]


def search_with(draw, choose=choose):
    def search(train, trials, rng):
        pairs = draw(rng, trials)
        return choose(pairs, [train(*pair) for pair in pairs])

    return search


def vectors(rng, n):
    return list(
        zip(10 ** rng.uniform(-4, 1, n), 10 ** rng.uniform(-6, 0, n), strict=True)
    )


def by_scipy(rng, n):
    rates = stats.loguniform(1e-4, 10).rvs(n, random_state=rng)
    decays = stats.loguniform(1e-6, 1).rvs(n, random_state=rng)
    return list(zip(rates, decays, strict=True))


def by_decade(rng, n):
    def one(low, high):
        return 10.0 ** (rng.integers(low, high) + rng.random())

    return [(one(-4, 1), one(-6, 0)) for _ in range(n)]


def strata(rng, n):
    def one(low, high):
        return 10 ** (low + (high - low) * (rng.permutation(n) + rng.random(n)) / n)

    return list(zip(one(-4, 1), one(-6, 0), strict=True))


def shuffled(rng, n):
    rates = rng.permutation(np.logspace(-4, 1, n))
    return list(zip(rates, rng.permutation(np.logspace(-6, 0, n)), strict=True))


@pytest.mark.parametrize("draw", [vectors, by_scipy, by_decade])
def test_other_random_searches_are_right(draw):
    assert EXERCISES[0].hint_for(search_with(draw)) is None
    as_list = search_with(draw, lambda pairs, scores: list(choose(pairs, scores)))
    assert EXERCISES[0].hint_for(as_list) is None
    named = search_with(
        draw, lambda p, s: dict(zip(("rate", "decay"), choose(p, s), strict=True))
    )
    assert EXERCISES[0].hint_for(named) is None


@pytest.mark.parametrize(
    "answer, hint",
    [
        (search_with(strata), "too evenly"),
        (search_with(shuffled), "do not list them"),
        (search_with(vectors, lambda p, s: p[int(np.argmin(s))]), "failed run"),
        (search_with(vectors, lambda p, s: choose(p, s)[::-1]), "never tried"),
        (search_with(vectors, lambda p, s: (min(s), choose(p, s))), "without its score"),
        (search_with(lambda r, n: [(x, 0.0) for x, _ in vectors(r, n)]), "above 0"),
        (search_with(lambda r, n: vectors(np.random, n)), "take all numbers from rng"),
    ],
)
def test_wrong_random_searches_get_a_true_hint(answer, hint):
    assert hint in EXERCISES[0].hint_for(answer)


def improvement(mean, std, best):
    z = (best - mean) / std
    return (best - mean) * stats.norm.cdf(z) + std * stats.norm.pdf(z)


@pytest.mark.parametrize(
    "answer",
    [
        lambda m, s, b: improvement(m, max(s, 1e-8), b),
        lambda m, s, b: improvement(m, s + 1e-9, b),
        lambda m, s, b: torch.tensor(improvement(m, s, b) if s else max(b - m, 0.0)),
        lambda m, s, b: float(ht.expected_improvement(m, s, b)),
    ],
)
def test_other_improvements_are_right(answer):
    assert EXERCISES[1].hint_for(answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        lambda m, s, b: improvement(m, max(s, 0.01), b),
        lambda m, s, b: improvement(m, s, b) if s else 0.0,
        lambda m, s, b: np.maximum(
            b - np.random.default_rng(0).normal(m, s, 999), 0
        ).mean(),
    ],
)
def test_near_misses_of_the_improvement_are_seen(answer):
    assert EXERCISES[1].hint_for(answer)


def test_the_space_is_right_for_optuna_itself_and_in_other_styles():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [EXERCISES[2].solve(study.ask()) for _ in range(50)]
    assert {settings["optimizer"] for settings in drawn} == {"sgd", "adam"}

    def by_exponents(trial):
        kind = trial.suggest_categorical("kind", ("adam", "sgd"))
        settings = {"optimizer": kind, "layers": int(trial.suggest_float("n", 1, 6.999))}
        settings["rate"] = 10 ** trial.suggest_float("rate", -5, 0)
        settings["width"] = round(2 ** trial.suggest_float("width", 4, 9))
        if kind == "sgd":
            settings["momentum"] = 1 - 10 ** trial.suggest_float("m", -3, 0)
        else:
            settings["beta2"] = 1 - 10 ** trial.suggest_float("b", -4, -1)
        return settings

    assert EXERCISES[2].hint_for(by_exponents) is None


# --- the recipe -----------------------------------------------------------------------------------


def shorter():
    """Return the recipe's text with five trials of three epochs, two on a line, and two final seeds."""
    text = RECIPE.read_text(encoding="utf-8")
    lines = {
        "TRIALS, RANDOM = 25, 15": "TRIALS, RANDOM = 5, 3",
        "EPOCHS, FIRST_LOOK = 9, 1": "EPOCHS, FIRST_LOOK = 3, 3",
        "FINAL_SEEDS = range(100, 105)": "FINAL_SEEDS = range(100, 102)",
        "(1e-4, 1e-2, 1e-1, 1.0)": "(1e-2,)",
    }
    for long, short in lines.items():
        assert text.count(long) == 1
        text = text.replace(long, short)
    return text


def run_recipe(text, folder):
    """Run the text of a recipe in a folder; return the trials and results of its study."""
    script = folder / "recipe.py"
    script.write_text(text, encoding="utf-8")
    with contextlib.chdir(folder):
        study = runpy.run_path(str(script), run_name="__main__")["study"]
        return SimpleNamespace(trials=study.trials, user_attrs=study.user_attrs)


def facts(study):
    """Return parameters and value of each trial that ended, in the order of the rates."""
    ended = [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
    return sorted((tuple(t.params.values()), t.value) for t in ended)


def stored_study(folder):
    """Return the study in the file of a folder."""
    optuna = pytest.importorskip("optuna")
    backend = optuna.storages.journal.JournalFileBackend(
        str(folder / "02_tuning.journal")
    )
    storage = optuna.storages.JournalStorage(backend)
    return optuna.create_study(study_name="tuning", storage=storage, load_if_exists=True)


def quiet_optuna():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_the_recipe_goes_on_where_it_was_killed_and_tests_once(tmp_path):
    quiet_optuna()
    text = shorter()
    dies = text.replace(
        "def objective(trial):\n",
        "def objective(trial):\n    if trial.number == 2:\n        os._exit(1)\n",
    )
    assert dies != text
    script = tmp_path / "dies.py"
    script.write_text(dies, encoding="utf-8")
    assert run_script(script, tmp_path).returncode == 1
    before = stored_study(tmp_path).trials
    states = [trial.state.name for trial in before]
    assert states == ["COMPLETE", "COMPLETE", "RUNNING"]

    again = run_recipe(text, tmp_path)
    assert len(facts(again)) == 5
    assert [trial.params for trial in again.trials[:2]] == [t.params for t in before[:2]]
    rates = [t.params["rate"] for t in again.trials if t.state.name == "COMPLETE"]
    assert len(set(rates)) == 5  # a new start draws nothing again

    # neither other seeds nor more trials bring a second look at the test rows
    more = text.replace("range(100, 102)", "range(200, 202)")
    more = more.replace("TRIALS, RANDOM = 5", "TRIALS, RANDOM = 7")
    third = run_recipe(more, tmp_path)
    assert third.user_attrs["tests"] == again.user_attrs["tests"]
    assert facts(third) == facts(again)


def test_a_search_killed_in_its_final_runs_ends_when_started_again(tmp_path):
    quiet_optuna()
    script = tmp_path / "dies.py"
    dies = shorter().replace("    tests = []\n", "    os._exit(1)\n")
    assert dies != shorter()
    script.write_text(dies, encoding="utf-8")
    assert run_script(script, tmp_path).returncode == 1
    assert len(facts(stored_study(tmp_path))) == 5
    assert "tests" not in stored_study(tmp_path).user_attrs
    again = run_recipe(shorter(), tmp_path)
    assert len(facts(again)) == 5  # the search had ended
    assert set(again.user_attrs["tests"]) == {"start", "line", "tuned"}


def test_the_line_comes_first_and_the_best_trials_are_tested(tmp_path, capsys):
    """An empty FINAL_SEEDS ends before the test; the next start makes it."""
    quiet_optuna()
    waits = shorter().replace("FINAL_SEEDS = range(100, 102)", "FINAL_SEEDS = ()")
    study = run_recipe(waits, tmp_path)
    assert "tests" not in study.user_attrs
    start = {"rate": 1e-3, "decay": 0.01, "1 - beta1": 0.1}
    assert [t.params for t in study.trials[:2]] == [start, start | {"rate": 1e-2}]
    full = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    line = min(full[:2], key=lambda trial: trial.value).params
    tuned = min(full, key=lambda trial: trial.value).params
    assert capsys.readouterr().out == f"line: {line} \ntuned: {tuned}\n"

    again = run_recipe(shorter(), tmp_path)
    assert facts(again) == facts(study)  # it searches no further
    assert [len(tests) for tests in again.user_attrs["tests"].values()] == [2, 2, 2]


def test_a_start_with_another_name_is_refused_before_anything_runs(tmp_path):
    quiet_optuna()
    text = shorter()
    renamed = text.replace('{"rate": 1e-3', '{"lr": 1e-3')
    assert renamed != text
    with pytest.raises(ValueError, match="'rate' is not found"):
        run_recipe(renamed, tmp_path)
    added = text.replace('{"rate": 1e-3', '{"lr": 1e-3, "rate": 1e-3')
    with pytest.raises(AssertionError, match="'lr'"):
        run_recipe(added, tmp_path)
    assert not (tmp_path / "02_tuning.journal").exists()


def test_a_trial_without_memory_has_failed_and_the_search_goes_on(tmp_path):
    quiet_optuna()
    text = shorter()
    full = text.replace(
        "def objective(trial):\n",
        "def objective(trial):\n    if trial.number == 1:\n"
        "        raise torch.OutOfMemoryError\n",
    )
    assert full != text
    study = run_recipe(full, tmp_path)
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "FAIL", *3 * ["COMPLETE"]]


def test_two_workers_share_the_search_and_one_scores_the_winner(tmp_path):
    pytest.importorskip("optuna")
    script = tmp_path / "recipe.py"
    script.write_text(shorter(), encoding="utf-8")
    workers = run_script(script, tmp_path, 2)
    assert workers.returncode == 0, workers.stderr
    assert workers.stdout.count("tuned test accuracy") == 1
    ended = facts(stored_study(tmp_path))
    assert 5 <= len(ended) <= 6  # a worker ends the trial that it is in
    assert len({params for params, _ in ended}) == len(ended)  # no trial twice


def test_the_recipe_passes_settings_of_any_form_to_its_final_runs(tmp_path):
    quiet_optuna()
    text = shorter()
    other = text.replace('"beta1": beta1}', '"betas": (beta1, 0.999)}')
    other = other.replace('(settings["beta1"], 0.999)', 'settings["betas"]')
    assert other != text
    results = []
    for number, variant in enumerate((text, other)):
        folder = tmp_path / str(number)
        folder.mkdir()
        results.append(run_recipe(variant, folder).user_attrs["tests"])
    assert results[0] == results[1]


def test_the_loop_of_the_chapter_for_all_gpus_on_one_trial(tmp_path):
    """Both processes train all trials with the same settings and stop at the same epoch."""
    pytest.importorskip("optuna")
    cells = json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    [loop] = re.findall(r"```python\n(def from_main.*?)```", "\n".join(texts), re.DOTALL)
    before = """
import optuna, torch
import torch.distributed as dist
from optuna.trial import TrialState as State
dist.init_process_group("gloo")
rank, TRIALS, EPOCHS, trained = dist.get_rank(), 6, 3, []
pruner = optuna.pruners.SuccessiveHalvingPruner(1, 3)
study = optuna.create_study(pruner=pruner) if rank == 0 else None
settings_of = lambda trial: {"x": trial.suggest_float("x", 0, 1)}
build = lambda settings: None
def train_epoch(model, settings):
    total = torch.tensor(settings["x"] * (rank + 1))
    dist.all_reduce(total)
    trained.append(settings["x"])
    return total.item() / 2
"""
    after = """
everyone = [None, None]
dist.all_gather_object(everyone, trained)
if rank == 0:
    states = [trial.state.name for trial in study.trials]
    epochs = sum(trial.last_step for trial in study.trials)
    print(everyone[0] == everyone[1], len(trained) == epochs, set(states), len(states))
"""
    script = tmp_path / "loop.py"
    script.write_text(before + loop + after, encoding="utf-8")
    done = run_script(script, tmp_path, 2)
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("True True {") and last.endswith("} 6")


def test_the_loss_rises_with_the_coefficient_of_a_penalty():
    """So the coefficient cannot be learned with the weights."""
    weights = [torch.randn(4, 3, requires_grad=True), torch.randn(3, requires_grad=True)]
    strength = torch.tensor(0.01, requires_grad=True)
    error = (torch.ones(4) @ weights[0] - weights[1]).abs().sum()
    loss = error + strength * sum((weight**2).sum() for weight in weights)
    loss.backward()
    size = sum((weight**2).sum().item() for weight in weights)
    assert strength.grad.item() == pytest.approx(size) and size > 0
