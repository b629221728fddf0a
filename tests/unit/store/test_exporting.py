"""An export is whole or not there, of one moment, and holds the documents and nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shoal.errors import ConfigurationError, TransientError
from shoal.store.exporting import Exported, export
from shoal.store.schemas import TableKind
from tests.fixtures import damage
from tests.fixtures.damage import METADATA, NOW, VECTORS, A
from tests.fixtures.documents import document

BOTH: tuple[TableKind, ...] = ("metadata", "vectors")


def run(place: str, directory: Path, **options: Any) -> Exported:
    return export(place, {}, directory, now=NOW, **options)


def test_an_export_holds_every_current_document_and_its_chunks(whole: str, tmp_path: Path) -> None:
    done = run(whole, tmp_path / "deep" / "out")
    assert sorted(path.name for path in done.directory.iterdir()) == [
        "manifest.json", f"{METADATA}.parquet", f"{VECTORS}.parquet",
    ]  # fmt: skip
    rows = pq.read_table(done.directory / f"{METADATA}.parquet").to_pylist()
    expected = damage.rows(whole, METADATA, "fence IS NULL AND superseded_at IS NULL")
    by_key = {row["revision"]: row for row in rows}
    assert by_key == {row["revision"]: {name: row[name] for name in row if name != "fence"} for row in expected}
    chunks = pq.read_table(done.directory / f"{VECTORS}.parquet")
    assert "fence" not in chunks.schema.names
    assert chunks.schema.field("content_embedding").type.list_size == 8
    in_table = {row["id"]: row["content_embedding"] for row in damage.rows(whole, VECTORS, "fence IS NULL")}
    assert {row["id"]: row["content_embedding"] for row in chunks.to_pylist()} == in_table


def test_the_manifest_tells_versions_counts_and_hashes(whole: str, tmp_path: Path) -> None:
    done = run(whole, tmp_path / "out")
    manifest = json.loads((done.directory / "manifest.json").read_bytes())
    assert manifest == done.manifest
    assert (manifest["model"], manifest["width"], manifest["layout"]) == ("hash:8", 8, 1)
    assert manifest["commit_sequence"] == damage.fence(whole, METADATA)["commit_sequence"]
    for each in manifest["tables"]:
        path = done.directory / each["file"]
        assert each["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert each["size_bytes"] == path.stat().st_size
        assert each["rows"] == pq.ParquetFile(path).metadata.num_rows
        assert each["version"] == damage.dataset(whole, each["table"]).version


def test_history_and_vectors_are_a_choice(whole: str, tmp_path: Path) -> None:
    done = run(whole, tmp_path / "out", kinds=("metadata",), include_superseded=True, with_vectors=False)
    assert [each["table"] for each in done.manifest["tables"]] == [METADATA]
    found = pq.read_table(done.directory / f"{METADATA}.parquet")
    assert "schema_embedding" not in found.schema.names
    assert {row["version"] for row in found.to_pylist() if row["id"] == A} == {"v1", "v2"}


def test_since_takes_the_documents_indexed_since_and_their_chunks(whole: str, tmp_path: Path) -> None:
    place = shutil.copytree(whole, str(tmp_path / "lancedb"))
    writer = damage.open_writer(place)
    later = NOW + timedelta(hours=1)
    writer.apply([document("prod:ds:late", 500, content="late", chunks=2), document(A, 501, version="v9")], (), later)
    done = run(place, tmp_path / "out", since=later)
    ids = {row["id"] for row in pq.read_table(done.directory / f"{METADATA}.parquet").to_pylist()}
    assert ids == {"prod:ds:late", A}
    chunks = pq.read_table(done.directory / f"{VECTORS}.parquet").to_pylist()
    assert {row["metadata_id"] for row in chunks} == ids
    assert len(chunks) == 4
    nothing = run(place, tmp_path / "none", since=datetime(2099, 1, 1, tzinfo=UTC))
    assert [each["rows"] for each in nothing.manifest["tables"]] == [0, 0]


def test_what_is_there_is_never_overwritten(whole: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigurationError, match="there already"):
        run(whole, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(ConfigurationError, match="no tables"):
        run(str(tmp_path / "nowhere"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_export_that_fails_leaves_nothing(whole: str, tmp_path: Path) -> None:
    place = shutil.copytree(whole, str(tmp_path / "lancedb"))
    damage.file_gone(VECTORS)(place)
    (tmp_path / "to").mkdir()
    with pytest.raises(TransientError, match="shoal check"):
        run(place, tmp_path / "to" / "out")
    assert list((tmp_path / "to").iterdir()) == []


def test_half_a_batch_is_left_out(whole: str, tmp_path: Path) -> None:
    place = shutil.copytree(whole, str(tmp_path / "lancedb"))
    before = {row["id"]: row["document_version"] for row in damage.rows(place, VECTORS, "fence IS NULL")}
    damage.half_a_batch(place)
    done = run(place, tmp_path / "out")
    assert done.manifest["half_written_batch_left_out"] is True
    chunks = pq.read_table(done.directory / f"{VECTORS}.parquet").to_pylist()
    assert {row["id"]: row["document_version"] for row in chunks} == before


def test_a_place_that_is_no_directory_is_refused_and_not_made_below_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.cluster.cli_tables import export as command

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="a local directory"):
        command(Path("s3://bucket/there"), data_dir=tmp_path)
    assert not (tmp_path / "s3:").exists()
