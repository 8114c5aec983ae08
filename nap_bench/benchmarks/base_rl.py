"""What benchmarks of reinforcement learning share: a sequence of visits to environments, and how Rainbow learns from them.

A step is what one environment does for one action; S seeds have `num_envs` environments each, and a vector step is one step of
all of them. An update is an optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nap_bench.benchmarks.base import Benchmark
from nap_bench.spec import later, nearest

REPLAY, TARGET = ("clear", "keep"), ("copy", "keep")
"""At a switch: what becomes of the replay, and of the target network."""


@dataclass(frozen=True, kw_only=True)
class RLBenchmark(Benchmark):
    """`num_visits` visits of equally many steps each, one after another, by one agent. Defaults are DQN Zoo's Rainbow.

    A visit begins with `min_fill` steps without updates, whether or not the replay was kept, so that visits have equally many
    updates; then an update every `steps_per_update` steps (of one seed, over all its environments).

    num_envs: per seed, E. With E = 1 the order of acting and learning is DQN Zoo's; else E / steps_per_update updates follow
      every vector step.
    capacity: of the replay, steps.  stack: frames that the agent sees.  n_step, discount: of the return.
    v_min, v_max: ends of the support; how many atoms it has is the model's.  batch_size, target_period: updates between copies.
    priority_exponent, uniform_mix: prioritised replay.  is_exponent: of the importance weights at a visit's first and last update.
    max_reward: rewards are clipped to +-max_reward.
    bins_per_visit: parts of a visit after which is written down what was measured.
    eval_steps: after each bin, vector steps without learning, noise on (0: none), of `eval_envs` environments.
    replay, target: what becomes of them at a switch.  first_visit: start there, with a fresh agent: the control.

    A benchmark says besides: num_visits; steps_per_visit, of one seed over all its environments; frame_shape, height and width of
    what one step shows; num_actions.
    """

    loop: ClassVar[str] = "rl"
    environments: ClassVar[str]
    """The module below nap_bench.rl that makes them."""

    num_envs: int = 16
    capacity: int = 1_000_000
    min_fill: int = 20_000
    steps_per_update: int = 4
    batch_size: int = 32
    stack: int = 4
    n_step: int = 3
    discount: float = 0.99
    v_min: float = -10.0
    v_max: float = 10.0
    target_period: int = 2_000
    priority_exponent: float = 0.5
    uniform_mix: float = 1e-3
    is_exponent: tuple[float, float] = (0.4, 1.0)
    max_reward: float = 1.0
    bins_per_visit: int = 200
    eval_steps: int = 0
    eval_envs: int = 16
    replay: str = "clear"
    target: str = "copy"
    first_visit: int = later(0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_exponent", tuple(self.is_exponent))
        if self.replay not in REPLAY:
            raise ValueError(nearest(self.replay, REPLAY, f"replay of {self.name}"))
        if self.target not in TARGET:
            raise ValueError(nearest(self.target, TARGET, f"target of {self.name}"))
        for name in (
            "num_envs",
            "steps_per_update",
            "batch_size",
            "stack",
            "n_step",
            "target_period",
            "bins_per_visit",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{self.name} wants {name} >= 1; found {getattr(self, name)}.")
        for name in ("steps_per_visit", "min_fill"):
            if getattr(self, name) % self.num_envs:
                raise ValueError(
                    f"{self.name} wants {name} to be a multiple of num_envs = {self.num_envs}; found {getattr(self, name)}."
                )
        least = (self.n_step + 2) * self.num_envs
        if not least <= self.min_fill < self.steps_per_visit:
            raise ValueError(
                f"{self.name} wants min_fill from {least}, so that there is something to learn from, to less than the "
                f"{self.steps_per_visit} steps of a visit; found {self.min_fill}."
            )
        if self.capacity < self.min_fill:
            raise ValueError(f"{self.name} wants capacity >= min_fill = {self.min_fill}; found {self.capacity}.")
        if self.updates_per_visit < self.bins_per_visit:
            raise ValueError(
                f"{self.name} wants at most one bin per update; found {self.bins_per_visit} bins in "
                f"{self.updates_per_visit} updates."
            )
        if not self.v_min < self.v_max or not 0.0 < self.discount <= 1.0 or not 0.0 < self.uniform_mix < 1.0:
            raise ValueError(
                f"{self.name} wants v_min < v_max, discount in (0, 1] and uniform_mix in (0, 1); found {self.v_min}, "
                f"{self.v_max}, {self.discount} and {self.uniform_mix}."
            )
        if not 0 <= self.first_visit:
            raise ValueError(f"{self.name} wants first_visit >= 0; found {self.first_visit}.")

    @property
    def rebuild_steps(self) -> int | None:
        """Steps after which the environments are made anew within a visit; None for never."""
        return None

    def identity(self) -> dict[str, str]:
        """Hashes of what is played that another machine may have otherwise, for the run's environment."""
        return {}

    def label(self, visit: int) -> str:
        """What is visited, for people."""
        raise NotImplementedError

    @property
    def shapes(self) -> tuple[tuple[int, ...], int]:
        """Shape of what the agent sees, number of actions."""
        return (self.stack, *self.frame_shape), self.num_actions

    @property
    def updates_per_visit(self) -> int:
        return (self.steps_per_visit - self.min_fill) // self.steps_per_update

    @property
    def steps_per_task(self) -> int:
        """Updates of a visit: the name by which schedules and scores know it."""
        return self.updates_per_visit

    @property
    def num_steps(self) -> int:
        """Updates of a whole run."""
        return self.num_visits * self.updates_per_visit

    def task_at(self, step: int) -> int:
        """The visit that the update number `step` (from 0) belongs to."""
        return self.first_visit + step // self.updates_per_visit

    def bin_ends(self) -> frozenset[int]:
        """Numbers of updates done at which what was measured is written down."""
        per, bins = self.updates_per_visit, self.bins_per_visit
        within = [per * (i + 1) // bins for i in range(bins)]
        return frozenset(visit * per + end for visit in range(self.num_visits) for end in within)

    def updates_due(self, vector_steps: int) -> int:
        """Updates that are due once so many vector steps of a visit are done."""
        steps = vector_steps * self.num_envs - self.min_fill
        return max(0, steps // self.steps_per_update)
