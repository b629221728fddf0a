"""The documents that a filter leaves, where only their metadata can tell: named to the search of chunks by their ids.

Few are named in each search (`NAMED_FIRST_MAX`). More are met by ranking first and looking at the metadata after; where
that does not fill the page, up to `NAMED_MAX` are named after all, in pieces. So a filter loses nothing to a ranking
that looks elsewhere, and costs nothing where the ranking has enough. Reads only through `Tables`.

Measured at 20,000 chunks of 1,536 floats with IVF-PQ (CPU): 9 us per name of the vector search, 6 us of the keyword
search, and some 20 ms per piece; a look at 1,024 chunks is as dear as some 4,000 names.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from shoal.store.conditions import among
from shoal.store.reading import Tables

NAMED_MAX = 100_000
"""Of so many documents naming takes 1.5 s of CPU and 20 MB. What a filter leaves beyond that is only found among the
chunks of the deepest look, and an answer that is short of results says so."""
PIECE = 10_000
"""Names of one search: half a megabyte of SQL. Smaller ones pay the cost of a search more often."""
NAMES_PER_CHUNK = 4
"""A look at one chunk more costs about as much as so many names: looks come first as long as they are cheaper."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look of each leg: at the best `depth` chunks that meet `condition` and, where `names` is given, are of the
    documents it names. `is_last`: no other follows."""

    depth: int
    condition: str
    names: Sequence[str] | None = None
    is_last: bool = False

    def parts(self) -> Iterator[tuple[str, bool]]:
        """(condition, whether it may leave few chunks) of each search that makes up the look."""
        if self.names is None:
            yield self.condition, bool(self.condition)
            return
        for start in range(0, len(self.names), PIECE):
            piece = list(self.names[start : start + PIECE])
            named = among("metadata_id", piece)
            # To count what a large piece leaves would cost half as much as the search.
            yield (f"{self.condition} and {named}" if self.condition else named), len(piece) < PIECE // 4


@dataclass(slots=True)
class Selection:
    """What meets a filter on metadata. `condition`: in the metadata table, '' where there is no such filter. `ids`:
    the documents, sorted, None where they are not known; `count` likewise (a lower bound where they are too many)."""

    condition: str = ""
    ids: Sequence[str] | None = None
    count: int | None = None
    members: frozenset[str] | None = None
    applied: str = "none"

    @classmethod
    async def of(cls, tables: Tables, condition: str, named_first_max: int) -> Selection:
        """With the ids where they are few; `condition` may be '': no filter."""
        if not condition:
            return cls()
        ids = await _ids(tables, condition, named_first_max)
        if ids is None:
            return cls(condition, count=named_first_max + 1, applied="after ranking")
        return cls(condition, ids, len(ids), applied="named")

    async def looks(self, tables: Tables, chunk_condition: str, depths: Sequence[int]) -> AsyncGenerator[Look, None]:
        """The looks in turn, cheapest first; the same for the same tables, however many of them are taken."""
        if not self.condition or self.ids is not None:
            for depth in depths:
                yield Look(depth, chunk_condition, self.ids, is_last=depth == depths[-1])
            return
        shallow, *deeper = depths
        yield Look(shallow, chunk_condition)
        ids = await _ids(tables, self.condition, NAMED_MAX)
        if ids is None:
            self.count = NAMED_MAX + 1
        else:
            self.count, self.members = len(ids), frozenset(ids)
            deeper = [depth for depth in deeper if NAMES_PER_CHUNK * depth <= len(ids)]
        for depth in deeper:
            yield Look(depth, chunk_condition, is_last=ids is None and depth == depths[-1])
        if ids is None:
            return
        self.applied = "after ranking, then named"
        for depth in dict.fromkeys((depths[min(1, len(depths) - 1)], depths[-1])):
            yield Look(depth, chunk_condition, ids, is_last=depth == depths[-1])

    @property
    def shown(self) -> str | int | None:
        """How many documents, as far as it was counted."""
        if self.count is None or self.ids is not None or self.members is not None:
            return self.count
        return f"more than {self.count - 1}"

    def may_hold(self, document_id: str) -> bool:
        """False where the document certainly does not meet the filter."""
        return self.members is None or document_id in self.members


class _Names:
    def __init__(self) -> None:
        self.ids: list[str] = []

    def take(self, batch: pa.RecordBatch) -> None:
        self.ids += batch["id"].to_pylist()


async def _ids(tables: Tables, condition: str, most: int) -> list[str] | None:
    """Sorted, so that a piece lies together in the index of the names; None where they are more than `most`."""
    found = await tables.folded("metadata", condition, ("id",), _Names, most + 1)
    return sorted(found.ids) if len(found.ids) <= most else None
