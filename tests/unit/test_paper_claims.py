"""The paper's claims: exactly one row each, whatever was run, and a verdict by the stated rule."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nap_bench.experiments import EXPERIMENTS
from nap_bench.report import page
from nap_bench.report.claims import CONTRADICTED, INCONCLUSIVE, KINDS, NOT_RUN, SUPPORTED, Claim, Paired
from nap_bench.report.paper_claims import PAPER_CLAIMS, combined, measured_by

TITLES = {name: module.TITLE for name, module in EXPERIMENTS.items()}

MEASURED = {
    1: {"fig1_dead_units": ("normalisation_stops_accumulation_of_dead_units",)},
    2: {"fig1_dead_units": ("centring_does_not_matter_for_dead_units",)},
    3: {"fig2_norm_growth": ("plain_norms_grow_and_late_tasks_degrade",)},
    4: {"fig2_norm_growth": ("layer_norm_grows_its_jacobian_falls_and_late_tasks_degrade",)},
    5: {"fig2_norm_growth": ("nap_stays_as_good_as_a_fresh_network",)},
    6: {"fig3_twins": ("layer_wise_rescaling_comes_closer_than_global_and_global_than_none",)},
    7: {"fig4_schedules": ("constant_rate_under_projection_is_worse_than_the_implicit_schedule",)},
    8: {"fig4_schedules": ("linear_decay_beats_the_implicit_schedule",)},
    9: {"fig7_decay_duration": ("halfway_is_best",)},
    10: {"fig5_continual": ("nap_shrinks_the_spread",)},
    11: {"fig5_continual": ("nap_improves_every_method_but_redo", "nap_does_not_improve_redo")},
    12: {"fig5_continual": ("regenerative_and_redo_are_best_without_nap",)},
    13: {"fig6_atari57": ("nap_with_linear_schedule_is_best",)},
    14: {"fig6_sequential": ("nap_relearns_as_a_fresh_agent_does",)},
    15: {"fig6_sequential": ("rainbow_relearns_worse_than_a_fresh_agent",)},
    16: {
        "table1_images": ("nap_costs_no_accuracy_on_stationary_images", "nap_costs_no_accuracy_on_imagenet"),
        "table1_c4": ("nap_costs_a_language_model_no_accuracy", "nap_is_better_on_transfer_sets"),
    },
    17: {
        "fig10_memorisation": (
            "plasticity_is_lost_and_projection_or_decay_keeps_more_of_it",
            "nap_learns_late_strings_as_fast_as_the_first",
            "projection_alone_or_decay_learns_late_strings_as_fast_as_the_first",
        )
    },
    18: {"fig9_copying": ("norm_speeds_up_copying_and_projection_further",)},
    19: {
        "fig11_random_walk": ("a_norm_slows_the_accumulation_of_dead_units", "with_a_norm_sign_updates_accumulate_none")
    },
    20: {
        "ablation_projection": ("every_step_or_every_thousandth_is_nearly_the_same",),
        "ablation_nap_rl": (
            "every_step_or_every_thousandth_is_nearly_the_same_in_rainbow",
            "every_step_or_every_thousandth_is_nearly_the_same_on_five_games",
        ),
    },
    21: {},
}
"""Number -> exhibit -> ids of the claims that measure it: none can be added or lost unseen."""


def claim(name, number):
    measured = Paired(label="a - b", measure="accuracy", better="higher", arm="a", against="b")
    how = dict(kind="superiority", margin=0.1, unit="accuracy", measurements=(measured,))
    return Claim(id=name, source="Fig. 1", sentence=f"The claim {name}.", paper_claim=number, **how)


def exhibit(*claims):
    return SimpleNamespace(TITLE="An exhibit", PAPER="", DEVIATIONS=(), CLAIMS=claims, PANELS=())


def rows(verdicts, number=3, scales=("paper",), **elsewhere):
    """The page's rows when claims of exhibit `here` that measure `number` have these verdicts."""
    claims = [claim(f"c{i}", number) for i in range(len(verdicts))]
    judged = {"claims": [judged_as(one, verdict) for one, verdict in zip(claims, verdicts, strict=True)]}
    modules = {"here": exhibit(*claims), **elsewhere}
    shown, planned = {"here": modules["here"]}, {"here": ["laptop"], "there": list(scales)}
    found = page.collect("laptop", shown, {"here": judged}, {}, [], {}, modules=modules, scales=planned)
    return {row["number"]: row for row in found["paper_rows"]}


def judged_as(one, verdict):
    fields = ("id", "source", "sentence", "kind", "margin", "unit", "paper_claim")
    return {f: getattr(one, f) for f in fields} | {"verdict": verdict, "measurements": [], "partial": False, "note": ""}


