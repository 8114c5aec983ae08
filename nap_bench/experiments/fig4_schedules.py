"""Figure 4: in Rainbow, the implicit schedule of a growing norm against a constant and a decaying rate under projection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from nap_bench.experiments import fig6_atari57 as fig6
from nap_bench.experiments.base import Entry, Labelled
from nap_bench.report.claims import Claim
from nap_bench.report.scores import Score, Scores

TITLE = "Implicit and explicit schedules in Rainbow"
PAPER = (
    "Section 4.2, Fig. 4: on five Atari games, Rainbow with LayerNorm, whose effective learning rate falls as weights grow, with "
    "LayerNorm and projection at a constant rate, which is often worse and may not learn at all, and with projection and a "
    "linear decay from 6.25e-5 to 1e-6 that ends halfway through training, which beats the implicit schedule in several games."
)
DEVIATIONS = (
    "Of the five games the paper names Fishing Derby only; assault, boxing, krull and qbert are ours: of the list of every third "
    "game that holds Fishing Derby, games known to be learned early. Seeds are those of Fig. 6 (not given).",
    "'Several games' is judged as the IQM over the five games and their seeds. Returns are human-normalised ('normalised', "
    "by what is not given).",
    "Runs are those of `fig6_atari57`, its deviations too. Workstation scale: 10M frames, 3 seeds. Not run at laptop scale.",
)
ARMS = ("layer_norm", "nap", "nap_linear")
SCALES = ("workstation", "paper")


def runs(scale: str) -> list[Entry]:
    if scale not in SCALES:
        return []
    return [entry for entry in fig6.runs(scale) if entry.arm in ARMS and entry.setting in fig6.FIVE]


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    yield from fig6.score(results)


CLAIMS = (
    Claim(
        id="constant_rate_under_projection_is_worse_than_the_implicit_schedule",
        source="Sec. 4.2, Fig. 4",
        sentence="Rainbow with NaP at a constant rate is worse than LayerNorm with its implicit schedule (not at laptop scale).",
        kind="superiority",
        margin=fig6.MARGIN,
        unit="human-normalised score",
        measurements=(fig6.pooled("layer_norm", "nap", fig6.FIVE),),
        paper_claim=7,
    ),
    Claim(
        id="linear_decay_beats_the_implicit_schedule",
        source="Sec. 4.2, Fig. 4",
        sentence="Rainbow with NaP and a linear decay beats the implicit schedule in several games (not at laptop scale).",
        kind="superiority",
        margin=fig6.MARGIN,
        unit="human-normalised score",
        measurements=(fig6.pooled("nap_linear", "layer_norm", fig6.FIVE),),
        paper_claim=8,
    ),
)
PANELS = fig6.panels(ARMS, fig6.FIVE)


def tables(scores: Scores) -> list[dict[str, Any]]:
    return fig6.pooled_table(scores, ARMS, fig6.FIVE)
