"""Verdicts: every rule at its boundary, what diverged or missing seeds may not do, and laws for any effects."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nap_bench.report import claims
from nap_bench.report.claims import (
    CONTRADICTED,
    INCONCLUSIVE,
    KINDS,
    NOT_RUN,
    SUPPORTED,
    Claim,
    Contrast,
    Paired,
    Spread,
    decide,
    judge,
    overall,
    phrase,
    zone,
)
from nap_bench.report.scores import Score, Scores

NAN = math.nan
SPREAD = [-0.02, -0.01, 0.0, 0.01, 0.02, -0.01, 0.0, 0.01]
LIMITS = st.tuples(st.floats(-2, 2), st.floats(-2, 2)).map(sorted)
MARGINS = st.floats(0.001, 2)


def paired(**changes):
    fields = dict(label="NaP - LN", measure="accuracy", better="higher", arm="nap", against="norm_only")
    return Paired(**{**fields, **changes})


def claim(kind="superiority", margin=0.15, measurements=None, **changes):
    return Claim(
        **{
            "id": "nap_beats_ln",
            "source": "Sec. 3.2, Fig. 2",
            "sentence": "Projection keeps late tasks learnable.",
            "kind": kind,
            "margin": margin,
            "unit": "accuracy",
            "measurements": measurements or (paired(),),
            **changes,
        }
    )


def table(measure="accuracy", setting="", **arms):
    """Scores of arms given as lists (seed = position) or as mappings seed -> value."""
    rows = []
    for arm, values in arms.items():
        values = values if isinstance(values, dict) else dict(enumerate(values))
        rows += [Score(arm, setting, measure, None, seed, value) for seed, value in values.items()]
    return Scores(rows)


def verdict_of(claim, scores, expected_seeds=range(8)):
    """The claim's entry, and its first measurement."""
    found = judge([claim], scores, exhibit="arms", scale="laptop", expected_seeds=expected_seeds)["claims"][0]
    return found, found["measurements"][0]


def arms_with_effects(effects, level=0.5):
    return table(nap=[level + effect for effect in effects], norm_only=[level] * len(effects))


# The rules.


@pytest.mark.parametrize(
    ("kind", "low", "high", "verdict"),
    [
        ("superiority", 0.16, 0.30, SUPPORTED),
        ("superiority", 0.15, 0.30, INCONCLUSIVE),
        ("superiority", 0.10, 0.15, INCONCLUSIVE),
        ("superiority", 0.10, 0.14, CONTRADICTED),
        ("superiority", -9.0, 9.00, INCONCLUSIVE),
        ("noninferiority", -0.14, 0.10, SUPPORTED),
        ("noninferiority", -0.15, 0.10, INCONCLUSIVE),
        ("noninferiority", -0.30, -0.15, INCONCLUSIVE),
        ("noninferiority", -0.30, -0.16, CONTRADICTED),
        ("noninferiority", 0.50, 0.60, SUPPORTED),
        ("equivalence", -0.14, 0.14, SUPPORTED),
        ("equivalence", -0.15, 0.14, INCONCLUSIVE),
        ("equivalence", -0.14, 0.15, INCONCLUSIVE),
        ("equivalence", 0.15, 0.20, INCONCLUSIVE),
        ("equivalence", 0.16, 0.20, CONTRADICTED),
        ("equivalence", -0.20, -0.16, CONTRADICTED),
        ("equivalence", -0.20, 0.20, INCONCLUSIVE),
    ],
)
def test_an_interval_decides_only_when_it_lies_wholly_inside_or_outside(kind, low, high, verdict):
    assert decide(kind, 0.15, low, high) == verdict


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(limits=LIMITS, margin=MARGINS, more=st.floats(0, 1))
def test_a_wider_interval_never_decides_what_a_narrower_one_did_not(kind, limits, margin, more):
    low, high = limits
    if decide(kind, margin, low, high) == INCONCLUSIVE:
        assert decide(kind, margin, low - more, high + more) == INCONCLUSIVE


@settings(deadline=None)
@given(limits=LIMITS, margin=MARGINS)
def test_a_wide_interval_around_zero_never_supports_equivalence(limits, margin):
    low, high = limits
    assume(high - low >= 2 * margin)
    assert decide("equivalence", margin, low, high) != SUPPORTED


