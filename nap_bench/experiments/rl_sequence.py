"""Ours: is a network that has learned other tasks as good on the next as a fresh one? Rainbow on a sequence of small games."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from nap_bench import stats
from nap_bench.experiments.base import Entry, Labelled, curve, make_run, scalar
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel, look
from nap_bench.report.scores import Score, Scores
from nap_bench.report.tables import amounts, estimate_and_span

TITLE = "A sequence of small control problems"
PAPER = (
    "Section 5.3, Fig. 6 (left): Rainbow plays ten Atari games in sequence, twice. On the second visit NaP learns as well as a "
    "randomly initialised network, plain Rainbow is poor on every game after the first ones, LayerNorm is in between."
)
DEVIATIONS = (
    "Not Atari: the exhibit is ours, so that a claim about reinforcement learning can be tested without a GPU. The games are "
    "variants of Catch (a ball falls, a paddle catches it; an episode takes as many steps as there are rows) with other pixels, "
    "contrast, mirroring, actions and wind in every variant and seed; what the best and a blind policy get is known.",
    "The agent is the suite's Rainbow without convolutions: 11 atoms on [-1, 1], 128 hidden units per head, 3-step returns, "
    "batch 32, an update per 4 steps, target copied every 50 updates, replay of 10,000 steps.",
    "As in the paper's sequence, parameters are kept; the optimizer's state and the schedule (cosine with warm-up, down to a "
    "60th of its peak) start anew at each switch, and NaP's scale and offset decay to their initial values, by 0.999 per update "
    "(value not given). The replay is cleared and the target network copied at a switch (not stated).",
    "The peak learning rate 2e-3 is one for all arms, Adam's epsilon 1.5e-4 and clipping at 10 are Rainbow's. Rate, sizes and "
    "lengths were chosen on seeds from 1000 on so that fresh agents solve a variant; ReDo's period of 100 updates is Sokar et "
    "al.'s share of a visit rather than their number. The reported seeds had not been looked at.",
    "The control is a fresh agent of the same seed at each visit of the second cycle, with the same schedule, frames, noise and "
    "draws from the replay. Scores are normalised: 0 is a policy that does not look, 1 the best one.",
    "Laptop scale: 3 variants of 5 x 4 pixels, twice, 700 updates each. Workstation and paper scale, both ours: 8 variants of "
    "10 x 5 pixels, three times, 4000 updates each; the claim about fresh agents looks at three of them there, too.",
)

STACKS = {
    "baseline": "optimizer_reset",
    "layer_norm": "optimizer_reset+layer_norm",
    "nap": "optimizer_reset+nap(scale_offset='decay')",
    "redo": "optimizer_reset+redo(period={period})",
}
FRESH_OF = "{}_fresh"
FRESH = {arm: FRESH_OF.format(arm) for arm in STACKS}
"""Each arm's control: an arm of its own."""
LR, FINAL_SHARE = 2e-3, 1 / 60
AGENT = (("atoms", 11), ("channels", ()), ("hidden", 128), ("kernels", ()), ("sigma", 0.1), ("strides", ()))
SIZES: dict[str, dict[str, Any]] = {
    "laptop": dict(
        task=dict(
            num_variants=3,
            cycles=2,
            steps_per_visit=3200,
            num_envs=8,
            frame_shape=(5, 4),
            bins_per_visit=4,
            eval_steps=25,
        ),
        period=100,
        warmup=20,
        seeds=tuple(range(300, 308)),
    ),
    "workstation": dict(
        task=dict(
            num_variants=8,
            cycles=3,
            steps_per_visit=16_400,
            num_envs=8,
            frame_shape=(10, 5),
            bins_per_visit=10,
            eval_steps=50,
        ),
        period=500,
        warmup=100,
        seeds=tuple(range(300, 316)),
    ),
}
SIZES["paper"] = SIZES["workstation"]


def entry(scale: str, arm: str, *, stack: str | None = None, schedule: Any = None, **task: object) -> Entry:
    """One run. stack, schedule: others than the arm's.  task: what differs from the scale's."""
    from nap_bench.benchmarks import CatchSequence
    from nap_bench.optimizers import Adam
    from nap_bench.schedules import Cosine
    from nap_bench.spec import ModelSpec

    size = SIZES[scale]
    low = LR * FINAL_SHARE
    run = make_run(
        benchmark=CatchSequence(**{**size["task"], **task}),
        model=ModelSpec(family="rainbow", size=AGENT),
        stack=(stack or STACKS[arm]).format(**size),
        optimizer=Adam(eps=1.5e-4, clip_norm=10.0),
        schedule=schedule or Cosine(LR, low, warmup_steps=size["warmup"], initial_lr=low, restart="task"),
        seeds=size["seeds"],
    )
    return Entry(arm, "", run)


def last_visits(task: dict[str, Any]) -> range:
    """Those of the last cycle."""
    return range(task["num_variants"] * (task["cycles"] - 1), task["num_variants"] * task["cycles"])


