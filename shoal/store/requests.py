"""What a search is asked and what it answers: the values that cross from the store to those who serve it.

Plain frozen values. Rows are dicts of plain Python values by column name, times aware and UTC, never a vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from shoal.records import SCRAPER_COLLECTION, Vector
from shoal.store.boosts import NO_BOOSTS, Boosts
from shoal.store.facets import Facets
from shoal.store.filters import Filter, QueryError
from shoal.store.highlights import Snippet
from shoal.store.ranked import CHUNKS_MAX, FusionMethod
from shoal.store.reading import Freshness

__all__ = ["CHUNKS_MAX", "Boosts", "FusionMethod", "Hit", "Mode", "SearchPage", "SearchRequest"]

Mode = Literal["sql", "vector", "keyword", "hybrid"]
LIMIT_MAX = 1_000  # documents of one page
QUERY_LENGTH_MAX = 4_000  # characters; far beyond any question, and each word is a look-up


class UnknownCollectionError(QueryError):
    """There is no collection of that name."""


def check_collection(name: str) -> None:
    """Raises UnknownCollectionError."""
    if name != SCRAPER_COLLECTION:
        raise UnknownCollectionError(f"there is no collection {name[:60]!r}; known: {SCRAPER_COLLECTION}")


@dataclass(frozen=True, slots=True)
class AsOf:
    """A state of the index: that after this commit."""

    sequence: int
    committed_at: datetime | None

    def shown(self) -> dict[str, Any]:
        """{"commit_sequence", "committed_at"}; the time is None before the first commit."""
        return {"commit_sequence": self.sequence, "committed_at": self.committed_at}


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """One page of one question.

    `sql` filters and orders by time; the others rank: `vector` by the nearest chunk to `vector`, `keyword` by
    the words of `query`, `hybrid` by both. `limit` counts documents. `include_superseded` also gives older
    versions (`sql` only: they have no chunks). `wait_sequence`: wait for this commit before reading, at most
    5 s. A cursor belongs to the same question; `limit` may differ; that of a ranking is read from the state of its
    first page while cleanup spares it, and refused after that. `as_of` (a commit sequence, or an aware time) asks
    the index as it was; a cursor of such an answer remembers it.

    Of a ranking: `fusion` joins the legs of hybrid, `boosts` add what the metadata says, `mmr_lambda` (0..1, None: off)
    puts near-duplicates further back, `chunks_per_document` (at most CHUNKS_MAX) shows more than the best chunk, and
    `highlight` adds a snippet to each. `facets` are columns whose values are counted.
    """

    mode: Mode
    collection: str = SCRAPER_COLLECTION
    query: str | None = None
    vector: Vector | None = None
    filters: Filter | None = None
    limit: int = 10
    cursor: str | None = None
    include_superseded: bool = False
    explain: bool = False
    wait_sequence: int | None = None
    as_of: datetime | int | None = None
    fusion: FusionMethod = "weighted"
    boosts: Boosts = NO_BOOSTS
    mmr_lambda: float | None = None
    chunks_per_document: int = 1
    highlight: bool = False
    facets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hit:
    """One document. `chunk` is its best chunk (None in `sql`); `score` is 0..1, higher is better; `distance` is
    the cosine distance of the chunk, None where the vectors did not find it. `chunks`: the best chunks, that one
    first; `snippets`: theirs, where asked for."""

    metadata: dict[str, Any]
    chunk: dict[str, Any] | None = None
    score: float | None = None
    distance: float | None = None
    explain: dict[str, Any] | None = None
    chunks: tuple[dict[str, Any], ...] = ()
    snippets: tuple[Snippet, ...] = ()


@dataclass(frozen=True, slots=True)
class SearchPage:
    """`mode` is the one that was used: hybrid without a vector is keyword. `explain`: the plan, where asked. `as_of`:
    the state that was searched, where an older one was asked for. `unindexed_rows`: chunks that no index covers yet,
    by leg; None where it has no index (all are searched)."""

    mode: Mode
    hits: tuple[Hit, ...]
    next_cursor: str | None
    freshness: Freshness
    warnings: tuple[str, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)
    explain: dict[str, Any] | None = None
    as_of: AsOf | None = None
    unindexed_rows: dict[str, int | None] = field(default_factory=dict)
    facets: Facets | None = None


def milliseconds(seconds: float) -> float:
    """As `timings_ms` shows them."""
    return round(seconds * 1000, 2)
