"""Answers by a stranger to the exercises of chapter 02_hyperparameter_tuning."""

import functools
import math
import random
import statistics

import numpy as np
import pandas as pd
import torch
from scipy import integrate, special, stats

# Exercise 0: search(train, trials, rng)


def search_plain(train, trials, rng):
    best, best_score = None, math.inf
    for _ in range(trials):
        rate = 10 ** rng.uniform(-4, 1)
        decay = 10 ** rng.uniform(-6, 0)
        score = train(rate, decay)
        if math.isfinite(score) and (best is None or score < best_score):
            best, best_score = (rate, decay), score
    return best


def search_vector(train, trials, rng):
    rates = np.exp(rng.uniform(np.log(1e-4), np.log(10), trials))
    decays = np.exp(rng.uniform(np.log(1e-6), np.log(1), trials))
    scores = np.array([train(r, d) for r, d in zip(rates, decays)], dtype=float)
    scores[~np.isfinite(scores)] = np.inf
    best = scores.argmin()
    return rates[best], decays[best]


def search_matrix(train, trials, rng):
    pairs = np.power(10.0, rng.random((trials, 2)) * [5, 6] - [4, 6]).tolist()
    scored = [(float(train(*pair)), tuple(pair)) for pair in pairs]
    return min((s for s in scored if np.isfinite(s[0])), key=lambda s: s[0])[1]


def search_scipy(train, trials, rng):
    rates = stats.loguniform(1e-4, 10).rvs(size=trials, random_state=rng)
    decays = stats.loguniform(1e-6, 1).rvs(size=trials, random_state=rng)
    table = pd.DataFrame({"rate": rates, "decay": decays})
    table["score"] = [float(train(r, d)) for r, d in zip(rates, decays)]
    finite = table[np.isfinite(table.score)]
    row = finite.loc[finite.score.idxmin()]
    return float(row.rate), float(row.decay)


def search_sorted(train, trials, rng):
    tried = []
    while len(tried) < trials:
        decay, rate = 2 ** rng.uniform(
            [math.log2(1e-6), math.log2(1e-4)], [0, math.log2(10)]
        )
        score = train(rate=rate, decay=decay)
        tried.append((not math.isfinite(score), score, rate, decay))
    return list(sorted(tried)[0][2:])


def search_ratio(train, trials, rng):
    """A uniform exponent of the ratio of the ends."""
    pairs = {}
    for _ in range(trials):
        pair = (1e-4 * (10 / 1e-4) ** rng.random(), 1 / 1e6 ** rng.random())
        pairs[pair] = train(*pair)
    good = {pair: s for pair, s in pairs.items() if abs(s) < float("inf")}
    return min(good, key=good.get)


def search_torch(train, trials, rng):
    logs = torch.from_numpy(rng.uniform(size=(2, trials)))
    rates = torch.exp(math.log(1e-4) + logs[0] * math.log(1e5)).tolist()
    decays = torch.exp(logs[1] * math.log(1e-6)).tolist()
    scores = torch.tensor([float(s) for s in map(train, rates, decays)])
    best = torch.nan_to_num(scores, nan=math.inf, posinf=math.inf, neginf=math.inf)
    i = int(best.argmin())
    return rates[i], decays[i]


def search_spawned(train, trials, rng):
    """Each setting draws from a child of rng."""
    for_rate, for_decay = rng.spawn(2)
    best = (math.inf, None)
    for _ in range(trials):
        pair = 10 ** for_rate.uniform(-4, 1), 10 ** for_decay.uniform(-6, 0)
        score = train(*pair)
        if np.isfinite(score):
            best = min(best, (score, pair), key=lambda b: b[0])
    return best[1]


