"""Rows by their address in the table, kept in memory: what many questions find is read once.

An address (`_rowaddr`: fragment and place in it) never holds another row: every commit of ours writes whole rows into
new fragments, and Lance gives no fragment's number twice, not even after a version was put back. So a kept row is true
for as long as a version has its address; whether the version that is read has it, the query that found the address has
told. Only a table that was made anew begins again with the same numbers: then `clear`. What is missing is read by a
Gathering. Reading 44 columns of ten rows takes 15 to 25 ms of processor time, of which this saves all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from shoal.store.gathering import Gathering, Row
from shoal.store.schemas import TableKind

ADDRESS = "_rowaddr"
"""May stand among the columns of a read."""

NARROW_COLUMNS = 6
NARROW_ROWS_MAX, WIDE_ROWS_MAX = 50_000, 6_000
"""Of one table and choice of columns: some 25 MB of keys (half a KB a row), 40 MB of whole rows (up to 8 KB)."""


class RowCache:
    """One per set of handles, for one event loop. Rows are shared: whoever gets one does not change it."""

    def __init__(self, gathering: Gathering) -> None:
        self._gathering = gathering
        self._kept: dict[tuple[TableKind, tuple[str, ...]], OrderedDict[int, Row]] = {}

    def through(self, gathering: Gathering) -> RowCache:
        """The same rows; those that are missing are read by another gathering."""
        other = RowCache(gathering)
        other._kept = self._kept
        return other

    async def rows(self, kind: TableKind, addresses: Iterable[int], columns: Sequence[str]) -> dict[int, Row]:
        """By address `columns` of the rows there; those are left out that no kept row nor the version read now has."""
        key = (kind, tuple(columns))
        kept = self._kept.setdefault(key, OrderedDict())
        found: dict[int, Row] = {}
        missing: list[int] = []
        for address in addresses:
            if (row := kept.get(address)) is None:
                missing.append(address)
            else:
                kept.move_to_end(address)
                found[address] = row
        if missing:
            rows = await self._gathering.rows(kind, ADDRESS, missing, columns)
            taken = {row.pop(ADDRESS): row for row in rows or ()}
            found |= taken
            if self._kept.get(key) is kept:  # else it was cleared meanwhile
                kept |= taken
                most = NARROW_ROWS_MAX if len(columns) <= NARROW_COLUMNS else WIDE_ROWS_MAX
                while len(kept) > most:
                    kept.popitem(last=False)
        return found

    def clear(self, kind: TableKind) -> None:
        """Forget the rows of a table: it may be another one now, or have other columns."""
        for key in [key for key in self._kept if key[0] == kind]:
            del self._kept[key]
