"""The loop that optimises a diffusion policy: phases, what an update reads, and runs that are killed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nap_bench import update, weights
from nap_bench.benchmarks import BENCHMARKS, DiffusionPolicy
from nap_bench.experiments.base import make_run
from nap_bench.methods import parse_stack, stack_of
from nap_bench.optimizers import SGD, Adam
from nap_bench.policy import loop
from nap_bench.policy.diffusion import elbo
from nap_bench.policy.loop import Measured, Policy, optimise
from nap_bench.schedules import Constant
from nap_bench.session import Control, Interrupted
from nap_bench.spec import ModelSpec
from nap_bench.state import build
from nap_bench.store import RunFolder

TASK = DiffusionPolicy(
    puzzle="sorting",
    size=3,
    rule="stable",
    samples=2,
    num_rollouts=4,
    pretrain_steps=6,
    updates_per_rollout=3,
    prompts=2,
    completions=4,
    pretrain_batch=8,
    bins=2,
)
MODEL = ModelSpec(
    family="transformer",
    size=(("d_model", 8), ("entrance", "layer"), ("heads", 2), ("widths", (12,))),
    causal=False,
)
STACK = "optimizer_reset+nap+redo(period=4)"


def run_of(task=TASK, stack=STACK, seeds=(3, 4), lr=1e-2, optimizer=None):
    return make_run(
        benchmark=task,
        model=MODEL,
        stack=stack,
        optimizer=optimizer or Adam(),
        schedule=Constant(lr),
        seeds=seeds,
    )


def optimised(path, run, control=None) -> bytes:
    folder = RunFolder(path, run)
    folder.open()
    optimise(run, folder, data_dir=None, device="cpu", control=control or Control())
    return folder.metrics.read_bytes()


def rows(table: bytes, metric: str) -> list[tuple[int, int, float]]:
    parsed = [line.split(",") for line in table.decode().splitlines()[1:]]
    return [(int(step), int(seed), float(value)) for step, seed, name, value in parsed if name == metric]


def policy_of(task=TASK, stack="baseline", seeds=(3, 4), optimizer=None) -> Policy:
    run = run_of(task, stack, seeds, optimizer=optimizer)
    methods = stack_of(parse_stack(stack))
    state = build(methods.transform_model(MODEL), run.optimizer, seeds, task.shapes, "cpu")
    state.lr.fill_(0.1)
    return Policy(task, state, methods)


def made_up(rollout):
    """The same with a reward that an untrained policy meets: half of the completions end on an even token."""
    return rollout._replace(reward=(rollout.tokens[..., -1] % 2 == 0).float())


@pytest.mark.parametrize(
    ("killed_at", "common"), [(0, False), (6, False), (7, False), (12, False), (17, False), (8, True)]
)
def test_a_run_killed_at_any_update_and_resumed_leaves_the_same_bytes(tmp_path, monkeypatch, killed_at, common):
    run = run_of(dataclasses.replace(TASK, common_masks=common))
    expected = optimised(tmp_path / "whole", run)
    grad_step = update.grad_step

    def dying(state, losses, stack):
        if state.step == killed_at:
            raise KeyboardInterrupt
        grad_step(state, losses, stack)

    monkeypatch.setattr(update, "grad_step", dying)
    with pytest.raises(KeyboardInterrupt):
        optimised(tmp_path / "killed", run, Control(checkpoint_seconds=0.0))
    monkeypatch.setattr(update, "grad_step", grad_step)
    assert optimised(tmp_path / "killed", run, Control(checkpoint_seconds=0.0)) == expected


def test_a_run_asked_to_stop_says_where_and_goes_on_from_there(tmp_path):
    with pytest.raises(Interrupted, match="goes on from there"):
        optimised(tmp_path / "stopped", run_of(), Control(stop=True))
    assert optimised(tmp_path / "stopped", run_of()) == optimised(tmp_path / "whole", run_of())


@pytest.mark.parametrize("rule", weights.RULES)
def test_a_seed_in_a_block_is_the_seed_alone(tmp_path, rule):
    task = dataclasses.replace(TASK, rule=rule)
    block = optimised(tmp_path / "block", run_of(task, seeds=(3, 4)))
    for seed in (3, 4):
        alone = optimised(tmp_path / str(seed), run_of(task, seeds=(seed,)))
        assert [row for row in block.splitlines() if row.split(b",")[1] == str(seed).encode()] == alone.splitlines()[1:]


def test_every_rule_and_method_meets_the_same_puzzles_and_starts_from_the_same_policy(tmp_path):
    found = []
    for rule in weights.RULES:
        table = optimised(tmp_path / rule, run_of(dataclasses.replace(TASK, rule=rule), "optimizer_reset"))
        found.append([row for row in table.splitlines() if int(row.split(b",")[0].replace(b"step", b"0")) <= 6])
    assert len(found[0]) > 10 and all(other == found[0] for other in found)


def test_what_is_measured_is_written_at_the_ends_of_bins(tmp_path):
    table = optimised(tmp_path, run_of())
    assert (
        sorted({step for step, _, _ in rows(table, "online/loss")}) == [1, 3, 4, 6, 12, 18] == sorted(TASK.bin_ends())
    )
    for metric in ("reward/mean", "ratio/log_std", "ess/ratios", "ess/coefficients", "drift/reference"):
        assert [step for step, seed, _ in rows(table, metric) if seed == 3] == [12, 18]
    assert all(0 <= value <= 1 for _, _, value in rows(table, "reward/mean"))
    assert all(1 / 8 <= value <= 1 for _, _, value in rows(table, "ess/ratios"))


def test_training_by_reward_begins_with_a_task_switch_and_a_reference(tmp_path, monkeypatch):
    told = []
    boundary = update.task_boundary
    monkeypatch.setattr(
        update,
        "task_boundary",
        lambda state, stack, task: (told.append((state.step, task)), boundary(state, stack, task)),
    )
    optimised(tmp_path, run_of())
    assert told == [(6, 1)]


def test_advantages_sum_to_zero_over_the_completions_of_each_puzzle():
    policy = policy_of(dataclasses.replace(TASK, size=2, completions=64))
    rollout = made_up(policy.roll_out(0))
    advantage_SGC = rollout.advantage(64).unflatten(1, (2, 64))
    assert torch.allclose(advantage_SGC.sum(dim=2), torch.zeros(2, 2), atol=1e-5)
    assert torch.equal(rollout.tokens[:, :64, :2], rollout.tokens[:, :1, :2].expand(-1, 64, -1))
    assert not torch.equal(rollout.tokens[:, :1, :2], rollout.tokens[:, 64:65, :2])
    reward_SGC = rollout.reward.unflatten(1, (2, 64))
    assert torch.allclose(advantage_SGC + reward_SGC.mean(dim=2, keepdim=True), reward_SGC)


@pytest.mark.parametrize("rule", weights.RULES)
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_equal_rewards_change_nothing(rule, level):
    policy = policy_of(dataclasses.replace(TASK, rule=rule), optimizer=SGD())
    rollout = policy.roll_out(0)
    rollout = rollout._replace(reward=torch.full_like(rollout.reward, level))
    before = policy.state.flat.detach().clone()
    loss_S, _ = policy.improve(rollout, Measured())
    update.grad_step(policy.state, [loss_S], policy.stack)
    assert torch.equal(policy.state.gradient, torch.zeros_like(policy.state.gradient))
    assert torch.equal(policy.state.flat.detach(), before) and policy.state.alive.all()


def test_ratios_are_noisy_by_masks_of_their_own_and_one_by_common_ones():
    for common, exact in ((True, True), (False, False)):
        policy = policy_of(dataclasses.replace(TASK, common_masks=common))
        measured = Measured()
        policy.improve(policy.roll_out(0), measured)
        found = measured.read()
        assert torch.all((found["ratio/log_std"] < 1e-6) == exact)
        assert torch.all((found["ess/ratios"] > 1 - 1e-6) == exact)


def test_more_masks_make_ratios_less_noisy():
    spreads = []
    for samples in (1, 16):
        policy, measured = policy_of(dataclasses.replace(TASK, samples=samples, prompts=8)), Measured()
        policy.improve(policy.roll_out(0), measured)
        spreads.append(measured.read()["ratio/log_std"])
    assert torch.all(spreads[0] > 2.5 * spreads[1])  # 4 in expectation


def test_an_update_raises_the_likelihood_of_what_was_rewarded():
    task = dataclasses.replace(TASK, samples=32, size=2, completions=32)
    policy = policy_of(task, optimizer=SGD())
    rollout = made_up(policy.roll_out(0))
    loss_S, _ = policy.improve(rollout, Measured())
    update.grad_step(policy.state, [loss_S], policy.stack)
    with torch.no_grad():
        gained_SN = elbo(policy.state.forward, rollout.tokens, rollout.masks) - rollout.log_old
    assert torch.all((gained_SN * rollout.advantage(32)).sum(dim=1) > 0)


def test_the_loss_owns_its_weights_and_the_gradient_is_that_of_its_examples():
    """What reaches the parameters is the sum over examples of coefficient x advantage x gradient of the bound."""
    policy = policy_of(dataclasses.replace(TASK, common_masks=True, rule="self_normalised"))
    rollout = made_up(policy.roll_out(0))
    loss_S, _ = policy.improve(rollout, Measured())
    found = torch.autograd.grad(loss_S.sum(), policy.state.params["output.weight"])[0]
    bound_SN = elbo(policy.state.forward, rollout.tokens, rollout.masks)
    expected = -(bound_SN * rollout.advantage(4) / 8).sum()  # ratios are 1: every example counts alike
    assert found.abs().max() > 1e-3
    assert torch.allclose(found, torch.autograd.grad(expected, policy.state.params["output.weight"])[0], atol=1e-6)


def test_drift_is_what_a_completions_bound_has_gained_on_the_references_by_the_same_masks():
    policy = policy_of()
    policy.reference.copy_(policy.state.flat.detach())
    rollout = policy.roll_out(0)
    assert torch.allclose(policy.drift(rollout), torch.zeros(2), atol=1e-6)
    policy.state.flat.detach().mul_(1.5)
    with torch.no_grad():
        moved_SN = elbo(policy.state.forward, rollout.tokens, rollout.masks)
    gained_S = (moved_SN - rollout.log_old).mean(dim=1)
    assert torch.all(gained_S.abs() > 0.01)
    assert torch.allclose(policy.drift(rollout._replace(log_old=moved_SN)), gained_S, atol=1e-5)


def test_no_reward_is_hidden_from_a_model_that_sees_both_ways():
    """An early token is answered with what stands after it: attention is not causal here, and is elsewhere."""
    for causal in (False, True):
        state = build(dataclasses.replace(MODEL, causal=causal), run_of().optimizer, (3,), TASK.shapes, "cpu")
        one, other = torch.zeros(1, 1, 6, dtype=torch.int64), torch.zeros(1, 1, 6, dtype=torch.int64)
        other[..., -1] = 1
        changed = (state.forward(one) - state.forward(other)).abs().amax(dim=3)[0, 0]
        assert (changed[0] > 0) == (not causal) and changed[-1] > 0


def test_strings_are_a_pure_function_of_seed_and_step():
    tokens, maskable = TASK.strings((3, 4), 5)
    again = dataclasses.replace(TASK).strings((4,), 5)
    assert torch.equal(tokens[1:], again[0]) and torch.equal(maskable[1:], again[1])
    assert not torch.equal(tokens, TASK.strings((3, 4), 6)[0])
    assert not torch.equal(TASK.puzzles_of((3,), 0), TASK.puzzles_of((3,), 1))


def test_strings_are_english_solved_puzzles_and_guesses_in_their_shares():
    task = dataclasses.replace(TASK, pretrain_batch=4000, size=5)
    tokens, maskable = (part[0] for part in task.strings((3,), 0))
    is_text = maskable.all(dim=1)
    assert is_text.float().mean().item() == pytest.approx(task.text, abs=0.03)
    assert torch.all(maskable[~is_text] == (torch.arange(10) >= 5)) and torch.all(tokens[~is_text] < 10)
    reward = task.problem.reward(tokens[~is_text, :5], tokens[~is_text, 5:])
    assert reward.mean().item() == pytest.approx(task.correct, abs=0.04)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(puzzle="sort"), "Did you mean 'sorting'"),
        (dict(rule="stabel"), "Did you mean 'stable'"),
        (dict(clip=(1.1, 1.2)), "0 <= low <= 1 <= high"),
        (dict(samples=0), "samples >= 1; found 0"),
        (dict(completions=1), "completions >= 2; found 1"),
        (dict(correct=1.5), r"correct, a share, in \[0, 1\]; found 1.5"),
        (dict(bins=5), "at most one bin per rollout; found 5 bins in 4"),
        (dict(tokens_per_step=2), "divide the 3 tokens of a completion; found 2"),
    ],
)
def test_impossible_values_are_refused_with_field_value_and_range(change, told):
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(TASK, **change)


@pytest.mark.parametrize("puzzle", ["copying", "countdown"])
def test_every_puzzle_trains(tmp_path, puzzle):
    task = dataclasses.replace(TASK, puzzle=puzzle, tokens_per_step=1)
    assert BENCHMARKS[task.name] is DiffusionPolicy
    assert len(rows(optimised(tmp_path, run_of(task)), "reward/mean")) == 4


def test_a_ratio_beyond_all_numbers_is_a_divergence_of_that_seed_alone(tmp_path, monkeypatch):
    roll_out = Policy.roll_out

    def wild(self, number):
        rollout = roll_out(self, number)
        rollout.log_old[:1] -= 1e4
        stream = torch.Generator().manual_seed(number)
        return rollout._replace(reward=torch.randint(2, rollout.reward.shape, generator=stream).float())

    monkeypatch.setattr(loop.Policy, "roll_out", wild)
    for rule, survivors in (("conditional", [False, True]), ("stable", [True, True])):
        run = run_of(dataclasses.replace(TASK, rule=rule), "baseline")
        folder = RunFolder(tmp_path / rule, run)
        folder.open()
        ended = optimise(run, folder, data_dir=None, device="cpu", control=Control())
        assert [seed["status"] == "complete" for seed in ended["status"]] == survivors
