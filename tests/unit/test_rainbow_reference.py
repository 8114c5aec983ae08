"""The plain Rainbow of bench/: what other tests compare with has to be right by itself."""

from __future__ import annotations

import re
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import rainbow_reference as reference  # noqa: E402
from rainbow_reference import Agent, Network, NStep, Replay, Settings, SumTree, Transition  # noqa: E402

SUPPORT = torch.linspace(-10, 10, 51)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small_network(seed=0, **how):
    return Network((4, 5, 5), 3, **{**reference.NO_TORSO, "hidden": 16, **how}, generator=generator(seed))


def test_it_imports_nothing_of_the_suite():
    assert not re.search(r"(import|from)\s+nap_bench", (BENCH / "rainbow_reference.py").read_text())


# n-step


def steps(rewards, discounts):
    return [
        Transition(t, 10 + t, float(r), float(d), t + 1)
        for t, (r, d) in enumerate(zip(rewards, discounts, strict=True))
    ]


def test_an_episode_gives_one_transition_per_step_with_shorter_ones_at_its_end():
    n_step, g = NStep(3), 0.9
    episode = steps([1, 2, 4, 8], [g, g, g, 0])
    made = [n_step.add(step, last=step is episode[-1]) for step in episode]
    assert [len(found) for found in made] == [0, 0, 1, 3]
    assert [tuple(item) for item in sum(made, [])] == [
        (0, 10, pytest.approx(1 + g * 2 + g**2 * 4), pytest.approx(g**3), 3),
        (1, 11, pytest.approx(2 + g * 4 + g**2 * 8), 0.0, 4),
        (2, 12, pytest.approx(4 + g * 8), 0.0, 4),
        (3, 13, 8.0, 0.0, 4),
    ]


def test_a_time_limit_bootstraps_with_as_many_discounts_as_there_were_steps():
    n_step, g = NStep(3), 0.9
    made = [item for i, step in enumerate(steps([1, 1, 1], [g, g, g])) for item in n_step.add(step, last=i == 2)]
    assert [item.discount_t for item in made] == pytest.approx([g**3, g**2, g])
    assert {item.s_t for item in made} == {3}


def test_nothing_after_a_lost_life_counts_though_the_episode_goes_on():
    n_step, g = NStep(3), 0.9
    made = [item for step in steps([1, 2, 50, 60], [g, 0, g, g]) for item in n_step.add(step, last=False)]
    assert [(item.r_t, item.discount_t) for item in made] == [(1 + g * 2, 0.0), (2.0, 0.0)]


def test_no_transition_crosses_two_episodes():
    n_step = NStep(3)
    first, second = steps([1, 1], [1, 0]), steps([5, 5, 5, 5], [1, 1, 1, 1])
    made = [item for i, step in enumerate(first) for item in n_step.add(step, last=i == 1)]
    made += [item for step in second for item in n_step.add(step, last=False)]
    assert [item.r_t for item in made] == [2.0, 1.0, 15.0, 15.0]


# projection


def test_no_discount_leaves_one_atom_and_a_reward_between_atoms_is_shared_by_nearness():
    uniform = torch.full((2, 51), 1 / 51)
    found = reference.project(uniform, torch.tensor([0.4, -0.1]), torch.zeros(2), SUPPORT)
    wanted = torch.zeros(2, 51)
    wanted[0, 26] = 1.0
    wanted[1, 24], wanted[1, 25] = 0.25, 0.75
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_what_leaves_the_support_lands_on_its_ends():
    p = F.softmax(torch.randn(3, 51, generator=generator()), dim=1)
    found = reference.project(p, torch.tensor([100.0, -100.0, 0.0]), torch.tensor([1.0, 1.0, 1.0]), SUPPORT)
    assert found[0, -1] == pytest.approx(1.0) and found[1, 0] == pytest.approx(1.0)
    torch.testing.assert_close(found[2], p[2], atol=1e-5, rtol=0)


def test_mass_is_kept_and_the_mean_is_the_bellman_backup_inside_the_support():
    p = F.softmax(torch.randn(64, 51, generator=generator()), dim=1)
    r, discount = torch.rand(64, generator=generator(1)) * 2 - 1, torch.full((64,), 0.8)
    found = reference.project(p, r, discount, SUPPORT)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(found @ SUPPORT, r + discount * (p @ SUPPORT), atol=1e-4, rtol=1e-4)


# replay


