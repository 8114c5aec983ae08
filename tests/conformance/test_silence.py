"""Self-normalised resets and ReGraMa: traces that can be computed by hand, and exactly the slices they name.

S seeds, B batch, U units. Helpers and expected slices are those of test_resets.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conformance.test_resets import NETWORKS, SILENT, acts_where, advance, assert_reset, made, remembered

from nap_bench import checkpoint
from nap_bench.experiments.arms import entry
from nap_bench.methods import parse_stack, stack_of
from nap_bench.methods.regrama import ReGraMa
from nap_bench.methods.snr import fires
from nap_bench.optimizers import SGD, Adam


def after(state, methods, silent=(), net="mlp"):
    """One more update, of which only what follows the step is done: all units fire but the silent (layer, seed, unit)."""
    state.step += 1
    state.acts = acts_where(state, silent, seeds=len(state.seeds), net=net)
    next(iter(methods)).after_step(state)


def of_unit(state, key: str, seed: int = 0, unit: int = 0):
    return state.slots["snr"][key][seed, unit].tolist()


def test_an_age_counts_silent_updates_and_a_gap_ends_where_the_unit_fires():
    state, methods = made("snr(start=50, refresh=1000, longest=60)", seeds=(0,))
    ages = []
    for fired in (True, False, False, True, True, False, True):
        after(state, methods, [] if fired else [(0, 0, 0)])
        ages.append(of_unit(state, "age"))
    assert ages == [0, 1, 2, 0, 0, 1, 0]
    gaps = of_unit(state, "counts")
    assert gaps[:4] == [2, 1, 1, 0] and sum(gaps) == 4  # of 1, 3, 1 and 2 updates
    assert of_unit(state, "counts", unit=1)[0] == 7  # it always fires


def test_a_threshold_is_the_percentile_of_a_units_own_gaps():
    """Gaps of 1, 3, 1, 2: three quarters of them are at most 2, half at most 1, all at most 3."""
    for percentile, wanted in ((0.5, 1), (0.75, 2), (0.9, 3)):
        state, methods = made(f"snr(percentile={percentile}, start=50, refresh=7, longest=60)", seeds=(0,))
        for fired in (True, False, False, True, True, False, True):
            after(state, methods, [] if fired else [(0, 0, 0)])
        assert of_unit(state, "threshold") == wanted and of_unit(state, "threshold", unit=1) == 1
        assert not state.slots["snr"]["counts"].any(), "counting starts anew"


def test_a_threshold_is_never_less_than_the_shortest():
    """Gaps of 1, 3, 1, 2, and of 1 alone in the second unit."""
    state, methods = made("snr(percentile=0.9, start=50, refresh=7, shortest=2)", seeds=(0,))
    for fired in (True, False, False, True, True, False, True):
        after(state, methods, [] if fired else [(0, 0, 0)])
    assert of_unit(state, "threshold") == 3 and of_unit(state, "threshold", unit=1) == 2


def test_a_unit_starts_anew_at_the_update_at_which_it_is_silent_for_its_threshold():
    state, methods = made("snr(start=3, refresh=1000, longest=60)")
    before = state.params["linears.0.weight"].detach().clone()
    changed = []
    for _ in range(7):
        after(state, methods, [(0, 1, 2)])
        now = state.params["linears.0.weight"].detach()
        changed.append(not torch.equal(now, before))
        before = now.clone()
    assert changed == [False, False, True, False, False, True, False]
    assert of_unit(state, "counts", 1, 2)[:5] == [0, 0, 0, 2, 0]  # twice a gap of 3 silent updates and more: at least 4


def test_a_threshold_that_its_gaps_exceed_grows_and_stays_within_the_longest():
    """Always reset at the threshold, a unit shows no gap's true length: 3, 6, 12, then the longest, 20."""
    state, methods = made("snr(start=3, refresh=40, longest=20)", seeds=(0,))
    found = []
    for _ in range(160):
        after(state, methods, [(0, 0, 0)])
        if state.step % 40 == 0:
            found.append(of_unit(state, "threshold"))
    assert found == [6, 12, 20, 20]


