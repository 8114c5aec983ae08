"""Gradients of single examples (covariance, tangent kernel), curvature, and what random labels would teach.

Shape suffixes: S seeds, n examples, K outputs, P parameters of one seed.

Every seed is its own problem; all are solved in the same backward passes. Networks are run as evaluation runs them, so
examples do not mix. No draw shares a stream with training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nap_bench.models.blocks import Conv2d, LayerNorm, Linear, Output
from nap_bench.rng import generator
from nap_bench.state import TrainState

Losses = Callable[[Tensor, Tensor], Tensor]
"""(outputs [S, n, K], targets [S, n]) -> [S, n]"""


class PerExample:
    """A forward pass over n examples that knows the inner products of their gradients with respect to all parameters.

    One backward pass for all of them: an example's gradient follows from what a layer was given and from the gradient
    of what it returned.
    """

    def __init__(self, state: TrainState, inputs: Tensor):
        self.layers: list[tuple[nn.Module, Tensor, Tensor]] = []  # with what each was given and what it returned

        def read(module: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
            self.layers.append((module, given[0].detach(), out))

        owners = [
            module
            for module in state.model.modules()
            if any(p.requires_grad for p in module._parameters.values() if p is not None)
        ]
        hooks = [module.register_forward_hook(read) for module in owners]
        try:
            self.outputs = state.forward(inputs)
        finally:
            for hook in hooks:
                hook.remove()

    def gram(self, scalars_Sn: Tensor) -> Tensor:
        """[S, n, n] float64: inner products of the gradients of one scalar per example, made of `outputs`."""
        deltas = torch.autograd.grad(scalars_Sn.sum(), [out for _, _, out in self.layers], retain_graph=True)
        pairs = zip(self.layers, deltas, strict=True)
        return sum(_gram(module, given.double(), delta.double()) for (module, given, _), delta in pairs)


def _gram(layer: nn.Module, given: Tensor, delta: Tensor) -> Tensor:
    """[S, n, n]: inner products of examples' gradients with respect to one layer's parameters.

    For a linear layer x W + b an example's gradient is the outer product of x_i and delta_i, so its Gram matrix is
    (x x^T + 1) * (delta delta^T), elementwise, and no gradient is formed (the Hadamard trick). Other layers have few
    parameters.
    """
    if type(layer) in (Linear, Output) and layer.unit_scale is None:
        return (torch.bmm(given, given.mT) + float(layer.bias is not None)) * torch.bmm(delta, delta.mT)
    over_pixels = tuple(range(3, delta.dim()))
    if type(layer) in (Conv2d, Linear, Output):
        if isinstance(layer, Conv2d):
            columns = F.unfold(given.flatten(0, 1), layer.weight.shape[3:], padding=layer.padding, stride=layer.stride)
            of_weight = torch.bmm(delta.flatten(0, 1).flatten(2), columns.mT).unflatten(0, delta.shape[:2])
        else:
            of_weight = delta.unsqueeze(3) * given.unsqueeze(2)
        rows = [part.flatten(2) for part in _through_factor(layer, of_weight)]
        rows += [delta.sum(dim=over_pixels) if over_pixels else delta] if layer.bias is not None else []
    elif isinstance(layer, LayerNorm):
        scaled = delta * layer.normalise(given)
        rows = [part.sum(dim=over_pixels) if over_pixels else part for part in (scaled, delta)]
    else:
        raise ValueError(
            f"No gradients of single examples for {type(layer).__name__}: add it to nap_bench/metrics/landscape.py."
        )
    return sum(torch.bmm(row_SnP, row_SnP.mT) for row_SnP in rows)


def _through_factor(layer: Conv2d | Linear, of_weight: Tensor) -> list[Tensor]:
    """Gradients [S, n, O, ...] of what is trained, from that [S, n, O, F] of the weight as it acts on the layer's inputs."""
    if layer.unit_scale is None:
        return [of_weight]
    weight_SOF = (layer.weight.mT if layer.weight.dim() == 3 else layer.weight.flatten(2)).detach().double()
    factor_SO1 = layer.unit_scale.detach().double().unsqueeze(2)
    if layer.is_weight_normed:
        length_SO1 = torch.linalg.vector_norm(weight_SOF, dim=2, keepdim=True)
        weight_SOF, factor_SO1 = weight_SOF / length_SO1, factor_SO1 / length_SO1
    along = (of_weight * weight_SOF.unsqueeze(1)).sum(dim=3, keepdim=True)  # gradient of the factor
    across = of_weight - along * weight_SOF.unsqueeze(1) if layer.is_weight_normed else of_weight
    return [across * factor_SO1.unsqueeze(1), along]


@torch.enable_grad()
def gradient_covariance(state: TrainState, inputs: Tensor, targets: Tensor, losses: Losses) -> Tensor:
    """[S, n, n] float64: cosines between the gradients of single examples' losses ("gradient covariance", Lyle).

    C_ij = <g_i, g_j> / (||g_i|| ||g_j||), not centred. An example without gradient has cosine 0 with all others, itself
    too.
    """
    examples = PerExample(state, inputs)
    gram_Snn = examples.gram(losses(examples.outputs, targets))
    length_Sn = gram_Snn.diagonal(dim1=1, dim2=2).sqrt()
    inverse_Sn = torch.where(length_Sn > 0, 1.0 / length_Sn, 0.0)
    return gram_Snn * inverse_Sn.unsqueeze(1) * inverse_Sn.unsqueeze(2)


