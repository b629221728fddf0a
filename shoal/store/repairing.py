"""Repairs: what the writer does about findings of the check, as one command of the log (contracts 1.6).

The command names documents, keys and indexes, never rows: what is wrong with them the writer sees for itself, since
the tables may have moved. So a repair is idempotent, and one of whole tables does nothing. Its rules:
* Of rows that share a key the newest stays: by the time it was written, then by its place in the table.
* Of several current versions of a document the greatest by `Version.rank` stays current, the others become history.
* Chunks without a current row of their document, version and bytes go. What a document lacks only its message gives.
Nothing goes whose key or document was not named, and of no key the last row, but for orphans.

Pure, but for `read_repair`, which reads by scans without any index: an index may be what is wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from shoal.errors import BadDocument, DeadReason, TransientError
from shoal.records import FENCE_ID, EmbeddedCommand
from shoal.store.commands import fix_body
from shoal.store.lookups import stored_version
from shoal.store.planning import Version
from shoal.store.rows import Row
from shoal.store.schemas import IS_DOCUMENT, JOBS_TABLE, KEYS, TableKind, table_uri
from shoal.store.tables import FencedTable

KIND = "repair"
NAMES_MAX = 500
"""Documents, keys and indexes in one command: some seconds of the writer's time, and far below a message's size."""
ROWS_MAX = 20_000
"""Rows that one command puts anew: of 1536 floats they are 120 MB. What is beyond stays for the next command."""
_ADDRESS = "_rowaddr"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_METADATA = (
    "revision", "id", "version", "sha256_hash", "s3_path", "version_id", "validation_status", "superseded_at", "fence",
    "kafka_cluster", "kafka_topic", "kafka_partition", "kafka_offset", "kafka_timestamp_ms", "indexed_at",
)  # fmt: skip
_CHUNK = ("id", "metadata_id", "document_version", "sha256_hash")
_WRITTEN: Mapping[TableKind, str] = {"fixes": "reported_at", "jobs": "applied_at"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a repair command names. `indexes`: (kind of table, name)."""

    documents: tuple[str, ...] = ()
    fixes: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    indexes: tuple[tuple[TableKind, str], ...] = ()

    def body(self) -> dict[str, Any]:
        """The command's body."""
        return {
            "documents": list(self.documents), "fixes": list(self.fixes), "jobs": list(self.jobs),
            "indexes": [list(each) for each in self.indexes],
        }  # fmt: skip


@dataclass(slots=True)
class Rewrite:
    """Of one table: every row whose key is in `keys` goes, and `put` comes."""

    keys: list[str] = field(default_factory=list)
    put: list[Row] = field(default_factory=list)


@dataclass(slots=True)
class RepairPlan:
    """What a repair changes. `result` is what its job tells."""

    tables: dict[TableKind, Rewrite] = field(default_factory=dict)
    indexes: tuple[tuple[TableKind, str], ...] = ()
    result: dict[str, Any] = field(default_factory=dict)


def is_repair(item: object) -> bool:
    return isinstance(item, EmbeddedCommand) and item.command.kind == KIND


def wanted(command: EmbeddedCommand) -> Wanted:
    """What the command's body names. Raises BadDocument(SCHEMA_INVALID)."""
    body = fix_body(command)
    named: dict[str, tuple[str, ...]] = {}
    for name in ("documents", "fixes", "jobs"):
        found = body.get(name, [])
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise _invalid(f"{name} is no list of texts")
        named[name] = tuple(each for each in dict.fromkeys(found) if each != FENCE_ID)
    indexes: list[tuple[TableKind, str]] = []
    for each in body.get("indexes", []):
        match each:
            case [("metadata" | "vectors" | "fixes" | "jobs") as kind, str() as name]:
                indexes.append((kind, name))
            case _:
                raise _invalid('indexes is a list of ["metadata", "vectors", "fixes" or "jobs", name of an index]')
    if sum(map(len, (*named.values(), indexes))) > NAMES_MAX:
        raise _invalid(f"a repair names {NAMES_MAX} things at most")
    return Wanted(named["documents"], named["fixes"], named["jobs"], tuple(indexes))


def _invalid(message: str) -> BadDocument:
    return BadDocument(DeadReason.SCHEMA_INVALID, message)


@dataclass(slots=True)
class Changes:
    """Of one table, by address: what goes, and what stays with other values. `copies`: key -> all its rows."""

    copies: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    dropped: set[int] = field(default_factory=set)
    changed: dict[int, Row] = field(default_factory=dict)

    def touched(self) -> dict[str, list[int]]:
        """Key -> its rows that stay, of the keys of which any row goes or changes."""
        return {
            key: [each for each in addresses if each not in self.dropped]
            for key, addresses in self.copies.items()
            if any(each in self.dropped or each in self.changed for each in addresses)
        }