def runs(scale: str) -> list[Entry]:
    made = [entry(scale, arm) for arm in STACKS]
    for arm, control in FRESH.items():
        for visit in last_visits(SIZES[scale]["task"]):
            made.append(Entry(control, f"visit {visit}", entry(scale, arm, first_visit=visit).run))
    return made


def cells(arm: str, setting: str, scale: str) -> list[tuple[str, str]]:
    """Where the scores of a run stand: a control's visits together."""
    return [(arm, "")]


PROBES = {
    "parameter_norm": "probe/parameter_norm",
    "effective_learning_rate": "probe/effective_learning_rate",
    "dormant_fraction": "probe/dormant_fraction_tau0.1",
    "feature_rank": "probe/feature_rank",
}
"""What of a chain is shown besides its returns."""


def normalised(labelled: Labelled, metric: str = "return/evaluation") -> np.ndarray:
    """Returns [visits, bins, S]: 0 for a policy that does not look (one ball in W is caught), 1 for the best one.

    The best policy catches every ball (the benchmark refuses frames where it could not). The start of a visit is not
    among the bins.
    """
    _, values_TS = labelled.series(metric)
    blind = 2.0 / labelled.params["frame_shape"][1] - 1.0
    bins = labelled.params["bins_per_visit"]
    return ((values_TS - blind) / (1.0 - blind)).reshape(-1, bins, values_TS.shape[1])


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    """Of a chain: every visit, and the last cycle; of a control: its visits together, once all are there.

    last_cycle: mean over its visits of the area under the curve.  final: mean over them of the last bin.  x of a curve: visits
    done, or the fraction of a visit.
    """
    controls: dict[str, list[Labelled]] = {}
    for labelled in results:
        if labelled.arm in FRESH.values():
            controls.setdefault(labelled.arm, []).append(labelled)
            continue
        values_VBS = normalised(labelled)
        num_visits, bins, _ = values_VBS.shape
        x = (np.arange(num_visits * bins) + 1) / bins
        yield from curve(labelled, "return", x, values_VBS.reshape(len(x), -1))
        for measure, metric in PROBES.items():
            yield from curve(labelled, measure, x, labelled.series(metric)[1])
        params = labelled.params
        yield from _summary(labelled, values_VBS[last_visits(params).start :])
        first_cycle_S = values_VBS[: params["num_variants"]].mean(axis=(0, 1))
        yield from scalar(labelled, "first_cycle", first_cycle_S)
        yield from scalar(labelled, "first_visit", values_VBS[0].mean(axis=0))
        again = last_visits(params).start  # the same variants, one cycle before
        before_VBS = values_VBS[again - params["num_variants"] : again]
        yield from scalar(labelled, "forgotten", (before_VBS[:, -1] - values_VBS[again:, 0]).mean(axis=0))
    for found in controls.values():
        found = sorted(found, key=lambda labelled: labelled.params["first_visit"])
        if len(found) == len(last_visits(found[0].params)):
            together = Labelled(found[0].arm, "", found[0].result)
            yield from _summary(together, np.concatenate([normalised(labelled) for labelled in found]))


def _summary(labelled: Labelled, values_VBS: np.ndarray) -> Iterator[Score]:
    bins = values_VBS.shape[1]
    yield from curve(labelled, "return_within_visit", (np.arange(bins) + 1) / bins, values_VBS.mean(axis=0))
    yield from scalar(labelled, "last_cycle", values_VBS.mean(axis=(0, 1)))
    yield from scalar(labelled, "jump_start", values_VBS[:, 0].mean(axis=0))
    yield from scalar(labelled, "final", values_VBS[:, -1].mean(axis=0))
    yield from scalar(labelled, "optimum", np.ones(values_VBS.shape[2]))
    for index, final_S in enumerate(values_VBS[:, -1]):
        yield from scalar(labelled, f"final_{index}", final_S)


def re_entry_table(
    scores: Scores, arms: Iterable[str], settings: tuple[str, ...], area: str, pool: str, title: str
) -> list[dict[str, Any]]:
    """Of each arm whose control is there, over settings and seeds: its last visits, the control's, and how they differ.

    pool: "mean" or "iqm", of the levels.  Differences are paired: their mean over settings for each seed, and a t interval.
    """

    def levels(measure: str, arm: str) -> np.ndarray:
        """[seeds, settings]"""
        by_setting = [scores.values(measure, arm, setting) for setting in settings]
        return np.array([[values[seed] for values in by_setting] for seed in by_setting[0]])

    rows = []
    for arm in arms:
        sides = (arm, FRESH_OF.format(arm))
        if not all(scores.has(area, side, setting) for side in sides for setting in settings):
            continue
        again, fresh = (levels(area, side) for side in sides)
        level = [float(stats.POOLS[pool](values[None]).item()) for values in (again, fresh)]
        jump = levels("jump_start", arm) - levels("jump_start", sides[1])
        cells = []
        for values_ST in (again - fresh, jump, levels("forgotten", arm)):
            found = stats.mean_interval(values_ST.mean(axis=1))
            cells.append(" ".join(estimate_and_span(found.estimate, found.low, found.high, signed=True)))
        rows.append([look(arm).label, *amounts(level), amounts([level[0] / level[1]])[0], *cells])
    columns = ("agent", "again", "fresh", "ratio", "again - fresh", "its first bin", "forgotten")
    note = (
        f"Area under the curve of the last visits, {pool} over tasks and seeds; ratio of again to fresh. Differences are paired by "
        "seed, with 95 % intervals: of the areas, of the first bin (jump-start), and forgotten: the last bin of the visit before "
        "less the first of this one."
    )
    return [{"title": title, "columns": columns, "rows": rows, "note": note}] if rows else []


