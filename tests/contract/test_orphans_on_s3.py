"""What killed writers leave in a bucket goes too: objects that no version names, and uploads never completed."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from shoal.settings import Settings
from shoal.store.orphans import Swept, fileless_indexes, sweep
from shoal.store.tables import FencedTable
from shoal.store.writing import TableWriter, storage_options
from tests.fixtures.documents import MODEL, WIDTH, document
from tests.fixtures.s3_server import S3Server

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)
AGE = timedelta(hours=1)
HANG_S = 30


@pytest.fixture
def table(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> FencedTable:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    settings = Settings(lancedb_path=f"s3://{s3_server.bucket('orphans')}/{uuid.uuid4().hex}")
    options = storage_options(settings)
    writer = TableWriter.open(settings.tables_uri, options, MODEL, WIDTH, settings=Settings(), now=NOW)
    writer.apply([document("prod:ds:a", 1)], (), NOW)
    found = FencedTable.open("vectors", f"{settings.tables_uri}/scraper_vectors.lance", options)
    assert found is not None
    return found


def keys(server: S3Server, table: FencedTable) -> set[str]:
    bucket, _, prefix = table.uri.removeprefix("s3://").partition("/")
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {item["Key"] for page in pages for item in page.get("Contents", ())}


def test_staged_rows_and_unfinished_uploads_go_once_they_are_old_and_nothing_else(
    table: FencedTable, s3_server: S3Server
) -> None:
    bucket, _, prefix = table.uri.removeprefix("s3://").partition("/")
    client = s3_server.client()
    before = keys(s3_server, table)
    table.dataset.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute_uncommitted(
        table.dataset.to_table()
    )
    built = f"{prefix}/_indices/11111111-2222-3333-4444-555555555555/page_data.lance"
    client.put_object(Bucket=bucket, Key=built, Body=b"x" * 500)
    client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/data/killed.lance")
    left = keys(s3_server, table) - before
    assert built in left
    assert sweep(table, AGE) == Swept(), "too young"
    assert keys(s3_server, table) == before | left

    deadline = time.monotonic() + HANG_S
    found = Swept()
    while found.files < len(left) + 1:  # the server's clock has whole seconds
        assert time.monotonic() < deadline
        swept = sweep(table, timedelta(microseconds=1))
        found = Swept(found.files + swept.files, found.size_bytes + swept.size_bytes)
    assert found.size_bytes > 500
    assert not client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads")
    assert keys(s3_server, table) == before
    assert fileless_indexes(table) == []
    assert table.dataset.to_table(columns=["id"]).num_rows == 3
