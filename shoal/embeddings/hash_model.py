"""Feature hashing: a deterministic embedder for tests. It knows words, not meaning.

Guarantee: the same text gives the same vector in every process and release; texts that share words are closer
than texts that don't. It is never a fallback for a model that fails to load.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise

import numpy as np

from shoal.embeddings.texts import Kind, check_texts
from shoal.errors import BadDocument, DeadReason
from shoal.records import Matrix

_WORD = re.compile(r"\w+|[^\w\s]")


def count_tokens(text: str) -> int:
    """Words and punctuation marks."""
    return len(_WORD.findall(text))


class HashModel:
    """An EmbeddingModel: signed counts of words and word pairs, hashed into `width` places and normalised."""

    max_input_tokens = 256
    batch_inputs_max = 64
    batch_tokens_max = 16_384
    concurrency = 1
    limiter = None

    def __init__(self, width: int = 64) -> None:
        self.name = f"hash:{width}"
        self.width = width

    def count_tokens(self, text: str) -> int:
        return count_tokens(text)

    def embed(self, texts: Sequence[str], kind: Kind = "document") -> Matrix:
        """Vectors of `texts`, shape (texts, width). Raises BadDocument(EMBEDDING_REJECTED)."""
        vectors = np.zeros((len(texts), self.width), np.float32)
        for row, text in zip(vectors, check_texts(texts, kind), strict=True):
            words = _WORD.findall(text.lower())
            if len(words) > self.max_input_tokens and kind == "document":
                raise BadDocument(
                    DeadReason.EMBEDDING_REJECTED,
                    f"text of {len(words)} tokens; {self.name} takes {self.max_input_tokens}",
                )
            words = words[: self.max_input_tokens]
            for feature in (*words, *map(" ".join, pairwise(words))):
                digest = int.from_bytes(blake2b(feature.encode(), digest_size=8).digest(), "little")
                row[digest % self.width] += 1.0 if digest >> 63 else -1.0
            if not row.any():  # no word at all, or features that cancel out
                row[0] = 1.0
            row /= np.linalg.norm(row)
        return vectors

    def close(self) -> None:
        """Nothing to give back."""
