"""Tables of an earlier index, read for `shoal import-lancedb`: rows, and each document's chunks with their vectors.

Any sane subset of the columns of contracts 2 will do; vectors may be lists or fixed-size lists of floats. Such tables
have no index on what joins them, so where each document's chunks stand is read once (16 bytes a chunk), and the
chunks are then taken by place. Memory beside that is one batch of documents. Reads only. Raises ConfigurationError
where the tables aren't what is needed, TransientError where they can't be read.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from shoal.errors import ConfigurationError
from shoal.records import Matrix
from shoal.store.rows import Row
from shoal.store.schemas import table_uri
from shoal.store.tables import lance_errors

IMPORTED = "import:"
"""Begins the Kafka cluster's name in the rows of imported documents: no message of theirs is in any log."""
VECTOR = "content_embedding"
DOCUMENTS_AT_ONCE = 100
_SCAN_ROWS = 8_192
_NEEDED = {"metadata": ("id", "sha256_hash"), "vectors": ("metadata_id", VECTOR)}


@dataclass(frozen=True, slots=True)
class ForeignDocument:
    """One metadata row and its chunks in their order. `vectors`: shape (chunks, width), None where one is missing."""

    row: Row
    chunks: tuple[Row, ...]
    vectors: Matrix | None


class ForeignTables:
    """The pair of tables, at the versions they have now."""

    def __init__(self, metadata: Any, vectors: Any, where: str) -> None:
        """Use `open`."""
        self._metadata, self._vectors, self.where = metadata, vectors, where
        self.width = self._width()

    @classmethod
    def open(cls, uri: str, options: dict[str, str], metadata_table: str, vectors_table: str) -> ForeignTables:
        opened = []
        for what, name in (("metadata", metadata_table), ("vectors", vectors_table)):
            place = table_uri(uri, name)
            try:
                with lance_errors(f"opening {place}"):
                    dataset = lance.dataset(place, storage_options=options or None)
            except ValueError as error:
                raise ConfigurationError(f"no table {name} at {uri}: --{what}-table names another ({error})") from None
            missing = [column for column in _NEEDED[what] if column not in dataset.schema.names]
            if missing:
                raise ConfigurationError(f"{place} has no column {', '.join(missing)}: it is no {what} table")
            opened.append(dataset)
        return cls(opened[0], opened[1], f"{uri.rstrip('/')}/{metadata_table}")

    def _width(self) -> int:
        kind = self._vectors.schema.field(VECTOR).type
        is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if not is_list or not pa.types.is_floating(kind.value_type):
            raise ConfigurationError(f"{VECTOR} is {kind}: a list of floats is needed")
        if pa.types.is_fixed_size_list(kind):
            return int(kind.list_size)
        with lance_errors("reading the first vector"):
            first = self._vectors.to_table(columns=[VECTOR], filter=f"{VECTOR} IS NOT NULL", limit=1)
        return len(first[VECTOR][0]) if first.num_rows else 0

    def models(self) -> set[str]:
        """The models that the rows name."""
        if "embedding_model" not in self._metadata.schema.names:
            return set()
        with lance_errors(f"reading {self.where}"):
            found = self._metadata.to_table(columns=["embedding_model"])["embedding_model"].unique().to_pylist()
        return {name for name in found if name}

    def count(self) -> tuple[int, int]:
        """(metadata rows, chunks)."""
        with lance_errors(f"counting {self.where}"):
            return int(self._metadata.count_rows()), int(self._vectors.count_rows())

    def documents(self) -> Iterator[list[ForeignDocument]]:
        """All documents, in batches, in the table's order."""
        hashes, offsets = self._places()
        self._refuse_where_none_joins(hashes)
        names = [name for name in self._metadata.schema.names if name not in ("fence", "content_embedding")]
        with lance_errors(f"reading {self.where}"):
            for batch in self._metadata.scanner(columns=names, batch_size=DOCUMENTS_AT_ONCE).to_batches():
                rows = _in_microseconds(batch).to_pylist()
                for start in range(0, len(rows), DOCUMENTS_AT_ONCE):
                    yield self._with_chunks(rows[start : start + DOCUMENTS_AT_ONCE], hashes, offsets)

    def _places(self) -> tuple[Any, Any]:
        """Hashes of the chunks' metadata ids, sorted, and the place of each in the table."""
        hashes = array("q")
        with lance_errors(f"reading {self.where}"):
            for batch in self._vectors.scanner(columns=["metadata_id"], batch_size=_SCAN_ROWS).to_batches():
                hashes.extend(map(hash, batch.column("metadata_id").to_pylist()))
        found = np.array(hashes, np.int64)
        order = np.argsort(found, kind="stable")
        return found[order], order

    def _refuse_where_none_joins(self, hashes: Any) -> None:
        if not len(hashes):
            return
        known = array("q")
        with lance_errors(f"reading {self.where}"):
            for batch in self._metadata.scanner(columns=["id"], batch_size=_SCAN_ROWS).to_batches():
                known.extend(hash(each) for each in batch.column("id").to_pylist() if each is not None)
        if known and not np.isin(np.array(known, np.int64), hashes).any():
            raise ConfigurationError(
                f"no chunk's metadata_id is the id of a row of {self.where}: are these tables of one index?"
            )

    def _with_chunks(self, rows: Sequence[Row], hashes: Any, offsets: Any) -> list[ForeignDocument]:
        wanted = np.array([hash(row["id"]) for row in rows], np.int64)
        low, high = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
        places = sorted({int(each) for first, last in zip(low, high, strict=True) for each in offsets[first:last]})
        of: dict[str, list[tuple[Row, Any]]] = {}
        if places:
            names = [name for name in self._vectors.schema.names if name != "fence"]
            taken = _in_microseconds(self._vectors.take(places, columns=names))
            for row, vector in zip(taken.drop_columns([VECTOR]).to_pylist(), taken.column(VECTOR), strict=True):
                of.setdefault(row["metadata_id"], []).append((row, vector.values))
        return [self._document(row, of.get(row["id"], [])) for row in rows]

    def _document(self, row: Row, found: list[tuple[Row, Any]]) -> ForeignDocument:
        found = sorted(found, key=lambda each: _order(each[0]))
        vectors: Matrix | None = np.zeros((len(found), self.width), np.float32)
        assert vectors is not None
        for at, (_, vector) in enumerate(found):
            if vector is None or len(vector) != self.width:
                vectors = None
                break
            vectors[at] = vector.to_numpy(zero_copy_only=False)  # a null in it is a NaN, which is refused later
        return ForeignDocument(row, tuple(each for each, _ in found), vectors)


def _in_microseconds(rows: Any) -> Any:
    """Times of nanoseconds cut to what Python holds; where a part of a microsecond is left, reading fails else."""
    for at, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            cut = rows.column(at).cast(pa.timestamp("us", field.type.tz), safe=False)
            rows = rows.set_column(at, field.with_type(cut.type), cut)
    return rows


def _order(chunk: Row) -> tuple[int, int, str]:
    """By its index where it has one; else by its id, in which numbers count as such: `x#2` before `x#10`."""
    index = chunk.get("chunk_index")
    text = str(chunk.get("id") or "")
    digits = text[len(text.rstrip("0123456789")) :]
    return (0, int(index), text) if isinstance(index, int) else (1, int(digits or 0), text)