def test_the_tree_equals_a_plain_list_over_random_operations():
    draws, capacity = np.random.default_rng(0), 37
    tree, naive = SumTree(capacity), np.zeros(capacity)
    for _ in range(200):
        index, values = draws.integers(capacity, size=8), draws.random(8) * 10
        tree.set(index, values)
        for i, value in zip(index, values, strict=True):
            naive[i] = value
        np.testing.assert_array_equal(tree.get(np.arange(capacity)), naive)
        assert tree.total == pytest.approx(naive.sum(), rel=1e-14)
        mass = draws.random(16) * naive.sum()
        np.testing.assert_array_equal(tree.find(mass), np.searchsorted(np.cumsum(naive), mass, side="right"))


def test_the_tree_never_finds_what_weighs_nothing():
    tree = SumTree(5)
    tree.set(np.array([0, 3]), np.array([1.0, 2.0]))
    assert set(tree.find(np.array([0.0, 0.5, 1.0, np.nextafter(3.0, 0), 3.0]))) == {0, 3}


def item(i):
    return Transition(
        np.full((1, 2, 2), i, dtype=np.uint8), i, float(i), 0.5, np.full((1, 2, 2), i + 1, dtype=np.uint8)
    )


def test_items_are_drawn_as_often_as_their_priorities_say_and_weights_undo_it():
    replay, draws = Replay(8, exponent=0.5, uniform_mix=0.1), np.random.default_rng(0)
    for i in range(4):
        replay.add(item(i))
    replay.set_priorities(np.arange(4), np.array([0.0, 1.0, 4.0, 9.0]))
    wanted = 0.9 * np.array([0, 1, 2, 3]) / 6 + 0.1 / 4
    np.testing.assert_allclose(replay.probabilities(np.arange(4)), wanted)
    batch, index, probabilities = replay.sample(40_000, draws)
    np.testing.assert_allclose(np.bincount(index, minlength=4) / 40_000, wanted, atol=0.01)
    np.testing.assert_array_equal(batch.a_tm1.numpy(), index)
    weights = replay.weights(probabilities, 0.5).numpy()
    assert weights.max() == 1.0
    np.testing.assert_allclose(weights, (probabilities.min() / probabilities) ** 0.5, rtol=1e-6)


def test_new_items_get_the_largest_priority_seen_and_the_oldest_make_room():
    replay = Replay(3, exponent=0.5, uniform_mix=0.0)
    replay.add(item(0))
    replay.set_priorities(np.array([0]), np.array([16.0]))
    replay.set_priorities(np.array([0]), np.array([0.25]))
    for i in range(1, 5):
        replay.add(item(i))
    assert [kept.a_tm1 for kept in replay.items] == [3, 4, 2] and replay.num_added == 5
    np.testing.assert_allclose(replay.tree.get(np.arange(3)), 4.0)


# network and loss


@pytest.mark.parametrize("layer_norm", [False, True])
def test_parameter_counts_equal_the_closed_form(layer_norm):
    actions, hidden, atoms = 18, 512, 51
    network = Network((4, 84, 84), actions, **reference.NATURE, layer_norm=layer_norm)
    features, outs = 64 * 7 * 7, (32, 64, 64)
    convolutions = 32 * 4 * 64 + 64 * 32 * 16 + 64 * 64 * 9 + sum(outs)  # a bias per channel
    streams = 2 * (2 * features * hidden + 2 * hidden) + sum(2 * hidden * n + n for n in (atoms, actions * atoms))
    norms = (2 - 1) * (sum(outs) + 2 * hidden) if layer_norm else 0  # scale and offset, instead of a bias
    assert sum(p.numel() for p in network.parameters()) == convolutions + streams + norms


def test_sigma_starts_constant_and_noise_is_a_truncated_normal_under_the_signed_root():
    network = small_network()
    assert torch.all(network.value_hidden.sigma.weight == 0.1 / 100**0.5)
    assert torch.all(network.value.sigma.bias == 0.1 / 16**0.5) and network.value.mu.bias is None
    noise = reference.scaled_noise(200_000, generator())
    eps = noise.sign() * noise**2
    assert eps.abs().max() <= 2.0 and abs(float(eps.mean())) < 0.01
    assert float(eps.var()) == pytest.approx(0.7737, abs=0.01)  # of a standard normal cut at +-2


def test_composed_noisy_weights_give_the_same_outputs():
    layer = small_network().value_hidden
    e_in, e_out = layer.draw(generator(1))
    x = torch.randn(7, 100, generator=generator(2))
    weight = layer.mu.weight + layer.sigma.weight * torch.outer(e_out, e_in)
    torch.testing.assert_close(layer(x, (e_in, e_out)), F.linear(x, weight, layer.mu.bias + layer.sigma.bias * e_out))


