"""Metrics that a run records at its tasks' ends because its benchmark names them, beyond what `train` always records.

Shape suffixes: S seeds, E examples, n examples that single gradients are taken of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nap_bench.metrics import landscape, norms, plasticity, ranks
from nap_bench.models.roles import Role
from nap_bench.state import TrainState

NUM_SINGLE = 32
"""Examples whose single gradients are taken: the first of the probe."""

NUM_CURVED = 128
"""Examples over whose mean loss the Hessian is taken."""


@dataclass(eq=False)
class Probe:
    """A network looked at on some examples. What several metrics need is found once.

    inputs [S, E, ...], targets [S, E], acts: layer -> post-activations on them.  losses: (outputs, targets) -> [S, E].
    """

    state: TrainState
    inputs: Tensor
    targets: Tensor
    outputs: Tensor
    acts: dict[str, Tensor]
    losses: landscape.Losses

    @cached_property
    def features(self) -> Tensor:
        """Post-activations of the last hidden layer, [S, E, D]."""
        return list(self.acts.values())[-1].flatten(2)

    @cached_property
    def spectrum(self) -> Tensor:
        return ranks.singular_values(self.features)

    @cached_property
    def preactivations(self) -> list[Tensor]:
        """What each nonlinearity is given, in forward order."""
        found, model = [], self.state.model
        activation = model.activation

        def listening(h: Tensor) -> Tensor:
            found.append(h)
            return activation(h)

        model.activation = listening
        try:
            self.state.forward(self.inputs)
        finally:
            model.activation = activation
        return found

    @cached_property
    def act_gradients(self) -> list[Tensor]:
        """Of each example's loss with respect to its own post-activations, layer by layer."""
        acts: dict[str, Tensor] = {}
        with torch.enable_grad():
            losses_SE = self.losses(self.state.forward(self.inputs, acts), self.targets)
            return list(torch.autograd.grad(losses_SE.sum(), list(acts.values())))

    @cached_property
    def cosines(self) -> Tensor:
        some = slice(NUM_SINGLE)
        return landscape.gradient_covariance(self.state, self.inputs[:, some], self.targets[:, some], self.losses)

    @cached_property
    def kernel(self) -> Tensor:
        """Eigenvalues of the tangent kernel."""
        return ranks.kernel_spectrum(landscape.tangent_kernel(self.state, self.inputs[:, :NUM_SINGLE]))

    @cached_property
    def initial(self) -> Tensor:
        """The initial parameters [S, P], drawn again."""
        return torch.cat([self.state.fresh(name).flatten(1) for name in self.state.params], dim=1)

    def over_units(self, fraction: Callable[..., Tensor], *layers: Iterable[Tensor]) -> Tensor:
        """Mean over all hidden units of a fraction of a layer's; layers of activations unless others are given."""
        chosen = list(zip(*(layers or (self.acts.values(),)), strict=True))
        width = sum(tensors[0].shape[2] for tensors in chosen)
        return sum(fraction(*tensors) * tensors[0].shape[2] for tensors in chosen) / width

    def over_hidden_weights(self, metric: Callable[[Tensor], Tensor]) -> Tensor:
        names = [name for name, role in self.state.roles.items() if role is Role.WEIGHT]
        return torch.stack([metric(self.state.matrix(name)) for name in names]).mean(dim=0)


