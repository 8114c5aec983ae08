"""Rainbow twice: nap_bench's and the plain one of bench/, which share no code, do the same with the same numbers.

Shape suffixes: S seeds, E environments, B batch, T rows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import rainbow_reference as reference  # noqa: E402

from nap_bench import update  # noqa: E402
from nap_bench.methods import parse_stack, stack_of  # noqa: E402
from nap_bench.optimizers import Adam  # noqa: E402
from nap_bench.rl import rainbow, replay  # noqa: E402
from nap_bench.spec import ModelSpec, Part  # noqa: E402
from nap_bench.state import build  # noqa: E402

FRAMES, ACTIONS, BATCH = (4, 12, 12), 5, 16
SIZE = dict(channels=(8, 6), kernels=(4, 3), strides=(2, 1), hidden=24)
NO_TORSO = dict(channels=(), kernels=(), strides=(), hidden=24)


def both(size, layer_norm, clip_norm):
    """A state of two seeds, its stack, and for each seed a reference network with the same parameters."""
    stack = stack_of(parse_stack("layer_norm" if layer_norm else "baseline"))
    spec = ModelSpec(family="rainbow", size=tuple(sorted({**size, "atoms": 51, "sigma": 0.1}.items())))
    optimizer = Part.of(Adam(eps=0.005 / 32, clip_norm=clip_norm))
    state = build(stack.transform_model(spec), optimizer, (3, 8), (FRAMES, ACTIONS), "cpu")
    state.lr.fill_(6.25e-5)
    networks = []
    for seed in range(2):
        network = reference.Network(FRAMES, ACTIONS, **size, layer_norm=layer_norm)
        for value, parameter in pairs(network, state.params, seed):
            parameter.data.copy_(value)
        networks.append(network)
    return state, stack, networks


def pairs(network, tensors, seed):
    """(ours, theirs) of every parameter, ours laid out as theirs. tensors: our name -> [S, ...]."""
    named, theirs = dict(tensors), dict(network.named_parameters())
    found = []

    def match(name, target, transposed=False):
        if target in theirs:
            value = named.pop(name)[seed]
            found.append((value.T if transposed else value, theirs.pop(target)))

    def noisy(name, target):
        match(f"{name}.weight", f"{target}.mu.weight", transposed=True)
        match(f"{name}.bias", f"{target}.mu.bias")
        match(f"{name}.noise_weight", f"{target}.sigma.weight", transposed=True)
        match(f"{name}.noise_bias", f"{target}.sigma.bias")

    layers = [index for index, layer in enumerate(network.torso) if isinstance(layer, torch.nn.Conv2d)]
    norms = [f"torso.{index + 1}" for index in layers] + ["advantage_norm", "value_norm"]
    for index, layer in enumerate(layers):
        match(f"convs.{index}.weight", f"torso.{layer}.weight")
        match(f"convs.{index}.bias", f"torso.{layer}.bias")
    for head in ("advantage", "value"):
        noisy(head, f"{head}_hidden")
        noisy(f"{head}_output", head)
    for index, norm in enumerate(norms):
        match(f"norms.{index}.scale", f"{norm}.weight")
        match(f"norms.{index}.offset", f"{norm}.bias")
    assert not named and not theirs, "every parameter has its other self"
    return found


def as_noises(network, state, noise_3K):
    """A seed's three draws as the reference takes them: layer -> (on its inputs, on its outputs)."""
    sizes = state.model.noise_sizes
    noises = []
    for noise_K in noise_3K:
        pieces = noise_K.split(sizes)
        names = ("advantage_hidden", "advantage", "value_hidden", "value")
        noises.append({name: tuple(pieces[2 * i : 2 * i + 2]) for i, name in enumerate(names)})
    return tuple(noises)


