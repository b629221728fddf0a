"""Which table answers which part of a filter.

A filter speaks of documents: metadata columns, and the traits that stand beside their chunks. Some columns are
copied to the chunks, to filter before ranking. `split` gives each table the parts that it can answer by
itself; the rest is for the other table, joined by document id and version. Pure; fails with FilterError.
"""

from __future__ import annotations

from shoal.store.filters import And, Columns, Filter, FilterError, check, column_types, columns_of, conjuncts, to_sql
from shoal.store.schemas import CollectionFacts, literal, table_schema

_ANY = CollectionFacts(model="", width=1)  # the model decides no column but the vectors'
# The chunk table's own keys are not the document's; JSON and text positions are nothing to compare with.
_UNFILTERED = {
    "fence",
    "revision",
    "extra",
    "evidence",
    "content_schema",
    "scraper_code_snippet",
    "char_start",
    "char_end",
}
_CHUNK_KEYS = {"id", "metadata_id", "document_version"}

METADATA_FILTERS: Columns = {
    name: kind for name, kind in column_types(table_schema("metadata", _ANY)).items() if name not in _UNFILTERED
}
"""Columns of documents that can be filtered by."""
CHUNK_FILTERS: Columns = {
    name: kind
    for name, kind in column_types(table_schema("vectors", _ANY)).items()
    if name not in _UNFILTERED | _CHUNK_KEYS
}
"""Columns of chunks that can be filtered by: traits, and copies of the document's columns."""
FILTERS: Columns = {**CHUNK_FILTERS, **METADATA_FILTERS}
"""Every column that a search filters by, with its type."""


def split(tree: Filter | None, first: Columns) -> tuple[Filter | None, Filter | None]:
    """`tree` as (what the table with the columns `first` answers, what the other must). Raises FilterError where
    a single condition needs both."""
    if tree is None:
        return None, None
    check(tree, FILTERS)
    second = CHUNK_FILTERS if first is METADATA_FILTERS else METADATA_FILTERS
    mine, others = [], []
    for part in conjuncts(tree):
        names = columns_of(part)
        if names <= first.keys():
            mine.append(part)
        elif names <= second.keys():
            others.append(part)
        else:
            raise FilterError(
                f"{', '.join(sorted(names))} can't stand in one `or` or `not`: some belong to documents, some to "
                "chunks; join them by `and`"
            )
    return (And(tuple(mine)) if mine else None), (And(tuple(others)) if others else None)


def where(base: str, *trees: Filter | None, columns: Columns) -> str:
    """SQL: `base` ('' is no condition) and all of `trees` (nor is None)."""
    return " and ".join(filter(None, [base, *(to_sql(tree, columns) for tree in trees if tree is not None)]))


def among(column: str, values: list[str]) -> str:
    """SQL: `column` is one of `values` that came out of our tables (escaped, but not bounded)."""
    return f"{column} in ({', '.join(map(literal, values))})" if values else "false"
