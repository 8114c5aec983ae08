"""Methods that start units, layers or everything anew: traces that can be computed by hand, and exactly the slices they name.

S seeds, B batch, U units. Expected slices are written in the parameters' own layout, not through `by_unit`.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from nap_bench import checkpoint, update
from nap_bench.experiments.arms import entry
from nap_bench.methods import parse_stack, stack_of
from nap_bench.methods.redo import ReDo
from nap_bench.models.roles import Role
from nap_bench.optimizers import SGD, Adam
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

NETWORKS = {
    "mlp": (ModelSpec(family="mlp", size=(("widths", (4, 3)),)), ((5,), 2)),
    "cnn": (
        ModelSpec(family="cnn", size=(("channels", (3, 4)), ("kernel", 3), ("pool_after", (1,)), ("widths", (3,)))),
        ((1, 4, 4), 2),
    ),
}
INCOMING = {"mlp": "linears", "cnn": "layers"}
PIXELS = 4
"""Of the last feature map of the cnn, 4 x 4 after pooling: each of its channels feeds that many rows of the first linear layer."""


def made(stack: str, net="mlp", seeds=(0, 1), optimizer=None, **edits):
    methods = stack_of(parse_stack(stack))
    spec, shapes = NETWORKS[net]
    spec = methods.transform_model(dataclasses.replace(spec, **edits))
    state = build(spec, Part.of(optimizer or Adam()), seeds, shapes, "cpu")
    state.lr.fill_(0.01)
    methods.setup(state)
    return state, methods


def advance(state, methods, num_steps=1, net="mlp"):
    """Train on noise that depends on the step and the seed alone."""
    shape = NETWORKS[net][1][0]
    for _ in range(num_steps):
        drawn = [torch.Generator().manual_seed(1000 * seed + state.step) for seed in state.seeds]
        inputs = torch.stack([torch.randn(6, *shape, generator=gen) for gen in drawn])
        y_SB = torch.stack([torch.randint(2, (6,), generator=gen) for gen in drawn])
        out_SBK = update.forward(state, methods, inputs)
        losses_SB = F.cross_entropy(out_SBK.flatten(0, 1), y_SB.flatten(), reduction="none").view_as(y_SB)
        update.grad_step(state, [losses_SB.mean(dim=1)], methods)
        update.tail(state, methods)


def slices(net: str, state, resets) -> tuple[dict, dict]:
    """Parameter -> bool mask of what belongs to the (layer, seed, unit) given: what comes in, and what goes out."""
    path, last = INCOMING[net], len(state.units) - 1
    coming = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in state.params.items()}
    going = {name: mask.clone() for name, mask in coming.items()}
    for layer, seed, unit in resets:
        weight = coming[f"{path}.{layer}.weight"][seed]
        (weight if weight.dim() == 4 else weight.T)[unit] = True  # [O, I, 3, 3] or [I, O]
        if f"{path}.{layer}.bias" in coming:
            coming[f"{path}.{layer}.bias"][seed, unit] = True
        after = going["output.weight" if layer == last else f"{path}.{layer + 1}.weight"][seed]
        if after.dim() == 4:
            after[:, unit] = True
        elif net == "cnn" and layer == last - 1:
            after[unit * PIXELS : (unit + 1) * PIXELS] = True
        else:
            after[unit] = True
    return coming, going


def acts_where(state, silent, seeds=2, net="mlp"):
    """Post-activations of ones, and zeros where (layer, seed, unit) is silent."""
    size = {"mlp": [(4,), (3,)], "cnn": [(3, 4, 4), (4, 4, 4), (3,)]}[net]
    acts = {f"layer{index}": torch.ones(seeds, 6, *shape) for index, shape in enumerate(size)}
    for layer, seed, unit in silent:
        acts[f"layer{layer}"][seed, :, unit] = 0.0
    return acts


def assert_reset(net, state, before, moments, resets):
    """Exactly the named slices are new, their biases and what goes out of them 0, their moments 0; all else is bitwise old."""
    coming, going = slices(net, state, resets)
    for name, parameter in state.params.items():
        new = parameter.detach()
        touched = coming[name] | going[name]
        assert torch.equal(new[~touched], before[name][~touched]), name
        assert new[going[name]].eq(0.0).all(), name
        fresh = new[coming[name] & ~going[name]]
        if state.roles[name] is Role.BIAS:
            assert fresh.eq(0.0).all(), name
        else:
            assert fresh.ne(before[name][coming[name] & ~going[name]]).all(), name
            assert fresh.numel() == 0 or fresh.unique().numel() == fresh.numel(), f"{name}: one draw for several units"
        for key, moment in state.optimizer.moments(name).items():
            assert moment[touched].eq(0.0).all(), f"{key} of {name}"
            assert torch.equal(moment[~touched], moments[name][key][~touched]), f"{key} of {name}"


def remembered(state):
    parameters = {name: p.detach().clone() for name, p in state.params.items()}
    moments = {name: {key: m.clone() for key, m in state.optimizer.moments(name).items()} for name in state.params}
    return parameters, moments


def test_redo_scores_have_mean_one_over_a_layer_and_not_sum_one():
    act_SBU = torch.tensor([[[4.0, 0.0, 0.1, 1.0], [4.0, 0.0, -0.3, 2.6]]])  # E|h| = 4, 0, 0.2, 1.8; mean 1.5
    assert torch.allclose(ReDo.score(act_SBU), torch.tensor([[4 / 1.5, 0.0, 0.2 / 1.5, 1.8 / 1.5]]))


def test_a_redo_score_of_a_feature_map_averages_batch_and_space():
    maps = torch.zeros(1, 2, 2, 2, 2)
    maps[0, 0, 0] = torch.tensor([[8.0, 0.0], [0.0, 0.0]])  # one pixel of eight: E|h| = 1
    maps[0, :, 1] = -3.0  # E|h| = 3, mean of both 2
    assert torch.allclose(ReDo.score(maps), torch.tensor([[0.5, 1.5]]))


def test_redo_scores_each_seed_by_itself():
    act_SBU = torch.rand(3, 5, 4)
    act_SBU[1] *= 100
    assert torch.equal(ReDo.score(act_SBU)[1], ReDo.score(act_SBU[1:2])[0])


@pytest.mark.parametrize(("tau", "dormant"), [(0.0, [1]), (0.1, [1]), (0.14, [1, 2]), (1.0, [1, 2])])
def test_units_at_or_below_tau_are_recycled_and_no_others(tau, dormant):
    state, methods = made(f"redo(period=1, tau={tau})", seeds=(0,))
    state.acts = acts_where(state, [], seeds=1)
    state.acts["layer0"][0] = torch.tensor([4.0, 0.0, 0.2, 1.8])
    before = state.params["linears.0.weight"].detach().clone()
    list(methods)[0].after_step(state)
    changed = state.params["linears.0.weight"].ne(before).any(dim=1)[0]
    assert changed.nonzero().flatten().tolist() == dormant


SILENT = {
    "mlp": [(0, 0, 1), (0, 1, 3), (0, 1, 0), (1, 0, 2), (1, 1, 0)],
    "cnn": [(0, 0, 1), (1, 0, 2), (1, 1, 3), (1, 1, 0), (2, 0, 0), (2, 1, 2)],
}
"""(layer, seed, unit): neighbouring layers have silent units in both seeds, so what comes in and what goes out meet."""


@pytest.mark.parametrize("optimizer", [Adam(), SGD(momentum=0.9)], ids=["adam", "momentum"])
@pytest.mark.parametrize("net", NETWORKS)
def test_redo_resets_exactly_what_belongs_to_dormant_units(net, optimizer):
    state, methods = made("redo(period=1, tau=0.0)", net, optimizer=optimizer)
    advance(state, stack_of(()), 3, net)
    before, moments = remembered(state)
    state.acts = acts_where(state, SILENT[net], net=net)
    list(methods)[0].after_step(state)
    assert_reset(net, state, before, moments, SILENT[net])


def test_where_a_dormant_unit_feeds_a_dormant_unit_the_weight_between_is_zero():
    state, methods = made("redo(period=1)")
    state.acts = acts_where(state, [(0, 0, 1), (1, 0, 2)])
    list(methods)[0].after_step(state)
    assert state.params["linears.1.weight"][0, 1, 2] == 0.0
    assert state.params["linears.1.weight"][0, [0, 2, 3], 2].ne(0.0).all()


def test_redo_leaves_the_head_its_bias_and_the_step_count():
    state, methods = made("redo(period=1)")
    advance(state, stack_of(()), 4)
    bias, step = state.params["output.bias"].detach().clone(), state.optimizer.memory["step"].clone()
    state.acts = acts_where(state, [(1, 0, 0)])
    list(methods)[0].after_step(state)
    assert torch.equal(state.params["output.bias"], bias) and torch.equal(state.optimizer.memory["step"], step)
    assert state.params["output.weight"][0, 1:].ne(0.0).all()


def test_a_layer_that_is_zero_throughout_is_recycled_as_a_whole():
    state, methods = made("redo(period=1, tau=0.0)")
    state.acts = acts_where(state, [(0, 0, unit) for unit in range(4)])
    before = state.params["linears.0.weight"].detach().clone()
    list(methods)[0].after_step(state)
    assert state.params["linears.0.weight"][0].ne(before[0]).all()
    assert torch.equal(state.params["linears.0.weight"][1], before[1])


def test_a_recycled_unit_is_drawn_anew_and_not_put_back_where_it_started():
    state, methods = made("redo(period=1)")
    draws = []
    for step in (1, 2):
        state.step = step
        state.acts = acts_where(state, [(0, 0, 1)])
        list(methods)[0].after_step(state)
        draws.append(state.params["linears.0.weight"][0, :, 1].detach().clone())
    initial = state.fresh("linears.0.weight")[0, :, 1]
    assert draws[0].ne(draws[1]).all() and draws[0].ne(initial).all()
    assert torch.stack(draws).abs().max() <= 5**-0.5  # U(+-1/sqrt(fan_in))


def test_recycling_happens_every_period_and_at_no_other_step():
    state, methods = made("redo(period=3, tau=1.0)")
    changed = []
    for step in range(1, 8):
        state.step = step
        state.acts = acts_where(state, [(0, 0, 1)])
        before = state.flat.detach().clone()
        list(methods)[0].after_step(state)
        changed.append(not torch.equal(state.flat, before))
    assert changed == [False, False, True, False, False, True, False]


def test_an_evaluation_between_updates_is_not_what_redo_scores():
    state, methods = made("redo")
    advance(state, methods, 1)
    scored = state.acts
    state.forward(torch.zeros(2, 50, 5), {})
    assert state.acts is scored and scored["layer0"].shape == (2, 6, 4)


@pytest.mark.parametrize("stack", ["redo(period=1", "continual_backprop(rate=1.0, maturity=0"])
@pytest.mark.parametrize("reset_norm", [False, True])
def test_scale_and_offset_start_anew_only_if_asked(stack, reset_norm):
    state, methods = made(f"layer_norm+{stack}, reset_norm={reset_norm})")
    advance(state, stack_of(()), 3)
    for index in (0, 1):
        state.params[f"norms.{index}.scale"].detach().fill_(3.0)
        state.params[f"norms.{index}.offset"].detach().fill_(4.0)
    state.acts = acts_where(state, [(0, 0, 1)])
    state.step += 1
    moments = {key: moment.clone() for key, moment in state.optimizer.moments("norms.0.scale").items()}
    {method.name: method for method in methods}[stack.partition("(")[0]].after_step(state)
    is_reset = state.params["norms.0.scale"][0, 1] == 1.0 and state.params["norms.0.offset"][0, 1] == 0.0
    assert is_reset == reset_norm
    for key, moment in state.optimizer.moments("norms.0.scale").items():
        assert moments[key][0, 1] != 0.0 and moment[0, 1] == (0.0 if reset_norm else moments[key][0, 1])
    if stack.startswith("redo"):
        assert state.params["norms.0.scale"][0, 0] == 3.0 and state.params["norms.1.offset"][1, 0] == 4.0


def replaced(state, methods, num_steps):
    """How many units of each layer were replaced, step by step, from their ages; the same for every seed."""
    counts = []
    for _ in range(num_steps):
        advance(state, methods, 1)
        fresh = state.slots["continual_backprop"]["age"].eq(0.0).split([units.size for units in state.units], dim=1)
        each = [layer.sum(dim=1) for layer in fresh]
        assert all(layer.eq(layer[0]).all() for layer in each)
        counts.append([int(layer[0]) for layer in each])
    return counts


def test_replacements_are_saved_up_from_fractions_of_the_mature_units():
    """rate 1/4, maturity 2, layers of 4 and 3. Nobody is mature at ages 1 and 2; then owed grows by (mature units) / 4:

    layer 0: 4/4 -> 1 | 3/4 | 3/4 + 3/4 -> 1, 1/2 left | two mature and the first replaced one again: 1/2 + 3/4 -> 1
    layer 1: 3/4 | 3/4 + 3/4 -> 1, 1/2 left | 1/2 + 2/4 -> 1 | 1/4
    """
    state, methods = made("continual_backprop(rate=0.25, maturity=2)")
    assert replaced(state, methods, 6) == [[0, 0], [0, 0], [1, 0], [0, 1], [1, 1], [1, 0]]


@pytest.mark.parametrize(("rate", "maturity"), [(0.1, 0), (0.07, 3), (0.3, 5), (0.9, 1), (1.0, 2)])
def test_the_host_counts_as_many_mature_units_as_the_ages_say(rate, maturity):
    state, methods = made(f"continual_backprop(rate={rate}, maturity={maturity})")
    mature_steps, total = [0, 0], [0, 0]
    for _ in range(25):
        ages = state.slots["continual_backprop"]["age"].split([4, 3], dim=1)
        mature_steps = [n + int((age[0] + 1 > maturity).sum()) for n, age in zip(mature_steps, ages, strict=True)]
        [counts] = replaced(state, methods, 1)
        total = [n + m for n, m in zip(total, counts, strict=True)]
        wanted = [rate * n for n in mature_steps]
        assert all(n <= w + 1e-9 < n + 1 + 2e-9 for n, w in zip(total, wanted, strict=True))
    assert min(total) > 0


def test_utility_is_a_running_mean_of_activation_times_outgoing_weights():
    state, methods = made("continual_backprop(rate=1e-6, decay=0.9)")
    state.params["linears.1.weight"].detach().fill_(-0.5)  # three of them go out of each unit: 1.5
    state.params["output.weight"].detach().fill_(2.0)  # two: 4
    state.acts = {"layer0": torch.ones(2, 6, 4), "layer1": torch.zeros(2, 6, 3)}
    state.acts["layer0"][:, :3, 2] = -5.0  # E|h| = 3
    state.acts["layer1"][1, 0, 0] = 6.0  # E|h| = 1
    slots = state.slots["continual_backprop"]
    for times in (1, 2, 3):
        list(methods)[0].after_step(state)
        share = 1 - 0.9**times
        assert torch.allclose(slots["utility"][:, :4], share * torch.tensor([1.5, 1.5, 4.5, 1.5]))
        assert torch.allclose(slots["utility"][:, 4:], share * torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]]))
        assert slots["age"].eq(times).all()


@pytest.mark.parametrize(("utility", "factor"), [("zero_contribution", 1.0), ("adaptable_contribution", 1 / 2.5)])
def test_the_other_utilities_subtract_the_running_mean_and_divide_by_incoming_weights(utility, factor):
    state, methods = made(f"continual_backprop(rate=1e-6, decay=0.5, utility={utility!r})")
    state.params["linears.0.weight"].detach().fill_(0.5)  # five come in: 2.5
    state.params["linears.1.weight"].detach().fill_(1.0)  # three go out: 3
    slots = state.slots["continual_backprop"]
    state.acts = acts_where(state, [])
    list(methods)[0].after_step(state)  # m = 1 after bias correction: nothing is left of constant ones
    assert slots["utility"][:, :4].eq(0.0).all() and slots["mean"].eq(0.5).all()
    state.acts = {name: 4 * act for name, act in acts_where(state, []).items()}
    list(methods)[0].after_step(state)  # mean 0.5 * 0.5 + 0.5 * 4 = 2.25, m = 2.25 / 0.75 = 3, |4 - 3| = 1
    assert torch.allclose(slots["mean"], torch.tensor(2.25))
    assert torch.allclose(slots["utility"][:, :4], torch.tensor(0.5 * 3.0 * factor))


def test_utility_of_a_feature_map_averages_over_space_and_sums_over_all_it_feeds():
    state, methods = made("continual_backprop(rate=1e-6, decay=0.0)", "cnn")
    for name in state.params:
        state.params[name].detach().fill_(1.0)
    state.acts = acts_where(state, [], net="cnn")
    state.acts["layer1"][:, :, 2, 0, 0] = 17.0  # one pixel of 16: E|h| = 2
    list(methods)[0].after_step(state)
    utility = state.slots["continual_backprop"]["utility"]
    assert utility[0, :3].eq(4 * 9).all()  # a channel feeds 4 channels through 3 x 3 weights
    assert utility[0, 3:7].tolist() == [12.0, 12.0, 24.0, 12.0]  # 4 pixels of 3 units
    assert utility[0, 7:].eq(2.0).all()


def test_units_are_ranked_by_the_bias_corrected_utility():
    """A unit just mature has seen (1 - 0.99^101) of its utility: by the raw mean it would be killed again."""
    state, methods = made("continual_backprop(rate=0.25)")
    slots = state.slots["continual_backprop"]
    slots["age"][:] = 5000.0
    slots["age"][:, 1] = 101.0
    slots["census"][:] = [[4, 0, []], [3, 0, []]]
    corrected = torch.tensor([1.0, 1.2, 1.3, 1.4])
    state.acts = {"layer0": corrected.expand(2, 6, 4).clone(), "layer1": torch.ones(2, 6, 3)}
    state.params["linears.1.weight"].detach().fill_(1 / 3)
    slots["utility"][:, :4] = corrected
    slots["utility"][:, 1] *= 1 - 0.99**101
    assert slots["utility"][0, 1] < slots["utility"][0, 0]
    list(methods)[0].after_step(state)
    assert slots["age"][:, :4].eq(0.0).tolist() == [[True, False, False, False]] * 2


def test_a_new_unit_is_safe_until_it_is_older_than_the_maturity_threshold():
    state, methods = made("continual_backprop(rate=0.25, maturity=3)", seeds=(0,))
    ages_of_the_replaced = []
    for _ in range(40):
        before = state.slots["continual_backprop"]["age"].clone()
        advance(state, methods, 1)
        dead = state.slots["continual_backprop"]["age"].eq(0.0)
        ages_of_the_replaced += (before[dead] + 1).tolist()
    assert len(ages_of_the_replaced) > 10 and min(ages_of_the_replaced) == 4


@pytest.mark.parametrize("optimizer", [Adam(), SGD(momentum=0.9)], ids=["adam", "momentum"])
@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize(("rate", "num"), [(0.34, 1), (0.67, 2)])
def test_continual_backprop_replaces_exactly_the_chosen_units(net, optimizer, rate, num):
    """One or two thirds of each layer, which has 3 or 4 units: the silent ones, whose utility is 0."""
    layers = range(2 if net == "mlp" else 3)
    silent = [(layer, seed, (seed + layer + i) % 3) for layer in layers for seed in (0, 1) for i in range(num)]
    state, methods = made(f"continual_backprop(rate={rate}, maturity=0)", net, optimizer=optimizer)
    advance(state, stack_of(()), 3, net)
    before, moments = remembered(state)
    step = {key: value.clone() for key, value in state.optimizer.memory.items() if key == "step"}
    state.acts = acts_where(state, silent, net=net)
    list(methods)[0].after_step(state)
    assert_reset(net, state, before, moments, silent)
    assert all(torch.equal(state.optimizer.memory[key], value) for key, value in step.items())
    age = state.slots["continual_backprop"]["age"]
    assert (age == 0).sum() == len(silent) and state.slots["continual_backprop"]["utility"][age == 0].eq(0.0).all()


def test_the_biases_that_a_replaced_unit_fed_do_not_change():
    """The authors' code means to add the lost contribution to them, but has set it to zero by then."""
    state, methods = made("continual_backprop(rate=0.34, maturity=0)")
    advance(state, stack_of(()), 3)
    before = {name: state.params[name].detach().clone() for name in ("linears.1.bias", "output.bias")}
    state.acts = acts_where(state, [(0, 0, 0), (0, 1, 0), (1, 0, 2), (1, 1, 2)])
    list(methods)[0].after_step(state)
    assert torch.equal(state.params["output.bias"], before["output.bias"])
    assert torch.equal(state.params["linears.1.bias"][:, :2], before["linears.1.bias"][:, :2])


