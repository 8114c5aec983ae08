"""The paper's claims: exactly one row each, whatever was run, and a verdict by the stated rule."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nap_bench.experiments import EXPERIMENTS
from nap_bench.report import page
from nap_bench.report.claims import CONTRADICTED, INCONCLUSIVE, KINDS, NOT_RUN, SUPPORTED, Claim, Paired
from nap_bench.report.paper_claims import PAPER_CLAIMS, combined, measured_by

TITLES = {name: module.TITLE for name, module in EXPERIMENTS.items()}


def claim(name, number):
    measured = Paired(label="a - b", measure="accuracy", better="higher", arm="a", against="b")
    how = dict(kind="superiority", margin=0.1, unit="accuracy", measurements=(measured,))
    return Claim(id=name, source="Fig. 1", sentence=f"The claim {name}.", paper_claim=number, **how)


def exhibit(*claims):
    return SimpleNamespace(TITLE="An exhibit", PAPER="", DEVIATIONS=(), CLAIMS=claims, PANELS=())


def rows(verdicts, number=3, **elsewhere):
    """The page's rows when claims of exhibit `here` that measure `number` have these verdicts."""
    claims = [claim(f"c{i}", number) for i in range(len(verdicts))]
    judged = {"claims": [judged_as(one, verdict) for one, verdict in zip(claims, verdicts, strict=True)]}
    modules = {"here": exhibit(*claims), **elsewhere}
    found = page.collect(
        "laptop", {"here": modules["here"]}, {"here": judged}, {}, [], {}, modules=modules, scales={"there": ["paper"]}
    )
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


def test_a_claim_of_a_number_that_the_paper_does_not_have_is_an_error():
    with pytest.raises(KeyError):
        measured_by({"here": exhibit(claim("odd", 99))})
