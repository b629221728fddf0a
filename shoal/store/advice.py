"""What coding agents ask before they write or mend a scraper: which API is like this one, what fixed this error.

Similar APIs are documents near to a described API, one for each API: a dataset is published again and again
with nearly the same description, so what was found once is excluded and the search goes on. Fixes are judged in
Python (fix_ranking.py). Reads only through `Tables`.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.records import Vector
from shoal.store.commands import fix_change, fix_error
from shoal.store.conditions import METADATA_FILTERS, where
from shoal.store.filters import And, Equals, Filter, IsNull, Not
from shoal.store.fix_ranking import Scraper, ranked
from shoal.store.ranked import METADATA_ROW, rows_among, similarity
from shoal.store.reading import Row, Tables
from shoal.store.row_cache import ADDRESS
from shoal.store.schemas import CHUNK_COLUMNS, FIX_COLUMNS, IS_CURRENT, IS_DOCUMENT, chunk_id

_LIGHT = ("id", "version", "revision", "data_source", "dataset")
_ENDPOINT = ("id", "document_version", "api_endpoint", ADDRESS)
_ENDPOINTS_MAX = 50_000  # some 30 MB
_LOOK_ROWS = 256  # nearest documents of one look: a busy dataset fills it alone
_LOOKS_MAX = 24  # each look but the last excludes at least one more dataset
_FIXES_MAX = 1_000  # newest reports of one scraper (or, without a vector, of all) that are ranked
_NEAR_MAX = 200  # reports with the likest errors, of whichever scraper
_JUDGED_AGAIN = 4  # times `limit`: errors whose diffs and scrapers are looked at
_SCRAPERS_MAX = 16  # scrapers looked up, one short read each
_NEWEST_FIRST = (("reported_at", False), ("id", True))
_JUDGED = tuple(name for name in FIX_COLUMNS if name != "diff")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class SimilarApi:
    """The document nearest to the description among those of one API, with its first chunk where it has one."""

    metadata: Row
    chunk: Row | None
    distance: float
    score: float


class Endpoints:
    """Of documents their first chunk's endpoint and address, by the address of their metadata row: an API is known by
    it, and of the hundreds that one question looks at most have been looked at before. One per set of handles.

    What is kept of a document is true as long as its row is there: its chunks are only written with a new one."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, Row] = OrderedDict()

    async def of(self, tables: Tables, rows: Mapping[int, Row]) -> dict[int, Row]:
        """{id, document_version, api_endpoint, address} by address, of those `rows` that have a first chunk."""
        found: dict[int, Row] = {}
        missing: dict[str, tuple[int, Row]] = {}
        for address, row in rows.items():
            name = chunk_id(row["id"], 0)
            known = self._known.get(address)
            if known is not None and (known["id"], known["document_version"]) == (name, row["version"]):
                self._known.move_to_end(address)
                found[address] = known
            else:
                missing[name] = address, row
        if missing:
            for chunk in await rows_among(tables, "vectors", "id", missing, _ENDPOINT):
                address, row = missing[chunk["id"]]
                if chunk["document_version"] == row["version"]:
                    found[address] = self._known[address] = chunk
        while len(self._known) > _ENDPOINTS_MAX:
            self._known.popitem(last=False)
        return found


async def similar_apis(tables: Tables, endpoints: Endpoints, vector: Vector, limit: int) -> list[SimilarApi]:
    """The nearest documents of `limit` different (data_source, api_endpoint, or dataset where there is none)."""
    found: dict[tuple[Any, ...], tuple[float, int, Row, Row | None]] = {}
    seen: dict[tuple[Any, Any], Filter] = {}
    for _ in range(_LOOKS_MAX):
        condition = where(IS_CURRENT, *seen.values(), columns=METADATA_FILTERS)
        near = await tables.nearest("metadata", vector, condition, (ADDRESS,), _LOOK_ROWS, narrow=False)
        rows = await tables.kept.rows("metadata", [place[ADDRESS] for place in near], _LIGHT)
        chunks = await endpoints.of(tables, rows)
        for place in near:
            address = place[ADDRESS]
            row, chunk = rows[address], chunks.get(address)
            dataset = (row["data_source"], row["dataset"])
            endpoint = chunk["api_endpoint"] if chunk else None
            api = (row["data_source"], "endpoint", endpoint) if endpoint else (*dataset, "dataset")
            found.setdefault(api, (place["_distance"], address, row, chunk))
            seen[dataset] = Not(And((_same("data_source", dataset[0]), _same("dataset", dataset[1]))))
        if len(near) < _LOOK_ROWS or len(found) >= limit:
            break
    # Hundreds were looked at for their endpoint only: whole are read those that are shown.
    best = sorted(found.values(), key=lambda one: (one[0], one[2]["revision"]))[:limit]
    whole = await tables.kept.rows("metadata", [address for _, address, _, _ in best], METADATA_ROW)
    shown = await _first_chunks(tables, [chunk for _, _, _, chunk in best if chunk is not None])
    return [
        SimilarApi(whole[address], shown.get(chunk["id"]) if chunk else None, distance, similarity(distance))
        for distance, address, _, chunk in best
    ]


