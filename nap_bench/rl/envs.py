"""Environments of every seed at once, and Atari's.

Shape suffixes: S seeds, E environments per seed, H W.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from nap_bench.spec import nearest


class Frame(NamedTuple):
    """What every environment shows after a step, and what came with it."""

    frame: Tensor  # uint8 [S, E, H, W], the newest alone
    reward: Tensor  # float32 [S, E], as the environment gives it
    discount: Tensor  # float32 [S, E]: 0 where the return ends (the end, a lost life), else 1, at a time limit too
    first: Tensor  # bool [S, E]: the frame begins an episode; reward and discount mean nothing
    last: Tensor  # bool [S, E]: the frame ends an episode; the next step ignores its action and gives the first of another


class Environments(Protocol):
    """E environments of each of S seeds in step."""

    num_actions: int
    frame_shape: tuple[int, int]

    def reset(self) -> Frame:
        """The first frames; called once, before any step."""
        ...

    def step(self, actions_SE: Tensor) -> Frame:
        """actions: int64 [S, E], from 0 to num_actions - 1."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """From which environments made with the same arguments go on as these would, bit for bit."""
        ...

    def load_state_dict(self, saved: dict[str, Any]) -> None: ...


class Atari:
    """`num_envs` copies of a game for each seed, in ALE's vector environment, as DQN Zoo plays it (Mnih et al. 2015).

    A step is four frames, shown as the larger of the last two in every pixel, grey, 84 x 84 (area-averaged: DQN Zoo's is
    bilinear). A lost life gives discount 0 and the episode goes on; it is a fall of the number of lives before the end (no test
    for lives above 0, as DQN Zoo). A time limit of `max_frames` ends the episode with discount 1.
    noop_max: an episode begins with 0 to `noop_max` frames without action, equally often (DQN Zoo: 1 to 30; ALE cannot).
    sticky: probability that a frame repeats the action before.  num_threads: changes no number.
    full_action_space: all 18 actions, or those that do something in this game.
    Every environment has a seed of its own from a SeedSequence over (seed, purpose, counters): ALE gives consecutive integers to
    the environments of an integer seed, so that runs with neighbouring seeds would share most of their episodes.
    ALE's vector environment cannot be saved. Its state is the log of the actions since `reset`, a byte each, and loading plays
    them again: exact at any step, at the price of the emulation (no learning). Who makes environments anew now and then, with
    new counters, bounds both.
    """

    frame_shape = (84, 84)

    def __init__(
        self,
        seeds: tuple[int, ...],
        num_envs: int,
        game: str,
        *,
        full_action_space: bool = False,
        sticky: float = 0.0,
        noop_max: int = 30,
        max_frames: int = 108_000,
        num_threads: int = 1,
        purpose: str,
        counters: tuple[int, ...] = (),
        device: torch.device | str = "cpu",
    ):
        import ale_py  # here, since a catalogue and Catch do without
        from ale_py.vector_env import AtariVectorEnv

        known = ale_py.roms.get_all_rom_ids()
        if game not in known:
            raise ValueError(nearest(game, known, "Atari game"))
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.shape, self.device = (len(seeds), num_envs), device
        self._seeds = np.concatenate([env_seeds(seed, num_envs, purpose, *counters) for seed in seeds])
        self._env = AtariVectorEnv(
            game,
            len(self._seeds),
            batch_size=0,
            num_threads=num_threads,
            thread_affinity_offset=-1,
            max_num_frames_per_episode=max_frames,
            repeat_action_probability=sticky,
            full_action_space=full_action_space,
            continuous=False,
            continuous_action_threshold=0.5,
            autoreset_mode="NextStep",
            img_height=self.frame_shape[0],
            img_width=self.frame_shape[1],
            grayscale=True,
            stack_num=1,
            frameskip=4,
            maxpool=True,
            noop_max=noop_max + 1,
            episodic_life=False,
            life_loss_info=False,
            reward_clipping=False,
            use_fire_reset=False,
        )
        self.num_actions = int(self._env.single_action_space.n)

    def reset(self) -> Frame:
        frames, info = self._env.reset(seed=self._seeds)
        self._actions, self._lives, self._over = bytearray(), info["lives"], np.zeros(len(self._seeds), dtype=bool)
        shown = np.zeros(len(self._seeds), dtype=np.float32)
        return self._frame(frames, shown, ~self._over, ~self._over, self._over)

    def step(self, actions_SE: Tensor) -> Frame:
        return self._act(actions_SE.flatten().cpu().numpy())

    def _act(self, actions: np.ndarray) -> Frame:
        self._actions += actions.astype(np.uint8).tobytes()
        frames, rewards, ended, cut, info = self._env.step(actions)
        first, lives = self._over, info["lives"]
        discounts = ~ended & (first | (lives >= self._lives))
        self._lives, self._over = lives, ended | cut
        return self._frame(frames, rewards, discounts, first, self._over)

    def _frame(self, frames: np.ndarray, *facts: np.ndarray) -> Frame:
        frame = torch.from_numpy(frames).view(*self.shape, *self.frame_shape)
        reward, discount, first, last = (torch.from_numpy(fact).view(self.shape).to(self.device) for fact in facts)
        return Frame(frame.to(self.device), reward.float(), discount.float(), first, last)

    def state_dict(self) -> dict[str, Any]:
        actions = np.frombuffer(bytes(self._actions), dtype=np.uint8).reshape(-1, len(self._seeds))
        return {"actions": torch.from_numpy(actions.copy())}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.reset()
        for actions in saved["actions"].cpu().numpy().astype(np.int64):
            self._act(actions)


def env_seeds(seed: int, num_envs: int, purpose: str, *counters: int) -> np.ndarray:
    """int64 [E] from 0 to 2^31 - 1; the first do not depend on how many there are."""
    key = "/".join(map(str, (seed, purpose, *counters)))
    return (np.random.SeedSequence(list(key.encode())).generate_state(num_envs) >> 1).astype(np.int64)


def num_cores() -> int:
    """That this process may use; a scheduler may give fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make(benchmark, seeds: tuple[int, ...], num_envs: int, visit: int, purpose: str, piece: int, device: str) -> Atari:
    """What benchmarks/atari.py visits, for the RL loop. On a CPU in one thread, since every run has a process of its own there."""
    return Atari(
        seeds,
        num_envs,
        benchmark.label(visit),
        full_action_space=benchmark.full_action_space,
        sticky=benchmark.sticky,
        noop_max=benchmark.noop_max,
        max_frames=benchmark.max_frames,
        num_threads=1 if torch.device(device).type == "cpu" else num_cores(),
        purpose=purpose,
        counters=(visit, piece),
        device=device,
    )
