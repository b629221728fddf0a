"""One document as its tables hold it: its metadata, a stretch of its chunks, its API vector.

The chunks are those of the version that the metadata row tells of, so a part never mixes two. Reads only through
`Tables`.
"""

from __future__ import annotations

import numpy as np

from shoal.records import Vector
from shoal.store.conditions import where
from shoal.store.filters import Columns, Equals, IsNull, Range
from shoal.store.reading import Row, Tables
from shoal.store.schemas import CHUNK_COLUMNS, IS_CURRENT, IS_DOCUMENT, METADATA_COLUMNS

_ID: Columns = {"id": "text"}
_CHUNK: Columns = {"metadata_id": "text", "document_version": "text", "chunk_index": "integer32"}


async def part(tables: Tables, document_id: str, first: int, limit: int) -> tuple[Row, list[Row]] | None:
    """(metadata, chunks `first` .. `first + limit` in order), or None."""
    rows = await tables.rows("metadata", where(IS_CURRENT, Equals("id", document_id), columns=_ID), METADATA_COLUMNS, 1)
    if not rows:
        return None
    version = rows[0]["version"]
    same = IsNull("document_version") if version is None else Equals("document_version", version)
    condition = where(
        IS_DOCUMENT, Equals("metadata_id", document_id), same,
        Range("chunk_index", low=first, high=first + limit, high_inclusive=False), columns=_CHUNK,
    )  # fmt: skip
    return rows[0], await tables.rows("vectors", condition, CHUNK_COLUMNS, limit, (("chunk_index", True),))


async def api_vector(tables: Tables, document_id: str) -> Vector | None:
    condition = where(IS_CURRENT, Equals("id", document_id), columns=_ID)
    rows = await tables.rows("metadata", condition, ("schema_embedding",), 1)
    vector = rows[0]["schema_embedding"] if rows else None
    return None if vector is None else np.asarray(vector, np.float32)
