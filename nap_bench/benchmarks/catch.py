"""A sequence of variants of Catch, a control problem of a few pixels whose optimum is known: RL for a laptop. Ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nap_bench.benchmarks.base_rl import RLBenchmark
from nap_bench.spec import nearest

CHANGES = ("actions", "contrast", "flip", "pixels", "wind")


@dataclass(frozen=True, kw_only=True)
class CatchSequence(RLBenchmark):
    """`num_variants` variants of Catch, one after another, `cycles` times, `steps_per_visit` steps each; every seed has its own.

    A ball falls one row a step, the paddle in the last row moves left, stays or moves right: reward 1 for a catch, -1 for a miss.
    changes: what is drawn anew for every visit: what the actions do, the frame's contrast, its mirroring, where each pixel is
      shown, the wind that the ball drifts with.  frame_shape: rows and columns.
    """

    name: ClassVar[str] = "catch"
    environments: ClassVar[str] = "pixels"

    num_variants: int
    steps_per_visit: int
    cycles: int = 1
    frame_shape: tuple[int, int] = (10, 5)
    changes: tuple[str, ...] = CHANGES

    num_envs: int = 4
    capacity: int = 10_000
    min_fill: int = 400
    stack: int = 1
    v_min: float = -1.0
    v_max: float = 1.0
    target_period: int = 50
    bins_per_visit: int = 4
    eval_steps: int = 50
    eval_envs: int = 16

    def __post_init__(self) -> None:
        for name in ("frame_shape", "changes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for change in self.changes:
            if change not in CHANGES:
                raise ValueError(nearest(change, CHANGES, "change of catch"))
        height, width = self.frame_shape
        if width < 2 or height - 1 < width // 2:
            raise ValueError(
                f"catch wants at least 2 columns and rows enough for the paddle to reach every ball; found {self.frame_shape}."
            )
        if self.num_variants < 1 or self.cycles < 1:
            raise ValueError(
                f"catch wants num_variants >= 1 and cycles >= 1; found {self.num_variants} and {self.cycles}."
            )
        super().__post_init__()

    @property
    def num_visits(self) -> int:
        return 1 if self.first_visit else self.num_variants * self.cycles

    @property
    def num_actions(self) -> int:
        return 3

    def variant(self, visit: int) -> int:
        return visit % self.num_variants

    def label(self, visit: int) -> str:
        return f"variant {self.variant(visit)}"