def a_batch(seed=0):
    draws = torch.Generator().manual_seed(seed)
    frames = [torch.randint(0, 256, (2, BATCH, *FRAMES), generator=draws, dtype=torch.uint8) for _ in range(2)]
    r_t = torch.randn(2, BATCH, generator=draws)
    r_t[:, :3] = torch.tensor([50.0, -50.0, 0.4])  # beyond the support, and on an atom
    discount_t = 0.99 ** torch.randint(1, 4, (2, BATCH), generator=draws)
    discount_t[:, 2:5] = 0.0
    actions = torch.randint(0, ACTIONS, (2, BATCH), generator=draws)
    weights = torch.rand(2, BATCH, generator=draws)
    return rainbow.Batch(frames[0], actions, r_t, discount_t, frames[1], weights)


@pytest.mark.parametrize("clip_norm", [10.0, 1e-2], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
@pytest.mark.parametrize("size", [SIZE, NO_TORSO], ids=["convolutions", "no_torso"])
def test_one_whole_update_agrees_in_loss_priorities_every_gradient_and_every_step(size, layer_norm, clip_norm):
    state, stack, networks = both(size, layer_norm, clip_norm)
    target = state.flat.detach() + 0.02 * torch.randn(state.flat.shape, generator=torch.Generator().manual_seed(9))
    target_model, batch = state.twin(target), a_batch()
    noise_S3K = rainbow.NoiseStream("noise/learning", state, 3).at(7)
    before = {name: value.detach().clone() for name, value in state.params.items()}

    targets = []
    for seed in range(len(networks)):
        twin = reference.Network(FRAMES, ACTIONS, **size, layer_norm=layer_norm)
        for value, parameter in pairs(twin, {name: state.view(target, name) for name in state.params}, seed):
            parameter.data.copy_(value.detach())
        targets.append(twin)
    loss_S, errors_SB = rainbow.Agent().losses(state, stack, target_model, batch, noise_S3K)
    update.grad_step(state, [loss_S], stack)
    gradients = {name: state.view(state.flat.grad, name) for name in state.params}

    for seed, network in enumerate(networks):
        items = reference.Transition(*(part[seed] for part in batch[:5]))
        loss, priorities_B = reference.loss_and_priorities(
            network,
            targets[seed],
            items,
            batch.weights[seed],
            as_noises(network, state, noise_S3K[seed]),
            torch.linspace(-10, 10, 51),
        )
        torch.testing.assert_close(loss_S[seed].detach(), loss.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close(errors_SB[seed], priorities_B, rtol=1e-5, atol=1e-6)
        optimizer = torch.optim.Adam(network.parameters(), lr=6.25e-5, eps=0.005 / 32)
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()
        assert norm > 0.05 and (clip_norm < norm or clip_norm == 10.0)
        reference.clip_gradients(network, clip_norm)
        largest = max(float(p.grad.abs().max()) for p in network.parameters())
        for ours, parameter in pairs(network, gradients, seed):
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-5, atol=1e-5 * largest)
        optimizer.step()
        moved = max(float((a - b).detach().abs().max()) for a, b in ((state.params[n], before[n]) for n in before))
        assert moved > 1e-6
        for ours, parameter in pairs(network, state.params, seed):
            # Adam's first step hardly depends on a gradient's size, so rounding shows where a gradient is nearly 0.
            torch.testing.assert_close(ours, parameter.data, rtol=0, atol=1e-3 * moved)


def stream(num_rows, num_envs, seed):
    """Rows that environments show: frames [E, 3, 3], rewards, discounts, first, last [E]; random ends, limits and lost lives."""
    draws = np.random.default_rng(seed)
    last = np.zeros(num_envs, dtype=bool)
    for row in range(num_rows):
        first = last | (row == 0)
        last = ~first & (draws.random(num_envs) < 0.2)
        terminated, lost_life = last & (draws.random(num_envs) < 0.5), draws.random(num_envs) < 0.1
        frames = draws.integers(1, 255, (num_envs, 3, 3)).astype(np.uint8)
        rewards = draws.integers(-1, 2, num_envs).astype(np.float32)
        yield frames, rewards, (~(terminated | lost_life)).astype(np.float32), first, last


@pytest.mark.parametrize("rows_kept", [100, 25], ids=["all", "the_newest"])
def test_the_ring_holds_the_transitions_that_the_accumulator_makes_over_random_episodes(rows_kept):
    num_envs, num_rows, stack, n = 3, 60, 4, 3
    ring = replay.Replay(
        1, num_envs, rows_kept * num_envs, (3, 3), stack=stack, n_step=n, discount=0.9, priority_exponent=0.5,
        uniform_mix=1e-3, device="cpu",
    )  # fmt: skip
    steps = [reference.NStep(n) for _ in range(num_envs)]
    seen = np.zeros((num_envs, stack, 3, 3), dtype=np.uint8)
    before, wanted, draws = [None] * num_envs, [], np.random.default_rng(1)
    for frames, rewards, discounts, first, last in stream(num_rows, num_envs, seed=0):
        actions = draws.integers(0, 5, num_envs)
        ring.add(*(torch.from_numpy(part)[None] for part in (frames, actions, rewards, discounts, first, last)))
        for env in range(num_envs):
            older = np.zeros_like(seen[env, 1:]) if first[env] else seen[env, 1:]
            seen[env] = np.concatenate([older, frames[env][None]])
            now = seen[env].copy()
            if not first[env]:
                led_here = reference.Transition(*before[env], float(rewards[env]), 0.9 * float(discounts[env]), now)
                wanted += steps[env].add(led_here, last=bool(last[env]))
            before[env] = now, int(actions[env])
    drawable = torch.nonzero(ring.tree.get(torch.arange(min(num_rows, rows_kept) * num_envs)[None])[0]).flatten()
    s_tm1, a_tm1, r_t, discount_t, s_t = ring._transitions(drawable[None])
    ours = {s.numpy().tobytes(): i for i, s in enumerate(s_tm1[0])}
    assert len(ours) == len(drawable) > 40
    absent = [item for item in wanted if item.s_tm1.tobytes() not in ours]
    if rows_kept > num_rows:  # at the ring's head even an episode's short returns wait for n rows more
        assert len(absent) <= (n - 1) * num_envs
    found = [item for item in wanted if item.s_tm1.tobytes() in ours]
    assert len(found) == len(ours)
    for item in found:
        i = ours[item.s_tm1.tobytes()]
        assert int(a_tm1[0, i]) == item.a_tm1
        assert float(r_t[0, i]) == pytest.approx(item.r_t, abs=1e-6)
        assert float(discount_t[0, i]) == pytest.approx(item.discount_t, abs=1e-6)
        if item.discount_t:
            np.testing.assert_array_equal(s_t[0, i].numpy(), item.s_t)


def test_both_trees_find_the_same_leaf_for_the_same_mass():
    draws = np.random.default_rng(0)
    theirs, ours = reference.SumTree(200), replay.SumTree(1, 200, "cpu")
    for _ in range(50):
        index, values = draws.choice(200, 16, replace=False), draws.random(16) * (draws.random(16) < 0.8)
        theirs.set(index, values)
        ours.set(torch.from_numpy(index)[None], torch.from_numpy(values)[None])
        assert float(ours.total_S[0]) == pytest.approx(theirs.total, rel=1e-12)
        share = draws.random(64)
        np.testing.assert_array_equal(
            ours.find(torch.from_numpy(share)[None])[0].numpy(), theirs.find(share * theirs.total)
        )


def test_importance_weights_agree():
    probabilities = np.random.default_rng(0).random(32) / 100
    theirs = reference.Replay(8)
    theirs.items = [None] * 8
    ours = replay.importance_weights(torch.from_numpy(probabilities)[None], 0.63)[0]
    torch.testing.assert_close(ours, theirs.weights(probabilities, 0.63), rtol=1e-6, atol=0)
