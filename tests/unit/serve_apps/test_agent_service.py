"""What MCP asks beyond REST's calls, over a fake index."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shoal.errors import TransientError
from shoal.serve_apps.agent_service import AgentService, UnknownDocumentError
from shoal.store.facets import Facet, Facets
from shoal.store.requests import UnknownCollectionError


@pytest.fixture
def agent(stand: Any) -> AgentService:
    service = stand.service()
    service.__class__ = AgentService  # it adds no state
    assert isinstance(service, AgentService)
    return service


def rows(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "chunk_index": number, "heading": None, "char_start": 0, "char_end": 4, "content_summary": f"text {number}",
            "content_schema": '{"fields": []}' if number == 0 else None, "id": f"d#{number}",
        }
        for number in range(first, first + count)
    ]  # fmt: skip


async def test_a_document_comes_with_its_chunks_and_the_schema_that_the_first_one_holds(
    stand: Any, agent: AgentService
) -> None:
    stand.index.documents.rows = [{"id": "d", "version": "v2"}]
    stand.index.documents.pieces = rows(0, 7)
    found = await agent.document_chunks("scraper", "d", 0, 2)
    assert (found["document"], found["content_schema"]) == ({"id": "d", "version": "v2"}, '{"fields": []}')
    assert [chunk["text"] for chunk in found["chunks"]] == ["text 0", "text 1"]
    assert found["freshness"]["indexed_through"] is not None
    later = await agent.document_chunks("scraper", "d", 5, 2)
    assert (later["content_schema"], later["chunks"][0]["chunk_index"]) == (None, 5)
    with pytest.raises(UnknownDocumentError, match="take `id` from a search result"):
        await agent.document_chunks("scraper", "none", 0, 2)
    with pytest.raises(UnknownCollectionError):
        await agent.document_chunks("none", "d", 0, 2)


async def test_similar_documents_leave_out_the_document_itself(stand: Any, agent: AgentService, ranked: Any) -> None:
    hits = (ranked(), ranked())
    stand.index.hits = hits
    one = np.ones(4, np.float32)
    stand.index.documents.api_vectors = {"d": one, hits[0].metadata["id"]: one}
    assert len(await agent.similar_documents("scraper", "d", 2)) == 2
    assert await agent.similar_documents("scraper", hits[0].metadata["id"], 2) == []
    with pytest.raises(UnknownDocumentError, match="no description"):
        await agent.similar_documents("scraper", "none", 2)


async def test_the_collections_tell_what_is_in_them_and_do_without_where_that_fails(
    stand: Any, agent: AgentService
) -> None:
    stand.index.facets = Facets({"data_source": Facet((("NYISO", 2),), 1, 0)}, 3, True)
    (row,) = await agent.collections()
    assert (row["name"], row["embedding_model"], row["documents"], row["chunks"]) == ("scraper", "hash:4", 1, 2)
    assert row["contents"] == {"data_source": {"NYISO": 2}}
    assert row["columns"]["collected_at"] == "time"
    stand.index.error = TransientError("slow")
    assert (await agent.collections())[0]["contents"] == {}