def test_of_units_with_equal_utility_the_first_is_replaced():
    state, methods = made("continual_backprop(rate=0.5, maturity=0)")
    state.acts, state.step = {"layer0": torch.zeros(2, 6, 4), "layer1": torch.ones(2, 6, 3)}, 1
    list(methods)[0].after_step(state)
    assert state.slots["continual_backprop"]["age"][:, :4].tolist() == [[0.0, 0.0, 1.0, 1.0]] * 2


def test_continual_backprop_goes_on_from_a_checkpoint_file_with_the_same_bits(tmp_path):
    stack = "continual_backprop(rate=0.1, maturity=3, utility='zero_contribution')"
    whole, methods = made(stack)
    advance(whole, methods, 11)
    checkpoint.save(tmp_path / "checkpoint", "run", "cpu", {"state": whole.state_dict()})
    advance(whole, methods, 20)
    resumed, methods = made(stack)
    resumed.load_state_dict(checkpoint.load(tmp_path / "checkpoint", "run", "cpu")["state"])
    advance(resumed, methods, 20)
    assert torch.equal(resumed.flat, whole.flat)
    assert resumed.slots["continual_backprop"]["census"] == whole.slots["continual_backprop"]["census"]


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize(("layers", "first_reset"), [(1, 2), (2, 1), (3, 0)])
def test_a_layer_reset_draws_the_last_layers_and_leaves_the_others(net, layers, first_reset):
    first_reset += len(NETWORKS[net][0].size) == 4  # the cnn has one layer more
    state, methods = made(f"layer_norm+layer_reset(layers={layers})", net)
    advance(state, stack_of(()), 3, net)
    before, moments = remembered(state)
    step = state.optimizer.memory["step"].clone()
    update.task_boundary(state, methods, 1)
    last = len(state.units)
    for name, parameter in state.params.items():
        layer = last if name.startswith("output") else int(name.split(".")[1])
        if layer < first_reset:
            assert torch.equal(parameter, before[name]), name
            assert all(torch.equal(m, moments[name][key]) for key, m in state.optimizer.moments(name).items())
        else:
            assert torch.equal(parameter, state.fresh(name, "layer_reset", 3)), name
            assert not torch.equal(parameter, before[name]), name
            assert all(m.eq(0.0).all() for m in state.optimizer.moments(name).values())
    assert torch.equal(state.optimizer.memory["step"], step)


