"""NaP as a library: on torchvision's ResNet-18, under compile and DDP, and against the suite's own arithmetic."""

import copy
import io
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nap_bench import nap
from nap_bench.data.torchvision_import import import_torchvision
from nap_bench.methods import nap as nap_method
from nap_bench.methods import parse_stack, stack_of
from nap_bench.nap import Norm, Projector, insert_norms
from nap_bench.optimizers import SGD, Adam
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build
from nap_bench.update import forward, grad_step, tail

DOCS = Path(__file__).parents[2] / "docs/nap-as-a-library.md"
IMAGES, LABELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])


def plain_resnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return import_torchvision().models.resnet18(num_classes=10)


def resnet(seed: int = 0, **options) -> nn.Module:
    return insert_norms(plain_resnet(seed), **options)


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def small_cnn(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    body = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(32, 4))


def norms_of(weights) -> torch.Tensor:
    return torch.stack([torch.linalg.vector_norm(weight.detach().double()) for weight in weights])


def step(model, optimizer, images=IMAGES, labels=LABELS) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


# ResNet-18


def test_resnet18_has_a_norm_after_each_of_its_twenty_convolutions_and_none_at_its_shared_relus():
    model, seen = resnet(), {}
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert len(convolutions) == sum(isinstance(module, Norm) for module in model.modules()) == 20
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == 9  # called 17 times
    for name, module in convolutions.items():
        module.register_forward_hook(lambda module, inputs, h, name=name: seen.update({name: h}))
    model(IMAGES)
    for name, h in seen.items():
        assert h.mean((1, 2, 3)).abs().max() < 1e-4, name
        assert torch.allclose(h.var((1, 2, 3), unbiased=False), torch.ones(2), atol=1e-3), name
    assert len(seen) == 20


def test_names_stay_and_only_norms_are_new():
    old, model = plain_resnet(), resnet()
    new = {f"{name}.norm.scale" for name, module in old.named_modules() if isinstance(module, nn.Conv2d)}
    assert model.state_dict().keys() - old.state_dict().keys() == new  # no offsets: BatchNorm follows everywhere
    assert set(model.load_state_dict(old.state_dict(), strict=False).missing_keys) == new


def test_each_kernel_keeps_its_norm_over_ten_sgd_steps_and_fc_does_not():
    model = resnet()
    fc = model.fc.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    projector = Projector(model)
    initial, initial_fc, moved = norms_of(projector.weights()), norms_of([fc]), 0.0
    for _ in range(10):
        step(model, optimizer)
        moved = max(moved, (norms_of(projector.weights()) / initial - 1).abs().max().item())
        projector.project()
        assert (norms_of(projector.weights()) / initial - 1).abs().max() < 1e-6
    assert len(initial) == 20 and moved > 0.1
    assert model.fc.weight is fc and abs(norms_of([fc]) / initial_fc - 1) > 1e-3
    assert model.fc.bias is not None


@pytest.mark.parametrize("norm", nap.NORMS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@torch.no_grad()
def test_scaling_any_kernel_by_ten_leaves_the_outputs_equal(norm, training):
    model = resnet(norm=norm).train(training)
    wanted = model(IMAGES)
    for name, weight in zip((projector := Projector(model)).projected, projector.weights(), strict=True):
        weight.mul_(10.0)
        outputs = model(IMAGES)
        weight.div_(10.0)
        assert torch.allclose(outputs, wanted, rtol=1e-4, atol=1e-5), name
    model.fc.weight.mul_(10.0)
    assert not torch.allclose(model(IMAGES), wanted, rtol=0.1)


def test_without_norms_scaling_a_kernel_changes_the_outputs():
    model = plain_resnet().eval()
    wanted = model(IMAGES)
    model.layer1[0].conv1.weight.data.mul_(10.0)
    assert not torch.allclose(model(IMAGES), wanted, rtol=0.1)


def test_model_and_projector_go_through_state_dict():
    model = resnet()
    projector = Projector(model)
    for _ in range(2):
        step(model, torch.optim.SGD(model.parameters(), lr=0.1))
        projector.project()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "projector": projector.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = resnet(seed=1)
    restored = Projector(other)
    assert not all(map(torch.equal, restored.targets, projector.targets))
    other.load_state_dict(saved["model"])
    restored.load_state_dict(saved["projector"])
    assert torch.equal(other.eval()(IMAGES), model.eval()(IMAGES))
    for network, its in ((model, projector), (other, restored)):
        network.train()
        step(network, torch.optim.SGD(network.parameters(), lr=0.1))
        its.project()
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_a_projector_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"in one of the two only: 2\.weight, 3\.weight\."):
        Projector(insert_norms(mlp())).load_state_dict({"0.weight": torch.ones(()), "3.weight": torch.ones(())})


