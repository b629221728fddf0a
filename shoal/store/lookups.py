"""What a plan must know of the tables before it can be made.

Only reads, by key, of the versions that the writer holds. No lookup reads a document's vectors, and none its
whole history unless it is being deleted; what they read is bounded by the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from shoal.errors import BadDocument
from shoal.records import FENCE_ID, Deletion, Embedded, EmbeddedCommand, Position
from shoal.spending import SPEND_KIND
from shoal.store.commands import FIX_NAME_MAX, fix_body
from shoal.store.index_requests import ACCEPTED
from shoal.store.planning import Tombstone, Version, read_mark
from shoal.store.rows import Row
from shoal.store.schemas import (
    FIX_COLUMNS,
    IS_CURRENT,
    IS_DOCUMENT,
    METADATA_KEY,
    SPEND_COLUMNS,
    SPEND_KEY,
    TOMBSTONE,
    VECTOR_COLUMNS,
    revision,
    tombstone_revision,
)
from shoal.store.spending import told
from shoal.store.tables import FencedTable

_COLUMNS = (
    "revision", "id", "version", "sha256_hash", "s3_path", "version_id", "validation_status", "superseded_at", "fence",
    "kafka_cluster", "kafka_topic", "kafka_partition", "kafka_offset", "kafka_timestamp_ms",
)  # fmt: skip


def stored_documents(metadata: FencedTable, batch: Sequence[Embedded | Deletion]) -> list[Version | Tombstone]:
    """The stored versions, marks and tombstones that `planning.plan` asks for. Raises TransientError."""
    announced = {item.fetched.announcement.document_id for item in batch if isinstance(item, Embedded)}
    revisions = {
        revision(item.fetched.announcement.document_id, item.fetched.announcement.version)
        for item in batch
        if isinstance(item, Embedded)
    }
    deleted = {item.document_id for item in batch if isinstance(item, Deletion) and item.document_id is not None}
    paths = [item.s3_path for item in batch if isinstance(item, Deletion) and item.s3_path is not None]
    if paths:
        at_paths = metadata.rows_of(("id",), "s3_path", paths, IS_DOCUMENT)
        # A document of this very batch may lie at a removed path as well.
        deleted |= {row["id"] for row in at_paths} | announced
    announced.discard(FENCE_ID)  # its row is none of theirs: the plan refuses such a document
    deleted.discard(FENCE_ID)
    stones = {tombstone_revision(document_id) for document_id in announced | deleted}
    rows = [
        *metadata.rows_of(_COLUMNS, "id", deleted),
        *metadata.rows_of(_COLUMNS, "id", announced - deleted, f"({IS_CURRENT} OR fence IS NOT NULL)"),
        *metadata.rows_of(_COLUMNS, METADATA_KEY, stones | revisions),
    ]
    return [stored_version(row) for row in {row[METADATA_KEY]: row for row in rows}.values()]


def stored_version(row: Row) -> Version | Tombstone:
    """A metadata row as the plan sees it."""
    position = Position(
        row["kafka_cluster"], row["kafka_topic"], row["kafka_partition"], row["kafka_offset"], row["kafka_timestamp_ms"]
    )
    if row["fence"] == TOMBSTONE:
        return Tombstone(row["id"], position)
    removed_at, removed_id = (None, None) if row["fence"] is None else read_mark(row["fence"])
    return Version(
        document_id=row["id"],
        version=row["version"],
        sha256=row["sha256_hash"],
        position=position,
        is_good=row["validation_status"] == "indexed",
        s3_path=row["s3_path"],
        version_id=row.get("version_id"),
        removed_at=removed_at,
        removed_id=removed_id,
        is_current=row["superseded_at"] is None,
    )


def stored_commands(
    fixes: FencedTable, jobs: FencedTable, batch: Sequence[EmbeddedCommand]
) -> tuple[list[Row], list[str], dict[str, tuple[str, str]]]:
    """What `commands.plan_commands` asks for: the stored fixes, the ids of the commands already done, and of those
    that failed where they stood in the log and why."""
    named, scrapers = {item.command.command_id for item in batch}, set[str]()
    for item in batch:
        try:
            body = fix_body(item)
        except BadDocument:  # the plan says so to its sender
            continue
        if isinstance(body.get("id"), str):
            named.add(body["id"])
        if isinstance(body.get("scraper_name"), str):
            scrapers.add(body["scraper_name"][:FIX_NAME_MAX])
    columns = (*FIX_COLUMNS, str(VECTOR_COLUMNS["fixes"]))
    found = fixes.rows_of(columns, "id", named, IS_DOCUMENT)
    found += fixes.rows_of(columns, "id", [row["merged_into"] for row in found if row["merged_into"]], IS_DOCUMENT)
    found += fixes.rows_of(columns, "scraper_name", scrapers, f"merged_into IS NULL AND {IS_DOCUMENT}")
    known = jobs.rows_of(("command_id", "status", "error", "result"), "command_id", named, IS_DOCUMENT)
    done = [row["command_id"] for row in known if row["status"] in ("done", ACCEPTED)]
    failed = {
        row["command_id"]: (str(orjson.loads(row["result"]).get("position")), row["error"] or "")
        for row in known
        if row["status"] == "failed" and row["result"]
    }
    return found, done, failed


def stored_spend(spend: FencedTable, batch: Sequence[EmbeddedCommand]) -> list[Row]:
    """The rows of the ledger that a batch tells of. Raises TransientError."""
    keys: dict[str, None] = {}
    for item in batch:
        if item.command.kind == SPEND_KIND:
            try:
                keys |= dict.fromkeys(key.text for key in told(fix_body(item)).counts)
            except BadDocument:  # the plan says so to its sender
                continue
    return spend.rows_of(SPEND_COLUMNS, SPEND_KEY, keys, IS_DOCUMENT) if keys else []