@settings(deadline=None)
@given(limits=LIMITS, margin=MARGINS)
def test_equivalence_mirrors_and_implies_noninferiority(limits, margin):
    low, high = limits
    assert decide("equivalence", margin, low, high) == decide("equivalence", margin, -high, -low)
    if decide("equivalence", margin, low, high) == SUPPORTED:
        assert decide("noninferiority", margin, low, high) == SUPPORTED


@settings(deadline=None)
@given(limits=LIMITS, margins=st.tuples(MARGINS, MARGINS).map(sorted))
def test_a_larger_margin_makes_superiority_harder_and_the_others_easier(limits, margins):
    rank = [CONTRADICTED, INCONCLUSIVE, SUPPORTED].index
    small, large = margins
    assert rank(decide("superiority", large, *limits)) <= rank(decide("superiority", small, *limits))
    for kind in ("noninferiority", "equivalence"):
        assert rank(decide(kind, large, *limits)) >= rank(decide(kind, small, *limits))


@pytest.mark.parametrize("kind", ["superiority", "noninferiority"])
@settings(deadline=None)
@given(effects=st.lists(st.floats(-1, 1), min_size=2, max_size=8), gain=st.floats(0, 2))
def test_better_seeds_never_make_a_verdict_worse(kind, effects, gain):
    rank = [CONTRADICTED, INCONCLUSIVE, SUPPORTED].index
    gain = gain + 1e-6 if gain else 0.0
    before, _ = verdict_of(claim(kind), arms_with_effects(effects), range(len(effects)))
    after, _ = verdict_of(claim(kind), arms_with_effects([e + gain for e in effects]), range(len(effects)))
    assert rank(after["verdict"]) >= rank(before["verdict"])


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_edge_of_its_zone_a_claim_is_supported_in_two_and_a_half_percent(kind):
    generator = np.random.default_rng(5)
    edge = 0.15 if kind == "superiority" else -0.15
    found = [
        verdict_of(claim(kind), arms_with_effects(effects))[0]["verdict"]
        for effects in generator.normal(edge, 0.05, size=(2000, 8))
    ]
    assert 0.015 <= found.count(SUPPORTED) / 2000 <= 0.035
    assert 0.015 <= found.count(CONTRADICTED) / 2000 <= 0.035


# From scores to a verdict.


def test_an_effect_is_the_paired_difference_with_students_interval():
    found, m = verdict_of(claim(), table(nap=[0.9, 0.8, 0.95], norm_only=[0.6, 0.55, 0.6]), range(3))
    assert found["verdict"] == m["verdict"] == SUPPORTED
    assert m["per_seed"] == pytest.approx({"0": 0.3, "1": 0.25, "2": 0.35})
    half_width = 4.302652729911275 * 0.05 / math.sqrt(3)  # Student's quantile at 0.975, 2 degrees of freedom
    assert (m["estimate"], m["low"], m["high"]) == pytest.approx((0.3, 0.3 - half_width, 0.3 + half_width))
    assert (m["n"], m["num_diverged"], m["num_missing"], m["confidence"]) == (3, 0, 0, 0.95)
    assert (m["arms"], m["settings"], m["unit"], m["method"]) == (
        ["nap", "norm_only"],
        ["", ""],
        "accuracy",
        "paired t",
    )
    assert (found["partial"], found["note"], found["scale"]) == (False, "", "laptop")


def test_pairing_removes_what_seeds_share():
    levels = np.linspace(0.1, 0.8, 8)
    scores = table(nap=list(levels + 0.2 + np.array(SPREAD)), norm_only=list(levels))
    assert verdict_of(claim(), scores)[0]["verdict"] == SUPPORTED


def test_lower_is_better_flips_the_sign():
    scores = table("dead_fraction", nap=[0.1 + s for s in SPREAD], norm_only=[0.5] * 8)
    lower = paired(measure="dead_fraction", better="lower")
    found, m = verdict_of(claim(measurements=(lower,)), scores)
    assert found["verdict"] == SUPPORTED and m["estimate"] == pytest.approx(0.4)
    higher = dataclasses.replace(lower, better="higher")
    found, m = verdict_of(claim(measurements=(higher,)), scores)
    assert found["verdict"] == CONTRADICTED and m["estimate"] == pytest.approx(-0.4)


