"""Estimators against their definitions, and intervals against what they promise: 93 to 97 % coverage at the n used."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nap_bench.stats import (
    iqm,
    iqm_interval,
    mean_interval,
    paired_bootstrap,
    paired_difference,
    pooled_iqm,
    pooled_mean,
    spread,
    stratified_bootstrap,
)

INTERVALS = {"mean": mean_interval, "iqm": iqm_interval}
NUMBERS = st.floats(-100, 100).map(lambda x: round(x, 6))
SAMPLES = hnp.arrays(np.float64, st.integers(2, 20), elements=NUMBERS)

# Shape of the values -> (draw(generator, size), population mean). What a verdict sees are differences of paired seeds.
MODERATE = {
    "normal": (lambda g, size: g.normal(size=size), 0.0),
    "difference of accuracies": (lambda g, size: g.beta(60, 6, size) - g.beta(12, 8, size), 60 / 66 - 12 / 20),
    "accuracy near its ceiling": (lambda g, size: g.beta(8, 2, size), 0.8),
    "moderately skewed": (lambda g, size: g.gamma(4, size=size), 4.0),
}
HEAVY = {
    "strongly skewed": (lambda g, size: g.lognormal(0, 1, size), math.exp(0.5)),
    "one seed in ten collapses": (
        lambda g, size: np.where(g.random(size) < 0.1, 0.1, 0.9) + g.normal(0, 0.02, size),
        0.82,
    ),
}


def coverage(interval, draw, truth, n, num_simulations=4000):
    """Share of simulations in which interval(values of n seeds) contains the truth."""
    generator = np.random.default_rng(20240701)
    hits = 0
    for values in draw(generator, (num_simulations, n)):
        found = interval(values)
        hits += found.low <= truth <= found.high
    return hits / num_simulations


def percentile_coverage(draw, truth, n, num_simulations=1000, num_resamples=400):
    generator = np.random.default_rng(20240701)
    hits = 0
    for values in draw(generator, (num_simulations, n)):
        means = values[generator.integers(n, size=(num_resamples, n))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        hits += low <= truth <= high
    return hits / num_simulations


def population_iqm(draw, n):
    """The trimmed mean that iqm estimates at this n: it drops whole values, so 2 of 10 and not 2.5."""
    return scipy.stats.trim_mean(draw(np.random.default_rng(1), 300_000), (n // 4) / n)


@pytest.mark.parametrize("shape", MODERATE)
@pytest.mark.parametrize("n", [8, 10, 16])
def test_the_interval_of_verdicts_covers_93_to_97_percent(n, shape):
    draw, truth = MODERATE[shape]
    assert 0.93 <= coverage(mean_interval, draw, truth, n) <= 0.97


@pytest.mark.parametrize("shape", MODERATE)
def test_the_interval_of_the_interquartile_mean_covers_93_to_97_percent(shape):
    draw, _ = MODERATE[shape]
    assert 0.93 <= coverage(iqm_interval, draw, population_iqm(draw, 8), 8) <= 0.97


@pytest.mark.parametrize("shape", MODERATE)
def test_the_percentile_bootstrap_at_eight_seeds_covers_too_little_for_a_verdict(shape):
    draw, truth = MODERATE[shape]
    assert percentile_coverage(draw, truth, 8) < 0.91


@pytest.mark.parametrize("shape", HEAVY)
def test_no_interval_here_is_claimed_to_cover_a_mean_that_rare_seeds_decide(shape):
    draw, truth = HEAVY[shape]
    assert coverage(mean_interval, draw, truth, 8) < 0.90
    assert percentile_coverage(draw, truth, 8) < 0.90


@pytest.mark.parametrize("statistic", [pooled_mean, pooled_iqm])
@pytest.mark.parametrize("shape", ["normal", "moderately skewed"])
def test_an_aggregate_over_five_tasks_covers_93_to_97_percent_and_its_percentiles_do_not(shape, statistic):
    draw, _ = MODERATE[shape]
    generator = np.random.default_rng(20240701)
    levels_T = np.array([0.0, 0.5, 1.0, 2.0, 3.0])
    truth = statistic(draw(generator, (200_000, 5)) + levels_T)
    seen = []

    def remember(scores):
        seen.append(statistic(scores))
        return seen[-1]

    hits = percentile_hits = 0
    for scores_ST in draw(generator, (1000, 8, 5)) + levels_T:
        found = stratified_bootstrap(scores_ST, remember, generator, num_resamples=400)
        resampled, _ = seen[-2:]
        low, high = np.quantile(resampled, [0.025, 0.975])
        hits += found.low <= truth <= found.high
        percentile_hits += low <= truth <= high
    assert 0.93 <= hits / 1000 <= 0.97
    assert percentile_hits / 1000 < 0.935 < hits / 1000


@settings(deadline=None)
@given(SAMPLES)
def test_the_interquartile_mean_is_scipys_quarter_trimmed_mean(values):
    assert iqm(values) == pytest.approx(scipy.stats.trim_mean(values, 0.25), rel=1e-12, abs=1e-12)
    assert values.min() - 1e-9 <= iqm(values) <= values.max() + 1e-9


def test_the_interquartile_mean_drops_whole_values_and_a_collapse_with_them():
    assert iqm([0.0, 1.0, 2.0, 9.0]) == 1.5
    assert iqm([0.0, 1.0, 5.0]) == 2.0
    assert iqm([0.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]) == pytest.approx(0.9)
    assert iqm([[1.0, 2.0], [3.0, 6.0]]).tolist() == [1.5, 4.5]


def test_the_mean_interval_is_scipys():
    values = [0.1, 0.4, 0.35, 0.8]
    low, high = scipy.stats.t.interval(0.9, 3, np.mean(values), scipy.stats.sem(values))
    found = mean_interval(values, confidence=0.9)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.n, found.confidence, found.method) == (4, 0.9, "t")


@pytest.mark.parametrize("n", [2, 3, 4, 7, 8, 12])
def test_the_exact_bootstrap_is_the_limit_of_a_drawn_one(n):
    generator = np.random.default_rng(n)
    values = generator.gamma(2, size=n)
    exact = iqm_interval(values)
    drawn = stratified_bootstrap(values[:, None], pooled_iqm, generator, num_resamples=100_000)
    assert drawn.estimate == exact.estimate
    assert drawn.high - drawn.low == pytest.approx(exact.high - exact.low, rel=0.02)


def test_for_one_task_and_the_mean_the_bootstrap_is_students_t():
    generator = np.random.default_rng(0)
    values = generator.normal(size=8)
    drawn = stratified_bootstrap(values[:, None], pooled_mean, generator, num_resamples=100_000)
    expected = mean_interval(values)
    assert (drawn.low, drawn.high) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_tasks_without_spread_lend_no_degrees_of_freedom():
    values = np.random.default_rng(3).normal(size=8)
    scores_ST = np.stack([values, *np.ones((4, 8))], axis=1)
    drawn = stratified_bootstrap(scores_ST, pooled_mean, np.random.default_rng(0), num_resamples=100_000)
    alone = mean_interval(values)
    assert drawn.high - drawn.low == pytest.approx((alone.high - alone.low) / 5, rel=0.02)


@pytest.mark.parametrize("name", INTERVALS)
@settings(deadline=None)
@given(values=SAMPLES, shift=NUMBERS, scale=st.floats(0.01, 10), negative=st.booleans())
def test_an_interval_moves_and_scales_with_its_values(name, values, shift, scale, negative):
    scale = -scale if negative else scale
    before, after = INTERVALS[name](values), INTERVALS[name](scale * values + shift)
    limits = sorted([scale * before.low + shift, scale * before.high + shift])
    assert [after.low, after.high] == pytest.approx(limits, rel=1e-5, abs=1e-4)
    assert after.estimate == pytest.approx(scale * before.estimate + shift, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", INTERVALS)
@settings(deadline=None)
@given(values=SAMPLES, order=st.randoms(use_true_random=False))
def test_an_interval_contains_its_estimate_and_ignores_the_order_of_seeds(name, values, order):
    found = INTERVALS[name](values)
    assert found.low <= found.estimate <= found.high
    shuffled = list(values)
    order.shuffle(shuffled)
    again = INTERVALS[name](shuffled)
    assert (again.low, again.high) == pytest.approx((found.low, found.high), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", INTERVALS)
@settings(deadline=None)
@given(values=SAMPLES)
def test_more_confidence_is_a_wider_interval(name, values):
    less, more = INTERVALS[name](values, confidence=0.8), INTERVALS[name](values, confidence=0.99)
    assert more.low <= less.low <= less.high <= more.high


@pytest.mark.parametrize("name", INTERVALS)
def test_one_seed_has_an_estimate_and_no_interval(name):
    found = INTERVALS[name]([0.5])
    assert (found.estimate, found.n) == (0.5, 1)
    assert math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize("name", INTERVALS)
@pytest.mark.parametrize("values", [[0.5, math.nan], [math.inf, 0.5, 0.5]])
def test_a_diverged_seed_is_refused_and_never_dropped(name, values):
    with pytest.raises(ValueError, match=f"1 of {len(values)} are not"):
        INTERVALS[name](values)


@pytest.mark.parametrize("name", INTERVALS)
@pytest.mark.parametrize("values", [[], [[1.0, 2.0]]])
def test_an_interval_of_no_values_or_of_a_table_is_refused(name, values):
    with pytest.raises(ValueError, match="at least one value, in one axis"):
        INTERVALS[name](values)


def test_paired_differences_follow_the_seeds_and_not_the_order_of_the_results():
    a, b = {3: 1.0, 1: 5.0, 2: 7.0}, {2: 1.0, 9: 0.0, 1: 2.0}
    assert paired_difference(a, b).tolist() == [3.0, 6.0]
    assert paired_difference(a, {}).shape == (0,)
    assert np.isnan(paired_difference({0: math.nan}, {0: 1.0})).tolist() == [True]


def test_seeds_are_resampled_within_their_task_only():
    scores_ST = np.tile([0.1, 0.5, 0.9], (8, 1))
    found = stratified_bootstrap(scores_ST, pooled_mean, np.random.default_rng(0))
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))
    assert found.n == 8


def test_the_bootstrap_draws_from_the_passed_generator_and_no_other():
    scores_ST = np.random.default_rng(0).normal(size=(8, 3))
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    first, again, other = (
        stratified_bootstrap(scores_ST, pooled_iqm, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize("scores", [np.zeros(8), np.zeros((1, 3)), np.zeros((8, 0))])
def test_a_bootstrap_without_two_seeds_and_a_task_is_refused(scores):
    with pytest.raises(ValueError, match=r"shaped \[seeds, tasks\]"):
        stratified_bootstrap(scores, pooled_mean, np.random.default_rng(0))


def test_a_bootstrap_over_a_diverged_seed_is_refused():
    with pytest.raises(ValueError, match="diverged"):
        stratified_bootstrap([[0.5, math.nan], [0.5, 0.5]], pooled_mean, np.random.default_rng(0))


# Arms that share their seeds.


def test_the_paired_bootstrap_of_a_mean_difference_is_nearly_the_t_interval():
    values_KS = np.random.default_rng(1).normal(size=(2, 12)) + np.arange(12)
    found = paired_bootstrap(values_KS, lambda v: v[..., 0, :].mean(-1) - v[..., 1, :].mean(-1), num_resamples=20000)
    exact = mean_interval(values_KS[0] - values_KS[1])
    assert found.estimate == pytest.approx(exact.estimate)
    assert found.high - found.low == pytest.approx(exact.high - exact.low, rel=0.03)


def test_the_paired_bootstrap_is_the_same_at_every_call_and_blind_to_what_arms_share():
    values_KS = np.random.default_rng(2).normal(size=(5, 8))
    assert paired_bootstrap(values_KS, spread) == paired_bootstrap(values_KS, spread)
    moved = paired_bootstrap(values_KS + np.linspace(-3, 3, 8), spread)
    assert moved.low == pytest.approx(paired_bootstrap(values_KS, spread).low)


def test_a_spread_is_the_standard_deviation_of_the_arms_means():
    assert spread(np.array([[1.0, 3.0], [4.0, 4.0], [6.0, 6.0]])) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("widths", "noises", "least"), [((0.2, 0.02), (0.05, 0.03), 0.93), ((0.05, 0.05), (0.03, 0.06), 0.92)]
)
def test_the_interval_of_a_difference_of_spreads_covers_it(widths, noises, least):
    generator, shape = np.random.default_rng(3), np.linspace(-1, 1, 7) / np.linspace(-1, 1, 7).std(ddof=1)
    means_K = np.concatenate([width * shape for width in widths])
    noise_K = np.repeat(noises, 7)
    hits = 0
    for _ in range(400):
        values_KS = means_K[:, None] + noise_K[:, None] * generator.normal(size=(14, 8))
        found = paired_bootstrap(values_KS, lambda v: spread(v[..., :7, :]) - spread(v[..., 7:, :]), num_resamples=200)
        hits += found.low <= widths[0] - widths[1] <= found.high
    assert least <= hits / 400 <= 0.98
