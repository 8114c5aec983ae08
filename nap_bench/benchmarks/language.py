"""Language modelling: predict every token of a text from those before it (paper 5.2, B.3, Table 1, right).

Shape suffixes: S seeds, B batch, T tokens of a string, K vocabulary, R rows that evaluation reads, N tokens of the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from nap_bench.benchmarks.base import SupervisedBenchmark, losses
from nap_bench.data import c4, topics
from nap_bench.data.tokens import as_rows
from nap_bench.rng import generator
from nap_bench.spec import nearest

TOKENIZER_ADVICE = {
    "c4": "Put the wanted one into DATA_DIR/c4/tokenizer.json and pack the text anew with `nap-bench data c4`",
    "topics": "It comes from the words of the Python that runs: take the Python of the wanted one, or tokenizer=None",
}
LENGTH_ADVICE = {
    "c4": "Put more shards into DATA_DIR/c4/en, or none at all, and run `nap-bench data c4`",
    "topics": "Ask for fewer train_tokens, or a shorter length",
}
STEPS_PER_CHUNK = 1024
"""Which strings a batch is made of is drawn for this many steps at a time."""
TOKENS_AT_ONCE = 8192
"""Evaluation looks at rows in pieces, so that logits over a vocabulary fit; whatever the number of seeds."""
BIGRAM_TOKENS = 20_000_000
"""Of the text, the first so many, that the bigram model counts."""
IGNORED = -1
"""A target that is none."""


@dataclass(frozen=True, eq=False)  # equal only to itself
class Texts:
    """train [N]: where training reads, in memory or mapped into it.  rows: set -> (tokens [R, T + 1], number of targets [R]).
    bigram_accuracy: what `bigram_accuracy` says of the first set.  about: hashes of the tokenizer and of all tokens.
    """

    train: np.ndarray
    rows: dict[str, tuple[np.ndarray, np.ndarray]]
    bigram_accuracy: float
    about: dict[str, str]
    device: str

    def strings(self, index: Tensor, length: int) -> Tensor:
        """Strings of length + 1 tokens [..., T + 1] int64 on the device; each begins with the last token of the one before."""
        places = index.numpy()[..., None] * length + np.arange(length + 1)
        return torch.from_numpy(self.train[places].astype(np.int64)).to(self.device)


@dataclass(frozen=True, kw_only=True)
class Language(SupervisedBenchmark):
    """Learn a text, string after string, and predict the tokens of documents that are never trained on.

    The text is documents, each behind an end token, cut into strings of `length` tokens wherever that falls; attention crosses
    documents within a string. Every pass is a fresh permutation of all strings; a batch may end one pass and begin the next.

    Evaluation reads each document by itself, cut into strings of `length`. All its tokens count but the end token: test_accuracy
    and test_loss of the text's own held-out documents, NAME_accuracy and NAME_loss of every other set that is there; and
    bigram_accuracy, of a bigram model of the same tokens on the first of these sets.

    dataset: "topics", CPython's help topics, tokenised in the process; or "c4" with the sets of Table 1, as `nap-bench data c4`
        packed them.
    vocabulary: tokens of the tokenizer; "topics" trains one of that many.  tokenizer: the SHA-256 that it must have, None for any.
    micro_batches: pieces of a batch that are looked at one after another, their gradients added up; a divisor of batch_size.
    train_tokens: of the text, the first so many; None for all.  eval_tokens: of each evaluation set, the documents that begin among
        the first so many; None for all.
    eval_strings: accuracy, loss and diagnostics read the first so many strings of the text.
    """

    name: ClassVar[str] = "language"

    dataset: str
    length: int
    vocabulary: int
    num_evaluations: int
    steps_per_evaluation: int
    batch_size: int
    micro_batches: int = 1
    train_tokens: int | None = None
    eval_tokens: int | None = None
    tokenizer: str | None = None
    eval_strings: int = 4

    def __post_init__(self) -> None:
        if self.dataset not in TOKENIZER_ADVICE:
            raise ValueError(nearest(self.dataset, TOKENIZER_ADVICE, f"dataset of {self.name}"))
        names = ("length", "num_evaluations", "steps_per_evaluation", "batch_size", "micro_batches", "eval_strings")
        for name in (*names, "train_tokens", "eval_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{self.name} wants {name} >= 1; found {value}.")
        if self.vocabulary < 257:
            raise ValueError(f"{self.name} wants a vocabulary >= 257: all bytes and an end; found {self.vocabulary}.")
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"{self.name} wants micro_batches to divide batch_size={self.batch_size}; found {self.micro_batches}."
            )

    @property
    def resources(self) -> str:
        return "lm" if self.download else "small"

    @property
    def download(self) -> str | None:
        return "c4" if self.dataset == "c4" else None

    @property
    def steps_per_task(self) -> int:
        return self.steps_per_evaluation

    @property
    def num_steps(self) -> int:
        return self.num_evaluations * self.steps_per_evaluation

    @property
    def shapes(self) -> tuple[tuple[int, ...], int]:
        return (self.length,), self.vocabulary

    def demand(self, num_seeds: int) -> dict[str, int]:
        """Of "c4", tokens that are trained on."""
        return {"tokens": self.num_steps * self.batch_size * self.length * num_seeds} if self.download else {}

    def task_at(self, step: int) -> int:
        return 0

    def eval_steps(self) -> frozenset[int]:
        return frozenset(range(self.steps_per_evaluation, self.num_steps + 1, self.steps_per_evaluation))

    def load(self, data_dir: str | None, device: str) -> Texts:
        corpus = c4.load(data_dir) if self.dataset == "c4" else topics.load(self.vocabulary)
        if self.vocabulary != corpus.vocabulary:
            raise ValueError(
                f"{self.name} wants a vocabulary of {self.vocabulary} tokens; {self.dataset} is packed with {corpus.vocabulary}, "
                f"always. Ask for vocabulary={corpus.vocabulary}."
            )
        if (self.tokenizer or corpus.about["tokenizer"]) != corpus.about["tokenizer"]:
            raise ValueError(
                f"{self.name}: the tokenizer of {self.dataset} is another one: wanted sha256 {self.tokenizer}, found "
                f"{corpus.about['tokenizer']}. {TOKENIZER_ADVICE[self.dataset]}."
            )
        if (self.train_tokens or self.length + 1) > len(corpus.train):
            raise ValueError(
                f"{self.name} wants {self.train_tokens or self.length + 1:,} tokens to train on; {self.dataset} has "
                f"{len(corpus.train):,}. {LENGTH_ADVICE[self.dataset]}."
            )
        rows = {
            name: as_rows(np.asarray(tokens), corpus.end, self.length, self.eval_tokens)
            for name, tokens in corpus.evaluation.items()
        }
        train, own = corpus.train[: self.train_tokens], next(iter(rows.values()))
        return Texts(train, rows, bigram_accuracy(train[:BIGRAM_TOKENS], *own), corpus.about, device)

    def identity(self, data: Texts) -> dict[str, str]:
        return data.about

    @lru_cache(maxsize=4)  # noqa: B019 (keyed by value, a frozen dataclass; few chunks at most)
    def _order(self, num_strings: int, seeds: tuple[int, ...], chunk: int) -> Tensor:
        """[steps, S, B]: which strings the steps of a chunk are about."""
        wanted = min(STEPS_PER_CHUNK, self.num_steps) * self.batch_size
        first = chunk * STEPS_PER_CHUNK * self.batch_size
        passes = range(first // num_strings, -(-(first + wanted) // num_strings))
        start, orders = first - passes[0] * num_strings, []
        for seed in seeds:
            drawn = [torch.randperm(num_strings, generator=generator(seed, "order", number)) for number in passes]
            orders.append(torch.cat(drawn)[start : start + wanted].view(-1, self.batch_size))
        return torch.stack(orders, dim=1)

    def batch(self, data: Texts, seeds: tuple[int, ...], step: int) -> tuple[Tensor, Tensor]:
        """(inputs [S, B, T], targets [S, B, T]): every token, and the one after it."""
        chunk, row = divmod(step, STEPS_PER_CHUNK)
        index_SB = self._order((len(data.train) - 1) // self.length, seeds, chunk)[row]
        strings = data.strings(index_SB, self.length)
        return strings[..., :-1], strings[..., 1:]

    def loss(self, out_SBTK: Tensor, y_SBT: Tensor) -> Tensor:
        return losses(out_SBTK, y_SBT).flatten(1).mean(dim=1)

    @torch.no_grad()
    def evaluate(self, state, data: Texts) -> dict[str, Tensor]:
        """accuracy, loss and acts on `eval_strings` strings of the text; accuracy and loss [S] per token of every held-out set."""
        acts: dict[str, Tensor] = {}
        strings = data.strings(torch.arange(self.eval_strings), self.length).expand(len(state.seeds), -1, -1)
        out_SBTK, y_SBT = state.forward(strings[..., :-1], acts), strings[..., 1:]
        found = {"accuracy": self.accuracy(out_SBTK, y_SBT), "loss": self.loss(out_SBTK, y_SBT), "acts": acts}
        for index, (name, (rows, num_targets_R)) in enumerate(data.rows.items()):
            correct_S, loss_S = torch.zeros(2, len(state.seeds), device=state.device, dtype=torch.float64)
            for inputs, y_BT in pieces_of_rows(rows, num_targets_R):
                inputs, y_SBT = (part.to(state.device).expand(len(state.seeds), *part.shape) for part in (inputs, y_BT))
                out_SBTK, asked = state.forward(inputs), y_SBT != IGNORED
                correct_S += ((out_SBTK.argmax(dim=-1) == y_SBT) & asked).flatten(1).sum(dim=1)
                losses_SBT = losses(out_SBTK, y_SBT.clamp(min=0))
                loss_S += losses_SBT.masked_fill(~asked, 0.0).flatten(1).sum(dim=1, dtype=torch.float64)
            prefix, total = "test" if index == 0 else name, num_targets_R.sum()
            found |= {f"{prefix}_accuracy": correct_S / total, f"{prefix}_loss": loss_S / total}
        return found | {"bigram_accuracy": torch.full_like(loss_S, data.bigram_accuracy)}


def pieces_of_rows(rows: np.ndarray, num_targets_R: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, targets) [B, T'] of a few rows each, no longer than their longest; what fills a row up is IGNORED."""
    rows_at_once = max(1, TOKENS_AT_ONCE // (rows.shape[1] - 1))
    for first in range(0, len(rows), rows_at_once):
        some = slice(first, first + rows_at_once)
        longest = num_targets_R[first]
        tokens, places = torch.from_numpy(rows[some, : longest + 1]), torch.arange(int(longest))
        asked = places < torch.from_numpy(num_targets_R[some]).unsqueeze(1)
        yield tokens[:, :-1], tokens[:, 1:].masked_fill(~asked, IGNORED)


def bigram_accuracy(train_N: np.ndarray, rows: np.ndarray, num_targets_R: np.ndarray) -> float:
    """Per-token accuracy of predicting what most often followed the token before in the text: the lowest of equals, 0 if none."""
    wide = np.int64(2**32)
    pairs, counts = np.unique(train_N[:-1].astype(np.int64) * wide + train_N[1:], return_counts=True)
    before, after = np.divmod(pairs, wide)
    best = np.lexsort((after, -counts, before))  # of every token's successors the most frequent first
    known, first = np.unique(before[best], return_index=True)
    predicted = np.zeros(max(known.max(), rows.max()) + 1, dtype=np.int64)
    predicted[known] = after[best][first]
    asked = np.arange(rows.shape[1] - 1) < num_targets_R[:, None]
    return float((predicted[rows[:, :-1]] == rows[:, 1:])[asked].mean())