@pytest.mark.parametrize(
    ("kind", "effect", "verdict"),
    [
        ("superiority", 0.30, SUPPORTED),
        ("superiority", 0.15, INCONCLUSIVE),
        ("superiority", 0.10, CONTRADICTED),
        ("superiority", -0.30, CONTRADICTED),
        ("noninferiority", 0.0, SUPPORTED),
        ("noninferiority", -0.15, INCONCLUSIVE),
        ("noninferiority", -0.30, CONTRADICTED),
        ("equivalence", 0.0, SUPPORTED),
        ("equivalence", 0.15, INCONCLUSIVE),
        ("equivalence", 0.30, CONTRADICTED),
    ],
)
def test_each_kind_of_claim_reaches_each_verdict(kind, effect, verdict):
    assert verdict_of(claim(kind), arms_with_effects([effect + s for s in SPREAD]))[0]["verdict"] == verdict


@pytest.mark.parametrize("kind", ["noninferiority", "equivalence"])
def test_no_significant_difference_is_not_support(kind):
    found, m = verdict_of(claim(kind), arms_with_effects([0.4, -0.4, 0.3, -0.3, 0.2, -0.2, 0.1, -0.1]))
    assert m["low"] < 0 < m["high"] and m["estimate"] == pytest.approx(0.0)
    assert found["verdict"] == INCONCLUSIVE


def test_an_arm_can_stand_against_itself_at_another_measure_or_setting():
    rows = [Score("nap", "adam", "late", None, s, 0.5 + e) for s, e in enumerate(SPREAD)]
    rows += [Score("nap", "adam", "early", None, s, 0.9) for s in range(8)]
    rows += [Score("nap", "sgd", "late", None, s, 0.1) for s in range(8)]
    for changes, estimate, cells in (
        ({"against_measure": "early"}, -0.4, ["adam", "adam"]),
        ({"against_setting": "sgd"}, 0.4, ["adam", "sgd"]),
    ):
        late = paired(measure="late", arm="nap", against="nap", setting="adam", **changes)
        _, m = verdict_of(claim(measurements=(late,)), Scores(rows))
        assert m["estimate"] == pytest.approx(estimate)
        assert m["settings"] == cells


# What diverged.


def test_a_diverged_seed_counts_as_the_declared_worst_value_and_is_named():
    scores = table(nap=[0.9, 0.9, 0.9, 0.9], norm_only=[0.6, 0.6, 0.6, NAN])
    found, m = verdict_of(claim(measurements=(paired(if_diverged=0.0),)), scores, range(4))
    assert m["per_seed"] == pytest.approx({"0": 0.3, "1": 0.3, "2": 0.3, "3": 0.9})
    assert (m["n"], m["num_diverged"]) == (4, 1)
    assert m["note"] == "norm_only diverged at seed 3, counted as 0."
    assert found["note"] == "NaP - LN: norm_only diverged at seed 3, counted as 0."


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_diverged_seed_is_never_dropped_and_undeclared_decides_nothing(kind, value):
    effect = 0.5 if kind == "superiority" else 0.0
    scores = arms_with_effects([effect + s for s in SPREAD[:7]] + [value])
    found, m = verdict_of(claim(kind), scores)
    assert found["verdict"] == INCONCLUSIVE
    assert (m["n"], m["num_diverged"], m["num_missing"]) == (7, 1, 0)
    assert m["per_seed"]["7"] is None
    assert m["note"].startswith("nap diverged at seed 7. What a diverged seed counts as is not declared")


def test_the_claims_own_arm_diverging_counts_against_it():
    scores = table(nap=[0.9] * 6 + [NAN] * 2, norm_only=[0.6] * 8)
    found, m = verdict_of(claim(measurements=(paired(if_diverged=0.0),)), scores)
    assert found["verdict"] != SUPPORTED
    assert m["per_seed"]["7"] == pytest.approx(-0.6)


@pytest.mark.parametrize("kind", ["noninferiority", "equivalence"])
def test_arms_that_fail_alike_are_no_evidence_of_equivalence(kind):
    scores = table(nap=[NAN] * 8, norm_only=[NAN] * 8)
    found, m = verdict_of(claim(kind, measurements=(paired(if_diverged=0.0),)), scores)
    assert found["verdict"] == INCONCLUSIVE
    assert "failing alike is no evidence" in m["note"] and m["num_diverged"] == 8


