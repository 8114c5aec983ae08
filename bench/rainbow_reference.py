"""A plain Rainbow: one environment, one seed, torch.nn and numpy. A second implementation, which imports nothing of nap_bench.

What bench/rainbow.py races against and tests compare with. From the papers (Hessel et al. 2018 and what it combines) and the
protocol of DQN Zoo; numbers in `Settings` are DQN Zoo's.

    network = Network((4, 84, 84), num_actions=6, generator=torch.Generator().manual_seed(0))
    agent = Agent(network, num_steps=50_000_000, seed=0)
    for episode_return in train(agent, environment, seed=0):     # one agent step each; None but at an episode's end
        ...

Shape suffixes: B batch, C stacked frames, H W, A actions, N atoms, I inputs, O outputs of a layer.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

NATURE = dict(channels=(32, 64, 64), kernels=(8, 4, 3), strides=(4, 2, 1), hidden=512)
"""Mnih et al. 2015."""
DATA_EFFICIENT = dict(channels=(32, 64), kernels=(5, 5), strides=(5, 5), hidden=256)
"""van Hasselt et al. 2019."""
NO_TORSO = dict(channels=(), kernels=(), strides=(), hidden=64)
"""The flattened frames feed the heads: tiny games."""
Noise = dict[str, tuple[Tensor, Tensor]]
"""Noisy layer -> (on its inputs [I], on its outputs [O]), both f(eps) = sign(eps) sqrt|eps| already."""


@dataclass(frozen=True)
class Settings:
    """DQN Zoo's Rainbow. A step is an agent's step, four frames."""

    v_min: float = -10.0
    v_max: float = 10.0
    num_atoms: int = 51
    discount: float = 0.99
    num_steps_return: int = 3
    batch_size: int = 32
    learn_period_steps: int = 4
    target_period_steps: int = 8_000
    capacity: int = 1_000_000
    min_fill: int = 20_000
    priority_exponent: float = 0.5
    max_priority: float = 100.0
    uniform_mix: float = 1e-3
    is_exponent: float = 0.4
    final_is_exponent: float = 1.0
    lr: float = 6.25e-5
    adam_eps: float = 0.005 / 32
    clip_norm: float = 10.0
    max_abs_reward: float = 1.0


class Transition(NamedTuple):
    """One transition, or with a leading axis [B] a batch of them. Of n steps, r_t is their return and discount_t their product."""

    s_tm1: Any
    a_tm1: Any
    r_t: Any
    discount_t: Any
    s_t: Any


# --- network --------------------------------------------------------------------------------------------------------


def scaled_noise(size: int, generator: torch.Generator) -> Tensor:
    """f(eps) [size], eps from a standard normal truncated to [-2, 2] and not rescaled (Fortunato et al. 2018; DQN Zoo)."""
    eps = nn.init.trunc_normal_(torch.empty(size), 0.0, 1.0, -2.0, 2.0, generator=generator)
    return eps.sign() * eps.abs().sqrt()


class NoisyLinear(nn.Module):
    """mu(x) + sigma(x * e_in) * e_out. The sigma part always has a bias; the mu part has one if `bias`."""

    def __init__(self, num_inputs: int, num_outputs: int, *, sigma: float, bias: bool):
        super().__init__()
        self.mu = nn.Linear(num_inputs, num_outputs, bias=bias)  # U(+-1/sqrt(fan_in)), weights and bias
        self.sigma = nn.Linear(num_inputs, num_outputs)
        for parameter in self.sigma.parameters():
            nn.init.constant_(parameter, sigma / num_inputs**0.5)

    def forward(self, x_BI: Tensor, noise: tuple[Tensor, Tensor]) -> Tensor:
        noise_I, noise_O = noise
        return self.mu(x_BI) + self.sigma(x_BI * noise_I) * noise_O

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return scaled_noise(self.mu.in_features, generator), scaled_noise(self.mu.out_features, generator)


class Network(nn.Module):
    """Torso, then two noisy streams, then logits of C51 [B, A, N]: value + advantage - mean over actions of advantage.

    layer_norm: LayerNorm before every nonlinearity but the final softmax: over (C, H, W) with scale and offset per channel
    after a convolution, over units after a hidden noisy layer; the mu biases in front of it are dropped.
    """

    def __init__(
        self,
        frames: tuple[int, int, int],
        num_actions: int,
        *,
        channels: tuple[int, ...] = (32, 64, 64),
        kernels: tuple[int, ...] = (8, 4, 3),
        strides: tuple[int, ...] = (4, 2, 1),
        hidden: int = 512,
        num_atoms: int = 51,
        sigma: float = 0.1,
        layer_norm: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.num_actions, self.num_atoms = num_actions, num_atoms
        torso: list[nn.Module] = []
        num_channels, height, width = frames
        for out, kernel, stride in zip(channels, kernels, strides, strict=True):
            torso.append(nn.Conv2d(num_channels, out, kernel, stride, bias=not layer_norm))
            torso += [nn.GroupNorm(1, out)] if layer_norm else []
            torso.append(nn.ReLU())
            num_channels = out
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.torso = nn.Sequential(*torso, nn.Flatten())
        features = num_channels * height * width
        self.advantage_hidden = NoisyLinear(features, hidden, sigma=sigma, bias=not layer_norm)
        self.value_hidden = NoisyLinear(features, hidden, sigma=sigma, bias=not layer_norm)
        self.advantage_norm = nn.LayerNorm(hidden) if layer_norm else nn.Identity()
        self.value_norm = nn.LayerNorm(hidden) if layer_norm else nn.Identity()
        self.advantage = NoisyLinear(hidden, num_actions * num_atoms, sigma=sigma, bias=False)
        self.value = NoisyLinear(hidden, num_atoms, sigma=sigma, bias=False)
        if generator is not None:
            self._draw_weights(generator)

    def _draw_weights(self, generator: torch.Generator) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                bound = (layer.weight[0].numel()) ** -0.5
            elif isinstance(layer, NoisyLinear):
                layer, bound = layer.mu, layer.mu.in_features**-0.5
            else:
                continue
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def noisy_layers(self) -> dict[str, NoisyLinear]:
        return {name: layer for name, layer in self.named_modules() if isinstance(layer, NoisyLinear)}

    def draw_noise(self, generator: torch.Generator) -> Noise:
        """One draw for every noisy layer, shared by the rows of a batch."""
        return {name: layer.draw(generator) for name, layer in self.noisy_layers().items()}

    def forward(self, frames_BCHW: Tensor, noise: Noise) -> Tensor:
        """Logits [B, A, N] of frames uint8, or of floats in [0, 1]."""
        if frames_BCHW.dtype == torch.uint8:
            frames_BCHW = frames_BCHW.float() / 255
        features = self.torso(frames_BCHW)
        advantage = F.relu(self.advantage_norm(self.advantage_hidden(features, noise["advantage_hidden"])))
        value = F.relu(self.value_norm(self.value_hidden(features, noise["value_hidden"])))
        advantage_BAN = self.advantage(advantage, noise["advantage"]).view(-1, self.num_actions, self.num_atoms)
        value_BN = self.value(value, noise["value"])
        return value_BN.unsqueeze(1) + advantage_BAN - advantage_BAN.mean(dim=1, keepdim=True)


# --- loss -----------------------------------------------------------------------------------------------------------


def project(probabilities_BN: Tensor, r_B: Tensor, discount_B: Tensor, support_N: Tensor) -> Tensor:
    """Distribution [B, N] of r + discount * z, z ~ probabilities, on the support again.

    Bellemare et al. 2017, algorithm 1: each atom's mass goes to its two neighbours, in proportion to nearness.
    """
    num_atoms = len(support_N)
    v_min, v_max = support_N[0], support_N[-1]
    target_BN = (r_B.unsqueeze(1) + discount_B.unsqueeze(1) * support_N).clamp(v_min, v_max)
    place_BN = (target_BN - v_min) / (v_max - v_min) * (num_atoms - 1)
    below_BN = place_BN.floor().clamp(0, num_atoms - 2)
    upper_BN = place_BN - below_BN
    projected_BN = torch.zeros_like(probabilities_BN)
    projected_BN.scatter_add_(1, below_BN.long(), probabilities_BN * (1 - upper_BN))
    projected_BN.scatter_add_(1, below_BN.long() + 1, probabilities_BN * upper_BN)
    return projected_BN


def loss_and_priorities(
    network: Network,
    target: Network,
    batch: Transition,
    weights_B: Tensor,
    noises: tuple[Noise, Noise, Noise],
    support_N: Tensor,
    max_priority: float = Settings.max_priority,
) -> tuple[Tensor, Tensor]:
    """Mean of weighted cross-entropies, and priorities [B]: the cross-entropies themselves, unweighted, in [0, max_priority].

    noises: of the network at s_tm1, of the network at s_t (which chooses the action), of the target at s_t (which values it).
    """
    at_tm1, at_t, of_target = noises
    rows = torch.arange(len(batch.a_tm1))
    log_p_BN = F.log_softmax(network(batch.s_tm1, at_tm1), dim=2)[rows, batch.a_tm1]
    with torch.no_grad():
        q_BA = (F.softmax(network(batch.s_t, at_t), dim=2) * support_N).sum(dim=2)
        next_BN = F.softmax(target(batch.s_t, of_target), dim=2)[rows, q_BA.argmax(dim=1)]
        label_BN = project(next_BN, batch.r_t, batch.discount_t, support_N)
    losses_B = -(label_BN * log_p_BN).sum(dim=1)
    return (weights_B * losses_B).mean(), losses_B.detach().clamp(0, max_priority)


# --- replay ---------------------------------------------------------------------------------------------------------


class NStep:
    """Turns an episode's steps into transitions of n steps, and at its end of n - 1, ..., 1 too."""

    def __init__(self, n: int):
        self.n = n
        self.steps: deque[Transition] = deque()

    def add(self, step: Transition, *, last: bool) -> list[Transition]:
        """Transitions that this step completes. step.discount_t: 0 if nothing is to be expected after it, else the discount.

        last: whether the episode ends here, by termination (discount 0) or by its time limit (discount kept: it bootstraps).
        """
        self.steps.append(step)
        made = []
        while self.steps and (last or len(self.steps) == self.n):
            made.append(self._sum())
            self.steps.popleft()
        return made

    def _sum(self) -> Transition:
        r_t, discount_t = 0.0, 1.0
        for step in self.steps:
            r_t += discount_t * step.r_t
            discount_t *= step.discount_t
        return self.steps[0]._replace(r_t=r_t, discount_t=discount_t, s_t=self.steps[-1].s_t)


