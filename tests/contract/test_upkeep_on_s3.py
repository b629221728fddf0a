"""Upkeep on S3 as on disk: an index built in the child, compaction, folding, cleanup, repair, and what a commit asks.

Kept states, recall and orphans have contracts of their own beside this one.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shoal.settings import Settings
from shoal.store.fsck_tables import check
from shoal.store.index_views import views
from shoal.store.repairing import outcomes
from shoal.store.requests import SearchRequest
from shoal.store.search import SearchIndex
from shoal.store.tables import FencedTable
from shoal.store.verification import coverage
from shoal.store.writing import TableWriter, storage_options
from tests.fixtures.documents import MODEL, WIDTH, command, document, vector
from tests.fixtures.s3_server import S3Server
from tests.fixtures.upkeep import upkeep

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)
ROWS_MIN = 256


@pytest.fixture
def settings(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    place = f"s3://{s3_server.bucket('upkeep')}/{uuid.uuid4().hex}"
    made = Settings(lancedb_path=place, s3_endpoint_url=s3_server.endpoint, compact_commits=2, index_rows_min=ROWS_MIN)
    return made.model_copy(update={"cleanup_age_s": 2.0})  # the server's clock has whole seconds


def opened(settings: Settings, kind: Any, name: str) -> FencedTable:
    found = FencedTable.open(kind, f"{settings.tables_uri}/{name}.lance", storage_options(settings))
    assert found is not None
    return found


def versions(table: FencedTable) -> int:
    return len(table.dataset.versions())


async def test_upkeep_on_s3_builds_compacts_folds_cleans_and_repairs(settings: Settings) -> None:
    options = storage_options(settings)
    writer = TableWriter.open(settings.tables_uri, options, MODEL, WIDTH, settings=settings, now=NOW)
    # 1. Enough chunks for an index, in several commits. 2. All upkeep that is due, a training beside the writer.
    for start in range(0, 75, 25):
        batch = [document(f"prod:ds:{n}", n, content=f"wind {n}", chunks=4) for n in range(start, start + 25)]
        writer.apply(batch, (), NOW)
    before = versions(opened(settings, "vectors", "scraper_vectors"))
    done = upkeep(writer, NOW)
    assert any("train of content_embedding took" in step and "verified" in step for step in done), done
    assert any(step.startswith("compacted vectors") for step in done)
    # 3. More is written and folded in. 4. Later, what is old goes, and everything is still there.
    for number in (3, 4):
        writer.apply([document(f"prod:ds:{number}", 100 + number, version="v2", content=f"solar {number}")], (), NOW)
    done = upkeep(writer, NOW + timedelta(hours=2))
    assert any(step.startswith("removed ") for step in done)
    table = opened(settings, "vectors", "scraper_vectors")
    assert versions(table) < before + 10
    assert all(coverage(view) is None for view in views(table).values())
    index = await SearchIndex.open(settings.tables_uri, options, refresh_interval_s=0.0)
    for request in (
        SearchRequest(mode="keyword", query="solar 3", limit=1),
        SearchRequest(mode="vector", vector=vector("solar 3 part 0"), limit=1),
    ):
        (hit,) = (await index.search(request)).hits
        assert (hit.metadata["id"], hit.metadata["version"]) == ("prod:ds:3", "v2")
    # 5. A chunk that nobody has a document for, as a bug would leave it: a repair takes it out.
    (row,) = table.dataset.to_table(filter="id = 'prod:ds:3#0'").to_pylist()
    orphan = {**row, "id": "prod:ds:nobody#0", "metadata_id": "prod:ds:nobody"}
    import lance
    import pyarrow as pa

    lance.write_dataset(
        pa.Table.from_pylist([orphan], schema=table.schema), table.uri, mode="append", storage_options=options
    )
    heir = TableWriter.open(settings.tables_uri, options, MODEL, WIDTH, settings=settings, now=NOW)
    heir.apply([command("r1", "repair", {"documents": ["prod:ds:nobody"]}, offset=9)], (), NOW)
    assert outcomes(settings.tables_uri, options, ["r1"])["r1"]["status"] == "done"
    upkeep(heir, NOW + timedelta(hours=3))
    report = check(
        settings.tables_uri, options, leaked_before=datetime.now(UTC) - timedelta(minutes=5),
        index_rows_min=ROWS_MIN, settle_s=0,
    )  # fmt: skip
    assert report is not None
    assert report.findings == ()
    await index.close()
