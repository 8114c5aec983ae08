"""Rainbow's acting and learning (Hessel et al. 2018, arXiv 1710.02298, with DQN Zoo's settings): no environment, no replay.

Shape suffixes: S seeds, E environments of a seed, B batch, C stacked frames, H W, A actions, N atoms of the support, K entries of
noise, R draws of it. Time suffixes: s_tm1, a_tm1 are where a transition starts; r_t, discount_t, s_t what came of it.

Everything runs on the state's device without waiting for it, so a CUDA graph may hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nap_bench import update
from nap_bench.methods.base import Stack
from nap_bench.rng import generator
from nap_bench.state import TrainState

AHEAD = 16
"""Draws of noise that are made at once: a generator is not constructed for every one."""

TRUNCATION, RESOLUTION = 2.0, 2**16


def quantiles() -> Tensor:
    """f(e) = sign(e) sqrt|e| of `RESOLUTION` equally likely values e of a standard normal variable within +-TRUNCATION.

    Each e is the middle, in probability, of its share; they are at most 3e-4 apart. Cut off, not rescaled: E e^2 = 0.774.
    """
    low = torch.special.ndtr(torch.tensor(-TRUNCATION, dtype=torch.float64))
    shares = (torch.arange(RESOLUTION, dtype=torch.float64) + 0.5) / RESOLUTION
    e = torch.special.ndtri(low + shares * (1.0 - 2.0 * low))
    return (e.sign() * e.abs().sqrt()).float()


class NoiseStream:
    """Noise for noisy layers, a pure function of (seed, purpose, counter), the same on every device.

    num_draws: independent draws per counter: one per environment, or one per forward of an update.
    """

    def __init__(self, purpose: str, state: TrainState, num_draws: int):
        self.purpose, self.seeds, self.num_draws = purpose, state.seeds, num_draws
        self.num_noise, self.like = state.model.num_noise, state.flat.detach()
        self._quantiles = quantiles()
        self._at, self._block = -1, torch.empty(0)

    def at(self, counter: int) -> Tensor:
        """[S, R, K] for one act or update."""
        block, row = divmod(counter, AHEAD)
        if block != self._at:
            drawn = torch.stack([self._draw(seed, block) for seed in self.seeds], dim=1)
            self._block, self._at = drawn.to(self.like, non_blocking=True), block
        return self._block[row]

    def _draw(self, seed: int, block: int) -> Tensor:
        """[AHEAD, R, K]: sixteen random bits choose each, four of them from every 64."""
        shape = (AHEAD, self.num_draws, self.num_noise)
        words = torch.empty(torch.Size(shape).numel() // 4, dtype=torch.int64)
        words.random_(-(2**63), None, generator=generator(seed, self.purpose, block))
        chosen = words.view(torch.int16).int() + RESOLUTION // 2
        return self._quantiles.index_select(0, chosen).view(shape)


class Batch(NamedTuple):
    """Transitions over n steps: r_t is the discounted sum of their rewards, discount_t the product of their discounts."""

    s_tm1: Tensor
    """uint8 [S, B, C, H, W]"""
    a_tm1: Tensor
    """int64 [S, B]"""
    r_t: Tensor
    """float32 [S, B]"""
    discount_t: Tensor
    """float32 [S, B]"""
    s_t: Tensor
    """uint8 [S, B, C, H, W]"""
    weights: Tensor
    """float32 [S, B], of importance sampling"""


def project(probs_SBN: Tensor, r_t: Tensor, discount_t: Tensor, support: Tensor) -> Tensor:
    """The distribution of r + discount Z on the support, [S, B, N] (Bellemare et al. 2017, arXiv 1707.06887, equation 7).

        m_j = sum_i p_i max(0, 1 - |Tz_i - z_j| / dz),   Tz_i = r + discount z_i, cut to the support

    probs_SBN: of Z at the atoms.  r_t, discount_t [S, B].  support [N]: equally spaced atoms, ascending.
    Dense: no scatter, hence the same bits at every call, and whole positions are no special case.
    """
    last = len(support) - 1
    dz = (support[-1] - support[0]) / last
    moved_SBN = torch.addcmul(r_t.unsqueeze(2), discount_t.unsqueeze(2), support)
    position_SBN = moved_SBN.sub_(support[0]).div_(dz).clamp_(0.0, last)
    atoms_N = torch.arange(last + 1, device=support.device, dtype=support.dtype)
    away_SBNN = torch.sub(position_SBN.unsqueeze(3), atoms_N).abs_()
    return torch.matmul(probs_SBN.unsqueeze(2), away_SBNN.neg_().add_(1.0).clamp_(min=0.0)).squeeze(2)


def scaled(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Stacks [S, B, C, H, W] of uint8 as floats in [0, 1]; on a CPU laid out once as every first convolution wants them."""
    if frames.device.type != "cpu":
        return frames.to(dtype).div_(255.0)
    channels = frames.flatten(0, 1).unbind(1)
    laid_out = torch.empty(len(channels[0]), *frames.shape[3:], len(channels), dtype=dtype)
    for index, channel in enumerate(channels):  # four copies of planes: three times faster than one that permutes
        laid_out[..., index] = channel
    return laid_out.div_(255.0).permute(0, 3, 1, 2).unflatten(0, frames.shape[:2])


