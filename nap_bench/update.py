"""One update, written once: every loop and every method goes through here.

Order: backward over micro-losses, penalties, divergence, clipping, after_backward, optimizer, then the eager tail
(after_step in phase order). S seeds, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from nap_bench.methods.base import Stack
from nap_bench.state import TrainState


def forward(state: TrainState, stack: Stack, inputs: Tensor, **given: Tensor) -> Tensor:
    """The forward that is trained on; keeps post-activations in state.acts if a method declares that it needs them."""
    state.acts, state.fed = ({}, (inputs, given)) if stack.needs_acts else (None, None)
    return state.forward(inputs, state.acts, training=True, **given)


def grad_step(state: TrainState, losses: Iterable[Tensor], stack: Stack) -> None:
    """One optimizer step from micro-losses [S] (already weighted so that they sum to the loss of the batch).

    A seed whose loss is not finite is dead from then on: its gradient is replaced by zeros (torch.where: NaN * 0 is NaN),
    its divergence is recorded, and the other seeds do not notice. No Python branch on the step, no waiting for a GPU.
    A penalty on activations is added to every micro-loss, whole: there is one in all loops.
    Where several processes train together, each brings losses of its own; penalties are added to their sum.
    """
    if stack.penalised_on_acts:
        losses = (sum((method.loss_penalty(state) for method in stack.penalised_on_acts), loss_S) for loss_S in losses)
    total_S = backward(state, losses)
    if state.ranks is not None:
        total_S = state.ranks.summed(state.flat.grad, total_S.clone())
    if stack.penalised:
        total_S = backward(state, (method.loss_penalty(state) for method in stack.penalised), total_S)
    on_cpu = state.device.type == "cpu"  # where looking is free; a sum is finite only if all its terms are
    if not (on_cpu and math.isfinite(total_S.sum())):
        state.alive &= total_S.abs() < math.inf  # isfinite in half the operations
    state.updates += state.alive
    if not leaves_all(state, state.alive):
        state.gradient_bits *= state.alive.unsqueeze(1)  # torch.where, five times faster on a CPU
    if state.optimizer.settings.clip_norm is not None:
        norm_S1 = torch.linalg.vector_norm(state.gradient, dim=1, keepdim=True)
        factor_S1 = (state.optimizer.settings.clip_norm / norm_S1).clamp(max=1.0)
        if not leaves_all(state, factor_S1 == 1.0):
            state.gradient.mul_(factor_S1)
    for method in stack.after_backward:
        method.after_backward(state)
    state.optimizer.step()
    if state.acts:
        state.acts = {name: act.detach() for name, act in state.acts.items()}


def leaves_all(state: TrainState, is_one: Tensor) -> bool:
    """On a CPU, where looking is free: whether factors are all one, so that a pass over the gradient changes nothing."""
    return state.device.type == "cpu" and bool(is_one.all())


def backward(state: TrainState, losses: Iterable[Tensor], total_S: Tensor | None = None) -> Tensor:
    """Gradients of losses [S] into `state.gradient`, which sums to `total_S` so far, or is overwritten; returns the new sum."""
    parameters = tuple(state.params.values())
    for loss_S in losses:
        pieces = slopes(loss_S, parameters)
        flat = [piece if piece.dim() == 2 else piece.flatten(1) for piece in pieces]
        if total_S is None:
            total_S = loss_S.detach()
            torch.cat(flat, dim=1, out=state.gradient)
        else:
            total_S = total_S + loss_S.detach()
            state.gradient += torch.cat(flat, dim=1)
    return total_S


def slopes(loss_S: Tensor, parameters: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients of the sum of losses [S]; zeros for a parameter that they do not depend on.

    The engine behind `torch.autograd.grad`: that function's look at its arguments takes as long as half a small network's backward.
    """
    engine = torch.autograd.Variable._execution_engine
    found = engine.run_backward(
        (loss_S,), (torch.ones_like(loss_S),), False, False, parameters, allow_unreachable=True, accumulate_grad=False
    )
    return [
        torch.zeros_like(parameter) if slope is None else slope
        for slope, parameter in zip(found, parameters, strict=True)
    ]


def tail(state: TrainState, stack: Stack) -> None:
    """What follows the optimizer's step, eagerly: count the update, then every method's after_step in phase order."""
    state.step += 1
    for method in stack.after_step:
        method.after_step(state)


def task_boundary(state: TrainState, stack: Stack, task: int) -> None:
    """Tell the methods that asked; if one of them edits parameters, bring back once what other methods keep in place."""
    for method in stack.told_of_tasks:
        method.on_task_boundary(state, task)
    if stack.edits_at_boundaries:
        for method in stack:
            method.restore(state)
