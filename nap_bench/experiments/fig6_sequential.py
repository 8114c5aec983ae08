"""Figure 6, left: ten Atari games in sequence, twice. Does a network learn a game again as a fresh one would?"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from nap_bench.experiments.base import Entry, Labelled, curve, make_run, scalar
from nap_bench.experiments.fig6_atari57 import DATA_EFFICIENT, FINAL, NATURE, PEAK, SMOKE
from nap_bench.report.claims import Claim, Pooled
from nap_bench.report.figures import Panel, look
from nap_bench.report.scores import Score
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
    "noise and draws. Seeds (3) and plasticity methods beside the paper's agents are ours, with their sources' values.",
    "Measured are the training episodes that end in each bin of 1M frames, human-normalised by DQN Zoo's table; where none ends, "
    "the bin is left out. The re-entry claim compares a visit's mean with nine tenths of the fresh agent's.",
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
    "shrink_perturb": "shrink_perturb(shrink=0.999999, noise=0.01)",
}
"""Others, alone and with NaP, at workstation and paper scale."""
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
                made.append(Entry(f"{arm}_fresh", size["setting"] + game, run))
        if not size["setting"]:
            for arm, choice in CHOICES.items():
                made.append(Entry(arm, "sequence", run_of(scale, seed, **{"stack": STACKS["nap"], **choice})))
    return made


def visits(labelled: Labelled, metric: str) -> np.ndarray:
    """[visits, bins, S]"""
    _, values_TS = labelled.series(metric)
    return values_TS.reshape(-1, labelled.params["bins_per_visit"], values_TS.shape[1])


def mean_of_bins(values_BS: np.ndarray) -> np.ndarray:
    """[S], over the bins in which an episode ended; NaN where none did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values_BS, axis=0)


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    """Per game: curves and areas of the last visit, of a chain and of its control (arm `X_fresh`), human-normalised.

    area: mean over the visit's bins.  final: its last bin.  jump_start: its first.  re_entry: area, of a control nine tenths of it.
    forgotten: last bin of the visit before less the first of this one.
    Of a chain besides: what was measured at its switches, over visits done.
    """
    for labelled in results:
        if labelled.setting.startswith(SMOKE):
            steps, loss_TS = labelled.series("online/loss")
            yield from curve(labelled, "smoke_loss", steps, loss_TS)
            continue
        params = labelled.params
        games, bins = params["games"], params["bins_per_visit"]
        frames = params["frames_per_visit"] * 1e-6 * (np.arange(bins) + 1) / bins
        returns_VBS = visits(labelled, "return/training")
        is_control = labelled.arm.endswith("_fresh")
        first = params["first_visit"] if is_control else 0
        for index, returns_BS in enumerate(returns_VBS):
            visit = first + index
            game = games[visit % len(games)]
            at = Labelled(labelled.arm, game, labelled.result)
            score_BS = human_normalised(game, returns_BS)
            if visit < len(games):
                yield from scalar(at, "first_area", mean_of_bins(score_BS))
                continue
            area_S = mean_of_bins(score_BS)
            ended = np.isfinite(score_BS).all(axis=1)  # of a bin in which no episode ends there is nothing to draw
            yield from curve(at, "second_visit", frames[ended], score_BS[ended])
            yield from scalar(at, "area", area_S)
            yield from scalar(at, "re_entry", (0.9 if is_control else 1.0) * area_S)
            yield from scalar(at, "jump_start", score_BS[0])
            yield from scalar(at, "final", score_BS[-1])
            if not is_control:
                before_BS = human_normalised(game, returns_VBS[index - len(games)])
                yield from scalar(at, "forgotten", before_BS[-1] - score_BS[0])
        if not is_control:
            done = np.arange(len(returns_VBS)) + 1
            for measure, metric in (
                ("parameter_norm", "probe/parameter_norm"),
                ("effective_learning_rate", "probe/effective_learning_rate"),
                ("dormant_fraction", "probe/dormant_fraction_tau0.1"),
                ("feature_rank", "probe/feature_rank"),
            ):
                yield from curve(labelled, measure, done, visits(labelled, metric)[:, -1])


def _pooled(arm: str, against: str, games: tuple[str, ...], measure: str) -> Pooled:
    label = f"IQM: {look(arm).label} - {look(against).label}"
    return Pooled(label=label, measure=measure, better="higher", arm=arm, against=against, settings=games)


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
_PAIRS = tuple(arm for name in STACKS for arm in (name, f"{name}_fresh"))
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