def test_a_unit_of_which_no_gap_ended_keeps_its_threshold():
    """The authors' code divides by zero counts there and so takes the smallest threshold."""
    state, methods = made("snr(start=30, refresh=10, longest=60)", seeds=(0,))
    for _ in range(20):
        after(state, methods, [(0, 0, 0)])
    assert of_unit(state, "threshold") == 30 and of_unit(state, "age") == 20


def test_of_memoryless_units_the_share_of_gaps_that_end_in_a_reset_is_that_of_the_law():
    """Units that fire with probability 1/2: P(gap > g) = 2^-g, so the 0.9 percentile is 4 and 1/16 of the gaps exceed it."""
    state, methods = made("snr(percentile=0.9, start=50, refresh=3000, longest=60)")
    gen = torch.Generator().manual_seed(0)

    def update() -> int:
        """How many units were reset."""
        state.step += 1
        fires_SU = torch.rand(2, 7, generator=gen) < 0.5
        state.acts = {"layer0": fires_SU[:, None, :4].float(), "layer1": fires_SU[:, None, 4:].float()}
        before = state.slots["snr"]["age"].clone()
        next(iter(methods)).after_step(state)
        return int(((state.slots["snr"]["age"] == 0) & ~fires_SU & (before > 0)).sum())

    assert sum(update() for _ in range(3000)) == 0  # nobody is silent for 50 updates
    assert state.slots["snr"]["threshold"].eq(4).all()
    num_resets = sum(update() for _ in range(600))
    num_gaps = int(state.slots["snr"]["counts"].sum())
    assert abs(num_resets / num_gaps - 1 / 16) < 4 * (15 / 256 / num_gaps) ** 0.5


def test_thresholds_ages_and_draws_of_one_seed_do_not_depend_on_the_others():
    """The authors' code shares one key and one batch between the runs that it stacks: resets there are correlated."""
    state, methods = made("snr(percentile=0.5, start=2, refresh=4, longest=20)", seeds=(0, 1))
    for step in range(8):
        after(state, methods, [(0, 0, 1), (0, 1, 1)] if step % 3 else [(0, 0, 1)])
    weight = state.params["linears.0.weight"].detach()[:, :, 1]
    assert weight[0].ne(weight[1]).all()
    alone, methods = made("snr(percentile=0.5, start=2, refresh=4, longest=20)", seeds=(1,))
    for step in range(8):
        after(alone, methods, [(0, 0, 1)] if step % 3 else [])
    assert torch.equal(alone.flat[0], state.flat[1])
    for key, slot in alone.slots["snr"].items():
        assert torch.equal(slot[0], state.slots["snr"][key][1])
    assert of_unit(state, "threshold", 0, 1) != of_unit(state, "threshold", 1, 1)


def test_a_unit_fires_where_any_example_or_pixel_is_positive():
    act = torch.zeros(2, 3, 4)
    act[0, 2, 1], act[1] = 1e-9, -1.0
    assert fires(act).tolist() == [[False, True, False, False], [False] * 4]
    maps = torch.zeros(1, 2, 2, 3, 3)
    maps[0, 1, 1, 2, 2] = 0.5
    assert fires(maps).tolist() == [[False, True]]


@pytest.mark.parametrize("optimizer", [Adam(), SGD(momentum=0.9)], ids=["adam", "momentum"])
@pytest.mark.parametrize("net", NETWORKS)
def test_snr_resets_exactly_what_belongs_to_the_units_that_are_due(net, optimizer):
    state, methods = made("snr(start=1)", net, optimizer=optimizer)
    advance(state, stack_of(()), 3, net)
    before, moments = remembered(state)
    step = {key: value.clone() for key, value in state.optimizer.memory.items() if key == "step"}
    after(state, methods, SILENT[net], net)
    assert_reset(net, state, before, moments, SILENT[net])
    assert all(torch.equal(state.optimizer.memory[key], value) for key, value in step.items())


