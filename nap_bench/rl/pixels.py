"""Catch, a control problem of a few pixels with a known optimum, and its variants: what a laptop tests claims about RL with. Ours.

A ball falls one row a step, a paddle in the last row moves left, stays or moves right; in the last row the ball is caught
(reward 1) or missed (-1) and the episode ends (the game of Mnih et al. 2014, arXiv 1406.6247). Variants look different, move
differently or answer to other actions, with frames of one shape and three actions throughout.
Shape suffixes: S seeds, E environments per seed, H rows, W columns, K cells, A actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from nap_bench.rl.envs import Frame
from nap_bench.rng import generator
from nap_bench.spec import nearest

NUM_ACTIONS = 3
MOVES = tuple(permutations((-1, 0, 1)))
"""What the three actions can do, to the left, still or to the right; MOVES[0] is in this order."""
CHANGES = ("actions", "contrast", "flip", "pixels", "speed", "wind")
BLOCK = 256
"""Episodes for which the balls are drawn at once."""


@dataclass(frozen=True)
class Task:
    """A variant of Catch.

    moves: what each action does to the paddle's column.  speed: by how many columns (it stops at the walls; by 2 it gets to all
      columns of an even number, and to every second of an odd one).
    wind: columns that the ball drifts to the right in every row; what leaves on one side comes in on the other.
    flip_columns, flip_rows, invert: the frame mirrored, upside down, dark on bright.
    pixels: number of the permutation of all pixels by which the frame is shown; 0 for none.
    """

    moves: tuple[int, int, int] = MOVES[0]
    speed: int = 1
    wind: int = 0
    flip_columns: bool = False
    flip_rows: bool = False
    invert: bool = False
    pixels: int = 0

    def __post_init__(self) -> None:
        if tuple(self.moves) not in MOVES:
            raise ValueError(f"Task wants moves to be -1, 0 and 1 in some order; found {self.moves}.")
        if self.speed < 1 or self.pixels < 0:
            raise ValueError(
                f"Task wants speed >= 1 and pixels >= 0; found speed = {self.speed}, pixels = {self.pixels}."
            )


def drawn_task(seed: int, visit: int, frame_shape: tuple[int, int], changes: Sequence[str]) -> Task:
    """The variant that a seed visits: what `changes` names is drawn anew, the rest stays as in Task()."""
    for change in changes:
        if change not in CHANGES:
            raise ValueError(nearest(change, CHANGES, "change of Catch"))

    def drawn(change: str, num: int) -> int:
        if change.split("/")[0] not in changes:
            return 0
        return int(torch.randint(num, (), generator=generator(seed, f"catch/{change}", visit)))

    return Task(
        moves=MOVES[drawn("actions", len(MOVES))],
        speed=1 + drawn("speed", 2),
        wind=drawn("wind", frame_shape[1]),
        flip_columns=bool(drawn("flip/columns", 2)),
        flip_rows=bool(drawn("flip/rows", 2)),
        invert=bool(drawn("contrast", 2)),
        pixels=1 + visit if "pixels" in changes else 0,
    )


def optimum(task: Task, frame_shape: tuple[int, int]) -> float:
    """Mean return of the best policy: balls end in every column equally often, and some may be out of the paddle's reach."""
    height, width = frame_shape
    reached = {width // 2}
    for _ in range(height - 1):
        reached |= {min(max(column + move * task.speed, 0), width - 1) for column in reached for move in (-1, 1)}
    return 2 * len(reached) / width - 1


def random_return(frame_shape: tuple[int, int]) -> float:
    """Mean return of any policy that does not look, such as the uniformly random one: one ball in W is caught."""
    return 2 / frame_shape[1] - 1


class Catch:
    """`num_envs` games of Catch for each seed, each seed with its own task; the first ball of a game is drawn, too.

    All games begin and end in the same steps: an episode shows H frames. Balls are a pure function of (seed, purpose, counters,
    environment, episode), so a game does not depend on how many there are.
    """

    num_actions = NUM_ACTIONS

    def __init__(
        self,
        seeds: tuple[int, ...],
        num_envs: int,
        tasks: Sequence[Task],
        frame_shape: tuple[int, int] = (10, 6),
        *,
        purpose: str,
        counters: tuple[int, ...] = (),
        device: torch.device | str = "cpu",
    ):
        height, width = frame_shape
        if height < 2 or width < 2:
            raise ValueError(f"Catch wants a frame of at least 2 rows and 2 columns; found {frame_shape}.")
        if len(tasks) != len(seeds):
            raise ValueError(f"Catch wants a task for each of {len(seeds)} seeds; found {len(tasks)}.")
        self.seeds, self.num_envs, self.frame_shape = seeds, num_envs, frame_shape
        self.purpose, self.counters, self.device = purpose, counters, device
        self._place_SK = torch.stack([places(*pair, frame_shape) for pair in zip(seeds, tasks, strict=True)]).to(device)
        self._move_SA = torch.tensor([[move * task.speed for move in task.moves] for task in tasks], device=device)
        wind_S1 = torch.tensor([[task.wind] for task in tasks], device=device)
        self._drift_SH = wind_S1 * torch.arange(height, device=device)
        dark_S = torch.tensor([255 * task.invert for task in tasks], dtype=torch.uint8, device=device)
        self._empty_SEK = dark_S.view(-1, 1, 1).repeat(1, num_envs, height * width)
        self._ink_SE2 = (255 - dark_S).view(-1, 1, 1).expand(-1, num_envs, 2)
        shape = (len(seeds), num_envs)
        self._no_SE, self._yes_SE = (torch.full(shape, value, device=device) for value in (False, True))
        self._nothing_SE, self._on_SE = torch.zeros(shape, device=device), torch.ones(shape, device=device)
        self._block, self._balls = -1, torch.empty(0)
        self.time = 0  # frames shown, less one
        self.paddle_SE = torch.zeros(shape, dtype=torch.int64, device=device)

    def _drawn_balls(self, block: int) -> Tensor:
        """[BLOCK, S, E] columns in which the balls start."""
        balls = [
            torch.randint(
                self.frame_shape[1], (BLOCK,), generator=generator(seed, self.purpose, *self.counters, env, block)
            )
            for seed in self.seeds
            for env in range(self.num_envs)
        ]
        return torch.stack(balls, dim=1).view(BLOCK, len(self.seeds), self.num_envs).to(self.device)

    def _shown(self, row: int, ball_SE: Tensor) -> Tensor:
        height, width = self.frame_shape
        cells_SE2 = torch.stack([row * width + ball_SE, (height - 1) * width + self.paddle_SE], dim=2)
        places_SE2 = self._place_SK.gather(1, cells_SE2.flatten(1)).view(cells_SE2.shape)
        return self._empty_SEK.scatter(2, places_SE2, self._ink_SE2).unflatten(2, self.frame_shape)

    def reset(self) -> Frame:
        self.time = 0
        return self._begun()

    def _begun(self) -> Frame:
        self.paddle_SE = torch.full_like(self.paddle_SE, self.frame_shape[1] // 2)
        return Frame(self._shown(0, self._ball(0)), self._nothing_SE, self._on_SE, self._yes_SE, self._no_SE)

    def _ball(self, row: int) -> Tensor:
        """[S, E] columns."""
        block, episode = divmod(self.time // self.frame_shape[0], BLOCK)
        if block != self._block:
            self._balls, self._block = self._drawn_balls(block), block
        return (self._balls[episode] + self._drift_SH[:, row, None]) % self.frame_shape[1]

    def step(self, actions_SE: Tensor) -> Frame:
        self.time += 1
        height, width = self.frame_shape
        row = self.time % height
        if row == 0:
            return self._begun()
        self.paddle_SE = (self.paddle_SE + self._move_SA.gather(1, actions_SE)).clamp_(0, width - 1)
        ball_SE = self._ball(row)
        frame = self._shown(row, ball_SE)
        if row < height - 1:
            return Frame(frame, self._nothing_SE, self._on_SE, self._no_SE, self._no_SE)
        reward_SE = (self.paddle_SE == ball_SE) * 2.0 - 1.0
        return Frame(frame, reward_SE, self._nothing_SE, self._no_SE, self._yes_SE)

    def state_dict(self) -> dict[str, Any]:
        return {"time": self.time, "paddle": self.paddle_SE}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.time, self.paddle_SE = saved["time"], saved["paddle"].to(self.device)


def places(seed: int, task: Task, frame_shape: tuple[int, int]) -> Tensor:
    """[K] where each cell of the game, row by row, is shown in the flattened frame."""
    shown_at = torch.arange(frame_shape[0] * frame_shape[1])
    if task.pixels:
        shown_at = torch.randperm(len(shown_at), generator=generator(seed, "catch/pixels", task.pixels))
    mirrored = [dim for dim, flip in enumerate((task.flip_rows, task.flip_columns)) if flip]
    return shown_at.view(frame_shape).flip(mirrored).flatten()


def make(benchmark, seeds: tuple[int, ...], num_envs: int, visit: int, purpose: str, piece: int, device: str) -> Catch:
    """What a benchmark with `frame_shape` and `changes` visits, for the RL loop."""
    variant = benchmark.variant(visit)
    tasks = [drawn_task(seed, variant, benchmark.frame_shape, benchmark.changes) for seed in seeds]
    return Catch(seeds, num_envs, tasks, benchmark.frame_shape, purpose=purpose, counters=(visit, piece), device=device)
