"""What every benchmark offers. A benchmark makes data; it neither trains nor regularises."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from nap_bench.spec import Component


class Data(Protocol):
    """A dataset on the device, whole."""

    inputs: Tensor


class SupervisedBenchmark(Component):
    """A stream of tasks. Shape suffixes: S seeds, B batch, N examples, D features, K classes.

    Data are a pure function of (seed, step): resuming, blocks of seeds and paired comparison need nothing else.
    """

    loop: ClassVar[str] = "supervised"
    resources: ClassVar[str] = "small"

    steps_per_task: int
    flow: bool = False
    """Whether every update is measured for the gradient-flow check (metrics/flow.py): it costs one copy of the parameters."""

    @property
    def num_steps(self) -> int:
        """Updates of a whole run."""
        raise NotImplementedError

    @property
    def shapes(self) -> tuple[tuple[int, ...], int]:
        """Shape of one input, number of outputs."""
        raise NotImplementedError

    @property
    def download(self) -> str | None:
        """The dataset in nap_bench.data that has to be on disk, None if what it needs comes with a dependency."""
        return None

    def task_at(self, step: int) -> int:
        """The task that the update number `step` (from 0) belongs to."""
        raise NotImplementedError

    def load(self, data_dir: str | None, device: str) -> Data:
        raise NotImplementedError

    def batch(self, data: Data, seeds: tuple[int, ...], step: int) -> tuple[Tensor, Tensor]:
        """(inputs [S, B, ...], targets [S, B]) of update number `step`; pure."""
        raise NotImplementedError

    def loss(self, out_SBK: Tensor, y_SB: Tensor) -> Tensor:
        """[S], without regularisation."""
        raise NotImplementedError

    def evaluate(self, state, data: Data) -> dict[str, Tensor]:
        """accuracy, loss and whatever else -> [S], and acts: layer -> post-activations, which the diagnostics read.

        Reads the state and leaves it, and every generator, as they were.
        """
        raise NotImplementedError

    def eval_steps(self) -> frozenset[int]:
        """Numbers of updates done at which `evaluate` is called."""
        raise NotImplementedError
