"""Export: the tables as Parquet files, at one pair of versions that agree.

Streams: a batch of bounded bytes is in memory, whatever the table's size. Fence rows, tombstones and marks are left
out. The files are written into a temporary directory beside the target and renamed when the manifest is whole, so a
directory with the target's name is a whole export or none. Reads the tables only; needs no running Shoal, and holds
nothing against cleanup: an export that takes longer than `cleanup_age_s` may end with an error that says so.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from shoal.errors import ConfigurationError, TransientError
from shoal.records import SCRAPER_COLLECTION
from shoal.store.fsck_scan import Held, open_tables
from shoal.store.schemas import IS_CURRENT, IS_DOCUMENT, VECTOR_COLUMNS, TableKind
from shoal.store.tables import lance_errors

MANIFEST = "manifest.json"
FORMAT = 1
HASH_BYTES = 1024 * 1024
UNFINISHED = ".shoal-export-"
"""Begins the temporary directory's name; what a kill leaves may be removed."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote. `manifest` is the file's content."""

    directory: Path
    manifest: dict[str, Any]


def export(
    uri: str,
    options: dict[str, str],
    directory: Path,
    *,
    kinds: Sequence[TableKind] = ("metadata", "vectors"),
    since: datetime | None = None,
    include_superseded: bool = False,
    with_vectors: bool = True,
    now: datetime,
    collection: str = SCRAPER_COLLECTION,
    progress: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write `{table}.parquet` of each kind and the manifest into `directory`, which must not be there yet.

    `since`: documents indexed then or later, and their chunks. History has no chunks, so `include_superseded` adds
    metadata rows only. Raises ConfigurationError where the directory is there or can't be made, or there are no tables;
    TransientError where they can't be read.
    """
    if os.path.lexists(directory):
        raise ConfigurationError(f"{directory} is there already: export to another directory, or remove it")
    opened = open_tables(uri, options, collection)
    tables = opened.tables
    if "metadata" not in tables or "vectors" not in tables:
        raise ConfigurationError(f"no tables at {uri}: is LANCEDB_PATH right?")
    metadata = tables["metadata"]
    fence = metadata.fence
    if fence is None:
        raise ConfigurationError(f"the fence of {metadata.uri} can't be read: shoal check says what is wrong")
    conditions: dict[TableKind, str] = {"metadata": IS_DOCUMENT if include_superseded else IS_CURRENT}
    conditions["vectors"] = IS_DOCUMENT
    if since is not None:
        conditions["metadata"] += f" AND indexed_at >= timestamp '{since.isoformat()}'"
    temporary = directory.parent / f"{UNFINISHED}{uuid.uuid4().hex}"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise ConfigurationError(f"{directory} can't be made: {error}") from None
    try:
        # A chunk has no time of its own: it is its document's.
        chosen = _chosen(metadata, conditions["metadata"]) if since is not None and "vectors" in kinds else None
        files = [
            _write(
                tables[kind], conditions[kind], temporary, with_vectors, chosen if kind == "vectors" else None, progress
            )
            for kind in kinds
        ]
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "collection": collection,
            "exported_at": now.isoformat(),
            "model": metadata.facts.model,
            "width": metadata.facts.width,
            "layout": metadata.facts.layout,
            "commit_sequence": fence.commit_sequence,
            "committed_at": fence.committed_at.isoformat() if fence.committed_at else None,
            "half_written_batch_left_out": opened.is_torn,
            "since": since.isoformat() if since else None,
            "include_superseded": include_superseded,
            "with_vectors": with_vectors,
            "tables": files,
        }
        (temporary / MANIFEST).write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
        for path in temporary.iterdir():
            _flush(path)
        if os.path.lexists(directory):  # somebody else's, made meanwhile; a rename would take an empty one
            raise ConfigurationError(f"{directory} is there now: export to another directory")
        temporary.rename(directory)
        return Exported(directory, manifest)
    except OSError as error:
        raise ConfigurationError(f"writing {directory}: {error}: free space there, or export elsewhere") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _chosen(metadata: Held, condition: str) -> frozenset[int]:
    """Hashes of (id, version, sha256) of the current documents that `condition` selects: 8 bytes a document and the
    set's own; two that are equal would export a document too many."""
    columns = ("id", "version", "sha256_hash")
    return frozenset(
        hash(row)
        for batch in _batches(metadata, columns, f"{condition} AND superseded_at IS NULL")
        for row in zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    )


def _batches(held: Held, columns: Sequence[str], condition: str) -> Iterator[pa.RecordBatch]:
    try:
        with lance_errors(f"reading {held.uri}"):
            scanner: Any = held.dataset.scanner(
                columns=list(columns), filter=condition, batch_size=held.batch_rows, use_scalar_index=False
            )
            yield from scanner.to_batches()
    except (TransientError, ValueError) as error:
        hint = (
            ": shoal check says what is wrong; a version older than cleanup_age_s may be gone" if _gone(error) else ""
        )
        raise TransientError(f"{error}{hint}") from error


def _gone(error: Exception) -> bool:
    return "not found" in str(error).lower()


def _write(
    held: Held, condition: str, directory: Path, with_vectors: bool, chosen: frozenset[int] | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """One table's file, and what the manifest says of it."""
    vector = VECTOR_COLUMNS[held.kind]
    names = [
        name for name in held.dataset.schema.names if name != "fence" and (with_vectors or name != vector)
    ]  # fmt: skip
    schema = pa.schema([held.dataset.schema.field(name) for name in names], metadata=held.dataset.schema.metadata)
    path, rows = directory / f"{held.name}.parquet", 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _batches(held, names, condition):
            kept = batch if chosen is None else _of(batch, chosen)
            if kept.num_rows:
                writer.write_batch(kept.cast(schema))
                rows += kept.num_rows
                progress(f"{held.name}: {rows} rows")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BYTES):
            digest.update(block)
    return {
        "table": held.name, "file": path.name, "version": int(held.dataset.version), "rows": rows,
        "size_bytes": path.stat().st_size, "sha256": digest.hexdigest(),
    }  # fmt: skip


def _of(batch: pa.RecordBatch, chosen: frozenset[int]) -> pa.RecordBatch:
    keys = zip(
        *(batch.column(name).to_pylist() for name in ("metadata_id", "document_version", "sha256_hash")), strict=True
    )
    return batch.filter(pa.array([hash(key) in chosen for key in keys], pa.bool_()))


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
