"""The decoder transformer: against PyTorch's own, against sums by hand, and the laws of methods and projection on it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nap_bench import update
from nap_bench.benchmarks import RandomStrings
from nap_bench.experiments.base import make_run
from nap_bench.methods import METHODS, parse_stack, stack_of
from nap_bench.models.roles import Role
from nap_bench.optimizers import SGD, Adam
from nap_bench.schedules import Constant
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

TASK = RandomStrings(num_strings=12, length=7, vocabulary=9, num_tasks=3, steps_per_task=4, batch_size=8)
SIZE = dict(d_model=8, entrance="layer", heads=2, widths=(12, 20))
NORMS = ("none", "layer", "rms", "group")
ENTRANCES = ("none", "layer", "rms")


def spec_of(norm="none", **changes) -> ModelSpec:
    size = {**SIZE, **{key: value for key, value in changes.items() if key in SIZE}}
    rest = {key: value for key, value in changes.items() if key not in SIZE}
    return ModelSpec(family="transformer", size=tuple(sorted(size.items())), norm=norm, **rest)


def state_of(spec: ModelSpec, seeds=(0, 1), optimizer=None, precision="fp32", device="cpu"):
    state = build(spec, Part.of(optimizer or Adam()), tuple(seeds), TASK.shapes, device, precision)
    state.lr.fill_(0.01)
    return state


def stir(state):
    """Every parameter away from where it starts: scales from 1, offsets and biases from 0."""
    for name, parameter in state.params.items():
        draw = torch.randn(parameter.shape[1:], generator=torch.Generator().manual_seed(len(name)))
        parameter.detach().add_(0.3 * draw.to(parameter))
    return state


def make(stack: str, seeds=(0, 1, 2), optimizer=None, **changes):
    methods = stack_of(parse_stack(stack))
    state = state_of(methods.transform_model(spec_of(**changes)), seeds, optimizer)
    methods.setup(state)
    return state, methods


def advance(state, methods, num_steps: int):
    data, losses = TASK.load(None, "cpu"), []
    for _ in range(num_steps):
        step = state.step
        if step and TASK.task_at(step) != TASK.task_at(step - 1):
            update.task_boundary(state, methods, TASK.task_at(step))
        inputs, y_SBT = TASK.batch(data, state.seeds, step)
        losses_S = TASK.loss(update.forward(state, methods, inputs), y_SBT)
        update.grad_step(state, [losses_S], methods)
        update.tail(state, methods)
        losses.append(losses_S.detach())
    return torch.stack(losses)


def tokens(num_seeds=2, batch=3, length=6) -> torch.Tensor:
    return torch.randint(9, (num_seeds, batch, length), generator=torch.Generator().manual_seed(0))


def works(stack: str) -> bool:
    run = make_run(
        benchmark=TASK, model=spec_of(), stack=stack, optimizer=Adam(), schedule=Constant(0.01), seeds=(0, 1)
    )
    return stack_of(run.methods).why_not(run) is None


# What it computes


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("affine", [True, False])
def test_the_number_of_parameters_is_the_closed_form(norm, entrance, affine):
    vocabulary, context, d, widths = 9, 6, SIZE["d_model"], SIZE["widths"]
    rms, layer = (d, 2 * d) if affine else (0, 0)  # RMSNorm at an entrance has an offset too, as everywhere here
    at_entrance = {"none": 0, "layer": layer, "rms": layer}[entrance]
    expected = (vocabulary + context) * d + at_entrance + d * vocabulary + vocabulary
    for width in widths:
        expected += 4 * d * d + d + 2 * at_entrance + 2 * d * width + d
        expected += width if norm == "none" else 2 * rms + (2 * width if affine else 0)
    assert state_of(spec_of(norm, entrance=entrance, norm_affine=affine)).num_parameters == expected


def test_the_papers_network_has_three_million_weights_in_its_blocks():
    size = dict(d_model=256, heads=8, widths=(1024,) * 4)
    spec = spec_of("layer", **size)
    state = build(spec, Part.of(Adam()), (0,), ((511,), 256), "meta")
    in_blocks = [n for n, role in state.roles.items() if role is Role.WEIGHT]
    assert sum(state.params[name][0].numel() for name in in_blocks) == 4 * 12 * 256**2
    assert state.params["token.weight"].shape == (1, 256, 256) and state.params["position.weight"].shape[1] == 511


@pytest.mark.parametrize("length", [6, 3])
def test_the_baseline_is_pytorchs_own_pre_norm_encoder_under_a_causal_mask(length):
    state = stir(state_of(spec_of()))
    index_SBT = tokens(length=length)
    found = state.forward(index_SBT)
    for seed in range(2):
        own = {name: parameter.detach()[seed] for name, parameter in state.params.items()}
        x = own["token.weight"][index_SBT[seed]] + own["position.weight"][:length]
        for index, width in enumerate(SIZE["widths"]):
            block = {name.removeprefix(f"blocks.{index}."): value for name, value in own.items()}
            theirs = nn.TransformerEncoderLayer(8, 2, width, dropout=0.0, batch_first=True, norm_first=True)
            theirs.load_state_dict(
                {
                    "self_attn.in_proj_weight": torch.cat(
                        [block[f"attention.{n}.weight"].T for n in ("query", "key", "value")]
                    ),
                    "self_attn.in_proj_bias": torch.zeros(24),
                    "self_attn.out_proj.weight": block["attention.out.weight"].T,
                    "self_attn.out_proj.bias": block["attention.out.bias"],
                    "linear1.weight": block["hidden.weight"].T,
                    "linear1.bias": block["hidden.bias"],
                    "linear2.weight": block["out.weight"].T,
                    "linear2.bias": block["out.bias"],
                    "norm1.weight": block["before_attention.scale"],
                    "norm1.bias": block["before_attention.offset"],
                    "norm2.weight": block["before_mlp.scale"],
                    "norm2.bias": block["before_mlp.offset"],
                }
            )
            x = theirs.train()(x, nn.Transformer.generate_square_subsequent_mask(length), is_causal=True)
        x = nn.functional.layer_norm(x, (8,), own["before_output.scale"], own["before_output.offset"])
        assert torch.allclose(found[seed], x @ own["output.weight"] + own["output.bias"], atol=1e-5)


def by_hand(own: dict, string: list[int], heads: int, widths: tuple[int, ...], norm: str) -> torch.Tensor:
    """Logits [T, K] of one string, token by token and head by head, in double precision; no norm at the entrances."""

    def rms(h, path):
        return h / (h.square().mean() + 1e-5).sqrt() * own[f"{path}.scale"]

    def hidden_norm(h, path):
        return rms(h - h.mean() if norm == "layer" else h, path) + own[f"{path}.offset"]

    stream = [own["token.weight"][token] + own["position.weight"][t] for t, token in enumerate(string)]
    for index in range(len(widths)):
        path = f"blocks.{index}"
        queries, keys, values = (
            [x @ own[f"{path}.attention.{name}.weight"] for x in stream] for name in ("query", "key", "value")
        )
        queries = [rms(q, f"{path}.attention.query_norm") for q in queries]
        keys = [rms(k, f"{path}.attention.key_norm") for k in keys]
        after = []
        for t, x in enumerate(stream):
            parts = []
            for h in range(heads):
                own_part = slice(h * len(x) // heads, (h + 1) * len(x) // heads)
                match = torch.stack([queries[t][own_part] @ keys[s][own_part] for s in range(t + 1)])
                weight = (match / math.sqrt(len(x) // heads)).softmax(dim=0)
                parts.append(sum(weight[s] * values[s][own_part] for s in range(t + 1)))
            x = x + torch.cat(parts) @ own[f"{path}.attention.out.weight"] + own[f"{path}.attention.out.bias"]
            a = hidden_norm(x @ own[f"{path}.hidden.weight"], f"{path}.norm").clamp(min=0)
            after.append(x + a @ own[f"{path}.out.weight"] + own[f"{path}.out.bias"])
        stream = after
    return torch.stack([x @ own["output.weight"] + own["output.bias"] for x in stream])


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_with_a_norm_it_is_the_papers_formula_token_by_token(norm):
    state = stir(state_of(spec_of(norm, entrance="none"), precision="fp64"))
    index_SBT = tokens()
    found = state.forward(index_SBT)
    for seed in range(2):
        own = {name: parameter.detach()[seed] for name, parameter in state.params.items()}
        for example in range(3):
            expected = by_hand(own, index_SBT[seed, example].tolist(), SIZE["heads"], SIZE["widths"], norm)
            assert torch.allclose(found[seed, example], expected, atol=1e-10)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_token_changes_nothing_before_it_and_nothing_in_another_string(norm, entrance):
    state = stir(state_of(spec_of(norm, entrance=entrance)))
    index_SBT = tokens()
    before = state.forward(index_SBT)
    for t in range(6):
        changed = index_SBT.clone()
        changed[0, 1, t] = (changed[0, 1, t] + 1) % 9
        after = state.forward(changed)
        assert torch.equal(after[0, 1, :t], before[0, 1, :t])
        assert not torch.isclose(after[0, 1, t:], before[0, 1, t:]).all(dim=1).any()
        assert torch.equal(after[1], before[1]) and torch.equal(after[0, ::2], before[0, ::2])


def test_queries_and_keys_have_root_mean_square_one_token_by_token_and_no_offset():
    state = state_of(spec_of("layer"))
    seen = []
    for block in state.model.blocks:
        for norm in (block.attention.query_norm, block.attention.key_norm):
            norm.register_forward_hook(lambda module, given, out: seen.append((given[0], out)))
            assert norm.offset is None
    state.forward(tokens())
    assert len(seen) == 4
    for given, out in seen:
        expected = given / (given.square().mean(dim=2, keepdim=True) + 1e-5).sqrt()
        assert given.shape == (2, 18, 8) and torch.allclose(out, expected, atol=1e-6)


def test_post_activations_count_every_token_as_an_example():
    state, acts = state_of(spec_of("layer")), {}
    state.forward(tokens(), acts)
    assert {name: tuple(act.shape) for name, act in acts.items()} == {"hidden0": (2, 18, 12), "hidden1": (2, 18, 20)}
    assert all((act >= 0).all() and (act > 0).any() for act in acts.values())


# Projection


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_group_is_called_scale_invariant_exactly_where_the_output_does_not_depend_on_its_scale(norm, entrance):
    state = stir(state_of(spec_of(norm, entrance=entrance, norm_eps=1e-12), precision="fp64"))
    index_SBT = tokens()
    before = state.forward(index_SBT)
    for group in state.groups:
        (name,) = group.members
        state.params[name].detach().mul_(7.0)
        is_same = torch.allclose(state.forward(index_SBT), before, rtol=1e-6, atol=1e-8)
        assert is_same == group.scale_invariant, group.name
        state.params[name].detach().div_(7.0)
    invariant = {group.name for group in state.groups if group.scale_invariant}
    assert invariant == (set() if norm == "none" else {f"{n}{i}" for n in ("query", "key", "hidden") for i in (0, 1)})


def test_every_weight_matrix_and_embedding_is_a_group_of_its_own():
    state = state_of(spec_of("layer"))
    members = [name for group in state.groups for name in group.members]
    wanted = {name for name, role in state.roles.items() if role in (Role.WEIGHT, Role.OUTPUT, Role.EMBEDDING)}
    assert len(members) == len(set(members)) and set(members) == wanted
    assert {group.name for group in state.groups} >= {"query0", "value1", "mlp_out0", "token", "position", "output"}


@pytest.mark.parametrize(
    "stack",
    ["nap", "nap(norm='none')", "nap(scale_offset='decay', decay=0.9)", "nap(scale_offset='joint')", "nap(norm='rms')"],
)
def test_nap_keeps_the_norm_of_every_group_but_the_output(stack):
    state, methods = make(stack)
    start = {group.name: state.group_norm(group).clone() for group in state.groups}
    advance(state, methods, 7)
    for group in state.groups:
        is_at_norm = torch.allclose(state.group_norm(group), start[group.name], rtol=1e-6)
        assert is_at_norm == (group.name != "output"), group.name


def test_joint_projection_keeps_the_size_of_a_scale_that_has_no_offset():
    state, methods = make("nap(scale_offset='joint')")
    advance(state, methods, 5)
    scale_SD = state.params["blocks.0.attention.query_norm.scale"].detach()
    assert torch.allclose(torch.linalg.vector_norm(scale_SD, dim=1), torch.full((3,), math.sqrt(8)), rtol=1e-6)
    assert (scale_SD - 1.0).abs().max() > 1e-4


def test_weight_decay_shrinks_embeddings_as_well_as_weights_and_nothing_else():
    state, methods = make("weight_decay(coef=10.0)", optimizer=SGD())
    before = {name: parameter.detach().clone() for name, parameter in state.params.items()}
    state.lr.fill_(0.01)
    for method in methods:
        method.after_step(state)
    for name, role in state.roles.items():
        shrinks = role in (Role.WEIGHT, Role.OUTPUT, Role.EMBEDDING)
        assert torch.allclose(state.params[name], before[name] * (0.9 if shrinks else 1.0)), name


# Methods and seeds

NOT_HERE = {"batch_norm", "hyperspherical", "implicit_schedule", "infer", "plasticity_injection", "weight_norm"}
"""Methods that a transformer cannot have, or not alone; each says why."""
STACKS = ["baseline", *sorted(set(METHODS) - NOT_HERE), "nap+implicit_schedule"]
STACKS += ["nap(scale_offset='none')", "nap+redo(period=2, tau=0.5)+continual_backprop(rate=0.1, maturity=2)"]


MOMENTUM = SGD(momentum=0.9, clip_norm=1.0)


@pytest.mark.parametrize(
    ("stack", "optimizer"), [(stack, Adam()) for stack in STACKS] + [("nap", MOMENTUM), ("baseline", MOMENTUM)]
)
def test_a_block_of_seeds_equals_each_seed_alone_and_every_parameter_moves(stack, optimizer):
    assert works(stack)
    block, methods = make(stack, (0, 1), optimizer)
    before = block.flat.detach().clone()
    losses_TS = advance(block, methods, 6)
    assert torch.isfinite(losses_TS).all()
    for index, seed in enumerate(block.seeds):
        alone, methods = make(stack, (seed,), optimizer)
        assert torch.equal(advance(alone, methods, 6)[:, 0], losses_TS[:, index])
        assert torch.equal(alone.flat.detach()[0], block.flat.detach()[index])
    for name in block.params:
        assert not torch.equal(block.view(before, name), block.params[name]), f"{name} never moved"


@pytest.mark.parametrize("activation", ["relu", "crelu"])
def test_cutting_a_units_outgoing_weights_makes_its_activation_irrelevant_and_only_its(activation):
    state = state_of(spec_of(activation=activation))
    index_SBT = tokens()
    for units in state.units:
        for name in units.outgoing:
            state.by_unit(units, name)[:, 1] = 0.0
        before = state.forward(index_SBT)
        for name in units.incoming:
            state.by_unit(units, name)[:, 1] = 7.0
        assert torch.equal(state.forward(index_SBT), before)
        for name in units.incoming:
            state.by_unit(units, name)[:, 2] = 7.0
        assert not torch.equal(state.forward(index_SBT), before)


def test_the_output_layer_alone_can_be_reset():
    state, methods = make("layer_reset")
    before = {name: parameter.detach().clone() for name, parameter in state.params.items()}
    update.task_boundary(state, methods, 1)
    changed = {name for name, parameter in state.params.items() if not torch.equal(parameter, before[name])}
    assert changed == {"output.weight", "output.bias"}


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        ("batch_norm", "show a token of a transformer those that follow it"),
        ("hyperspherical", "what the units of a transformer's embeddings and stream are"),
        ("infer", "the output of a transformer reads its residual stream"),
        ("plasticity_injection", "no head of a transformer has frozen heads"),
        ("weight_norm", "no layer of a transformer has a learned length"),
        ("nap(norm='batch')", "show a token of a transformer those that follow it"),
        ("layer_reset(layers=2)", "do not follow each other"),
        ("group_norm(groups=3)", "groups=3 does not divide a hidden layer of 20"),
    ],
)
def test_what_makes_no_sense_in_a_transformer_says_why(stack, reason):
    run = make_run(benchmark=TASK, model=spec_of(), stack=stack, optimizer=Adam(), schedule=Constant(0.01), seeds=(0,))
    assert reason in stack_of(run.methods).why_not(run)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"heads": 3}, "divides d_model=8; found 3"),
        ({"heads": 0}, "divides d_model=8; found 0"),
        ({"entrance": "layr"}, "Did you mean 'layer'"),
        ({"norm": "batch"}, "no batch norm"),
        ({"norm": "layr"}, "Did you mean 'layer'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        state_of(spec_of(**changes))


def test_missing_sizes_inputs_that_are_no_strings_and_strings_that_are_too_long_are_refused():
    spec = ModelSpec(family="transformer", size=(("d_model", 8), ("heads", 2)))
    with pytest.raises(
        ValueError, match=r"wants the sizes d_model, entrance, heads, widths; found \['d_model', 'heads'\]"
    ):
        state_of(spec)
    with pytest.raises(ValueError, match=r"inputs of shape \(T,\); found \(3, 8, 8\)"):
        build(spec_of(), Part.of(Adam()), (0,), ((3, 8, 8), 5), "cpu")
    with pytest.raises(ValueError, match="up to 6 tokens; found 7"):
        state_of(spec_of()).forward(tokens(length=7))


def test_embeddings_start_as_large_as_they_are_asked_to_and_nothing_else_differs():
    plain = state_of(spec_of())
    small = state_of(ModelSpec(family="transformer", size=tuple(sorted({**SIZE, "embedding_std": 0.25}.items()))))
    for name, parameter in plain.params.items():
        factor = 0.25 if plain.roles[name] is Role.EMBEDDING else 1.0
        assert torch.allclose(small.params[name], factor * parameter), name
