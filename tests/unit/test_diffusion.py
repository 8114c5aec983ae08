"""A masked-diffusion model against enumeration on a tiny vocabulary: its likelihood bound, its samples, its masks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from nap_bench.data.puzzles import MASK
from nap_bench.policy.diffusion import drawn_masks, elbo, hidden, sample

LENGTH, SYMBOLS = 3, (0, 1, 2)


def tiny(num_seeds: int = 1, seed: int = 0):
    """A `forward` with a table of its own: what is predicted depends on everything that is seen, for each seed differently."""
    contexts = list(itertools.product((*SYMBOLS, MASK), repeat=LENGTH))
    place = {context: index for index, context in enumerate(contexts)}
    stream = torch.Generator().manual_seed(seed)
    table = torch.randn(num_seeds, len(contexts), LENGTH, len(SYMBOLS), generator=stream, dtype=torch.float64)

    def forward(tokens_SBT):
        out = torch.full((*tokens_SBT.shape, MASK + 1), -torch.inf, dtype=torch.float64)
        out[..., MASK] = 5.0  # never to be predicted
        for s, strings_BT in enumerate(tokens_SBT.tolist()):
            rows = torch.tensor([place[tuple(string)] for string in strings_BT])
            out[s, ..., : len(SYMBOLS)] = table[s, rows]
        return out

    return forward


def chain(forward, string, order) -> float:
    """Probability that tokens drawn in this order are the string's."""
    shown, product = [MASK] * LENGTH, 1.0
    for position in order:
        out = forward(torch.tensor([[shown]]))[0, 0, position, :MASK]
        product *= out.softmax(dim=0)[string[position]].item()
        shown[position] = string[position]
    return product


def every_mask() -> tuple[torch.Tensor, torch.Tensor]:
    """(weights of tokens [1, 1, M, T] of every choice of tokens to hide, the probability [M] that it is drawn)."""
    rows, probabilities = [], []
    for size in range(1, LENGTH + 1):
        for chosen in itertools.combinations(range(LENGTH), size):
            rows.append([LENGTH / size if t in chosen else 0.0 for t in range(LENGTH)])
            probabilities.append(1.0 / LENGTH / math.comb(LENGTH, size))
    return torch.tensor(rows, dtype=torch.float64).view(1, 1, -1, LENGTH), torch.tensor(
        probabilities, dtype=torch.float64
    )


@pytest.mark.parametrize("string", [(0, 0, 0), (2, 0, 1)])
def test_the_bounds_expectation_is_the_mean_over_orders_and_lies_below_the_likelihood(string):
    forward, orders = tiny(), list(itertools.permutations(range(LENGTH)))
    masks, probability_M = every_mask()
    each_M = torch.stack(
        [elbo(forward, torch.tensor([[string]]), masks[:, :, [m]])[0, 0] for m in range(masks.shape[2])]
    )
    expected = sum(math.log(chain(forward, string, order)) for order in orders) / len(orders)
    assert (each_M * probability_M).sum().item() == pytest.approx(expected, rel=1e-12)
    likelihood = sum(chain(forward, string, order) for order in orders) / len(orders)
    assert expected < math.log(likelihood)


def test_the_mean_over_drawn_masks_tends_to_the_bound():
    forward, string = tiny(), torch.tensor([[(2, 0, 1)]])
    masks, probability_M = every_mask()
    exact = sum(p * elbo(forward, string, masks[:, :, [m]])[0, 0] for m, p in enumerate(probability_M))
    drawn = drawn_masks((0,), "masks", 0, torch.ones(1, 1, LENGTH, dtype=torch.bool), 4000, "cpu").double()
    spread = torch.stack([elbo(forward, string, drawn[:, :, [m]])[0, 0] for m in range(200)]).std()
    assert abs(elbo(forward, string, drawn)[0, 0] - exact) < 5 * spread / math.sqrt(4000)


