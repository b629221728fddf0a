"""What MCP asks beyond REST's calls: the collections with what is in them, and a document with its text in parts.

The same service and the same tables; nothing here changes anything. Fails as `SearchService` does, and with
`UnknownDocumentError` where there is no such document.
"""

from __future__ import annotations

import asyncio
from typing import Any

from shoal.errors import ShoalError
from shoal.records import SCRAPER_COLLECTION
from shoal.serve_apps.search_service import SearchService, shown_api
from shoal.serve_apps.visible import check_collection, visible_collections
from shoal.store.conditions import FILTERS
from shoal.store.filters import QueryError

CONTENTS = ("data_source", "data_type", "file_format")
"""Columns whose commonest values say what a collection holds."""


class UnknownDocumentError(QueryError):
    """There is no document of that id."""


class AgentService(SearchService):
    """One per replica of MCP."""

    async def collections(self) -> list[dict[str, Any]]:
        """[{name, embedding_model, documents, chunks, indexed_through, contents, columns}] of those that the caller may
        read; see the protocol."""
        if SCRAPER_COLLECTION not in visible_collections():
            return []
        index = await self._index()
        counts, freshness, contents = await asyncio.gather(index.counts(), index.freshness(), self._contents())
        return [
            {
                "name": SCRAPER_COLLECTION,
                "embedding_model": index.model,
                **counts,
                "indexed_through": freshness.committed_at,
                "contents": contents,
                "columns": dict(FILTERS),
            }
        ]

    async def document_chunks(self, collection: str, document_id: str, first: int, limit: int) -> dict[str, Any]:
        """{document, content_schema, chunks, freshness} of the current version."""
        check_collection(collection)
        index = await self._index()
        document = await index.documents.row(document_id)
        if document is None:
            raise UnknownDocumentError(
                f"id: there is no document {document_id[:200]!r}; take `id` from a search result, as it is"
            )
        rows = await index.documents.chunks(document_id, document["version"], first, limit)
        schema = rows[0].get("content_schema") if rows and rows[0]["chunk_index"] == 0 else None
        names = ("chunk_index", "heading", "char_start", "char_end")
        chunks = [{**{name: row[name] for name in names}, "text": row["content_summary"]} for row in rows]
        fresh = await self._fresh(index, "metadata", "schema")
        return {"document": document, "content_schema": schema, "chunks": chunks, "freshness": fresh}

    async def similar_documents(self, collection: str, document_id: str, limit: int) -> list[dict[str, Any]]:
        """As `similar_apis`, to the stored description of a document, which is left out itself."""
        check_collection(collection)
        index = await self._index()
        vector = await index.documents.api_vector(document_id)
        if vector is None:
            raise UnknownDocumentError(f"no description of {document_id[:200]!r} is stored that others compare with")
        hits = await index.similar_apis(vector, limit + 1)
        return [shown_api(hit) for hit in hits if hit.metadata.get("id") != document_id][:limit]

    async def _contents(self) -> dict[str, dict[str, int]]:
        """By column its commonest values; {} where they can't be told now."""
        try:
            page = await self.collection_search(SCRAPER_COLLECTION, {"limit": 1, "facets": list(CONTENTS)})
        except ShoalError:
            return {}
        columns = page.get("facets", {}).get("columns", {})
        return {
            name: {str(entry["value"]): entry["count"] for entry in column["values"]}
            for name, column in columns.items()
        }
