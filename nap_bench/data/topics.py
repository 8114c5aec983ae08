"""CPython's own help topics: some 0.4 MB of English about Python, embedded in every Python.

Tokenised by a small BPE tokenizer that is trained on the training documents. In the process, in half a second: the same text gives
the same tokens. The wording is that of the Python that runs, so its hash goes with every result (`about`).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from nap_bench.data.text import topics
from nap_bench.data.tokens import Corpus, Tokenizer, flat, train_tokenizer


@lru_cache(maxsize=2)
def load(vocabulary: int) -> Corpus:
    """Raises ValueError if the text gives no tokenizer of so many tokens."""
    train, held_out = topics()
    tokenizer = Tokenizer(train_tokenizer(train, vocabulary), "trained on CPython's help topics")
    train_N, held_out_N = (flat(tokenizer.encode(documents), vocabulary) for documents in (train, held_out))
    about = {
        "tokenizer": tokenizer.sha256,
        "train": hashlib.sha256(train_N.tobytes()).hexdigest(),
        "topics": hashlib.sha256(held_out_N.tobytes()).hexdigest(),
    }
    return Corpus(train_N, {"topics": held_out_N}, tokenizer.end, tokenizer.vocabulary, about)