def mean_cosine(cosines_Snn: Tensor) -> Tensor:
    """Mean [S] of the cosines between different examples: 1 where all gradients point the same way."""
    num_examples = cosines_Snn.shape[1]
    total_S = cosines_Snn.sum(dim=(1, 2)) - cosines_Snn.diagonal(dim1=1, dim2=2).sum(dim=1)
    return (total_S / (num_examples * (num_examples - 1))).float()


@torch.enable_grad()
def tangent_kernel(state: TrainState, inputs: Tensor) -> Tensor:
    """Empirical neural tangent kernel [S, n, n] float64, mean over outputs: (1/K) sum_k <d f_k(x_i), d f_k(x_j)>.

    K backward passes. n x n, not nK x nK: the outputs' cross terms are left out.
    """
    examples = PerExample(state, inputs)
    outputs = examples.outputs.unbind(dim=2)
    return sum(examples.gram(out_Sn) for out_Sn in outputs) / len(outputs)


@torch.enable_grad()
def top_hessian_eigenvalue(
    state: TrainState, inputs: Tensor, targets: Tensor, losses: Losses, num_iterations: int = 20
) -> Tensor:
    """Eigenvalue [S] of largest magnitude, signed, of the Hessian of the mean loss over all parameters.

    Lanczos iteration on Hessian-vector products, two backward passes each, from a start drawn for the seed; the extreme
    eigenvalue of the tridiagonal matrix, so not beyond the true one in magnitude. Power iteration costs the same and
    depends on its start where eigenvalues of both signs are about as large: by a tenth after twenty steps on a small
    network. No stopping rule, which would ask the device. A ReLU network's Hessian is that of the linear piece it
    stands on.
    """
    parameters = list(state.params.values())
    loss_S = losses(state.forward(inputs), targets).mean(dim=1)
    slopes = torch.autograd.grad(loss_S.sum(), parameters, create_graph=True, allow_unused=True, materialize_grads=True)
    slope_SP = torch.cat([slope.flatten(1) for slope in slopes], dim=1)
    how = dict(retain_graph=True, materialize_grads=True, allow_unused=True)

    def times_hessian(vector_SP: Tensor) -> Tensor:
        products = torch.autograd.grad((slope_SP * vector_SP).sum(), parameters, **how)
        return torch.cat([product.flatten(1) for product in products], dim=1)

    draws = [torch.randn(slope_SP.shape[1], generator=generator(seed, "hessian")) for seed in state.seeds]
    rest_SP = torch.stack(draws).to(slope_SP)
    length_S1 = torch.linalg.vector_norm(rest_SP, dim=1, keepdim=True)
    vector_SP, coupling_S1 = torch.zeros_like(rest_SP), torch.zeros_like(length_S1)
    diagonal, beside = [], []
    for _ in range(num_iterations):
        before_SP, vector_SP = vector_SP, torch.where(length_S1 > 0, rest_SP / length_S1, 0.0)
        product_SP = times_hessian(vector_SP)
        along_S1 = (vector_SP * product_SP).sum(dim=1, keepdim=True)
        rest_SP = product_SP - along_S1 * vector_SP - coupling_S1 * before_SP
        length_S1 = coupling_S1 = torch.linalg.vector_norm(rest_SP, dim=1, keepdim=True)
        diagonal.append(along_S1)
        beside.append(length_S1)
    tridiagonal_Smm = torch.diag_embed(torch.cat(diagonal, dim=1).double())
    side_Smm = torch.diag_embed(torch.cat(beside[:-1], dim=1).double(), offset=1)
    tridiagonal_Smm = tridiagonal_Smm + side_Smm + side_Smm.mT
    finite_S = torch.isfinite(tridiagonal_Smm).flatten(1).all(dim=1)
    found_Sm = torch.linalg.eigvalsh(torch.where(finite_S.view(-1, 1, 1), tridiagonal_Smm, 0.0))
    top_S = found_Sm.gather(1, found_Sm.abs().argmax(dim=1, keepdim=True)).squeeze(1)
    return torch.where(finite_S, top_S, torch.nan)


@torch.enable_grad()
def random_label_gradient(state: TrainState, inputs: Tensor, losses: Losses, num_draws: int = 4) -> Tensor:
    """E ||grad||^2 [S]: squared gradient norm of the mean loss under uniformly random labels, mean over draws.

    The lower bound on local redundancy of Cheng 2026 in outline: what a batch that can only be memorised would teach.
    Draws are those of the seed, the same at every call, so that two moments of a run compare. The source's own
    normalisation was not at hand: compare it with nothing but itself.
    """
    parameters = list(state.params.values())
    out_SnK = state.forward(inputs)
    num_outputs = out_SnK.shape[2]
    squares_S = out_SnK.new_zeros(len(out_SnK))
    for draw in range(num_draws):
        labels = [
            torch.randint(num_outputs, inputs.shape[1:2], generator=generator(seed, "redundancy", draw))
            for seed in state.seeds
        ]
        loss_S = losses(out_SnK, torch.stack(labels).to(out_SnK.device)).mean(dim=1)
        slopes = torch.autograd.grad(
            loss_S.sum(), parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        squares_S += sum(slope.flatten(1).square().sum(dim=1) for slope in slopes)
    return squares_S / num_draws
