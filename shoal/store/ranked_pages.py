"""Pages of ranked answers: a ranking, ordered by what else was asked for, cut into a page and dressed.

The order is: documents that the question names, then by boosted score, then spread by MMR. Anew are ordered only the
documents of the first look (at most `POOL_MAX`), which are the same for every page; what comes behind keeps its
place. So pages fit together, and the work is bounded. It validates nothing (search.py does), ranks nothing itself,
and reads only through `Tables`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from shoal.records import Vector
from shoal.store import diversity, facets
from shoal.store.boosts import boosted
from shoal.store.cursors import OFFSET_MAX, CursorError, OffsetCursor, decode, encode, fingerprint
from shoal.store.highlights import Snippet, snippet
from shoal.store.identifiers import Named, named
from shoal.store.keywords import Keywords, parse_keywords
from shoal.store.ranked import (
    CHUNKS_MAX,
    DEPTHS,
    IDENTIFIER,
    LEGS,
    WEIGHTS,
    Candidate,
    Found,
    Ranking,
    rank,
    rows_among,
)
from shoal.store.reading import Row, Tables, View
from shoal.store.requests import QUERY_LENGTH_MAX, Hit, Mode, SearchPage, SearchRequest, milliseconds
from shoal.store.schemas import CHUNK_COLUMNS, METADATA_COLUMNS, VECTOR_COLUMNS
from shoal.store.terms import terms_of

PLAN_LINE_MAX = 2_000  # characters; a line that only lists all columns has some 1,200
POOL_MAX = 2 * DEPTHS[0]  # documents that boosts order anew and facets count: those of the first look of two legs


@dataclass(frozen=True, slots=True)
class _Placed:
    """A document in its final place; `notes` say what put it there."""

    candidate: Candidate
    row: Row
    score: float
    notes: Mapping[str, Any]


async def ranked_page(tables: Tables, request: SearchRequest, mode: Mode, view: View, now: datetime) -> SearchPage:
    vector = request.vector if mode != "keyword" else None
    text = parse_keywords((request.query or "")[:QUERY_LENGTH_MAX]) if mode != "vector" else None
    key = _fingerprint(request, mode, vector)
    after = decode(request.cursor, key) if request.cursor else OffsetCursor(0, now)
    if not isinstance(after, OffsetCursor):
        raise CursorError("the cursor belongs to a listing by time; start again without it")
    at = after.at or now
    end = after.offset + request.limit
    reorders = request.boosts.reorders or request.mmr_lambda is not None
    ranking = await rank(
        tables, vector, text, request.filters, end + 1,
        method=request.fusion, pool=POOL_MAX if reorders or request.facets else 0,
    )  # fmt: skip
    started = time.monotonic()
    placed = await _ordered(tables, ranking, request, at)
    shown = placed[after.offset : end]
    ordered = time.monotonic()
    hits = await _hits(tables, request, shown, after.offset, ranking.addresses)
    warnings = []
    if not ranking.complete and len(placed) < end:
        warnings.append(f"only the best {ranking.look.depth} chunks were looked at: narrow the filters to see more")
    cursor = None
    if len(placed) > end:
        if end <= OFFSET_MAX:
            cursor = encode(OffsetCursor(end, at if request.boosts.recency else None), key)
        else:
            warnings.append(f"ranked answers end after {end} documents: narrow the query to see others")
    return SearchPage(
        mode=mode,
        hits=hits,
        next_cursor=cursor,
        freshness=view.freshness,
        warnings=tuple(warnings),
        timings_ms={
            **ranking.timings_ms,
            "order": milliseconds(ordered - started),
            "chunks": milliseconds(time.monotonic() - ordered),
        },
        explain=await _plan(tables, ranking, request, vector, text) if request.explain else None,
        facets=_facets(ranking, request.facets) if request.facets else None,
    )


def _fingerprint(request: SearchRequest, mode: Mode, vector: Vector | None) -> str:
    asked = request.query if request.query else vector.tobytes() if vector is not None else b""
    return fingerprint(
        mode, request.collection, request.filters, asked, request.fusion, request.boosts, request.mmr_lambda
    )


async def _ordered(tables: Tables, ranking: Ranking, request: SearchRequest, now: datetime) -> list[_Placed]:
    placed = [_Placed(one, row, one.score, {}) for one, row in ranking.documents]
    pool = sum(one.candidate.tier == 0 for one in placed[:POOL_MAX])
    if request.boosts.reorders:
        # On a thread: hundreds of titles are too long for the loop that also answers others.
        front = await asyncio.to_thread(_boosted, placed[:pool], request, now)
        placed = [*front, *placed[pool:]]
    if request.mmr_lambda is not None:
        placed = await _spread(tables, placed, min(pool, diversity.CANDIDATES_MAX), request.mmr_lambda)
    if request.boosts.identifier and request.query:
        documents = await named(tables, request.query, ranking.metadata_condition, ranking.chunk_condition)
        placed = _named_first(placed, documents)
    if request.boosts.reorders and request.mmr_lambda is None:  # a page never scores above the one before it
        bound = 1.0
        for at, document in enumerate(placed):
            bound = min(bound, document.score)
            placed[at] = replace(document, score=bound)
    return placed


def _boosted(pool: Sequence[_Placed], request: SearchRequest, now: datetime) -> list[_Placed]:
    """`pool` by boosted score."""
    terms = terms_of(request.query or "") if request.boosts.title else ()
    placed = []
    for one in pool:
        with_boosts = boosted(one.score, one.row, terms, request.boosts, now)
        placed.append(replace(one, score=with_boosts.score, notes={"boosts": with_boosts.values}))
    return sorted(placed, key=lambda one: -one.score)  # stable: equals keep their order


async def _spread(tables: Tables, placed: Sequence[_Placed], count: int, mmr_lambda: float) -> list[_Placed]:
    """The first `count` in the order of maximal marginal relevance of their best chunks."""
    column = str(VECTOR_COLUMNS["vectors"])
    best = [one.candidate.chunk_ids(1)[0] for one in placed[:count]]
    rows = await rows_among(tables, "vectors", "id", set(best), ("id", column))
    vectors = {row["id"]: np.asarray(row[column], np.float32) for row in rows if row[column] is not None}
    order = diversity.marginal_order(
        [one.score for one in placed[:count]], [vectors.get(chunk) for chunk in best], mmr_lambda
    )
    spread = [
        replace(placed[at], notes={**placed[at].notes, "mmr": {"place_before": at + 1, "marginal": round(value, 6)}})
        for at, value in order
    ]
    return [*spread, *placed[count:]]


def _named_first(placed: Sequence[_Placed], documents: Sequence[Named]) -> list[_Placed]:
    """Those that the question names in front, each once."""
    known = {one.candidate.revision: one for one in placed}
    front = []
    for one in documents:
        revision = one.row["revision"]
        before = known.get(revision)
        # Its chunk is the one that a leg found, else its first.
        chunk = Found(one.chunk_id, 1, 1.0, 1.0, [one.chunk_id])
        candidate = before.candidate if before else Candidate(revision, 1.0, {IDENTIFIER: chunk}, {}, {})
        notes = {**(before.notes if before else {}), IDENTIFIER: one.by}
        front.append(_Placed(candidate, one.row, 1.0, notes))
    names = {one.row["revision"] for one in documents}
    return [*front, *(one for one in placed if one.candidate.revision not in names)]


async def _hits(
    tables: Tables, request: SearchRequest, shown: Sequence[_Placed], offset: int, addresses: Mapping[str, int]
) -> tuple[Hit, ...]:
    wanted = [one.candidate.chunk_ids(request.chunks_per_document) for one in shown]
    ids = {chunk for chunks in wanted for chunk in chunks}
    places = [addresses[name] for name in ids if name in addresses]
    found = {row["id"]: row for row in (await tables.kept.rows("vectors", places, CHUNK_COLUMNS)).values()}
    if others := ids - found.keys():
        found |= {row["id"]: row for row in await rows_among(tables, "vectors", "id", others, CHUNK_COLUMNS)}
    snippets: Mapping[str, Snippet] = {}
    if request.highlight:  # on a thread, like the boosts
        snippets = await asyncio.to_thread(_snippets, found, request.query or "")
    hits = []
    for rank_of, (one, names) in enumerate(zip(shown, wanted, strict=True), start=offset + 1):
        chunks = tuple(found[name] for name in names if name in found)
        if not chunks or names[0] not in found:
            continue
        near = one.candidate.legs.get("vector")
        hits.append(
            Hit(
                metadata={name: one.row[name] for name in METADATA_COLUMNS},
                chunk=chunks[0],
                score=one.score,
                distance=near.raw if near else None,
                explain=_explained(one, rank_of, request) if request.explain else None,
                chunks=chunks,
                snippets=tuple(snippets[chunk["id"]] for chunk in chunks) if request.highlight else (),
            )
        )
    return tuple(hits)


def _snippets(chunks: Mapping[str, Row], query: str) -> dict[str, Snippet]:
    """A snippet of each chunk, by its id."""
    terms = terms_of(query)
    return {name: snippet(chunk["content_summary"] or "", terms) for name, chunk in chunks.items()}


def _explained(placed: _Placed, rank_of: int, request: SearchRequest) -> dict[str, Any]:
    one = placed.candidate
    both = len(one.parts) > 1  # also where only one of the legs found it
    return {
        "rank": rank_of,
        "score": placed.score,
        "match": one.score,
        "fusion": request.fusion if both else None,
        "legs": {
            name: {
                "rank": leg.rank,
                "raw": leg.raw,
                "passages": list(leg.passages[:CHUNKS_MAX]),
                "score": leg.score,
                "normalised": one.parts[name],
                "weight": one.weights[name],
                "chunk": leg.chunk_id,
            }
            for name, leg in one.legs.items()
            if name in LEGS
        },
        **placed.notes,
    }


def _facets(ranking: Ranking, columns: Sequence[str]) -> facets.Facets:
    pool = [row for one, row in ranking.documents[:POOL_MAX] if one.tier == 0]
    exact = ranking.complete and len(pool) == len(ranking.documents) < POOL_MAX
    return facets.of_rows(columns, pool, exact=exact)


async def _plan(
    tables: Tables, ranking: Ranking, request: SearchRequest, vector: Vector | None, text: Keywords | None
) -> dict[str, Any]:
    condition, narrow = next(ranking.look.parts(), ("false", True))
    return {
        "chunk_filter": ranking.chunk_condition,
        "metadata_filter": ranking.metadata_condition,
        "metadata_filter_applied": ranking.selection.applied,
        "metadata_filter_leaves": ranking.selection.shown,
        "depth": ranking.look.depth,
        "looks": ranking.looks,
        "documents": len(ranking.documents),
        "complete": ranking.complete,
        "dropped": ranking.dropped,
        "fusion": {"method": request.fusion, "weights": ranking.weights or WEIGHTS[request.fusion]}
        if vector is not None and text is not None
        else None,
        "boosts": asdict(request.boosts),
        "mmr_lambda": request.mmr_lambda,
        "keywords": asdict(text) if text is not None else None,
        "vector_plan": None
        if vector is None
        else _short(await tables.nearest_plan("vectors", vector, condition, ranking.look.depth, narrow=narrow)),
    }


def _short(plan: str) -> str:
    """Its lines cut: one of them may hold thousands of names."""
    return "\n".join(line if len(line) <= PLAN_LINE_MAX else line[:PLAN_LINE_MAX] + "..." for line in plan.splitlines())
