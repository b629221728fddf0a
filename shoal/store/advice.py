"""What coding agents ask before they write or mend a scraper: which API is like this one, what fixed this error.

Similar APIs are documents near to a described API, one for each API: a dataset is published again and again
with nearly the same description, so what was found once is excluded and the search goes on. Fixes are few per
scraper, and are ordered in Python. Reads only through `Tables`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from shoal.records import Vector
from shoal.store.conditions import METADATA_FILTERS, where
from shoal.store.filters import And, Equals, Filter, IsNull, Not
from shoal.store.ranked import rows_among, similarity
from shoal.store.reading import Row, Tables
from shoal.store.schemas import CHUNK_COLUMNS, FIX_COLUMNS, IS_CURRENT, IS_DOCUMENT, chunk_id

_LIGHT = ("id", "version", "revision", "data_source", "dataset")
_LOOK_ROWS = 256  # nearest documents of one look: a busy dataset fills it alone
_LOOKS_MAX = 24  # each look but the last excludes at least one more dataset
_FIXES_MAX = 1_000  # newest reports of one scraper that are ranked
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class SimilarApi:
    """The document nearest to the description among those of one API, with its first chunk where it has one."""

    revision: str
    chunk: Row | None
    distance: float
    score: float


async def similar_apis(tables: Tables, vector: Vector, limit: int) -> list[SimilarApi]:
    """The nearest documents of `limit` different (data_source, api_endpoint, or dataset where there is none)."""
    found: dict[tuple[Any, ...], SimilarApi] = {}
    seen: dict[tuple[Any, Any], Filter] = {}
    for _ in range(_LOOKS_MAX):
        condition = where(IS_CURRENT, *seen.values(), columns=METADATA_FILTERS)
        rows = await tables.nearest("metadata", vector, condition, _LIGHT, _LOOK_ROWS, narrow=False)
        first_chunks = {
            (row["metadata_id"], row["document_version"]): row
            for row in await rows_among(
                tables, "vectors", "id", {chunk_id(row["id"], 0) for row in rows}, CHUNK_COLUMNS
            )
        }
        for row in rows:
            chunk = first_chunks.get((row["id"], row["version"]))
            dataset = (row["data_source"], row["dataset"])
            endpoint = chunk["api_endpoint"] if chunk else None
            api = (row["data_source"], "endpoint", endpoint) if endpoint else (*dataset, "dataset")
            distance = row["_distance"]
            found.setdefault(api, SimilarApi(row["revision"], chunk, distance, similarity(distance)))
            seen[dataset] = Not(And((_same("data_source", dataset[0]), _same("dataset", dataset[1]))))
        if len(rows) < _LOOK_ROWS or len(found) >= limit:
            break
    return sorted(found.values(), key=lambda api: (api.distance, api.revision))[:limit]


def _same(column: str, value: str | None) -> Filter:
    return IsNull(column) if value is None else Equals(column, value)


async def fixes(
    tables: Tables,
    scraper_name: str,
    error_type: str | None,
    vector: Vector | None,
    error_message: str | None,
    limit: int,
) -> list[Row]:
    """The `limit` best fixes; each row has `similarity`, the likeness of its error (None: nothing to compare)."""
    await tables.latest("fixes")
    base = f"{IS_DOCUMENT} and merged_into is null and marked_wrong_by is null"
    condition = where(base, Equals("scraper_name", scraper_name), columns={"scraper_name": "text"})
    newest_first = (("reported_at", False), ("id", True))
    rows = await tables.rows("fixes", condition, FIX_COLUMNS, _FIXES_MAX, newest_first)
    likeness: dict[str, float] = {}
    if vector is not None:
        near = await tables.nearest("fixes", vector, condition, ("id",), _FIXES_MAX, narrow=True)
        likeness = {row["id"]: similarity(row["_distance"]) for row in near}
    elif error_message:
        likeness = {row["id"]: _words_in_common(error_message, row["error_message"] or "") for row in rows}
    compared = vector is not None or bool(error_message)
    wanted = (error_type or "").casefold()

    def place(row: Row) -> tuple[bool, bool, float]:
        other_type = bool(wanted) and (row["error_type"] or "").casefold() != wanted
        return other_type, row["outcome"] != "worked", -likeness.get(row["id"], 0.0)

    # Stable: equals stay newest first.
    best = sorted(rows, key=place)[:limit]
    return [{**row, "similarity": likeness.get(row["id"], 0.0) if compared else None} for row in best]


def _words_in_common(one: str, other: str) -> float:
    """Jaccard similarity of the words of two messages, 0..1."""
    left, right = (set(_WORD.findall(text.casefold())) for text in (one, other))
    return len(left & right) / len(left | right) if left | right else 0.0
