"""The gradient-flow check: predicted and measured norms, in closed form, resumed, and switched off."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nap_bench import update
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.methods import parse_stack, stack_of
from nap_bench.metrics.flow import Flow
from nap_bench.optimizers import SGD, Adam
from nap_bench.schedules import Constant
from nap_bench.session import Control, Interrupted
from nap_bench.spec import ModelSpec, Part, Run
from nap_bench.state import build
from nap_bench.store import RunFolder
from nap_bench.train import train

TASK = BENCHMARKS["random_labels"](
    dataset="digits", num_examples=64, num_tasks=2, steps_per_task=20, batch_size=16, probes_per_task=4, flow=True
)
NETWORKS = {
    "mlp": ModelSpec(family="mlp", size=(("widths", (16, 12)),), norm_eps=0.0),
    "cnn": ModelSpec(
        family="cnn", size=(("channels", (4, 4)), ("kernel", 3), ("pool_after", (0,)), ("widths", (12,))), norm_eps=0.0
    ),
}
STACKS = {"layer_norm": None, "nap": 1, "nap(period=10)": 10}
"""Stack -> updates between projections."""


def flow_of(stack, optimizer, lr, net="mlp", num_steps=40, precision="fp64"):
    """What is read after every update [T, G, S], the initial norms [G, S] and the final state."""
    methods = stack_of(parse_stack(stack))
    state = build(methods.transform_model(NETWORKS[net]), Part.of(optimizer), (0, 1), TASK.shapes, "cpu", precision)
    state.lr.fill_(lr)
    methods.setup(state)
    data, flow, found = TASK.load(None, "cpu"), Flow(state), []
    initial_GS = torch.stack([state.group_norm(group) for group in flow.groups])
    for step in range(num_steps):
        inputs, y_SB = TASK.batch(data, state.seeds, step)
        before_SP = state.eval_params.clone()
        update.grad_step(state, [TASK.loss(update.forward(state, methods, inputs), y_SB)], methods)
        flow.add(state, before_SP)
        update.tail(state, methods)
        found.append(flow.read())
    names = dict.fromkeys(name.split("/")[1] for name in found[0])
    stacked = {
        name: torch.stack([torch.stack([read[f"flow/{name}/{g.name}"] for g in flow.groups]) for read in found])
        for name in names
    }
    return stacked, initial_GS, state


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("stack", STACKS)
def test_under_sgd_the_norm_is_the_predicted_one_and_updates_are_tangential(stack, net):
    found, initial_GS, _ = flow_of(stack, SGD(), 0.1, net)
    assert torch.allclose(found["predicted_norm"], found["norm_before_projection"], rtol=1e-10, atol=0)
    assert (found["radial_update"].abs() < 1e-12).all() and (found["tangential_update"] > 1e-6).all()
    if stack == "layer_norm":
        assert (found["norm_before_projection"][-1] > 1.005 * initial_GS).all(), "nothing grew: this would mean nothing"


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("stack", STACKS)
def test_a_prediction_starts_at_each_projection_and_nowhere_else(stack, precision):
    found, initial_GS, _ = flow_of(stack, SGD(), 0.1, precision=precision)
    assert torch.allclose(found["start_norm"], initial_GS.double().expand(40, -1, -1), rtol=1e-6, atol=0)
    moved = (found["start_norm"][1:] != found["start_norm"][:-1]).any(dim=2).any(dim=1)
    period = STACKS[stack] or 41
    assert {step + 1 for step in moved.nonzero().flatten().tolist()} <= set(range(period, 40, period))
    squares = found["radial_update"].square() + found["tangential_update"].square()
    since = torch.stack([squares[t - t % period : t + 1].sum(dim=0) for t in range(40)])
    wanted = (found["start_norm"].square() + since).sqrt()
    assert torch.allclose(found["predicted_norm"], wanted, rtol=1e-12, atol=0)


def test_the_parts_of_a_momentum_update_are_those_of_the_geometry():
    """With momentum updates are not tangential: the norm follows from both parts, and exceeds the predicted one."""
    found, initial_GS, state = flow_of("layer_norm", SGD(momentum=0.9), 0.02)
    before = torch.cat([initial_GS.unsqueeze(0), found["norm_before_projection"][:-1]])
    wanted = ((before + found["radial_update"]).square() + found["tangential_update"].square()).sqrt()
    assert torch.allclose(found["norm_before_projection"], wanted, rtol=1e-12, atol=0)
    hidden = [state.group_norm(group) for group in state.groups[:-1]]
    assert torch.allclose(found["norm_before_projection"][-1], torch.stack(hidden), rtol=1e-12, atol=0)
    assert (found["norm_before_projection"][-1] > found["predicted_norm"][-1]).all()


# In the loop


def run_of(stack="nap(period=10)", flow=True, lr=0.05, seeds=(0, 1)):
    return Run(
        benchmark=Part.of(dataclasses.replace(TASK, flow=flow)),
        model=dataclasses.replace(NETWORKS["mlp"], norm_eps=1e-5),
        methods=parse_stack(stack),
        optimizer=Part.of(Adam() if lr < 0.01 else SGD()),
        schedule=Part.of(Constant(lr)),
        seeds=seeds,
    )


def trained(run, root, control=None):
    folder = RunFolder(root, run)
    folder.path.mkdir(parents=True, exist_ok=True)
    train(run, folder, data_dir=None, device="cpu", control=control or Control())
    return folder.metrics.read_text()


class StopAt(Control):
    """Asks for a stop once so many updates have been looked at."""

    def __init__(self, num_updates):
        self.left = num_updates
        super().__init__(checkpoint_seconds=1e9)

    @property
    def stop(self):
        self.left -= 1
        return self.left <= 0

    @stop.setter
    def stop(self, value):
        pass


@pytest.mark.parametrize("stopped_at", [3, 10, 17])
def test_law_2_a_resumed_run_records_the_same_bytes(tmp_path, stopped_at):
    run = run_of()
    with pytest.raises(Interrupted):
        trained(run, tmp_path / "resumed", StopAt(stopped_at))
    assert trained(run, tmp_path / "resumed") == trained(run, tmp_path / "whole")


def test_law_1_what_a_block_of_seeds_records_each_seed_records_alone(tmp_path):
    rows = [line.split(",") for line in trained(run_of(), tmp_path).splitlines() if "flow/" in line]
    for seed in (0, 1):
        alone = [line.split(",") for line in trained(run_of(seeds=(seed,)), tmp_path).splitlines() if "flow/" in line]
        assert alone == [row for row in rows if row[1] == str(seed)]


@pytest.mark.parametrize("lr", [0.05, 0.002], ids=["sgd", "adam"])
def test_switched_on_it_changes_no_other_number_and_off_it_costs_nothing(tmp_path, monkeypatch, lr):
    on = trained(run_of(lr=lr), tmp_path)
    monkeypatch.setattr(Flow, "__init__", lambda *args: pytest.fail("built though nobody asked for it"))
    off = trained(run_of(flow=False, lr=lr), tmp_path)
    assert "flow/" not in off
    assert [line for line in on.splitlines() if "flow/" not in line] == off.splitlines()
    assert "flow/predicted_norm/layer1" in on and "flow/predicted_norm/output" not in on


def test_switched_off_it_leaves_a_run_its_name():
    assert "flow" not in dict(run_of(flow=False).benchmark.params)
    assert run_of(flow=False).run_id != run_of(flow=True).run_id
