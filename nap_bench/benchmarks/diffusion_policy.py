"""A masked-diffusion language model, trained by denoising and then by its reward on small puzzles. Ours, after StableDRL's setting.

Shape suffixes: S seeds, B strings, N completions of a rollout, T tokens of a string (prompt, then completion).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nap_bench import weights
from nap_bench.benchmarks.base import Benchmark
from nap_bench.data import puzzles
from nap_bench.rng import generator
from nap_bench.spec import nearest

PRETRAINING_BINS = 4


@dataclass(frozen=True, kw_only=True)
class DiffusionPolicy(Benchmark):
    """`pretrain_steps` updates of denoising, then `num_rollouts` rollouts of `updates_per_rollout` policy updates each.

    puzzle, size: what is asked ("copying", "countdown" or "sorting" of so many digits); a right completion earns 1, others 0.
    pretrain_batch strings: a share `text` of English, all of it maskable; else prompts with completions, these maskable, a share
      `correct` of them right, the rest right in form alone: what the policy starts from.
    prompts, completions: of a rollout: how many puzzles, and how many sampled completions of each, among which the mean reward is
      the baseline: advantage = reward - mean. Every update of a rollout reads all of it.
    rule, clip: how ratios weigh examples (nap_bench/weights.py), and the bounds of a ratio.
    samples: M, masks over which a completion's log-likelihood is averaged, each time it is estimated. The two sides of a ratio are
      estimated by different masks, so it is noisy even where nothing has changed; common_masks=True takes the same for both.
    tokens_per_step: how many tokens of a completion are drawn between two looks at it.
    bins: parts of the policy's training at whose ends is written down what was measured.
    """

    name: ClassVar[str] = "diffusion_policy"
    loop: ClassVar[str] = "policy"

    puzzle: str
    size: int
    rule: str
    samples: int
    num_rollouts: int
    pretrain_steps: int
    clip: tuple[float, float] = (0.8, 1.2)
    common_masks: bool = False
    updates_per_rollout: int = 4
    prompts: int = 4
    completions: int = 8
    tokens_per_step: int = 1
    pretrain_batch: int = 64
    correct: float = 0.5
    text: float = 0.25
    bins: int = 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "clip", tuple(self.clip))
        if self.puzzle not in puzzles.PUZZLES:
            raise ValueError(nearest(self.puzzle, puzzles.PUZZLES, f"puzzle of {self.name}"))
        weights.check(self.rule, self.clip)
        least = dict(
            size=2, samples=1, num_rollouts=1, pretrain_steps=PRETRAINING_BINS, updates_per_rollout=1, prompts=1
        )
        for name, low in {**least, "completions": 2, "tokens_per_step": 1, "pretrain_batch": 1, "bins": 1}.items():
            if getattr(self, name) < low:
                raise ValueError(f"{self.name} wants {name} >= {low}; found {getattr(self, name)}.")
        for name in ("correct", "text"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{self.name} wants {name}, a share, in [0, 1]; found {getattr(self, name)}.")
        if self.bins > self.num_rollouts:
            raise ValueError(
                f"{self.name} wants at most one bin per rollout; found {self.bins} bins in {self.num_rollouts} rollouts."
            )
        if self.problem.completion_length % self.tokens_per_step:
            raise ValueError(
                f"{self.name} wants tokens_per_step to divide the {self.problem.completion_length} tokens of a completion; "
                f"found {self.tokens_per_step}."
            )

    @property
    def problem(self) -> puzzles.Puzzle:
        return puzzles.PUZZLES[self.puzzle](self.size)

    @property
    def shapes(self) -> tuple[tuple[int, ...], int]:
        """Tokens of a string; symbols and the mask, which is never predicted."""
        return (self.problem.prompt_length + self.problem.completion_length,), puzzles.MASK + 1

    @property
    def num_examples(self) -> int:
        """N"""
        return self.prompts * self.completions

    @property
    def num_steps(self) -> int:
        """Updates of a whole run."""
        return self.pretrain_steps + self.num_rollouts * self.updates_per_rollout

    def task_at(self, step: int) -> int:
        """0 while the update number `step` (from 0) denoises, then 1."""
        return int(step >= self.pretrain_steps)

    def bin_ends(self) -> frozenset[int]:
        """Numbers of updates done at which what was measured is written down; a rollout belongs to one bin."""
        denoising = [self.pretrain_steps * (i + 1) // PRETRAINING_BINS for i in range(PRETRAINING_BINS)]
        rollouts = [self.num_rollouts * (i + 1) // self.bins for i in range(self.bins)]
        return frozenset(denoising) | {self.pretrain_steps + n * self.updates_per_rollout for n in rollouts}

    def strings(self, seeds: tuple[int, ...], step: int) -> tuple[Tensor, Tensor]:
        """(tokens [S, B, T], where they may be masked [S, B, T]), on the CPU: what update number `step` denoises; pure."""
        drawn = [self._strings(generator(seed, "strings", step)) for seed in seeds]
        return torch.stack([tokens for tokens, _ in drawn]), torch.stack([maskable for _, maskable in drawn])

    def _strings(self, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        problem, (length,) = self.problem, self.shapes[0]
        prompt_BP, answer_BL = problem.problems(self.pretrain_batch, stream)
        guess_BL = problem.guess(prompt_BP, stream)
        is_right_B1, is_text_B1 = (
            torch.rand(self.pretrain_batch, 1, generator=stream) < share for share in (self.correct, self.text)
        )
        tokens_BT = torch.cat([prompt_BP, torch.where(is_right_B1, answer_BL, guess_BL)], dim=1)
        in_completion_T = torch.arange(length) >= problem.prompt_length
        if self.text:
            english = puzzles.text()
            start_B1 = torch.randint(len(english) - length, (self.pretrain_batch, 1), generator=stream)
            tokens_BT = torch.where(is_text_B1, english[start_B1 + torch.arange(length)], tokens_BT)
        return tokens_BT, in_completion_T | is_text_B1

    def puzzles_of(self, seeds: tuple[int, ...], rollout: int) -> Tensor:
        """[S, prompts, P], on the CPU: what is asked in a rollout; pure."""
        drawn = [self.problem.problems(self.prompts, generator(seed, "puzzles", rollout))[0] for seed in seeds]
        return torch.stack(drawn)