def test_the_paper_s_claims_are_numbered_from_one_and_each_says_where_it_stands():
    assert list(PAPER_CLAIMS) == list(range(1, 22))
    for paper in PAPER_CLAIMS.values():
        assert paper.kind in KINDS and paper.source and paper.sentence.endswith(".")
    assert len({paper.sentence for paper in PAPER_CLAIMS.values()}) == len(PAPER_CLAIMS)


def test_every_claim_of_the_paper_on_this_ground_is_measured_by_an_exhibit_and_of_the_kind_it_is():
    found = measured_by(EXPERIMENTS)
    assert {n: sorted(at) for n, at in found.items()} == {
        n: sorted((name, one) for name, ids in at.items() for one in ids) for n, at in MEASURED.items()
    }
    assert [number for number in range(1, 21) if not found[number]] == []
    kinds = {(name, one.id): one.kind for name, module in EXPERIMENTS.items() for one in module.CLAIMS}
    for number, kind in {2: "equivalence", 5: "noninferiority", 16: "noninferiority", 20: "equivalence"}.items():
        assert PAPER_CLAIMS[number].kind == kind  # as good has to be shown: that no difference was found is not enough
        assert kind in {kinds[at] for at in found[number]}


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_the_page_has_exactly_one_row_for_each_claim_of_the_paper_with_and_without_results(scale):
    for shown in (EXPERIMENTS, {"arms": EXPERIMENTS["arms"]}, {}):
        html = page.compile(scale, shown, {}, {}, {}, [], {}, modules=EXPERIMENTS)
        for number, paper in PAPER_CLAIMS.items():
            assert html.count(f'<tr id="paper.{number}" ') == 1
            assert html.count(f'<span class="sentence">{page.marked(paper.sentence)}</span>') == 1
        assert html.count('<tr id="paper.') == len(PAPER_CLAIMS)


def test_each_of_our_claims_stands_in_one_of_the_two_tables_only():
    html = page.compile("laptop", EXPERIMENTS, {}, {}, {}, [], {}, modules=EXPERIMENTS)
    for name, module in EXPERIMENTS.items():
        for one in module.CLAIMS:
            assert html.count(f'id="claim.{name}.{one.id}"') == 1
            assert html.count(f'<tr id="claim.{name}.{one.id}"') == (one.paper_claim is None)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((SUPPORTED, SUPPORTED), SUPPORTED),
        ((SUPPORTED, NOT_RUN), INCONCLUSIVE),  # a part that was not run is not supported by the rest
        ((SUPPORTED, INCONCLUSIVE), INCONCLUSIVE),
        ((CONTRADICTED, NOT_RUN), CONTRADICTED),
        ((CONTRADICTED, SUPPORTED), CONTRADICTED),
        ((NOT_RUN, NOT_RUN), NOT_RUN),
        ((), NOT_RUN),
    ],
)
def test_several_claims_make_one_verdict_by_the_rule(verdicts, expected):
    assert combined(verdicts) == expected
    assert rows(verdicts)[3]["verdict"] == expected
    assert rows(verdicts)[4]["verdict"] == NOT_RUN


def test_a_claim_that_is_tested_at_another_scale_says_so():
    there = exhibit(claim("far", 9))
    row = rows([SUPPORTED], there=there)[9]
    assert row["elsewhere"] == [{"title": "An exhibit", "scales": ["paper"]}]
    modules = {"there": there}
    html = page.compile("laptop", {}, {}, {}, {}, [], {}, modules=modules, scales={"there": ["workstation", "paper"]})
    assert "An exhibit is planned at workstation and paper scale" in html
    assert "no exhibit measures it" in html  # claim 1 has none here


@pytest.mark.parametrize(
    ("verdict", "scales", "expected"),
    [
        (SUPPORTED, ("laptop", "paper"), INCONCLUSIVE),  # a part of it was left out of this page
        (SUPPORTED, ("paper",), SUPPORTED),
        (CONTRADICTED, ("laptop",), CONTRADICTED),
        (NOT_RUN, ("laptop",), NOT_RUN),
    ],
)
def test_an_exhibit_that_is_planned_at_this_scale_counts_as_not_run_where_the_page_leaves_it_out(
    verdict, scales, expected
):
    assert rows([verdict], scales=scales, there=exhibit(claim("far", 3)))[3]["verdict"] == expected


def test_a_claim_of_a_number_that_the_paper_does_not_have_is_an_error():
    with pytest.raises(KeyError):
        measured_by({"here": exhibit(claim("odd", 99))})
