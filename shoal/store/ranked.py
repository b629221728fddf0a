"""Ranked answers: chunks are found by vector, by words or by both, and become documents.

Guarantee: a chunk counts only if the document's current metadata has its version, so half of a document is
never seen; a document appears once, by its best chunks; `limit` documents come back where so many match within
the deepest look, and a filter loses none (selections.py). Legs look at fixed depths, each four times the last, and
what a deeper look adds is appended behind what the one before has ranked: so pages of the same data fit together,
whatever their size.

It does not validate what is asked (search.py does), and reads only through `Tables`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol

from shoal.records import Vector
from shoal.store import fusion
from shoal.store.conditions import CHUNK_FILTERS, METADATA_FILTERS, among, split, where
from shoal.store.filters import Filter
from shoal.store.gathering import KEYS_MAX
from shoal.store.keywords import Keywords
from shoal.store.reading import Row, Tables
from shoal.store.row_cache import ADDRESS
from shoal.store.schemas import IS_CURRENT, METADATA_COLUMNS, TableKind, document_of, revision
from shoal.store.selections import Look, Selection

DEPTHS = (256, 1_024, 4_096, 16_384)
"""Chunks that each leg looks at. A page of 10 is nearly always within the first (2 ms); the last bounds the work."""
PUSHED_DOCUMENTS_MAX = 1_000  # so few documents left by their metadata are named to the chunk search
IDS_PER_QUERY = 1_000  # names in one `in (...)`
SPARE = 8  # candidates looked up beyond those wanted, for the few that turn out not to be current
CHUNKS_MAX = 5  # chunks of one document in an answer; who wants all of them reads the document
METADATA_ROW = ("revision", *METADATA_COLUMNS)
_LIGHT = ("id", "metadata_id", "document_version")
_PLACE = ("revision", "superseded_at", ADDRESS)

_RAW = {"vector": "_distance", "keyword": "_score"}
_SIGN = {"vector": 1.0, "keyword": -1.0}  # the least distance and the highest score are best

FusionMethod = Literal["weighted", "rrf"]
LEGS = ("vector", "keyword")
IDENTIFIER = "identifier"
"""In place of a leg: what found a document that the question names, and no leg did."""
WEIGHTS: Mapping[FusionMethod, Mapping[str, float]] = {
    "weighted": {"vector": fusion.VECTOR_WEIGHT, "keyword": fusion.KEYWORD_WEIGHT},
    "rrf": {"vector": 0.5, "keyword": 0.5},
}
"""What each leg of a hybrid search counts for, before `weighted` adapts it to the query."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one leg found of a document: its best chunk, the place among documents, the raw and 0..1 score; `chunks`,
    the best first, at most CHUNKS_MAX; and the raw scores of all that the look found, likewise."""

    chunk_id: str
    rank: int
    raw: float
    score: float
    chunks: Sequence[str] = ()
    passages: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document in its place. `legs` maps "vector" and "keyword" to what they found, `parts` to that as 0..1 (None:
    missed), `weights` to what they counted for: the sum of part times weight is `score`. `tier` is the look (from 0)
    that ranked it: those of one tier keep their order however deep a later page looks."""

    revision: str
    score: float
    legs: Mapping[str, Found]
    parts: Mapping[str, float | None]
    weights: Mapping[str, float]
    tier: int = 0

    def chunk_ids(self, count: int) -> list[str]:
        """The best chunks, the nearest by vector first, then by turns those that the legs found."""
        found = [self.legs[name].chunks for name in (*LEGS, IDENTIFIER) if name in self.legs]
        turns = (leg[at] for at in range(CHUNKS_MAX) for leg in found if at < len(leg))
        return list(dict.fromkeys(turns))[:count]


@dataclass(slots=True)
class Ranking:
    """`documents`: best first, each with its metadata row. `complete`: no further document matches. `dropped`:
    candidates whose version is not current, or whose metadata does not meet the filter. `weights`: what each leg
    counted for in the first look; empty where nothing was found. `look`: the last of `looks`. `addresses`: where the
    chunks lie that the legs found."""

    chunk_condition: str
    metadata_condition: str
    documents: list[tuple[Candidate, Row]] = field(default_factory=list)
    complete: bool = True
    dropped: int = 0
    look: Look = field(default_factory=lambda: Look(0, "false"))
    looks: int = 0
    selection: Selection = field(default_factory=Selection)
    weights: Mapping[str, float] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    timings_ms: dict[str, float] = field(default_factory=dict)