def test_when_every_seed_diverged_undeclared_there_is_no_estimate_and_no_verdict():
    found, m = verdict_of(claim(), table(nap=[NAN] * 8, norm_only=[0.5] * 8))
    assert found["verdict"] == INCONCLUSIVE
    assert (m["estimate"], m["low"], m["high"], m["n"]) == (None, None, None, 0)


@pytest.mark.parametrize(("better", "declared"), [("higher", 0.7), ("lower", 0.5)])
def test_a_diverged_seed_cannot_be_declared_better_than_what_was_seen(better, declared):
    wrong = claim(measurements=(paired(better=better, if_diverged=declared),))
    with pytest.raises(ValueError, match="which is worse: if_diverged must be the worst"):
        verdict_of(wrong, table(nap=[0.9] * 8, norm_only=[0.6] * 8))


# What is missing.


def test_a_missing_seed_makes_the_verdict_partial_and_is_named():
    scores = table(nap=[0.9 + s for s in SPREAD], norm_only={s: 0.5 for s in range(8) if s not in (2, 5)})
    found, m = verdict_of(claim(), scores)
    assert (found["verdict"], found["partial"]) == (SUPPORTED, True)
    assert (m["n"], m["num_missing"], m["note"]) == (6, 2, "No result yet for seeds 2, 5.")
    assert list(m["per_seed"]) == ["0", "1", "3", "4", "6", "7"]


def test_an_arm_without_results_is_not_run_and_named():
    found, m = verdict_of(claim(), table(nap=[0.9] * 8))
    assert (found["verdict"], m["verdict"], m["estimate"], m["num_missing"]) == (NOT_RUN, NOT_RUN, None, 8)
    assert (found["note"], found["partial"]) == ("NaP - LN: norm_only: no result.", True)
    assert verdict_of(claim(), Scores([]))[0]["note"] == "NaP - LN: nap: no result. norm_only: no result."


def test_one_paired_seed_has_an_estimate_and_no_verdict():
    found, m = verdict_of(claim(), table(nap=[0.9] * 8, norm_only=[0.5]))
    assert found["verdict"] == NOT_RUN
    assert (m["estimate"], m["low"], m["high"], m["n"]) == (pytest.approx(0.4), None, None, 1)
    assert m["note"].startswith("An interval needs at least 2 paired seeds; found 1. No result yet for seeds 1, 2")


def test_cells_may_differ_in_their_planned_seeds():
    scores = table(nap=[0.9 + s for s in SPREAD], norm_only=[0.5] * 3)
    planned = {("nap", ""): range(8), ("norm_only", ""): range(3)}
    found, m = verdict_of(claim(), scores, planned)
    assert (m["n"], m["num_missing"], found["partial"]) == (3, 0, False)


def test_a_cell_that_is_not_planned_at_this_scale_is_not_run_and_not_partial():
    found, _ = verdict_of(claim(), table(nap=[0.9] * 8), {("nap", ""): range(8)})
    assert (found["verdict"], found["partial"]) == (NOT_RUN, False)
    assert found["note"] == "NaP - LN: norm_only: not planned at laptop scale."


def test_a_seed_that_was_not_planned_is_refused():
    with pytest.raises(ValueError, match=r"have seeds \[100\] of arm 'nap'"):
        verdict_of(claim(), table(nap={0: 0.9, 1: 0.9, 100: 0.9}, norm_only=[0.5] * 8))


def test_a_misspelt_measure_of_an_existing_arm_is_an_error():
    with pytest.raises(ValueError, match="Known measures: 'accuracy'"):
        verdict_of(claim(measurements=(paired(measure="acuracy"),)), arms_with_effects(SPREAD))


# Several measurements, several claims, and the file.


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        ([SUPPORTED, SUPPORTED], SUPPORTED),
        ([SUPPORTED, INCONCLUSIVE], INCONCLUSIVE),
        ([INCONCLUSIVE, CONTRADICTED, SUPPORTED], CONTRADICTED),
        ([CONTRADICTED, NOT_RUN], CONTRADICTED),
        ([SUPPORTED, NOT_RUN], NOT_RUN),
    ],
)
def test_a_claim_holds_if_all_its_measurements_hold(verdicts, verdict):
    assert overall(verdicts) == verdict


