"""The writer's rows as the index reads them: the two halves of the store agree on what a document is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from shoal.records import (
    Announcement,
    ApiTraits,
    Chunk,
    Deletion,
    Embedded,
    Extraction,
    Fetched,
    Outcome,
    Position,
    Progress,
    Vector,
)
from shoal.settings import Settings
from shoal.store.filters import And, Equals
from shoal.store.requests import SearchRequest
from shoal.store.search import SearchIndex
from shoal.store.writing import TableWriter

T0 = datetime(2025, 1, 20, 12, tzinfo=UTC)
EAST, NORTH = np.eye(8, dtype=np.float32)[:2]


def document(name: str, text: str, vector: Vector, version: str = "1", offset: int = 0) -> Embedded:
    announcement = Announcement(
        position=Position("c", "t", 0, offset, 1_000 + offset),
        collection="scraper",
        document_id=f"prod:nyiso_load:{name}",
        version=version,
        location=f"s3://bucket/{name}",
        content=None,
        dataset="nyiso_load",
        environment="prod",
        urn=name,
        data_source="NYISO",
        data_type="load",
        scraper_name="nyiso_load",
        collected_at=T0 + timedelta(minutes=offset),
    )
    extraction = Extraction(
        file_format="JSON",
        content_type="application/json",
        charset="utf-8",
        title=None,
        chunks=(Chunk(0, text, None, 0, len(text), 3),),
        schema="{}",
        api_text="GET /load",
        traits=ApiTraits(api_endpoint="/load", auth_method="none"),
    )
    fetched = Fetched(announcement, sha256=f"{offset:064x}", md5="0" * 32, size_bytes=10, extraction=extraction)
    return Embedded(fetched, model="hash:8", vectors=vector[None], schema_vector=vector)


async def test_what_the_writer_commits_is_found_in_every_way_until_it_is_replaced_or_deleted(tmp_path: Path) -> None:
    writer = TableWriter.open(str(tmp_path), {}, "hash:8", 8, settings=Settings(), now=T0)
    first, second = document("a.json", "wind power", EAST), document("b.json", "solar power", NORTH, offset=1)
    (ack, _) = writer.apply([first, second], [Progress("c", "t", 0, 2)], T0)
    index = await SearchIndex.open(str(tmp_path), {})
    assert (index.model, index.width) == ("hash:8", 8)
    assert await index.counts() == {"documents": 2, "chunks": 2}

    both = And((Equals("dataset", "nyiso_load"), Equals("auth_method", "none")))
    for request, expected in (
        (SearchRequest(mode="sql"), ["b.json", "a.json"]),
        (SearchRequest(mode="sql", filters=both), ["b.json", "a.json"]),
        (SearchRequest(mode="vector", vector=EAST, filters=both), ["a.json", "b.json"]),
        (SearchRequest(mode="keyword", query="winds"), ["a.json"]),
        (SearchRequest(mode="keyword", query='"solar power"'), ["b.json"]),
        (SearchRequest(mode="hybrid", query="wind", vector=EAST), ["a.json", "b.json"]),
    ):
        page = await index.search(request)
        assert [hit.metadata["urn"] for hit in page.hits] == expected
        assert page.freshness.commit_sequence == ack.commit_sequence
        assert page.freshness.positions == {("c", "t", 0): 2}
    assert [row["urn"] for row in await index.by_hash(f"{1:064x}")] == ["b.json"]
    (similar,) = await index.similar_apis(EAST, 5)  # one API, though two documents
    assert similar.chunk is not None
    assert similar.chunk["api_endpoint"] == "/load"

    replacement = document("a.json", "coal power", EAST, version="2", offset=2)
    deletion = Deletion(Position("c", "t", 0, 3, 2_000), "scraper", "prod:nyiso_load:b.json", None)
    acks = writer.apply([replacement, deletion], [Progress("c", "t", 0, 4)], T0)
    assert [ack.outcome for ack in acks] == [Outcome.INDEXED, Outcome.DELETED]
    latest = acks[0].commit_sequence
    page = await index.search(SearchRequest(mode="keyword", query="power", wait_sequence=latest))
    assert [(hit.metadata["urn"], hit.metadata["version"]) for hit in page.hits] == [("a.json", "2")]
    everything = await index.search(SearchRequest(mode="sql", include_superseded=True))
    assert [(hit.metadata["urn"], hit.metadata["version"]) for hit in everything.hits] == [
        ("a.json", "2"),
        ("a.json", "1"),
    ]
    await index.close()


async def test_an_identifier_is_found_whole_and_by_its_parts_in_any_spelling(tmp_path: Path) -> None:
    writer = TableWriter.open(str(tmp_path), {}, "hash:8", 8, settings=Settings(), now=T0)
    code = document("code.py", "def getUserName(feed): return parse_json2csv(feed)", EAST)
    prose = document("prose.md", "The names of users are listed here, and csv too.", NORTH, offset=1)
    writer.apply([code, prose], [Progress("c", "t", 0, 2)], T0)
    index = await SearchIndex.open(str(tmp_path), {})
    for query, first in (
        ("getUserName", "code.py"),
        ("getusername", "code.py"),
        ("get_user_name", "code.py"),
        ("json2csv", "code.py"),
        ('"user name"', "code.py"),
        ("listed users", "prose.md"),
    ):
        page = await index.search(SearchRequest(mode="keyword", query=query))
        assert [hit.metadata["urn"] for hit in page.hits][:1] == [first], query
    await index.close()
