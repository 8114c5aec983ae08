"""The one mutable object of a run: parameters of a block of seeds, optimizer, and what methods remember.

Shape suffixes: S seeds, P parameters of one seed (padded), B batch.

All parameters live in one flat tensor [S, P], P padded to a multiple of 64, so that decay, noise, clipping and checkpoints
are one tensor operation and one fused optimizer steps it. With the padding the fused CPU kernels give the same bits for every
grouping of seeds. Module parameters are views of it; they are edited in place and never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nap_bench.models import FAMILIES
from nap_bench.models.blocks import Auxiliary, Conv2d, Group, Units, last_units
from nap_bench.models.roles import Role, roles
from nap_bench.optimizers import OPTIMIZERS
from nap_bench.rng import Noise, generator
from nap_bench.spec import ModelSpec, Part, nearest

ALIGNMENT = 64
DTYPES = {"bf16": torch.float32, "fp32": torch.float32, "fp64": torch.float64}
"""Of parameters, gradients and moments."""
SAME_WIDTH = {torch.float32: torch.int32, torch.float64: torch.int64}
"""Whole numbers as wide as a gradient's entries."""
Shapes = tuple[tuple[int, ...], int]
"""Shape of one input, number of outputs."""


class Optimizer:
    """The fused optimizer over the flat parameter. `lr` is a device tensor that the loop fills before every step."""

    def __init__(self, part: Part, flat: nn.Parameter, views: dict[str, tuple[int, tuple[int, ...]]]):
        self.settings = part.build(OPTIMIZERS, "optimizer")
        self.lr = torch.zeros((), device="cpu" if flat.is_meta else flat.device)
        self._flat, self._gradient, self._views = flat.detach(), flat.grad, views
        self.memory: dict[str, Tensor] = self.settings.start(self._flat)

    @property
    def steps_are_normalised(self) -> bool:
        """True where the step's length does not grow with the gradient's (Adam): the second case of Definition 1."""
        return self.settings.steps_are_normalised

    def step(self) -> None:
        self.settings.step(self._flat, self._gradient, self.memory, self.lr)

    @property
    def rate(self) -> Tensor:
        """The learning rate as the optimizer uses it: `lr`, or an adaptive optimizer's own [S]."""
        return self.settings.rate(self.memory, self.lr)

    def flat_moments(self) -> dict[str, Tensor]:
        """Moment name -> [S, P]."""
        return {name: self.memory[name] for name in self.settings.moments if name in self.memory}

    def moments(self, name: str) -> dict[str, Tensor]:
        """Moment name -> view [S, ...] of one parameter, to be edited in place."""
        start, shape = self._views[name]
        return {key: flat[:, start : start + prod(shape[1:])].view(shape) for key, flat in self.flat_moments().items()}

    def reset(self) -> None:
        """Forget moments and step count: as if no step had been taken."""
        for tensor in self.memory.values():
            tensor.zero_()


