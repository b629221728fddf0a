"""The general search: one typed question to a collection, one JSON-shaped answer (contracts 3).

Beside the calls for scrapers, which keep the shape that their clients know, this is the whole of the search core.
Without a query it lists, newest first; with one it ranks, by meaning and words unless told otherwise. Where the
embedder is down it goes on by words and says so. Fails with InvalidParameter, the store's QueryError, or
TransientError while there are no tables.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from shoal import tracing
from shoal.serve_apps.collection_models import CollectionSearch
from shoal.serve_apps.degrading import way_of
from shoal.serve_apps.freshness import Lag, freshness_of
from shoal.serve_apps.models import state_of
from shoal.serve_apps.query_vectors import QueryVectors
from shoal.serve_apps.reranking import CANDIDATES_MAX, Reranker, SkippedError
from shoal.serve_apps.stages import ended, searched
from shoal.serve_apps.visible import check_collection
from shoal.settings import Settings
from shoal.store.boosts import DAY_S, NO_BOOSTS, Boosts
from shoal.store.conditions import FILTERS
from shoal.store.facets import Facets
from shoal.store.filters import check
from shoal.store.requests import FusionMethod, Hit, SearchPage, SearchRequest

CHUNK_FIELDS = (
    "id", "chunk_index", "heading", "char_start", "char_end", "token_count", "content_schema", "api_endpoint",
    "auth_method", "rate_limit", "data_freshness", "pagination_type",
)  # fmt: skip
TEXT_CHARS_MAX = 4_000
"""A chunk is some 2,000 characters; what is longer is cut, its whole text is the document's."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """How a service ranks where a request does not say otherwise; of the settings."""

    fusion: FusionMethod = "weighted"
    boosts: Boosts = NO_BOOSTS

    @classmethod
    def of(cls, settings: Settings) -> Defaults:
        boosts = Boosts(
            recency=settings.boost_recency,
            half_life_s=settings.boost_recency_half_life_days * DAY_S,
            title=settings.boost_title,
            identifier=settings.boost_identifier,
        )
        return cls(settings.search_fusion, boosts)


class Index(Protocol):
    @property
    def model(self) -> str: ...
    async def search(self, request: SearchRequest) -> SearchPage: ...


