"""The index as it was: which versions of the two tables hold the state of a time or of a commit, and handles on them.

Two sources, both found without listing versions: snapshots (tags, snapshots.py), and the versions that cleanup has
not reached yet, a block of numbers up to the latest. A table's fence tells each version's commit; it never falls but
by the undoing of half a commit, which puts back the same rows. So the version is found by bisection between two
neighbouring snapshots, some dozen looks at a fence, and what was looked at is remembered: versions don't change.

Guarantee: the two versions belong together (the chunks' is the last one not past the metadata's commit), and the
live handles never move. Handles on the past are few (`PINNED_MAX`) and share the live ones' caches. A state whose
files go while it is read is looked for again; then it may be an earlier one, and the answer says so. Pages of a ranking
of the present are read here too, from the very versions of their first page (`pages`), and from no others.

Fails with QueryError for what is not kept, naming the earliest that is; else as `Tables` does.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from shoal.store.cursors import CursorError, Pin, check_turn, shown_turn
from shoal.store.fence import Fence
from shoal.store.filters import QueryError
from shoal.store.reading import Freshness, Tables, View, _guarded, _VanishedError
from shoal.store.requests import AsOf
from shoal.store.schemas import FENCE_PREDICATES, TableKind
from shoal.store.snapshots import PairKind, Snapshot, paired

PINNED_MAX = 8
"""States held open at once: an agent compares two or three, others turn pages. Each holds two handles, whose files
cleanup may take; one that is not held is opened in some 10 ms, on S3 by a handful of requests."""
FENCES_MAX = 10_000  # remembered looks, some 100 bytes each
TAGS_AGE_S = 10.0  # how long a listing of the tags is believed; a snapshot is made every few minutes
_ATTEMPTS = 3

T = TypeVar("T")
P = TypeVar("P")
When = datetime | int


@dataclass(frozen=True, slots=True)
class Look:
    """What a version's fence says; None in its place where the version is gone."""

    sequence: int
    committed_at: datetime | None


@dataclass(frozen=True, slots=True)
class State:
    """The versions of one state. `exact`: it is what was asked for, not the newest kept before it."""

    as_of: AsOf
    metadata: int
    vectors: int
    exact: bool


class PinnedTables(Tables):
    """`Tables` of one state: its handles stand on given versions and never move. `is_newest`: of the present, so that
    it shares what the live ones know of their rows and indexes."""

    def __init__(self, live: Tables, state: State, freshness: Freshness, *, is_newest: bool = False) -> None:
        super().__init__(live._connection, live._uri, live._collection, float("inf"))
        self.facts = live.facts
        self.tunings = live.tunings  # else a page would be searched otherwise than the one before it
        self._state = state
        self._made_of = live._fresh_handles
        if is_newest:
            self.kept = live.kept.through(self.gathering)
            self._index_rows, self._coverage = live._index_rows, live._coverage
        self.is_fresh_as(freshness)

    def is_of(self, view: View, live: Tables) -> bool:
        """Whether this is the state of a view of the live tables."""
        seen = (self._state.metadata, self._state.vectors, self._made_of)
        return seen == (view.metadata, view.vectors, live._fresh_handles)

    def is_fresh_as(self, freshness: Freshness) -> None:
        """What answers say of themselves."""
        self._view = View(freshness, self._state.metadata, self._state.vectors)

    @property
    def seen(self) -> View:
        """What this is of."""
        assert self._view is not None
        return self._view

    async def view(self, max_age_s: float | None = None) -> View:
        return self.seen

    async def latest(self, kind: TableKind) -> None:
        raise AssertionError(f"{kind} has no past")

    async def handle(self, kind: TableKind) -> Any:
        if kind not in self._handles:
            assert kind in ("metadata", "vectors"), "only these are paired"
            version = self._state.metadata if kind == "metadata" else self._state.vectors
            table = await _guarded(self._connection.open_table, self._names[kind])
            await _guarded(lambda opened: opened.checkout(version), table)
            self._lacking.look(kind, await _guarded(lambda opened: opened.schema(), table))
            self._handles.setdefault(kind, table)
        return self._handles[kind]

    async def close(self) -> None:
        """Its handles; the connection is the live tables'."""
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()

    async def _read(self, kind: TableKind, read: Callable[[Any], Awaitable[T]]) -> T:
        return await _guarded(read, await self.handle(kind))


