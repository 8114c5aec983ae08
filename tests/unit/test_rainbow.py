"""Rainbow: noise streams, the projection, double Q, the loss; and every method of the suite on its network."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from unit.test_rainbow_net import FLAT, SIZES, SMALL, make, normal

from nap_bench import update
from nap_bench.benchmarks import RandomLabels
from nap_bench.experiments.base import make_run
from nap_bench.methods import METHODS, parse_stack, stack_of
from nap_bench.models.roles import Role
from nap_bench.optimizers import Adam
from nap_bench.rl import rainbow
from nap_bench.rl.rainbow import AHEAD, Agent, Batch, NoiseStream, project
from nap_bench.schedules import Constant
from nap_bench.spec import ModelSpec

AGENT = Agent(v_min=-2.0, v_max=2.0)
SUPPORT = torch.linspace(-2.0, 2.0, 5)
STACKS = [
    *sorted(set(METHODS) - {"implicit_schedule"}),
    "baseline",
    "nap+implicit_schedule",
    "nap(head=True, norm='rms')",
    "nap(norm='none')",
    "nap(per='neuron')",
    "nap(per='neuron', head=True)",
    "nap(period=2)+layer_reset",
    "nap(scale_offset='decay', decay=0.9)",
    "nap(scale_offset='joint')",
    "nap(norm='batch')",
    "group_norm(groups=2)",
    "l2(over='all')+optimizer_reset",
    "nap+redo(period=1, tau=0.7)",
    "redo(period=2, tau=0.7)+weight_decay",
    "continual_backprop(rate=0.2, maturity=0)",
    "full_reset(period=2)",
    "noisy_updates+shrink_perturb(told_of_tasks=True)",
]


def batch_of(state, num_examples=16) -> Batch:
    """A batch of each seed's own, the same whatever block the seed stands in."""
    parts = []
    for seed in state.seeds:
        gen = torch.Generator().manual_seed(1000 + seed)
        frames = [
            torch.randint(256, (num_examples, *state.shapes[0]), generator=gen, dtype=torch.uint8) for _ in range(2)
        ]
        actions = torch.randint(state.shapes[1], (num_examples,), generator=gen)
        rewards, discounts = torch.randn(num_examples, generator=gen), torch.rand(num_examples, generator=gen)
        parts.append((frames[0], actions, rewards, discounts, frames[1], torch.rand(num_examples, generator=gen)))
    return Batch(*(torch.stack(column) for column in zip(*parts, strict=True)))


def advance(state, methods, num_steps=3, boundary_at=2):
    """Train on; returns losses [T, S] and the priorities of the last update."""
    noise, batch, target = NoiseStream("learn", state, 3), batch_of(state), state.twin(state.flat.detach().clone())
    losses = []
    for _ in range(num_steps):
        if state.step == boundary_at:
            update.task_boundary(state, methods, 1)
        loss_S, priorities = AGENT.losses(state, methods, target, batch, noise.at(state.step))
        update.grad_step(state, [loss_S], methods)
        update.tail(state, methods)
        losses.append(loss_S.detach())
    return torch.stack(losses), priorities


# the noise


def test_a_draw_is_a_pure_function_of_seed_purpose_and_counter():
    block, alone = make(seeds=(3, 5))[0], make(seeds=(5,))[0]
    stream, other = NoiseStream("learn", block, 3), NoiseStream("learn", alone, 3)
    counters = [0, 1, AHEAD - 1, AHEAD, 7 * AHEAD + 2]
    drawn = [stream.at(counter).clone() for counter in counters]
    assert drawn[0].shape == (2, 3, block.model.num_noise)
    for counter, noise in zip(reversed(counters), reversed(drawn), strict=True):
        assert torch.equal(stream.at(counter), noise) and torch.equal(other.at(counter)[0], noise[1])
    every = [row for noise in drawn for row in noise.flatten(0, 1)] + [
        row for row in NoiseStream("act", block, 3).at(0).flatten(0, 1)
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(every) for b in every[:i])