def test_masks_hide_only_what_may_be_hidden_and_every_choice_equally_often():
    maskable = torch.tensor([[[False, True, True, False, True]]])
    weights_MT = drawn_masks((0,), "masks", 0, maskable, 60_000, "cpu")[0, 0]
    assert not weights_MT[:, [0, 3]].any()
    assert torch.allclose(weights_MT.sum(dim=1), torch.tensor(3.0))
    hidden_MT = (weights_MT > 0)[:, [1, 2, 4]]
    for chosen in itertools.product((False, True), repeat=3):
        size = sum(chosen)
        expected = 1.0 / 3 / math.comb(3, size) if size else 0.0
        assert (hidden_MT == torch.tensor(chosen)).all(dim=1).float().mean().item() == pytest.approx(expected, abs=0.01)


def test_masks_are_a_pure_function_of_seed_purpose_and_counter():
    maskable = torch.ones(2, 4, 6, dtype=torch.bool)

    def drawn(seeds, purpose, counter):
        return drawn_masks(seeds, purpose, counter, maskable[: len(seeds)], 2, "cpu")

    block = drawn((3, 4), "masks", 7)
    assert torch.equal(block, drawn((3, 4), "masks", 7)) and torch.equal(block[1:], drawn((4,), "masks", 7))
    for other in (drawn((3, 4), "masks", 8), drawn((3, 4), "masks/old", 7), drawn((5, 6), "masks", 7)):
        assert not torch.equal(block, other)


def test_hidden_strings_show_what_is_not_weighed():
    weights = torch.tensor([[[[3.0, 0.0, 0.0], [1.5, 0.0, 1.5]]]])
    assert hidden(torch.tensor([[[7, 8, 9]]]), weights).tolist() == [[[MASK, 8, 9], [MASK, 8, MASK]]]


def test_samples_are_drawn_with_the_models_probabilities():
    """One token at a time: the share of each string is the mean over orders of its chain's probability."""
    forward, count = tiny(), 20_000
    stream = torch.Generator().manual_seed(1)
    keys, uniform = torch.rand(2, 1, count, LENGTH, generator=stream)
    ranks = keys.argsort(dim=2).argsort(dim=2)
    found = sample(forward, torch.empty(1, count, 0, dtype=torch.int64), ranks, uniform, 1)[0]
    orders = list(itertools.permutations(range(LENGTH)))
    for string in itertools.product(SYMBOLS, repeat=LENGTH):
        expected = sum(chain(forward, string, order) for order in orders) / len(orders)
        share = (found == torch.tensor(string)).all(dim=1).double().mean().item()
        assert share == pytest.approx(expected, abs=5 * math.sqrt(expected / count) + 1e-9)


def test_tokens_drawn_at_once_do_not_see_each_other():
    forward, count = tiny(), 20_000
    stream = torch.Generator().manual_seed(1)
    keys, uniform = torch.rand(2, 1, count, LENGTH, generator=stream)
    found = sample(
        forward, torch.empty(1, count, 0, dtype=torch.int64), keys.argsort(dim=2).argsort(dim=2), uniform, LENGTH
    )[0]
    own = forward(torch.full((1, 1, LENGTH), MASK))[0, 0, :, :MASK].softmax(dim=1)
    for string in ((0, 0, 0), (2, 0, 1)):
        expected = math.prod(own[t, token].item() for t, token in enumerate(string))
        assert (found == torch.tensor(string)).all(dim=1).double().mean().item() == pytest.approx(expected, abs=0.01)


def test_prompts_stay_and_no_mask_is_left():
    def forward(tokens_SBT):
        return torch.zeros(*tokens_SBT.shape, MASK + 1)

    prompt = torch.tensor([[[1]], [[2]]])
    ranks = torch.tensor([[[0, 1]], [[1, 0]]])
    found = sample(forward, prompt, ranks, torch.full((2, 1, 2), 0.999_999_99), 1)
    assert found[0, 0, 1:].tolist() == [MASK - 1] * 2
    assert torch.equal(found[..., :1], prompt) and int(found.max()) < MASK
