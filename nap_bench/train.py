"""Loop 1: supervised streams. Who makes the data differs between loops; the update does not (see update.py).

Shape suffixes: S seeds, B batch, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nap_bench import update
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.benchmarks.base import SupervisedBenchmark
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

    def add(self, losses_S: Tensor, accuracy_S: Tensor | None) -> None:
        self.loss_S += losses_S
        if accuracy_S is not None:
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
        "probe/parameter_norm": norms.global_norm(state.flat.detach()),
        "probe/gradient_norm": norms.global_norm(state.gradient),
        "probe/explicit_learning_rate": state.optimizer.rate.expand(len(state.seeds)),
    }
    for group in state.groups:
        norm_S = state.group_norm(group, before_SP)
        found[f"probe/norm/{group.name}"] = state.group_norm(group)
        found[f"probe/relative_update/{group.name}"] = state.group_norm(group, state.flat.detach() - before_SP) / norm_S
        found[f"probe/effective_learning_rate/{group.name}"] = norms.effective_learning_rate(
            state.optimizer.rate,
            norm_S * state.rate_divisor(group),
            steps_are_normalised=state.optimizer.steps_are_normalised,
        )
    hidden = [g.name for g in state.groups if Role.OUTPUT not in {state.roles[name] for name in g.members}]
    for quantity in ("effective_learning_rate", "relative_update"):
        layers_S = [found[f"probe/{quantity}/{name}"].log() for name in hidden]
        # geometric mean over hidden layers; mean() over them has other bits in a block than alone
        found[f"probe/{quantity}"] = (sum(layers_S) / len(layers_S)).exp()
    return found


def prepared(run: Run, shapes: Shapes, device: str) -> tuple[TrainState, Stack]:
    """A run's state at its initial point, and its methods, set up. Refuses a run that cannot exist."""
    stack = stack_of(run.methods)
    if reason := stack.why_not(run):
        raise ValueError(f"Run {run.run_id} cannot exist: {reason}")
    state = build(stack.transform_model(run.model), run.optimizer, run.seeds, shapes, device, run.precision)
    stack.setup(state)
    return state, stack


def result(session: Session, state: TrainState, total: int, *, extra_forward_passes: int) -> dict:
    """What a run's loop returns: status of every seed, cost, and the network as the methods edited it."""
    ended = session.end(state.alive, state.updates, total)
    ended["cost"] |= {
        "extra_forward_passes": extra_forward_passes,
        "slot_bytes": sum(s.nbytes for slots in state.slots.values() for s in slots.values() if isinstance(s, Tensor)),
    }
    return ended | {"model": state.spec.as_dict()}


def refuse_pieces(run: Run, stack: Stack, benchmark: SupervisedBenchmark, control: Control) -> None:
    """Raises ValueError where a method would not see what it asks for, or processes cannot share a batch."""
    num_pieces, num_processes = benchmark.micro_batches, 1 if control.ranks is None else control.ranks.size
    if num_pieces % num_processes:
        raise ValueError(
            f"{num_processes} processes cannot share the {num_pieces} micro-batches of {run.run_id}. Start as many as divide them."
        )
    if stack.needs_acts and num_processes > 1:
        raise ValueError(f"{run.stack!r} looks at activations, and processes that train together have different ones.")
    if stack.penalised_on_acts and num_pieces > 1:
        raise ValueError(
            f"{run.stack!r} penalises activations, which is not defined for a batch in {num_pieces} pieces."
        )


