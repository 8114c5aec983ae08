"""Atari 2600 games of the Arcade Learning Environment, one or a sequence of them, by DQN Zoo's protocol."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import ClassVar

from nap_bench.benchmarks.base_rl import RLBenchmark
from nap_bench.spec import nearest

FRAME_SKIP = 4
"""Frames of a game per step of the agent."""
NUM_ALL_ACTIONS = 18


@cache
def _actions(game: str) -> int:
    """How many actions do something in a game: what ALE calls its minimal set."""
    from ale_py import ALEInterface, LoggerMode
    from ale_py.roms import get_rom_path

    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    ale.loadROM(get_rom_path(game))
    return len(ale.getMinimalActionSet())


@cache
def _known() -> tuple[str, ...]:
    from ale_py.roms import get_all_rom_ids

    return tuple(get_all_rom_ids())


@dataclass(frozen=True, kw_only=True)
class Atari(RLBenchmark):
    """`games`, one after another, `cycles` times, `frames_per_visit` frames each (paper 5.3, App. E; defaults of DQN Zoo).

    A loss of life ends the return and not the episode; a time limit of `max_frames` ends the episode and not the return. Up to
    `noop_max` no-ops begin an episode. sticky: probability that an action is repeated instead of obeyed.
    full_action_space: all 18 actions, the only choice for a sequence of games that tells the agent nothing about the game.
    rebuild_frames: the environments are made anew after so many frames of a visit, over all of them: what a resumed run has to
      emulate again at most (rl/envs.py), at the price of the episodes under way.
    """

    name: ClassVar[str] = "atari"
    environments: ClassVar[str] = "envs"
    resources: ClassVar[str] = "atari"

    games: tuple[str, ...]
    cycles: int = 1
    frames_per_visit: int = 200_000_000
    full_action_space: bool = False
    sticky: float = 0.0
    noop_max: int = 30
    max_frames: int = 108_000
    rebuild_frames: int = 5_000_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "games", tuple(self.games))
        for game in self.games:
            if game not in _known():
                raise ValueError(nearest(game, _known(), "game of atari"))
        if not self.games or self.cycles < 1:
            raise ValueError(f"atari wants a game and cycles >= 1; found {self.games} and {self.cycles}.")
        for name in ("frames_per_visit", "rebuild_frames"):
            if getattr(self, name) < 1 or getattr(self, name) % (FRAME_SKIP * self.num_envs):
                raise ValueError(
                    f"atari wants {name} to be a multiple of {FRAME_SKIP} frames x num_envs = "
                    f"{FRAME_SKIP * self.num_envs}; found {getattr(self, name)}."
                )
        if not 0.0 <= self.sticky < 1.0 or self.noop_max < 0 or self.max_frames < 1:
            raise ValueError(
                f"atari wants sticky in [0, 1), noop_max >= 0 and max_frames >= 1; found {self.sticky}, {self.noop_max} and "
                f"{self.max_frames}."
            )
        super().__post_init__()

    def demand(self, num_seeds: int) -> dict[str, int]:
        """Frames, evaluation included, and bytes of a checkpoint, nearly all of them the replay's."""
        evaluated = self.bins_per_visit * self.eval_steps * self.eval_envs * FRAME_SKIP
        frames = self.num_visits * (self.frames_per_visit + evaluated) * num_seeds
        height, width = self.frame_shape
        kept = min(self.capacity, self.steps_per_visit * (self.num_visits if self.replay == "keep" else 1))
        return {"frames": frames, "disk_bytes": num_seeds * kept * (height * width + 28)}

    def identity(self) -> dict[str, str]:
        from ale_py.roms import get_rom_path

        return {f"{game}.bin": sha256(get_rom_path(game).read_bytes()).hexdigest() for game in self.games}

    @property
    def num_visits(self) -> int:
        return 1 if self.first_visit else len(self.games) * self.cycles

    @property
    def steps_per_visit(self) -> int:
        return self.frames_per_visit // FRAME_SKIP

    @property
    def rebuild_steps(self) -> int:
        return self.rebuild_frames // FRAME_SKIP

    @property
    def frame_shape(self) -> tuple[int, int]:
        return 84, 84

    @property
    def num_actions(self) -> int:
        if self.full_action_space:
            return NUM_ALL_ACTIONS
        counts = {game: _actions(game) for game in self.games}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"atari wants games of equally many actions, or full_action_space=True; found "
                f"{', '.join(f'{game} {count}' for game, count in counts.items())}."
            )
        return next(iter(counts.values()))

    def label(self, visit: int) -> str:
        """The game."""
        return self.games[visit % len(self.games)]