def test_a_reset_goes_to_the_initial_point_or_to_zero_if_asked():
    for to, wanted in (
        ("initial", lambda state: state.fresh("output.weight")),
        ("zero", lambda state: torch.zeros(())),
    ):
        state, methods = made(f"layer_reset(to={to!r})")
        advance(state, methods, 3)
        update.task_boundary(state, methods, 1)
        weight = state.params["output.weight"].detach()
        assert torch.equal(weight, wanted(state).expand_as(weight))
        assert state.params["linears.1.weight"].ne(state.fresh("linears.1.weight")).any()


def test_a_full_reset_to_the_initial_point_trains_as_if_nothing_had_been():
    state, methods = made("full_reset(to='initial')")
    start = state.flat.detach().clone()
    advance(state, methods, 1)
    first = state.flat.detach().clone()
    advance(state, methods, 6)
    update.task_boundary(state, methods, 1)
    assert torch.equal(state.flat, start)
    state.step = 0  # the same batch again
    advance(state, methods, 1)
    assert torch.equal(state.flat, first)


def test_full_resets_draw_another_network_at_every_boundary():
    state, methods = made("full_reset")
    seen = [state.flat.detach().clone()]
    for task in (1, 2):
        advance(state, methods, 2)
        update.task_boundary(state, methods, task)
        seen.append(state.flat.detach().clone())
        for name, parameter in state.params.items():
            assert torch.equal(parameter, state.fresh(name, "full_reset", state.step))
        assert all(tensor.eq(0.0).all() for tensor in state.optimizer.memory.values())
    assert len({tuple(flat[0].tolist()) for flat in seen}) == 3


