"""C4 (Raffel et al. 2020), `en`, and the other sets of Table 1: tokenised once and packed, by `nap-bench data c4`.

Shards of allenai/c4 are read where they lie in data_dir (see text.py); where there are none, documents are streamed through the
`datasets` library. A tokenizer that lies in data_dir/c4/tokenizer.json is used, any of the `tokenizers` library with VOCABULARY
tokens; else one is trained on the first documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

from nap_bench.data import text
from nap_bench.data.download import say_line, whole
from nap_bench.data.tokens import Corpus, Packed, Tokenizer, fingerprint, opened, pack, train_tokenizer

VOCABULARY = 32_000
"""T5's, which was made for C4; the paper's is not given."""
TRAIN_TOKENS = 30_000 * 128 * 512 + 1
"""Of the paper's run, each read once: 30,000 updates, 128 strings, 512 tokens (T5's length on C4; the paper's is not given)."""
EVALUATION_TOKENS = 2_000_000
"""Of each set: a per-token accuracy is then known to 0.04 points, and evaluation takes a minute at the paper's size."""
TOKENIZER_DOCUMENTS = 100_000
"""The training documents, from the first, that a tokenizer is trained on."""
FOLDER = "c4/packed"
TRAIN, OWN = "train", "c4"
ADVICE = "`nap-bench data c4` packs what lies in data_dir, or streams it"


def download(data_dir: str | Path, *, say: Callable[[str], object] = say_line) -> dict[str, Path]:
    """Train a tokenizer and pack every text, unless that is done; returns what `verify` does.

    Training documents that stand in a set that evaluation reads are left out. Sets whose files are not there are named and left out
    of evaluation. Raises ValueError naming a damaged file.
    """
    root, folder = Path(data_dir), Path(data_dir, FOLDER)
    found = {split: text.shards(root, split) for split in ("train", "validation")}
    documents = {split: partial(_documents, found[split], split) for split in found}
    sources = {split: _sources(found[split]) or [[f"allenai/c4 en {split}, streamed", 0]] for split in found}
    tokenizer = _tokenizer(root, documents["train"], say)
    sets = {OWN: (documents["validation"], sources["validation"])}
    for name, evaluation_set in text.EVALUATION_SETS.items():
        paths = evaluation_set.find(root)
        if paths is None:
            say(f"{name}: no {' or '.join(names[0] for names in evaluation_set.choices)}: evaluation goes without it")
            for suffix in ("json", "bin", "ids"):  # packed before: its documents are no longer left out of training
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)
        else:
            sets[name] = (partial(evaluation_set.read, *paths), _sources(paths))
    known: set[bytes] = set()
    for name, (read, made_of) in sets.items():
        known |= pack(folder, name, read, tokenizer, sources=made_of, limit=EVALUATION_TOKENS, say=say).ids()
    how = dict(sources=sources["train"], limit=TRAIN_TOKENS, leave_out=known)
    pack(folder, TRAIN, documents["train"], tokenizer, **how, say=say)
    return verify(root)


def _documents(shards: list[Path], split: str) -> Iterator[str]:
    return chain.from_iterable(map(text.of_shard, shards)) if shards else text.streamed(split)


def _sources(paths: Iterable[Path]) -> list[list]:
    return [[path.name, path.stat().st_size] for path in paths]


def _tokenizer(root: Path, documents: Callable[[], Iterator[str]], say: Callable[[str], object]) -> Tokenizer:
    """The one given in data_dir, the one trained before, or one trained now."""
    given, trained = root / "c4" / "tokenizer.json", root / FOLDER / "tokenizer.json"
    if not given.is_file() and not trained.is_file():
        made = train_tokenizer(islice(documents(), TOKENIZER_DOCUMENTS), VOCABULARY)
        with whole(trained) as file:
            file.write(made.encode())
        say(f"{trained}: trained on the first documents")
    path = given if given.is_file() else trained
    tokenizer = Tokenizer(path.read_text(), str(path))
    if tokenizer.vocabulary != VOCABULARY:
        raise ValueError(
            f"C4: wanted a tokenizer of {VOCABULARY} tokens, {path} has {tokenizer.vocabulary}. Replace it, or remove it: one is "
            f"trained."
        )
    say(f"{path}: sha256 {tokenizer.sha256}")
    return tokenizer


def _texts(data_dir: str | Path | None) -> dict[str, Packed]:
    """Name -> packed text: training, C4's own held-out set, then the sets that are there."""
    if data_dir is None:
        raise ValueError(f"C4 wants a data_dir: set it in the config; {ADVICE}.")
    folder = Path(data_dir, FOLDER)
    found = {name: opened(folder, name) for name in (TRAIN, OWN, *text.EVALUATION_SETS)}
    for name in (TRAIN, OWN):
        if found[name] is None:
            raise ValueError(f"C4: {folder / name}.json is missing; {ADVICE}.")
    packed = {name: text_ for name, text_ in found.items() if text_ is not None}
    tokenizers = {text_.about["made_of"]["tokenizer"] for text_ in packed.values()}
    if len(tokenizers) > 1:
        raise ValueError(f"C4: the texts in {folder} were packed with different tokenizers; {ADVICE} anew.")
    evaluated = set().union(*(text_.ids() for name, text_ in packed.items() if name != TRAIN))
    if packed[TRAIN].about["made_of"]["left_out"] != fingerprint(evaluated):
        raise ValueError(
            f"C4: {folder / TRAIN}.bin was packed beside other evaluation sets than lie there: it may hold their documents; "
            f"{ADVICE} anew."
        )
    return packed


def verify(data_dir: str | Path | None) -> dict[str, Path]:
    """Name -> packed file, all there and read whole. Raises ValueError naming what is missing or damaged, and what to do."""
    texts = _texts(data_dir)
    for name, packed in texts.items():
        if not packed.is_whole():
            raise ValueError(
                f"{packed.bin}: other tokens than were packed: damaged. Delete {packed.folder / name}.json; {ADVICE} anew."
            )
    return {name: packed.bin for name, packed in texts.items()}


def load(data_dir: str | Path | None) -> Corpus:
    """Raises ValueError as `verify`, but reads no tokens."""
    packed = _texts(data_dir)
    train = packed.pop(TRAIN)
    about = {"tokenizer": train.about["made_of"]["tokenizer"], TRAIN: train.about["sha256"]}
    about |= {name: text_.about["sha256"] for name, text_ in packed.items()}
    held_out = {name: text_.tokens() for name, text_ in packed.items()}
    return Corpus(train.tokens(), held_out, train.about["end"], train.about["vocabulary"], about)
