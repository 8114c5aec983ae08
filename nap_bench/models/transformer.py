"""A decoder transformer: token and position embeddings, blocks of causal attention and an MLP, a linear output (paper A.4, B.3)."""

from __future__ import annotations

from torch import Tensor, nn

from nap_bench.models.blocks import (
    NORMS,
    Attention,
    Embedding,
    Group,
    Linear,
    Output,
    Units,
    activation_of,
    features_per_unit,
    hidden_scale,
    norm_of,
)
from nap_bench.spec import ModelSpec, nearest

SIZES = {"d_model", "entrance", "heads", "widths"}
OPTIONAL = {"embedding_std"}
PAPERS_400M = dict(d_model=1536, heads=12, widths=(6144,) * 12)
"""The paper's on C4 (B.4): 12 blocks, 12 heads, d_model 1536; an MLP four times as wide gives its blocks 340 million parameters."""


class Block(nn.Module):
    """x <- x + attention(norm(x)), then x <- x + MLP(norm(x)), on x_SND; N = B x T tokens of a batch, one after another.

    The norms at the branches' entrances are the usual pre-LN; those of the spec stand inside the branches (see Transformer).
    """

    def __init__(self, spec: ModelSpec, num_seeds: int, index: int):
        super().__init__()
        size = dict(spec.size)
        width, d_model, has_norm = size["widths"][index], size["d_model"], spec.norm != "none"
        common = dict(init=spec.init, init_scale=hidden_scale(spec))
        self.before_attention = entrance_norm(spec, num_seeds)
        self.attention = Attention(spec, num_seeds, d_model, size["heads"])
        self.before_mlp = entrance_norm(spec, num_seeds)
        self.hidden = Linear(num_seeds, d_model, width, bias=not has_norm, **common)
        self.norm = norm_of(spec, num_seeds, width) if has_norm else None
        self.out = Linear(num_seeds, width * features_per_unit(spec), d_model, bias=True, **common)


class Transformer(nn.Module):
    """Tokens [S, B, T] (int64) -> logits_SBTK: position t is answered from tokens 0 to t alone, if spec.causal.

    `size`: d_model; heads, which divide it; widths, hidden units of each block's MLP (as many blocks as there are widths; four
    times d_model is usual); entrance: the norm at the entrance of every branch and before the output, "layer" (pre-LN, which
    the unnormalised arms keep too), "rms" or "none"; embedding_std: of the initial embeddings, 1 unless it is said.
    The context is the length of an input, the vocabulary that of the outputs.

    spec.norm other than "none" adds NaP's: that norm before the MLP's nonlinearity, and RMSNorm without centring and offset on
    queries and keys, each over all d_model features of a token (paper A.4; heads are split after it). Tokens are never mixed by
    a norm: it would show a token those that follow. Queries, keys and values have no bias (a key's has no effect); layers
    without a norm behind them have one.

    groups: query, key, value, out of each block's attention, the two layers of its MLP; token and position embeddings, output.
    Scale-invariant are those with a norm behind them: query, key and the MLP's first layer.  units: the MLPs' hidden layers,
    every token counting as an example.
    """

    def __init__(self, spec: ModelSpec, num_seeds: int, inputs: tuple[int, ...], outputs: int):
        super().__init__()
        size = dict(spec.size)
        if set(size) - OPTIONAL != SIZES:
            raise ValueError(f"A transformer wants the sizes {', '.join(sorted(SIZES))}; found {sorted(size)}.")
        if len(inputs) != 1:
            raise ValueError(f"A transformer reads strings of tokens, inputs of shape (T,); found {inputs}.")
        if spec.norm == "batch":
            raise ValueError("A transformer has no batch norm: its statistics would show a token those that follow it.")
        d_model, (self.context,) = size["d_model"], inputs
        std = size.get("embedding_std", 1.0)
        self.token = Embedding(num_seeds, outputs, d_model, std)
        self.position = Embedding(num_seeds, self.context, d_model, std)
        self.blocks = nn.ModuleList(Block(spec, num_seeds, index) for index in range(len(size["widths"])))
        self.before_output = entrance_norm(spec, num_seeds)
        self.output = Output(num_seeds, d_model, outputs, bias=True, init=spec.init)
        self.activation = activation_of(spec)
        has_norm, groups, units = spec.norm != "none", [], []
        for index, width in enumerate(size["widths"]):
            block = f"blocks.{index}"
            for name in ("query", "key", "value", "out"):
                is_invariant = has_norm and name in ("query", "key")
                groups.append(Group(f"{name}{index}", (f"{block}.attention.{name}.weight",), is_invariant))
            groups.append(Group(f"hidden{index}", (f"{block}.hidden.weight",), has_norm))
            groups.append(Group(f"mlp_out{index}", (f"{block}.out.weight",), False))
            units.append(
                Units(
                    name=f"hidden{index}",
                    size=width,
                    features=features_per_unit(spec),
                    incoming=(f"{block}.hidden.weight", *(() if has_norm else (f"{block}.hidden.bias",))),
                    norm=(f"{block}.norm.scale", f"{block}.norm.offset") if has_norm and spec.norm_affine else (),
                    outgoing=(f"{block}.out.weight",),
                )
            )
        for name in ("token", "position"):
            groups.append(Group(name, (f"{name}.weight",), False))
        self.groups, self.units = (*groups, Group("output", ("output.weight",), False)), tuple(units)

    def forward(self, tokens_SBT: Tensor, acts: dict[str, Tensor] | None = None) -> Tensor:
        """Logits [S, B, T, K]. acts, if given, receives the MLPs' post-activations [S, B x T, width] in order."""
        shape = tokens_SBT.shape
        if shape[2] > self.context:
            raise ValueError(f"This transformer reads strings of up to {self.context} tokens; found {shape[2]}.")
        x_SND = (self.token(tokens_SBT) + self.position.rows(shape[2]).unsqueeze(1)).flatten(1, 2)
        for index, block in enumerate(self.blocks):
            x_SND = x_SND + block.attention(block.before_attention(x_SND), shape[1:])
            h_SNW = block.hidden(block.before_mlp(x_SND))
            h_SNW = self.activation(h_SNW if block.norm is None else block.norm(h_SNW))
            if acts is not None:
                acts[f"hidden{index}"] = h_SNW
            x_SND = x_SND + block.out(h_SNW)
        return self.output(self.before_output(x_SND)).unflatten(1, shape[1:])


def entrance_norm(spec: ModelSpec, num_seeds: int) -> nn.Module:
    """The norm at a branch's entrance, or none. Raises for an unknown one."""
    size = dict(spec.size)
    if size["entrance"] not in ("none", "layer", "rms"):
        raise ValueError(nearest(size["entrance"], ("none", "layer", "rms"), "entrance of a transformer"))
    return nn.Identity() if size["entrance"] == "none" else NORMS[size["entrance"]](spec, num_seeds, size["d_model"])