class CollectionSearches:
    """One per replica."""

    def __init__(
        self,
        index: Callable[[], Awaitable[Index]],
        vectors: QueryVectors,
        lag: Lag,
        defaults: Defaults,
        reranker: Reranker | None,
    ) -> None:
        self._reranker = reranker
        self._index = index
        self._defaults = defaults
        self._vectors = vectors
        self._lag = lag

    async def search(self, name: str, parameters: CollectionSearch | Mapping[str, Any]) -> dict[str, Any]:
        """One page of documents of the collection `name`. Raises UnknownCollectionError and what a search raises."""
        check_collection(name)
        started = time.perf_counter()
        asked = CollectionSearch.read(parameters)
        filters = asked.filters.filter() if asked.filters else None
        if filters is not None:
            check(filters, FILTERS)  # before anything is paid for the question's vector
        index = await self._index()
        warnings: list[str] = []
        ended("accept")
        way = await way_of(
            self._vectors, index.model, asked.query, asked.mode or "hybrid", asked.cursor, warnings, name
        )
        reranks = asked.rerank and self._reranker is not None
        if asked.rerank and not reranks:
            warnings.append("no reranker is configured (rerank_url): these results are not reranked")
        page = await traced_search(
            index,
            SearchRequest(
                collection=name,
                mode=way.mode,
                query=asked.query,
                vector=way.vector,
                filters=filters,
                limit=max(asked.limit, CANDIDATES_MAX) if reranks else asked.limit,
                cursor=way.cursor,
                include_superseded=asked.include_superseded,
                explain=asked.explain,
                fusion=self._defaults.fusion,
                boosts=asked.boosts.over(self._defaults.boosts) if asked.boosts else self._defaults.boosts,
                mmr_lambda=asked.mmr_lambda,
                chunks_per_document=asked.chunks_per_document,
                highlight=asked.highlight,
                facets=asked.facets,
                as_of=state_of(asked.as_of),
                wait_sequence=int(asked.wait_token) if asked.wait_token else None,
            ),
        )
        searched(page.timings_ms.get("queued", 0.0))
        hits, rerank_ms = page.hits, 0.0
        if reranks and hits:
            asked_at = time.perf_counter()
            hits = (await self._reranked(asked.query or "", hits, warnings))[: asked.limit]
            rerank_ms = round(1000 * (time.perf_counter() - asked_at), 2)
        timings = {**page.timings_ms, **({"rerank": rerank_ms} if reranks else {})}
        return {
            "results": [_result(hit, explain=asked.explain) for hit in hits],
            "count": len(hits),
            "mode": page.mode,
            "next_cursor": None if reranks else way.marked(page.next_cursor),
            "took_ms": round(1000 * (time.perf_counter() - started), 1),
            "freshness": freshness_of(page.freshness, page.unindexed_rows, await self._lag.now()),
            "warnings": [*warnings, *page.warnings],
            **({"as_of": page.as_of.shown()} if page.as_of else {}),
            **({"facets": _facets(page.facets)} if page.facets else {}),
            **({"explain": page.explain, "timings_ms": timings} if asked.explain else {}),
        }

    async def _reranked(self, query: str, hits: Sequence[Hit], warnings: list[str]) -> tuple[Hit, ...]:
        """The best by the reranker's score, the rest behind them; as they were, with a warning, where it fails."""
        assert self._reranker is not None
        best, rest = hits[:CANDIDATES_MAX], hits[CANDIDATES_MAX:]
        try:
            texts = [(hit.chunk or {}).get("content_summary") or "" for hit in best]
            scores = await self._reranker.scores(query, texts)
        except SkippedError as error:
            warnings.append(f"{error}: these results are not reranked")
            return tuple(hits)
        order = sorted(range(len(best)), key=lambda at: -scores[at])  # stable: equals keep their order
        notes = [{"rerank": {"score": score, "rank_before": at}} for at, score in enumerate(scores, start=1)]
        moved = [replace(best[at], explain={**(best[at].explain or {}), **notes[at]}) for at in order]
        return (*moved, *rest)


def _result(hit: Hit, *, explain: bool) -> dict[str, Any]:
    """{document, score, distance, chunks}, best chunk first; chunks and scores only where a query ranked them."""
    result: dict[str, Any] = {"document": hit.metadata}
    if hit.chunk is not None:
        chunks = [_chunk(chunk) for chunk in hit.chunks or (hit.chunk,)]
        for chunk, snippet in zip(chunks, hit.snippets, strict=False):
            chunk["snippet"] = snippet.shown()
        result |= {"score": hit.score, "distance": hit.distance, "chunks": chunks}
    if explain:
        result["explain"] = hit.explain
    return result


def _facets(facets: Facets) -> dict[str, Any]:
    """{of, exact, columns: {name: {values: [{value, count}], others, missing}}}. `exact`: `of` is all that match; else
    the documents looked at, of a ranking the best."""
    columns = {
        name: {
            "values": [{"value": value, "count": count} for value, count in facet.values],
            "others": facet.others,
            "missing": facet.missing,
        }
        for name, facet in facets.columns.items()
    }
    return {"of": facets.counted, "exact": facets.exact, "columns": columns}


def _chunk(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: row.get(name) for name in CHUNK_FIELDS}, "text": cut(row.get("content_summary"), TEXT_CHARS_MAX)}


def cut(text: str | None, chars_max: int) -> str | None:
    """`text` with at most `chars_max` characters, an ellipsis in place of the rest."""
    return text if text is None or len(text) <= chars_max else text[: chars_max - 1] + "…"


async def traced_search(index: Any, request: SearchRequest) -> SearchPage:
    """A search as a span of the request's trace."""
    with tracing.span("search", shoal__mode=request.mode, shoal__limit=request.limit):
        page: SearchPage = await index.search(request)
        return page
