"""A method is a frozen dataclass with six optional hooks; a stack of methods is written `a+b` and sorted, so order is no choice.

A method receives the state and nothing else, so it cannot special-case a benchmark. What it remembers lives in
`state.slots[name]`, so checkpoints are free.
"""

from __future__ import annotations

import dataclasses
from enum import IntEnum
from typing import ClassVar

from torch import Tensor

from nap_bench.spec import Component, ModelSpec, Run


class Phase(IntEnum):
    """When a method's hooks run, relative to the others': what finishes the optimizer's step, resets, shrinking, projection."""

    STEP = -1
    RESET = 0
    SHRINK = 1
    PROJECT = 2


class Method(Component):
    """Base of all methods: every hook defaults to nothing.

    phase: see Phase; ties sort by name.  needs_acts: the training forward keeps post-activations in `state.acts`, and what it
      was given in `state.fed`; a `loss_penalty` is then asked for while they are attached, and goes backward with the loss.
    told_of_tasks: `on_task_boundary` is called. Methods that do not declare it never learn of a task switch.
    edits_at_boundaries: its `on_task_boundary` edits parameters, so every method's `restore` runs once afterwards.
    moves_start: its `setup` edits parameters, so it comes before those of methods that remember where the run started.
    """

    phase: ClassVar[Phase] = Phase.RESET
    needs_acts: ClassVar[bool] = False
    told_of_tasks: ClassVar[bool] = False
    edits_at_boundaries: ClassVar[bool] = False
    moves_start: ClassVar[bool] = False

    def why_not(self, run: Run) -> str | None:
        """Why this cell cannot exist, or None. Printed and reported, never silent. run.model is as the stack edited it."""
        return None

    def transform_model(self, spec: ModelSpec) -> ModelSpec:
        """The network this method wants. Pure; two methods of a stack may not edit the same field."""
        return spec

    def setup(self, state) -> dict[str, Tensor]:
        """Called once at the initial point; becomes state.slots[self.name]."""
        return {}

    def loss_penalty(self, state) -> Tensor:
        """[S], added to the loss once per update. Not called where a method leaves it undefined."""
        raise NotImplementedError

    def after_backward(self, state) -> None:
        """Edit gradients in place. Held to no host synchronisation: it may run inside a CUDA graph."""

    def after_step(self, state) -> None:
        """Edit parameters and moments in place, after every update."""

    def restore(self, state) -> None:
        """Bring parameters back to where the method keeps them, e.g. project them, whether or not that was due."""

    def on_task_boundary(self, state, task: int) -> None:
        """Before the first update of task 1, 2, ...; only if `told_of_tasks`."""


class Stack:
    """The methods of a run in the order in which their hooks run."""

    def __init__(self, methods: list[Method]):
        self.methods = sorted(methods, key=lambda method: (method.phase, method.name))
        penalised = self._overriding("loss_penalty")
        self.penalised = [method for method in penalised if not method.needs_acts]
        self.penalised_on_acts = [method for method in penalised if method.needs_acts]
        self.after_backward = self._overriding("after_backward")
        self.after_step = self._overriding("after_step")
        self.needs_acts = any(method.needs_acts for method in self.methods)
        self.edits_at_boundaries = any(method.edits_at_boundaries for method in self.methods)
        self.told_of_tasks = [method for method in self.methods if method.told_of_tasks]

    def __iter__(self):
        return iter(self.methods)

    def setup(self, state) -> None:
        """Every method's slots, at the initial point: first of the methods that move it."""
        for method in sorted(self.methods, key=lambda method: not method.moves_start):
            state.slots[method.name] = method.setup(state)

    def _overriding(self, hook: str) -> list[Method]:
        """The methods that define a hook: a loop over it costs nothing where none does."""
        return [method for method in self.methods if getattr(type(method), hook) is not getattr(Method, hook)]

    def transform_model(self, spec: ModelSpec) -> ModelSpec:
        """Union of all edits. Raises if two methods edit the same field: their order would matter."""
        edits: dict[str, tuple[object, str]] = {}
        for method in self.methods:
            edited = method.transform_model(spec)
            for field in dataclasses.fields(spec):
                value = getattr(edited, field.name)
                if value != getattr(spec, field.name):
                    if field.name in edits:
                        raise ValueError(
                            f"Impossible stack: {edits[field.name][1]!r} and {method.name!r} both set the model's "
                            f"{field.name!r}. Leave one of them out."
                        )
                    edits[field.name] = (value, method.name)
        return dataclasses.replace(spec, **{name: value for name, (value, _) in edits.items()})

    def why_not(self, run: Run) -> str | None:
        """The first reason why the run cannot exist, or None."""
        names = [method.name for method in self.methods]
        for name in names:
            if names.count(name) > 1:
                return f"{name!r} stands twice in the stack {run.stack!r}"
        try:
            edited = dataclasses.replace(run, model=self.transform_model(run.model))
        except ValueError as error:
            return str(error)
        for method in self.methods:
            if reason := method.why_not(edited):
                return f"{method.name}: {reason}"
        return None
