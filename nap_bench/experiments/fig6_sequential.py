"""Figure 6, left: ten Atari games in sequence, twice. Does a network learn a game again as a fresh one would?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from nap_bench.experiments.base import Entry, Labelled, curve, make_run, scalar
from nap_bench.experiments.fig6_atari57 import DATA_EFFICIENT, FINAL, NATURE, PEAK, SMOKE
from nap_bench.experiments.rl_sequence import FRESH_OF, PROBES, re_entry_table
from nap_bench.report.claims import Claim, PairedPool
from nap_bench.report.figures import Panel, look
from nap_bench.report.scores import Score, Scores
from nap_bench.rl.scores_atari import human_normalised

TITLE = "Ten Atari games in sequence, twice"
PAPER = (
    "Section 5.3, Fig. 6 (left): Rainbow plays ten Atari games one after another, 20M frames each, and then again. Parameters are "
    "kept, the optimizer's state and the learning-rate schedule start anew at every change. On the second visit NaP learns as "
    "well as a randomly initialised agent; Rainbow is poor on all games but the first ones, LayerNorm in between."
)
DEVIATIONS = (
    "Of the ten games only Alien, Atlantis, Boxing, Breakout and Centipede are known; crazy_climber, freeway, pong, qbert and "
    "seaquest, and the order, are ours. One head with all 18 actions, which tells the agent nothing about the game (not stated).",
    "At a switch the replay is cleared and the target network copied; 20,000 steps follow without updates, by the network as it "
    "is (not stated; both choices are arms of NaP here). Frames are counted exactly: the episode under way is cut.",
    "The rate is a cosine with 1000 updates of warm-up, from 1e-8 over 6.25e-5 to 1e-6 at the end of every visit, for every agent; "
    "the peak printed in the paper is ten times that (its own slip). NaP's scale and offset decay to their initial values, by "
    "0.999 per update (the paper calls it critical and gives no value), at once every 1000 updates, when the network is projected.",
    "The control is a fresh agent of the same seed at each visit of the second cycle, with the same head, schedule, environments, "
    "noise and draws; an interval is over seeds, each with all its games. Seeds (3) and plasticity methods beside the paper's "
    "agents are ours, with their sources' values.",
    "Measured are the training episodes that end in each bin, human-normalised by DQN Zoo's table; where none ends, the bin is "
    "left out. A visit has 20 bins of equally many updates; the first is longer by the 80,000 frames before them. The re-entry "
    "claim compares a visit's mean with nine tenths of the fresh agent's.",
    "Workstation scale: three of the games, 2M frames a visit, bins of 200,000 frames, two seeds. Laptop scale: a smoke run of "
    "three games and nothing else; what it would show is tested by rl_sequence with the same code.",
)

KNOWN = ("alien", "atlantis", "boxing", "breakout", "centipede")
GAMES = (*KNOWN, "crazy_climber", "freeway", "pong", "qbert", "seaquest")
NAP = "nap(scale_offset='decay', period={period}, decay={decay})"
RESET = "optimizer_reset"
STACKS = {"baseline": RESET, "layer_norm": f"{RESET}+layer_norm", "nap": f"{RESET}+{NAP}"}
"""The paper's agents."""
METHODS = {
    "redo": "redo(period=1000, tau=0.1)",  # Sokar et al. 2023
    "l2": "l2(coef=1e-05)",
    "regenerative": "regenerative(coef=1e-05)",
    "shrink_perturb": "shrink_perturb(shrink=0.9999, noise=0.01)",  # Kumar et al. 2023
    "noisy_updates": "noisy_updates(sigma=0.01)",
    "leaky_relu": "leaky_relu",
    "crelu": "crelu",  # Abbas et al. 2023
    "continual_backprop": "continual_backprop(rate=1e-05, maturity=1000)",
    "layer_reset": "layer_reset",  # told of the game, as the control is
}
"""Others, alone and with NaP, at workstation and paper scale; untuned."""
CHOICES: dict[str, dict[str, Any]] = {
    "nap_replay_kept": dict(replay="keep"),
    "nap_target_kept": dict(target="keep"),
    "nap_optimizer_kept": dict(stack=NAP),
    "nap_not_told": dict(stack=NAP, replay="keep", target="keep", restart="never"),
}
"""What the paper leaves open at a switch, one at a time, and all of it: an agent that is not told."""
SIZES: dict[str, dict[str, Any]] = {
    "laptop": dict(
        task=dict(
            games=("pong", "breakout", "boxing"),
            frames_per_visit=1280,
            num_envs=4,
            min_fill=160,
            capacity=400,
            target_period=10,
            bins_per_visit=2,
        ),
        size=DATA_EFFICIENT,
        warmup=5,
        period=5,
        seeds=(0,),
        setting=SMOKE,
    ),
    "workstation": dict(
        task=dict(games=("alien", "boxing", "breakout"), frames_per_visit=2_000_000, bins_per_visit=10),
        size=NATURE,
        warmup=1000,
        period=1000,
        seeds=(0, 1),
        setting="",
    ),
    "paper": dict(
        task=dict(games=GAMES, frames_per_visit=20_000_000, bins_per_visit=20),
        size=NATURE,
        warmup=1000,
        period=1000,
        seeds=(0, 1, 2),
        setting="",
    ),
}
CYCLES, DECAY, INITIAL_LR = 2, 0.999, 1e-8


