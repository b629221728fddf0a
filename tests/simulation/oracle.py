"""The oracle: what must hold at every step, and what the tables must hold at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import orjson

from shoal.sources.dead_letters import DEAD_LETTER_SUFFIX
from shoal.store.schemas import TOMBSTONE
from tests.simulation.broker import Broker, Key, Record
from tests.simulation.kernel import Violation
from tests.simulation.model import Announced, Document, Expected, Fix, Removal, expected
from tests.simulation.tables import Storage, Stored, Version


class Oracle:
    """Watches the broker's commits and the tables' versions."""

    def __init__(self, broker: Broker, storage: Storage) -> None:
        self.broker, self.storage = broker, storage
        self.log: dict[tuple[Key, int], Announced] = {}
        self._checked: dict[Key, int] = defaultdict(int)
        self._dead_read: Counter[str] = Counter()
        self._dead: dict[tuple[Key, int], list[str]] = defaultdict(list)
        broker.on_commit = self.may_commit
        storage.on_landed = self.landed

    def announce(self, message: Announced) -> None:
        self.log[message.record.key_, message.record.offset_] = message

    # --- at every step ------------------------------------------------------------------------

    def may_commit(self, key: Key, offset: int, who: str = "an offset was committed") -> None:
        """G1: everything below a committed offset is durable."""
        for record in self.broker.logs[key]:
            if self._checked[key] <= record.offset_ < offset:
                lacks = self._lacks(self.log[key, record.offset_])
                if lacks:
                    raise Violation(f"{who}: {key} {offset}, but {record.offset_} is not durable: {lacks}")
        self._checked[key] = max(self._checked[key], offset)

    def landed(self, stored: Stored, before: Version) -> None:
        """A table has a new version."""
        after = stored.newest
        if stored.kind != "metadata" or after.fence.commit_sequence <= before.fence.commit_sequence:
            return
        self._check_no_half_document(after)
        for (_, topic, partition), offset in after.fence.progress:
            self.may_commit((topic, partition), offset, "the fence's progress is ahead")

    def _check_no_half_document(self, metadata: Version) -> None:
        """Once a batch is whole, every current document has all its chunks and no other's."""
        vectors = self.storage.of("vectors")
        if vectors is None:
            return
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for chunk in vectors.newest.rows.values():
            found[chunk["metadata_id"]][chunk["document_version"]] += 1
        for row in metadata.rows.values():
            if row.get("superseded_at") is not None or row.get("fence") is not None:
                continue
            count = row["chunk_count"] if row["validation_status"] == "indexed" else 0
            wanted = Counter({row["version"]: count}) if count else Counter()
            if found.get(row["id"], Counter()) != wanted:
                raise Violation(f"{row['id']} is current as {wanted}, its chunks are {found.get(row['id'])}")

    def _lacks(self, message: Announced) -> str | None:
        """What of `message` is not durable, or None."""
        at = (message.record.key_, message.record.offset_)
        if message.bad is not None and at not in self.dead():
            return "no dead letter"
        for number, part in enumerate(message.asked):
            later = message.asked[number + 1 :]
            if isinstance(part, Document) and any(isinstance(it, Removal) and it.path == part.path for it in later):
                continue  # removed again by the same message
            if isinstance(part, Document) and part.sha256 is not None and not self._has(message.record, part):
                return f"no row of {part.document_id}@{part.version}"
            if isinstance(part, Removal) and not self._is_removed(message.record, part):
                return f"{part} was not applied"
            if isinstance(part, Fix):
                jobs = self.storage.of("jobs")
                row = jobs.newest.rows.get(part.command_id) if jobs else None
                if row is None or row["status"] != "done":
                    return f"command {part.command_id} was not applied"
        return None

    def _metadata(self) -> dict[str, dict[str, Any]]:
        stored = self.storage.of("metadata")
        return stored.newest.rows if stored else {}

    def _tombstone(self, document_id: str) -> int:
        row = self._metadata().get(f"{document_id}@%deleted")
        return -1 if row is None else int(row["kafka_offset"])

    def _has(self, record: Record, document: Document) -> bool:
        if self._tombstone(document.document_id) > record.offset_:
            return True
        row = self._metadata().get(f"{document.document_id}@{document.version}")
        if row is None:
            return False
        stored = (
            row["validation_status"] == "indexed",
            row["kafka_timestamp_ms"],
            row["kafka_partition"],
            row["kafka_offset"],
        )
        return stored >= (document.bad is None, record.timestamp_ms, record.key_[1], record.offset_)

    def _is_removed(self, record: Record, removal: Removal) -> bool:
        if removal.document_id is not None:
            return self._tombstone(removal.document_id) >= record.offset_
        return not any(
            row.get("s3_path") == removal.path and row.get("superseded_at") is None
            and row["kafka_partition"] == record.key_[1] and row["kafka_offset"] < record.offset_
            for row in self._metadata().values()
        )  # fmt: skip

    def dead(self) -> dict[tuple[Key, int], list[str]]:
        """Position of a message -> the reasons of its dead letters."""
        for topic, letters in self.broker.other.items():
            if not topic.endswith(DEAD_LETTER_SUFFIX):
                continue
            for letter in letters[self._dead_read[topic] :]:
                headers = {name: (value or b"").decode() for name, value in letter.headers_}
                key = (headers["__connect.errors.topic"], int(headers["__connect.errors.partition"]))
                self._dead[key, int(headers["__connect.errors.offset"])].append(headers["shoal.dlq.reason"])
            self._dead_read[topic] = len(letters)
        return self._dead

    # --- at the end ---------------------------------------------------------------------------

    def check_end(self, log: Sequence[Announced]) -> None:
        """missing 0, extra 0, duplicate 0."""
        wanted = expected(list(log))
        self._check_documents(wanted)
        self._check_fixes(wanted)
        dead = {at: set(reasons) for at, reasons in self.dead().items()}
        _same("dead letters", dead, {at: {str(reason)} for at, reason in wanted.dead.items()})
        told: dict[str, set[str]] = defaultdict(set)
        for topic, records in self.broker.other.items():
            if topic == "shoal_outcomes":
                for record in records:
                    outcome = orjson.loads(record.message_value or b"")
                    told[outcome["outcome_id"].partition("/")[0]].add(outcome["outcome"])
        for message in log:
            if message.outcome_id is None:
                continue
            outcomes = told[message.outcome_id]
            if not outcomes:
                raise Violation(f"nobody was told what became of {message.record.key_} {message.record.offset_}")
            if (message.bad is not None) != ("dead_lettered" in outcomes):
                raise Violation(f"{message.outcome_id} was told {outcomes}, its message is bad: {message.bad}")

    def _check_documents(self, wanted: Expected) -> None:
        rows, tombstones = {}, {}
        for revision, row in self._metadata().items():
            if row.get("fence") == TOMBSTONE:
                tombstones[row["id"]] = row["kafka_offset"]
            elif row.get("fence") is None:  # else the mark of a version whose object was removed
                rows[revision] = (
                    row["version"], row["sha256_hash"], row["validation_status"] == "indexed",
                    row.get("superseded_at") is None, row["kafka_partition"], row["kafka_offset"],
                )  # fmt: skip
        _same("tombstones", tombstones, wanted.tombstones)
        _same(
            "metadata rows",
            rows,
            {
                revision: (row.version, row.sha256, row.is_good, row.is_current, row.partition, row.offset)
                for revision, row in wanted.rows.items()
            },
        )
        vectors = self.storage.of("vectors")
        chunks = {
            name: (row["content_summary"], row["document_version"], row["sha256_hash"])
            for name, row in (vectors.newest.rows if vectors else {}).items()
        }
        _same("chunks", chunks, wanted.chunks)

    def _check_fixes(self, wanted: Expected) -> None:
        stored = self.storage.of("fixes")
        rows = stored.newest.rows if stored else {}
        reported = [name for ids in wanted.fixes.values() for name in ids]
        _same("fixes", dict.fromkeys(rows, 1), dict.fromkeys(reported, 1))
        for same_as, ids in wanted.fixes.items():
            roots = [rows[name] for name in ids if rows[name]["merged_into"] is None]
            if len(roots) != 1 or roots[0]["count"] != len(ids):
                raise Violation(f"fix {same_as} was reported {len(ids)} times, the tables count {roots}")


def _same(what: str, found: dict[Any, Any], wanted: dict[Any, Any]) -> None:
    missing = {name: value for name, value in wanted.items() if name not in found}
    extra = {name: value for name, value in found.items() if name not in wanted}
    other = {name: (value, wanted[name]) for name, value in found.items() if name in wanted and value != wanted[name]}
    if missing or extra or other:
        raise Violation(f"{what}: missing {missing}, extra {extra}, other (found, expected) {other}")
