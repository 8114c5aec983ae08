"""Figure 6, right, and Figure 15: Rainbow on 57 Atari games, plain, with LayerNorm, with NaP, and with NaP and a decaying rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from nap_bench import stats
from nap_bench.experiments.base import Entry, Labelled, curve, make_run, scalar
from nap_bench.report.claims import Claim, Pooled
from nap_bench.report.figures import Panel, look
from nap_bench.report.scores import Score, Scores
from nap_bench.report.tables import DASH, amounts, estimate_and_span
from nap_bench.rl.scores_atari import GAMES, RAINBOW_PUBLISHED, human_normalised

TITLE = "57 Atari games"
PAPER = (
    "Section 5.3, Fig. 6 (right), App. E.2, Fig. 15: Rainbow on 57 Atari games, 200M frames each, 4 seeds. Mean and IQM of "
    "human-normalised scores are best with NaP and a linear decay of the learning rate, of four agents: Rainbow, Rainbow with "
    "LayerNorm, with NaP at a constant rate, and with NaP at that schedule."
)
DEVIATIONS = (
    "Paper scale is DQN Zoo's protocol: 84 x 84 grey frames, four at a time, no sticky actions, minimal action sets, a lost life "
    "as zero discount, 108,000 frames at most, 1M transitions of replay, an update per 16 frames, evaluation for 500k frames after "
    "every 1M. Here 16 environments of a seed take turns with the updates (their ratio kept), frames are averaged over areas, "
    "and 0 to 30 no-ops begin an episode (DQN Zoo: one, bilinear, 1 to 30). Four games are evaluated side by side, 125k frames "
    "each, more than the longest episode takes; at workstation scale one.",
    "The peak learning rate is 6.25e-5, Rainbow's own and that of Sec. 4.2 (B.2 and C.1 print ten times that); the decay is linear "
    "to 1e-6, reached halfway.",
    "LayerNorm stands before every nonlinearity; its statistics are over channels, height and width, its scale and offset per "
    "channel (axes not given), both free. Projected are the three convolutions and the two hidden noisy layers, means and "
    "noise together, since only their common scale is invariant; the final noisy layers are not (not given).",
    "Projection every 1000 updates, which the paper found as good as every one (3.3). The target network is a copy of the "
    "network as projected.",
    "A game's score is the mean evaluation over the last tenth of training (not given). Human-normalised by DQN Zoo's table.",
    "Intervals: seeds resampled within each game, 95 %, estimate +- t x standard error rather than percentiles, which cover "
    "too little at four seeds.",
    "Workstation scale: five games (fishing_derby, and assault, boxing, krull and qbert of every third game, ours), 10M "
    "frames, evaluation for 125k frames after every 1M, three seeds. Its schedules and the importance exponent end with "
    "those 10M frames.",
    "Laptop scale: a smoke run and nothing else: two games, 120 updates of the data-efficient network, one seed, no claim.",
)

PEAK, FINAL, HALFWAY = 6.25e-5, 1e-6, 0.5
"""Learning rates, and the fraction of training where the decay ends (paper 4.2)."""
AGENTS = ("baseline", "layer_norm", "nap", "nap_linear")
FIVE = ("assault", "boxing", "fishing_derby", "krull", "qbert")
SMOKE_GAMES = ("pong", "breakout")
SMOKE = "smoke run "
"""What a setting begins with that shows that the code runs, and no more: no claim asks for it."""
FINAL_SHARE = 0.1
"""Of training: the last evaluations, which make a game's score."""
CURVE_POINTS = 50
"""At most so many points of a curve are drawn; bins in between are averaged."""
NATURE = (
    ("atoms", 51),
    ("channels", (32, 64, 64)),
    ("hidden", 512),
    ("kernels", (8, 4, 3)),
    ("sigma", 0.1),
    ("strides", (4, 2, 1)),
)
DATA_EFFICIENT = (
    ("atoms", 51),
    ("channels", (32, 64)),
    ("hidden", 256),
    ("kernels", (5, 5)),
    ("sigma", 0.1),
    ("strides", (5, 5)),
)
"""van Hasselt et al. 2019."""
SIZES = {
    "laptop": dict(
        games=SMOKE_GAMES,
        setting=SMOKE,
        seeds=(0,),
        period=20,
        size=DATA_EFFICIENT,
        task=dict(
            frames_per_visit=2720,
            num_envs=4,
            min_fill=200,
            capacity=1000,
            target_period=50,
            bins_per_visit=2,
            eval_steps=32,
            eval_envs=2,
        ),
    ),
    "workstation": dict(
        games=FIVE,
        setting="",
        seeds=(0, 1, 2),
        period=1000,
        size=NATURE,
        task=dict(frames_per_visit=10_000_000, bins_per_visit=10, eval_envs=1, eval_steps=125_000 // 4),
    ),
    "paper": dict(
        games=GAMES,
        setting="",
        seeds=(0, 1, 2, 3),
        period=1000,
        size=NATURE,
        task=dict(frames_per_visit=200_000_000, bins_per_visit=200, eval_envs=4, eval_steps=125_000 // 4),
    ),
}
"""A run is one seed: a seed's replay takes 7 GB, and several processes share a GPU."""
PUBLISHED = ((20, 1.14), (100, 1.73), (200, 1.87))
"""Frames (M) and median over 57 games of human-normalised evaluation, Rainbow of DQN Zoo: read off its published curve."""


ELSEWHERE = (
    ("Hessel et al. 2018", "no-op starts, best agent evaluated again", 54, 2.2705, 2.7076),
    ("PFRL's reproduction", "the same, by PFRL", 55, 2.4679, 3.2615),
    ("Dopamine", "sticky actions, training returns, last 5M frames", 55, 1.484, None),
)
"""Computed from the scores that they publish per game: rldb's transcription, PFRL's README, Dopamine's baselines."""


def agent(scale: str, arm: str, game: str, seed: int, *, stack: str, schedule: Any) -> Entry:
    """One seed of one agent on one game; other exhibits on single games make their runs here too."""
    from nap_bench.benchmarks import Atari
    from nap_bench.optimizers import Adam
    from nap_bench.spec import ModelSpec

    size = SIZES[scale]
    run = make_run(
        benchmark=Atari(games=(game,), **size["task"]),
        model=ModelSpec(family="rainbow", size=size["size"]),
        stack=stack.format(period=size["period"]),
        optimizer=Adam(eps=0.005 / 32, clip_norm=10.0),
        schedule=schedule,
        seeds=(seed,),
    )
    return Entry(arm, size["setting"] + game, run)


def of_arm(arm: str) -> dict[str, Any]:
    """Stack and schedule of each of the four agents."""
    from nap_bench.schedules import Constant, Linear

    stacks = {"baseline": "baseline", "layer_norm": "layer_norm"}
    schedule = Linear(PEAK, FINAL, until=HALFWAY) if arm == "nap_linear" else Constant(PEAK)
    return {"stack": stacks.get(arm, "nap(period={period})"), "schedule": schedule}


def runs(scale: str) -> list[Entry]:
    size = SIZES[scale]
    return [
        agent(scale, arm, game, seed, **of_arm(arm))
        for game in size["games"]
        for arm in AGENTS
        for seed in size["seeds"]
    ]


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    """Of a game: curves over frames (M), and the score at the end. Of a smoke run: that its loss is a number."""
    for labelled in results:
        params = labelled.params
        steps, return_TS = labelled.series("return/evaluation")
        frames = 4e-6 * (params["min_fill"] + steps * params["steps_per_update"])
        if labelled.setting.startswith(SMOKE):
            steps, loss_TS = labelled.series("online/loss")
            yield from curve(labelled, "smoke_loss", steps, loss_TS)
            continue
        normalised_TS = human_normalised(labelled.setting, return_TS)
        num_final = max(1, round(FINAL_SHARE * len(steps)))
        yield from scalar(labelled, "human_normalised", normalised_TS[-num_final:].mean(axis=0))
        yield from scalar(labelled, "return", return_TS[-num_final:].mean(axis=0))
        yield from scalar(labelled, "human_normalised_over_training", normalised_TS.mean(axis=0))
        yield from curve(labelled, "return_curve", *_thinned(frames, return_TS))
        yield from curve(labelled, "human_normalised_curve", *_thinned(frames, normalised_TS))


def _thinned(frames: np.ndarray, values_TS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most CURVE_POINTS points: means of equally many neighbours; x is where the last of them stood."""
    group = -(-len(frames) // CURVE_POINTS)
    starts = range(0, len(frames), group)
    ends = [min(start + group, len(frames)) - 1 for start in starts]
    return frames[ends], np.stack([values_TS[start : start + group].mean(axis=0) for start in starts])


def pooled(arm: str, against: str, settings: tuple[str, ...], pool: str = "iqm") -> Pooled:
    """The score at the end of training, of one agent less that of another, over games and seeds."""
    return Pooled(
        label=f"{'IQM' if pool == 'iqm' else pool}: {look(arm).label} - {look(against).label}",
        measure="human_normalised",
        better="higher",
        arm=arm,
        against=against,
        settings=settings,
        pool=pool,
    )


MARGIN = 0.05
"""Of the difference between a human and a random player: less than that is no difference."""
RIVALS = ("baseline", "layer_norm", "nap")
CLAIMS = (
    Claim(
        id="nap_with_linear_schedule_is_best",
        source="Sec. 5.3, Fig. 6 right",
        sentence="On 57 Atari games NaP with a linear schedule has the highest mean and IQM of the four agents (paper scale only).",
        kind="superiority",
        margin=MARGIN,
        unit="human-normalised score",
        measurements=tuple(pooled("nap_linear", rival, GAMES, pool) for pool in ("iqm", "mean") for rival in RIVALS),
        paper_claim=13,
    ),
    Claim(
        id="nap_with_linear_schedule_is_best_on_five_games",
        source="Sec. 5.3, Fig. 6 right (five games, ours)",
        sentence="On five Atari games NaP with a linear schedule has the highest IQM of the four agents (not at laptop scale).",
        kind="superiority",
        margin=MARGIN,
        unit="human-normalised score",
        measurements=tuple(pooled("nap_linear", rival, FIVE) for rival in RIVALS),
    ),
)


def panels(arms: tuple[str, ...], games: tuple[str, ...]) -> tuple[Panel, ...]:
    """Pooled scores, their profile, and a small plot of every game."""
    common = dict(measure="human_normalised", arms=arms, settings=games)
    return (
        Panel(kind="pooled", pool="iqm", title="IQM", xlabel="human-normalised score", **common),
        Panel(kind="pooled", pool="mean", title="Mean", xlabel="human-normalised score", **common),
        Panel(
            kind="profile",
            title="Performance profile",
            xlabel="human-normalised score x",
            ylabel="share above x",
            **common,
        ),
        Panel(
            kind="curves",
            measure="return_curve",
            arms=arms,
            settings=games,
            xlabel="frames (M)",
            ylabel="return",
        ),
    )


PANELS = (
    *panels(AGENTS, GAMES),
    Panel(
        kind="curves",
        measure="smoke_loss",
        arms=AGENTS,
        settings=tuple(SMOKE + game for game in SMOKE_GAMES),
        xlabel="updates",
        ylabel="loss",
    ),
)


def tables(scores: Scores) -> list[dict[str, Any]]:
    """Pooled scores in numbers, and Rainbow beside what DQN Zoo published."""
    return [*pooled_table(scores, AGENTS, GAMES), *_beside_published(scores)]


def pooled_table(scores: Scores, arms: tuple[str, ...], games: tuple[str, ...]) -> list[dict[str, Any]]:
    """IQM and mean of every arm over the games of which all of them have results; at most one table."""
    have = [arm for arm in arms if any(scores.has("human_normalised", arm, game) for game in games)]
    shared = [game for game in games if have and all(scores.has("human_normalised", arm, game) for arm in have)]
    rows = []
    for arm in have if shared else ():
        by_game = [scores.values("human_normalised", arm, game) for game in shared]
        seeds = sorted(set.intersection(*(set(values) for values in by_game)))
        values_ST = np.array([[values[seed] for values in by_game] for seed in seeds]).reshape(-1, len(shared))
        values_ST = values_ST[np.isfinite(values_ST).all(axis=1)]
        cells = [DASH] * 4
        if len(values_ST):
            found = [stats.pooled_interval(values_ST, pool) for pool in ("iqm", "mean")]
            cells = [text for one in found for text in estimate_and_span(one.estimate, one.low, one.high)]
        rows.append([look(arm).label, str(len(shared)), str(len(values_ST)), *cells])
    columns = ("agent", "games", "seeds", "IQM", "95 % interval", "mean", "95 % interval")
    note = (
        f"Human-normalised score, 1 is a human. {len(shared)} of {len(games)} games have results of every agent here."
    )
    return [{"title": "Scores over games", "columns": columns, "rows": rows, "note": note}] if rows else []


def _beside_published(scores: Scores) -> list[dict[str, Any]]:
    """Medians over games of plain Rainbow, where all games have results, beside published ones."""
    if not any(scores.has("human_normalised_curve", "baseline", game) for game in GAMES):
        return []
    whole = all(scores.has("human_normalised_curve", "baseline", game) for game in GAMES)
    rows = []
    for frames, published in PUBLISHED:
        ours = []
        for game in GAMES if whole else ():
            x_T, _, values_TS = scores.curve("human_normalised_curve", "baseline", game)
            if abs(x_T - frames).min() <= 0.05 * frames:
                ours.append(values_TS[abs(x_T - frames).argmin()].mean())
        median = float(np.median(ours)) if len(ours) == len(GAMES) else None
        rows.append([f"{frames}M", amounts([published])[0], amounts([median])[0]])
    note = (
        "Median over 57 games of the mean over seeds. DQN Zoo: evaluation without sticky actions, 5 seeds, running mean of 10 "
        "evaluations, read off the published curve. Dopamine's Rainbow is no reference here: sticky actions, training returns."
    )
    columns = ("frames", "Rainbow of DQN Zoo", "Rainbow here")
    games = {
        "title": "Rainbow by game, beside published scores by other protocols",
        "columns": ("game", "Rainbow here", "Hessel et al. 2018", "Dopamine"),
        "rows": [
            [game, *(DASH if value is None else f"{value:,.1f}" for value in (_mean_return(scores, game), *published))]
            for game, published in RAINBOW_PUBLISHED.items()
        ],
        "note": "Returns. Hessel et al.: no-op starts, best agent evaluated again. Dopamine: sticky actions, training returns.",
    }
    others = {
        "title": "Rainbow published elsewhere, by other protocols",
        "columns": ("source", "protocol", "games", "median", "IQM"),
        "rows": [[*source, str(games), *amounts([median, iqm])] for *source, games, median, iqm in ELSEWHERE],
        "note": "At 200M frames, human-normalised by the same table. Not comparable with each other or with ours.",
    }
    return [{"title": "Beside published Rainbow", "columns": columns, "rows": rows, "note": note}, others, games]


def _mean_return(scores: Scores, game: str) -> float | None:
    """Of plain Rainbow at the end of training, over seeds."""
    if not scores.has("return", "baseline", game):
        return None
    return float(np.mean(list(scores.values("return", "baseline", game).values())))