def test_a_claim_of_two_measurements_reports_both():
    second = paired(label="LN - plain", arm="norm_only", against="baseline")
    scores = table(nap=[0.9 + s for s in SPREAD], norm_only=[0.5] * 8, baseline=[0.45 + s for s in SPREAD])
    found, _ = verdict_of(claim(measurements=(paired(), second)), scores)
    assert [m["verdict"] for m in found["measurements"]] == [SUPPORTED, CONTRADICTED]
    assert found["verdict"] == CONTRADICTED


@pytest.mark.parametrize("verdict", [SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_RUN])
def test_a_verdict_is_worded_with_its_scale_and_never_as_reproduced(verdict):
    assert phrase(verdict, "laptop") == f"{verdict.lower()} at laptop scale"
    assert "reproduc" not in phrase(verdict, "paper")


def test_the_file_is_whole_json_and_the_same_bytes_for_the_same_scores_in_any_order(tmp_path):
    rows = [
        Score(arm, "", "accuracy", None, s, v + e)
        for arm, v in (("nap", 0.9), ("norm_only", 0.5))
        for s, e in enumerate(SPREAD)
    ]
    rows[3] = rows[3]._replace(value=NAN)
    both = [claim(), claim(id="other", kind="equivalence", paper_claim=2)]
    for name, some in (("a", rows), ("b", rows[::-1])):
        claims.write(
            tmp_path / name, judge(both, Scores(some), exhibit="arms", scale="laptop", expected_seeds=range(9))
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = claims.read(tmp_path / "a")
    assert (found["exhibit"], found["scale"]) == ("arms", "laptop")
    assert [(c["id"], c["paper_claim"], c["margin"], c["kind"]) for c in found["claims"]] == [
        ("nap_beats_ln", None, 0.15, "superiority"),
        ("other", 2, 0.15, "equivalence"),
    ]
    assert "NaN" not in (tmp_path / "a").read_text()
    assert found == json.loads((tmp_path / "a").read_text())


# Claims that cannot be meant.


@pytest.mark.parametrize(
    ("kind", "margin", "named"),
    [
        ("better", 0.1, "Unknown kind of claim 'better'"),
        ("superiority", -0.1, "margin"),
        ("noninferiority", NAN, "margin"),
        ("superiority", math.inf, "margin"),
        ("equivalence", 0.0, "margin"),
    ],
)
def test_a_claim_without_a_decidable_zone_is_refused_when_written(kind, margin, named):
    with pytest.raises(ValueError, match=named):
        claim(kind, margin)


def test_a_margin_of_zero_means_any_improvement():
    assert zone("superiority", 0.0) == (0.0, math.inf)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"better": "more"}, "better must be"),
        ({"if_diverged": NAN}, "if_diverged must be finite"),
        ({"against": "nap"}, "with itself"),
    ],
)
def test_a_measurement_that_cannot_be_meant_is_refused_when_written(changes, named):
    with pytest.raises(ValueError, match=named):
        paired(**changes)


def test_a_claim_needs_a_measurement_and_an_id_of_its_own():
    with pytest.raises(ValueError, match="no measurement"):
        dataclasses.replace(claim(), measurements=())
    with pytest.raises(ValueError, match="same id"):
        judge([claim(), claim()], Scores([]), exhibit="arms", scale="laptop", expected_seeds=range(8))


# Contrasts and spreads.


def contrast(**changes):
    fields = dict(label="interaction", measure="accuracy", better="higher", arms=("a", "d"), against=("b", "c"))
    return Contrast(**{**fields, **changes})


def spread(**changes):
    fields = dict(label="spread", measure="accuracy", better="higher", arms=("a2", "b2"), against=("a", "b"))
    return Spread(**{**fields, **changes})


def test_a_contrast_is_a_difference_of_differences_seed_by_seed():
    scores = table(a=[0.9, 0.8, 0.7], b=[0.5, 0.5, 0.5], c=[0.6, 0.5, 0.3], d=[0.4, 0.4, 0.2])
    _, found = verdict_of(claim(measurements=(contrast(),)), scores, range(3))
    assert list(found["per_seed"].values()) == pytest.approx([0.4 - 0.2, 0.3 - 0.1, 0.2 - 0.1])
    assert found["estimate"] == pytest.approx(0.5 / 3) and found["arms"] == ["a", "d", "b", "c"]