def stacks(scale: str) -> dict[str, str]:
    """Arm -> stack of every arm that has a control."""
    more = {} if scale == "laptop" else METHODS
    alone = {name: f"{RESET}+{stack}" for name, stack in more.items()}
    return STACKS | alone | {f"{name}+nap": f"{stack}+{NAP}" for name, stack in alone.items()}


def run_of(scale: str, seed: int, stack: str, *, restart: str = "task", **task: object):
    """One seed of one agent. task: what differs from the scale's."""
    from nap_bench.benchmarks import Atari
    from nap_bench.optimizers import Adam
    from nap_bench.schedules import Cosine
    from nap_bench.spec import ModelSpec

    size = SIZES[scale]
    period = size["period"]
    warmup = dict(warmup_steps=size["warmup"], initial_lr=INITIAL_LR, restart=restart)
    return make_run(
        benchmark=Atari(**{"cycles": CYCLES, "full_action_space": True, **size["task"], **task}),
        model=ModelSpec(family="rainbow", size=size["size"]),
        stack=stack.format(period=period, decay=DECAY**period),
        optimizer=Adam(eps=0.005 / 32, clip_norm=10.0),
        schedule=Cosine(PEAK, FINAL, **warmup),
        seeds=(seed,),
    )


def runs(scale: str) -> list[Entry]:
    size, made = SIZES[scale], []
    games = size["task"]["games"]
    for seed in size["seeds"]:
        for arm, stack in stacks(scale).items():
            made.append(Entry(arm, size["setting"] + "sequence", run_of(scale, seed, stack)))
            for index, game in enumerate(games):
                if size["setting"] and (index or arm != "nap"):
                    continue  # a smoke run needs one control
                run = run_of(scale, seed, stack, first_visit=len(games) * (CYCLES - 1) + index)
                made.append(Entry(FRESH_OF.format(arm), size["setting"] + game, run))
        if not size["setting"]:
            for arm, choice in CHOICES.items():
                made.append(Entry(arm, "sequence", run_of(scale, seed, **{"stack": STACKS["nap"], **choice})))
    return made


def cells(arm: str, setting: str, scale: str) -> list[tuple[str, str]]:
    """Where the scores of a run stand: a chain's at each of its games."""
    return [(arm, game) for game in SIZES[scale]["task"]["games"]] if setting == "sequence" else [(arm, setting)]


def visits(labelled: Labelled, metric: str) -> np.ndarray:
    """[visits, bins, S]"""
    _, values_TS = labelled.series(metric)
    return values_TS.reshape(-1, labelled.params["bins_per_visit"], values_TS.shape[1])


def area(score_BS: np.ndarray, episodes_BS: np.ndarray) -> np.ndarray:
    """[S], over the bins in which an episode ended; NaN where none did, or where the seed had diverged."""
    ended_BS = episodes_BS > 0  # of a seed that diverged nothing is known, not even this
    with np.errstate(invalid="ignore"):
        mean_S = np.where(ended_BS, score_BS, 0.0).sum(axis=0) / ended_BS.sum(axis=0)
    return np.where(np.isnan(episodes_BS).any(axis=0), np.nan, mean_S)


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    """Per game: what a visit got, human-normalised, of a chain and of its control (arm `X_fresh`).

    area: mean over the visit's bins.  final: its last bin.  jump_start: its first; these of the second visit, and with `first_` of
    the first.  re_entry: area, of a control nine tenths of it.  ratio: a chain's area over its control's.  forgotten: last bin of
    the visit before less the first of this one. Of a chain besides: what was measured at its switches, over visits done.
    """
    areas: dict[tuple[str, str], dict[int, float]] = {}
    for labelled in results:
        if labelled.setting.startswith(SMOKE):
            steps, loss_TS = labelled.series("online/loss")
            yield from curve(labelled, "smoke_loss", steps, loss_TS)
            continue
        params = labelled.params
        games, bins = params["games"], params["bins_per_visit"]
        returns_VBS, episodes_VBS = (visits(labelled, f"return/{what}") for what in ("training", "episodes"))
        updates_T, _ = labelled.series("return/training")
        frames = 4e-6 * (params["min_fill"] + updates_T[:bins] * params["steps_per_update"])
        is_control = labelled.arm.endswith("_fresh")
        for index, (returns_BS, episodes_BS) in enumerate(zip(returns_VBS, episodes_VBS, strict=True)):
            visit = index + (params["first_visit"] if is_control else 0)
            game = games[visit % len(games)]
            at = Labelled(labelled.arm, game, labelled.result)
            score_BS = human_normalised(game, returns_BS)
            area_S = area(score_BS, episodes_BS)
            when = "first_" if visit < len(games) else ""
            yield from curve(at, f"{when or 'second_'}visit", frames, score_BS)
            yield from scalar(at, f"{when}area", area_S)
            yield from scalar(at, f"{when}jump_start", score_BS[0])
            yield from scalar(at, f"{when}final", score_BS[-1])
            if when:
                continue
            areas.setdefault((labelled.arm, game), {}).update(zip(labelled.seeds, area_S.tolist(), strict=True))
            yield from scalar(at, "re_entry", (0.9 if is_control else 1.0) * area_S)
            if not is_control:
                before_BS = human_normalised(game, returns_VBS[index - len(games)])
                yield from scalar(at, "forgotten", before_BS[-1] - score_BS[0])
        if not is_control:
            done = np.arange(len(returns_VBS)) + 1
            for measure, metric in PROBES.items():
                yield from curve(labelled, measure, done, visits(labelled, metric)[:, -1])
    for (arm, game), again in areas.items():
        fresh = areas.get((FRESH_OF.format(arm), game), {})
        for seed in sorted(again.keys() & fresh.keys()):
            yield Score(arm, game, "ratio", None, seed, again[seed] / fresh[seed] if fresh[seed] else float("nan"))


