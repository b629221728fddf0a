"""Vectors at half width: chosen when a collection is made, read from its tables ever after, and found all the same."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from shoal.errors import ConfigurationError, DeadReason
from shoal.records import Embedded, Outcome, Vector, Writable
from shoal.settings import Settings
from shoal.store.requests import SearchRequest
from shoal.store.schemas import CollectionFacts, VectorDtype, collection_facts, table_schema
from shoal.store.search import SearchIndex
from shoal.store.tables import FencedTable, to_arrow
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, command, document
from tests.fixtures.upkeep import upkeep

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)
WIDTH = 64
HALF_PRECISION = 2**-11  # relative error of rounding to 11 significant bits
VECTOR_COLUMNS = {
    "scraper_vectors": "content_embedding",
    "scraper_metadata": "schema_embedding",
    "scraper_fixes": "error_embedding",
}


def open_writer(place: Path, dtype: VectorDtype, width: int = WIDTH, **settings: Any) -> TableWriter:
    configured = Settings(vector_dtype=dtype, **settings)
    return TableWriter.open(str(place), {}, MODEL, width, settings=configured, now=NOW)


def write(writer: TableWriter, *batch: Writable) -> list[Outcome]:
    return [ack.outcome for ack in writer.apply(batch, (), NOW)]


def clustered(count: int, seed: int = 4) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Unit vectors around few centres, so that a query has many close rivals."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(20, WIDTH))
    points = centres[draw.integers(0, 20, count)] + 0.4 * draw.normal(size=(count, WIDTH))
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True), np.float32)


def holding(vectors: np.ndarray[Any, np.dtype[np.float32]], at: int = 0) -> list[Embedded]:
    """Documents of one chunk each, with these vectors."""
    return [
        replace(document(f"prod:ds:{at + n}", at + n, content=f"{n}", chunks=1, width=WIDTH), vectors=vector[None])
        for n, vector in enumerate(vectors)
    ]


def stored_types(place: Path) -> dict[str, pa.DataType]:
    return {
        table: lance.dataset(f"{place}/{table}.lance").schema.field(column).type.value_type
        for table, column in VECTOR_COLUMNS.items()
    }


async def nearest(place: Path, vector: Vector, *, limit: int = 10) -> list[tuple[str, float]]:
    index = await SearchIndex.open(str(place), {})
    page = await index.search(SearchRequest(mode="vector", vector=vector, limit=limit))
    await index.close()
    return [(hit.metadata["id"], hit.distance or 0.0) for hit in page.hits]


def test_a_new_collection_stores_what_the_setting_says_and_an_existing_one_stays_so(tmp_path: Path) -> None:
    kinds: tuple[tuple[VectorDtype, VectorDtype, pa.DataType], ...] = (
        ("float32", "float16", pa.float32()), ("float16", "float32", pa.float16()),
    )  # fmt: skip
    for first, later, stored in kinds:
        place = tmp_path / first
        assert write(open_writer(place, first), document("prod:ds:a", 1, width=WIDTH)) == [Outcome.INDEXED]
        assert write(open_writer(place, later), document("prod:ds:b", 2, width=WIDTH)) == [Outcome.INDEXED]
        assert set(stored_types(place).values()) == {stored}
        dataset = lance.dataset(f"{place}/scraper_vectors.lance")
        assert collection_facts(dataset.schema).dtype == first
        assert dataset.count_rows("fence IS NULL") == 4


def test_a_table_missing_beside_others_is_made_like_them(tmp_path: Path) -> None:
    FencedTable.create("metadata", f"{tmp_path}/scraper_metadata.lance", {}, CollectionFacts(MODEL, WIDTH))
    open_writer(tmp_path, "float16")
    assert set(stored_types(tmp_path).values()) == {pa.float32()}


def test_tables_that_name_no_number_type_hold_float32(tmp_path: Path) -> None:
    schema = table_schema("vectors", CollectionFacts(MODEL, WIDTH))
    older = {name: value for name, value in schema.metadata.items() if name != b"shoal.dtype"}
    assert collection_facts(schema.with_metadata(older)).dtype == "float32"
    with pytest.raises(ConfigurationError, match="install a newer"):
        collection_facts(schema.with_metadata({**older, b"shoal.dtype": b"float8"}))


def test_vectors_come_back_rounded_to_half_precision_in_every_table(tmp_path: Path) -> None:
    writer = open_writer(tmp_path, "float16", width=8)
    item = document("prod:ds:a", 1, width=8)
    body = {"scraper_name": "s", "error_message": "e", "summary": "fixed", "outcome": "worked"}
    fix = command("c1", "fix", body, offset=2, text="e")
    write(writer, item, fix)
    again = replace(fix, command=replace(fix.command, command_id="c2"))
    write(writer, again)  # the first report is read, with its vector, and written anew
    expected = {
        "scraper_vectors": item.vectors,
        "scraper_metadata": item.schema_vector,
        "scraper_fixes": fix.vector,
    }
    for table, column in VECTOR_COLUMNS.items():
        found = lance.dataset(f"{tmp_path}/{table}.lance").to_table([column], filter=f"{column} IS NOT NULL")
        vectors = np.array(found[column].to_pylist(), np.float32)
        np.testing.assert_allclose(vectors, np.atleast_2d(expected[table]), rtol=HALF_PRECISION, atol=1e-7)  # type: ignore[arg-type]


def test_a_vector_that_half_precision_can_not_hold_is_refused_for_its_document_alone(tmp_path: Path) -> None:
    good = document("prod:ds:good", 1, width=WIDTH)
    assert good.vectors is not None
    too_large = replace(document("prod:ds:large", 2, width=WIDTH), vectors=good.vectors * np.float32(1e6))
    too_small = replace(document("prod:ds:small", 3, width=WIDTH), vectors=good.vectors * np.float32(1e-9))
    for dtype, outcome in (("float16", Outcome.DEAD_LETTERED), ("float32", Outcome.INDEXED)):
        writer = open_writer(tmp_path / dtype, dtype)  # type: ignore[arg-type]
        acks = writer.apply([too_large, good, too_small], (), NOW)
        assert [ack.outcome for ack in acks] == [outcome, Outcome.INDEXED, outcome]
        if dtype == "float16":
            assert [ack.failure.reason for ack in acks if ack.failure] == [DeadReason.WRITE_REJECTED] * 2


def test_half_a_batch_is_rolled_back_to_the_vectors_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(tmp_path, "float16")
    write(writer, document("prod:ds:a", 1, width=WIDTH, content="old"))
    dataset = lance.dataset(f"{tmp_path}/scraper_vectors.lance")
    before = dataset.to_table(["id", "content_embedding"], filter="fence IS NULL").sort_by("id")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    # 1. The chunks of the next version land, and the writer dies before their metadata.
    monkeypatch.setattr(writer._tables["metadata"], "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        write(writer, document("prod:ds:a", 2, width=WIDTH, version="v2", content="new"))
    # 2. Its heir puts the rows back, which it read from the table as they are stored.
    open_writer(tmp_path, "float16")
    after = lance.dataset(dataset.uri).to_table(["id", "content_embedding"], filter="fence IS NULL").sort_by("id")
    assert after.equals(before)


async def test_the_ten_nearest_are_those_of_float32_without_an_index_and_nearly_so_with_one(tmp_path: Path) -> None:
    vectors, queries = clustered(1_200), clustered(20, seed=5)
    kinds: tuple[VectorDtype, ...] = ("float32", "float16")
    for dtype in kinds:
        writer = open_writer(tmp_path / dtype, dtype, index_rows_min=300, compact_commits=2)
        for start in range(0, len(vectors), 600):
            write(writer, *holding(vectors[start : start + 600], start))
    for query in queries:
        whole, half = [await nearest(tmp_path / dtype, query) for dtype in kinds]
        assert {key for key, _ in half} == {key for key, _ in whole}
        np.testing.assert_allclose([at for _, at in half], [at for _, at in whole], atol=4 * HALF_PRECISION)

    steps = upkeep(writer, NOW)  # of the float16 tables: compact, index, fold, clean
    assert any("train of content_embedding took" in step for step in steps)
    shared = 0
    for query in queries:
        exact, found = [await nearest(tmp_path / dtype, query) for dtype in kinds]
        shared += len({key for key, _ in exact} & {key for key, _ in found})
    assert shared >= 0.95 * 10 * len(queries)


def test_to_arrow_takes_vectors_as_lists_and_as_arrays_of_any_width() -> None:
    schema = table_schema("vectors", CollectionFacts(MODEL, 2, dtype="float16"))
    values = [[0.5, 0.25], np.array([0.5, 0.25], np.float32), np.array([0.5, 0.25], np.float16), None]
    rows = [{"id": str(at), "content_embedding": value} for at, value in enumerate(values)]
    assert to_arrow(rows, schema)["content_embedding"].to_pylist() == [[0.5, 0.25]] * 3 + [None]