def test_a_draw_is_the_root_of_a_normal_variable_cut_off_at_two():
    state = make(FLAT, shapes=((1, 50, 50), 3), seeds=(0, 1))[0]
    noise = NoiseStream("act", state, 16).at(0).double().flatten()
    e = noise.sign() * noise.square()
    assert e.abs().max() <= 2.0 and e.abs().max() > 1.999 and len(e) > 100_000
    inside = math.erf(math.sqrt(2.0))
    variance = 1.0 - 4.0 * math.exp(-2.0) / math.sqrt(2.0 * math.pi) / inside
    assert variance == pytest.approx(0.7737, abs=1e-4)  # cut off and not rescaled
    size = (2.0 - 2.0 * math.exp(-2.0)) / math.sqrt(2.0 * math.pi) / inside
    for found, wanted in ((e.mean(), 0.0), (e.square().mean(), variance), (noise.square().mean(), size)):
        assert float(found) == pytest.approx(wanted, abs=0.01)
    for bound in (-1.5, -0.5, 0.3, 1.2):
        below = (math.erf(bound / math.sqrt(2.0)) + inside) / 2.0 / inside
        assert float((e < bound).double().mean()) == pytest.approx(below, abs=0.005)
    halves = noise.view(2, -1)
    assert abs(float((halves[0] * halves[1]).mean())) < 0.01


# the projection


def slow_projection(probs, rewards, discounts, support):
    """Bellemare et al. 2017, algorithm 1: mass of every moved atom between its two neighbours."""
    low, high, last = float(support[0]), float(support[-1]), len(support) - 1
    dz, found = (high - low) / last, np.zeros(probs.shape)
    for s, b in np.ndindex(probs.shape[:2]):
        for i, z in enumerate(support):
            place = (min(max(rewards[s, b] + discounts[s, b] * z, low), high) - low) / dz
            lower, upper = math.floor(place), math.ceil(place)
            if lower == upper:
                found[s, b, lower] += probs[s, b, i]
            else:
                found[s, b, lower] += probs[s, b, i] * (upper - place)
                found[s, b, upper] += probs[s, b, i] * (place - lower)
    return found


def test_the_projection_is_the_papers_algorithm_atom_by_atom():
    probs, rewards = normal(3, 16, 5).mul(3).softmax(dim=2), normal(3, 16, seed=1) * 2
    discounts = normal(3, 16, seed=2).sigmoid()
    found = project(probs, rewards, discounts, SUPPORT)
    wanted = slow_projection(*(x.double().numpy() for x in (probs, rewards, discounts, SUPPORT)))
    assert np.allclose(found, wanted, atol=1e-6)
    assert torch.allclose(found.sum(dim=2), torch.ones(3, 16), atol=1e-6) and (found >= 0).all()


@pytest.mark.parametrize(
    ("reward", "discount", "wanted"),
    [
        (9.0, 1.0, [0, 0, 0, 0, 1]),  # beyond the support: its end
        (-9.0, 1.0, [1, 0, 0, 0, 0]),
        (1.0, 0.0, [0, 0, 0, 1, 0]),  # nothing follows: the reward alone, exactly on an atom
        (-0.25, 0.0, [0, 0.25, 0.75, 0, 0]),
        (0.0, 1.0, [0.1, 0.2, 0.3, 0.3, 0.1]),  # every atom stays where it is
        (1.0, 1.0, [0, 0.1, 0.2, 0.3, 0.4]),
        (0.0, 0.5, [0, 0.2, 0.6, 0.2, 0]),  # -1, -0.5, 0, 0.5, 1
    ],
)
def test_the_projection_at_its_edges(reward, discount, wanted):
    probs = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1])
    found = project(probs.view(1, 1, 5), torch.full((1, 1), reward), torch.full((1, 1), discount), SUPPORT)
    if (reward, discount) == (0.0, 0.5):
        wanted = [0, 0.1 + 0.1, 0.1 + 0.3 + 0.15, 0.15 + 0.1, 0]
    assert torch.allclose(found.flatten(), torch.tensor(wanted, dtype=torch.float32), atol=1e-6)