def tables(scores: Scores) -> list[dict[str, Any]]:
    """Of the games that have results of the paper's agents and their controls."""
    pairs = [side for arm in STACKS for side in (arm, FRESH_OF.format(arm))]
    games = tuple(game for game in GAMES if all(scores.has("area", side, game) for side in pairs))
    arms = stacks("paper")
    title = f"Second visits of {len(games)} games, and fresh agents, human-normalised"
    return re_entry_table(scores, arms, games, "area", "iqm", title) if games else []


def _pooled(arm: str, against: str, games: tuple[str, ...], measure: str) -> PairedPool:
    label = f"IQM: {look(arm).label} - {look(against).label}"
    return PairedPool(label=label, measure=measure, better="higher", arm=arm, against=against, settings=games)


def _claims(
    games: tuple[str, ...], where: str, suffix: str, paper_claims: tuple[int | None, int | None]
) -> tuple[Claim, ...]:
    common = dict(unit="human-normalised score, mean over the second visit", source="Sec. 5.3, Fig. 6 left")
    return (
        Claim(
            id=f"nap_relearns_as_a_fresh_agent_does{suffix}",
            sentence=f"On the second visit NaP gets at least nine tenths of what a fresh agent gets ({where}).",
            kind="superiority",
            margin=0.0,
            measurements=(_pooled("nap", "nap_fresh", games, "re_entry"),),
            paper_claim=paper_claims[0],
            **common,
        ),
        Claim(
            id=f"rainbow_relearns_worse_than_a_fresh_agent{suffix}",
            sentence=f"Plain Rainbow is worse on the second visit than a fresh agent ({where}).",
            kind="superiority",
            margin=0.05,
            measurements=(_pooled("baseline_fresh", "baseline", games, "area"),),
            paper_claim=paper_claims[1],
            **common,
        ),
        Claim(
            id=f"layer_norm_is_between_rainbow_and_nap{suffix}",
            sentence=f"LayerNorm is in between: better than Rainbow on the second visit, worse than NaP ({where}).",
            kind="superiority",
            margin=0.0,
            measurements=(
                _pooled("layer_norm", "baseline", games, "area"),
                _pooled("nap", "layer_norm", games, "area"),
            ),
            **common,
        ),
    )


_THREE = SIZES["workstation"]["task"]["games"]
CLAIMS = (
    *_claims(GAMES, "ten games, paper scale only", "", (14, 15)),
    *_claims(_THREE, "three games, not at laptop scale", "_on_three_games", (None, None)),
)
_PAIRS = tuple(arm for name in STACKS for arm in (name, FRESH_OF.format(name)))
PANELS = (
    Panel(
        kind="pooled",
        measure="area",
        title="Second visit, IQM over games",
        xlabel="human-normalised score",
        arms=_PAIRS,
        settings=GAMES,
    ),
    Panel(
        kind="pooled",
        measure="area",
        title="Second visit, all arms",
        xlabel="human-normalised score",
        arms=(*stacks("paper"), *CHOICES),
        settings=GAMES,
    ),
    Panel(
        kind="curves",
        measure="second_visit",
        arms=_PAIRS,
        settings=GAMES,
        xlabel="frames (M)",
        ylabel="human-normalised",
    ),
    Panel(
        kind="curves",
        measure="effective_learning_rate",
        arms=tuple(STACKS),
        settings=("sequence",),
        xlabel="visits",
        ylabel="effective learning rate",
    ),
    Panel(
        kind="curves",
        measure="smoke_loss",
        arms=(*STACKS, "nap_fresh"),
        settings=tuple(SMOKE + place for place in ("sequence", "pong")),
        xlabel="updates",
        ylabel="loss",
    ),
)
