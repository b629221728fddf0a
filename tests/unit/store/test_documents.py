"""One document by its id, of real tables: its versions, its chunks, what a push became, and whether it was deleted."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shoal.settings import Settings
from shoal.store.search import SearchIndex
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, deletion, document, failed

T0 = datetime(2025, 1, 20, 12, tzinfo=UTC)
ID, ODD = "prod:ds:it's", "prod:ds:%_\\' OR 1=1 --"


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[SearchIndex]:
    place = str(tmp_path / "lancedb")
    writer = TableWriter.open(place, {}, MODEL, WIDTH, settings=Settings(), now=T0)
    writer.apply([document(ID, 1, version="v1", content="old"), document(ODD, 2, content="odd")], (), T0)
    writer.apply([document(ID, 3, version="v2", content="new", chunks=5), document("prod:ds:gone", 4)], (), T0)
    writer.apply([deletion("prod:ds:gone", 5), failed("prod:ds:bad", 6, content="bad", version="v1")], (), T0)
    index = await SearchIndex.open(place, {}, refresh_interval_s=0.0)
    yield index
    await index.close()


async def test_the_current_version_is_the_one_without_a_name(index: SearchIndex) -> None:
    current, old = await index.documents.row(ID), await index.documents.row(ID, "v1")
    assert current is not None
    assert old is not None
    assert (current["version"], current["superseded_at"], old["superseded_at"] is None) == ("v2", None, False)
    assert await index.documents.row(ID, "v3") is None
    assert await index.documents.row("prod:ds:gone") is None
    assert [one["version"] for one in await index.documents.versions(ID)] == ["v2", "v1"]


async def test_chunks_are_in_order_and_of_the_current_version(index: SearchIndex) -> None:
    chunks = await index.documents.chunks(ID, "v2", 1, 3)
    assert [(one["chunk_index"], one["content_summary"]) for one in chunks] == [
        (1, "new part 1"), (2, "new part 2"), (3, "new part 3")
    ]  # fmt: skip
    assert await index.documents.chunks(ID, "v1", 0, 3) == [], "never the text of one beside the metadata of another"
    assert await index.documents.chunks(ID, None, 0, 3) == []


@pytest.mark.parametrize("hostile", [ODD, "' OR 'a'='a", "prod:ds:%", "__fence__", "é\u202e"])
async def test_an_id_is_only_ever_itself(index: SearchIndex, hostile: str) -> None:
    row = await index.documents.row(hostile)
    assert (row or {}).get("id") == (ODD if hostile == ODD else None)
    version = row["version"] if row else "v1"
    assert len(await index.documents.chunks(hostile, version, 0, 10)) == (2 if hostile == ODD else 0)
    assert await index.documents.row(ID, hostile) is None
    assert await index.documents.deleted_at(hostile) is None


async def test_a_deletion_is_remembered_with_its_time(index: SearchIndex) -> None:
    assert await index.documents.deleted_at("prod:ds:gone") == datetime.fromtimestamp(1.005, UTC)
    assert await index.documents.deleted_at(ID) is None


async def test_a_push_is_found_by_its_bytes_its_version_and_its_document(index: SearchIndex) -> None:
    def same(identity: str) -> str:
        return identity

    async def found(content: str, identity: str, version: str) -> Any:
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        return await index.documents.stored(sha256, identity, version, same)

    assert (await found("old", ID, "v1"))["superseded_at"] is not None
    assert (await found("bad", "prod:ds:bad", "v1"))["validation_status"] == "error"
    for wrong in (("old", ID, "v2"), ("new", ID, "v1"), ("old", "prod:ds:other", "v1")):
        assert await found(*wrong) is None


async def test_the_facts_are_those_of_the_tables(index: SearchIndex) -> None:
    facts = index.documents.facts
    assert (facts.model, facts.width, facts.dtype) == (MODEL, WIDTH, "float32")
