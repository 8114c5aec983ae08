"""Texts and tokens: documents of each source, tokenisers and their hashes, packing once, evaluation kept apart, clear errors."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from nap_bench import cli
from nap_bench.data import c4, text, tokens, topics

WORDS = "the cat sat on a mat while two dogs ran around old trees near red barns under grey skies".split()


def document(number: int, length: int = 40) -> str:
    draw = np.random.default_rng(number)
    return " ".join(draw.choice(WORDS, length)) + f" number {number}."


def shard(path: Path, documents: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": d, "timestamp": "", "url": ""}) for d in documents]
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


TRAIN, VALIDATION = [document(n) for n in range(60)], [document(n) for n in range(100, 110)]


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """Two shards to train on, one to validate, and four of the other sets, in the layout of their downloads."""
    monkeypatch.setattr(c4, "VOCABULARY", 300)
    shard(tmp_path / "c4" / "en" / "c4-train.00000-of-01024.json.gz", TRAIN[:40])
    shard(tmp_path / "c4" / "en" / "c4-train.00001-of-01024.json.gz", TRAIN[40:])
    shard(tmp_path / "c4" / "en" / "c4-validation.00000-of-00008.json.gz", VALIDATION)
    (tmp_path / "pile").mkdir()
    (tmp_path / "pile" / "val.jsonl").write_text(
        json.dumps({"text": document(7)}) + "\n"
    )  # stands in C4's training text
    for name, row, labels in (
        ("siqa", {"context": "c", "question": "q?", "answerA": "a", "answerB": "b", "answerC": "d"}, "3\n"),
        ("piqa", {"goal": "g", "sol1": "one", "sol2": "two"}, "0\n"),
    ):
        (tmp_path / name).mkdir()
        part = {"siqa": "dev", "piqa": "valid"}[name]
        (tmp_path / name / f"{part}.jsonl").write_text(json.dumps(row) + "\n")
        (tmp_path / name / f"{part}-labels.lst").write_text(labels)
    (tmp_path / "wikitext-103").mkdir()
    (tmp_path / "wikitext-103" / "wiki.test.tokens").write_text(
        " \n = One = \n \n first words \n \n = = Part = = \n more \n = Two = \n second words \n"
    )
    return tmp_path


def packed(data_dir) -> tuple[dict[str, Path], list[str]]:
    said: list[str] = []
    return c4.download(data_dir, say=said.append), said


def documents_of(data_dir, name: str) -> list[str]:
    tokenizer = tokens.Tokenizer((data_dir / c4.FOLDER / "tokenizer.json").read_text(), "test")
    return tokenizer.decode(tokens.opened(data_dir / c4.FOLDER, name).tokens().tolist())


def test_packed_tokens_give_the_documents_back(data_dir):
    files, _ = packed(data_dir)
    assert set(files) == {"train", "c4", "pile", "wikitext", "siqa", "piqa"}
    assert documents_of(data_dir, "train") == [d for d in TRAIN if d != document(7)]
    assert documents_of(data_dir, "c4") == VALIDATION
    assert documents_of(data_dir, "siqa") == ["c q? d"] and documents_of(data_dir, "piqa") == ["g one"]
    assert documents_of(data_dir, "wikitext") == [
        "= One = \n \n first words \n \n = = Part = = \n more",
        "= Two = \n second words",
    ]


def test_no_document_is_trained_on_and_evaluated(data_dir):
    packed(data_dir)
    texts = {name: tokens.opened(data_dir / c4.FOLDER, name) for name in ("train", "c4", "pile")}
    ids = {name: text_.ids() for name, text_ in texts.items()}
    assert {len(found) for found in ids.values()} == {59, 10, 1}
    assert not ids["train"] & (ids["c4"] | ids["pile"])
    assert texts["train"].about["num_left_out"] == 1
    assert text.identity(document(7)) in ids["pile"]


def test_nothing_is_tokenised_twice_and_what_changed_is(data_dir, monkeypatch):
    packed(data_dir)
    folder = data_dir / c4.FOLDER
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(tokens.Tokenizer, "encode", lambda *a: pytest.fail("tokenised again"))
    packed(data_dir)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    monkeypatch.undo()
    monkeypatch.setattr(c4, "VOCABULARY", 300)
    shard(data_dir / "c4" / "en" / "c4-train.00002-of-01024.json.gz", [document(500)])
    _, said = packed(data_dir)
    assert documents_of(data_dir, "train")[-1] == document(500)
    assert sum("already there" in line for line in said) == 5


def test_the_command_of_the_workflow_packs_and_says_what_it_made(data_dir, capsys, monkeypatch):
    done = data_dir / "results" / "c4.json"
    assert cli.main(["data", "c4", "--data-dir", str(data_dir), "--done", str(done)]) == 0
    assert json.loads(done.read_text()) == {
        "dataset": "c4",
        "files": ["c4", "pile", "piqa", "siqa", "train", "wikitext"],
    }
    assert "lambada: no lambada/lambada_test.jsonl: evaluation goes without it" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert cli.main(["data", "c4", "--data-dir", str(data_dir / "nowhere"), "--done", str(done)]) == 2


def test_a_limit_ends_with_the_document_that_reaches_it(data_dir, monkeypatch):
    monkeypatch.setattr(c4, "TRAIN_TOKENS", 200)
    packed(data_dir)
    corpus = c4.load(data_dir)
    last = np.flatnonzero(corpus.train == corpus.end)[-1]
    assert last < 200 <= len(corpus.train)


def test_what_is_loaded_carries_the_hashes_of_tokenizer_and_texts(data_dir):
    packed(data_dir)
    corpus = c4.load(data_dir)
    own = tokens.Tokenizer((data_dir / c4.FOLDER / "tokenizer.json").read_text(), "test")
    assert corpus.about["tokenizer"] == own.sha256 and corpus.vocabulary == own.vocabulary == 300
    assert set(corpus.about) == {"tokenizer", "train", "c4", "pile", "wikitext", "siqa", "piqa"}
    assert next(iter(corpus.evaluation)) == "c4"
    assert all(tokens.opened(data_dir / c4.FOLDER, name).is_whole() for name in ("train", "c4", "pile"))
    assert corpus.train.dtype == np.uint16 and isinstance(corpus.train, np.memmap)


def test_a_tokenizer_of_ones_own_is_used_and_one_of_another_vocabulary_refused(data_dir):
    given = data_dir / "c4" / "tokenizer.json"
    given.write_text(tokens.train_tokenizer(VALIDATION, 300))
    packed(data_dir)
    assert not (data_dir / c4.FOLDER / "tokenizer.json").exists()
    assert c4.load(data_dir).about["tokenizer"] == tokens.Tokenizer(given.read_text(), "test").sha256
    given.write_text(tokens.train_tokenizer(TRAIN, 290))
    with pytest.raises(ValueError, match="wanted a tokenizer of 300 tokens, .*tokenizer.json has 290"):
        packed(data_dir)
    given.write_text("{}")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        packed(data_dir)


def test_texts_of_two_tokenizers_are_refused(data_dir):
    packed(data_dir)
    said = data_dir / c4.FOLDER / "pile.json"
    about = json.loads(said.read_text())
    about["made_of"]["tokenizer"] = "0" * 64
    said.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="packed with different tokenizers"):
        c4.load(data_dir)


def test_a_set_whose_files_went_away_is_not_evaluated_on_a_text_that_holds_it(data_dir):
    packed(data_dir)
    folder = data_dir / c4.FOLDER
    kept = {path: path.read_bytes() for path in folder.glob("pile.*")}
    (data_dir / "pile" / "val.jsonl").unlink()
    given = data_dir / "c4" / "tokenizer.json"  # another one: what is left of the old must not stand in the way
    given.write_text(tokens.train_tokenizer(VALIDATION, 300))
    packed(data_dir)
    assert set(c4.load(data_dir).evaluation) == {"c4", "wikitext", "siqa", "piqa"} and len(kept) == 3
    assert text.identity(document(7)) in tokens.opened(folder, "train").ids()
    for path, content in kept.items():
        path.write_bytes(content)
    said = json.loads((folder / "pile.json").read_text())
    said["made_of"]["tokenizer"] = tokens.Tokenizer(given.read_text(), "test").sha256
    (folder / "pile.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="train.bin was packed beside other evaluation sets than lie there"):
        c4.load(data_dir)


def test_packed_tokens_that_changed_are_found_by_whoever_verifies(data_dir):
    packed(data_dir)
    path = data_dir / c4.FOLDER / "train.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    for verify in (c4.verify, packed):
        with pytest.raises(ValueError, match="train.bin: other tokens than were packed: damaged. Delete .*train.json"):
            verify(data_dir)
    (data_dir / c4.FOLDER / "train.json").unlink()
    assert "train" in packed(data_dir)[0]


def test_a_tokenizer_that_truncates_and_pads_does_neither_here():
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(tokens.train_tokenizer(TRAIN, 300))
    made.enable_truncation(3)
    made.enable_padding(length=500)
    tokenizer = tokens.Tokenizer(made.to_str(), "test")
    assert tokenizer.decode(tokens.flat(tokenizer.encode(TRAIN[:3]), 300).tolist()) == TRAIN[:3]


def test_a_damaged_shard_is_named(data_dir):
    path = data_dir / "c4" / "en" / "c4-train.00001-of-01024.json.gz"
    content = bytearray(path.read_bytes())
    content[10] = 0xFF  # a kind of block that deflate does not have
    path.write_bytes(content)
    with pytest.raises(ValueError, match="c4-train.00001-of-01024.json.gz after line .*truncated or damaged"):
        packed(data_dir)


def test_a_truncated_shard_is_named_with_what_to_do(data_dir):
    path = data_dir / "c4" / "en" / "c4-train.00001-of-01024.json.gz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        ValueError, match="c4-train.00001-of-01024.json.gz after line .*truncated or damaged.*Fetch it again"
    ):
        packed(data_dir)
    assert not (data_dir / c4.FOLDER / "train.json").exists()


def test_a_line_without_text_names_its_file(data_dir):
    (data_dir / "pile" / "val.jsonl").write_text('{"words": 1}\n')
    with pytest.raises(ValueError, match="val.jsonl after line 1: no text in it"):
        packed(data_dir)


def test_labels_that_do_not_match_their_questions_are_refused(data_dir):
    (data_dir / "siqa" / "dev-labels.lst").write_text("3\n1\n")
    with pytest.raises(ValueError, match="has 1 questions, .*dev-labels.lst has 2 labels"):
        packed(data_dir)


def test_another_lambada_is_refused(data_dir):
    (data_dir / "lambada").mkdir()
    (data_dir / "lambada" / "lambada_test.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ValueError, match="wanted sha256 4aa8d02c"):
        packed(data_dir)


def test_packed_tokens_that_are_truncated_or_missing_say_what_to_do(data_dir):
    packed(data_dir)
    path = data_dir / c4.FOLDER / "train.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match=f"wanted {len(whole):,} bytes, found {len(whole) - 2:,}: truncated. Delete"):
        c4.load(data_dir)
    path.write_bytes(whole)
    ids = (data_dir / c4.FOLDER / "c4.ids").rename(data_dir / "c4.ids")
    with pytest.raises(ValueError, match="c4.ids: wanted 80 bytes, found 0: truncated. Delete .*c4.json"):
        c4.load(data_dir)
    ids.rename(data_dir / c4.FOLDER / "c4.ids")
    (data_dir / c4.FOLDER / "train.json").unlink()
    with pytest.raises(ValueError, match="train.json is missing; `nap-bench data c4`"):
        c4.load(data_dir)
    with pytest.raises(ValueError, match="C4 wants a data_dir"):
        c4.load(None)


def test_without_shards_c4_is_streamed(tmp_path, monkeypatch):
    asked = []

    def load_dataset(path, name, *, split, streaming):
        asked.append((path, name, split, streaming))
        return ({"text": d, "url": ""} for d in {"train": TRAIN, "validation": VALIDATION}[split])

    monkeypatch.setattr(c4, "VOCABULARY", 300)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    packed(tmp_path)
    assert documents_of(tmp_path, "train") == TRAIN and documents_of(tmp_path, "c4") == VALIDATION
    assert ("allenai/c4", "en", "train", True) in asked


def test_without_shards_and_library_both_ways_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets, or put shards of allenai/c4 into DATA_DIR/c4/en"):
        packed(tmp_path)


def test_a_document_that_spells_the_end_token_is_one_document():
    tokenizer = tokens.Tokenizer(tokens.train_tokenizer(TRAIN, 300), "test")
    odd = ["before <|endoftext|> after", "caf\u00e9 \U0001f600\n\ttabs"]
    found = tokens.flat(tokenizer.encode(odd), 300)
    assert (found == tokenizer.end).sum() == 2 and tokenizer.decode(found.tolist()) == odd


def test_a_tokenizer_is_the_same_in_another_process():
    code = "from nap_bench.data import topics; print(topics.load(300).about)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == str(topics.load(300).about)


def test_a_text_that_gives_too_few_tokens_is_refused():
    with pytest.raises(ValueError, match="400 tokens was wanted, the text gives 2"):
        tokens.train_tokenizer(["a b"], 400)


def test_the_help_topics_share_no_paragraph_between_training_and_evaluation():
    train, held_out = text.topics()
    paragraphs = [{text.identity(p) for d in side for p in d.split("\n\n")} for side in (train, held_out)]
    assert not paragraphs[0] & paragraphs[1]
    assert 0.1 < sum(map(len, held_out)) / sum(map(len, train)) < 0.5
    assert sum(map(len, train)) > 200_000 and len(held_out) > 20
    grams = [
        {tuple(words[i : i + 13]) for d in side for words in [d.split()] for i in range(len(words) - 12)}
        for side in (train, held_out)
    ]
    assert len(grams[0] & grams[1]) < 0.01 * len(grams[1])


def test_every_token_of_a_document_but_its_end_is_a_target_once():
    draw = np.random.default_rng(0)
    documents = [draw.integers(1, 50, size) for size in (1, 3, 4, 5, 8, 9, 17, 0)]
    tokens_N = np.concatenate([np.concatenate([[0], d]) for d in documents]).astype(np.uint16)
    rows, num_targets_R = tokens.as_rows(tokens_N, 0, 4)
    assert rows.shape[1] == 5 and (np.diff(num_targets_R) <= 0).all()
    targets = sorted(t for row, n in zip(rows.tolist(), num_targets_R, strict=True) for t in row[1 : n + 1])
    assert targets == sorted(int(t) for d in documents for t in d)
    pairs = {
        (a, b)
        for row, n in zip(rows.tolist(), num_targets_R, strict=True)
        for a, b in zip(row, row[1 : n + 1], strict=False)
    }
    assert pairs == {(int(a), int(b)) for d in documents for a, b in zip([0, *d], d, strict=False)}
    few, _ = tokens.as_rows(tokens_N, 0, 4, limit=7)
    assert len(few) == 3  # documents that begin at 0, 2 and 6


def test_the_real_files_are_read(real_data_dir, tmp_path):
    found = {name: s.find(real_data_dir) for name, s in text.EVALUATION_SETS.items()}
    counts = {name: sum(1 for _ in text.EVALUATION_SETS[name].read(*paths)) for name, paths in found.items() if paths}
    assert counts.items() >= {"lambada": 5153, "siqa": 1954, "piqa": 1838}.items()
    (path,) = text.shards(real_data_dir, "validation")
    assert sum(1 for _ in text.of_shard(path)) == 128