def keep_newest(changes: Changes, rows: Iterable[Row], key: str, written: str | None) -> list[Row]:
    """Of the rows of one key the newest, the others dropped. `written`: the column that tells when; None: none does."""
    by_key: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_key[row[key]].append(row)
        changes.copies[row[key]].append(row[_ADDRESS])
    kept = []
    for copies in by_key.values():
        newest = max(copies, key=lambda row: ((row[written] if written else None) or _EPOCH, row[_ADDRESS]))
        changes.dropped.update(row[_ADDRESS] for row in copies if row is not newest)
        kept.append(newest)
    return kept


def mend_document(
    rows: Sequence[Row], chunks: Sequence[Row], metadata: Changes, vectors: Changes, now: datetime
) -> None:
    """One document's rows and chunks, mended into `metadata` and `vectors`."""
    kept = keep_newest(metadata, rows, KEYS["metadata"], "indexed_at")
    current = [row for row in kept if row["fence"] is None and row["superseded_at"] is None]
    stays = max(current, key=_rank, default=None)
    for row in current:
        if row is not stays:
            metadata.changed[row[_ADDRESS]] = {"superseded_at": now, "schema_embedding": None}
    whose = (stays["version"], stays["sha256_hash"]) if stays is not None else None
    right = [row for row in chunks if (row["document_version"], row["sha256_hash"]) == whose]
    orphans = [row for row in chunks if (row["document_version"], row["sha256_hash"]) != whose]
    keep_newest(vectors, right, KEYS["vectors"], None)
    for row in orphans:
        vectors.copies[row["id"]].append(row[_ADDRESS])
        vectors.dropped.add(row[_ADDRESS])


def _rank(row: Row) -> tuple[Any, ...]:
    stored = stored_version(row)
    assert isinstance(stored, Version)
    return stored.rank


def read_repair(tables: Mapping[TableKind, FencedTable], asked: Wanted, now: datetime) -> RepairPlan:
    """What mends what `asked` names, as the tables are now. Raises BadDocument where they can't be read: a repair
    that waited for that would hold up the writer."""
    changes: dict[TableKind, Changes] = {kind: Changes() for kind in tables}
    left = 0
    try:
        if asked.documents:
            rows, chunks = defaultdict(list), defaultdict(list)
            for row in tables["metadata"].scanned(_METADATA, "id", asked.documents):
                if row["revision"] != FENCE_ID:
                    rows[row["id"]].append(row)
            for row in tables["vectors"].scanned(_CHUNK, "metadata_id", asked.documents):
                chunks[row["metadata_id"]].append(row)
            for document_id in asked.documents:
                if sum(len(each.dropped) + len(each.changed) for each in changes.values()) > ROWS_MAX:
                    left += 1
                    continue
                mend_document(
                    rows[document_id], chunks[document_id], changes["metadata"], changes["vectors"], now
                )  # fmt: skip
        keyed: dict[TableKind, tuple[str, ...]] = {"fixes": asked.fixes, "jobs": asked.jobs}
        for kind, names in keyed.items():
            if names:
                key = KEYS[kind]
                found = tables[kind].scanned((key, _WRITTEN[kind]), key, names)
                keep_newest(changes[kind], found, key, _WRITTEN[kind])
        plan = RepairPlan(indexes=asked.indexes)
        for kind, change in changes.items():
            if touched := change.touched():
                kept = tables[kind].rows_at([address for stay in touched.values() for address in stay])
                put = [{**row, **change.changed.get(address, {})} for address, row in kept.items()]
                plan.tables[kind] = Rewrite(list(touched), put)
    except (TransientError, ValueError) as error:
        raise _invalid(f"the tables can't be read for it: {error}") from error
    plan.result = {
        "removed": {kind: len(change.dropped) for kind, change in changes.items() if change.dropped},
        "superseded": len(changes["metadata"].changed),
        "indexes": [name for _, name in asked.indexes],
        "left": left,
    }
    return plan


def outcomes(uri: str, options: dict[str, str], ids: Sequence[str]) -> dict[str, Row]:
    """Command id -> its job (status, error, result), of those that have one. Raises TransientError."""
    jobs = FencedTable.open("jobs", table_uri(uri, JOBS_TABLE), options)
    if jobs is None:
        return {}
    rows = jobs.rows_of(("command_id", "status", "error", "result"), KEYS["jobs"], ids, IS_DOCUMENT)
    return {row["command_id"]: row for row in rows}