def test_fifty_one_atoms_on_the_grid_stay_on_it_and_keep_all_mass():
    support = torch.linspace(-10.0, 10.0, 51)
    probs = normal(1, 51, 51).mul(2).softmax(dim=2)
    whole = torch.arange(-25, 26).mul(0.4).view(1, 51)  # a reward of so many atoms
    found = project(probs, whole, torch.zeros(1, 51), support)
    assert torch.allclose(found[0], torch.eye(51), atol=1e-4)
    same = project(probs, torch.zeros(1, 51), torch.ones(1, 51), support)
    assert torch.allclose(same, probs, atol=1e-5)
    for discounts in (torch.full((1, 51), 0.99**3), torch.ones(1, 51)):
        assert torch.allclose(project(probs, whole, discounts, support).sum(dim=2), torch.ones(1, 51), atol=1e-6)


# acting


def test_an_action_is_greedy_in_expected_value_and_not_in_the_likeliest_atom():
    logits = torch.full((1, 1, 2, 5), -20.0)
    logits[0, 0, 0, 3] = 0.0  # certainly 1
    logits[0, 0, 1, 4], logits[0, 0, 1, 0] = 0.1, 0.0  # 2 is likeliest, its mean 0.1
    assert AGENT.greedy(logits).item() == 0
    assert AGENT.greedy(logits.flip(2)).item() == 1
    assert AGENT.greedy(torch.zeros(1, 1, 3, 5)).item() == 0


def test_every_environment_acts_under_its_own_draw():
    state, _ = make(seeds=(0, 1, 2))
    for name, role in state.roles.items():
        if role is Role.NOISE:
            state.params[name].detach().mul_(50.0)
    frames = torch.randint(256, (1, 1, *state.shapes[0]), dtype=torch.uint8).expand(3, 12, -1, -1, -1)
    noise = NoiseStream("act", state, 12).at(0)
    actions = AGENT.act(state, frames, noise)
    assert actions.shape == (3, 12) and actions.dtype == torch.int64
    assert all(len(set(row.tolist())) > 1 for row in actions)  # the same frames: noise alone explores
    for env in range(12):
        assert torch.equal(AGENT.act(state, frames[:, env : env + 1], noise[:, env : env + 1])[:, 0], actions[:, env])
    alone, _ = make(seeds=(1,))
    alone.values.copy_(state.values[1:2])
    assert torch.equal(AGENT.act(alone, frames[1:2], NoiseStream("act", alone, 12).at(0))[0], actions[1])


def test_frames_are_seen_as_shares_of_255_whatever_their_layout_in_memory():
    frames = torch.arange(2 * 3 * 4 * 5 * 6).remainder(256).to(torch.uint8).view(2, 3, 4, 5, 6)
    assert torch.equal(rainbow.scaled(frames, torch.float32), frames.float() / 255)
    assert rainbow.scaled(frames, torch.float64).dtype == torch.float64


# the loss


class Fake:
    """A network that returns given logits, and remembers the noise it was given."""

    def __init__(self, **logits):
        self.logits, self.noise, self.acts = logits, {}, None
        self.flat = SimpleNamespace(dtype=torch.float32)

    def forward(self, inputs, acts=None, *, training=False, noise):
        return self("s_tm1" if training else "s_t", noise)

    def __call__(self, which, noise):
        which = which if isinstance(which, str) else "s_t"
        self.noise[which] = noise
        return self.logits[which]


def certain(*atoms: int) -> torch.Tensor:
    """Logits [1, 1, A, 5] of actions that return one atom each, almost surely."""
    logits = torch.zeros(1, 1, len(atoms), 5)
    for action, atom in enumerate(atoms):
        logits[0, 0, action, atom] = 30.0
    return logits


