"""Small problems whose answers can be checked: copying, sorting, and arithmetic in the manner of Countdown. Ours.

Shape suffixes: B problems, P tokens of a prompt, L tokens of a completion. Tokens are indices into SYMBOLS, and MASK after them.
A puzzle's prompts have one length and its completions one, so nothing is padded. All on the CPU but `reward`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nap_bench.data.text import topics

SYMBOLS = "0123456789+-abcdefghijklmnopqrstuvwxyz ."
MASK = len(SYMBOLS)
PLUS, MINUS, SPACE = (SYMBOLS.index(symbol) for symbol in "+- ")
PLACES = {symbol: index for index, symbol in enumerate(SYMBOLS)}


def encode(text: str) -> Tensor:
    """[len(text)] int64. Capitals become small; what is no symbol becomes a space."""
    return torch.tensor([PLACES.get(symbol, SPACE) for symbol in text.lower()])


def decode(tokens: Tensor) -> str:
    """Readable text of a string of tokens; a mask is an underscore."""
    return "".join((SYMBOLS + "_")[token] for token in tokens.tolist())


@lru_cache(maxsize=1)
def text() -> Tensor:
    """English: the training side of CPython's help topics, one space between words, [400,000] int64. Pythons differ in words."""
    return encode(" ".join(" ".join(topics()[0]).split()))


@dataclass(frozen=True)
class Puzzle:
    """`size` digits are given, and something is to be done with them."""

    size: int

    @property
    def prompt_length(self) -> int:
        return self.size

    @property
    def completion_length(self) -> int:
        return self.size

    def problems(self, count: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """(prompts [B, P], a right completion of each [B, L])."""
        prompt_BP = torch.randint(10, (count, self.size), generator=stream)
        return prompt_BP, self.answer(prompt_BP)

    def answer(self, prompt_BP: Tensor) -> Tensor:
        """[B, L]: the only right completion."""
        raise NotImplementedError

    def guess(self, prompt_BP: Tensor, stream: torch.Generator) -> Tensor:
        """[B, L]: the prompt's digits in random order: the right form, and right by chance alone."""
        order = torch.rand(prompt_BP.shape, generator=stream).argsort(dim=1)
        return prompt_BP.gather(1, order)

    def reward(self, prompt_BP: Tensor, completion_BL: Tensor) -> Tensor:
        """1 for a right completion, else 0, whatever its tokens are; float32 [B], or of more leading axes."""
        return (completion_BL == self.answer(prompt_BP)).all(dim=-1).float()


class Copying(Puzzle):
    """Repeat the digits."""

    def answer(self, prompt_BP: Tensor) -> Tensor:
        return prompt_BP


class Sorting(Puzzle):
    """The digits in rising order."""

    def answer(self, prompt_BP: Tensor) -> Tensor:
        return prompt_BP.sort(dim=-1).values


class Countdown(Puzzle):
    """Reach a number: digits from 1 to 9, then a target of two digits; every digit once, joined by + and -.

    Prompt "47110" of size 3 asks for 10 from 4, 7 and 1: "4+7-1" is right, and so is "7-1+4".
    """

    @property
    def prompt_length(self) -> int:
        return self.size + 2

    @property
    def completion_length(self) -> int:
        return 2 * self.size - 1

    def problems(self, count: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        digits_BK = torch.randint(1, 10, (count, self.size), generator=stream)
        completion_BL = self.guess(digits_BK, stream)
        below_B1 = self.value(completion_BL).lt(0).unsqueeze(1)
        completion_BL[:, 1::2] = completion_BL[:, 1::2].masked_fill(below_B1, PLUS)  # a target has no sign
        target_B = self.value(completion_BL)
        return torch.cat([digits_BK, torch.stack([target_B // 10, target_B % 10], dim=1)], dim=1), completion_BL

    def guess(self, prompt_BP: Tensor, stream: torch.Generator) -> Tensor:
        signs = torch.randint(PLUS, MINUS + 1, (len(prompt_BP), self.size - 1), generator=stream)
        completion_BL = torch.empty(len(prompt_BP), self.completion_length, dtype=torch.int64)
        completion_BL[:, 0::2] = super().guess(prompt_BP[:, : self.size], stream)
        completion_BL[:, 1::2] = signs
        return completion_BL

    @staticmethod
    def value(completion_BL: Tensor) -> Tensor:
        """What a well-formed completion comes to; of others a number without meaning."""
        digits_BK, signs_BK = completion_BL[..., 0::2], completion_BL[..., 1::2]
        return digits_BK[..., 0] + (digits_BK[..., 1:] * (1 - 2 * (signs_BK == MINUS).long())).sum(dim=-1)

    def reward(self, prompt_BP: Tensor, completion_BL: Tensor) -> Tensor:
        given_BK, target_B = prompt_BP[..., : self.size], prompt_BP[..., -2] * 10 + prompt_BP[..., -1]
        signs_BK, used_BK = completion_BL[..., 1::2], completion_BL[..., 0::2]
        has_signs_B = ((signs_BK == PLUS) | (signs_BK == MINUS)).all(dim=-1)
        has_digits_B = (used_BK.sort(dim=-1).values == given_BK.sort(dim=-1).values).all(dim=-1)
        return (has_signs_B & has_digits_B & (self.value(completion_BL) == target_B)).float()


PUZZLES: dict[str, type[Puzzle]] = {"copying": Copying, "countdown": Countdown, "sorting": Sorting}
