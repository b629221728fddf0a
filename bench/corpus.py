"""Generated documents whose vectors behave like embeddings: clusters of very unequal size, not a uniform cloud.

Uniform vectors have no near neighbours, so that any index looks bad on them, and equal round clusters make any
look good. Here (as in the measurements that Shoal's defaults come from) cluster sizes follow a power law, centres
lie in a subspace that all share, each cluster is stretched along directions of its own, and everything is around a
common mean, as the embeddings of one field are. The same seed gives the same documents, in whatever order they are
asked for. Texts are words by Zipf's law.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from shoal.records import (
    SCRAPER_COLLECTION,
    Announcement,
    ApiTraits,
    Chunk,
    Embedded,
    Extraction,
    Fetched,
    Matrix,
    Position,
)

MODEL = "bench"
BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
TOPIC_RANK, OWN_RANK, DIRECTIONS = 64, 24, 256
SPREAD, RESIDUAL, MEAN = 0.55, 0.45, 0.6  # norms beside a centre's 1
SENTENCES, VOCABULARY = 4_000, 20_000
SOURCES = ("NYISO", "PJM", "ERCOT", "CAISO", "MISO", "ISONE", "SPP", "ENTSOE")


class ClusteredVectors:
    """Draws of unit vectors, shape (count, width), float32."""

    def __init__(self, width: int, clusters: int = 1_000, seed: int = 1) -> None:
        draw = np.random.default_rng(seed)
        topics = draw.normal(size=(TOPIC_RANK, width)) / np.sqrt(width)
        centres = draw.normal(size=(clusters, TOPIC_RANK)) / np.sqrt(TOPIC_RANK) @ topics
        mean = draw.normal(size=width)
        self._centres = _unit(centres) + MEAN * mean / np.linalg.norm(mean)
        self._directions = _unit(draw.normal(size=(DIRECTIONS, width))).astype(np.float32)
        self._own = np.array([draw.choice(DIRECTIONS, OWN_RANK, replace=False) for _ in range(clusters)])
        scales = 1 / np.sqrt(1 + np.arange(OWN_RANK))
        self._scales = (SPREAD * scales / np.linalg.norm(scales)).astype(np.float32)
        sizes = (1 + np.arange(clusters)) ** -0.8
        self._chances = np.cumsum(sizes / sizes.sum())
        self._width = width

    def clusters(self, draw: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.intp]]:
        """Which cluster each of `count` documents is of."""
        return np.minimum(np.searchsorted(self._chances, draw.random(count)), len(self._chances) - 1)

    def around(self, draw: np.random.Generator, clusters: np.ndarray[Any, np.dtype[np.intp]]) -> Matrix:
        """One vector of each of `clusters`."""
        count = len(clusters)
        found = self._centres[clusters].astype(np.float32)
        weights = draw.standard_normal((count, OWN_RANK), np.float32) * self._scales
        for at in range(count):
            found[at] += weights[at] @ self._directions[self._own[clusters[at]]]
        found += draw.standard_normal((count, self._width), np.float32) * np.float32(RESIDUAL / np.sqrt(self._width))
        return np.asarray(_unit(found), np.float32)


class Corpus:
    """Documents by number. `version` makes another of the same number: other text, other vectors near the first."""

    def __init__(self, width: int, *, chunks: int, words: int, seed: int = 1) -> None:
        self.width, self.chunks = width, chunks
        self._seed = seed
        self._vectors = ClusteredVectors(width, seed=seed)
        draw = np.random.default_rng((seed, 1))
        vocabulary = np.array([_word(at) for at in range(VOCABULARY)])
        ranks = np.minimum(draw.zipf(1.2, (SENTENCES, 12)), VOCABULARY) - 1
        self._sentences = [" ".join(vocabulary[row]) for row in ranks]
        self._per_chunk = max(1, words // 12)

    def document(self, number: int, offset: int, version: int = 0, mark: str = "") -> Embedded:
        """Document `number` as announced at `offset` of the log. `mark` begins each chunk's text."""
        (found,) = self.documents([number], offset, version, mark)
        return found

    def documents(self, numbers: Sequence[int], offset: int, version: int = 0, mark: str = "") -> list[Embedded]:
        """Documents announced one after another from `offset` on."""
        made = []
        for at, number in enumerate(numbers):
            cluster = self._vectors.clusters(np.random.default_rng((self._seed, 2, number)), 1)[0]
            draw = np.random.default_rng((self._seed, 3, number, version))
            vectors = self._vectors.around(draw, np.full(self.chunks + 1, cluster))
            texts = [mark + self._text(draw) for _ in range(self.chunks)]
            made.append(self._embedded(number, offset + at, version, texts, vectors))
        return made

    def queries(self, count: int, seed: int = 9) -> tuple[Matrix, list[str]]:
        """Vectors of the same clusters that no document has, and texts of a few words that some documents have."""
        draw = np.random.default_rng((self._seed, seed))
        vectors = self._vectors.around(draw, self._vectors.clusters(draw, count))
        texts = [" ".join(draw.choice(self._text(draw).split(), 3)) for _ in range(count)]
        return vectors, texts

    def _text(self, draw: np.random.Generator) -> str:
        return ". ".join(self._sentences[at] for at in draw.integers(0, SENTENCES, self._per_chunk))

    def _embedded(self, number: int, offset: int, version: int, texts: list[str], vectors: Matrix) -> Embedded:
        source = SOURCES[number % len(SOURCES)]
        dataset = f"{source.lower()}_{number % 40}"
        document = document_id(number)
        announcement = Announcement(
            position=Position("bench", "bench", 0, offset, 1_700_000_000_000 + offset), collection=SCRAPER_COLLECTION,
            document_id=document, version=f"v{version:06}", location=f"s3://bench/{dataset}/{number}.json",
            content=None, dataset=dataset, environment="prod", urn=f"{number}.json", data_source=source,
            data_type="load", scraper_name=dataset, collected_at=BEGAN + timedelta(minutes=number),
        )  # fmt: skip
        chunks = tuple(Chunk(at, text, None, 0, len(text), len(text) // 4) for at, text in enumerate(texts))
        extraction = Extraction(
            "JSON", "application/json", "utf-8", f"document {number}", chunks, '{"fields":[]}', f"GET /{dataset}",
            ApiTraits(api_endpoint=f"/{dataset}", auth_method="none"),
        )  # fmt: skip
        fetched = Fetched(announcement, sha256(number, version), "0" * 32, 1_000, extraction=extraction)
        return Embedded(fetched, MODEL, vectors[:-1], vectors[-1])


def document_id(number: int) -> str:
    return f"prod:bench:{number}"


def sha256(number: int, version: int = 0) -> str:
    """What stands for the hash of the file."""
    return hashlib.sha256(f"{number} {version}".encode()).hexdigest()


def _word(at: int) -> str:
    """A pronounceable word that no other number has."""
    letters = ""
    while True:
        at, rest = divmod(at, 90)
        letters += "bcdfghjklmnprstvwz"[rest % 18] + "aeiou"[rest // 18]
        if at == 0:
            return letters


def _unit(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
