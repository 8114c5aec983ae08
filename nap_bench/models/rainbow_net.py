"""Rainbow's network: convolutions, then two noisy heads that give a distribution of returns for every action (paper B.2).

Hessel et al. 2018 (arXiv 1710.02298) as DQN Zoo builds it.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from nap_bench.models.blocks import (
    Conv2d,
    Group,
    NoisyLinear,
    NoisyOutput,
    Units,
    activation_of,
    features_per_unit,
    has_norm,
    hidden_scale,
    injected,
    norm_names,
    norm_of,
    shifted,
)
from nap_bench.spec import ModelSpec

HEADS = ("advantage", "value")
CONVOLUTIONS = ("channels", "kernels", "strides")


def noise_of(path: str) -> tuple[str, ...]:
    """Names of the parameters that perturb a layer's weights and biases; a convolution has none."""
    return () if path.startswith("convs.") else (f"{path}.noise_weight", f"{path}.noise_bias")


class RainbowNet(nn.Module):
    """x_SBCHW in [0, 1] -> logits [S, B, A, atoms]; A = `outputs`, the number of actions.

        logits(a) = value + advantage(a) - mean over actions of advantage         (dueling, Wang et al. 2016)

    Both heads read all features of the last convolution through a hidden noisy layer and a final one.

    `size`: channels, kernels and strides of the convolutions, which do not pad; with none, the heads read the frames.  hidden:
      units of each head.  atoms.  sigma: of the noise at the start, times sqrt(fan-in).
    groups: one per convolution; one per hidden noisy layer, its means and its noise together, because only their common scale
      leaves what follows a norm unchanged; one per final layer.  units: a channel or a hidden unit of a head.
    num_noise: how much noise a forward takes, per draw and seed.
    frozen: frozen heads, both with their hidden layers, or None; they take the noise of the trained ones.  head: as in `MLP`.
    """

    def __init__(self, spec: ModelSpec, num_seeds: int, inputs: tuple[int, int, int], outputs: int):
        super().__init__()
        size = dict(spec.size)
        shapes = [size[key] for key in CONVOLUTIONS]
        if len({len(values) for values in shapes}) > 1 or size["atoms"] < 2:
            raise ValueError(
                f"A rainbow network wants as many kernels and strides as channels, and atoms >= 2; found {size}."
            )
        self.activation, self.num_actions = activation_of(spec), outputs
        per_unit, is_normed = features_per_unit(spec), has_norm(spec)
        common = dict(bias=not is_normed, init=spec.init, init_scale=hidden_scale(spec))
        channels, *area = inputs
        convs = []
        for wanted, kernel, stride in zip(*shapes, strict=True):
            if kernel > min(area):
                raise ValueError(
                    f"A rainbow network on frames of {inputs[1:]} has {tuple(area)} left where a kernel of {kernel} follows."
                )
            convs.append(Conv2d(num_seeds, channels, wanted, kernel=kernel, stride=stride, padding=0, **common))
            channels, area = wanted * per_unit, [(side - kernel) // stride + 1 for side in area]
        self.convs = nn.ModuleList(convs)
        features, hidden, self.noise_sizes = channels * area[0] * area[1], size["hidden"], []
        for head, answers in (("advantage", outputs * size["atoms"]), ("value", size["atoms"])):
            final = NoisyOutput(num_seeds, hidden * per_unit, answers, init=spec.init, sigma=size["sigma"])
            setattr(self, head, NoisyLinear(num_seeds, features, hidden, sigma=size["sigma"], **common))
            setattr(self, f"{head}_output", final)
            self.noise_sizes += [features, hidden, hidden * per_unit, answers]
        self.num_noise = sum(self.noise_sizes)
        sizes = (*size["channels"], *[hidden] * len(HEADS))
        self.norms = nn.ModuleList([norm_of(spec, num_seeds, wanted) for wanted in sizes] if is_normed else [])
        if spec.injections and spec.head_layers != 2:
            raise ValueError(f"A rainbow network's heads have 2 layers each; found head_layers={spec.head_layers}.")
        alone = dataclasses.replace(spec, injections=0, size=tuple((size | dict.fromkeys(CONVOLUTIONS, ())).items()))
        shifts = {"norms": ("norms", len(convs))}
        self.frozen, self.head = injected(
            spec, lambda: RainbowNet(alone, num_seeds, (features, 1, 1), outputs), lambda name: shifted(name, shifts)
        )

        paths, finals = [f"convs.{index}" for index in range(len(convs))], [f"{head}_output" for head in HEADS]
        names = [f"layer{index}" for index in range(len(convs))]
        self.groups = (
            *[Group(name, (f"{path}.weight",), is_normed) for name, path in zip(names, paths, strict=True)],
            *[Group(head, (f"{head}.weight", *noise_of(head)), is_normed) for head in HEADS],
            *[Group(final, (f"{final}.weight", *noise_of(final)), False) for final in finals],
        )
        readers = [*[(path,) for path in paths[1:]], *[HEADS] * bool(paths), *[(final,) for final in finals]]
        leaves = ("weight",) if is_normed else ("weight", "bias")
        self.units = tuple(
            Units(
                name=name,
                size=sizes[index],
                features=per_unit,
                incoming=(*[f"{path}.{leaf}" for leaf in leaves], *noise_of(path)),
                norm=norm_names(spec, f"norms.{index}"),
                outgoing=tuple(leaf for after in readers[index] for leaf in (f"{after}.weight", *noise_of(after)[:1])),
            )
            for index, (name, path) in enumerate(zip([*names, *HEADS], [*paths, *HEADS], strict=True))
        )

    def forward(self, inputs: Tensor, acts: dict[str, Tensor] | None = None, *, noise: Tensor) -> Tensor:
        """Logits [S, B, A, atoms]. acts, if given, receives every post-activation under its units' name, in order.

        noise: [S, R, num_noise] of f(e) = sign(e) sqrt|e|; R = 1, one draw for the batch, or R = B. Zeros are the mean network.
        """
        noises = noise.split(self.noise_sizes, dim=2)
        x = inputs
        for index, conv in enumerate(self.convs):
            x = self._activate(conv(x), index, f"layer{index}", acts)
        x, out = x.flatten(2), {}
        from_frozen = None if self.frozen is None else self.frozen(x, noise=noise)
        for index, head in enumerate(HEADS):
            h = getattr(self, head)(x, *noises[4 * index : 4 * index + 2])
            h = self._activate(h, len(self.convs) + index, head, acts)
            out[head] = getattr(self, f"{head}_output")(h, *noises[4 * index + 2 : 4 * index + 4])
        advantage = out["advantage"].unflatten(2, (self.num_actions, -1))
        logits = advantage + (out["value"].unsqueeze(2) - advantage.mean(dim=2, keepdim=True))
        return logits if from_frozen is None else logits + from_frozen

    def _activate(self, h: Tensor, index: int, name: str, acts: dict[str, Tensor] | None) -> Tensor:
        x = self.activation(self.norms[index](h) if self.norms else h)
        if acts is not None:
            acts[name] = x
        return x