def test_a_full_reset_puts_running_statistics_back_where_they_started():
    state, methods = made("full_reset", norm="batch")
    start = {name: buffer.clone() for name, buffer in state.buffers.items()}
    advance(state, methods, 3)
    assert start and not any(torch.equal(state.buffers[name], buffer) for name, buffer in start.items())
    update.task_boundary(state, methods, 1)
    assert all(torch.equal(state.buffers[name], buffer) for name, buffer in start.items())


@pytest.mark.parametrize("stack", ["layer_reset(layers=2", "full_reset("])
def test_a_period_resets_after_every_so_many_updates_without_being_told_of_tasks(stack):
    joint = ", " if stack[-1] != "(" else ""
    state, methods = made(f"{stack}{joint}period=3, told_of_tasks=False)")
    name, resets = stack.partition("(")[0], []
    for _ in range(7):
        advance(state, methods, 1)
        drawn = state.fresh("output.weight", name, state.step)
        resets.append(torch.equal(state.params["output.weight"], drawn))
    assert resets == [False, False, True, False, False, True, False]
    assert not methods.told_of_tasks and not methods.edits_at_boundaries


def test_an_optimizer_reset_by_period_forgets_after_every_so_many_updates_and_keeps_parameters():
    state, methods = made("optimizer_reset(enabled=False, period=3)")
    plain, none = made("baseline")
    taken = []
    for _ in range(7):
        advance(state, methods, 1)
        taken.append(int(state.optimizer.memory["step"]))
    assert taken == [1, 2, 0, 1, 2, 0, 1]
    advance(plain, none, 3)
    again, methods = made("optimizer_reset(enabled=False, period=3)")
    advance(again, methods, 3)
    assert torch.equal(again.flat, plain.flat) and again.optimizer.memory["exp_avg"].eq(0.0).all()


