"""Loop 1: supervised streams. Who makes the data differs between loops; the update does not (see update.py).

Shape suffixes: S seeds, B batch, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nap_bench import update
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.methods import stack_of
from nap_bench.methods.base import Stack
from nap_bench.metrics import norms, plasticity
from nap_bench.metrics.flow import Flow
from nap_bench.metrics.probe import UpdateProbe, measure_update
from nap_bench.models.roles import Role
from nap_bench.schedules import SCHEDULES
from nap_bench.session import Control, Session
from nap_bench.spec import Run
from nap_bench.state import Shapes, TrainState, build
from nap_bench.store import RunFolder

DORMANT_TAU = 0.1
"""ReDo's threshold in the aggressive setting of Sokar et al. 2023; the metric's name carries it."""


@dataclass
class Online:
    """Sums over the bin under way, on the device: loss and accuracy before each update."""

    loss_S: Tensor
    correct_S: Tensor
    num_steps: int = 0

    @classmethod
    def empty(cls, state: TrainState) -> Online:
        zeros = torch.zeros(len(state.seeds), device=state.device)
        return cls(zeros, zeros.clone())

    def add(self, losses_S: Tensor, accuracy_S: Tensor) -> None:
        self.loss_S += losses_S.detach()
        self.correct_S += accuracy_S
        self.num_steps += 1


def diagnose(state: TrainState, acts: dict[str, Tensor], before_SP: Tensor) -> dict[str, Tensor]:
    """Diagnostics [S] after an update. acts: post-activations on the memorised set; before_SP: parameters before the update.

    Those of diverged seeds mean nothing; `train` records NaN for them.
    """
    layers = list(acts.values())
    width = sum(layer.shape[2] for layer in layers)

    def over_units(fraction: Callable[[Tensor], Tensor]) -> Tensor:
        return sum(fraction(layer) * layer.shape[2] for layer in layers) / width

    found = {
        "probe/dead_fraction": over_units(plasticity.dead_fraction),
        f"probe/dormant_fraction_tau{DORMANT_TAU}": over_units(lambda a: plasticity.dormant_fraction(a, DORMANT_TAU)),
        "probe/linearised_fraction": plasticity.linearised_fraction(layers[-1]),
        "probe/feature_rank": plasticity.feature_rank(layers[-1]),
        "probe/parameter_norm": norms.global_norm(state.eval_params),
        "probe/gradient_norm": norms.global_norm(state.gradient),
        "probe/explicit_learning_rate": state.optimizer.rate.expand(len(state.seeds)),
    }
    for group in state.groups:
        norm_S = state.group_norm(group, before_SP)
        found[f"probe/norm/{group.name}"] = state.group_norm(group)
        found[f"probe/relative_update/{group.name}"] = state.group_norm(group, state.eval_params - before_SP) / norm_S
        found[f"probe/effective_learning_rate/{group.name}"] = norms.effective_learning_rate(
            state.optimizer.rate, norm_S, steps_are_normalised=state.optimizer.steps_are_normalised
        )
    hidden = [g.name for g in state.groups if Role.OUTPUT not in {state.roles[name] for name in g.members}]
    for quantity in ("effective_learning_rate", "relative_update"):
        layers_S = [found[f"probe/{quantity}/{name}"].log() for name in hidden]
        found[f"probe/{quantity}"] = torch.stack(layers_S).mean(dim=0).exp()  # geometric mean over hidden layers
    return found


def prepared(run: Run, shapes: Shapes, device: str) -> tuple[TrainState, Stack]:
    """A run's state at its initial point, and its methods, set up. Refuses a run that cannot exist."""
    stack = stack_of(run.methods)
    if reason := stack.why_not(run):
        raise ValueError(f"Run {run.run_id} cannot exist: {reason}")
    state = build(stack.transform_model(run.model), run.optimizer, run.seeds, shapes, device, run.precision)
    for method in stack:
        state.slots[method.name] = method.setup(state)
    return state, stack


def result(session: Session, state: TrainState, total: int, *, extra_forward_passes: int) -> dict:
    """What a run's loop returns: status of every seed, cost, and the network as the methods edited it."""
    ended = session.end(state.alive, state.updates, total)
    ended["cost"] |= {
        "extra_forward_passes": extra_forward_passes,
        "slot_bytes": sum(s.nbytes for slots in state.slots.values() for s in slots.values() if isinstance(s, Tensor)),
    }
    return ended | {"model": state.spec.as_dict()}


def train(run: Run, folder: RunFolder, *, data_dir: str | None, device: str, control: Control) -> dict:
    """Train a block of seeds to its end, going on from a checkpoint if there is one; returns status and cost.

    Writes metrics.csv and checkpoint in the run's folder. Raises Interrupted after a stop was asked for.
    """
    session = Session(run, folder, device, control)
    benchmark = run.benchmark.build(BENCHMARKS, "benchmark")
    schedule = run.schedule.build(SCHEDULES, "schedule")
    state, stack = prepared(run, benchmark.shapes, device)
    data = benchmark.load(data_dir, device)
    flow = Flow(state) if benchmark.flow else None
    online = Online.empty(state)
    if saved := session.saved:
        state.load_state_dict(saved["state"])
        online = Online(*saved["online"])
        if flow:
            flow.memory = saved["flow"]
    eval_steps, total, per_task = benchmark.eval_steps(), benchmark.num_steps, benchmark.steps_per_task

    def log(name: str, values_S: Tensor) -> None:
        """A diverged seed has no numbers: it is NaN in everything recorded from then on."""
        session.recorder.log(state.step, name, torch.where(state.alive, values_S, torch.nan))

    def content() -> dict:
        sums = (online.loss_S, online.correct_S, online.num_steps)
        return {"state": state.state_dict(), "online": sums, "flow": flow and flow.memory}

    session.begin(state.step)
    while state.step < total:
        step = state.step
        task = benchmark.task_at(step)
        state.lr.fill_(schedule(step, total, per_task))
        if step and task != benchmark.task_at(step - 1):
            update.task_boundary(state, stack, task)
        inputs, y_SB = benchmark.batch(data, run.seeds, step)
        out_SBK = update.forward(state, stack, inputs)
        losses_S = benchmark.loss(out_SBK, y_SB)
        online.add(losses_S, benchmark.accuracy(out_SBK.detach(), y_SB))
        before_SP = state.eval_params.clone() if flow or step + 1 in eval_steps else None
        update.grad_step(state, [losses_S], stack)
        if flow:
            flow.add(state, before_SP)
        update.tail(state, stack)

        if state.step in eval_steps:
            num_forwards = state.num_forwards
            evaluated = benchmark.evaluate(state, data)
            ends = UpdateProbe(state, (inputs, y_SB), benchmark.loss, losses_S, before_SP)
            of_update = measure_update(benchmark.metrics, ends)
            state.num_forwards = num_forwards  # what is left counts training and what methods asked for
            state.alive &= torch.isfinite(evaluated["loss"])  # after the last update nothing else would notice
            for name, values_S in {**diagnose(state, evaluated.pop("acts"), before_SP), **of_update}.items():
                log(name, values_S)
            if flow:
                for name, values_S in flow.read().items():
                    log(name, values_S)
            log("online/loss", online.loss_S / online.num_steps)
            log("online/accuracy", online.correct_S / online.num_steps)
            if state.step % per_task == 0:
                for name, values_S in evaluated.items():
                    log(f"task_end/{name}", values_S)
            online = Online.empty(state)

        session.after(state.step, total, content)

    return result(session, state, total, extra_forward_passes=state.num_forwards - total)
