"""Exact identifiers: a question that is the id, urn, path or hash of a document finds that document first.

Full-text search splits such a name into words and a vector hardly knows it, so the document that was named might be
anywhere. Only a question that can be an identifier costs a look-up: one word, with a digit or a mark in it. Like
every other answer it keeps to the filters, and to current versions that have a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.store.conditions import METADATA_FILTERS, among, where
from shoal.store.filters import Equals, Filter, Or
from shoal.store.reading import Row, Tables
from shoal.store.schemas import IS_CURRENT, METADATA_COLUMNS, revision

NAMED_MAX = 10  # documents of one name (a urn is not unique); more are the listing's to show
_LENGTH_MAX = 1_200  # characters: an S3 key has at most 1,024 bytes
_CHUNKS_MAX = 5_000  # of the documents named; each has at most some hundreds
# One pattern of both took n squared steps: 0.6 s of the event loop for one hostile question.
_BLANK, _MARK = re.compile(r"\s"), re.compile(r"[\d:/._@-]")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_ROW = ("revision", *METADATA_COLUMNS)


@dataclass(frozen=True, slots=True)
class Named:
    """A document that the question names: its metadata, its first chunk that meets the filter, and by what."""

    row: Row
    chunk_id: str
    by: str


async def named(tables: Tables, query: str, metadata_condition: str, chunk_condition: str) -> list[Named]:
    """The documents whose identifier is `query`, newest first; the conditions may be ''."""
    name = query.strip().strip('"')
    names = _columns(name)
    if not names:
        return []
    leaf: Sequence[Filter] = [Equals(column, value) for column, value in names.items()]
    condition = where(IS_CURRENT, Or(tuple(leaf)), columns=METADATA_FILTERS)
    if metadata_condition:
        condition += f" and {metadata_condition}"
    rows = await tables.rows("metadata", condition, _ROW, NAMED_MAX, (("collected_at", False), ("revision", True)))
    if not rows:
        return []
    asked = among("metadata_id", [row["id"] for row in rows])
    chunks = await tables.rows(
        "vectors",
        f"{asked} and {chunk_condition}" if chunk_condition else asked,
        ("id", "metadata_id", "document_version", "chunk_index"),
        _CHUNKS_MAX,
    )
    first: dict[str, Row] = {}
    for chunk in chunks:
        key = revision(chunk["metadata_id"], chunk["document_version"])
        if key not in first or chunk["chunk_index"] < first[key]["chunk_index"]:
            first[key] = chunk
    return [
        Named(row, first[row["revision"]]["id"], next(column for column in names if row[column] == names[column]))
        for row in rows
        if row["revision"] in first
    ]


def _columns(name: str) -> dict[str, str]:
    """By which columns `name` may be an identifier; the urn, which has no index, only where nothing else is likely."""
    if _SHA256.fullmatch(name):
        return {"sha256_hash": name.lower()}
    if len(name) > _LENGTH_MAX or "\0" in name or _BLANK.search(name) or not _MARK.search(name):
        return {}
    if any("\ud800" <= character <= "\udfff" for character in name):
        return {}
    if "://" in name:
        return {"s3_path": name}
    return {"id": name, "urn": name}
