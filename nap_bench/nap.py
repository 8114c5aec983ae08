"""Normalize-and-Project for anybody's PyTorch model, in two pieces; docs/nap-as-a-library.md has a whole example.

    insert_norms(model)              # before DistributedDataParallel, torch.compile and the optimizer see the model
    projector = Projector(model)     # after them
    ...
    optimizer.step()
    projector.project()

Sections are those of Lyle et al. 2024, arXiv 2407.01800. Shapes: B examples, C features or channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nap_bench.spec import nearest

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORMS = ("layer", "rms")
POLICIES = ("free", "decay", "joint")


class Norm(nn.Module):
    """scale * (h - mean) / sqrt(var + eps) + offset, or scale * h / sqrt(mean(h^2) + eps) + offset (A.1).

    Behind a linear layer [..., C] statistics run over C alone, never over tokens; behind a convolution [B, C, ...] over
    channels and space of an example (A.1 normalises the whole vector). scale [C] starts at 1, offset [C] or None at 0.
    """

    def __init__(self, layer: nn.Module, norm: str, eps: float, has_offset: bool):
        super().__init__()
        self.norm, self.eps = norm, eps
        self.num_space = len(layer.kernel_size) if isinstance(layer, CONVOLUTIONS) else 0
        features = layer.out_channels if self.num_space else layer.out_features
        self.scale = nn.Parameter(layer.weight.detach().new_ones(features))
        self.offset = nn.Parameter(layer.weight.detach().new_zeros(features)) if has_offset else None

    def forward(self, h: Tensor) -> Tensor:
        if self.num_space and h.dim() != self.num_space + 2:
            raise ValueError(f"This norm wants [B, C] and {self.num_space} axes of space; found {tuple(h.shape)}.")
        if self.norm == "layer":
            if self.num_space:  # one group: the statistics of a LayerNorm over C and space, with C scales and offsets
                return F.group_norm(h, 1, self.scale, self.offset, self.eps)
            return F.layer_norm(h, h.shape[-1:], self.scale, self.offset, self.eps)
        axes = tuple(range(1, h.dim())) if self.num_space else (-1,)
        wide = h.to(torch.promote_types(h.dtype, torch.float32))  # squares overflow in half precision
        unit = (wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + self.eps)).to(h.dtype)
        per_channel = (-1, *[1] * self.num_space)
        scaled = unit * self.scale.view(per_channel)
        return scaled if self.offset is None else scaled + self.offset.view(per_channel)

    def extra_repr(self) -> str:
        return f"{self.norm}, {len(self.scale)}, eps={self.eps}, offset={self.offset is not None}"


def _apply_norm(layer: nn.Module, inputs: tuple[Tensor, ...], h: Tensor) -> Tensor:
    return layer.norm(h)


def _has_norm(module: nn.Module) -> bool:
    return isinstance(getattr(module, "norm", None), Norm)


def insert_norms(
    model: nn.Module, *, norm: str = "layer", output: str | Iterable[str] | None = None, eps: float = 1e-6
) -> nn.Module:
    """Put a norm behind every linear and convolution layer but the output, in place; drop their biases (3.3, A.4).

    norm: "layer" or "rms". The norm becomes the layer's sub-module `norm`; no other name in the model changes. Where a
    BatchNorm is registered right after the layer, the norm precedes it and has no offset (A.4, B.4).
    output: the layers left as they are, by name, or modules all of whose layers are; by default the last linear or
    convolution layer in the order of `model.named_modules()`, where a model with several heads needs naming them.
    eps: added to the variance or mean square (the paper states none). The stem of a ResNet returns a variance near 0.1,
    where PyTorch's 1e-5 breaks the invariance to a kernel's scale in the fourth digit.
    Subclasses of these layers, attention, recurrent layers and embeddings are left as they are.
    Raises ValueError, before any edit: unknown names, nothing to normalise, a norm already there, one-feature layers.
    """
    if norm not in NORMS:
        raise ValueError(nearest(norm, NORMS, "norm"))
    layers = {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, *CONVOLUTIONS) and "weight" in module._parameters
    }
    if output is None:
        output = list(layers)[-1:]
    outputs = [output] if isinstance(output, str) else list(output)
    known = {name.rsplit(".", depth)[0] for name in layers for depth in range(name.count(".") + 1)}
    for name in outputs:
        if name not in known:
            raise ValueError(nearest(name, known, "output layer"))
    chosen = {name: layer for name, layer in layers.items() if not any(f"{name}.".startswith(f"{o}.") for o in outputs)}
    if not chosen:
        raise ValueError(f"Wanted linear or convolution layers before the output; {type(model).__name__} has none.")
    for name, layer in chosen.items():
        if hasattr(layer, "norm"):
            raise ValueError(f"{name!r} has a norm already: call insert_norms once.")
        if isinstance(layer, nn.Linear) and layer.out_features == 1:
            raise ValueError(f"{name!r} has one feature, whose norm is constant: is it an output? Name all in output=.")
    siblings = (pair for parent in model.modules() for pair in pairwise(parent.children()))
    before_batch_norm = {layer for layer, follower in siblings if isinstance(follower, BATCH_NORMS)}
    for layer in chosen.values():
        layer.bias = None
        layer.norm = Norm(layer, norm, eps, has_offset=layer not in before_batch_norm)
        layer.register_forward_hook(_apply_norm)
    return model


def _norms(weights: list[Tensor]) -> list[Tensor]:
    """Frobenius norms, at least float32. Rows first: a million elements in one go lose three digits on a CPU."""
    wide = [torch.promote_types(weight.dtype, torch.float32) for weight in weights]
    axes = [tuple(range(1, weight.dim())) for weight in weights]
    rows = [torch.linalg.vector_norm(w, dim=a, dtype=d) for w, a, d in zip(weights, axes, wide, strict=True)]
    return list(torch._foreach_norm(rows))


class Projector:
    """Returns weights to the Frobenius norm they had when it was made: W <- rho W / ||W||, rho = ||W(0)|| (3.3).

    Projects what `insert_norms` normalised, each tensor once however many layers share it; a weight that a layer
    without such a norm uses too is left alone. print(projector) lists both.
    weights: names of parameters to project instead; their scale-invariance is then yours to know.
    scale_offset: what happens to inserted scales s and offsets o at a projection (3.3, App. D): "free"; "decay":
    (s, o) <- (a s + (1 - a), a o), a = decay in [0, 1]; "joint": (s, o) scaled to joint norm sqrt(C) per layer, the
    initial one (the paper prints 1), only for positively homogeneous activations such as ReLU.
    Raises ValueError: nothing to project, unknown names, a weight whose norm is not positive and finite.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        weights: str | Iterable[str] | None = None,
        scale_offset: str = "free",
        decay: float = 0.999,
    ):
        if scale_offset not in POLICIES:
            raise ValueError(nearest(scale_offset, POLICIES, "scale_offset"))
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay wants a number in [0, 1]; found {decay}.")
        self.scale_offset, self.decay = scale_offset, decay
        self.norms = [module for module in model.modules() if isinstance(module, Norm)]
        users: dict[Tensor, dict[str, tuple[nn.Module, str]]] = {}
        for path, module in model.named_modules():
            for leaf, weight in module.named_parameters(recurse=False):
                if weight.dim() > 1:
                    users.setdefault(weight, {})[f"{path}.{leaf}" if path else leaf] = (module, leaf)
        wanted = weights if weights is None else {weights} if isinstance(weights, str) else set(weights)
        known = {name for names in users.values() for name in names}
        for name in sorted(wanted - known if wanted else ()):
            raise ValueError(nearest(name, known, "weight"))
        self.projected: dict[str, tuple[nn.Module, str]] = {}
        self.left_alone: dict[str, str] = {}
        for names in users.values():
            if wanted & names.keys() if wanted is not None else all(_has_norm(module) for module, _ in names.values()):
                self.projected |= dict([next(iter(names.items()))])
            else:
                self.left_alone |= {name: type(module).__name__ for name, (module, _) in names.items()}
        if not self.projected:
            raise ValueError("Found no weight to project: call insert_norms(model) first, or name weights=.")
        self.targets: list[Tensor] = _norms([weight.detach() for weight in self.weights()])
        for name, target in zip(self.projected, self.targets, strict=True):
            if not 0.0 < target < math.inf:
                raise ValueError(f"{name!r} has norm {target.item()}, which cannot be held: initialise it first.")

    def weights(self) -> list[Tensor]:
        """The projected parameters, looked up anew: loading a checkpoint may have replaced them."""
        return [getattr(module, leaf) for module, leaf in self.projected.values()]

    @torch.no_grad()
    def project(self) -> None:
        """Call after `optimizer.step()`. In place, without waiting for the device; moments and gradients stay."""
        weights = self.weights()
        torch._foreach_mul_(weights, torch._foreach_div(self.targets, _norms(weights)))
        if self.scale_offset == "free":
            return
        scales = [norm.scale for norm in self.norms]
        offsets = [norm.offset for norm in self.norms if norm.offset is not None]
        if self.scale_offset == "decay":
            torch._foreach_mul_(scales + offsets, self.decay)
            torch._foreach_add_(scales, 1.0 - self.decay)
            return
        for norm in self.norms:
            pair = [norm.scale] if norm.offset is None else [norm.scale, norm.offset]
            factor = math.sqrt(len(norm.scale)) / torch.linalg.vector_norm(torch.cat(pair))
            torch._foreach_mul_(pair, factor)

    def state_dict(self) -> dict[str, Tensor]:
        """Name of a projected weight -> the norm it is held at."""
        return dict(zip(self.projected, self.targets, strict=True))

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Raises ValueError if the names are not the projected ones."""
        if saved.keys() != self.projected.keys():
            differing = ", ".join(sorted(saved.keys() ^ self.projected.keys()))
            raise ValueError(f"Wanted the norms of exactly the projected weights; in one of the two only: {differing}.")
        for name, target in self.state_dict().items():
            target.copy_(saved[name])

    def __repr__(self) -> str:
        left = [f"{name} ({kind})" for name, kind in self.left_alone.items()]
        return (
            f"Projector(scale_offset={self.scale_offset!r})\n"
            f"  projected ({len(self.projected)}): {', '.join(self.projected)}\n"
            f"  left alone ({len(left)}): {', '.join(left) or 'none'}"
        )