def test_every_parameter_is_in_an_optimizer_built_after_insertion_and_gets_a_gradient():
    model = insert_norms(small_cnn())
    optimizer = torch.optim.Adam(model.parameters())
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert held == set(model.parameters())
    new = {name for name, _ in model.named_parameters() if "norm" in name}
    assert new == {"0.norm.scale", "3.norm.scale", "3.norm.offset"}
    step(model, optimizer)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in held)


# torch.compile and DistributedDataParallel


def test_resnet18_compiles_without_a_graph_break():
    model = resnet().eval()
    wanted = model(IMAGES)
    torch.compiler.reset()
    assert torch.allclose(torch.compile(model, fullgraph=True, backend="eager")(IMAGES), wanted, rtol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_trains_and_is_projected_like_an_uncompiled_one(backend):
    torch.compiler.reset()
    trained = []
    for wrap in (lambda model: model, lambda model: torch.compile(model, fullgraph=True, backend=backend)):
        model = insert_norms(small_cnn())
        network = wrap(model)
        optimizer, projector = torch.optim.SGD(model.parameters(), lr=0.1), Projector(model)
        initial = norms_of(projector.weights())
        for _ in range(3):
            step(network, optimizer, IMAGES[:, :, :12, :12])
            projector.project()
        assert torch.allclose(norms_of(projector.weights()), initial, rtol=1e-6)
        trained.append([parameter.detach() for parameter in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*trained, strict=True))


def train_one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = insert_norms(mlp(seed=rank))
    network = nn.parallel.DistributedDataParallel(model)
    optimizer, projector = torch.optim.SGD(network.parameters(), lr=0.5), Projector(model)
    own = torch.Generator().manual_seed(rank)
    for _ in range(5):
        step(network, optimizer, torch.randn(8, 6, generator=own), torch.randint(3, (8,), generator=own))
        projector.project()
    torch.save({"model": model.state_dict(), "projector": projector.state_dict()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_that_start_apart_and_see_other_data_end_with_equal_weights_at_rank_0s_norm(tmp_path):
    torch.multiprocessing.spawn(train_one_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    start = mlp(seed=0)
    for name, target in Projector(insert_norms(start)).state_dict().items():
        assert torch.equal(first["projector"][name], target)
        assert torch.allclose(torch.linalg.vector_norm(first["model"][name]), target, rtol=1e-6)
        assert not torch.allclose(first["model"][name], start.get_parameter(name), rtol=1e-2)


# the suite's arithmetic


@pytest.mark.parametrize("norm", nap.NORMS)
@pytest.mark.parametrize("policy", nap.POLICIES)
@pytest.mark.parametrize(("suite", "plain"), [(SGD, torch.optim.SGD), (Adam, torch.optim.Adam)], ids=["sgd", "adam"])
def test_ten_steps_equal_those_of_the_suites_method(norm, policy, suite, plain):
    lr = 0.3 if suite is SGD else 0.01
    spec = ModelSpec(family="mlp", size=(("widths", (16, 12)),))
    stack = stack_of(parse_stack(f"nap(norm={norm!r}, scale_offset={policy!r}, decay=0.9)"))
    state = build(stack.transform_model(spec), Part.of(suite()), (7,), ((6,), 3), "cpu")
    stack.setup(state)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    theirs = {"linears.0": model[0], "linears.1": model[2], "output": model[4]}
    for name, layer in theirs.items():
        layer.weight.data.copy_(state.matrix(f"{name}.weight")[0])
    model[4].bias.data.copy_(state.params["output.bias"][0])
    insert_norms(model, norm=norm, eps=spec.norm_eps)
    optimizer, projector = plain(model.parameters(), lr=lr), Projector(model, scale_offset=policy, decay=0.9)
    state.lr.fill_(lr)
    own = torch.Generator().manual_seed(1)
    start = norms_of(projector.weights())
    for _ in range(10):
        x, y = torch.randn(32, 6, generator=own), torch.randint(3, (32,), generator=own)
        step(model, optimizer, x, y)
        projector.project()
        grad_step(state, [F.cross_entropy(forward(state, stack, x.unsqueeze(0))[0], y).unsqueeze(0)], stack)
        tail(state, stack)
    for name, layer in theirs.items():
        wanted = state.matrix(f"{name}.weight")[0]
        error = torch.linalg.vector_norm(layer.weight.detach() - wanted) / torch.linalg.vector_norm(wanted)
        assert error < 1e-6, name
    for index, layer in enumerate((model[0], model[2])):
        assert torch.allclose(layer.norm.scale, state.params[f"norms.{index}.scale"][0], rtol=1e-5)
        assert torch.allclose(layer.norm.offset, state.params[f"norms.{index}.offset"][0], rtol=1e-4, atol=1e-6)
        assert (layer.norm.offset.abs() > 1e-3).any()
    assert torch.allclose(norms_of(projector.weights()), start, rtol=1e-6)


def test_the_policies_are_the_suites_but_for_norms_without_scale_and_offset_which_are_the_models_own():
    assert (*nap.POLICIES, "none") == nap_method.POLICIES


# what is normalised


def naive(h, axes, norm, eps):
    if norm == "layer":
        h = h - h.mean(axes, keepdim=True)
    return h / (h.square().mean(axes, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize("norm", nap.NORMS)
@pytest.mark.parametrize(
    ("layer", "shape", "axes"),
    [
        (nn.Linear(5, 8), (4, 5), (-1,)),
        (nn.Linear(5, 8), (4, 3, 5), (-1,)),  # tokens are not mixed
        (nn.Conv1d(5, 8, 3), (4, 5, 9), (1, 2)),
        (nn.Conv2d(5, 8, 3), (4, 5, 9, 8), (1, 2, 3)),
        (nn.Conv3d(5, 8, 3), (4, 5, 4, 5, 6), (1, 2, 3, 4)),
        (nn.ConvTranspose2d(5, 8, 3), (4, 5, 3, 2), (1, 2, 3)),
    ],
    ids=str,
)
def test_a_norm_is_what_its_formula_says(layer, shape, axes, norm):
    layer = copy.deepcopy(layer).double()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h = layer(x) - layer(torch.zeros_like(x))
    insert_norms(layer, norm=norm, output=(), eps=1e-3)
    torch.nn.init.normal_(layer.norm.scale)
    torch.nn.init.normal_(layer.norm.offset)
    view = (8, *[1] * (len(axes) - 1))
    wanted = naive(h, axes, norm, 1e-3) * layer.norm.scale.view(view) + layer.norm.offset.view(view)
    assert layer.bias is None
    assert torch.allclose(layer(x), wanted, rtol=1e-10, atol=1e-12)


def test_a_convolution_without_a_batch_axis_is_refused():
    model = insert_norms(nn.Conv2d(3, 4, 3), output=())
    with pytest.raises(ValueError, match=r"wants \[B, C\] and 2 axes of space; found \(4, 6, 6\)"):
        model(torch.zeros(3, 8, 8))


def test_a_mean_square_does_not_overflow_in_half_precision():
    model = insert_norms(nn.Conv2d(1, 2, 1), norm="rms", output=()).half()
    x = torch.full((1, 1, 2, 2), 6e4, dtype=torch.half)
    wanted = copy.deepcopy(model).double()(x.double())
    assert wanted.abs().max() > 0.5 and torch.allclose(model(x).double(), wanted, rtol=2e-3)


def test_the_offset_is_left_out_only_where_batch_norm_is_next():
    after_relu, directly = (nn.ReLU(), nn.BatchNorm2d(4)), (nn.BatchNorm2d(4),)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *after_relu, nn.Conv2d(4, 4, 3), *directly, nn.Conv2d(4, 2, 3))
    insert_norms(model)
    assert model[0].norm.offset is not None and model[3].norm.offset is None and not hasattr(model[5], "norm")


@pytest.mark.parametrize(
    ("output", "left"),
    [(None, {"4"}), ("4", {"4"}), (("0", "4"), {"0", "4"}), ((), set())],
)
def test_output_names_the_layers_left_alone(output, left):
    model = insert_norms(mlp(), output=output)
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert {name for name, layer in linears.items() if not hasattr(layer, "norm")} == left
    assert {name for name, layer in linears.items() if layer.bias is not None} == left
    assert set(Projector(model).left_alone) == {f"{name}.weight" for name in left}


def test_output_may_name_a_module_and_means_all_its_layers():
    model = insert_norms(nn.ModuleDict({"body": mlp(), "bodyguard": mlp(), "head": mlp()}), output="body")
    assert set(Projector(model).left_alone) == {"body.0.weight", "body.2.weight", "body.4.weight"}


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.policy, self.value = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)


@pytest.mark.parametrize(
    ("model", "options", "complaint"),
    [
        (plain_resnet, {"output": "fcc"}, "Unknown output layer 'fcc'. Did you mean 'fc'"),
        (mlp, {"norm": "layers"}, "Unknown norm 'layers'. Did you mean 'layer'"),
        (lambda: insert_norms(mlp()), {}, "'0' has a norm already"),
        (lambda: nn.Linear(3, 2), {}, "Linear has none"),
        (nn.ReLU, {}, "ReLU has none"),
        (TwoHeads, {"output": "policy"}, "'value' has one feature"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_edited(model, options, complaint):
    model = model()
    before = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=re.escape(complaint)):
        insert_norms(model, **options)
    assert [name for name, _ in model.named_parameters()] == before


def test_a_transformer_layer_takes_no_fast_path_around_its_norms():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
    insert_norms(model)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), model.train()(x), atol=1e-6)
        wanted = model(x)
        model.linear1.weight.mul_(10.0)
        assert torch.allclose(model.eval()(x), wanted, atol=1e-4)
    assert Projector(model).left_alone == {
        "self_attn.in_proj_weight": "MultiheadAttention",
        "self_attn.out_proj.weight": "NonDynamicallyQuantizableLinear",
        "linear2.weight": "Linear",
    }


def test_a_copied_model_uses_its_own_norms():
    model = insert_norms(mlp())
    twin = copy.deepcopy(model)
    twin[0].norm.offset.data.fill_(5.0)
    x = torch.ones(2, 6)
    assert not torch.equal(twin(x), model(x))
    assert Projector(twin).projected.keys() == Projector(model).projected.keys()


# what is projected


def test_a_shared_weight_is_projected_once():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    projector = Projector(insert_norms(model))
    assert list(projector.projected) == ["0.weight"]
    target = norms_of([model[0].weight])
    model[0].weight.data.mul_(3.0)
    projector.project()
    assert torch.allclose(norms_of([model[2].weight]), target, rtol=1e-6)


def test_a_weight_that_a_layer_without_norm_uses_too_and_layers_of_other_kinds_are_left_alone_and_listed():
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2))
    model[3].weight = model[0].weight
    projector = Projector(insert_norms(model))
    assert list(projector.projected) == ["1.weight"]
    assert "left alone (3): 0.weight (Embedding), 3.weight (Linear), 5.weight (Linear)" in repr(projector)
    assert "projected (1): 1.weight" in repr(projector)


def test_weights_can_be_named_where_the_network_normalises_already():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
    projector = Projector(model, weights="0.weight")
    target = norms_of([model[0].weight])
    model[0].weight.data.mul_(7.0)
    projector.project()
    assert torch.allclose(norms_of([model[0].weight]), target, rtol=1e-6)
    assert list(projector.left_alone) == ["3.weight"]


def zeroed() -> nn.Module:
    model = insert_norms(mlp())
    nn.init.zeros_(model[2].weight)
    return model


@pytest.mark.parametrize(
    ("model", "options", "complaint"),
    [
        (mlp, {}, "call insert_norms(model) first"),
        (mlp, {"weights": ["0.weigth"]}, "Unknown weight '0.weigth'. Did you mean '0.weight'"),
        (zeroed, {}, "'2.weight' has norm 0.0"),
        (lambda: insert_norms(mlp()), {"scale_offset": "fre"}, "Did you mean 'free'"),
        (lambda: insert_norms(mlp()), {"decay": 1.5}, "found 1.5"),
    ],
)
def test_a_projector_that_could_not_project_says_why(model, options, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        Projector(model(), **options)


class NoReadback(TorchDispatchMode):
    """Fails where a tensor's value is asked for by Python: on a GPU that waits for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("policy", nap.POLICIES)
def test_projecting_reads_nothing_back_and_leaves_moments_gradients_and_other_weights_alone(policy):
    model = insert_norms(small_cnn())
    optimizer, projector = torch.optim.Adam(model.parameters(), lr=0.1), Projector(model, scale_offset=policy)
    step(model, optimizer, IMAGES[:, :, :12, :12])
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    moments, head = copy.deepcopy(optimizer.state_dict()["state"]), model[7].weight.detach().clone()
    with pytest.raises(AssertionError), NoReadback():
        torch.ones(()).item()
    with NoReadback():
        projector.project()
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), gradients, strict=True))
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(moments[key][name], after[key][name]) for key in moments for name in moments[key])
    assert torch.equal(model[7].weight, head)


def test_weights_replaced_by_a_loaded_checkpoint_are_still_projected():
    model = insert_norms(mlp())
    projector = Projector(model)
    model.load_state_dict({name: 2.0 * value for name, value in model.state_dict().items()}, assign=True)
    projector.project()
    targets = torch.stack(projector.targets)
    assert torch.allclose(norms_of([model[0].weight, model[2].weight]).float(), targets, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-3), (torch.float64, 1e-14)])
def test_other_precisions_hold_their_norm_to_what_they_can_tell(dtype, tolerance):
    model = insert_norms(mlp()).to(dtype)
    projector = Projector(model)
    initial = norms_of(projector.weights())
    for weight in projector.weights():
        weight.data.mul_(1.7)
    projector.project()
    assert torch.allclose(norms_of(projector.weights()), initial, rtol=tolerance)


# the documentation


def test_the_documented_example_is_twenty_lines_and_runs():
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    import_torchvision()
    torch.manual_seed(0)
    scope = {}
    exec(compile(example, DOCS.name, "exec"), scope)
    projector = scope["projector"]
    assert torch.allclose(norms_of(projector.weights()).float(), torch.stack(projector.targets), rtol=1e-6)
    assert len(projector.projected) == 20 and list(projector.left_alone) == ["fc.weight"]
