"""Estimators against their definitions, and intervals against what they promise: 93 to 97 % coverage at the n used."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nap_bench.stats import (
    POOLS,
    holm,
    iqm,
    iqm_interval,
    mean_interval,
    optimality_gap,
    paired_bootstrap,
    paired_difference,
    paired_tasks,
    performance_profile,
    pooled_interval,
    pooled_iqm,
    pooled_mean,
    pooled_median,
    probability_of_improvement,
    spread,
    stratified_bootstrap,
    stratified_mean,
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


def test_aggregates_over_tasks_are_those_of_their_definitions():
    scores_ST = np.array([[0.0, 0.5, 2.0], [1.0, 0.7, 1.0]])
    assert pooled_median(scores_ST) == pytest.approx(0.6)  # means over seeds: 0.5, 0.6, 1.5
    assert optimality_gap(scores_ST) == pytest.approx(1 - (0 + 0.5 + 1 + 1 + 0.7 + 1) / 6)
    stacked = np.stack([scores_ST, scores_ST + 1])
    for pool in POOLS.values():
        np.testing.assert_allclose(pool(stacked), [pool(scores_ST), pool(scores_ST + 1)])


@pytest.mark.parametrize("pool", POOLS)
def test_an_aggregate_s_interval_contains_it_and_is_the_same_at_every_call(pool):
    scores_ST = np.random.default_rng(3).uniform(size=(8, 5))
    found = pooled_interval(scores_ST, pool)
    assert found.low < found.estimate == POOLS[pool](scores_ST) < found.high
    assert found == pooled_interval(scores_ST, pool)
    assert math.isnan(pooled_interval(scores_ST[:1], pool).low)


def test_the_stratified_mean_is_the_limit_of_the_drawn_bootstrap_and_for_one_task_students_t():
    scores_ST = np.random.default_rng(4).normal(size=(8, 4)) * [1, 2, 3, 0.1]
    estimate, error, degrees = stratified_mean(scores_ST)
    drawn = stratified_bootstrap(scores_ST, pooled_mean, np.random.default_rng(0), num_resamples=40_000)
    half = scipy.stats.t.ppf(0.975, degrees) * error
    assert (estimate - half, estimate + half) == pytest.approx((drawn.low, drawn.high), rel=0.02)
    estimate, error, degrees = stratified_mean(scores_ST[:, :1])
    assert (degrees, error) == (7, pytest.approx(scipy.stats.sem(scores_ST[:, 0])))
    assert stratified_mean(np.ones((4, 3)))[1:] == (0.0, 9.0)


def test_a_profile_is_a_share_with_the_interval_of_a_share():
    scores_ST = np.random.default_rng(5).uniform(size=(8, 6))
    share, low, high = performance_profile(scores_ST, [0.0, 0.3, 0.7, 1.0])
    assert (share[0], share[-1]) == (1.0, 0.0) and (np.diff(share) <= 0).all()
    np.testing.assert_allclose(share, [(scores_ST > x).mean() for x in (0.0, 0.3, 0.7, 1.0)])
    drawn = stratified_bootstrap(scores_ST > 0.3, pooled_mean, np.random.default_rng(0), num_resamples=20_000)
    assert (low[1], high[1]) == pytest.approx((max(0, drawn.low), min(1, drawn.high)), abs=0.01)
    assert np.isnan(performance_profile(scores_ST[:1], [0.5])[1]).all()


def test_the_probability_of_improvement_counts_pairs_and_ties_by_half():
    a_ST, b_ST = np.array([[1.0, 5.0], [2.0, 5.0]]), np.array([[1.0, 0.0], [0.0, 9.0]])
    found = probability_of_improvement(a_ST, b_ST)
    slow = np.mean([[(a > b) + 0.5 * (a == b) for a in a_ST[:, t] for b in b_ST[:, t]] for t in range(2)])
    assert found.estimate == slow == pytest.approx((0.5 + 1 + 1 + 1 + 1 + 0 + 1 + 0) / 8)
    back = probability_of_improvement(b_ST, a_ST)
    assert (back.estimate, back.low, back.high) == pytest.approx((1 - found.estimate, 1 - found.high, 1 - found.low))


@pytest.mark.parametrize(("num_seeds", "num_tasks"), [(2, 1), (8, 1), (8, 5)])
def test_always_better_at_a_few_seeds_is_no_certainty_and_as_sure_as_with_one_tie_a_sample(num_seeds, num_tasks):
    better_ST, worse_ST = 1.0 + np.ones((num_seeds, num_tasks)), np.ones((num_seeds, num_tasks))
    found = probability_of_improvement(better_ST, worse_ST)
    assert (found.estimate, found.high) == (1.0, 1.0) and 0.0 <= found.low < 1.0
    back = probability_of_improvement(worse_ST, better_ST)
    assert (back.estimate, back.low) == (0.0, 0.0) and back.high == pytest.approx(1 - found.low)
    tied_ST, other_ST = better_ST.copy(), worse_ST.copy()
    tied_ST[0], other_ST[0] = 1.5, 1.5
    tied = probability_of_improvement(tied_ST, other_ST)
    assert tied.estimate - tied.low == pytest.approx(1.0 - found.low)


def test_the_interval_of_the_probability_of_improvement_is_nearly_that_of_a_drawn_bootstrap():
    generator = np.random.default_rng(6)
    a_ST, b_ST = generator.normal(0.3, 1, (12, 4)), generator.normal(size=(12, 4))
    found = probability_of_improvement(a_ST, b_ST)
    tasks = np.arange(4)
    drawn = []
    for _ in range(4000):
        a, b = (scores[generator.integers(12, size=(12, 4)), tasks] for scores in (a_ST, b_ST))
        drawn.append((a[:, None] > b[None]).mean())
    assert found.high - found.estimate == pytest.approx(2.0 * np.std(drawn) * math.sqrt(12 / 11), rel=0.1)


def test_the_probability_of_improvement_of_equals_covers_a_half():
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(600):
        found = probability_of_improvement(generator.normal(size=(8, 3)), generator.normal(size=(8, 3)))
        hits += found.low <= 0.5 <= found.high
    assert 0.93 <= hits / 600 <= 0.98


def test_a_paired_difference_over_one_task_is_the_paired_t_test():
    generator = np.random.default_rng(8)
    a, b = generator.normal(0.4, 1, 10), generator.normal(size=10)
    found, p = paired_tasks(a[:, None], b[:, None])
    assert p == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue)
    assert found.low == pytest.approx(mean_interval(a - b).low)
    assert paired_tasks(np.ones((3, 2)), np.zeros((3, 2)))[1] == 0.0
    assert paired_tasks(np.ones((3, 2)), np.ones((3, 2)))[1] == 1.0
    assert math.isnan(paired_tasks(np.ones((1, 2)), np.zeros((1, 2)))[1])


def test_p_values_without_an_effect_are_uniform_over_two_tasks():
    generator = np.random.default_rng(9)
    ps = [paired_tasks(generator.normal(size=(8, 2)), generator.normal(size=(8, 2)))[1] for _ in range(2000)]
    assert np.mean(np.array(ps) < 0.05) == pytest.approx(0.05, abs=0.015)


def test_holm_s_adjustment_is_the_step_down_rule():
    p = np.array([0.04, 0.01, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.06, 0.03, 0.06, 0.02])
    assert holm([0.9, 0.8]).max() == 1.0 and holm([]).size == 0
    for level in (0.01, 0.05, 0.5):  # slow: reject one by one, smallest first
        order, rejected = np.argsort(p), np.zeros(4, bool)
        for k, i in enumerate(order):
            if p[i] * (4 - k) > level:
                break
            rejected[i] = True
        assert ((holm(p) <= level) == rejected).all()