@pytest.mark.parametrize(("double", "atom"), [(True, 0), (False, 3)])
def test_the_online_network_chooses_and_the_target_network_evaluates(double, atom):
    online = Fake(s_tm1=torch.zeros(1, 1, 2, 5, requires_grad=True), s_t=certain(1, 4))  # chooses action 1
    target = Fake(s_t=certain(3, 0))  # would choose action 0
    noise = normal(1, 3, 7)
    frames, ones = torch.zeros(1, 1, 1, 2, 2, dtype=torch.uint8), torch.ones(1, 1)
    batch = Batch(frames, torch.zeros(1, 1, dtype=torch.int64), 0 * ones, ones, frames, 2 * ones)
    agent = dataclasses.replace(AGENT, double=double)
    loss_S, priorities = agent.losses(online, stack_of(()), target, batch, noise)
    assert priorities.item() == pytest.approx(math.log(5.0)) and loss_S.item() == pytest.approx(2 * math.log(5.0))
    gradient = torch.autograd.grad(loss_S.sum(), online.logits["s_tm1"])[0] / 2
    assert torch.allclose(gradient[0, 0, 0], 0.2 - torch.eye(5)[atom], atol=1e-6)
    assert (gradient[0, 0, 1] == 0).all()  # the action that was not taken
    assert torch.equal(online.noise["s_tm1"], noise[:, :1]) and torch.equal(target.noise["s_t"], noise[:, 2:])
    assert not double or torch.equal(online.noise["s_t"], noise[:, 1:2])


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_loss_is_the_weighted_mean_of_cross_entropies_item_by_item(size):
    state, methods = make(size, seeds=(0, 1))
    other = state.flat.detach() + 0.05 * normal(*state.flat.shape)
    target, batch, noise = state.twin(other), batch_of(state), NoiseStream("learn", state, 3).at(4)
    loss_S, found_SB = AGENT.losses(state, methods, target, batch, noise)
    s_tm1, s_t = batch.s_tm1 / 255, batch.s_t / 255
    online, chooser = (state.forward(x, noise=noise[:, d : d + 1]) for x, d in ((s_tm1, 0), (s_t, 1)))
    online, chooser, evaluated = (
        x.detach().double().numpy() for x in (online, chooser, target(s_t, noise=noise[:, 2:]))
    )
    support = SUPPORT.double().numpy()
    for s in range(2):
        weighted = 0.0
        for b in range(16):
            values = [np.exp(row) @ support / np.exp(row).sum() for row in chooser[s, b]]
            row = np.exp(evaluated[s, b, int(np.argmax(values))])
            inputs = (row / row.sum(), batch.r_t[s, b].double(), batch.discount_t[s, b].double())
            wanted = slow_projection(*(np.asarray(x).reshape(1, 1, -1) for x in inputs[:1]), *_pair(inputs), support)
            logits = online[s, b, int(batch.a_tm1[s, b])]
            cross_entropy = -(wanted[0, 0] * (logits - np.log(np.exp(logits).sum()))).sum()
            assert float(found_SB[s, b]) == pytest.approx(cross_entropy, abs=1e-5)
            weighted += float(batch.weights[s, b]) * cross_entropy / 16
        assert float(loss_S[s].detach()) == pytest.approx(weighted, abs=1e-5)


def _pair(inputs):
    return (np.full((1, 1), float(value)) for value in inputs[1:])


