"""Regression on bits of which some change slowly (Dohare et al. 2024, "bit-flipping"; a batch of one).

Shape suffixes: S seeds, B batch, T steps, N examples, M inputs, F units of the target network.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nap_bench.benchmarks.base import SupervisedBenchmark
from nap_bench.rng import generator

STEPS_PER_CHUNK = 1000
"""Examples are drawn for this many steps of a task at a time."""

EXAMPLES_PER_PIECE = 100
"""Examples of every seed that the target network answers at once."""


@dataclass(frozen=True, eq=False)  # equal only to itself
class Place:
    """Examples are drawn, not loaded: where to put them."""

    inputs: Tensor  # empty, on the device


class Target(NamedTuple):
    """A layer of linear threshold units and their sum, all weights +-1, every seed with its own."""

    weight_SMF: Tensor
    bias_SF: Tensor
    threshold_SF: Tensor
    out_weight_SF: Tensor
    out_bias_S: Tensor


@dataclass(frozen=True)
class SlowlyChangingRegression(SupervisedBenchmark):
    """Predict the output of a fixed network of threshold units on `num_inputs` bits, by squared error.

    The first `num_slow` bits are drawn anew before every update whose number is a multiple of `steps_per_task` and stay until the
    next; the others are drawn for every example. Nothing tells the learner. The target network has `num_units` hidden units:

        y = b' + sum_i w'_i [ w_i x + b_i > tau_i ],   tau_i = beta (M + 1) - (M - sum_j w_ij + b_i) / 2

    with all w, b, w', b' uniform over {-1, 1}, as in the authors' code. The learner that they use is smaller (5 hidden
    units), so it
    never fits, and has to track. Theirs: num_tasks=100 and all defaults, errors averaged over 20,000 updates; SGD or Adam at 0.01,
    0.003 and 0.001; weights by `init="he_uniform"`. The metric is `online/loss`: there are no classes and no accuracy.

    flip_one: only one of the slow bits changes, to its opposite, drawn for the task; theirs with num_tasks=300.
    eval_examples: of how many examples of the task, drawn for evaluation, loss and diagnostics are taken at its end.
    first_task: the number of the first task, which meets fresh parameters, as in random_labels.
    """

    name: ClassVar[str] = "slowly_changing_regression"
    has_classes: ClassVar[bool] = False

    num_tasks: int
    steps_per_task: int = 10_000
    num_inputs: int = 20
    num_slow: int = 15
    num_units: int = 100
    beta: float = 0.7
    flip_one: bool = False
    batch_size: int = 1
    eval_examples: int = 1000
    first_task: int = 0

    def __post_init__(self) -> None:
        sizes = ("num_tasks", "steps_per_task", "num_units", "batch_size", "eval_examples")
        for field, least in {**dict.fromkeys(sizes, 1), "num_inputs": 2, "num_slow": 1, "first_task": 0}.items():
            if getattr(self, field) < least:
                raise ValueError(f"{self.name} wants {field} >= {least}; found {getattr(self, field)}.")
        if self.num_slow >= self.num_inputs:
            raise ValueError(
                f"{self.name} wants num_slow < num_inputs = {self.num_inputs}; found {self.num_slow}: nothing would vary within "
                "a task."
            )
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"{self.name} wants beta in [0, 1]; found {self.beta}.")

    @property
    def num_steps(self) -> int:
        return self.num_tasks * self.steps_per_task

    @property
    def shapes(self) -> tuple[tuple[int, ...], int]:
        return (self.num_inputs,), 1

    def task_at(self, step: int) -> int:
        return self.first_task + step // self.steps_per_task

    def load(self, data_dir: str | None, device: str) -> Place:
        return Place(torch.empty(0, device=device))

    @lru_cache(maxsize=1)  # noqa: B019 (keyed by value, a frozen dataclass; one block)
    def target(self, seeds: tuple[int, ...]) -> Target:
        """Every seed's network, on the CPU."""
        shapes = ((self.num_inputs, self.num_units), (self.num_units,), (self.num_units,), ())
        drawn = []
        for seed in seeds:
            stream = generator(seed, "target")
            drawn.append([2.0 * torch.randint(2, shape, generator=stream) - 1.0 for shape in shapes])
        weight_SMF, bias_SF, out_weight_SF, out_bias_S = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        num_negative_SF = (self.num_inputs - weight_SMF.sum(dim=1) + bias_SF) / 2.0
        threshold_SF = self.beta * (self.num_inputs + 1) - num_negative_SF
        return Target(weight_SMF, bias_SF, threshold_SF, out_weight_SF, out_bias_S)

    def answers(self, seeds: tuple[int, ...], x_SNM: Tensor) -> Tensor:
        """y [S, N]. Sums are of whole numbers, exact in any order and in pieces small enough for a cache."""
        of = self.target(seeds)
        answers = []
        for piece in x_SNM.split(EXAMPLES_PER_PIECE, dim=1):
            sums_SNF = torch.baddbmm(of.bias_SF.unsqueeze(1), piece, of.weight_SMF)
            active_SNF = sums_SNF.gt_(of.threshold_SF.unsqueeze(1))
            answers.append(active_SNF.mul_(of.out_weight_SF.unsqueeze(1)).sum(dim=2))
        return torch.cat(answers, dim=1) + of.out_bias_S.unsqueeze(1)

    def slow_bits(self, seed: int, task: int) -> Tensor:
        """[num_slow] of 0 and 1: what a task's examples share."""
        if not self.flip_one:
            return torch.randint(2, (self.num_slow,), generator=generator(seed, "slow", task)).float()
        bits = torch.randint(2, (self.num_slow,), generator=generator(seed, "slow", 0)).float()
        for switch in range(1, task + 1):
            flipped = torch.randint(self.num_slow, (), generator=generator(seed, "flip", switch))
            bits[flipped] = 1.0 - bits[flipped]
        return bits

    def _examples(self, seeds: tuple[int, ...], task: int, num: int, purpose: str, *counters: int) -> Tensor:
        """x [S, N, M] of a task."""
        examples = []
        for seed in seeds:
            shape = (num, self.num_inputs - self.num_slow)
            fast = torch.randint(2, shape, generator=generator(seed, purpose, task, *counters)).float()
            examples.append(torch.cat([self.slow_bits(seed, task).expand(num, -1), fast], dim=1))
        return torch.stack(examples)

    @lru_cache(maxsize=1)  # noqa: B019 (as above; one chunk)
    def _chunk(self, seeds: tuple[int, ...], task: int, chunk: int, device: torch.device):
        """Batches (x [S, B, M], y [S, B]) of the steps of a chunk, drawn and answered at once on the CPU."""
        num_steps = min(STEPS_PER_CHUNK, self.steps_per_task)
        x_SNM = self._examples(seeds, task, num_steps * self.batch_size, "fast", chunk)
        y_SN = self.answers(seeds, x_SNM)
        by_step = (part.unflatten(1, (num_steps, -1)).transpose(0, 1).contiguous() for part in (x_SNM, y_SN))
        return list(zip(*(part.to(device).unbind() for part in by_step), strict=True))

    def batch(self, data: Place, seeds: tuple[int, ...], step: int) -> tuple[Tensor, Tensor]:
        task, within = divmod(step, self.steps_per_task)
        chunk, row = divmod(within, STEPS_PER_CHUNK)
        return self._chunk(seeds, self.first_task + task, chunk, data.inputs.device)[row]

    def loss(self, out_SBK: Tensor, y_SB: Tensor) -> Tensor:
        """[S]: squared error, not halved."""
        if self.batch_size == 1:  # an update takes no longer than its calls: two fewer
            return F.mse_loss(out_SBK.flatten(), y_SB.flatten(), reduction="none")
        return F.mse_loss(out_SBK.squeeze(2), y_SB, reduction="none").mean(dim=1)

    def eval_steps(self) -> frozenset[int]:
        return frozenset((task + 1) * self.steps_per_task for task in range(self.num_tasks))

    @torch.no_grad()
    def evaluate(self, state, data: Place) -> dict[str, Tensor]:
        """Loss [S] on examples of the task of the last update done, and post-activations `acts`."""
        x_SNM = self._examples(state.seeds, self.task_at(state.step - 1), self.eval_examples, "probe")
        y_SN = self.answers(state.seeds, x_SNM)
        acts: dict[str, Tensor] = {}
        out_SNK = state.forward(x_SNM.to(data.inputs.device), acts)
        errors_SN = (out_SNK.squeeze(2) - y_SN.to(out_SNK.device)).square()
        loss_S = torch.stack(
            [errors_N.mean() for errors_N in errors_SN]
        )  # mean(dim=1) gives other bits in a block than alone
        return {"loss": loss_S, "acts": acts}