async def rank(
    tables: Tables,
    vector: Vector | None,
    text: Keywords | None,
    filters: Filter | None,
    wanted: int,
    *,
    method: FusionMethod = "weighted",
    pool: int = 0,
) -> Ranking:
    """The best `wanted` documents where so many match. A leg is left out where its input is None. `pool`: so many
    documents of the first look are read too, to be counted or ordered anew."""
    on_chunks, on_documents = split(filters, CHUNK_FILTERS)
    ranking = Ranking(
        # The fence row needs no condition: it has neither vector nor text, and no metadata to be joined with. A
        # condition that keeps all other rows would cost a scan of its column in each search.
        chunk_condition=where("", on_chunks, columns=CHUNK_FILTERS),
        metadata_condition=where("", on_documents, columns=METADATA_FILTERS),
    )
    if on_documents is not None:
        condition = where(IS_CURRENT, on_documents, columns=METADATA_FILTERS)
        ranking.selection = await Selection.of(tables, condition, PUSHED_DOCUMENTS_MAX)
    known: dict[str, Row | None] = {}
    candidates: list[Candidate] = []
    spent = {"legs": 0.0, "documents": 0.0}
    narrow = filters is not None
    async with aclosing(ranking.selection.looks(tables, ranking.chunk_condition, DEPTHS)) as looks:
        async for look in looks:
            started = time.monotonic()
            legs = dict(
                await asyncio.gather(
                    *([_vector_leg(tables, vector, look, narrow=narrow)] if vector is not None else []),
                    *([_keyword_leg(tables, text, look)] if text is not None else []),
                )
            )
            ranking.look = look
            ranking.complete = all(len(rows) < look.depth for rows in legs.values())
            ranking.addresses |= {row["id"]: row[ADDRESS] for rows in legs.values() for row in rows if ADDRESS in row}
            searched = time.monotonic()
            candidates += _further(candidates, legs, look, ranking.looks, method)
            ranking.looks += 1
            ranking.weights = candidates[0].weights if candidates else {}
            await _confirm(tables, ranking, candidates, known, wanted, pool)
            spent["legs"] += searched - started
            spent["documents"] += time.monotonic() - searched
            if ranking.complete or len(ranking.documents) >= wanted:
                break
    started = time.monotonic()
    await _read_whole(tables, ranking, None if pool else wanted)
    spent["documents"] += time.monotonic() - started
    ranking.timings_ms = {name: round(1000 * seconds, 2) for name, seconds in spent.items()}
    return ranking


async def _confirm(
    tables: Tables,
    ranking: Ranking,
    candidates: Sequence[Candidate],
    known: dict[str, Row | None],
    wanted: int,
    pool: int,
) -> None:
    """Fills `ranking.documents` with those candidates that are current and meet the filter, as far as wanted; of each
    row only its place."""
    ranking.documents, ranking.dropped = [], 0
    at, size = 0, max(wanted, pool) + SPARE
    while at < len(candidates):
        enough = pool if candidates[at].tier == 0 else 0
        if len(ranking.documents) >= max(wanted, enough):
            break
        part = candidates[at : at + size]
        fresh = [one.revision for one in part if one.revision not in known]
        known.update(dict.fromkeys(fresh))
        asked = [name for name in fresh if ranking.selection.may_hold(document_of(name))]
        for row in await rows_among(tables, "metadata", "revision", asked, _PLACE, ranking.metadata_condition):
            known[row["revision"]] = row
        for one in part:
            row_of = known[one.revision]
            if row_of is None or row_of["superseded_at"] is not None:
                ranking.dropped += 1
            else:
                ranking.documents.append((one, row_of))
        at, size = at + size, 4 * size


async def _read_whole(tables: Tables, ranking: Ranking, most: int | None) -> None:
    """In place of places the rows; of more than `most` documents nobody wants any."""
    places = ranking.documents[:most]
    rows = await tables.kept.rows("metadata", [place[ADDRESS] for _, place in places], METADATA_ROW)
    ranking.documents = [(one, rows[place[ADDRESS]]) for one, place in places if place[ADDRESS] in rows]


async def _vector_leg(tables: Tables, vector: Vector, look: Look, *, narrow: bool) -> tuple[str, list[Row]]:
    found: list[Row] = []
    for condition, is_narrow in look.parts():
        find = partial(
            tables.nearest, "vectors", vector, condition, limit=look.depth, narrow=narrow and is_narrow
        )  # fmt: skip
        found = _best("vector", found, await _chunks(tables, find), look.depth)
    return "vector", found


async def _keyword_leg(tables: Tables, text: Keywords, look: Look) -> tuple[str, list[Row]]:
    found: list[Row] = []
    for condition, _ in look.parts():
        find = partial(tables.matching, "vectors", text, "content_summary", condition, limit=look.depth)
        found = _best("keyword", found, await _chunks(tables, find), look.depth)
    return "keyword", found


class _Find(Protocol):
    async def __call__(self, *, columns: Sequence[str]) -> list[Row]: ...


async def _chunks(tables: Tables, find: _Find) -> list[Row]:
    """What `find` finds, with _LIGHT. It is asked for addresses only, which halves its work: most of the chunks have
    been found before."""
    rows = await find(columns=(ADDRESS,))
    known = await tables.kept.rows("vectors", [row[ADDRESS] for row in rows], _LIGHT)
    return [known[row[ADDRESS]] | row for row in rows]