def test_gradients_flow_through_the_online_network_where_transitions_start_and_nowhere_else():
    state, methods = make()
    batch, noise = batch_of(state), NoiseStream("learn", state, 3).at(0)
    target = state.twin(state.flat.detach().clone())
    for parameter in target.parameters():
        parameter.requires_grad_()
    loss_S, priorities = AGENT.losses(state, methods, target, batch, noise)
    assert not priorities.requires_grad
    found = torch.autograd.grad(loss_S.sum(), [*state.params.values(), *target.parameters()], allow_unused=True)
    assert all(gradient is None for gradient in found[len(state.params) :])
    with torch.no_grad():  # what is aimed at, as numbers
        logits = target(batch.s_t / 255, noise=noise[:, 2:])
        actions = AGENT.greedy(state.forward(batch.s_t / 255, noise=noise[:, 1:2]))
        aim = project(rainbow.taken(logits, actions).softmax(dim=2), batch.r_t, batch.discount_t, SUPPORT)
    logits = rainbow.taken(state.forward(batch.s_tm1 / 255, noise=noise[:, :1]), batch.a_tm1)
    cross_entropies = -(aim * logits.log_softmax(dim=2)).sum(dim=2)
    wanted = torch.autograd.grad((batch.weights * cross_entropies).mean(dim=1).sum(), list(state.params.values()))
    for left, right in zip(found[: len(wanted)], wanted, strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_nothing_waits_for_the_device():
    """On the meta device there is no number to read, so whatever would read one raises."""
    state, methods = make(device="meta")
    target = state.twin(state.flat.detach())
    shape, kinds = (2, 6), dict(a_tm1=torch.int64, s_tm1=torch.uint8, s_t=torch.uint8)
    batch = Batch(
        *(
            torch.empty(
                *shape, *(state.shapes[0] if name.startswith("s_") else ()), dtype=kinds.get(name), device="meta"
            )
            for name in Batch._fields
        )
    )
    noise = torch.empty(2, 3, state.model.num_noise, device="meta")
    loss_S, priorities = AGENT.losses(state, methods, target, batch, noise)
    assert loss_S.shape == (2,) and priorities.shape == (2, 6)
    assert AGENT.act(state, batch.s_t, torch.empty(2, 6, state.model.num_noise, device="meta")).shape == (2, 6)


def test_a_diverged_seed_does_not_touch_the_others_and_leaves_numbers_to_sample_by():
    block, methods = make(stack="nap", seeds=(0, 1, 2))
    block.params["value.weight"].detach()[1] = float("nan")
    losses_TS, priorities = advance(block, methods, 4)
    assert block.alive.tolist() == [True, False, True] and block.updates.tolist() == [4, 0, 4]
    assert torch.isfinite(priorities).all() and (priorities[1] == 1.0).all()
    frames = batch_of(block).s_t
    actions = AGENT.act(block, frames, NoiseStream("act", block, 16).at(0))
    assert ((actions >= 0) & (actions < 3)).all()
    for index, seed in ((0, 0), (2, 2)):
        alone, methods = make(stack="nap", seeds=(seed,))
        assert torch.equal(advance(alone, methods, 4)[0][:, 0], losses_TS[:, index])
        assert torch.equal(alone.flat[0], block.flat[index])


def test_it_learns_what_one_step_returns():
    """Rewards are known from the action alone and nothing follows: the expected values must become them."""
    state, methods = make(FLAT, seeds=(0, 1))
    batch, noise = batch_of(state, 32), NoiseStream("learn", state, 3)
    rewards = torch.tensor([-1.0, 0.5, 1.5])
    batch = batch._replace(r_t=rewards[batch.a_tm1], discount_t=torch.zeros(2, 32), weights=torch.ones(2, 32))
    target = state.twin(state.flat.detach().clone())
    for _ in range(150):
        update.grad_step(state, [AGENT.losses(state, methods, target, batch, noise.at(state.step))[0]], methods)
        update.tail(state, methods)
        state.lr.mul_(0.98)
    logits = state.forward(batch.s_tm1 / 255, noise=torch.zeros_like(noise.at(0)[:, :1])).detach()
    values = rainbow.taken(logits, batch.a_tm1).softmax(dim=2) @ SUPPORT
    assert torch.allclose(values, batch.r_t, atol=0.1)


def test_ends_of_the_support_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"v_min < v_max; found 3\.0 and 1\.0"):
        Agent(v_min=3.0, v_max=1.0)


# every method on this network


