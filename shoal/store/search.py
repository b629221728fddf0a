"""`SearchIndex`: every question that can be asked of the tables. Read-only; one per process.

Guarantee: answers hold documents only (never the fence or a tombstone), current versions unless older ones are
asked for, each once, and never half of one; a page ends with a cursor where there is more. A page's freshness
is that of the versions it was read from; the further pages of a ranking are read from those of the first. It
embeds nothing (vectors are arguments) and writes nothing.

Fails with QueryError (FilterError, CursorError) for what was asked wrongly, TransientError for storage that is
away or tables that don't exist yet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import numpy as np

from shoal.errors import TransientError
from shoal.records import SCRAPER_COLLECTION, Vector
from shoal.settings import Settings
from shoal.store import advice, facets, scanning
from shoal.store.conditions import FILTERS, METADATA_FILTERS, where
from shoal.store.cursors import CursorError, OffsetCursor, Pin, decode, encode, fingerprint, from_start, split_pin
from shoal.store.documents import Documents
from shoal.store.feeds import Catalogue, FeedReader
from shoal.store.filters import Equals, QueryError, check
from shoal.store.generations import active
from shoal.store.past import Past, PinnedTables, is_past_cursor
from shoal.store.query_recorder import QueryRecorder
from shoal.store.ranked import CHUNKS_MAX, METADATA_ROW, WEIGHTS, rows_among
from shoal.store.ranked_pages import ranked_page
from shoal.store.reading import Freshness, Row, Tables, View
from shoal.store.recall import FILE as RECALL_FILE
from shoal.store.requests import (
    LIMIT_MAX,
    QUERY_LENGTH_MAX,
    Hit,
    Mode,
    SearchPage,
    SearchRequest,
    check_collection,
    milliseconds,
)
from shoal.store.row_cache import ADDRESS
from shoal.store.schemas import IS_CURRENT, IS_DOCUMENT, JOB_COLUMNS, METADATA_COLUMNS, TableKind
from shoal.store.state_files import read_state, remove_state, write_state
from shoal.store.states import States
from shoal.store.tuning import Tunings

__all__ = ["Freshness", "Hit", "SearchIndex", "SearchPage", "SearchRequest"]

IN_FLIGHT_MAX = 32  # look-ups of so many are gathered into few (gathering.py): 8 give a quarter less; the rest queue
WAIT_S = 5.0  # the longest wait for a commit
WAITING_MAX = 64  # searches that wait for a commit at once, beside the gate; they share the looks at the tables
_WAIT_POLL_S = 0.05
_VERSIONS_MAX = 1_000  # rows of one hash
_REFRESH_S, _REFRESH_REMOTE_S = 1.0, 5.0  # an object store is asked over the network (facts 8)

T = TypeVar("T")


class SearchIndex:
    """The search side of one collection."""

    def __init__(self, tables: Tables, *, is_past: bool = False) -> None:
        self._tables = tables
        self._states = States(tables)
        self._is_past = is_past
        self._gate = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._waiting = 0
        self._feeds = FeedReader(tables)
        self._endpoints = advice.Endpoints()
        self.documents = Documents(tables, self._gate)
        self._recorder: QueryRecorder | None = None
        self._past: Past[SearchIndex] = Past(tables, self._of_the_past)

    @classmethod
    async def open(
        cls,
        uri: str,
        storage_options: Mapping[str, str] | None = None,
        *,
        collection: str = SCRAPER_COLLECTION,
        refresh_interval_s: float | None = None,
        settings: Settings | None = None,
        turn: int = 0,
    ) -> SearchIndex:
        """Opens the tables under `uri`. With `settings` it keeps a sample of its questions for whoever measures
        recall, and follows what was measured. `turn`: of the generation at `uri`. Raises TransientError while the
        tables don't exist."""
        if refresh_interval_s is None:
            refresh_interval_s = _REFRESH_REMOTE_S if "://" in uri else _REFRESH_S
        tables = await Tables.open(
            uri, storage_options or {}, collection, refresh_interval_s, settings=settings, turn=turn
        )
        index = cls(tables)
        if settings is not None:
            tables.tunings = Tunings(partial(read_state, settings, RECALL_FILE))
            write, remove = partial(write_state, settings), partial(remove_state, settings)
            index._recorder = QueryRecorder(settings.recall_queries, tables.facts.width, write, remove)
        await index._states.newest()
        return index

    @classmethod
    async def open_current(cls, settings: Settings, storage_options: dict[str, str]) -> SearchIndex:
        """The index of the generation of the collection that is in use. Raises as `open` does."""
        root = settings.tables_uri
        used = await asyncio.to_thread(active, root, storage_options)
        uri, turn = (root, 0) if used is None else (used.uri, used.turn)
        own = settings.model_copy(update={"lancedb_path": uri})  # what was measured lies beside the tables
        return await cls.open(uri, storage_options, settings=own, turn=turn)

    @property
    def is_left(self) -> bool:
        """Whether the collection has moved to another generation of tables, as far as the last refresh saw."""
        return self._tables.is_left

    async def close(self) -> None:
        if self._recorder is not None:
            await self._recorder.close()
        await self._feeds.close()
        await self._past.close()
        self._states.close()
        await self._tables.close()

    @property
    def model(self) -> str:
        """The embedding model of the collection, as its tables name it."""
        return self._tables.facts.model

    @property
    def width(self) -> int:
        """The width of its vectors."""
        return self._tables.facts.width

    # --- search -------------------------------------------------------------------------------

    async def search(self, request: SearchRequest) -> SearchPage:
        """One page of documents. Raises QueryError | TransientError."""
        if request.cursor and from_start(request.cursor) and self._is_past:
            raise CursorError("this is no cursor; start again without it")  # it names two states
        if request.as_of is not None or is_past_cursor(request.cursor):
            return await self._search_past(request)
        if (pinned := split_pin(request.cursor)) is not None:
            return await self._search_pinned(request, *pinned)
        started = time.monotonic()
        warnings: list[str] = []
        mode = self._checked(request, warnings)
        if self._recorder is not None and mode in ("vector", "hybrid") and request.filters is None:
            assert request.vector is not None
            self._recorder.note(request.vector)
        # Before the gate: a commit that never comes must not hold up those who ask for none.
        if request.wait_sequence is not None and not await self._wait(request.wait_sequence):
            warnings.append(f"commit {request.wait_sequence} was not seen within {WAIT_S:g} s: this may be older")
        async with self._gate:
            waited = time.monotonic()
            answer = self._ranked if mode != "sql" else self._listed

            async def read(tables: PinnedTables) -> tuple[SearchPage, Pin, float]:
                began = time.monotonic()
                return await answer(tables, request, mode), self._pin(tables.seen), began

            page, pin, began = await self._states.read(read)
        timings = {
            "queued": milliseconds(waited - started),
            "prepare": milliseconds(began - waited),
            "read": milliseconds(time.monotonic() - began),
            "total": milliseconds(time.monotonic() - started),
        }
        prefix = "" if self._is_past or mode == "sql" else str(pin)
        return SearchPage(
            mode=mode,
            hits=page.hits,
            next_cursor=prefix + page.next_cursor if page.next_cursor else None,
            freshness=page.freshness,
            warnings=(*warnings, *page.warnings),
            timings_ms=timings | page.timings_ms,
            explain=page.explain,
            unindexed_rows=await self.unindexed_rows(),
            facets=page.facets,
        )

    async def unindexed_rows(self, kind: TableKind = "vectors") -> dict[str, int | None]:
        """By leg (reading.LEGS), what its index does not cover yet. Beside an answer that is made already: where it
        can't be told, the answer goes without."""
        try:
            return await self._tables.unindexed_rows(kind)
        except TransientError:
            return {}

    def _pin(self, view: View) -> Pin:
        return Pin(view.freshness.commit_sequence, view.metadata, view.vectors, self._tables.turn)

    def _of_the_past(self, tables: Tables) -> SearchIndex:
        index = SearchIndex(tables, is_past=True)
        index._gate = self._gate  # one bound for all
        return index

    async def _search_past(self, request: SearchRequest) -> SearchPage:
        if request.wait_sequence is not None:
            raise QueryError("as_of asks for the index as it was: leave the wait token out")

        async def ask(index: SearchIndex, cursor: str | None) -> SearchPage:
            return await index.search(replace(request, as_of=None, cursor=cursor))

        page, state, prefix = await self._past.answer(request.as_of, request.cursor, ask)
        note = (
            f"as_of: the newest state kept before that is commit {state.as_of.sequence} of {state.as_of.committed_at}"
        )
        return replace(
            page,
            as_of=state.as_of,
            next_cursor=prefix + page.next_cursor if page.next_cursor else None,
            warnings=page.warnings if state.exact else (*page.warnings, note),
        )

    async def _search_pinned(self, request: SearchRequest, pin: Pin, inner: str) -> SearchPage:
        """A further page of a ranking, from the versions that its first page was read from."""
        waited = request.wait_sequence
        asked = replace(request, cursor=inner or None, wait_sequence=None)
        page = await self._past.pages(pin, lambda index: index.search(asked))
        note = f"these pages are of commit {pin.sequence}, before {waited}: start again without the cursor to see that"
        return replace(
            page,
            next_cursor=str(pin) + page.next_cursor if page.next_cursor else None,
            warnings=page.warnings if waited is None or waited <= pin.sequence else (*page.warnings, note),
        )

    def _checked(self, request: SearchRequest, warnings: list[str]) -> Mode:
        """The mode to use. Raises QueryError for what can't be answered; notes what is answered otherwise."""
        check_collection(request.collection)
        if not 1 <= request.limit <= LIMIT_MAX:
            raise QueryError(f"limit is {request.limit}; it must be 1 to {LIMIT_MAX}")
        if request.filters is not None:
            check(request.filters, FILTERS)
        self._check_ranking(request)
        mode = request.mode
        if mode == "hybrid" and request.vector is None:
            mode = "keyword"
            warnings.append("without a vector the search was by keyword only")
        if mode in ("keyword", "hybrid") and not request.query:
            raise QueryError(f"mode {mode} needs a query")
        if mode in ("vector", "hybrid"):
            if request.vector is None:
                raise QueryError("mode vector needs a vector")
            self._check_vector(request.vector)
        if mode in ("keyword", "hybrid") and len(request.query or "") > QUERY_LENGTH_MAX:
            warnings.append(f"only the first {QUERY_LENGTH_MAX} characters of the query were searched for as words")
        if mode != "sql" and request.include_superseded:
            warnings.append("only current versions can be ranked: include_superseded was ignored")
        return mode

    @staticmethod
    def _check_ranking(request: SearchRequest) -> None:
        if request.fusion not in WEIGHTS:
            raise QueryError(f"there is no fusion {request.fusion[:60]!r}; known: {', '.join(WEIGHTS)}")
        if request.mmr_lambda is not None and not 0.0 <= request.mmr_lambda <= 1.0:
            raise QueryError(f"mmr_lambda is {request.mmr_lambda}; it must be 0 (different) to 1 (by score)")
        if not 1 <= request.chunks_per_document <= CHUNKS_MAX:
            raise QueryError(f"chunks_per_document is {request.chunks_per_document}; it must be 1 to {CHUNKS_MAX}")
        request.boosts.check()
        facets.check(request.facets)

    def _check_vector(self, vector: Vector) -> None:
        if vector.shape != (self.width,):
            raise QueryError(f"the vector has shape {vector.shape}, the collection ({self.width},): model {self.model}")
        # Lance answers such a vector with nothing, as if nothing were there.
        if not np.isfinite(vector).all() or not vector.any():
            raise QueryError("the vector is zero or holds NaN or infinity: nothing is near to it")

    async def _listed(self, tables: PinnedTables, request: SearchRequest, mode: Mode) -> SearchPage:
        key = fingerprint(mode, request.collection, request.filters, request.include_superseded)
        after = decode(request.cursor, key) if request.cursor else None
        if isinstance(after, OffsetCursor):
            raise CursorError("the cursor belongs to a ranked query; start again without it")
        listing = await scanning.newest(
            tables, request.filters, request.limit, after, include_superseded=request.include_superseded
        )
        found = listing.rows or {
            row["revision"]: row
            for row in await rows_among(tables, "metadata", "revision", listing.revisions, METADATA_ROW)
        }
        hits = tuple(
            Hit(metadata=_served(found[revision]), explain={"rank": rank_of} if request.explain else None)
            for rank_of, revision in enumerate(listing.revisions, start=1)
            if revision in found
        )
        counts = (
            await facets.of_listing(
                tables, request.facets, request.filters, include_superseded=request.include_superseded
            )
            if request.facets
            else None
        )
        return SearchPage(
            mode=mode,
            hits=hits,
            next_cursor=encode(listing.behind, key) if listing.behind else None,
            freshness=tables.seen.freshness,
            warnings=listing.warnings,
            explain={"metadata_filter": listing.condition} if request.explain else None,
            facets=counts,
        )

    async def _ranked(self, tables: PinnedTables, request: SearchRequest, mode: Mode) -> SearchPage:
        # What was new then is what a search of then would have found new.
        then = tables.seen.freshness.committed_at if self._is_past else None
        return await ranked_page(tables, request, mode, tables.seen, then or datetime.now(UTC))

    async def _wait(self, sequence: int) -> bool:
        """Whether the commit was seen in time. Raises TransientError where too many wait already."""
        deadline = time.monotonic() + WAIT_S
        state = await self._states.newest()
        if state.seen.freshness.commit_sequence >= sequence:
            return True
        if self._waiting >= WAITING_MAX:
            raise TransientError(
                f"{WAITING_MAX} searches wait for a commit already: ask again in some seconds, or without a wait token",
                WAIT_S,
            )
        self._waiting += 1
        try:
            while state.seen.freshness.commit_sequence < sequence:
                if time.monotonic() >= deadline:
                    return False
                await asyncio.sleep(_WAIT_POLL_S)
                state = await self._states.newest(max_age_s=_WAIT_POLL_S)
        finally:
            self._waiting -= 1
        return True

    # --- look-ups -----------------------------------------------------------------------------

    async def by_hash(self, sha256: str) -> list[dict[str, Any]]:
        """The metadata of all documents and versions whose stored bytes have this hash, newest first."""
        async with self._gate:
            rows = await self._states.read(lambda tables: self._with_hash(tables, sha256.lower()))
        return [_served(row) for row in scanning.newest_first(rows)]

    @staticmethod
    async def _with_hash(tables: PinnedTables, sha256: str) -> list[Row]:
        """The rows of a hash, looked up with those that others ask for, but where one of them has very many."""
        columns = ("sha256_hash", ADDRESS)
        places = await tables.gathering.rows("metadata", "sha256_hash", [sha256], columns, IS_DOCUMENT, _VERSIONS_MAX)
        if places is None:
            condition = where(IS_DOCUMENT, Equals("sha256_hash", sha256), columns=METADATA_FILTERS)
            return await tables.rows("metadata", condition, METADATA_ROW, _VERSIONS_MAX, scanning.NEWEST_FIRST)
        return list((await tables.kept.rows("metadata", [place[ADDRESS] for place in places], METADATA_ROW)).values())

    async def similar_apis(self, vector: Vector, limit: int) -> list[Hit]:
        """The `limit` APIs nearest to the embedded description, each with its first chunk. Raises QueryError."""
        self._check_vector(vector)
        async with self._gate:
            nearest = await self._states.read(
                lambda tables: advice.similar_apis(tables, self._endpoints, vector, limit)
            )
        return [
            Hit(metadata=_served(one.metadata), chunk=one.chunk, score=one.score, distance=one.distance)
            for one in nearest
        ]

    async def fixes(
        self,
        scraper_name: str,
        error_type: str | None = None,
        vector: Vector | None = None,
        error_message: str | None = None,
        limit: int = 5,
    ) -> list[dict[str, Any]]:
        """Reported fixes, of this scraper and of others like it, by likeness of the error (by vector, else by words of
        the message), kinship of the scrapers and how often they worked; those marked wrong last. Each has `similarity`
        (0..1 or None) and `evidence`."""
        if vector is not None:
            self._check_vector(vector)
        await self._tables.view()
        async with self._gate:
            return await advice.fixes(self._tables, scraper_name, error_type, vector, error_message, limit)

    async def job(self, command_id: str) -> dict[str, Any] | None:
        """What became of a command, None while it is not applied."""
        await self._tables.latest("jobs")
        condition = where(IS_DOCUMENT, Equals("command_id", command_id), columns={"command_id": "text"})
        rows = await self._tables.rows("jobs", condition, JOB_COLUMNS, 1)
        return rows[0] if rows else None

    async def feeds(self) -> Catalogue | None:
        """Every dataset with its cadence, about a minute old; None while the first look is under way."""
        return await self._feeds.catalogue()

    async def freshness(self) -> Freshness:
        """How far the tables are that searches read."""
        return (await self._states.newest()).seen.freshness

    async def counts(self) -> dict[str, int]:
        """{"documents": current ones, "chunks": theirs}."""
        await self._tables.view()
        documents, chunks = await asyncio.gather(
            self._tables.count("metadata", IS_CURRENT), self._tables.count("vectors", IS_DOCUMENT)
        )
        return {"documents": documents, "chunks": chunks}


def _served(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in METADATA_COLUMNS}