class SumTree:
    """A heap of float64: leaves are values >= 0, every other node is the sum of its two children."""

    def __init__(self, capacity: int):
        self.first_leaf = 1 << max(1, (capacity - 1).bit_length())
        self.nodes = np.zeros(2 * self.first_leaf)

    @property
    def total(self) -> float:
        return float(self.nodes[1])

    def get(self, index: np.ndarray) -> np.ndarray:
        return self.nodes[self.first_leaf + index]

    def set(self, index: np.ndarray, values: np.ndarray) -> None:
        """Sums are made again from children, so rounding does not add up. Of an index given twice the last value holds."""
        node = self.first_leaf + np.asarray(index)
        self.nodes[node] = values
        while node[0] > 1:
            node = np.unique(node // 2)
            self.nodes[node] = self.nodes[2 * node] + self.nodes[2 * node + 1]

    def find(self, mass: np.ndarray) -> np.ndarray:
        """Index whose interval of the cumulated values holds each mass in [0, total)."""
        mass = np.array(mass, dtype=np.float64)
        node = np.ones(len(mass), dtype=np.int64)
        while node[0] < self.first_leaf:
            left = self.nodes[2 * node]
            goes_right = (mass >= left) & (self.nodes[2 * node + 1] > 0)
            mass = np.where(goes_right, mass - left, mass)
            node = 2 * node + goes_right
        return node - self.first_leaf


class Replay:
    """The last `capacity` transitions; an item is drawn with probability proportional to priority**exponent, mixed with uniform.

    Observations are kept by reference, not copied: whoever adds them must not change them.
    """

    def __init__(self, capacity: int, *, exponent: float = 0.5, uniform_mix: float = 1e-3):
        self.capacity, self.exponent, self.uniform_mix = capacity, exponent, uniform_mix
        self.items: list[Transition] = []
        self.num_added = 0
        self.largest_priority = 1.0
        self.tree = SumTree(capacity)

    def __len__(self) -> int:
        return len(self.items)

    def add(self, item: Transition) -> None:
        """With the largest priority seen so far."""
        index = self.num_added % self.capacity
        if index < len(self.items):
            self.items[index] = item
        else:
            self.items.append(item)
        self.tree.set(np.array([index]), np.array([self.largest_priority**self.exponent]))
        self.num_added += 1

    def probabilities(self, index: np.ndarray) -> np.ndarray:
        return (1 - self.uniform_mix) * self.tree.get(index) / self.tree.total + self.uniform_mix / len(self)

    def sample(self, size: int, generator: np.random.Generator) -> tuple[Transition, np.ndarray, np.ndarray]:
        """A batch as tensors, indices [B] and the probability [B] that each had."""
        by_priority = self.tree.find(generator.random(size) * self.tree.total)
        at_random = generator.integers(len(self), size=size)
        index = np.where(generator.random(size) < self.uniform_mix, at_random, by_priority)
        s_tm1, a_tm1, r_t, discount_t, s_t = zip(*(self.items[i] for i in index), strict=True)
        batch = Transition(
            torch.from_numpy(np.stack(s_tm1)),
            torch.tensor(a_tm1),
            torch.tensor(r_t, dtype=torch.float32),
            torch.tensor(discount_t, dtype=torch.float32),
            torch.from_numpy(np.stack(s_t)),
        )
        return batch, index, self.probabilities(index)

    def weights(self, probabilities: np.ndarray, is_exponent: float) -> Tensor:
        """Importance weights [B], the largest of the batch 1."""
        weights = (1 / (len(self) * probabilities)) ** is_exponent
        return torch.from_numpy(weights / weights.max()).float()

    def set_priorities(self, index: np.ndarray, priorities: np.ndarray) -> None:
        self.largest_priority = max(self.largest_priority, float(priorities.max()))
        self.tree.set(index, np.asarray(priorities, dtype=np.float64) ** self.exponent)


# --- agent ----------------------------------------------------------------------------------------------------------


class Agent:
    """Acts, remembers, learns. num_steps: agent steps of the whole training, over which the importance exponent rises."""

    def __init__(self, network: Network, *, num_steps: int, seed: int, settings: Settings | None = None):
        self.settings = settings or Settings()
        self.network, self.target = network, copy.deepcopy(network)
        self.support_N = torch.linspace(self.settings.v_min, self.settings.v_max, self.settings.num_atoms)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=self.settings.lr, eps=self.settings.adam_eps)
        self.replay = Replay(
            self.settings.capacity, exponent=self.settings.priority_exponent, uniform_mix=self.settings.uniform_mix
        )
        self.n_step = NStep(self.settings.num_steps_return)
        self.num_steps, self.num_steps_done, self.num_updates = num_steps, 0, 0
        self.before: tuple[np.ndarray, int] | None = None
        self.noise = torch.Generator().manual_seed(seed)
        self.draws = np.random.default_rng(seed)

    @torch.no_grad()
    def act(self, frames_CHW: np.ndarray) -> int:
        """The greedy action, under fresh noise."""
        logits = self.network(torch.from_numpy(frames_CHW).unsqueeze(0), self.network.draw_noise(self.noise))
        return int((F.softmax(logits, dim=2) * self.support_N).sum(dim=2).argmax())

    def step(
        self, frames: np.ndarray, reward: float = 0.0, discount: float = 1.0, *, first: bool = False, last: bool = False
    ) -> int:
        """What to do at `frames`; the step that led here is remembered, and then it may be time to learn. DQN Zoo's order.

        reward: raw.  discount: 0 after a termination or a lost life, else 1.  first: nothing led here.  last: the action is
        for nothing, and the next call is the `first` of another episode.
        """
        action = self.act(frames)
        if not first:
            clipped = float(np.clip(reward, -self.settings.max_abs_reward, self.settings.max_abs_reward))
            led_here = Transition(*self.before, clipped, discount * self.settings.discount, frames)
            for item in self.n_step.add(led_here, last=last):
                self.replay.add(item)
        self.before = frames, action
        self.num_steps_done += 1
        if len(self.replay) >= self.settings.min_fill:
            if self.num_steps_done % self.settings.learn_period_steps == 0:
                self.learn()
            if self.num_steps_done % self.settings.target_period_steps == 0:
                self.target.load_state_dict(self.network.state_dict())
        return action

    def is_exponent(self) -> float:
        """Straight line over the transitions added, from `min_fill` to the end of training."""
        first, last = self.settings.min_fill, self.num_steps
        progress = min(1.0, max(0.0, (self.replay.num_added - first) / (last - first)))
        return self.settings.is_exponent + progress * (self.settings.final_is_exponent - self.settings.is_exponent)

    def learn(self) -> Tensor:
        """One update; its loss."""
        batch, index, probabilities = self.replay.sample(self.settings.batch_size, self.draws)
        weights_B = self.replay.weights(probabilities, self.is_exponent())
        noises = tuple(self.network.draw_noise(self.noise) for _ in range(3))
        loss, priorities_B = loss_and_priorities(
            self.network, self.target, batch, weights_B, noises, self.support_N, self.settings.max_priority
        )
        self.optimizer.zero_grad()
        loss.backward()
        clip_gradients(self.network, self.settings.clip_norm)
        self.optimizer.step()
        self.replay.set_priorities(index, priorities_B.numpy())
        self.num_updates += 1
        return loss.detach()


def clip_gradients(network: nn.Module, most: float) -> None:
    """Gradients scaled down together so that their joint norm is at most `most`."""
    gradients = [parameter.grad for parameter in network.parameters()]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    if norm > most:
        for gradient in gradients:
            gradient.mul_(most / norm)


def train(agent: Agent, environment: Any, seed: int) -> Iterator[float | None]:
    """Steps without end: yields the raw return where an episode ended, None elsewhere.

    environment: gymnasium's `reset(seed=...) -> (frames [C, H, W] uint8, info)` and `step(action) -> (frames, reward,
    terminated, truncated, info)`. A life lost (info["lives"], where there is such an entry) has discount 0 and ends nothing.
    """
    frames, info = environment.reset(seed=seed)
    while True:
        action = agent.step(frames, first=True)
        episode_return, last = 0.0, False
        while not last:
            lives = info.get("lives", 0)
            frames, reward, terminated, truncated, info = environment.step(action)
            lost_life = info.get("lives", 0) < lives
            episode_return, last = episode_return + float(reward), terminated or truncated
            action = agent.step(frames, reward, 0.0 if terminated or lost_life else 1.0, last=last)
            yield episode_return if last else None
        frames, info = environment.reset()
