"""Tables of an earlier index become ours: every document once, its vectors as they were, whoever is killed when."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from shoal.cluster.importing import import_lancedb, model_of
from shoal.cluster.output import Exit, Format
from shoal.errors import ConfigurationError
from shoal.records import Outcome
from shoal.settings import Settings
from shoal.store.fsck_tables import check
from shoal.store.state_files import write_state
from tests.fixtures import damage
from tests.fixtures.damage import METADATA, VECTORS
from tests.fixtures.documents import MODEL, WIDTH, document, vector

SHA = "ab" * 32


def metadata(number: int, **columns: Any) -> dict[str, Any]:
    return {
        "id": f"uuid-{number}", "urn": f"load_{number}.json", "sha256_hash": f"{number:064x}", "data_source": "nyiso",
        "data_type": "load", "dataset": "nyiso_load", "s3_path": f"s3://old/load_{number}.json",
        "collected_at": datetime(2024, 5, 1, number % 24), "file_format": "json", "validation_status": "indexed",
        **columns,
    }  # fmt: skip


def chunk(number: int, index: int, **columns: Any) -> dict[str, Any]:
    return {
        "id": f"uuid-{number}_{index}", "metadata_id": f"uuid-{number}", "content_summary": f"text {number} {index}",
        "content_embedding": vector(f"{number} {index}").tolist(), "api_endpoint": "/load", **columns,
    }  # fmt: skip


def old_tables(place: Path, rows: list[dict[str, Any]], chunks: list[dict[str, Any]], *, fixed: bool = False) -> str:
    lance.write_dataset(pa.Table.from_pylist(rows), f"{place}/scraper_metadata.lance")
    table = pa.Table.from_pylist(chunks)
    kind = pa.list_(pa.float32(), WIDTH) if fixed else pa.list_(pa.float32())
    at = table.schema.get_field_index("content_embedding")
    schema = table.schema.set(at, pa.field("content_embedding", kind))
    lance.write_dataset(table.cast(schema), f"{place}/scraper_vectors.lance")
    return str(place)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "home")


def run(settings: Settings, uri: str, **options: Any) -> int:
    chosen = {"metadata_table": METADATA, "vectors_table": VECTORS, "model": MODEL, "dry_run": False}
    return import_lancedb(settings, uri, **{**chosen, **options}, form=Format.json)


def contents(settings: Settings) -> dict[str, list[str]]:
    return {
        table: sorted(
            repr(sorted((name, value) for name, value in row.items() if name not in ("indexed_at", "superseded_at")))
            for row in damage.rows(settings.tables_uri, table, "fence IS NULL")
        )
        for table in (METADATA, VECTORS)
    }


@pytest.mark.parametrize("fixed", [False, True], ids=["list", "fixed-size list"])
def test_every_document_comes_with_its_chunks_and_the_vectors_they_had(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], fixed: bool
) -> None:
    uri = old_tables(
        tmp_path / "old", [metadata(n) for n in range(150)],
        [chunk(n, index) for index in reversed(range(12)) for n in range(150)], fixed=fixed,
    )  # fmt: skip
    assert run(settings, uri) == Exit.OK
    said = json.loads(capsys.readouterr().out)
    assert (said["documents"], said["chunks"], said["indexed"]) == (150, 1800, 150)
    (row,) = damage.rows(settings.tables_uri, METADATA, "id = 'prod:nyiso_load:load_7.json'")
    expected = {
        "urn": "load_7.json", "data_source": "NYISO", "file_format": "JSON", "chunk_count": 12,
        "version": "20240501T070000Z",
        "collected_at": datetime(2024, 5, 1, 7, tzinfo=UTC), "s3_bucket": "old", "embedding_model": MODEL,
        "extra": '{"imported_id":"uuid-7"}', "year": 2024, "superseded_at": None,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    chunks = damage.rows(settings.tables_uri, VECTORS, f"metadata_id = '{row['id']}'")
    assert [each["chunk_index"] for each in sorted(chunks, key=lambda each: int(each["chunk_index"]))] == list(
        range(12)
    )
    for each in chunks:
        assert each["content_summary"] == f"text 7 {each['chunk_index']}"
        np.testing.assert_array_equal(
            np.float32(each["content_embedding"]), vector(f"7 {each['chunk_index']}")
        )  # fmt: skip
    report = check(settings.tables_uri, {}, leaked_before=datetime(2020, 1, 1, tzinfo=UTC), index_rows_min=10**6)
    assert report is not None
    assert report.errors == 0, report


def test_a_second_run_and_one_after_a_kill_give_the_same_tables(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [metadata(n) for n in range(250)]
    uri = old_tables(tmp_path / "old", rows, [chunk(n, index) for n in range(250) for index in range(2)])
    # 1. The process dies between the tables of its second batch.
    from shoal.store.tables import FencedTable

    real, left = FencedTable.commit, [2]

    def commit(self: FencedTable, found: Any, *rest: Any) -> None:
        left[0] -= self.kind == "metadata" and len(found) > 0
        if left[0] == 0:
            raise KeyboardInterrupt
        real(self, found, *rest)

    monkeypatch.setattr(FencedTable, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        run(settings, uri)
    monkeypatch.setattr(FencedTable, "commit", real)
    # 2. It runs again, 3. and again.
    assert run(settings, uri) == Exit.OK
    once = contents(settings)
    assert len(once[METADATA]) == 250
    assert len(once[VECTORS]) == 500
    assert run(settings, uri) == Exit.OK
    assert contents(settings) == once


def test_what_was_announced_since_is_not_replaced(settings: Settings, tmp_path: Path) -> None:
    uri = old_tables(tmp_path / "old", [metadata(1)], [chunk(1, 0)])
    newer = document("prod:nyiso_load:load_1.json", 9, version="20250101T000000Z", content="newer")
    writer = damage.open_writer(settings.tables_uri)
    assert [ack.outcome for ack in writer.apply([newer], (), damage.NOW)] == [Outcome.INDEXED]
    run(settings, uri)
    found = damage.rows(settings.tables_uri, METADATA, "fence IS NULL")
    assert {row["version"]: row["superseded_at"] is None for row in found} == {
        "20250101T000000Z": True, "20240501T010000Z": False,
    }  # fmt: skip
    assert {row["document_version"] for row in damage.rows(settings.tables_uri, VECTORS, "fence IS NULL")} == {
        "20250101T000000Z"
    }


def test_what_can_not_be_taken_over_is_named_and_the_others_go_on(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        metadata(0, chunk_count=None), metadata(1, sha256_hash="no hash"), metadata(2, collected_at=None),
        metadata(3), metadata(4),
        metadata(5, validation_status="error"), metadata(6, chunk_count=0), metadata(7), metadata(8, chunk_count=1),
    ]  # fmt: skip
    chunks = [
        chunk(0, 0), chunk(1, 0), chunk(2, 0), chunk(3, 0, content_embedding=[0.0] * WIDTH),
        chunk(4, 0, content_embedding=[1.0] * (WIDTH - 1)),
    ]  # fmt: skip
    uri = old_tables(tmp_path / "old", rows, chunks)
    assert run(settings, uri) == Exit.FAILED
    said = json.loads(capsys.readouterr().out)
    assert (said["indexed"], said["without text"], said["refused"]) == (2, 1, 6)
    why = {each["document"]: each["why"] for each in said["refused_examples"]}
    assert set(why) == {"uuid-1", "uuid-2", "uuid-3", "uuid-4", "uuid-7", "uuid-8"}
    assert "sha256" in why["uuid-1"]
    assert "collected_at" in why["uuid-2"]
    assert "zero" in why["uuid-3"]
    assert "width" in why["uuid-4"]
    assert "no chunk has its id" in why["uuid-7"]
    assert "no chunk has its id" in why["uuid-8"]


def test_chunks_of_which_none_joins_are_refused_at_once(settings: Settings, tmp_path: Path) -> None:
    rows = [metadata(1), metadata(2)]
    uri = old_tables(tmp_path / "old", rows, [chunk(n, 0, metadata_id=f"prefix:uuid-{n}") for n in (1, 2)])
    with pytest.raises(ConfigurationError, match="no chunk's metadata_id"):
        run(settings, uri)


def test_columns_of_other_types_are_taken_over_as_text_and_times_cut(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "old"
    uri = old_tables(place, [metadata(0)], [chunk(0, 0)])
    odd = {"version": 20240502, "source_url": 7, "schema_embedding": "[" + "0" * (WIDTH - 2) + "]", "etag": 12}
    table = pa.Table.from_pylist([metadata(1, **odd), metadata(2, **odd, sha256_hash=None)])
    at = table.schema.get_field_index("collected_at")
    nanoseconds = pa.array([1_714_521_600_000_000_123] * 2, pa.timestamp("ns"))
    lance.write_dataset(table.set_column(at, "collected_at", nanoseconds), f"{place}/odd.lance")
    chunks = pa.Table.from_pylist([chunk(1, 0, heading=3, rate_limit=5, at="x")])
    fields = chunks.schema.set(chunks.schema.get_field_index("content_embedding"),
                               pa.field("content_embedding", pa.list_(pa.float32())))  # fmt: skip
    chunks = chunks.cast(fields).append_column("seen_at", nanoseconds[:1])
    lance.write_dataset(chunks, f"{place}/odd_vectors.lance")
    assert run(settings, uri, metadata_table="odd", vectors_table="odd_vectors") == Exit.FAILED
    said = json.loads(capsys.readouterr().out)
    assert (said["indexed"], said["refused"]) == (1, 1)
    (row,) = damage.rows(settings.tables_uri, METADATA, "fence IS NULL")
    assert (row["version"], row["etag"], row["schema_embedding"]) == ("20240502T000000Z", "12", None)
    assert row["collected_at"] == datetime(2024, 5, 1, tzinfo=UTC)
    (stored,) = damage.rows(settings.tables_uri, VECTORS, "fence IS NULL")
    assert (stored["heading"], stored["rate_limit"]) == ("3", "5")


def test_a_row_whose_values_are_beyond_reading_is_refused_alone(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from shoal.cluster import importing

    real = importing.embedded_of

    def broken(found: Any, *rest: Any) -> Any:
        if found.row["id"] == "uuid-1":
            raise AttributeError("int has no attribute strip")
        return real(found, *rest)

    monkeypatch.setattr(importing, "embedded_of", broken)
    uri = old_tables(tmp_path / "old", [metadata(1), metadata(2)], [chunk(1, 0), chunk(2, 0)])
    assert run(settings, uri) == Exit.FAILED
    said = json.loads(capsys.readouterr().out)
    assert (said["indexed"], said["refused"], said["refused_examples"][0]["document"]) == (1, 1, "uuid-1")


def test_a_dry_run_counts_and_makes_nothing(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = old_tables(tmp_path / "old", [metadata(1), metadata(2, sha256_hash=None)], [chunk(1, 0)])
    assert run(settings, uri, dry_run=True) == Exit.FAILED
    said = json.loads(capsys.readouterr().out)
    assert (said["would be imported"], said["refused"], said["dry_run"]) == (1, 1, True)
    assert not Path(settings.tables_uri).exists()


def test_it_refuses_beside_a_running_shoal(settings: Settings, tmp_path: Path) -> None:
    uri = old_tables(tmp_path / "old", [metadata(1)], [chunk(1, 0)])
    write_state(settings, "status.json", {"at": datetime.now(UTC).isoformat()})
    with pytest.raises(ConfigurationError, match="drain and stop it"):
        run(settings, uri)


def test_tables_that_are_no_such_tables_are_one_clear_line(settings: Settings, tmp_path: Path) -> None:
    uri = old_tables(tmp_path / "old", [metadata(1)], [chunk(1, 0)])
    with pytest.raises(ConfigurationError, match="no table nothing"):
        run(settings, uri, metadata_table="nothing")
    with pytest.raises(ConfigurationError, match="no column metadata_id"):
        run(settings, uri, vectors_table=METADATA)
    with pytest.raises(ConfigurationError, match="width 8, hash:64 makes 64"):
        run(settings, uri, model="hash:64")


@pytest.mark.parametrize(
    ("told", "named", "existing", "expected"),
    [
        ("hash:8", set(), None, "hash:8"),
        ("", {"hash:8"}, ("hash:8", 8), "hash:8"),
        ("", set(), None, ConfigurationError),
        ("", {"hash:8", "hash:9"}, None, ConfigurationError),
        ("hash:8", {"hash:9"}, None, ConfigurationError),
        ("hash:8", set(), ("hash:9", 9), ConfigurationError),
        ("mine", set(), None, ConfigurationError),
        ("openai:text-embedding-3-small", {"text-embedding-3-small"}, None, ConfigurationError),  # width 1536
        ("openai:text-embedding-3-small@512", set(), None, ConfigurationError),
        ("openai:text-embedding-3-small@8", {"text-embedding-3-small"}, None, "openai:text-embedding-3-small@8"),
        ("openai:text-embedding-3-small@8", {"text-embedding-3-large"}, None, ConfigurationError),
        ("openai:intfloat/some@512", set(), None, ConfigurationError),
        ("openai:intfloat/some", set(), None, "openai:intfloat/some"),  # whose width only its server knows
        ("ollama:some", set(), None, ConfigurationError),
    ],
)
def test_the_model_is_certain_and_fits(
    settings: Settings, told: str, named: set[str], existing: tuple[str, int] | None, expected: Any
) -> None:
    if isinstance(expected, str):
        assert model_of(told, named, 8, existing, settings) == expected
    else:
        with pytest.raises(expected):
            model_of(told, named, 8, existing, settings)


def test_a_model_may_be_named_without_its_provider(settings: Settings) -> None:
    name = "text-embedding-3-small"
    assert model_of("", {name}, 1536, None, settings) == f"openai:{name}"
    assert model_of(name, set(), 1536, None, settings) == f"openai:{name}"