def tables(scores: Scores) -> list[dict[str, Any]]:
    return re_entry_table(scores, STACKS, ("",), "last_cycle", "mean", "Again, and fresh")


WORST = -1.0 / 3.0
"""Normalised return of missing every ball where one in four is caught blindly; wider frames are milder."""


def paired(label: str, arm: str, against: str, measure: str = "last_cycle", **more: str) -> Paired:
    return Paired(label=label, measure=measure, better="higher", arm=arm, against=against, if_diverged=WORST, **more)


_UNIT = "normalised return over the second visits"
CLAIMS = (
    Claim(
        id="nap_relearns_as_a_fresh_network_does",
        source="Sec. 5.3, Fig. 6 left (ours)",
        sentence="On the second visit NaP is as good as a fresh network.",
        kind="noninferiority",
        margin=0.1,
        unit=_UNIT,
        measurements=(paired("NaP - fresh NaP", "nap", FRESH["nap"]),),
    ),
    Claim(
        id="plain_rainbow_relearns_worse_than_a_fresh_network",
        source="Sec. 5.3, Fig. 6 left (ours)",
        sentence="Plain Rainbow is worse than a fresh network on the second visit.",
        kind="superiority",
        margin=0.1,
        unit=_UNIT,
        measurements=(paired("fresh Rainbow - Rainbow", FRESH["baseline"], "baseline"),),
    ),
    Claim(
        id="layer_norm_is_between",
        source="Sec. 5.3, Fig. 6 left (ours)",
        sentence="LayerNorm is in between: better than plain Rainbow on the second visit, worse than NaP.",
        kind="superiority",
        margin=0.02,
        unit=_UNIT,
        measurements=(
            paired("LN - Rainbow", "layer_norm", "baseline"),
            paired("NaP - LN", "nap", "layer_norm"),
        ),
    ),
    Claim(
        id="nap_not_worse_than_redo",
        source="Sec. 5.3 (ours)",
        sentence="NaP is as good as ReDo on the second visit, or better.",
        kind="noninferiority",
        margin=0.1,
        unit=_UNIT,
        measurements=(paired("NaP - ReDo", "nap", "redo"),),
    ),
    Claim(
        id="fresh_agents_solve_every_variant",
        source="control (ours)",
        sentence="Fresh agents, normalised and plain, end every visit with at least 80 % of what the best policy gains.",
        kind="noninferiority",
        margin=0.2,
        unit="normalised return at the end of a visit",
        measurements=tuple(
            paired(f"{name}, visit {index}", FRESH[arm], FRESH[arm], f"final_{index}", against_measure="optimum")
            for arm, name in (("baseline", "Rainbow"), ("layer_norm", "LN"), ("nap", "NaP"), ("redo", "ReDo"))
            for index in range(SIZES["laptop"]["task"]["num_variants"])
        ),
    ),
)
_PAIRS = tuple(side for pair in FRESH.items() for side in pair)
PANELS = (
    Panel(
        kind="curve",
        measure="return",
        title="The whole sequence",
        xlabel="visits",
        ylabel="normalised return",
        arms=tuple(STACKS),
        reference=(1.0, "optimum"),
    ),
    Panel(
        kind="curve",
        measure="return_within_visit",
        title="Last cycle: again, and fresh",
        xlabel="fraction of a visit",
        ylabel="normalised return",
        arms=_PAIRS,
    ),
    Panel(
        kind="interval",
        measure="last_cycle",
        title="Last cycle, area under the curve",
        xlabel="normalised return",
        arms=_PAIRS,
    ),
    Panel(
        kind="curve",
        measure="effective_learning_rate",
        title="Effective learning rate (lr / norm, hidden layers)",
        xlabel="visits",
        ylabel="geometric mean",
        arms=tuple(STACKS),
        logy=True,
    ),
    Panel(
        kind="curve",
        measure="parameter_norm",
        title="Parameter norm",
        xlabel="visits",
        ylabel="2-norm",
        arms=tuple(STACKS),
    ),
    Panel(
        kind="curve",
        measure="dormant_fraction",
        title="Dormant units (tau 0.1)",
        xlabel="visits",
        ylabel="fraction",
        arms=tuple(STACKS),
    ),
)
