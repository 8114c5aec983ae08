"""In-context copying: strings whose end repeats a stretch of their beginning (paper B.3, C.3, Fig. 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench.benchmarks.base import accuracy
from nap_bench.benchmarks.random_strings import Place, RandomStrings
from nap_bench.rng import generator


@dataclass(frozen=True, kw_only=True)
class Copying(RandomStrings):
    """RandomStrings whose last `copied` tokens are a contiguous stretch of the ones before, from a uniformly drawn place.

    The first `cue` of them tell which stretch; accuracy, online and at evaluation, is over those after the cue. The loss is
    over all tokens. Evaluation reads `eval_strings` strings that are never trained on (None: as many as are trained on), so
    its accuracy is copying and not memorisation; online accuracy is on the strings of the stream.

    copied: from cue + 1 to length - copied.
    """

    name: ClassVar[str] = "copying"

    copied: int
    cue: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cue < self.copied <= self.length - self.copied:
            raise ValueError(
                f"copying wants 0 < cue < copied <= length - copied; found cue={self.cue}, copied={self.copied}, "
                f"length={self.length}."
            )

    def strings(self, seed: int, task: int, purpose: str = "strings") -> Tensor:
        drawn = generator(seed, purpose, task)
        prefix = self.length - self.copied
        strings_NL = torch.randint(self.vocabulary, (self.num_strings, self.length), generator=drawn)
        start_N1 = torch.randint(prefix - self.copied + 1, (self.num_strings, 1), generator=drawn)
        strings_NL[:, prefix:] = strings_NL.gather(1, start_N1 + torch.arange(self.copied))
        return strings_NL

    def probe(self, data: Place, seeds: tuple[int, ...], task: int) -> tuple[Tensor, Tensor]:
        """(inputs, targets) [S, E, T] of strings that are not trained on, anew for every task."""
        new = torch.stack([self.strings(seed, task, "new strings")[: self.eval_strings] for seed in seeds])
        new_SEL = new.to(data.inputs.device)
        return new_SEL[..., :-1], new_SEL[..., 1:]

    def accuracy(self, out_SBTK: Tensor, y_SBT: Tensor) -> Tensor:
        """[S], over the copied tokens after the cue."""
        scored = slice(self.cue - self.copied, None)
        return accuracy(out_SBTK[:, :, scored], y_SBT[:, :, scored])
