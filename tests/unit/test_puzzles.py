"""Puzzles with answers that can be checked: rewards are exact, whatever a model writes."""

from __future__ import annotations

import itertools

import pytest
import torch

from nap_bench.data import puzzles
from nap_bench.data.puzzles import MASK, PUZZLES, SYMBOLS, decode, encode


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_hand(name: str, size: int, prompt: str, completion: str) -> float:
    """What a completion earns, by Python's own means."""
    if name == "copying":
        return float(completion == prompt)
    if name == "sorting":
        return float(completion == "".join(sorted(prompt)))
    digits, target = prompt[:size], int(prompt[size:])
    numbers, signs = completion[0::2], completion[1::2]
    if not set(signs) <= {"+", "-"} or sorted(numbers) != sorted(digits):
        return 0.0
    return float(eval(completion) == target)  # digits and signs only


@pytest.mark.parametrize("name", PUZZLES)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_rewards_are_exact(name, size):
    """Right answers, guesses, and guesses with one token replaced by any other."""
    problem = PUZZLES[name](size)
    prompt_BP, answer_BL = problem.problems(200, stream())
    assert torch.all(problem.reward(prompt_BP, answer_BL) == 1.0)
    changed_BL = answer_BL.clone()
    where_B1 = torch.randint(problem.completion_length, (200, 1), generator=stream(1))
    changed_BL.scatter_(1, where_B1, torch.randint(MASK + 1, (200, 1), generator=stream(2)))
    found = []
    for completion_BL in (problem.guess(prompt_BP, stream(3)), changed_BL):
        rewards = problem.reward(prompt_BP, completion_BL)
        expected = [
            by_hand(name, size, decode(prompt), decode(completion))
            for prompt, completion in zip(prompt_BP, completion_BL, strict=True)
        ]
        assert rewards.tolist() == expected
        found += expected
    assert 0 < sum(found) < len(found)


@pytest.mark.parametrize("name", PUZZLES)
def test_malformed_completions_earn_nothing_and_raise_nothing(name):
    problem = PUZZLES[name](3)
    prompt_BP, _ = problem.problems(1, stream())
    length = problem.completion_length
    for text in ("+" * length, "z" * length, "." * length, "0" * (length - 1) + " "):
        assert problem.reward(prompt_BP, encode(text).unsqueeze(0)).tolist() == [0.0]
    assert problem.reward(prompt_BP, torch.full((1, length), MASK)).tolist() == [0.0]


def test_every_way_to_the_target_counts_and_no_other():
    problem = PUZZLES["countdown"](3)
    right = [
        "".join(text)
        for order in itertools.permutations("471")
        for signs in itertools.product("+-", repeat=2)
        if eval(text := order[0] + signs[0] + order[1] + signs[1] + order[2]) == 10
    ]
    assert sorted(right) == ["4+7-1", "4-1+7", "7+4-1", "7-1+4"]
    every = ["".join(text) for text in itertools.product("1470+-", repeat=5)]
    prompt_BP = encode("47110").expand(len(every), -1)
    rewards = problem.reward(prompt_BP, torch.stack([encode(text) for text in every]))
    assert sorted(text for text, reward in zip(every, rewards.tolist(), strict=True) if reward) == sorted(right)


@pytest.mark.parametrize("name", PUZZLES)
def test_guesses_have_the_right_form(name):
    problem = PUZZLES[name](4)
    prompt_BP, _ = problem.problems(50, stream())
    guess_BL = problem.guess(prompt_BP, stream(1))
    used_BK = guess_BL[:, 0::2] if name == "countdown" else guess_BL
    assert torch.equal(used_BK.sort(dim=1).values, prompt_BP[:, :4].sort(dim=1).values)
    assert not torch.equal(used_BK, prompt_BP[:, :4])


def test_rewards_take_any_leading_axes():
    problem = PUZZLES["sorting"](3)
    prompt_BP, answer_BL = problem.problems(6, stream())
    assert problem.reward(prompt_BP.view(2, 3, 3), answer_BL.view(2, 3, 3)).tolist() == [[1.0] * 3] * 2


def test_text_is_of_known_symbols_and_can_be_read():
    assert decode(encode("A+b\n7.")) == "a+b 7."
    english = puzzles.text()
    assert len(english) > 100_000 and int(english.max()) < MASK == len(SYMBOLS)
    assert " the " in decode(english[:2000])