class Past(Generic[T]):
    """The past states of one collection. `serve` makes what answers from the tables of one (a SearchIndex)."""

    def __init__(self, live: Tables, serve: Callable[[Tables], T]) -> None:
        self._live = live
        self._serve = serve
        self._lock = asyncio.Lock()
        self._looks: OrderedDict[tuple[PairKind, int], Look] = OrderedDict()
        self._pinned: OrderedDict[tuple[int, int], tuple[PinnedTables, T]] = OrderedDict()
        self._probes: dict[PairKind, Any] = {}
        self._snapshots: list[Snapshot] = []
        self._listed_at = float("-inf")

    async def answer(
        self, when: When | None, cursor: str | None, ask: Callable[[T, str | None], Awaitable[P]]
    ) -> tuple[P, State, str]:
        """`ask(index of the state, inner cursor)`, the state, and the prefix for the next cursor. `when` may be None
        where the cursor names the state. Raises QueryError, CursorError, TransientError."""
        prefix, inner = (None, None) if cursor is None else split_cursor(cursor, when)
        if prefix is not None:
            check_turn(prefix.turn, self._live.turn)
        for attempt in range(_ATTEMPTS):
            try:
                async with self._lock:
                    state = await self.find(prefix.sequence if prefix else when)
                    index = await self._open(state)
                if prefix is not None and state.as_of.sequence != prefix.sequence:
                    raise CursorError(f"commit {prefix.sequence} is no longer kept: start again without the cursor")
                marked = prefix or CursorPrefix(state.as_of.sequence, mark(when), self._live.turn)
                return await ask(index, inner or None), state, str(marked)
            except _VanishedError:  # cleaned away since it was found
                self._forget()
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    async def pages(self, pin: Pin, ask: Callable[[T], Awaitable[P]]) -> P:
        """`ask(index of the pinned versions)`. Raises CursorError where they are gone, TransientError."""
        check_turn(pin.turn, self._live.turn)
        key = (pin.metadata, pin.vectors)
        gone = CursorError(
            f"the state that these pages were read from (commit {pin.sequence}) is no longer kept: start again without "
            "the cursor"
        )
        try:
            if key not in self._pinned:
                state = State(AsOf(pin.sequence, None), pin.metadata, pin.vectors, exact=True)
                tables = PinnedTables(self._live, state, Freshness(pin.sequence, None))
                fence = await tables.fence("metadata")
                if fence is None or fence.commit_sequence != pin.sequence:  # of tables that were there before these
                    raise gone
                tables.is_fresh_as(Freshness(fence.commit_sequence, fence.committed_at, fence.positions()))
                await self._keep(key, tables)
            self._pinned.move_to_end(key)
            return await ask(self._pinned[key][1])
        except _VanishedError:
            self._pinned.pop(key, None)
            raise gone from None

    async def find(self, when: When | None) -> State:
        """The state of `when` (a commit sequence, or an aware time), or the newest kept before it."""
        view = await self._live.view(max_age_s=0.0)
        newest = view.freshness
        if isinstance(when, int) and when > newest.commit_sequence:
            raise QueryError(f"as_of: commit {when} has not happened; the latest is {newest.commit_sequence}")
        if isinstance(when, datetime) and when > datetime.now(UTC):
            raise QueryError(f"as_of: {when.isoformat()} lies in the future; leave as_of out for the index as it is")
        assert when is not None
        snapshots = await self._kept()
        before = max((one for one in snapshots if not _is_past(one, when)), default=None)
        after = min((one for one in snapshots if _is_past(one, when)), default=None)
        exact = True
        version, look = await self._last("metadata", before, after, lambda look: not _is_past(look, when))
        if look is None:
            if before is None:
                raise QueryError(f"as_of: {_shown(when)} is no longer kept; the earliest is {await self._earliest()}")
            version, look = before.metadata, Look(before.sequence, before.committed_at)
            exact = before.sequence == when
        sequence = look.sequence
        vectors, chunks = await self._last("vectors", before, after, lambda look: look.sequence <= sequence)
        if chunks is None:  # older than any commit that is still there
            if before is None:
                raise QueryError(f"as_of: {_shown(when)} is no longer kept; the earliest is {await self._earliest()}")
            version, vectors, exact = before.metadata, before.vectors, before.sequence == when
            look = Look(before.sequence, before.committed_at)
        return State(AsOf(look.sequence, look.committed_at), version, vectors, exact)

    async def _last(
        self, kind: PairKind, before: Snapshot | None, after: Snapshot | None, holds: Callable[[Look], bool]
    ) -> tuple[int, Look | None]:
        """The last version between two neighbouring snapshots for which `holds`; (0, None) where it is gone. What is
        missing lies below what is there, and counts as holding."""
        low = getattr(before, kind) if before else 0
        if after is not None:
            high = getattr(after, kind)
            if (look := await self._look(kind, high)) is not None and holds(look):
                high += 1  # the chunks' version may be that of the snapshot after, too
        else:
            high = 1 + await self._latest_version(kind)
        while high - low > 1:
            middle = (low + high) // 2
            look = await self._look(kind, middle)
            low, high = (middle, high) if look is None or holds(look) else (low, middle)
        look = await self._look(kind, low) if low else None
        return (low, look) if look is not None and holds(look) else (0, None)

    async def _earliest(self) -> str:
        """The earliest state that can be asked for, in words."""
        snapshots = await self._kept()
        high = snapshots[0].metadata if snapshots else await self._latest_version("metadata")
        low = 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if await self._look("metadata", middle) is None else (low, middle)
        look = await self._look("metadata", high)
        if look is None:
            return "gone just now: ask again"
        at = f" of {look.committed_at:%Y-%m-%dT%H:%M:%S.%fZ}" if look.committed_at else ""
        return f"commit {look.sequence}{at}"

    async def _kept(self) -> list[Snapshot]:
        if time.monotonic() - self._listed_at > TAGS_AGE_S:
            tags = [await _guarded(_tags_of, await self._probe(kind)) for kind in ("metadata", "vectors")]
            self._snapshots = paired(*tags)
            self._listed_at = time.monotonic()
        return self._snapshots

    async def _latest_version(self, kind: PairKind) -> int:
        async def latest(table: Any) -> int:
            await table.checkout_latest()
            return int(await table.version())

        return await _guarded(latest, await self._probe(kind))

    async def _look(self, kind: PairKind, version: int) -> Look | None:
        if (known := self._looks.get((kind, version))) is not None:
            self._looks.move_to_end((kind, version))
            return known

        async def look(table: Any) -> list[dict[str, Any]]:
            await table.checkout(version)
            found = await table.query().where(FENCE_PREDICATES[kind]).select(["fence"]).limit(1).to_arrow()
            rows: list[dict[str, Any]] = found.to_pylist()
            return rows

        try:
            rows = await _guarded(look, await self._probe(kind))
        except _VanishedError:
            return None
        if not rows:  # the version that made the table holds none yet
            return None
        fence = Fence.from_json(rows[0]["fence"])
        if fence.is_copy:  # the collection was in other tables then
            return None
        seen = self._looks[kind, version] = Look(fence.commit_sequence, fence.committed_at)
        while len(self._looks) > FENCES_MAX:
            self._looks.popitem(last=False)
        return seen

    async def _probe(self, kind: PairKind) -> Any:
        """A handle of its own, which moves from version to version."""
        if kind not in self._probes:
            self._probes[kind] = await _guarded(self._live._connection.open_table, self._live._names[kind])
        return self._probes[kind]

    async def _open(self, state: State) -> T:
        key = (state.metadata, state.vectors)
        if key not in self._pinned:
            await self._keep(
                key, PinnedTables(self._live, state, Freshness(state.as_of.sequence, state.as_of.committed_at))
            )
        self._pinned.move_to_end(key)
        return self._pinned[key][1]

    async def _keep(self, key: tuple[int, int], tables: PinnedTables) -> None:
        await tables.handle("metadata")
        await tables.handle("vectors")
        self._pinned.setdefault(key, (tables, self._serve(tables)))
        while len(self._pinned) > PINNED_MAX:
            self._pinned.popitem(last=False)  # a search may still read it: its handles close with the last one

    def _forget(self) -> None:
        self._looks.clear()
        self._pinned.clear()
        self._probes.clear()
        self._listed_at = float("-inf")

    async def close(self) -> None:
        for tables, _ in self._pinned.values():
            await tables.close()
        for probe in self._probes.values():
            probe.close()
        self._pinned.clear()
        self._probes.clear()