def taken(logits: Tensor, actions_SB: Tensor) -> Tensor:
    """Logits [S, B, N] of one action each, out of [S, B, A, N]."""
    index = actions_SB[:, :, None, None].expand(-1, -1, 1, logits.shape[3])
    return logits.gather(2, index).squeeze(2)


@dataclass(frozen=True)
class Agent:
    """What Rainbow does with a network.

    v_min, v_max: ends of the support of returns.  double: the online network chooses the action that the target network
    evaluates (van Hasselt et al. 2016); False lets the target network choose.
    """

    v_min: float = -10.0
    v_max: float = 10.0
    double: bool = True

    def __post_init__(self) -> None:
        if not self.v_min < self.v_max:
            raise ValueError(f"A Rainbow agent wants v_min < v_max; found {self.v_min} and {self.v_max}.")

    def support(self, logits: Tensor) -> Tensor:
        """The atoms [N]."""
        return torch.linspace(self.v_min, self.v_max, logits.shape[-1], device=logits.device, dtype=logits.dtype)

    def greedy(self, logits: Tensor) -> Tensor:
        """The actions [S, B] of highest expected return; of equal ones, the first."""
        return (logits.softmax(dim=-1) * self.support(logits)).sum(dim=-1).argmax(dim=-1)

    @torch.no_grad()
    def act(self, state: TrainState, frames_SECHW: Tensor, noise_SEK: Tensor) -> Tensor:
        """Actions [S, E], greedy under one draw of noise per environment. frames_SECHW: uint8 stacks."""
        return self.greedy(state.forward(scaled(frames_SECHW, state.flat.dtype), noise=noise_SEK))

    def losses(
        self, state: TrainState, stack: Stack, target: nn.Module, batch: Batch, noise_S3K: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss [S] that is trained on, and the cross-entropies [S, B], unweighted and detached, that become priorities.

        target: a twin of the network.  noise_S3K: draws for the online network at s_tm1, at s_t, and the target network at s_t.
        Cross-entropies that are not finite, which make a seed diverge, are 1 among the priorities.
        """
        now, then, evaluate = noise_S3K.split(1, dim=1)
        with torch.no_grad():
            s_t = scaled(batch.s_t, state.flat.dtype)
            target_logits = target(s_t, noise=evaluate)
            chooser = state.forward(s_t, noise=then) if self.double else target_logits
            probs_SBN = taken(target_logits, self.greedy(chooser)).softmax(dim=-1)
            wanted_SBN = project(probs_SBN, batch.r_t, batch.discount_t, self.support(probs_SBN))
        logits = update.forward(state, stack, scaled(batch.s_tm1, state.flat.dtype), noise=now)
        losses_SB = -(wanted_SBN * taken(logits, batch.a_tm1).log_softmax(dim=-1)).sum(dim=-1)
        return (batch.weights * losses_SB).mean(dim=1), losses_SB.detach().nan_to_num(1.0, 1.0, 1.0)