def why_not(stack: str, size) -> str | None:
    run = make_run(
        benchmark=RandomLabels(dataset="digits", num_examples=64, num_tasks=1, steps_per_task=5, batch_size=16),
        model=ModelSpec(family="rainbow", size=tuple(size.items())),
        stack=stack,
        optimizer=Adam(),
        schedule=Constant(1e-2),
        seeds=(0,),
    )
    return stack_of(run.methods).why_not(run)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_with_every_method_a_block_of_seeds_equals_each_seed_alone(stack, size):
    if reason := why_not(stack, size):
        pytest.skip(reason)
    block, methods = make(size, stack, seeds=(0, 1, 2))
    start = block.flat.detach().clone()
    storage = block.flat.untyped_storage().data_ptr()
    losses_TS, priorities = advance(block, methods)
    assert torch.isfinite(losses_TS).all() and block.alive.all()
    assert all(p.untyped_storage().data_ptr() == storage for p in block.model.parameters())
    assert not any(torch.equal(block.view(start, name), parameter) for name, parameter in block.params.items())
    for index, seed in enumerate(block.seeds):
        alone, methods = make(size, stack, seeds=(seed,))
        found = advance(alone, methods)
        assert torch.equal(found[0][:, 0], losses_TS[:, index]) and torch.equal(found[1][0], priorities[index])
        assert torch.equal(alone.flat[0], block.flat[index])


@pytest.mark.parametrize("stack", [s for s in STACKS if s.startswith("nap") and "period" not in s])
def test_nap_keeps_the_joint_norm_of_means_and_noise_and_leaves_the_final_layers(stack):
    state, methods = make(SMALL, stack)
    start = {group.name: state.group_norm(group) for group in state.groups}
    advance(state, methods)
    for group in state.groups:
        is_at_norm = torch.allclose(state.group_norm(group), start[group.name], rtol=1e-5)
        assert is_at_norm == ("head" in stack or "output" not in group.name), group.name
    means = torch.linalg.vector_norm(state.params["advantage.weight"].detach().flatten(1), dim=1)
    assert not torch.allclose(means, state.fresh("advantage.weight").flatten(1).norm(dim=1), rtol=1e-5)


def test_nap_by_neuron_keeps_what_a_unit_reads_means_and_noise_together():
    state, methods = make(SMALL, "nap(per='neuron')")

    def joint() -> torch.Tensor:
        leaves = ("weight", "noise_weight", "noise_bias")
        rows = [state.params[f"value.{leaf}"].detach().unflatten(-1, (-1, 1)).transpose(1, -2) for leaf in leaves]
        return torch.cat([row.flatten(2) for row in rows], dim=2).norm(dim=2)

    start = joint()
    advance(state, methods)
    assert start.shape == (2, 8) and torch.allclose(joint(), start, rtol=1e-5)
    assert not torch.equal(state.fresh("value.noise_bias"), state.params["value.noise_bias"])


@pytest.mark.parametrize("index", [1, 3])
def test_of_a_recycled_unit_the_noise_starts_anew_and_none_is_passed_on(index):
    """The last convolution, which both heads read, and the value's hidden layer."""
    state, _ = make(SMALL)
    advance(state, stack_of(()), 2)
    state.acts = {u.name: torch.ones(2, 6, u.size, *[2, 2] * u.name.startswith("layer")) for u in state.units}
    units = state.units[index]
    state.acts[units.name][:, :, 1] = 0.0
    before = {name: parameter.detach().clone() for name, parameter in state.params.items()}
    update.tail(state, stack_of(parse_stack("redo(period=1, tau=0.05)")))
    noisy = [name for name in units.incoming if state.roles[name] is Role.NOISE]
    assert len(noisy) == (2 if units.name == "value" else 0)
    for name in noisy:
        found, old = state.by_unit(units, name), state.by_unit(units, name, before[name])
        assert torch.equal(found[:, 1], state.by_unit(units, name, state.fresh(name))[:, 1])
        assert not torch.equal(found[:, 1], old[:, 1]) and torch.equal(found[:, 2], old[:, 2])
    assert {state.roles[name] for name in units.outgoing} >= {Role.NOISE}
    for name in units.outgoing:
        view = state.by_unit(units, name)
        assert (view[:, 1] == 0).all() and torch.equal(view[:, 2], state.by_unit(units, name, before[name])[:, 2])
        changed = state.params[name] != before[name]
        assert changed.sum() == view[:, 1].numel()
