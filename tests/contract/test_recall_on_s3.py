"""Recall is measured on tables in a bucket as on disk: the sample, the pass, the index, and what is written."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import lance
import numpy as np
import pyarrow as pa
import pytest

from shoal.settings import Settings
from shoal.store import recall_check
from shoal.store.index_views import index_name
from shoal.store.query_sample import FILE_PREFIX, QuerySample
from shoal.store.recall import FILE, statistics_of, tuning_of
from shoal.store.schemas import CollectionFacts, table_schema, table_uri, vectors_table
from shoal.store.state_files import list_states, read_state, remove_old_states, remove_state, write_state
from shoal.store.writing import storage_options
from tests.fixtures.s3_server import S3Server

WIDTH, ROWS = 16, 1_000
COLUMN = "content_embedding"


@pytest.fixture
def settings(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    return Settings(lancedb_path=f"s3://{s3_server.bucket('recall')}/{uuid.uuid4().hex}")


def test_state_files_are_listed_by_their_beginning_and_removed(settings: Settings) -> None:
    assert list_states(settings, "queries-") == []
    for name in ("queries-b.json", "queries-a.json", "status.json"):
        write_state(settings, name, {})
    assert list_states(settings, "queries-") == ["queries-a.json", "queries-b.json"]
    remove_state(settings, "queries-a.json")
    remove_state(settings, "queries-a.json")
    assert list_states(settings, "queries-") == ["queries-b.json"]
    assert remove_old_states(settings, "queries-", datetime.now(UTC) - timedelta(hours=1)) == 0
    assert remove_old_states(settings, "queries-", datetime.now(UTC) + timedelta(hours=1)) == 1
    assert list_states(settings, "") == ["status.json"]


def test_recall_is_measured_and_written_in_the_bucket(settings: Settings) -> None:
    vectors = np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32)
    schema = table_schema("vectors", CollectionFacts("hash:16", WIDTH))
    known = {
        "id": pa.array([f"d{number}#0" for number in range(ROWS)]),
        COLUMN: pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH),
    }
    columns = [known.get(field.name, pa.nulls(ROWS, field.type)) for field in schema]
    place, options = table_uri(settings.tables_uri, vectors_table("scraper")), storage_options(settings)
    table = lance.write_dataset(pa.Table.from_arrays(columns, schema=schema), place, storage_options=options)
    table.create_index(
        COLUMN, "IVF_PQ", name=index_name(COLUMN), metric="cosine", num_partitions=8, num_sub_vectors=4,
        sample_rate=32,
    )  # fmt: skip
    now = datetime.now(UTC)
    sample = QuerySample(8)
    for vector in vectors[:8] + 0.1:
        sample.note(vector)
    write_state(settings, f"{FILE_PREFIX}a.json", sample.to_json(now, WIDTH))
    write_state(settings, f"{FILE_PREFIX}dead.json", sample.to_json(now - timedelta(days=2), WIDTH))
    assert recall_check.check(settings, now).startswith("recall@10 ")
    written = read_state(settings, FILE)
    figures, tuning = statistics_of(written), tuning_of(written)
    assert figures is not None
    assert (figures.queries_real, figures.queries_made) == (8, 56)
    assert figures.recall >= figures.target
    assert tuning is not None
    assert (tuning.partitions, tuning.indexed_rows) == (8, ROWS)
    assert list_states(settings, FILE_PREFIX) == [f"{FILE_PREFIX}a.json"]
    assert recall_check.check(settings, now) == "not due"