async def _first_chunks(tables: Tables, known: Sequence[Row]) -> dict[str, Row]:
    """By id the whole rows of the `known` chunks; by their id where they lie elsewhere by now."""
    kept = await tables.kept.rows("vectors", [chunk[ADDRESS] for chunk in known], CHUNK_COLUMNS)
    versions = {chunk["id"]: chunk["document_version"] for chunk in known}
    found = {row["id"]: row for row in kept.values() if versions.get(row["id"]) == row["document_version"]}
    for row in await rows_among(tables, "vectors", "id", versions.keys() - found.keys(), CHUNK_COLUMNS):
        if row["document_version"] == versions[row["id"]]:
            found[row["id"]] = row
    return found


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
    """The `limit` best fixes of this scraper and of others (fix_ranking.py). Each row has `similarity`, the likeness of
    its error (None: nothing to compare), and `evidence`, why it stands where it does."""
    await tables.latest("fixes")
    base = f"{IS_DOCUMENT} and merged_into is null"
    own = where(base, Equals("scraper_name", scraper_name), columns={"scraper_name": "text"})
    rows = {row["id"]: row for row in await tables.rows("fixes", own, _JUDGED, _FIXES_MAX, _NEWEST_FIRST)}
    likeness: dict[str, float] | None = None
    if vector is not None:
        near = await tables.nearest("fixes", vector, base, _JUDGED, _NEAR_MAX, narrow=True)
        near_own = await tables.nearest("fixes", vector, own, ("id",), _FIXES_MAX, narrow=True)
        rows |= {row["id"]: row for row in near}
        likeness = {row["id"]: similarity(row["_distance"]) for row in (*near_own, *near)}
    else:
        newest = await tables.rows("fixes", base, _JUDGED, _FIXES_MAX, _NEWEST_FIRST)
        rows |= {row["id"]: row for row in newest}
    if likeness is None and error_message:
        likeness = {row["id"]: _words_in_common(error_message, row["error_message"] or "") for row in rows.values()}
    # Diffs may be long, and scrapers are looked up one by one: first by what is known without them.
    errors = {key: fix_error(row) for key, row in rows.items()}
    first = ranked(rows.values(), errors, Scraper(scraper_name), {}, error_type, likeness, all_of_them=True)
    kept = {errors[one.row["id"]] for one in first[: _JUDGED_AGAIN * limit]}
    few = [row for row in rows.values() if errors[row["id"]] in kept][:_FIXES_MAX]
    diffs = {
        row["id"]: row["diff"]
        for row in await rows_among(tables, "fixes", "id", {row["id"] for row in few}, ("id", "diff"))
    }
    whole = [{**row, "diff": diffs.get(row["id"])} for row in few]
    names = dict.fromkeys([scraper_name, *(one.row["scraper_name"] or "" for one in first)])
    scrapers = await _scrapers(tables, [*names][:_SCRAPERS_MAX])
    asked = scrapers.get(scraper_name) or Scraper(scraper_name)
    same = {row["id"]: fix_change(row) for row in whole}
    best = ranked(whole, same, asked, scrapers, error_type, likeness)[:limit]
    return [{**one.row, "similarity": one.error, "evidence": one.shown()} for one in best]


async def _scrapers(tables: Tables, names: Sequence[str]) -> dict[str, Scraper]:
    """What the documents of these scrapers say of them, as far as there are any."""
    columns = ("data_source", "dataset", "data_type", "file_format")

    async def look(name: str) -> Scraper | None:
        condition = where(IS_CURRENT, Equals("scraper_name", name), columns={"scraper_name": "text"})
        found = await tables.rows("metadata", condition, columns, 1)
        return Scraper(name, **{column: found[0][column] for column in columns}) if found else None

    return {one.name: one for one in await asyncio.gather(*map(look, names)) if one is not None}


def _words_in_common(one: str, other: str) -> float:
    """Jaccard similarity of the words of two messages, 0..1."""
    left, right = (set(_WORD.findall(text.casefold())) for text in (one, other))
    return len(left & right) / len(left | right) if left | right else 0.0
