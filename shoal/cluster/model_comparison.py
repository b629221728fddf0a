"""How much the answers of two models differ, on the same questions: the share of the first documents in common.

The questions are those of a file. Without one they stand in for recent ones: of those only vectors are kept, no text
(query_sample.py), so the chunk nearest to each is asked for by its first words. A stand-in is near to what was asked,
but worded as the documents are, so it flatters both models alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from shoal.cluster.embedding_texts import Embedder
from shoal.records import Vector
from shoal.settings import Settings
from shoal.store.generations import Generation
from shoal.store.place import at
from shoal.store.query_sample import FILE_PREFIX, gathered, vectors_of
from shoal.store.requests import SearchRequest
from shoal.store.search import SearchIndex
from shoal.store.state_files import list_states, read_state
from shoal.store.writing import storage_options

DEPTH = 10
QUESTIONS_MAX = 200
STAND_IN_CHARS = 200


@dataclass(frozen=True, slots=True)
class Comparison:
    """`overlap`: mean share of the first DEPTH documents that both have; `same_first`: share of the questions with the
    same first document; `least`: the question whose answers differ most."""

    questions: int
    overlap: float
    same_first: float
    least: str
    of_what: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judged(asked: Sequence[str], one: Sequence[Sequence[str]], other: Sequence[Sequence[str]], of: str) -> Comparison:
    """Of the ids that either found for each question, best first. What both find nothing for is no difference."""
    shares = [_share(a, b) for a, b in zip(one, other, strict=True)]
    if not shares:
        return Comparison(0, 0.0, 0.0, "", of)
    same = sum(a[:1] == b[:1] for a, b in zip(one, other, strict=True)) / len(shares)
    return Comparison(len(shares), sum(shares) / len(shares), same, asked[shares.index(min(shares))], of)


def _share(one: Sequence[str], other: Sequence[str]) -> float:
    longest = max(len(one), len(other))
    return len(set(one) & set(other)) / longest if longest else 1.0


async def compare(
    settings: Settings, used: Generation, copy: Generation, old: Embedder, new: Embedder, questions: Sequence[str]
) -> Comparison:
    """Both models' answers to `questions`, or, without any, to stand-ins of recent ones."""
    options = storage_options(settings)
    indexes = [await SearchIndex.open(one.uri, options) for one in (used, copy)]
    try:
        asked, of = list(questions[:QUESTIONS_MAX]), "the questions of the file"
        if not asked:
            recent = await asyncio.to_thread(_recent, at(settings, used.uri), used.facts.width)
            asked, of = await _stand_ins(indexes[0], recent), "stand-ins for recent questions"
        if not asked:
            return judged([], [], [], of)
        found: list[list[list[str]]] = []
        for index, embedder in zip(indexes, (old, new), strict=True):
            # Its service runs on a loop of its own.
            vectors = await asyncio.to_thread(embedder.embed, asked, "query")
            found.append([await _first(index, vector) for vector in vectors])
        return judged(asked, found[0], found[1], of)
    finally:
        for index in indexes:
            await index.close()


async def _first(index: SearchIndex, vector: Vector) -> list[str]:
    page = await index.search(SearchRequest(mode="vector", vector=vector, limit=DEPTH))
    return [str(hit.metadata["id"]) for hit in page.hits]


def _recent(place: Settings, width: int) -> list[Vector]:
    read: Callable[[str], Any] = partial(read_state, place)
    now = datetime.now(UTC)
    return gathered((vectors_of(read(name), width, now) for name in list_states(place, FILE_PREFIX)), QUESTIONS_MAX)


async def _stand_ins(index: SearchIndex, recent: Sequence[Vector]) -> list[str]:
    texts: dict[str, None] = {}
    for vector in recent:
        page = await index.search(SearchRequest(mode="vector", vector=vector, limit=1))
        for hit in page.hits:
            if hit.chunk and (text := str(hit.chunk["content_summary"] or "")[:STAND_IN_CHARS].strip()):
                texts[text] = None
    return list(texts)