class TrainState:
    """What the loop trains and what methods see. Built by `build`.

    params: name -> [S, ...] view of `flat`.  values, gradient [S, P]: all parameters and the gradient of the update under way,
    without padding, to be edited in place.  gradient_bits: the gradient's bits, as whole numbers.  frozen: those
    that are never trained, behind the others in `flat`, in nothing else here but `views` and checkpoints.  roles: name -> Role.
    buffers: name -> what layers remember besides parameters.
    groups: parameters that are projected as one.  units: hidden layers seen as units.  lr: device scalar used by the coming step.
    alive [S] bool: False once a seed's loss was not finite.  updates [S]: updates each seed lived to do.
    acts: post-activations of the forward being trained on, if a method needs them (detached once it is done).  fed: what it was
      given, then.
    slots: what each method remembers, by its name.  seeds, step (updates done).  eval_params: what evaluation reads.
    num_forwards: forward passes taken to train; `train` leaves out those of evaluation.
    ranks: the processes that train together (ranks.py), None where there is one.
    """

    def __init__(
        self, spec: ModelSpec, optimizer: Part, seeds: tuple[int, ...], shapes: Shapes, device: str, dtype: torch.dtype
    ):
        if spec.family not in FAMILIES:
            raise ValueError(nearest(spec.family, FAMILIES, "model family"))
        self.spec, self.seeds, self.shapes, self.step, self.num_forwards = spec, seeds, shapes, 0, 0
        self.autocasts, self.ranks = False, None
        self.device = torch.device(device)
        self.model = self._network()
        self.roles: dict[str, Role] = roles(self.model)
        self.groups: tuple[Group, ...] = self.model.groups
        self.units: tuple[Units, ...] = self.model.units
        self.slots: dict[str, dict[str, Tensor]] = {}
        self.acts: dict[str, Tensor] | None = None
        self.fed: tuple[Tensor, dict[str, Tensor]] | None = None
        self.views: dict[str, tuple[int, tuple[int, ...]]] = {}
        offset = self.num_parameters = 0
        in_order = sorted(self.model.named_parameters(), key=lambda item: self.roles[item[0]] is Role.FROZEN)
        for name, declared in in_order:
            self.views[name] = (offset, tuple(declared.shape))
            offset += prod(declared.shape[1:])
            self.num_parameters += 0 if self.roles[name] is Role.FROZEN else prod(declared.shape[1:])
        padded = -(-offset // ALIGNMENT) * ALIGNMENT
        self.flat = nn.Parameter(torch.zeros(len(seeds), padded, device=self.device, dtype=dtype))
        self.flat.grad = torch.zeros_like(self.flat, requires_grad=False)
        self.gradient = self.flat.grad[:, : self.num_parameters]
        self.gradient_bits = self.gradient.view(SAME_WIDTH[dtype])
        self.values = self.flat.detach()[:, : self.num_parameters]
        self.params: dict[str, nn.Parameter] = {}
        self.frozen: dict[str, nn.Parameter] = {}
        for name in self.views:
            is_frozen = self.roles[name] is Role.FROZEN
            parameter = nn.Parameter(self.view(self.flat.detach(), name), requires_grad=not is_frozen)
            owner, _, leaf = name.rpartition(".")
            self.model.get_submodule(owner)._parameters[leaf] = parameter
            (self.frozen if is_frozen else self.params)[name] = parameter
        self.buffers: dict[str, Tensor] = {}
        for name, declared in list(self.model.named_buffers()):
            path, _, leaf = name.rpartition(".")
            owner = self.model.get_submodule(path)
            self.buffers[name] = torch.full(declared.shape, owner.starts[leaf], device=self.device, dtype=dtype)
            owner._buffers[leaf] = self.buffers[name]
        self.model.eval()
        self._masks: dict[tuple[Role, ...], Tensor] = {}
        self._noise: dict[str, Noise] = {}
        self._features: list[str] | None = None
        self._norms: dict[str, tuple[tuple[int, int], Tensor]] = {}
        self.alive = torch.ones(len(seeds), dtype=torch.bool, device=self.device)
        self.updates = torch.zeros(len(seeds), dtype=torch.int64, device=self.device)
        self.optimizer = Optimizer(optimizer, self.flat, self.views)

    @property
    def lr(self) -> Tensor:
        return self.optimizer.lr

    def _network(self) -> nn.Module:
        """The family's network, and beside it the heads that it does not read."""
        model = FAMILIES[self.spec.family](self.spec, len(self.seeds), *self.shapes)
        if self.spec.auxiliary:
            model.auxiliary = Auxiliary(model, len(self.seeds), self.spec.auxiliary, init=self.spec.init)
        return model

    @property
    def eval_params(self) -> Tensor:
        """Flat parameters [S, P] that evaluation reads: the copy that a method keeps under this name in its slots, or `flat`."""
        return next((kept["eval_params"] for kept in self.slots.values() if "eval_params" in kept), self.flat.detach())

    @contextmanager
    def as_evaluated(self) -> Iterator[None]:
        """Within it parameters, and the buffers that a method keeps as `eval_params/NAME`, are those that evaluation reads."""
        found = self.eval_params
        if found.data_ptr() == self.flat.data_ptr():
            yield
            return
        (kept,) = (slots for slots in self.slots.values() if "eval_params" in slots)
        pairs = [(self.flat.detach(), found)] + [(b, kept[f"eval_params/{name}"]) for name, b in self.buffers.items()]
        trained = [tensor.clone() for tensor, _ in pairs]
        try:
            for tensor, evaluated in pairs:
                tensor.copy_(evaluated)
            yield
        finally:
            for (tensor, _), before in zip(pairs, trained, strict=True):
                tensor.copy_(before)

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The part of a flat [S, P] tensor that holds one parameter, as [S, ...]."""
        start, shape = self.views[name]
        return flat[:, start : start + prod(shape[1:])].view(shape)

    def matrix(self, name: str) -> Tensor:
        """A weight as [S, out, fan_in], a bias as [S, out, 1], a view."""
        weight = self.params[name].detach()
        return weight.transpose(1, 2) if weight.dim() == 3 else weight.view(*weight.shape[:2], -1)

    def aligned(self, *shape: int) -> Tensor:
        """Uninitialised [S, *shape] in which every seed starts at a multiple of ALIGNMENT entries, as parameters do.

        For results and operands of matrix products: with others the CPU's kernels give other bits for another number of seeds.
        """
        size = prod(shape)
        rows = self.flat.new_empty(len(self.seeds), -(-size // ALIGNMENT) * ALIGNMENT, requires_grad=False)
        return rows[:, :size].view(-1, *shape)

    def of_roles(self, *wanted: Role) -> Tensor:
        """Bool [P]: which entries of `values` belong to parameters of these roles."""
        if wanted not in self._masks:
            mask = torch.zeros(self.num_parameters, dtype=torch.bool)
            for name in self.params:
                start, shape = self.views[name]
                mask[start : start + prod(shape[1:])] = self.roles[name] in wanted
            self._masks[wanted] = mask.to(self.device)
        return self._masks[wanted]

    def by_unit(self, units: Units, name: str, tensor: Tensor | None = None) -> Tensor:
        """A view [S, U, ...] of one of the parameters that `units` names, or of another tensor of that parameter's shape.

        Of an incoming weight [S, U, what it reads ...]; of a bias, scale or offset [S, U]; of an outgoing weight [S, U, features
        per unit, pixels per feature, what reads it ...].
        """
        tensor = self.params[name].detach() if tensor is None else tensor
        is_convolution = isinstance(self.model.get_submodule(name.rpartition(".")[0]), Conv2d)
        if name in units.outgoing:  # [S, I, O] or [S, O, I, kernel, kernel]
            inputs_first = tensor.transpose(1, 2) if is_convolution else tensor
            return inputs_first.unflatten(1, (units.features, units.size, -1)).transpose(1, 2)
        return tensor.transpose(1, 2) if tensor.dim() == 3 else tensor  # Linear's [S, I, O]

    def initial_std(self) -> Tensor:
        """Standard deviation [P] of each entry's initial distribution."""
        std_P = torch.empty(self.num_parameters, dtype=self.flat.dtype)
        for name in self.params:
            start, shape = self.views[name]
            owner, _, leaf = name.rpartition(".")
            std_P[start : start + prod(shape[1:])] = self.model.get_submodule(owner).draws[leaf].std
        return std_P.to(self.device)

    def normal(self, purpose: str) -> Tensor:
        """Standard normal draws [S, P], a pure function of (seed, purpose, step): a buffer, the caller's until its next call."""
        if purpose not in self._noise:
            self._noise[purpose] = Noise(purpose, self.seeds, self.num_parameters, self.device, self.flat.dtype)
        return self._noise[purpose].draw(self.step)

    def group_norm(self, group: Group, flat: Tensor | None = None) -> Tensor:
        """Frobenius norm [S] of the group's parameters, or of the same slices of another flat tensor.

        Rows first, then their norms: over a whole float32 tensor of a million elements the CPU kernel errs by 3e-5. The
        parameters' own is measured once between two edits: methods of one tail ask for it one after another.
        """
        if flat is None:
            edits = (
                self.step,
                self.flat._version,
            )  # both: fused kernels and replayed graphs step without counting as edits
            if self._norms.get(group.name, (None,))[0] != edits:
                self._norms[group.name] = edits, self.group_norm(group, self.flat.detach())
            return self._norms[group.name][1]
        shapes = [(*self.views[name][1][:2], -1) for name in group.members]
        members = [self.view(flat, name).reshape(shape) for name, shape in zip(group.members, shapes, strict=True)]
        rows = [torch.linalg.vector_norm(member, dim=2) for member in members]
        return torch.linalg.vector_norm(rows[0] if len(rows) == 1 else torch.cat(rows, dim=1), dim=1)

    def fresh_rows(self, name: str, purpose: str, *counters: int, counts: list[int], shape: tuple[int, ...]) -> Tensor:
        """As `fresh`, but of each seed another number of draws of `shape`: [sum of counts, *shape], seed after seed."""
        owner, _, leaf = name.rpartition(".")
        draw = self.model.get_submodule(owner).draws[leaf]
        pairs = [(seed, count) for seed, count in zip(self.seeds, counts, strict=True) if count]
        drawn = [draw.sample((count, *shape), generator(seed, f"{purpose}/{name}", *counters)) for seed, count in pairs]
        return torch.cat(drawn).to(self.device, self.flat.dtype)

    def rate_divisor(self, group: Group) -> Tensor | float:
        """What methods divide a group's learning rate by, [S], as if its norm were so much larger: their slots of that name."""
        return prod(
            (slots[key] for slots in self.slots.values() if (key := f"rate_divisor/{group.name}") in slots), start=1.0
        )

    def fresh(self, name: str, purpose: str = "init", *counters: int, shape: tuple[int, ...] | None = None) -> Tensor:
        """A new draw [S, ...] from the initial distribution of a parameter.

        The stream is keyed by seed, purpose, name and counters: adding a layer shifts no other parameter's draw. shape: of a
        seed's draw, where only some entries are wanted; entries are drawn independently of each other.
        """
        owner, _, leaf = name.rpartition(".")
        draw = self.model.get_submodule(owner).draws[leaf]
        shape = self.views[name][1][1:] if shape is None else shape
        drawn = [draw.sample(shape, generator(seed, f"{purpose}/{name}", *counters)) for seed in self.seeds]
        return torch.stack(drawn).to(self.device, self.flat.dtype)

    @torch.no_grad()
    def initialise(self) -> None:
        for name, parameter in self.params.items():
            parameter.copy_(self.fresh(name))

    def forward(
        self, inputs: Tensor, acts: dict[str, Tensor] | None = None, *, training: bool = False, **given: Tensor
    ) -> Tensor:
        """Outputs of the network; inputs are brought to its precision, but for tokens (int64), which are indices.

        training: normalise by the batch, where a norm does.

        given: what a family's forward takes besides, e.g. the noise of noisy layers.
        """
        self.num_forwards += 1
        if self.buffers and self.model.training != training:  # only a norm over the batch cares
            self.model.train(training)
        return self._outputs(self.model, inputs, acts, given)

    def _outputs(self, network: Callable[..., Tensor], inputs: Tensor, acts: dict | None, given: dict) -> Tensor:
        given_in = inputs if inputs.dtype == torch.int64 else inputs.to(self.flat.dtype)
        if not self.autocasts:
            return network(given_in, acts, **given)
        with torch.autocast(self.device.type, torch.bfloat16):
            out = network(given_in, acts, **given)
        return out.float()  # losses are sums over many outputs

    def fed_again(self, flat: Tensor, buffers: dict[str, Tensor], acts: dict[str, Tensor]) -> Tensor:
        """The forward being trained on once more, at other parameters [S, P] and buffers: outputs; acts receives post-activations.

        Buffers are not edited: what a norm would remember of the batch is dropped.
        """
        self.num_forwards += 1
        inputs, given = self.fed
        there = {name: self.view(flat, name) for name in self.views} | {n: b.clone() for n, b in buffers.items()}

        def network(*args: object, **kwargs: object) -> Tensor:
            return functional_call(self.model, there, args, kwargs)

        return self._outputs(network, inputs, acts, given)

    def features(self, acts: dict[str, Tensor]) -> Tensor:
        """The last hidden features [S, B, F] among a forward's post-activations: what final layers read; of maps their mean."""
        if self._features is None:
            self._features = [units.name for units in last_units(self.model)] or ["features"]
        read = [acts[name] for name in self._features]
        features = torch.cat([act.mean(dim=(3, 4)) if act.dim() == 5 else act for act in read], dim=2)
        return features.to(self.flat.dtype)

    def twin(self, flat: Tensor) -> nn.Module:
        """The same network over another flat tensor [S, P]: a target network, an average. Buffers are shared."""
        model = self._network()
        for name in self.views:
            owner, _, leaf = name.rpartition(".")
            parameter = nn.Parameter(self.view(flat, name), requires_grad=False)
            model.get_submodule(owner)._parameters[leaf] = parameter
        for name, buffer in self.buffers.items():
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._buffers[leaf] = buffer
        return model.eval()

    def state_dict(self) -> dict:
        return {
            "flat": self.flat.detach(),
            "optimizer": self.optimizer.memory,
            "alive": self.alive,
            "updates": self.updates,
            "buffers": self.buffers,
            "slots": self.slots,
            "step": self.step,
            "num_forwards": self.num_forwards,
        }

    def load_state_dict(self, saved: dict) -> None:
        self.flat.detach().copy_(saved["flat"])
        self.alive.copy_(saved["alive"])
        self.updates.copy_(saved["updates"])
        for kept, loaded in ((self.optimizer.memory, saved["optimizer"]), (self.buffers, saved["buffers"])):
            for name, tensor in kept.items():
                tensor.copy_(loaded[name])
        self.slots = saved["slots"]
        self.step, self.num_forwards = saved["step"], saved["num_forwards"]


def build(
    spec: ModelSpec, optimizer: Part, seeds: tuple[int, ...], shapes: Shapes, device: str, precision: str = "fp32"
) -> TrainState:
    """A state at its initial point. spec: after the methods edited it. shapes: of one input, and number of outputs.

    precision: "fp32"; "fp64" for exact comparisons; or "bf16": parameters, gradients and the update in fp32, products of the
    forward and its gradient in bfloat16 (autocast). The initial point is the same, drawn in float32.
    On device "meta" nothing is allocated or drawn: it only shows that the run can be built.
    """
    state = TrainState(spec, optimizer, seeds, shapes, device, DTYPES[precision])
    state.autocasts = precision == "bf16"
    if state.device.type != "meta":
        state.initialise()
    return state
