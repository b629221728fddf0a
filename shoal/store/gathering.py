"""Look-ups by key, those of several questions in one query.

A query of Lance costs some 3 ms of processor time to plan and 0.2 for each column, a further row less than 0.1
(measured: 44 columns of one row 12 ms, of 18 rows 13). So while a look-up runs, the keys that others ask for wait, and
go together in the next; where none runs, nobody waits. Each gets the rows of its own keys, from the versions that the
handles are on when the query begins, as if it had asked alone then. Reads only through what it is given.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.store.schemas import TableKind

Row = dict[str, Any]
Key = str | int
Read = Callable[[TableKind, str, Collection[Any], Sequence[str], str, int | None], Awaitable[list[Row]]]
"""(table, key column, keys, columns, condition, most rows or None) -> rows, which have the key column."""

KEYS_MAX = 400
"""Of one query: those of some twenty pages. More would make all of them wait for the largest."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What can go together."""

    table: TableKind
    column: str
    columns: tuple[str, ...]
    condition: str
    most: int | None


@dataclass(frozen=True, slots=True)
class _Wish:
    keys: frozenset[Key]
    answer: asyncio.Future[list[Row] | None]


class Gathering:
    """One per set of handles, for one event loop."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._waiting: dict[_Kind, deque[_Wish]] = {}
        self._running: dict[_Kind, asyncio.Task[None]] = {}
        self._asked: dict[_Kind, list[_Wish]] = {}

    async def rows(
        self,
        table: TableKind,
        column: str,
        keys: Collection[Key],
        columns: Sequence[str],
        condition: str = "",
        most: int | None = None,
    ) -> list[Row] | None:
        """The rows whose `column` is one of `keys` and that meet `condition`. None where the query had `most` rows or
        more, with those of others: then ask alone. Raises what the reading raises."""
        if not keys:
            return []
        kind = _Kind(table, column, tuple(columns), condition, most)
        wish = _Wish(frozenset(keys), asyncio.get_running_loop().create_future())
        self._waiting.setdefault(kind, deque()).append(wish)
        if kind not in self._running:
            self._start(kind)
        return await wish.answer

    def _start(self, kind: _Kind) -> None:
        # A task of its own: whoever gives up must not take the answer from the others.
        task = self._running[kind] = asyncio.create_task(self._run(kind))
        task.add_done_callback(lambda done: self._ended(kind, done))

    async def _run(self, kind: _Kind) -> None:
        waiting = self._waiting[kind]
        while waiting:
            if batch := _taken(waiting):
                self._asked[kind] = batch
                await self._answer(kind, batch)

    def _ended(self, kind: _Kind, task: asyncio.Task[None]) -> None:
        del self._running[kind]
        asked, waiting = self._asked.pop(kind, ()), self._waiting[kind]
        if task.cancelled():  # with its loop: nobody is left waiting
            for wish in (*asked, *waiting):
                wish.answer.cancel()
            waiting.clear()
        if waiting:  # who came after its last look
            self._start(kind)
        else:
            del self._waiting[kind]

    async def _answer(self, kind: _Kind, batch: Sequence[_Wish]) -> None:
        keys: frozenset[Key] = frozenset().union(*(wish.keys for wish in batch))
        try:
            rows = await self._read(kind.table, kind.column, keys, kind.columns, kind.condition, kind.most)
        except Exception as error:
            for wish in batch:
                if not wish.answer.done():
                    wish.answer.set_exception(error)
            return
        is_whole = kind.most is None or len(rows) < kind.most
        for wish in batch:
            if not wish.answer.done():
                # Copies: what one caller does to its rows is not the others' business.
                mine = [row if len(batch) == 1 else dict(row) for row in rows if row[kind.column] in wish.keys]
                wish.answer.set_result(mine if is_whole else None)


def _taken(waiting: deque[_Wish]) -> list[_Wish]:
    """The next wishes that go together: the first, and what fits beside it."""
    batch: list[_Wish] = []
    count = 0
    while waiting and (not batch or count + len(waiting[0].keys) <= KEYS_MAX):
        wish = waiting.popleft()
        if wish.answer.done():  # its caller has given up
            continue
        batch.append(wish)
        count += len(wish.keys)
    return batch
