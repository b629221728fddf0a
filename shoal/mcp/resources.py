"""What agents may attach instead of asking for: the collections, their columns, a document.

Read-only JSON with the same notice and within the same tokens as a tool's answer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastmcp import FastMCP
from fastmcp.exceptions import ResourceError, ToolError
from fastmcp.resources import ResourceSecurity

from shoal.mcp.asking import TOKENS, ServiceProtocol, asked
from shoal.mcp.budget import Count
from shoal.mcp.cleaning import clean
from shoal.mcp.finding import read_document
from shoal.mcp.overview import COLLECTIONS_MAX, collection_of
from shoal.mcp.results import NOTICE, Collections

COLLECTIONS_URI = "shoal://collections"
SCHEMA_URI = "shoal://collections/{name}/schema"
DOCUMENT_URI = "shoal://collections/{name}/documents/{id*}"


def add_resources(server: FastMCP, service: ServiceProtocol, count: Count) -> None:
    """Registers one resource and two templates."""

    async def rows() -> list[dict[str, Any]]:
        try:
            return await asked(service.collections())
        except ToolError as error:
            raise ResourceError(str(error), log_level=logging.INFO) from None

    @server.resource(
        COLLECTIONS_URI, name="collections", title="Collections", mime_type="application/json",
        description="What can be searched: sizes, freshness, the commonest sources and formats.",
    )  # fmt: skip
    async def collections() -> str:
        found = [collection_of(row) for row in (await rows())[:COLLECTIONS_MAX]]
        return _json(Collections(collections=found).shown())

    @server.resource(
        SCHEMA_URI, name="collection_schema", title="Columns of a collection", mime_type="application/json",
        description="The columns that `search` filters by (column, type), and how a filter is written.",
    )  # fmt: skip
    async def collection_schema(name: str) -> str:
        known = {str(row["name"]): row for row in await rows()}
        row = known.get(name)
        if row is None:
            shown = ", ".join(sorted(known)[:10])
            raise ResourceError(f"there is no collection {clean(name, 60)!r}; known: {shown}", log_level=logging.INFO)
        return _json(
            {
                "collection": name,
                "embedding_model": row.get("embedding_model"),
                "columns": row.get("columns", {}),
                "filter_example": {
                    "and": [{"column": "data_source", "eq": "NYISO"}, {"column": "collected_at", "gte": "2025-01-20"}]
                },
                "tests": ["eq", "in", "prefix", "is_null", "gt", "gte", "lt", "lte"],
            }
        )

    @server.resource(
        DOCUMENT_URI, name="document", title="A document", mime_type="application/json",
        description="A document's metadata, the fields of its data, the first part of its text; get_document reads on.",
        security=ResourceSecurity(exempt_params={"id"}),  # an id is no path: it may hold anything that a urn may
    )  # fmt: skip
    async def document(name: str, id: str) -> str:
        try:
            part = await read_document(service, count, name, id, None, None, TOKENS)
        except ToolError as error:
            raise ResourceError(str(error), log_level=logging.INFO) from None
        return _json({"notice": NOTICE, **part.shown()})


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