def a_batch(size=6, seed=3):
    draws = generator(seed)
    return Transition(
        torch.randint(0, 256, (size, 4, 5, 5), generator=draws, dtype=torch.uint8),
        torch.randint(0, 3, (size,), generator=draws),
        torch.randn(size, generator=draws),
        torch.rand(size, generator=draws),
        torch.randint(0, 256, (size, 4, 5, 5), generator=draws, dtype=torch.uint8),
    )


def test_the_loss_is_the_weighted_mean_of_cross_entropies_with_the_online_networks_choice():
    network, target, batch = small_network(0), small_network(1), a_batch()
    noises = tuple(network.draw_noise(generator(i)) for i in range(3))
    weights = torch.rand(6, generator=generator(9))
    loss, priorities = reference.loss_and_priorities(network, target, batch, weights, noises, SUPPORT)
    wanted = []
    for i in range(6):  # one by one, in numpy
        s_tm1, s_t = batch.s_tm1[i : i + 1], batch.s_t[i : i + 1]
        log_p = F.log_softmax(network(s_tm1, noises[0])[0, batch.a_tm1[i]], dim=0).detach().numpy()
        choice = int((F.softmax(network(s_t, noises[1]), dim=2) @ SUPPORT).argmax())
        p = F.softmax(target(s_t, noises[2])[0, choice], dim=0).detach().numpy()
        label = np.zeros(51)
        for atom in range(51):
            z = np.clip(float(batch.r_t[i]) + float(batch.discount_t[i]) * (-10 + 0.4 * atom), -10, 10)
            label += p[atom] * np.clip(1 - np.abs(z - (-10 + 0.4 * np.arange(51))) / 0.4, 0, 1)
        wanted.append(-(label * log_p).sum())
    np.testing.assert_allclose(priorities.numpy(), wanted, rtol=1e-4)
    assert float(loss.detach()) == pytest.approx(float((weights * priorities).mean()), rel=1e-6)
    loss.backward()
    assert all(p.grad is not None for p in network.parameters()) and all(p.grad is None for p in target.parameters())


def test_gradients_are_clipped_together():
    network = small_network()
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    reference.clip_gradients(network, 10.0)
    assert float(torch.cat([p.grad.flatten() for p in network.parameters()]).norm()) == pytest.approx(10.0, rel=1e-5)


# agent


class Corridor:
    """The square's column says where one stands; action 1 goes right, 2 left, 0 stays. The right end pays 1, the left end 0."""

    def frames(self):
        frames = np.zeros((4, 5, 5), dtype=np.uint8)
        frames[:, :, self.place] = 255
        return frames, {}

    def reset(self, seed=None):
        self.place, self.time = 2, 0
        return self.frames()

    def step(self, action):
        self.place, self.time = self.place + (0, 1, -1)[action], self.time + 1
        return self.frames()[0], float(self.place == 4), self.place in (0, 4), self.time == 10, {}


def agent(seed=0, **how):
    settings = Settings(**{**dict(capacity=2000, min_fill=50, lr=1e-3, target_period_steps=40), **how})
    return Agent(small_network(seed), num_steps=1200, seed=seed, settings=settings)


def test_one_update_per_four_steps_once_there_is_enough_and_none_before():
    learner, learned, stored = agent(), [], {}
    learner.learn = lambda: learned.append(learner.num_steps_done)
    for _ in islice(reference.train(learner, Corridor(), seed=0), 200):
        stored[learner.num_steps_done] = len(learner.replay)
    enough = next(step for step, size in stored.items() if size >= 50)
    assert learned == [step for step in range(enough, learner.num_steps_done + 1) if step % 4 == 0]


def test_the_importance_exponent_rises_in_a_straight_line_over_what_was_added():
    learner = agent()
    for added, wanted in ((0, 0.4), (50, 0.4), (625, 0.7), (1200, 1.0), (9999, 1.0)):
        learner.replay.num_added = added
        assert learner.is_exponent() == pytest.approx(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_it_learns_to_walk_to_the_end_that_pays(seed):
    learner = agent(seed, v_min=-2.0, v_max=2.0, learn_period_steps=1)
    returns = [r for r in islice(reference.train(learner, Corridor(), seed=0), 1200) if r is not None]
    assert np.mean(returns[-20:]) > 0.9, returns
