"""What a masked-diffusion language model does: hide tokens, bound the likelihood of what it hid, and sample by unmasking.

Shape suffixes: S seeds, N strings, M masks of a string, T tokens of a string (prompt, then completion), P of its prompt, L of its
completion, K symbols. `forward` is a network's: tokens [S, B, T] -> outputs [S, B, T, K + 1]; the last symbol is the mask, which
is never predicted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from nap_bench.data.puzzles import MASK
from nap_bench.rng import generator

Forward = Callable[[Tensor], Tensor]


def drawn_masks(
    seeds: tuple[int, ...], purpose: str, counter: int, maskable_SNT: Tensor, samples: int, device: torch.device | str
) -> Tensor:
    """Weights [S, N, M, T] of tokens: 0 where a token stays, n / l where it is one of l that are hidden among n maskable ones.

    l is uniform from 1 to n, then every choice of l tokens is as likely as any other. maskable_SNT on the CPU, n >= 1; pure.
    """
    drawn = []
    for seed, maskable_NT in zip(seeds, maskable_SNT, strict=True):
        stream = generator(seed, purpose, counter)
        maskable_N1T = maskable_NT.unsqueeze(1)
        keys_NMT = torch.rand(len(maskable_NT), samples, maskable_NT.shape[1], generator=stream)
        share_NM1 = torch.rand(len(maskable_NT), samples, 1, generator=stream)
        size_N11 = maskable_N1T.sum(dim=2, keepdim=True)
        hidden_NM1 = (share_NM1 * size_N11).floor() + 1
        rank_NMT = keys_NMT.masked_fill(~maskable_N1T, 2.0).argsort(dim=2).argsort(dim=2)
        drawn.append(torch.where(rank_NMT < hidden_NM1, size_N11 / hidden_NM1, 0.0))
    return torch.stack(drawn).to(device)


def hidden(tokens_SNT: Tensor, weights_SNMT: Tensor) -> Tensor:
    """[S, N x M, T]: every string under each of its masks."""
    return torch.where(weights_SNMT > 0, MASK, tokens_SNT.unsqueeze(2)).flatten(1, 2)


def elbo(forward: Forward, tokens_SNT: Tensor, weights_SNMT: Tensor) -> Tensor:
    """[S, N]: an estimate from M masks, unbiased for every M, of a lower bound of log p(maskable tokens | the others), in nats.

    The bound is the mean over all orders of the tokens of sum_t log p(token t | those before it in the order): the logarithm of
    the probability with which `sample` draws them, token by token, is at least that (Jensen's inequality).
    """
    inputs = hidden(tokens_SNT, weights_SNMT)
    out_SBTK = forward(inputs)[..., :MASK]
    targets = tokens_SNT.unsqueeze(2).expand(weights_SNMT.shape)
    surprise = F.cross_entropy(out_SBTK.flatten(0, -2), targets.flatten(), reduction="none")
    weighted_SNMT = surprise.view(weights_SNMT.shape) * weights_SNMT
    return -weighted_SNMT.flatten(2).sum(dim=2) / weights_SNMT.shape[2]


@torch.no_grad()
def sample(forward: Forward, prompt_SNP: Tensor, rank_SNL: Tensor, uniform_SNL: Tensor, tokens_per_step: int) -> Tensor:
    """Strings [S, N, T]: the prompts, and completions drawn from the model by unmasking in a given order.

    rank_SNL: a permutation of 0..L-1 for each string, the place of each token in the order; tokens whose ranks fall into the same
    step of `tokens_per_step` are drawn at once, each from its own distribution given what is there.  uniform_SNL: a draw from
    [0, 1) for each token.
    """
    blank_SNL = torch.full_like(rank_SNL, MASK)
    tokens_SNT, first = torch.cat([prompt_SNP, blank_SNL], dim=2), prompt_SNP.shape[2]
    for start in range(0, rank_SNL.shape[2], tokens_per_step):
        out_SNLK = forward(tokens_SNT)[:, :, first:, :MASK]
        below_SNLK = out_SNLK.softmax(dim=3).cumsum(dim=3)
        place_SNL1 = uniform_SNL.to(out_SNLK.dtype).unsqueeze(3) * below_SNLK[..., -1:]
        drawn_SNL = (below_SNLK <= place_SNL1).sum(dim=3).clamp(max=MASK - 1)
        is_due_SNL = (rank_SNL >= start) & (rank_SNL < start + tokens_per_step)
        tokens_SNT[:, :, first:] = torch.where(is_due_SNL, drawn_SNL, tokens_SNT[:, :, first:])
    return tokens_SNT