@pytest.mark.parametrize("stack", ["layer_reset(layers=3)", "full_reset", "redo(period=2, tau=1.0)"])
def test_what_was_reset_goes_on_learning_in_the_same_tensors(stack):
    state, methods = made(stack)
    identity = {name: (id(p), p.data_ptr()) for name, p in state.model.named_parameters()}
    advance(state, methods, 2)
    update.task_boundary(state, methods, 1)
    after = {name: p.detach().clone() for name, p in state.params.items()}
    advance(state, stack_of(()), 3)
    assert {name: (id(p), p.data_ptr()) for name, p in state.model.named_parameters()} == identity
    assert all(p.ne(after[name]).any() for name, p in state.params.items())


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize(
    "stack", ["redo(period=2, tau=1.0)", "continual_backprop(rate=0.4, maturity=1)", "layer_reset(layers=2, period=2)"]
)
def test_a_projection_follows_a_reset_at_once(stack, net):
    state, methods = made(f"nap+{stack}", net)
    start = {group.name: state.group_norm(group) for group in state.groups[:-1]}
    alone, only = made(f"layer_norm+{stack}", net)
    for _ in range(4):
        advance(state, methods, 1, net)
        advance(alone, only, 1, net)
        for group in state.groups[:-1]:
            assert torch.allclose(state.group_norm(group), start[group.name], rtol=1e-5)
    assert any(not torch.allclose(alone.group_norm(g), start[g.name], rtol=1e-3) for g in alone.groups[:-1])