def _best(leg: str, found: list[Row], rows: list[Row], depth: int) -> list[Row]:
    """The best `depth` of two parts of a look."""
    if not found:
        return rows
    return sorted(found + rows, key=lambda row: _SIGN[leg] * row[_RAW[leg]])[:depth]


async def rows_among(
    tables: Tables,
    kind: TableKind,
    column: str,
    values: Iterable[str],
    columns: Sequence[str],
    condition: str = "",
) -> list[Row]:
    """The rows whose `column`, one of `columns`, is one of `values`, however many they are. `values` come out of our
    tables. A few are looked up together with what others look up."""
    listed = sorted(values)
    if len(listed) <= KEYS_MAX:
        return await tables.gathering.rows(kind, column, listed, columns, condition) or []
    found: list[Row] = []
    for start in range(0, len(listed), IDS_PER_QUERY):
        named = among(column, listed[start : start + IDS_PER_QUERY])
        also = f" and {condition}" if condition else ""
        found += await tables.rows(kind, named + also, columns, None)
    return found


def _further(
    before: Sequence[Candidate], legs: Mapping[str, Sequence[Row]], look: Look, tier: int, method: FusionMethod
) -> list[Candidate]:
    """The documents that this look adds to those that the looks `before` have ranked."""
    seen = {one.revision for one in before}
    bound = before[-1].score if before else 1.0
    ranked = fuse(method, {name: _documents(name, _sure(name, rows, look)) for name, rows in legs.items()})
    if not before:
        return ranked
    # A deeper look stretches the normalisation; a page never scores above the one before it.
    return [replace(_at_most(bound, one), tier=tier) for one in ranked if one.revision not in seen]


def _at_most(bound: float, one: Candidate) -> Candidate:
    """With a score of at most `bound`, its weights less by the same factor: they still add up to it."""
    if one.score <= bound:
        return one
    less = bound / one.score
    return replace(one, score=bound, weights={name: weight * less for name, weight in one.weights.items()})


def _sure(leg: str, rows: Sequence[Row], look: Look) -> Sequence[Row]:
    """`rows` without those that tie with the last of a full look: which of equals it returns is chance, and would
    differ from page to page. A deeper look decides; the last takes what it got."""
    if len(rows) < look.depth or look.is_last:
        return rows
    bound = rows[-1][_RAW[leg]]
    return [row for row in rows if row[_RAW[leg]] != bound]


def _documents(leg: str, rows: Sequence[Row]) -> dict[str, Found]:
    """By revision, best first: each document's best chunks."""
    raw = _RAW[leg]
    best = max((row[raw] for row in rows), default=0.0)
    documents: dict[str, Found] = {}
    chunks: dict[str, list[str]] = {}
    passages: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: (_SIGN[leg] * row[raw], row["id"])):
        key = revision(row["metadata_id"], row["document_version"])
        if key not in documents:
            score = similarity(row[raw]) if leg == "vector" else row[raw] / best if best > 0 else 0.0
            chunks[key], passages[key] = [], []
            documents[key] = Found(row["id"], len(documents) + 1, row[raw], score, chunks[key], passages[key])
        passages[key].append(row[raw])
        if len(chunks[key]) < CHUNKS_MAX:
            chunks[key].append(row["id"])
    return documents


def similarity(distance: float) -> float:
    """Cosine distance (0..2) as a score: 1 is the same direction, 0 is unrelated or opposite."""
    return min(1.0, max(0.0, 1.0 - distance))


def fuse(method: FusionMethod, found: Mapping[str, Mapping[str, Found]]) -> list[Candidate]:
    """The one seam where legs become a ranking: `found` has, by leg, what it found of each document (best first).
    A single leg needs no fusion: its own scores stand."""
    if len(found) == 1:
        ((name, documents),) = found.items()
        return [
            Candidate(key, one.score, {name: one}, {name: one.score}, {name: 1.0}) for key, one in documents.items()
        ]
    match method:
        case "weighted":
            # The raw distance is not clipped: min-max needs the differences among far hits too.
            legs = (
                {key: [-distance for distance in one.passages] for key, one in found["vector"].items()},
                {key: one.passages for key, one in found["keyword"].items()},
            )
            fused = fusion.weighted([fusion.of_passages(leg) for leg in legs], [WEIGHTS[method][name] for name in LEGS])
        case "rrf":
            fused = fusion.reciprocal_rank([list(found[name]) for name in LEGS])
    return [
        Candidate(
            one.key,
            one.score,
            {name: found[name][one.key] for name in LEGS if one.key in found[name]},
            dict(zip(LEGS, one.parts, strict=True)),
            dict(zip(LEGS, one.weights, strict=True)),
        )
        for one in fused
    ]
