"""The random-walk model of ReLU revival (paper C.4, Figs. 11 and 12): pre-activations pushed by random gradients.

Shape suffixes: S seeds, W walks of a seed, D coordinates (units), C steps of a chunk. Everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.benchmarks.base import Benchmark
from nap_bench.rng import generator
from nap_bench.spec import nearest

NORMS = ("none", "identity", "centre", "rms", "layer")
RULES = ("gd", "sign")
STEPS_PER_CHUNK = 20
"""Noise is drawn for this many steps at a time, so that memory stays small."""


@dataclass(frozen=True)
class RandomWalk(Benchmark):
    """Vectors v from N(0, I), each pushed for `num_steps` steps by z from N(0, I) drawn anew at each step.

    Simulated, not learnt: no network, no data, no optimizer. The step size is the schedule's (the paper's: 1).

    norm: what stands before the ReLU, as f in J = d/dv max(f(v), 0), with the direction z^T J.
        "identity"  f(v) = v              "rms"    f(v) = v / ||v||, without sqrt(D), as in Prop. 1
        "centre"    f(v) = c = v - mean   "layer"  f(v) = c / ||c||
        "none"      no J: the direction is max(v, 0) * z, as the paper prints its rule without a norm.
    rule: "gd" adds the direction, "sign" its sign (RMSProp without memory).
    dim: D >= 4, so that no norm leaves directions that are zero but for rounding.
    num_walks: independent walks of a seed; what is recorded is about all of them, mostly a mean.
    probe_every: steps between two probes, a divisor of num_steps.
    """

    name: ClassVar[str] = "random_walk"
    loop: ClassVar[str] = "simulation"

    norm: str
    rule: str
    dim: int
    num_walks: int = 1
    num_steps: int = 1000
    probe_every: int = 20

    def __post_init__(self) -> None:
        for value, known, what in ((self.norm, NORMS, "norm"), (self.rule, RULES, "rule")):
            if value not in known:
                raise ValueError(nearest(value, known, f"{what} of random_walk"))
        sizes = (self.num_walks, self.num_steps, self.probe_every)
        if self.dim < 4 or min(sizes) < 1 or self.num_steps % self.probe_every:
            raise ValueError(
                f"random_walk wants dim >= 4, positive sizes and a probe_every that divides num_steps; found {self}."
            )

    def start(self, seeds: tuple[int, ...]) -> Tensor:
        """v [S, W, D] before the first step."""
        shape = (self.num_walks, self.dim)
        generators = [generator(seed, "start") for seed in seeds]
        return torch.stack([torch.randn(shape, generator=stream, dtype=torch.float64) for stream in generators])

    @lru_cache(maxsize=1)  # noqa: B019  keyed by value, a frozen dataclass; one chunk
    def _chunk(self, seeds: tuple[int, ...], chunk: int, device: torch.device) -> Tensor:
        shape = (STEPS_PER_CHUNK, self.num_walks, self.dim)
        noise_CSWD = torch.empty(shape[0], len(seeds), *shape[1:], dtype=torch.float64)
        for index, seed in enumerate(seeds):
            noise_CSWD[:, index] = torch.randn(shape, generator=generator(seed, "noise", chunk), dtype=torch.float64)
        return noise_CSWD.to(device)

    def noise(self, seeds: tuple[int, ...], step: int, device: torch.device) -> Tensor:
        """z [S, W, D] of step number `step` (from 0): a function of (seed, step), the same for every norm and rule."""
        chunk, row = divmod(step, STEPS_PER_CHUNK)
        return self._chunk(seeds, chunk, device)[row]

    def advance(self, v_SWD: Tensor, seeds: tuple[int, ...], step: int, lr: float) -> Tensor:
        """v after step number `step`, which adds lr times the direction, or its sign."""
        direction_SWD = self.direction(v_SWD, self.noise(seeds, step, v_SWD.device))
        return v_SWD + lr * (direction_SWD.sign() if self.rule == "sign" else direction_SWD)

    def direction(self, v_SWD: Tensor, z_SWD: Tensor) -> Tensor:
        """z^T J in closed form; for the norm "none" max(v, 0) * z.

        With h the argument of the ReLU, u = h / ||h|| and g = [h > 0] * z: v / ||v|| has the symmetric Jacobian
        (I - u u^T) / ||v||, v - mean has I - 1 1^T / D. These projections commute: a centred u is orthogonal to 1.
        """
        if self.norm == "none":
            return v_SWD.clamp(min=0.0) * z_SWD
        h_SWD = self.argument(v_SWD)
        g_SWD = torch.where(h_SWD > 0, z_SWD, 0.0)
        if self.norm in ("centre", "layer"):
            g_SWD = g_SWD - g_SWD.mean(dim=-1, keepdim=True)
        if self.norm in ("rms", "layer"):
            length_SW1 = _length(h_SWD)
            u_SWD = h_SWD / length_SW1
            g_SWD = (g_SWD - u_SWD * (u_SWD * g_SWD).sum(dim=-1, keepdim=True)) / length_SW1
        return g_SWD

    def argument(self, v_SWD: Tensor) -> Tensor:
        """What the ReLU sees, up to a positive factor: v, less its mean where the norm centres."""
        return v_SWD - v_SWD.mean(dim=-1, keepdim=True) if self.norm in ("centre", "layer") else v_SWD

    def probe_steps(self) -> frozenset[int]:
        """Numbers of steps done at which `probe` is called; 0 is the start."""
        return frozenset(range(0, self.num_steps + 1, self.probe_every))

    def probe(self, v_SWD: Tensor) -> dict[str, Tensor]:
        """Name -> [S], means over walks unless said otherwise. h is the argument of the ReLU.

        negative_fraction: coordinates v_i < 0, what the paper counts.
        negative_spread: standard deviation of that over walks.
        inactive_fraction: units with h_i <= 0; the same thing unless the norm centres.
        none_active, one_active: walks (a fraction) with no, with exactly one active unit.
        largest_share: max |h_i| / ||h||, from 1 / sqrt(D) to 1.
        participation: (sum h_i^2)^2 / (D sum h_i^4), from 1 / D, where one coordinate has it all, to 1.
        """
        h_SWD = self.argument(v_SWD)
        share_SWD = (h_SWD / _length(h_SWD)) ** 2
        negative_SW = (v_SWD < 0).double().mean(dim=-1)
        num_active_SW = (h_SWD > 0).sum(dim=-1)
        over_walks = {
            "negative_fraction": negative_SW,
            "inactive_fraction": (h_SWD <= 0).double().mean(dim=-1),
            "none_active": (num_active_SW == 0).double(),
            "one_active": (num_active_SW == 1).double(),
            "largest_share": share_SWD.amax(dim=-1).sqrt(),
            "participation": 1.0 / (share_SWD**2).sum(dim=-1) / self.dim,
        }
        means = {f"probe/{name}": values_SW.mean(dim=1) for name, values_SW in over_walks.items()}
        from_mean_SW = negative_SW - negative_SW.mean(dim=1, keepdim=True)
        spread_S = from_mean_SW.square().mean(dim=1).sqrt()  # std() gives other bits in a block than alone
        return {**means, "probe/negative_spread": spread_S}


def _length(h_SWD: Tensor) -> Tensor:
    """2-norm [S, W, 1]."""
    return (h_SWD * h_SWD).sum(dim=-1, keepdim=True).sqrt()