def test_what_a_reset_made_zero_a_projection_leaves_zero():
    state, methods = made("nap+redo(period=1, tau=0.0)")
    state.acts, state.step = acts_where(state, [(0, 0, 1)]), 0
    update.tail(state, methods)
    assert state.params["linears.1.weight"][0, 1].eq(0.0).all()
    assert torch.allclose(state.group_norm(state.groups[1]), state.slots["nap"]["layer1"])


@pytest.mark.parametrize("stack", ["layer_reset(layers=2)", "full_reset"])
def test_a_reset_at_a_boundary_is_projected_whatever_the_period(stack):
    state, methods = made(f"nap(period=1000)+{stack}")
    start = {group.name: state.group_norm(group) for group in state.groups[:-1]}
    advance(state, methods, 5)
    update.task_boundary(state, methods, 1)
    for group in state.groups[:-1]:
        assert torch.allclose(state.group_norm(group), start[group.name], rtol=1e-5)


@pytest.mark.parametrize(
    "neutral",
    [
        "redo(period=None)",
        "continual_backprop(rate=0)",
        "layer_reset(told_of_tasks=False)",
        "full_reset(told_of_tasks=False)",
    ],
)
@pytest.mark.parametrize("net", NETWORKS)
def test_switched_off_they_are_the_baseline_bit_for_bit(neutral, net):
    baseline, switched_off = made("baseline", net), made(neutral, net)
    for state, methods in (baseline, switched_off):
        for task in (1, 2):
            advance(state, methods, 4, net)
            update.task_boundary(state, methods, task)
    assert torch.equal(baseline[0].flat, switched_off[0].flat)


