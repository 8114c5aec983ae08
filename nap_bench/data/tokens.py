"""Tokens: a tokenizer and its hash, documents packed once into a file that is mapped into memory, rows that evaluation reads.

A packed text is NAME.bin, token after token, each document behind an end token; NAME.ids, eight bytes a document by which one is
known again; and NAME.json, which says what it was made of and is written last.

Shape suffixes: N tokens of a packed text, R rows, T tokens of an input.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nap_bench.data.download import whole
from nap_bench.data.text import identity

ENDS = ("<|endoftext|>", "</s>")
"""What the end token is called in a public tokenizer; the first in ours, where it is number 0."""
AT_ONCE = 1000
"""Documents that are tokenised together."""


class Corpus(NamedTuple):
    """What a language model learns and what it is asked.

    train [N]: tokens.  evaluation: set -> tokens, the corpus's own held-out set first.  end: the end token, with which every
    document begins.  vocabulary: how many tokens there are.  about: hashes of the tokenizer and of all tokens, for the results.
    """

    train: np.ndarray
    evaluation: dict[str, np.ndarray]
    end: int
    vocabulary: int
    about: dict[str, str]


def train_tokenizer(documents: Iterable[str], vocabulary: int) -> str:
    """The JSON of a byte-level BPE tokenizer of `vocabulary` tokens (Sennrich et al. 2016): a pure function of the documents.

    256 bytes and the end token among them. Raises ValueError if the text gives fewer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    how = dict(vocab_size=vocabulary, special_tokens=[ENDS[0]], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(documents, trainers.BpeTrainer(**how))
    if made.get_vocab_size() != vocabulary:
        raise ValueError(
            f"A tokenizer of {vocabulary} tokens was wanted, the text gives {made.get_vocab_size()}. Ask for fewer, at least 257, "
            f"or give it more text."
        )
    return made.to_str()


class Tokenizer:
    """A tokenizer of the `tokenizers` library from its JSON. sha256: of that JSON.  end: number of the end token."""

    def __init__(self, text: str, where: str):
        """where: what the text is from, for errors. Raises ValueError if it is no tokenizer, or has no end token."""
        from tokenizers import Tokenizer as Library

        try:
            self.library = Library.from_str(text)
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"{where} holds no tokenizer of the tokenizers library: {error}.") from None
        self.library.no_truncation()
        self.library.no_padding()
        self.library.encode_special_tokens = True  # a document that spells the end token does not end there
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.vocabulary = self.library.get_vocab_size()
        ends = [number for name in ENDS if (number := self.library.token_to_id(name)) is not None]
        if not ends:
            raise ValueError(f"The tokenizer {where} has no end token: wanted one of {', '.join(ENDS)}.")
        self.end = ends[0]

    def encode(self, documents: Iterable[str]) -> Iterator[list[int]]:
        """Each document's tokens behind an end token."""
        documents = iter(documents)
        while some := list(itertools.islice(documents, AT_ONCE)):
            for encoded in self.library.encode_batch(some, add_special_tokens=False):
                yield [self.end, *encoded.ids]

    def decode(self, tokens: Iterable[int]) -> list[str]:
        """The documents of a packed text."""
        found: list[list[int]] = []
        for token in tokens:
            if token == self.end:
                found.append([])
            else:
                found[-1].append(token)
        return [self.library.decode(document) for document in found]


def width(vocabulary: int) -> np.dtype:
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


def flat(encoded: Iterable[list[int]], vocabulary: int) -> np.ndarray:
    """Documents' tokens one after another, [N]."""
    return np.fromiter(itertools.chain.from_iterable(encoded), dtype=width(vocabulary))


@dataclass(frozen=True)
class Packed:
    """A packed text on disk. about: what NAME.json says."""

    folder: Path
    name: str
    about: dict[str, Any]

    @property
    def bin(self) -> Path:
        return self.folder / f"{self.name}.bin"

    def tokens(self) -> np.ndarray:
        """[N], mapped into memory."""
        return np.memmap(self.bin, dtype=np.dtype(self.about["dtype"]), mode="r")

    def ids(self) -> set[bytes]:
        """By which its documents are known."""
        data = (self.folder / f"{self.name}.ids").read_bytes()
        return {data[start : start + 8] for start in range(0, len(data), 8)}

    def is_whole(self) -> bool:
        """Whether its tokens are those that NAME.json tells of: reads all of them."""
        with self.bin.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.about["sha256"]


