"""What the tables on disk are, read with lance alone: how much of them is indexed, and how large they are; and what
their writer has noted that it owes them.

It opens the newest version each time and writes nothing. Only for tables on a local disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance

from shoal.settings import Settings
from shoal.store.index_policy import Act
from shoal.store.index_state import STATE
from shoal.store.schemas import IS_DOCUMENT
from shoal.store.state_files import read_state

TABLES = ("scraper_metadata", "scraper_vectors", "scraper_fixes", "shoal_jobs")
VECTOR_COLUMN, TEXT_COLUMN = "content_embedding", "content_summary"


@dataclass(frozen=True, slots=True)
class Coverage:
    """Chunks, and how many of them each index holds (None: there is no such index)."""

    rows: int
    text: int | None
    vector: int | None

    def is_whole(self, *, with_vectors: bool, spare: int = 0) -> bool:
        """Whether at most `spare` chunks are in no index. Without a vector index a search is exact."""
        least = self.rows - spare
        has_vectors = self.vector is not None and self.vector >= least
        return (self.text or 0) >= least and (has_vectors or (self.vector is None and not with_vectors))

    @property
    def share(self) -> float:
        """The share of chunks in the index that has the fewest."""
        if not self.rows:
            return 1.0
        held = [self.text or 0] + ([self.vector] if self.vector is not None else [])
        return min(1.0, min(held) / self.rows)


def owed(settings: Settings) -> list[str]:
    """Columns whose index is to be built, now or after the rest that follows a build."""
    state = read_state(settings, STATE) or {}
    kept = [one for columns in state.get("tables", {}).values() for one in columns.items()]
    return [column for column, record in kept if record["due"] != Act.NOTHING]


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of the newest version: its data files, its vector index, all its indexes; and of everything there is,
    older versions and what was left included."""

    data: int
    vector_index: int
    indexes: int
    disk: int


def dataset(uri: str, table: str) -> Any:
    return lance.dataset(f"{uri}/{table}.lance")


def coverage(uri: str) -> Coverage:
    """Of the chunk table, by the fragments that each index covers: the rows that Lance tells of an index count the
    fence's too."""
    chunks = dataset(uri, "scraper_vectors")
    rows = {one.fragment_id: one.count_rows(IS_DOCUMENT) for one in chunks.get_fragments()}
    held = {
        index.field_names[0]: sum(
            rows.get(one, 0) for one in set().union(*(part.fragment_ids for part in index.segments))
        )
        for index in chunks.describe_indices()
    }
    return Coverage(sum(rows.values()), held.get(TEXT_COLUMN), held.get(VECTOR_COLUMN))


def size(uri: str, tables: tuple[str, ...] = TABLES) -> Size:
    """Of these tables together."""
    data = indexes = vector_index = disk = 0
    for table in tables:
        opened, place = dataset(uri, table), Path(uri) / f"{table}.lance"
        data += sum(file.file_size_bytes or 0 for one in opened.get_fragments() for file in one.data_files())
        for index in opened.describe_indices():
            indexes += int(index.total_size_bytes or 0)
            vector_index += int(index.total_size_bytes or 0) if index.field_names == [VECTOR_COLUMN] else 0
        disk += disk_bytes(place)
    return Size(data, vector_index, indexes, disk)


def disk_bytes(place: Path) -> int:
    """Of all files under a directory. Files that vanish on the way count nothing."""
    total = 0
    for path in place.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total
