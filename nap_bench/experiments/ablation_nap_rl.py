"""How and how often to project in Rainbow, and what to do with scale and offset there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from nap_bench.experiments import fig6_atari57 as fig6
from nap_bench.experiments import rl_sequence
from nap_bench.experiments.base import Entry, Labelled, curve, scalar
from nap_bench.report.claims import Claim, Pooled
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score, Scores

TITLE = "Projection, scale and offset in Rainbow"
PAPER = (
    "Section 3.3: in Rainbow, projecting at every step and at every 1000 steps gave nearly the same. Scale and offset can be left "
    "free on a single task; in sequential Atari their decay to the initial values was critical; leaving offsets out helped in "
    "several games."
)
DEVIATIONS = (
    "Three settings, all but the first at workstation and paper scale only. 'Visit': a fresh agent on one small problem, "
    "the fourth "
    "visit of rl_sequence. 'Sequence': the whole of rl_sequence. Single Atari games: the five of fig4_schedules, one of them the "
    "paper's, with the linear decay that Fig. 4 found best, at 10M frames at workstation scale.",
    "Arms of the first group differ in the projection and leave scale and offset free; those of the second differ in scale and "
    "offset and project at every update (games: every 1000th). 'None' leaves out the scale too, not the offset alone.",
    "Decay: 0.999 per update, so that of 1000 updates at every 1000th (not given).",
    "A period is tried where a run has at least ten projections: a visit has 700 updates at laptop scale, so the paper's sentence "
    "about 1000 is not run there. Nor are scale and offset of one joint norm.",
    "Sizes, rates and deviations are those of rl_sequence and fig6_atari57; the agents there that are the same are shared.",
    "'Nearly the same' is a difference of at most 0.05 in normalised return, on games human-normalised: the margins of "
    "those exhibits.",
)

PROJECTIONS = {f"every_{period}": f"nap(period={period})" for period in (1, 10, 100, 1000)} | {
    "per_neuron": "nap(per='neuron')",
    "head_too": "nap(head=True)",
}
POLICIES = {name: f"nap(scale_offset='{name}')" for name in ("free", "decay", "joint", "none")}
VISIT, SEQUENCE = "visit", "sequence"
ON_A_VISIT = ("every_1", "every_10", "head_too", "free", "decay", "none")
ON_GAMES = {
    "every_1": "nap",
    "every_1000": "nap(period={period})",
    "free": "nap(period={period})",
    "decay": f"nap(period={{period}}, scale_offset='decay', decay={0.999**1000:.4g})",
    "none": "nap(period={period}, scale_offset='none')",
}
LARGER = ("workstation", "paper")


def runs(scale: str) -> list[Entry]:
    from nap_bench.schedules import Linear

    stacks = {**PROJECTIONS, **POLICIES}
    first = rl_sequence.last_visits(rl_sequence.SIZES["laptop"]["task"]).start
    if scale not in LARGER:
        return [
            rl_sequence.entry(scale, "nap", stack=f"optimizer_reset+{stacks[arm]}", first_visit=first)._replace(
                arm=arm, setting=VISIT
            )
            for arm in ON_A_VISIT
        ]
    made = [
        rl_sequence.entry(scale, "nap", stack=f"optimizer_reset+{stack}")._replace(arm=arm, setting=SEQUENCE)
        for arm, stack in stacks.items()
    ]
    decay = Linear(fig6.PEAK, fig6.FINAL, until=fig6.HALFWAY)
    return made + [
        fig6.agent(scale, arm, game, seed, stack=stack, schedule=decay)
        for game in fig6.FIVE
        for arm, stack in ON_GAMES.items()
        for seed in fig6.SIZES[scale]["seeds"]
    ]


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    """area: mean normalised return over the whole training.  final: over the last bin of every visit."""
    results = list(results)
    small = [labelled for labelled in results if labelled.setting in (VISIT, SEQUENCE)]
    for labelled in small:
        values_VBS = rl_sequence.normalised(labelled)
        num_visits, bins, num_seeds = values_VBS.shape
        x = (np.arange(num_visits * bins) + 1) / bins
        yield from curve(labelled, "return", x, values_VBS.reshape(-1, num_seeds))
        yield from scalar(labelled, "area", values_VBS.mean(axis=(0, 1)))
        yield from scalar(labelled, "final", values_VBS[:, -1].mean(axis=0))
    yield from fig6.score(labelled for labelled in results if labelled not in small)


def _paired(arm: str, against: str, setting: str):
    label = f"{arm} - {against}, {setting}".replace("_", " ")
    return rl_sequence.paired(label, arm, against, "area", setting=setting)


_UNIT = "normalised return over the training"
CLAIMS = (
    Claim(
        id="every_step_or_every_thousandth_is_nearly_the_same_in_rainbow",
        source="Sec. 3.3",
        sentence="In Rainbow on a sequence of small problems, projecting at every step and at every 1000 steps gives nearly "
        "the same "
        "(not at laptop scale).",
        kind="equivalence",
        margin=0.05,
        unit=_UNIT,
        measurements=(_paired("every_1000", "every_1", SEQUENCE),),
        paper_claim=20,
    ),
    Claim(
        id="every_step_or_every_thousandth_is_nearly_the_same_on_five_games",
        source="Sec. 3.3 (five games)",
        sentence="In Rainbow on five Atari games, projecting at every step and at every 1000 steps gives nearly the same (not at "
        "laptop scale).",
        kind="equivalence",
        margin=fig6.MARGIN,
        unit="human-normalised score",
        measurements=(
            Pooled(
                label="IQM: every 1000 - every 1",
                measure="human_normalised",
                better="higher",
                arm="every_1000",
                against="every_1",
                settings=fig6.FIVE,
            ),
        ),
        paper_claim=20,
    ),
    Claim(
        id="every_step_or_every_tenth_is_nearly_the_same_on_one_problem",
        source="Sec. 3.3 (ours)",
        sentence="On one small problem Rainbow learns as well with a projection at every tenth update as at each (laptop scale).",
        kind="equivalence",
        margin=0.05,
        unit=_UNIT,
        measurements=(_paired("every_10", "every_1", VISIT),),
    ),
    Claim(
        id="projecting_the_output_layers_changes_little_in_rainbow",
        source="Sec. 3.3, B.2 (ours)",
        sentence="On one small problem, projecting Rainbow's final layers too changes little (laptop scale).",
        kind="equivalence",
        margin=0.05,
        unit=_UNIT,
        measurements=(_paired("head_too", "every_1", VISIT),),
    ),
    Claim(
        id="free_scales_are_fine_on_a_single_problem",
        source="Sec. 3.3",
        sentence="On a single problem, scale and offset that are left free do as well as decaying ones (laptop scale).",
        kind="noninferiority",
        margin=0.05,
        unit=_UNIT,
        measurements=(_paired("free", "decay", VISIT),),
    ),
    Claim(
        id="leaving_scales_out_costs_nothing_on_a_single_problem",
        source="Sec. 3.3 (ours)",
        sentence="On a single problem, leaving scale and offset out costs nothing against free ones (laptop scale).",
        kind="noninferiority",
        margin=0.05,
        unit=_UNIT,
        measurements=(_paired("none", "free", VISIT),),
    ),
    Claim(
        id="decay_is_critical_in_a_sequence",
        source="Sec. 3.3, 5.3",
        sentence="In a sequence of problems, scale and offset that decay beat free ones (not at laptop scale).",
        kind="superiority",
        margin=0.02,
        unit=_UNIT,
        measurements=(_paired("decay", "free", SEQUENCE),),
    ),
)


def _panels(setting: str, words: str, xlabel: str, arms: tuple[str, ...], scales: tuple[str, ...]) -> tuple[Panel, ...]:
    common = dict(setting=setting, arms=arms, scales=scales)
    return (
        Panel(
            kind="curve",
            measure="return",
            title=f"Return, {words}",
            xlabel=xlabel,
            ylabel="normalised return",
            reference=(1.0, "optimum"),
            **common,
        ),
        Panel(
            kind="interval",
            measure="area",
            title=f"Area under the curve, {words}",
            xlabel="normalised return",
            **common,
        ),
    )


PANELS = (
    *_panels(VISIT, "one problem", "fraction of a visit", ON_A_VISIT, ("laptop",)),
    *_panels(SEQUENCE, "a sequence", "visits", (*PROJECTIONS, *POLICIES), LARGER),
    *fig6.panels(tuple(ON_GAMES), fig6.FIVE),
)


def tables(scores: Scores) -> list[dict[str, Any]]:
    return fig6.pooled_table(scores, tuple(ON_GAMES), fig6.FIVE)