def fingerprint(ids: Iterable[bytes]) -> str:
    """Of a set of documents, whatever their order."""
    return hashlib.sha256(b"".join(sorted(ids))).hexdigest()


def opened(folder: Path, name: str) -> Packed | None:
    """A packed text that is there; None if it is not. Raises ValueError if it is truncated."""
    said = folder / f"{name}.json"
    if not said.is_file():
        return None
    packed = Packed(folder, name, json.loads(said.read_text()))
    num_bytes = packed.about["num_tokens"] * np.dtype(packed.about["dtype"]).itemsize
    for path, wanted in ((packed.bin, num_bytes), (folder / f"{name}.ids", 8 * packed.about["num_documents"])):
        found = path.stat().st_size if path.is_file() else 0
        if found != wanted:
            raise ValueError(
                f"{path}: wanted {wanted:,} bytes, found {found:,}: truncated. Delete {said}: the text is packed anew."
            )
    return packed


def pack(
    folder: Path,
    name: str,
    documents: Callable[[], Iterable[str]],
    tokenizer: Tokenizer,
    *,
    sources: list[list],
    limit: int,
    leave_out: set[bytes] = frozenset(),
    say: Callable[[str], object],
) -> Packed:
    """Tokenise documents into a packed text, up to the one that reaches `limit` tokens; nothing is done where that was done.

    sources: what they come from, [name, bytes] each.  leave_out: documents that must not be in it.
    """
    made_of = {
        "tokenizer": tokenizer.sha256,
        "sources": sources,
        "limit": limit,
        "left_out": fingerprint(leave_out),
    }
    there = opened(folder, name)
    if there is not None and there.about["made_of"] == made_of:
        say(
            f"{there.bin}: already there, {there.about['num_tokens']:,} tokens of {there.about['num_documents']:,} documents"
        )
        return there
    counts, hasher, dtype = (
        {"num_tokens": 0, "num_documents": 0, "num_left_out": 0},
        hashlib.sha256(),
        width(tokenizer.vocabulary),
    )
    (folder / f"{name}.json").unlink(missing_ok=True)
    with whole(folder / f"{name}.bin") as file, whole(folder / f"{name}.ids") as ids:

        def wanted() -> Iterator[str]:
            for document in documents():
                known = identity(document)
                if known in leave_out:
                    counts["num_left_out"] += 1
                    continue
                kept.append(known)
                yield document

        kept: list[bytes] = []
        for encoded in tokenizer.encode(wanted()):
            data = np.asarray(encoded, dtype=dtype).tobytes()
            file.write(data)
            hasher.update(data)
            ids.write(kept[counts["num_documents"]])
            counts["num_documents"] += 1
            counts["num_tokens"] += len(encoded)
            if counts["num_tokens"] >= limit:
                break
    about = {"made_of": made_of, **counts, "dtype": dtype.str, "sha256": hasher.hexdigest()}
    about |= {"vocabulary": tokenizer.vocabulary, "end": tokenizer.end}
    with whole(folder / f"{name}.json") as file:
        file.write(json.dumps(about, indent=1, sort_keys=True).encode() + b"\n")
    say(f"{folder / name}.bin: {about['num_tokens']:,} tokens of {about['num_documents']:,} documents")
    return Packed(folder, name, about)


def as_rows(tokens_N: np.ndarray, end: int, length: int, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Documents as rows: (tokens [R, T + 1] int64, number of targets [R]), the longest first; short rows are filled with `end`.

    A row is T + 1 tokens of one document, of which the first is only read: the end token at the document's beginning, then the last
    one of the row before. Every other token of a document is a target exactly once.  limit: whole documents until so many tokens.
    """
    starts = np.flatnonzero(tokens_N == end)
    stops = np.append(starts[1:], len(tokens_N))
    rows = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        if limit is not None and start >= limit:
            break
        rows += [(first, min(first + length + 1, stop)) for first in range(start, stop - 1, length)]
    rows.sort(key=lambda row: row[0] - row[1])
    filled = np.full((len(rows), length + 1), end, dtype=np.int64)
    for row, (first, stop) in zip(filled, rows, strict=True):
        row[: stop - first] = tokens_N[first:stop]
    return filled, np.array([stop - first - 1 for first, stop in rows], dtype=np.int64)