def _is_past(state: Snapshot | Look, when: When) -> bool:
    """Whether `state` came after `when`."""
    if isinstance(when, int):
        return state.sequence > when
    return state.committed_at is not None and state.committed_at > when


def _shown(when: When) -> str:
    return f"commit {when}" if isinstance(when, int) else when.isoformat()


async def _tags_of(table: Any) -> dict[str, int]:
    return {name: int(tag["version"]) for name, tag in (await table.tags.list()).items()}


# --- cursors ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CursorPrefix:
    """What a cursor of the past begins with: the state that the pages before were read from, and which `as_of` was
    asked for; `turn`: of the tables' generation."""

    sequence: int
    asked: str
    turn: int = 0

    def __str__(self) -> str:
        return f"~{self.sequence}{shown_turn(self.turn)}~{self.asked}~"


def mark(when: When | None) -> str:
    """Names an `as_of` in a cursor."""
    return hashlib.blake2b(repr(when).encode(), digest_size=4).hexdigest()


def is_past_cursor(cursor: str | None) -> bool:
    return cursor is not None and cursor.startswith("~")


def split_cursor(cursor: str, when: When | None) -> tuple[CursorPrefix, str]:
    """The prefix and the inner cursor, '' at the first page. Raises CursorError where it belongs to another `as_of`;
    with None the cursor alone decides."""
    parts = cursor.split("~", 3)
    _, state, asked, inner = [*parts, "", "", ""][:4]
    named = re.fullmatch(r"([0-9]{1,18})(?:\.([0-9]{1,18}))?", state)
    if not is_past_cursor(cursor) or len(parts) < 4 or named is None:
        raise CursorError("the cursor belongs to a search without as_of; start again without it")
    if when is not None and asked != mark(when):
        raise CursorError("the cursor belongs to another as_of; repeat the query unchanged, or start without it")
    sequence, turn = map(int, named.groups("0"))
    return CursorPrefix(sequence, asked, turn), inner