def wrong_search_given(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate = rng.uniform(1e-4, 10)
        decay = 0.0
        tried.append((train(rate, decay), (rate, decay)))
    return min(tried)[1]


def wrong_search_uniform(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = rng.uniform(1e-4, 10), rng.uniform(1e-6, 1)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_decay_uniform(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), rng.uniform(1e-6, 1)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_nan(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)
        tried.append((train(rate, decay), (rate, decay)))
    return min(tried)[1]


def wrong_search_argmin(train, trials, rng):
    rates, decays = 10 ** rng.uniform(-4, 1, trials), 10 ** rng.uniform(-6, 0, trials)
    scores = [train(r, d) for r, d in zip(rates, decays)]
    best = np.argmin(scores)
    return rates[best], decays[best]


def wrong_search_global(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = 10 ** np.random.uniform(-4, 1), 10 ** np.random.uniform(-6, 0)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_random_module(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = 10 ** random.uniform(-4, 1), 10 ** random.uniform(-6, 0)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_own_seed(train, trials, rng):
    rng = np.random.default_rng(0)
    tried = []
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_half_global(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** np.random.uniform(-6, 0)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_max(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return max(tried)[1]


def wrong_search_linked(train, trials, rng):
    tried = []
    for _ in range(trials):
        u = rng.random()
        rate, decay = 10 ** (-4 + 5 * u), 10 ** (-6 + 6 * u)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_same_range(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-4, 1)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_ranges_swapped(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-6, 0), 10 ** rng.uniform(-4, 1)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_no_decay(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 0.0
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_retrain(train, trials, rng):
    pairs = [(10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)) for _ in range(trials)]
    good = [pair for pair in pairs if math.isfinite(train(*pair))]
    return min(good, key=lambda pair: train(*pair))


def wrong_search_with_score(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)


def wrong_search_order(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (decay, rate)))
    return min(tried)[1]


def wrong_search_one_less(train, trials, rng):
    tried = []
    for _ in range(1, trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_grid(train, trials, rng):
    side = max(int(math.sqrt(trials)), 1)
    tried = []
    for rate in np.logspace(-4, 1, side):
        for decay in np.logspace(-6, 0, side):
            score = train(rate, decay)
            if math.isfinite(score):
                tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_powers(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate = 10.0 ** rng.integers(-4, 2)
        decay = 10.0 ** rng.integers(-6, 1)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_base(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = np.exp(rng.uniform(-4, 1)), np.exp(rng.uniform(-6, 0))
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_nan_is_zero(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)
        tried.append((np.nan_to_num(train(rate, decay)), (rate, decay)))
    return min(tried, key=lambda t: t[0])[1]


def wrong_search_below_one(train, trials, rng):
    best, best_score = None, 1.0
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)
        score = train(rate, decay)
        if score < best_score:
            best, best_score = (rate, decay), score
    return best


def wrong_search_first_nan(train, trials, rng):
    best = best_score = None
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)
        score = train(rate, decay)
        if best is None or score < best_score:  # a nan that comes first stays
            best, best_score = (rate, decay), score
    return best


def wrong_search_break(train, trials, rng):
    best, best_score = None, math.inf
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)
        score = train(rate, decay)
        if not math.isfinite(score):
            break
        if score < best_score:
            best, best_score = (rate, decay), score
    return best


def wrong_search_retry(train, trials, rng):
    tried = []
    while len(tried) < trials:
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_one_pair(train, trials, rng):
    rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)
    tried = []
    for _ in range(trials):
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_rate_then_decay(train, trials, rng):
    rates = 10 ** rng.uniform(-4, 1, trials)
    scores = [train(rate, 1e-3) for rate in rates]
    rate = rates[np.nanargmin(scores)]
    decays = 10 ** rng.uniform(-6, 0, trials)
    scores = [train(rate, decay) for decay in decays]
    return rate, decays[np.nanargmin(scores)]


def wrong_search_normal(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate = 10 ** np.clip(rng.normal(-1.5, 1.2), -4, 1)
        decay = 10 ** np.clip(rng.normal(-3, 1.5), -6, 0)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((score, (rate, decay)))
    return min(tried)[1]


def wrong_search_absolute(train, trials, rng):
    tried = []
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)
        score = train(rate, decay)
        if math.isfinite(score):
            tried.append((abs(score), (rate, decay)))
    return min(tried)[1]


def wrong_search_last(train, trials, rng):
    last = None
    for _ in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0)
        if math.isfinite(train(rate, decay)):
            last = (rate, decay)
    return last


# Exercise 1: improvement(mean, std, best)


def improvement_erf(mean, std, best):
    if std == 0:
        return max(best - mean, 0)
    z = (best - mean) / std
    below = 0.5 * (1 + math.erf(z / math.sqrt(2)))
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return (best - mean) * below + std * density


def improvement_scipy(mean, std, best):
    gap = np.float64(best - mean)
    if not std > 0:
        return np.maximum(gap, 0.0)
    return gap * stats.norm.cdf(best, mean, std) + std * stats.norm.pdf(gap / std)


def improvement_statistics(mean, std, best):
    if std == 0:
        return best - mean if best > mean else 0
    normal = statistics.NormalDist(mean, std)
    return (best - mean) * normal.cdf(best) + std**2 * normal.pdf(best)


def improvement_torch(mean, std, best):
    gap = torch.tensor(best - mean, dtype=torch.float64)
    if std == 0:
        return gap.clamp(min=0)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    z = gap / std
    return std * (z * normal.cdf(z) + normal.log_prob(z).exp())


def improvement_tiny(mean, std, best):
    std = max(std, 1e-12)
    z = (best - mean) / std
    return std * (z * special.ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))


def improvement_integral(mean, std, best):
    """The integral of the distribution function up to best."""
    if std == 0:
        return max(0.0, best - mean)
    end = (best - mean) / std
    area, _ = integrate.quad(special.ndtr, min(end, 0.0) - 12, min(end, 0.0))
    if end > 0:
        area += integrate.quad(special.ndtr, 0, end, limit=200)[0]
    return std * area


def improvement_quantiles(mean, std, best):
    """The mean over a million even quantiles; right for std = 0 as well."""
    p = (np.arange(1_000_000) + 0.5) / 1_000_000
    scores = mean + std * special.ndtri(p)
    return float(np.maximum(best - scores, 0).mean())


def improvement_lambda_body(mean, std, best):
    tail = lambda z: math.erfc(-z / 2**0.5) / 2  # noqa: E731
    bell = lambda z: (2 * math.pi) ** -0.5 * math.exp(-(z**2) / 2)  # noqa: E731
    gap = best - mean
    return gap * tail(gap / std) + std * bell(gap / std) if std else max(gap, 0)


def improvement_try(mean, std, best):
    try:
        z = (best - mean) / float(std)
    except ZeroDivisionError:
        return float(max(best, mean) - mean)
    return (
        std
        * (z + z * math.erf(z * 0.5**0.5) + math.exp(-z * z / 2) * (2 / math.pi) ** 0.5)
        / 2
    )


def wrong_improvement_maximise(mean, std, best):
    if std == 0:
        return max(mean - best, 0)
    z = (mean - best) / std
    return (mean - best) * stats.norm.cdf(z) + std * stats.norm.pdf(z)


def wrong_improvement_variance(mean, std, best):
    if std == 0:
        return max(best - mean, 0)
    z = (best - mean) / std**2
    return (best - mean) * stats.norm.cdf(z) + std * stats.norm.pdf(z)


def wrong_improvement_root(mean, std, best):
    if std == 0:
        return max(best - mean, 0)
    std = math.sqrt(std)
    z = (best - mean) / std
    return (best - mean) * stats.norm.cdf(z) + std * stats.norm.pdf(z)


def wrong_improvement_no_std(mean, std, best):
    if std == 0:
        return max(best - mean, 0)
    z = (best - mean) / std
    return (best - mean) * stats.norm.cdf(z) + stats.norm.pdf(z)


def wrong_improvement_no_pi(mean, std, best):
    if std == 0:
        return max(best - mean, 0)
    z = (best - mean) / std
    return (best - mean) * stats.norm.cdf(z) + std * math.exp(-z * z / 2)


def wrong_improvement_zero_std(mean, std, best):
    z = (best - mean) / std
    return (best - mean) * stats.norm.cdf(z) + std * stats.norm.pdf(z)


def wrong_improvement_zero_at_zero(mean, std, best):
    if std == 0:
        return 0.0
    z = (best - mean) / std
    return (best - mean) * stats.norm.cdf(z) + std * stats.norm.pdf(z)


def wrong_improvement_negative(mean, std, best):
    if std == 0:
        return best - mean
    z = (best - mean) / std
    return (best - mean) * stats.norm.cdf(z) + std * stats.norm.pdf(z)


def wrong_improvement_absolute(mean, std, best):
    if std == 0:
        return abs(best - mean)
    z = (best - mean) / std
    return (best - mean) * stats.norm.cdf(z) + std * stats.norm.pdf(z)


def wrong_improvement_probability(mean, std, best):
    if std == 0:
        return float(mean < best)
    return stats.norm.cdf((best - mean) / std)


def wrong_improvement_of_mean(mean, std, best):
    return max(best - mean, 0)


def wrong_improvement_plain_erf(mean, std, best):
    if std == 0:
        return max(best - mean, 0)
    z = (best - mean) / std
    return (best - mean) * 0.5 * (1 + math.erf(z)) + std * stats.norm.pdf(z)


def wrong_improvement_logistic(mean, std, best):
    if std == 0:
        return max(best - mean, 0)
    z = (best - mean) / std
    return (best - mean) / (1 + math.exp(-1.5 * z)) + std * stats.norm.pdf(z)


def wrong_improvement_margin(mean, std, best, xi=0.01):
    if std == 0:
        return max(best - mean - xi, 0)
    z = (best - mean - xi) / std
    return (best - mean - xi) * stats.norm.cdf(z) + std * stats.norm.pdf(z)


def wrong_improvement_draws(mean, std, best):
    f = np.random.default_rng(0).normal(mean, std, 100)
    return float(np.maximum(best - f, 0).mean())


def wrong_improvement_conditional(mean, std, best):
    if std == 0:
        return max(best - mean, 0)
    z = (best - mean) / std
    return best - mean + std * stats.norm.pdf(z) / stats.norm.cdf(z)


def wrong_improvement_minus(mean, std, best):
    if std == 0:
        return max(best - mean, 0)
    z = (best - mean) / std
    return (best - mean) * stats.norm.cdf(z) - std * stats.norm.pdf(z)


def wrong_improvement_confidence(mean, std, best):
    return max(best - (mean - std), 0)


def wrong_improvement_no_density(mean, std, best):
    if std == 0:
        return max(best - mean, 0)
    return (best - mean) * stats.norm.cdf((best - mean) / std)


def wrong_improvement_standard(mean, std, best):
    if std == 0:
        return max(best - mean, 0)
    z = (best - mean) / std
    return z * stats.norm.cdf(z) + stats.norm.pdf(z)


def wrong_improvement_floor(mean, std, best):
    std = max(std, 0.1)
    z = (best - mean) / std
    return (best - mean) * stats.norm.cdf(z) + std * stats.norm.pdf(z)


def wrong_improvement_only_if_better(mean, std, best):
    if std == 0 or mean >= best:
        return max(best - mean, 0)
    z = (best - mean) / std
    return (best - mean) * stats.norm.cdf(z) + std * stats.norm.pdf(z)


# Exercise 2: settings(trial)


def settings_plain(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def settings_optimizer_first(trial):
    optimizer = trial.suggest_categorical("optimizer", ("adam", "sgd"))
    extra = {}
    if optimizer == "adam":
        extra["beta2"] = 1.0 - trial.suggest_float("gap2", low=1e-4, high=1e-1, log=True)
    if optimizer == "sgd":
        extra["momentum"] = 1.0 - trial.suggest_float("gap", low=1e-3, high=1.0, log=True)
    return dict(
        extra,
        width=trial.suggest_int("width", low=16, high=512, log=True),
        layers=trial.suggest_int("layers", low=1, high=6, log=False),
        rate=trial.suggest_float("rate", low=1e-5, high=1.0, log=True),
        optimizer=optimizer,
    )


def settings_categorical_layers(trial):
    out = {}
    out["layers"] = trial.suggest_categorical("layers", [1, 2, 3, 4, 5, 6])
    out["rate"] = trial.suggest_float("rate", 0.00001, 1.0, log=True)
    out["width"] = int(trial.suggest_int("width", 16, 512, log=True))
    out["optimizer"] = trial.suggest_categorical("optimizer", choices=["sgd", "adam"])
    name, low, high = {
        "sgd": ("momentum", 0.001, 1.0),
        "adam": ("beta2", 0.0001, 0.1),
    }[out["optimizer"]]
    out[name] = 1 - trial.suggest_float(f"one_minus_{name}", low, high, log=True)
    return out


def settings_exponent(trial):
    """Uniform exponents: the powers of ten are log-uniform."""
    rate = 10 ** trial.suggest_float("log10_rate", -5, 0)
    layers = trial.suggest_int("layers", 1, 6)
    width = trial.suggest_int("width", 16, 512, log=True)
    match trial.suggest_categorical("optimizer", ["sgd", "adam"]):
        case "sgd":
            momentum = 1 - 10 ** trial.suggest_float("log10_gap", -3, 0)
            last = {"optimizer": "sgd", "momentum": momentum}
        case "adam":
            beta2 = 1 - 10 ** trial.suggest_float("log10_gap2", -4, -1)
            last = {"optimizer": "adam", "beta2": beta2}
    return {"rate": rate, "layers": layers, "width": width, **last}


class Settings:
    """A table of the draws, and what each optimizer needs."""

    own = {"sgd": {"momentum": (1e-3, 1)}, "adam": {"beta2": (1e-4, 1e-1)}}

    def __call__(self, trial):
        log_float = functools.partial(trial.suggest_float, log=True)
        chosen = dict(rate=log_float("rate", 1e-5, 1))
        chosen.update(layers=trial.suggest_int("layers", 1, 6))
        chosen.update(width=trial.suggest_int("width", 16, 512, log=True))
        chosen.update(optimizer=trial.suggest_categorical("optimizer", list(self.own)))
        for name, ends in self.own[chosen["optimizer"]].items():
            chosen[name] = 1 - log_float("1-" + name, *ends)
        return chosen


settings_object = Settings()


def settings_index(trial):
    is_adam = trial.suggest_categorical("optimizer", ["sgd", "adam"]) == "adam"
    keys = ["rate", "layers", "width", "optimizer", ("momentum", "beta2")[is_adam]]
    values = (
        trial.suggest_float("rate", 1e-5, 1, log=True),
        trial.suggest_int("layers", 1, 6),
        trial.suggest_int("width", 16, 512, log=True),
        "adam" if is_adam else "sgd",
        -trial.suggest_float(keys[-1], *((1e-3, 1), (1e-4, 0.1))[is_adam], log=True) + 1,
    )
    return dict(zip(keys, values))


def wrong_settings_rate_linear(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_layers_log(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6, log=True),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_layers_short(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 5),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_layers_from_zero(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 0, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_layers_rounded(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": round(trial.suggest_float("layers", 1, 6)),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_width_linear(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_width_float(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_float("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_width_powers(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": 2 ** trial.suggest_int("log2_width", 4, 9),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_width_list(trial):
    widths = [16, 32, 64, 128, 256, 512]
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_categorical("width", widths),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_width_step(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, step=16),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_momentum_direct(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = trial.suggest_float("momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = trial.suggest_float("beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_beta_direct(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = trial.suggest_float("beta2", 0.9, 0.9999, log=True)
    return chosen


def wrong_settings_momentum_uniform(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = trial.suggest_float("momentum", 0.0, 0.999)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_same_range(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.001, 1, log=True)
    return chosen


def wrong_settings_asks_both(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    momentum = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    beta2 = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = momentum
    else:
        chosen["beta2"] = beta2
    return chosen


def wrong_settings_keeps_both(trial):
    return {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
        "momentum": 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True),
        "beta2": 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True),
    }


def wrong_settings_none(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
        "momentum": None,
        "beta2": None,
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_gap(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        gap = trial.suggest_float("gap", 0.001, 1, log=True)
        chosen["1 - momentum"] = gap
    else:
        gap = trial.suggest_float("gap2", 0.0001, 0.1, log=True)
        chosen["1 - beta2"] = gap
    return chosen


def wrong_settings_params(trial):
    trial.suggest_float("rate", 1e-5, 1, log=True)
    trial.suggest_int("layers", 1, 6)
    trial.suggest_int("width", 16, 512, log=True)
    if trial.suggest_categorical("optimizer", ["sgd", "adam"]) == "sgd":
        trial.suggest_float("momentum", 0.001, 1, log=True)
    else:
        trial.suggest_float("beta2", 0.0001, 0.1, log=True)
    return trial.params


def wrong_settings_swapped(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "adam":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_capitals(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["SGD", "Adam"]),
    }
    if chosen["optimizer"] == "SGD":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_third_optimizer(trial):
    names = ["sgd", "adam", "adamw"]
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", names),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_own_random(trial):
    chosen = {
        "rate": 10 ** random.uniform(-5, 0),
        "layers": random.randint(1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_no_beta(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    return chosen


def wrong_settings_rate_low(trial):
    chosen = {
        "rate": trial.suggest_float("rate", 1e-5, 1e-1, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if chosen["optimizer"] == "sgd":
        chosen["momentum"] = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        chosen["beta2"] = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return chosen


def wrong_settings_values(trial):
    rate = trial.suggest_float("rate", 1e-5, 1, log=True)
    layers = trial.suggest_int("layers", 1, 6)
    width = trial.suggest_int("width", 16, 512, log=True)
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adam"])
    if optimizer == "sgd":
        last = 1 - trial.suggest_float("1 - momentum", 0.001, 1, log=True)
    else:
        last = 1 - trial.suggest_float("1 - beta2", 0.0001, 0.1, log=True)
    return rate, layers, width, optimizer, last


RIGHT = {
    0: [
        search_plain,
        search_vector,
        search_matrix,
        search_scipy,
        search_sorted,
        search_ratio,
        search_torch,
        search_spawned,
    ],
    1: [
        improvement_erf,
        improvement_scipy,
        improvement_statistics,
        improvement_torch,
        improvement_tiny,
        improvement_integral,
        improvement_quantiles,
        improvement_lambda_body,
        improvement_try,
    ],
    2: [
        settings_plain,
        settings_optimizer_first,
        settings_categorical_layers,
        settings_exponent,
        settings_object,
        settings_index,
    ],
}

WRONG = {
    0: [
        (wrong_search_given, "The given code: uniform rate, no decay, trusts min."),
        (wrong_search_uniform, "Both are uniform, not log-uniform."),
        (wrong_search_decay_uniform, "The decay is uniform."),
        (wrong_search_nan, "min can return a failed run."),
        (wrong_search_argmin, "np.argmin returns a nan where there is one."),
        (wrong_search_global, "It draws from numpy's global generator."),
        (wrong_search_random_module, "It draws from the module random."),
        (wrong_search_own_seed, "It makes a generator of its own."),
        (wrong_search_half_global, "The decay does not come from rng."),
        (wrong_search_max, "It takes the highest score."),
        (wrong_search_linked, "One number draws both, so they move together."),
        (wrong_search_same_range, "The decay has the range of the rate."),
        (wrong_search_ranges_swapped, "The ranges are swapped."),
        (wrong_search_no_decay, "The decay is always 0."),
        (wrong_search_retrain, "It trains good pairs twice."),
        (wrong_search_with_score, "It returns the score, too."),
        (wrong_search_order, "It returns (decay, rate)."),
        (wrong_search_one_less, "It tries one pair too few."),
        (wrong_search_grid, "It is a grid, with nothing random."),
        (wrong_search_powers, "It draws powers of ten only."),
        (wrong_search_base, "Exponents of ten are put into exp."),
        (wrong_search_nan_is_zero, "A nan counts as 0, the best."),
        (wrong_search_below_one, "Scores of 1 or more are never the best."),
        (wrong_search_first_nan, "A nan that comes first is never beaten."),
        (wrong_search_break, "It ends at the first failed run."),
        (wrong_search_retry, "Failed runs are repeated, so it trains too often."),
        (wrong_search_one_pair, "It draws one pair, and trains it again and again."),
        (wrong_search_rate_then_decay, "One after the other, with twice the runs."),
        (wrong_search_normal, "The logarithms are normal, not uniform."),
        (wrong_search_absolute, "A negative score counts by its size."),
        (wrong_search_last, "It returns the last run that did not fail."),
    ],
    1: [
        (wrong_improvement_maximise, "Higher is better in it."),
        (wrong_improvement_variance, "It divides by the variance."),
        (wrong_improvement_root, "It takes std for a variance."),
        (wrong_improvement_no_std, "The density lacks its factor std."),
        (wrong_improvement_no_pi, "The density lacks 1 / sqrt(2 pi)."),
        (wrong_improvement_zero_std, "It divides by zero at std = 0."),
        (wrong_improvement_zero_at_zero, "At std = 0 it is always 0."),
        (wrong_improvement_negative, "At std = 0 it can be below 0."),
        (wrong_improvement_absolute, "At std = 0 a worse point counts as better."),
        (wrong_improvement_probability, "This is the probability to improve."),
        (wrong_improvement_of_mean, "It ignores std."),
        (wrong_improvement_plain_erf, "erf lacks the factor 1 / sqrt(2)."),
        (wrong_improvement_logistic, "A logistic curve in place of the normal."),
        (wrong_improvement_margin, "It takes off a margin nobody asked for."),
        (wrong_improvement_draws, "A hundred draws are far too few."),
        (wrong_improvement_conditional, "The mean given that it improves."),
        (wrong_improvement_minus, "The density has the wrong sign."),
        (wrong_improvement_confidence, "This is a confidence bound."),
        (wrong_improvement_no_density, "The density is missing."),
        (wrong_improvement_standard, "It is in units of std."),
        (wrong_improvement_floor, "std is never taken below 0.1."),
        (wrong_improvement_only_if_better, "A worse mean has no chance in it."),
    ],
    2: [
        (wrong_settings_rate_linear, "The rate is not log-uniform."),
        (wrong_settings_layers_log, "The layers have not the same chance each."),
        (wrong_settings_layers_short, "It never has 6 layers."),
        (wrong_settings_layers_from_zero, "It can have no layer."),
        (wrong_settings_layers_rounded, "1 and 6 have half a chance each."),
        (wrong_settings_width_linear, "The width is not log-uniform."),
        (wrong_settings_width_float, "The width is no whole number."),
        (wrong_settings_width_powers, "The width is a power of two, not any number."),
        (wrong_settings_width_list, "The width is one of six, not any number."),
        (wrong_settings_width_step, "The width is a multiple of 16, and uniform."),
        (wrong_settings_momentum_direct, "Momentum itself is log-uniform, and beta2."),
        (wrong_settings_beta_direct, "beta2 itself is log-uniform."),
        (wrong_settings_momentum_uniform, "The momentum is uniform."),
        (wrong_settings_same_range, "1 - beta2 has the range of 1 - momentum."),
        (wrong_settings_asks_both, "It asks for a setting that is not used."),
        (wrong_settings_keeps_both, "The dictionary has both."),
        (wrong_settings_none, "The one not used is there, as None."),
        (wrong_settings_gap, "The dictionary has 1 - momentum, not momentum."),
        (wrong_settings_params, "trial.params holds 1 - momentum as momentum."),
        (wrong_settings_swapped, "Momentum comes with adam."),
        (wrong_settings_capitals, "The names are not those asked."),
        (wrong_settings_third_optimizer, "It has a third optimizer."),
        (wrong_settings_own_random, "Rate and layers are not drawn from the trial."),
        (wrong_settings_no_beta, "beta2 is missing."),
        (wrong_settings_rate_low, "The rate ends at 0.1."),
        (wrong_settings_values, "It returns a tuple, not a dictionary."),
    ],
}

UNCLEAR = {
    0: [
        "A score of -inf: is it a failed run, as 'inf' in words may include it?",
        "May the pair be a list, or an array of two? I return one list.",
        "rng.spawn: are its children still 'from rng'? I count it as right.",
        "Is train called with positions or with names? Both work by the words.",
    ],
    1: [
        "How near is near enough: I take three digits for a numerical integral.",
        "A tiny value below 0 far out in the tail, from rounding.",
    ],
    2: [
        "The names to ask under for 1 - momentum and 1 - beta2 are free, I think.",
        "May the rate be 10 ** (a uniform exponent from the trial)? I say yes.",
        "May layers be drawn by suggest_categorical? I say yes.",
    ],
}
