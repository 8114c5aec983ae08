"""Figure 7: how long should Rainbow's learning rate decay under NaP?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from nap_bench.experiments import fig6_atari57 as fig6
from nap_bench.experiments.base import Entry, Labelled
from nap_bench.report.claims import Claim
from nap_bench.report.scores import Score, Scores

TITLE = "How long the rate decays"
PAPER = (
    "Appendix C.1, Fig. 7: on every third Atari game, Rainbow with NaP and a linear decay from 6.25e-5 to 1e-6 over four "
    "durations. A faster decay starts faster and then stands still, one over the whole run starts slowly and rises late; of "
    "the four, ending halfway is best."
)
DEVIATIONS = (
    "The durations but halfway are ours: an eighth, a quarter, half and all of training (not given).",
    "Every third game in alphabetical order, starting at the third, is the one of three such lists that holds Fishing Derby "
    "(where the paper starts is not given). Seeds are those of Fig. 6 (not given).",
    "Best is judged by the score at the end of training, IQM over games and seeds, against each of the other three.",
    "Networks and protocol are those of `fig6_atari57`, its deviations too; the halfway arm is its runs. Workstation scale: five "
    "of the games, 10M frames, 3 seeds. Not run at laptop scale.",
)
UNTIL = {"nap_until_eighth": 0.125, "nap_until_quarter": 0.25, "nap_linear": fig6.HALFWAY, "nap_until_end": 1.0}
"""Arm -> fraction of training where the decay ends."""
EVERY_THIRD = fig6.GAMES[2::3]
GAMES = {"workstation": fig6.FIVE, "paper": EVERY_THIRD}


def runs(scale: str) -> list[Entry]:
    from nap_bench.schedules import Linear

    nap = fig6.of_arm("nap_linear")["stack"]
    return [
        fig6.agent(scale, arm, game, seed, stack=nap, schedule=Linear(fig6.PEAK, fig6.FINAL, until=until))
        for game in GAMES.get(scale, ())
        for arm, until in UNTIL.items()
        for seed in fig6.SIZES[scale]["seeds"]
    ]


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    yield from fig6.score(results)


def _halfway_is_best(id: str, source: str, games: tuple[str, ...], where: str, paper_claim: int | None) -> Claim:
    return Claim(
        id=id,
        source=source,
        sentence=f"Of four durations of the decay, ending halfway is best ({where}).",
        kind="superiority",
        margin=0.0,
        unit="human-normalised score",
        measurements=tuple(fig6.pooled("nap_linear", arm, games) for arm in UNTIL if arm != "nap_linear"),
        paper_claim=paper_claim,
    )


CLAIMS = (
    _halfway_is_best("halfway_is_best", "App. C.1, Fig. 7", EVERY_THIRD, "every third game; paper scale only", 9),
    _halfway_is_best(
        "halfway_is_best_on_five_games",
        "App. C.1, Fig. 7 (five games, ours)",
        fig6.FIVE,
        "five games; not at laptop scale",
        None,
    ),
)
PANELS = fig6.panels(tuple(UNTIL), EVERY_THIRD)


def tables(scores: Scores) -> list[dict[str, Any]]:
    return fig6.pooled_table(scores, tuple(UNTIL), EVERY_THIRD)