def test_a_reset_unit_is_drawn_anew_every_time_from_its_initial_distribution():
    state, methods = made("snr(start=1)", seeds=(0,))
    draws = [state.fresh("linears.0.weight")[0, :, 1]]
    for _ in range(3):
        after(state, methods, [(0, 0, 1)])
        draws.append(state.params["linears.0.weight"].detach()[0, :, 1].clone())
    assert torch.cat(draws).unique().numel() == 20 and torch.cat(draws).abs().max() <= 5**-0.5


def test_snr_goes_on_from_a_checkpoint_file_with_the_same_bits(tmp_path):
    stack = "snr(percentile=0.5, start=2, refresh=5, longest=9)"
    whole, methods = made(stack)
    advance(whole, methods, 12)
    checkpoint.save(tmp_path / "checkpoint", "run", "cpu", {"state": whole.state_dict()})
    advance(whole, methods, 12)
    resumed, methods = made(stack)
    resumed.load_state_dict(checkpoint.load(tmp_path / "checkpoint", "run", "cpu")["state"])
    advance(resumed, methods, 12)
    assert torch.equal(resumed.flat, whole.flat)
    assert all(torch.equal(resumed.slots["snr"][key], slot) for key, slot in whole.slots["snr"].items())


def test_regrama_scores_have_mean_one_and_average_what_comes_in():
    gradient_SUI = torch.tensor([[[4.0, -2.0], [0.0, 0.0], [1.0, 0.0], [-1.5, 1.0]]])  # 3, 0, 0.5, 1.25; mean 1.1875
    assert torch.allclose(ReGraMa.score(gradient_SUI), torch.tensor([[3.0, 0.0, 0.5, 1.25]]) / 1.1875)
    assert torch.equal(ReGraMa.score(1e-12 * gradient_SUI) <= 0.01, ReGraMa.score(gradient_SUI) <= 0.01)


def test_a_layer_that_no_gradient_reaches_is_left_alone():
    assert not (ReGraMa.score(torch.zeros(2, 4, 3)) <= 1.0).any()


def without_gradient(state, net: str, units):
    """A gradient of ones but for what comes into the units (layer, seed, unit)."""
    state.gradient.fill_(1.0)
    path = {"mlp": "linears", "cnn": "layers"}[net]
    for layer, seed, unit in units:
        gradient = state.view(state.flat.grad, f"{path}.{layer}.weight")[seed]
        (gradient if gradient.dim() == 4 else gradient.T)[unit] = 0.0


@pytest.mark.parametrize("optimizer", [Adam(), SGD(momentum=0.9)], ids=["adam", "momentum"])
@pytest.mark.parametrize("net", NETWORKS)
def test_regrama_resets_exactly_the_units_that_no_gradient_reaches(net, optimizer):
    state, methods = made("regrama(period=1)", net, optimizer=optimizer)
    advance(state, stack_of(()), 3, net)
    before, moments = remembered(state)
    without_gradient(state, net, SILENT[net])
    next(iter(methods)).after_step(state)
    assert_reset(net, state, before, moments, SILENT[net])


def test_regrama_acts_every_period_and_at_no_other_step():
    state, methods = made("regrama(period=3)")
    changed = []
    for state.step in range(1, 8):
        without_gradient(state, "mlp", [(0, 0, 1)])
        before = state.flat.detach().clone()
        next(iter(methods)).after_step(state)
        changed.append(not torch.equal(state.flat, before))
    assert changed == [False, False, True, False, False, True, False]


def test_where_redo_sees_a_quiet_unit_regrama_sees_one_that_learns():
    """A unit may be small and learn: the gradient of what comes into it says so; a saturated one is large and does not."""
    state, methods = made("redo(period=1)+regrama(period=1)")
    state.acts = acts_where(state, [(0, 0, 1), (0, 1, 1)])
    without_gradient(state, "mlp", [(0, 0, 2), (0, 1, 2)])
    masks = {}
    for method in methods:
        before = state.params["linears.0.weight"].detach().clone()
        method.after_step(state)
        masks[method.name] = state.params["linears.0.weight"].ne(before).any(dim=1)[0].nonzero().flatten().tolist()
        state.params["linears.0.weight"].detach().copy_(before)
    assert masks == {"redo": [1], "regrama": [2]}