@pytest.mark.parametrize("stack", ["redo(period=1, tau=1.0)", "continual_backprop(rate=0.5, maturity=0)"])
def test_a_diverged_seed_does_not_touch_the_others(stack):
    block, methods = made(stack, seeds=(0, 1, 2))
    block.params[f"{INCOMING['mlp']}.0.weight"].detach()[1] = float("nan")
    advance(block, methods, 6)
    for index, seed in ((0, 0), (2, 2)):
        alone, methods = made(stack, seeds=(seed,))
        advance(alone, methods, 6)
        assert torch.equal(alone.flat[0], block.flat[index])
    assert block.alive.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("stack", "activation", "reason"),
    [
        ("redo", "crelu", "one is always active"),
        ("continual_backprop", "crelu", "one is always active"),
        ("redo(tau=0.0)", "tanh", "which 'tanh' never makes"),
        ("redo(tau=0.0)", "leaky_relu", "which 'leaky_relu' never makes"),
        ("crelu+redo", "relu", "one is always active"),
        ("leaky_relu+redo(tau=0.0)", "relu", "which 'leaky_relu' never makes"),
        ("redo(tau=0.0)", "relu", None),
        ("redo", "tanh", None),
        ("continual_backprop", "leaky_relu", None),
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
        ("redo(period=0)", "redo wants a whole period >= 1 or None; found 0"),
        ("redo(tau=-0.1)", r"redo wants tau in \[0, 1\]; found -0.1"),
        ("continual_backprop(rate=1.5)", r"continual_backprop wants rate in \[0, 1\]; found 1.5"),
        ("continual_backprop(maturity=-1)", "continual_backprop wants maturity >= 0; found -1"),
        ("continual_backprop(decay=1.0)", r"continual_backprop wants decay in \[0, 1\); found 1.0"),
        ("continual_backprop(utility='contributoin')", "Did you mean 'contribution'"),
        ("layer_reset(layers=0)", "layer_reset wants layers >= 1; found 0"),
        ("layer_reset(period=2.5)", "layer_reset wants a whole period >= 1 or None; found 2.5"),
        ("layer_reset(to='freshh')", "Did you mean 'fresh'"),
        ("layer_reset(layers=2, to='zero')", "layers=1 for to='zero'"),
        ("full_reset(period=-3)", "full_reset wants a whole period >= 1 or None; found -3"),
        ("full_reset(to='zero')", "Unknown to of full_reset 'zero'"),
        ("optimizer_reset(period=0)", "optimizer_reset wants a whole period >= 1 or None; found 0"),
    ],
)
def test_a_bad_hyperparameter_is_named_with_its_value_and_range(text, message):
    with pytest.raises(ValueError, match=message):
        parse_stack(text)


def test_more_layers_than_the_network_has_are_refused():
    with pytest.raises(ValueError, match=r"layers in \[1, 3\] of this network; found 4"):
        made("layer_reset(layers=4)")
