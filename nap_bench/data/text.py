"""Documents, one after another: CPython's help topics, C4's shards, and the standard files of the sets that evaluation reads.

Standard library only. A document is a string; nothing is cleaned but what is said here.

    data_dir/c4/en/c4-train.00000-of-01024.json.gz    shards of allenai/c4, JSON lines; c4-validation.* beside them
    data_dir/pile/val.jsonl                           the Pile's validation or test set, unpacked (or gzipped)
    data_dir/wikitext-103/wiki.test.tokens            WikiText's test set; WikiText-2's is the same text, smaller vocabulary
    data_dir/lambada/lambada_test.jsonl               LAMBADA's test set as OpenAI processed it
    data_dir/siqa/dev.jsonl, dev-labels.lst           Social IQa's development set
    data_dir/piqa/valid.jsonl, valid-labels.lst       PIQA's validation set
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

UNDERLINE = re.compile(r"^([*=\-~\"^])\1{2,}$")
"""A heading's second line in the help topics."""
HELD_OUT_IN = 4
"""One document in so many of the help topics is held out, by its hash."""
SHARD_FOLDERS = ("c4/en", "c4", "en", ".")
"""Where under data_dir C4's shards are looked for."""
LAMBADA_SHA256 = "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226"
"""The checksum by which evaluation harnesses know the file."""


def identity(document: str) -> bytes:
    """Eight bytes that two documents share only if they are the same words (or by a chance of 2^-64)."""
    return hashlib.blake2b(" ".join(document.split()).encode(), digest_size=8).digest()


# CPython's help topics


def topics() -> tuple[list[str], list[str]]:
    """(training, held out) documents: the sections of what `help()` prints about Python's language, in this Python's wording.

    Topics quote each other: a paragraph that stood in an earlier section is left out, so that no text stands on both sides.
    About 0.4 MB, the same for every process of one Python; another version of Python words some of them differently.
    """
    from pydoc_data.topics import topics as by_name

    seen: set[bytes] = set()
    sides: tuple[list[str], list[str]] = ([], [])
    for name in sorted(by_name):
        for section in _sections(by_name[name]):
            new = [p for p in section if len(p.split()) > 3 and not (identity(p) in seen or seen.add(identity(p)))]
            document = "\n\n".join(new)
            if len(document) >= 200:
                sides[identity(document)[0] % HELD_OUT_IN == 0].append(document)
    return sides


def _sections(topic: str) -> Iterator[list[str]]:
    """Paragraphs of each section; a heading is a paragraph of its own and begins one."""
    section: list[str] = []
    for paragraph in re.split(r"\n\s*\n", topic.strip()):
        if any(UNDERLINE.match(line) for line in paragraph.splitlines()) and section:
            yield section
            section = []
        section.append(paragraph)
    yield section


# C4


def shards(data_dir: str | Path | None, split: str) -> list[Path]:
    """C4's shards of a split ("train" or "validation") under data_dir, by name; none if there are none."""
    for folder in SHARD_FOLDERS if data_dir is not None else ():
        if found := sorted(Path(data_dir, folder).glob(f"c4-{split}.*json.gz")):
            return found
    return []


def of_shard(path: Path) -> Iterator[str]:
    """The documents of one shard. Raises ValueError naming a truncated or damaged one."""
    yield from (row["text"] for row in rows(path, ("text",)))


def streamed(split: str) -> Iterator[str]:
    """C4's documents of a split, over the network, through the `datasets` library. Raises ValueError without it."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(
            "C4: found no shards in data_dir, and streaming them wants the datasets library: pip install datasets, or put "
            "shards of allenai/c4 into DATA_DIR/c4/en (c4-train.00000-of-01024.json.gz and so on)."
        ) from None
    for row in load_dataset("allenai/c4", "en", split=split, streaming=True):
        yield row["text"]


# Sets that evaluation reads


def rows(path: Path, keys: Sequence[str]) -> Iterator[dict]:
    """The objects of a file of JSON lines, gzipped or not, each with these keys. Raises ValueError naming file and line."""
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for line in file:
                number += 1
                row = json.loads(line)
                if missing := [key for key in keys if key not in row]:
                    raise ValueError(f"no {', '.join(missing)} in it")
                yield row
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(
            f"Cannot read {path} after line {number}: {error} ({path.stat().st_size:,} bytes: truncated or damaged). Fetch it "
            f"again."
        ) from error
    if not number:
        raise ValueError(f"{path} is empty. Fetch it again.")


def _answered(questions: Path, labels: Path, first: int, text: Callable[[dict, int], str]) -> Iterator[str]:
    """Questions with their right answers. first: the label of the first answer."""
    chosen = labels.read_text().split()
    asked = list(rows(questions, ()))
    if len(asked) != len(chosen):
        raise ValueError(
            f"{questions} has {len(asked)} questions, {labels} has {len(chosen)} labels: one is truncated. Fetch both again."
        )
    for row, label in zip(asked, chosen, strict=True):
        yield text(row, int(label) - first)


def siqa(questions: Path, labels: Path) -> Iterator[str]:
    return _answered(questions, labels, 1, lambda r, i: f"{r['context']} {r['question']} {r['answer' + 'ABC'[i]]}")


def piqa(questions: Path, labels: Path) -> Iterator[str]:
    return _answered(questions, labels, 0, lambda r, i: f"{r['goal']} {r[('sol1', 'sol2')[i]]}")


def lambada(path: Path) -> Iterator[str]:
    """Passages. Raises ValueError if the file is not the one that harnesses use."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != LAMBADA_SHA256:
        raise ValueError(f"{path}: wanted sha256 {LAMBADA_SHA256}, found {found}. Fetch lambada_test.jsonl again.")
    yield from (row["text"] for row in rows(path, ("text",)))


def pile(path: Path) -> Iterator[str]:
    yield from (row["text"] for row in rows(path, ("text",)))


def wikitext(path: Path) -> Iterator[str]:
    """Articles: each begins with a line ` = Title = `."""
    article: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.match(r"^ = [^=].* = *$", line):
            if text := "\n".join(article).strip():
                yield text
            article = []
        article.append(line)
    if not (text := "\n".join(article).strip()):
        raise ValueError(f"{path} is empty. Fetch it again.")
    yield text


class EvaluationSet(NamedTuple):
    """choices: sets of files under data_dir, the preferred first.  read: those files -> documents."""

    choices: tuple[tuple[str, ...], ...]
    read: Callable[..., Iterator[str]]

    def find(self, data_dir: str | Path) -> list[Path] | None:
        """The files of the first choice that is there whole, or None."""
        for names in self.choices:
            paths = [Path(data_dir, name) for name in names]
            if all(path.is_file() for path in paths):
                return paths
        return None


EVALUATION_SETS = {
    "pile": EvaluationSet(tuple((f"pile/{n}.jsonl{z}",) for n in ("val", "test") for z in ("", ".gz")), pile),
    "wikitext": EvaluationSet(
        (
            ("wikitext-103-raw/wiki.test.raw",),
            ("wikitext-103/wiki.test.tokens",),
            ("wikitext-2-raw/wiki.test.raw",),
            ("wikitext-2/wiki.test.tokens",),
            ("wikitext-2/test.txt",),
        ),
        wikitext,
    ),
    "lambada": EvaluationSet((("lambada/lambada_test.jsonl",),), lambada),
    "siqa": EvaluationSet((("siqa/dev.jsonl", "siqa/dev-labels.lst"),), siqa),
    "piqa": EvaluationSet((("piqa/valid.jsonl", "piqa/valid-labels.lst"),), piqa),
}
"""Those of Table 1 besides C4's own validation set, in its order."""