def micro_losses(
    state: TrainState,
    stack: Stack,
    benchmark: SupervisedBenchmark,
    inputs: Tensor,
    y_SB: Tensor,
    seen: list[tuple[Tensor, Tensor | None]],
) -> Iterator[Tensor]:
    """Losses [S] of the pieces of a batch, one forward after another, weighted so that they sum to the batch's.

    seen: receives loss and accuracy of each. Of several processes each looks at its share of the pieces.
    """
    pieces = benchmark.pieces(inputs, y_SB)
    for part, answers in pieces if state.ranks is None else state.ranks.share(pieces):
        out_SBK = update.forward(state, stack, part)
        loss_S = benchmark.loss(out_SBK, answers)
        accuracy_S = benchmark.accuracy(out_SBK.detach(), answers) if benchmark.has_classes else None
        del out_SBK
        if len(pieces) > 1:
            loss_S, accuracy_S = loss_S / len(pieces), accuracy_S / len(pieces)
        seen.append((loss_S.detach(), accuracy_S))
        yield loss_S


def summed(seen: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Loss and accuracy of a batch from its pieces'."""
    return sum(loss_S for loss_S, _ in seen), sum(accuracy_S for _, accuracy_S in seen)


def train(run: Run, folder: RunFolder, *, data_dir: str | None, device: str, control: Control) -> dict:
    """Train a block of seeds to its end, going on from a checkpoint if there is one; returns status and cost.

    Writes metrics.csv and checkpoint in the run's folder. Raises Interrupted after a stop was asked for, ValueError where a
    checkpoint was made on other data.
    """
    session = Session(run, folder, device, control)
    benchmark = run.benchmark.build(BENCHMARKS, "benchmark")
    schedule = run.schedule.build(SCHEDULES, "schedule")
    state, stack = prepared(run, benchmark.shapes, device)
    state.ranks = control.ranks
    data = benchmark.load(data_dir, device)
    session.made_of(benchmark.identity(data))
    refuse_pieces(run, stack, benchmark, control)
    flow = Flow(state) if benchmark.flow else None
    online = Online.empty(state)
    if saved := session.saved:
        state.load_state_dict(saved["state"])
        online = Online(*saved["online"])
        if flow:
            flow.memory = saved["flow"]
    num_planned = saved["num_planned"] if saved else 0  # forward passes of the batches themselves
    eval_steps, total, per_task = benchmark.eval_steps(), benchmark.num_steps, benchmark.steps_per_task

    def log(name: str, values_S: Tensor) -> None:
        """A diverged seed has no numbers: it is NaN in everything recorded from then on."""
        session.recorder.log(state.step, name, torch.where(state.alive, values_S, torch.nan))

    def content() -> dict:
        sums = (online.loss_S, online.correct_S, online.num_steps)
        kept = {"state": state.state_dict(), "online": sums, "flow": flow and flow.memory}
        return kept | {"num_planned": num_planned}

    session.begin(state.step)
    while state.step < total:
        step = state.step
        task = benchmark.task_at(step)
        state.lr.fill_(schedule(step, total, per_task))
        if step and task != benchmark.task_at(step - 1):
            update.task_boundary(state, stack, task)
        inputs, y_SB = benchmark.batch(data, run.seeds, step)
        before_SP = state.flat.detach().clone() if flow or step + 1 in eval_steps else None
        seen: list[tuple[Tensor, Tensor | None]] = []
        update.grad_step(state, micro_losses(state, stack, benchmark, inputs, y_SB, seen), stack)
        num_planned += len(seen)
        losses_S, accuracy_S = seen[0] if len(seen) == 1 else summed(seen)
        if state.ranks is not None:
            losses_S, accuracy_S = state.ranks.summed(losses_S), state.ranks.summed(accuracy_S)
        online.add(losses_S, accuracy_S)
        if flow:
            flow.add(state, before_SP)
        update.tail(state, stack)

        if state.step in eval_steps:
            num_forwards = state.num_forwards
            with state.as_evaluated():
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
            if benchmark.has_classes:
                log("online/accuracy", online.correct_S / online.num_steps)
            if state.step % per_task == 0:
                for name, values_S in evaluated.items():
                    log(f"task_end/{name}", values_S)
            online = Online.empty(state)

        session.after(state.step, total, content)

    return result(session, state, total, extra_forward_passes=state.num_forwards - num_planned)