@pytest.mark.parametrize("reset_norm", [False, True])
@pytest.mark.parametrize("stack", ["snr(start=1", "regrama(period=1"])
def test_scale_and_offset_start_anew_only_if_asked(stack, reset_norm):
    state, methods = made(f"layer_norm+{stack}, reset_norm={reset_norm})")
    state.params["norms.0.scale"].detach().fill_(3.0)
    state.params["norms.0.offset"].detach().fill_(4.0)
    state.acts, state.step = acts_where(state, [(0, 0, 1)]), 1
    without_gradient(state, "mlp", [(0, 0, 1)])
    {method.name: method for method in methods}[stack.partition("(")[0]].after_step(state)
    wanted = (1.0, 0.0) if reset_norm else (3.0, 4.0)
    assert (state.params["norms.0.scale"][0, 1].item(), state.params["norms.0.offset"][0, 1].item()) == wanted
    assert state.params["norms.0.scale"][0, 0] == 3.0


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("stack", ["snr(start=1, percentile=0.5)", "regrama(period=2, tau=1.0)"])
def test_a_projection_follows_a_reset_at_once(stack, net):
    state, methods = made(f"nap+{stack}", net)
    start = {group.name: state.group_norm(group).clone() for group in state.groups[:-1]}
    for _ in range(4):
        advance(state, methods, 1, net)
        for group in state.groups[:-1]:
            assert torch.allclose(state.group_norm(group), start[group.name], rtol=1e-5)


@pytest.mark.parametrize("stack", ["snr(start=1, percentile=0.5)", "regrama(period=1, tau=1.0)"])
def test_a_diverged_seed_does_not_touch_the_others(stack):
    block, methods = made(stack, seeds=(0, 1, 2))
    block.params["linears.0.weight"].detach()[1] = float("nan")
    advance(block, methods, 6)
    for index, seed in ((0, 0), (2, 2)):
        alone, methods = made(stack, seeds=(seed,))
        advance(alone, methods, 6)
        assert torch.equal(alone.flat[0], block.flat[index])
    assert block.alive.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("stack", "activation", "reason"),
    [
        ("snr", "tanh", "does not fall silent"),
        ("snr", "crelu", "does not fall silent"),
        ("snr", "leaky_relu", None),
        ("regrama(tau=0.0)", "tanh", "which 'tanh' never makes"),
        ("regrama", "crelu", None),
    ],
)
def test_a_cell_in_which_nothing_could_be_meant_says_why(stack, activation, reason):
    run = entry("laptop", "baseline", {}, seeds=(0,)).run
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, activation=activation))
    found = stack_of(parse_stack(stack)).why_not(run)
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("snr(percentile=1.0)", r"snr wants percentile in \(0, 1\) or None; found 1.0"),
        ("snr(start=0)", "snr wants 1 <= shortest <= start <= longest; found 1, 0 and 1000"),
        ("snr(start=2000)", "snr wants 1 <= shortest <= start <= longest; found 1, 2000 and 1000"),
        ("snr(shortest=101)", "snr wants 1 <= shortest <= start <= longest; found 101, 100 and 1000"),
        ("snr(refresh=0)", "snr wants refresh >= 1 and expansion >= 1; found 0 and 2.0"),
        ("snr(expansion=0.5)", "found 1000 and 0.5"),
        ("regrama(period=0)", "regrama wants a whole period >= 1 or None; found 0"),
        ("regrama(tau=1.5)", r"regrama wants tau in \[0, 1\]; found 1.5"),
    ],
)
def test_a_bad_hyperparameter_is_named_with_its_value_and_range(text, message):
    with pytest.raises(ValueError, match=message):
        parse_stack(text)