METRICS: dict[str, Callable[[Probe], Tensor]] = {
    # units, over all hidden layers
    "zero_entry_fraction": lambda p: p.over_units(plasticity.zero_entry_fraction),
    "rarely_active_fraction": lambda p: p.over_units(plasticity.rarely_active_fraction),
    "near_zero_fraction": lambda p: p.over_units(plasticity.near_zero_fraction),
    "duplicate_fraction": lambda p: p.over_units(plasticity.duplicate_fraction),
    "saturated_fraction": lambda p: p.over_units(plasticity.saturated_fraction),
    "gradient_saturated_fraction": lambda p: p.over_units(
        plasticity.gradient_saturated_fraction, p.acts.values(), p.act_gradients
    ),
    "unit_sign_entropy": lambda p: p.over_units(plasticity.unit_sign_entropy, p.preactivations),
    "preactivation_mean_shift": lambda p: p.over_units(plasticity.preactivation_mean_shift, p.preactivations),
    # features of the last hidden layer, and outputs
    "srank": lambda p: ranks.srank(p.spectrum),
    "approximate_rank": lambda p: ranks.approximate_rank(p.spectrum),
    "effective_rank": lambda p: ranks.effective_rank(p.spectrum),
    "stable_rank": lambda p: ranks.stable_rank(p.spectrum),
    "participation_ratio": lambda p: ranks.participation_ratio(p.features),
    "feature_norm": lambda p: plasticity.example_norm(p.features),
    "logit_norm": lambda p: plasticity.example_norm(p.outputs),
    # parameters and the last gradient; ranks are means over hidden weights
    "mean_magnitude": lambda p: norms.mean_magnitude(p.state.values),
    "root_mean_square": lambda p: norms.root_mean_square(p.state.values),
    "norm_per_element": lambda p: norms.norm_per_element(p.state.values),
    "distance_to_init": lambda p: norms.distance(p.initial, p.state.values),
    "weight_numerical_rank": lambda p: p.over_hidden_weights(ranks.numerical_rank),
    "weight_stable_rank": lambda p: p.over_hidden_weights(lambda w: ranks.stable_rank(ranks.singular_values(w))),
    "zero_gradient_fraction": lambda p: norms.zero_fraction(p.state.gradient),
    # gradients of single examples and curvature
    "gradient_cosine": lambda p: landscape.mean_cosine(p.cosines),
    "gradient_rank": lambda p: ranks.effective_rank(ranks.kernel_spectrum(p.cosines)),
    "tangent_kernel_inverse_condition": lambda p: ranks.inverse_condition(p.kernel),
    "tangent_kernel_srank": lambda p: ranks.srank(p.kernel),
    "tangent_kernel_effective_rank": lambda p: ranks.effective_rank(p.kernel),
    "hessian_top_eigenvalue": lambda p: landscape.top_hessian_eigenvalue(
        p.state, p.inputs[:, :NUM_CURVED], p.targets[:, :NUM_CURVED], p.losses
    ),
    "random_label_gradient": lambda p: landscape.random_label_gradient(p.state, p.inputs, p.losses),
}
"""Name in a benchmark's `metrics` -> [S]. Definitions stand with the functions; recorded as task_end/NAME."""


@dataclass(eq=False)
class UpdateProbe:
    """An update seen from both its ends, once every method has done its part.

    batch: what it was made on, (inputs [S, B, ...], targets [S, B]).  before_S: its loss before.  before_SP: parameters before.
    """

    state: TrainState
    batch: tuple[Tensor, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    before_S: Tensor
    before_SP: Tensor

    def plasticity(self) -> Tensor:
        """As in training, so batch norm normalises by the batch; its running statistics are put back."""
        inputs, y_SB = self.batch
        kept = {name: buffer.clone() for name, buffer in self.state.buffers.items()}
        after_S = self.loss(self.state.forward(inputs, training=True), y_SB)
        for name, buffer in kept.items():
            self.state.buffers[name].copy_(buffer)
        return plasticity.one_step_plasticity(self.before_S, after_S)

    def angle(self) -> Tensor:
        """Geometric mean over hidden layers."""
        state, logs = self.state, []
        for group in state.groups:
            if Role.OUTPUT not in {state.roles[name] for name in group.members}:
                ends = (
                    torch.cat([state.view(flat, name).flatten(1) for name in group.members], dim=1)
                    for flat in (self.before_SP, state.flat.detach())
                )
                logs.append(norms.rotation_angle(*ends).log())
        return torch.stack(logs).mean(dim=0).exp()


OF_UPDATE: dict[str, Callable[[UpdateProbe], Tensor]] = {
    "one_step_plasticity": UpdateProbe.plasticity,
    "rotation_angle": UpdateProbe.angle,
}
"""As METRICS, but about the last update before a measurement; recorded as probe/NAME."""


@torch.no_grad()
def measure(names: Iterable[str], probe: Probe) -> dict[str, Tensor]:
    """Metric -> [S], of the named ones. Leaves the state and every generator as they were."""
    return {name: METRICS[name](probe).to(torch.float32) for name in names}


@torch.no_grad()
def measure_update(names: Iterable[str], probe: UpdateProbe) -> dict[str, Tensor]:
    """probe/NAME -> [S], of those names that are about an update. Leaves the state as it was."""
    return {f"probe/{name}": OF_UPDATE[name](probe).to(torch.float32) for name in names if name in OF_UPDATE}