def test_a_contrast_of_two_arms_is_the_paired_difference():
    scores = arms_with_effects([0.1, 0.2, 0.4, 0.15])
    both = (paired(), contrast(arms=("nap",), against=("norm_only",)))
    found, _ = verdict_of(claim(measurements=both), scores, range(4))
    first, second = ({k: v for k, v in m.items() if k != "label"} for m in found["measurements"])
    assert first == second


def test_what_all_arms_share_in_a_seed_leaves_a_contrast_and_a_spread_as_they_are():
    arms = dict(a=[0.2, 0.3, 0.1], b=[0.6, 0.5, 0.7], c=[0.1, 0.1, 0.2], d=[0.3, 0.2, 0.2], a2=[0.4] * 3, b2=[0.5] * 3)
    shared = np.array([0.0, 0.3, -0.1])
    moved = {arm: list(np.array(values) + shared) for arm, values in arms.items()}
    for measurement in (contrast(), spread()):
        found = [verdict_of(claim(measurements=(measurement,)), table(**t), range(3))[1] for t in (arms, moved)]
        for key in ("estimate", "low", "high"):
            assert found[0][key] == pytest.approx(found[1][key])


def test_a_spread_is_the_standard_deviation_of_means_over_seeds_and_shrinking_counts_for_the_claim():
    scores = table(a=[0.1, 0.3], b=[0.7, 0.9], a2=[0.5, 0.5], b2=[0.6, 0.6])
    _, found = verdict_of(claim(measurements=(spread(),)), scores, range(2))
    assert found["estimate"] == pytest.approx((0.6 - 0.1) / math.sqrt(2)) and found["method"] == "paired bootstrap t"
    swapped = spread(arms=("a", "b"), against=("a2", "b2"))
    assert verdict_of(claim(measurements=(swapped,)), scores, range(2))[1]["estimate"] == -found["estimate"]


def test_noise_that_differs_between_arms_is_no_spread_of_their_means():
    flip = [0.3, -0.3] * 4
    noisy = table(a=[0.5 + e for e in flip], b=[0.5 - e for e in flip], a2=[0.5] * 8, b2=[0.5] * 8)
    _, found = verdict_of(claim(measurements=(spread(),)), noisy)
    assert found["estimate"] == pytest.approx(0.0, abs=1e-12) and found["verdict"] != SUPPORTED
    assert min(found["per_seed"].values()) > 0.4


def test_a_diverged_seed_counts_as_the_worst_value_in_a_spread_and_a_contrast():
    scores = table(a=[NAN, 0.3, 0.3], b=[0.9, 0.9, 0.9], a2=[0.5] * 3, b2=[0.6] * 3, c=[0.1] * 3, d=[0.1] * 3)
    _, found = verdict_of(claim(measurements=(spread(if_diverged=0.0),)), scores, range(3))
    assert found["estimate"] == pytest.approx((0.7 - 0.1) / math.sqrt(2)) and found["num_diverged"] == 1
    assert "a diverged at seed 0, counted as 0." in found["note"]
    _, undeclared = verdict_of(claim(measurements=(contrast(),)), scores, range(3))
    assert (undeclared["verdict"], undeclared["n"]) == (INCONCLUSIVE, 2)


def test_an_arm_of_many_without_results_makes_the_claim_not_run():
    found, _ = verdict_of(claim(measurements=(spread(),)), table(a=[0.1] * 8, b=[0.2] * 8, a2=[0.1] * 8))
    assert (found["verdict"], found["note"]) == (NOT_RUN, "spread: b2: no result.")


def test_many_cells_that_are_not_planned_are_counted_not_listed():
    found, _ = verdict_of(claim(measurements=(spread(),)), table(a=[0.1] * 8), {("a", ""): range(8)})
    assert (found["verdict"], found["note"]) == (NOT_RUN, "spread: a2 and 2 more: not planned at laptop scale.")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: contrast(arms=("a",)), "as many arms; found 1 against 2"),
        (lambda: contrast(arms=("a", "b")), "with itself"),
        (lambda: spread(better="more"), "better must be"),
    ],
)
def test_a_contrast_that_cannot_be_meant_is_refused_when_written(make, named):
    with pytest.raises(ValueError, match=named):
        make()
