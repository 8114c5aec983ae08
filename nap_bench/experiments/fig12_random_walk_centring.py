"""Figure 12: does it matter for the random walks that a norm also centres? {none, centre only, RMSNorm, LayerNorm}."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nap_bench.experiments import fig11_random_walk as walk
from nap_bench.experiments.base import Entry, Labelled
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score

TITLE = "Random walks: does centring matter?"
PAPER = (
    "Appendix C.4, Fig. 12, and A.4: dividing by the norm is what counts for the revival of dead units; centring adds "
    "little, and can make walks in which one coordinate takes all."
)
DEVIATIONS = (
    "The variants of Fig. 12 are ours (their formulas are not given): the rule of Fig. 11 through v - mean, through v "
    "/ ||v||, and through both. Sizes, seeds and initial vectors as in Fig. 11.",
    "Where a norm centres, a coordinate can be negative while its unit is active, and the reverse: what the paper "
    "counts, v_i < 0, and inactive units, v_i <= mean, are both reported. The first claim is judged on the paper's "
    "count.",
    "Winner-take-all is counted in ten dimensions, where it happens within 1000 steps: walks with exactly one active "
    "unit.",
)

ARMS = {"none": "none", "centre_only": "centre", "rms_norm": "rms", "layer_norm": "layer"}
"""Arm -> norm of the benchmark."""
NAMES = {"gd d=100": "gradient descent", "sign d=100": "sign updates"}
DRAWN = ("negative_fraction", "inactive_fraction", "one_active", "largest_share")


def runs(scale: str) -> list[Entry]:
    return [
        walk.entry(scale, arm, norm, rule, dim)
        for dim in walk.SIZES[scale]["dims"]
        for rule in ("gd", "sign")
        for arm, norm in ARMS.items()
    ]


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    for labelled in results:
        yield from walk.scored(labelled, drawn=DRAWN, others=("none_active", "participation"))


def _paired(measure: str, arm: str, against: str, setting: str, label: str, better: str = "lower") -> Paired:
    worst = {"lower": 1.0, "higher": 0.0}[better]
    return Paired(
        label=label, measure=measure, better=better, arm=arm, against=against, setting=setting, if_diverged=worst
    )


CLAIMS = (
    Claim(
        id="centring_adds_little",
        source="Sec. C.4, Fig. 12",
        sentence="Centring adds little: with LayerNorm as many coordinates are negative at the end as with RMSNorm.",
        kind="equivalence",
        margin=0.05,
        unit=walk.UNIT,
        measurements=tuple(
            _paired("end_negative_fraction", "layer_norm", "rms_norm", setting, f"{name}: RMSNorm - LayerNorm")
            for setting, name in NAMES.items()
        ),
    ),
    Claim(
        id="leaving_centring_out_costs_no_active_units",
        source="Sec. A.4, C.4 (ours)",
        sentence="Leaving the centring out costs nothing: RMSNorm leaves as many units active as LayerNorm, or more.",
        kind="noninferiority",
        margin=0.05,
        unit="fraction of inactive units, step 1000",
        measurements=tuple(
            _paired("end_inactive_fraction", "rms_norm", "layer_norm", setting, f"{name}: LayerNorm - RMSNorm")
            for setting, name in NAMES.items()
        ),
    ),
    Claim(
        id="division_is_what_counts",
        source="Sec. A.4, C.4",
        sentence="Dividing by the norm is what counts: RMSNorm leaves more units active than centring alone.",
        kind="superiority",
        margin=0.05,
        unit="fraction of inactive units, step 1000",
        measurements=tuple(
            _paired("end_inactive_fraction", "rms_norm", "centre_only", setting, f"{name}: centre only - RMSNorm")
            for setting, name in NAMES.items()
        ),
    ),
    Claim(
        id="centring_can_give_winner_take_all",
        source="Sec. C.4, Fig. 12",
        sentence="Centring can make one coordinate take all: more walks end with a single active unit than without "
        "centring.",
        kind="superiority",
        margin=0.05,
        unit="fraction of walks with one active unit, step 1000",
        measurements=(
            _paired("end_one_active", "centre_only", "none", "gd d=10", "centre only - none", better="higher"),
            _paired("end_one_active", "layer_norm", "rms_norm", "gd d=10", "LayerNorm - RMSNorm", better="higher"),
        ),
    ),
)
PANELS = tuple(
    Panel(kind="curve", measure=measure, setting=setting, title=title, xlabel="step", ylabel=ylabel, arms=tuple(ARMS))
    for measure, setting, title, ylabel in (
        ("inactive_fraction", "gd d=100", "Gradient descent: inactive units", "fraction (d = 100)"),
        ("negative_fraction", "gd d=100", "Gradient descent: negative v", "fraction (d = 100)"),
        ("largest_share", "gd d=100", "Gradient descent: largest", "largest / norm (d = 100)"),
        ("inactive_fraction", "sign d=100", "Sign updates: inactive units", "fraction (d = 100)"),
        ("negative_fraction", "sign d=100", "Sign updates: negative v", "fraction (d = 100)"),
        ("one_active", "gd d=10", "Gradient descent: one active", "fraction of walks (d = 10)"),
    )
)
