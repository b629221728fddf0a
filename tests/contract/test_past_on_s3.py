"""Kept states on S3: tags, cleanup and what is gone behave there as on disk."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from shoal.settings import Settings
from shoal.store.cursors import CursorError
from shoal.store.filters import QueryError
from shoal.store.requests import SearchRequest
from shoal.store.search import SearchIndex
from shoal.store.writing import TableWriter, storage_options
from tests.fixtures.documents import MODEL, WIDTH, document
from tests.fixtures.s3_server import S3Server

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


async def test_a_kept_state_outlives_cleanup_and_one_that_is_gone_is_refused(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    settings = Settings(lancedb_path=f"s3://{s3_server.bucket('past')}/{uuid.uuid4().hex}", as_of_interval_s=120)
    options = storage_options(settings)
    writer = TableWriter.open(settings.tables_uri, options, MODEL, WIDTH, settings=settings, now=NOW)
    sequences = []
    for commit in range(4):
        now = NOW + commit * MINUTE
        item = document("prod:ds:a", commit, version=f"v{commit}", content=f"wind {commit}")
        sequences.append(writer.apply([item], (), now)[0].commit_sequence)
        while writer.maintain(now) is not None:
            pass
    index = await SearchIndex.open(settings.tables_uri, options, refresh_interval_s=0.0)
    page = await index.search(SearchRequest(mode="keyword", query="wind", as_of=sequences[1]))
    assert [hit.metadata["version"] for hit in page.hits] == ["v1"]
    for kind in ("metadata", "vectors"):
        table = writer._tables[kind]  # type: ignore[index]
        table.refresh()
        table.dataset.cleanup_old_versions(timedelta(0), error_if_tagged_old_versions=False)
    await index.close()
    index = await SearchIndex.open(settings.tables_uri, options, refresh_interval_s=0.0)
    for asked, found in ((0, "v0"), (1, "v0"), (2, "v2"), (3, "v3")):
        page = await index.search(SearchRequest(mode="keyword", query="wind", as_of=sequences[asked]))
        assert [hit.metadata["version"] for hit in page.hits] == [found]
        assert bool(page.warnings) == (asked == 1)
    with pytest.raises(QueryError, match=f"the earliest is commit {sequences[0]}"):
        await index.search(SearchRequest(mode="sql", as_of=NOW - MINUTE))
    await index.close()


async def test_pages_are_of_one_state_or_refused(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A first page. 2. A document that would come first. 3. The next page is that of before, until cleanup."""
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    settings = Settings(lancedb_path=f"s3://{s3_server.bucket('past')}/{uuid.uuid4().hex}", as_of_days=0)
    options = storage_options(settings)
    writer = TableWriter.open(settings.tables_uri, options, MODEL, WIDTH, settings=settings, now=NOW)
    first_batch = [document(f"prod:ds:{n}", n, content=f"{'wind ' * (9 - n)} and {n}", chunks=1) for n in range(6)]
    writer.apply(first_batch, (), NOW)
    index = await SearchIndex.open(settings.tables_uri, options, refresh_interval_s=0.0)
    asked = SearchRequest(mode="keyword", query="wind", limit=3)
    whole = await index.search(SearchRequest(mode="keyword", query="wind", limit=10))
    page = await index.search(asked)
    writer.apply([document("prod:ds:new", 9, content="wind " * 9, chunks=1)], (), NOW + MINUTE)
    second = await index.search(SearchRequest(mode="keyword", query="wind", limit=2, cursor=page.next_cursor))
    seen = [hit.metadata["id"] for hit in (*page.hits, *second.hits)]
    assert seen == [hit.metadata["id"] for hit in whole.hits][:5]
    for kind in ("metadata", "vectors"):
        writer._maintenance._compact(kind, writer._epoch)  # type: ignore[arg-type]
        table = writer._tables[kind]  # type: ignore[index]
        table.refresh()
        table.dataset.cleanup_old_versions(timedelta(0), error_if_tagged_old_versions=False)
    for cursor in (page.next_cursor, second.next_cursor):
        with pytest.raises(CursorError, match="start again without the cursor"):
            await index.search(SearchRequest(mode="keyword", query="wind", limit=3, highlight=True, cursor=cursor))
    await index.close()
