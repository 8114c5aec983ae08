"""Which schedule of the learning rate does a projected network need in reinforcement learning?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nap_bench.experiments import fig6_atari57, rl_sequence
from nap_bench.experiments.base import Entry, Labelled, curve, scalar
from nap_bench.report.claims import Claim
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score

TITLE = "Schedules for a projected Rainbow"
PAPER = (
    "Section 4.2: with weights projected the learning rate no longer falls implicitly as they grow; at a constant rate NaP is "
    "often worse than LayerNorm alone in Rainbow, a linear decay to 1e-6 that ends halfway through training beats either."
)
DEVIATIONS = (
    "Every arm is NaP. 'Implicit' divides the rate by what the norms of an unprojected twin would have grown to (paper 4.1), "
    "layer by layer; 'adaptive' is Prodigy (Mishchenko & Defazio 2023), which estimates the rate and is not in the paper.",
    "On the sequence of small problems every schedule but 'implicit' begins anew at each switch, as the paper's does in its "
    "sequence; decays end at a 60th of the peak (the paper's ratio, 6.25e-5 to 1e-6), the linear one halfway through a visit. "
    "Agent, problems and rate are those of rl_sequence, whose NaP is the cosine arm, the only one with a warm-up. Prodigy's "
    "epsilon is its own, 1e-8, and its distance from the start is the sum of its own steps, without what projection adds.",
    "On single games (workstation and paper scale) it is the five games of fig4_schedules, one of the paper's and four of ours; "
    "cosine ends with training; projection every update, which 'implicit' needs.",
)

STACK = "optimizer_reset+nap(scale_offset='decay')"
ARMS = ("constant", "linear", "cosine", "implicit", "adaptive")
SEQUENCE = "sequence"


def _schedule(arm: str, peak: float, final: float, restart: str):
    from nap_bench.schedules import Constant, Cosine, Linear

    if arm == "linear":
        return Linear(peak, final, until=0.5, restart=restart)
    if arm == "cosine":
        return Cosine(peak, final, restart=restart)
    return Constant(1.0 if arm == "adaptive" else peak)


def runs(scale: str) -> list[Entry]:
    import dataclasses

    from nap_bench.optimizers import Prodigy
    from nap_bench.spec import Part

    made = []
    for arm in ARMS:
        stack = f"{STACK}+implicit_schedule" if arm == "implicit" else STACK
        peak = rl_sequence.LR
        schedule = None if arm == "cosine" else _schedule(arm, peak, peak * rl_sequence.FINAL_SHARE, "task")
        run = rl_sequence.entry(scale, "nap", stack=stack, schedule=schedule).run
        if arm == "adaptive":
            run = dataclasses.replace(run, optimizer=Part.of(Prodigy(clip_norm=10.0)))
        made.append(Entry(arm, SEQUENCE, run))
    if scale == "laptop":
        return made
    for game in fig6_atari57.FIVE:
        for arm in ARMS:
            for seed in fig6_atari57.SIZES[scale]["seeds"]:
                stack = "nap+implicit_schedule" if arm == "implicit" else "nap"
                schedule = _schedule(arm, fig6_atari57.PEAK, fig6_atari57.FINAL, "never")
                run = fig6_atari57.agent(scale, arm, game, seed, stack=stack, schedule=schedule).run
                if arm == "adaptive":
                    run = dataclasses.replace(run, optimizer=Part.of(Prodigy(clip_norm=10.0)))
                made.append(Entry(arm, game, run))
    return made


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    """area: mean over the whole training.  final: at the end of each visit, or of the last tenth of a game, on average."""
    results = list(results)
    for labelled in results:
        if labelled.setting != SEQUENCE:
            continue
        values_VBS = rl_sequence.normalised(labelled)
        num_visits, bins, num_seeds = values_VBS.shape
        x = [(index + 1) / bins for index in range(num_visits * bins)]
        yield from curve(labelled, "return", x, values_VBS.reshape(-1, num_seeds))
        yield from curve(labelled, "learning_rate", x, labelled.series("probe/explicit_learning_rate")[1])
        yield from curve(labelled, "effective_learning_rate", x, labelled.series("probe/effective_learning_rate")[1])
        yield from scalar(labelled, "area", values_VBS.mean(axis=(0, 1)))
        yield from scalar(labelled, "final", values_VBS[:, -1].mean(axis=0))
    yield from fig6_atari57.score(labelled for labelled in results if labelled.setting != SEQUENCE)


CLAIMS = (
    Claim(
        id="linear_decay_beats_constant",
        source="Sec. 4.2, Fig. 4 (ours)",
        sentence="A projected Rainbow gains from a linear decay over a constant rate.",
        kind="superiority",
        margin=0.02,
        unit="normalised return over the sequence",
        measurements=(rl_sequence.paired("linear - constant", "linear", "constant", "area", setting=SEQUENCE),),
    ),
    Claim(
        id="explicit_decay_not_worse_than_implicit",
        source="Sec. 4.2, Fig. 4 (ours)",
        sentence="An explicit linear decay is as good as the implicit one of growing weights, or better.",
        kind="noninferiority",
        margin=0.05,
        unit="normalised return over the sequence",
        measurements=(rl_sequence.paired("linear - implicit", "linear", "implicit", "area", setting=SEQUENCE),),
    ),
)
PANELS = (
    Panel(
        kind="curve",
        measure="return",
        setting=SEQUENCE,
        title="The sequence",
        xlabel="visits",
        ylabel="normalised return",
        arms=ARMS,
        reference=(1.0, "optimum"),
    ),
    Panel(
        kind="curve",
        measure="learning_rate",
        setting=SEQUENCE,
        title="Learning rate",
        xlabel="visits",
        ylabel="rate",
        arms=ARMS,
        logy=True,
    ),
    Panel(
        kind="curve",
        measure="effective_learning_rate",
        setting=SEQUENCE,
        title="Effective learning rate",
        xlabel="visits",
        ylabel="geometric mean",
        arms=ARMS,
        logy=True,
    ),
    Panel(
        kind="interval",
        measure="area",
        setting=SEQUENCE,
        title="Area under the curve",
        xlabel="normalised return",
        arms=ARMS,
    ),
    Panel(
        kind="interval",
        measure="final",
        setting=SEQUENCE,
        title="At the end of each visit",
        xlabel="normalised return",
        arms=ARMS,
    ),
)
