"""The check of the tables, run: streams of rows into the pure checks of `fsck`, and a look at indexes and files.

Each table is read once, whole (a damaged column is found too), in batches of bounded memory; only what is suspected is
looked up in a second, narrow pass. The versions are held from `open_tables` on; nothing holds them against cleanup
(`cleanup_age_s`), so a check that takes longer than that may tell files as gone: it says how long it took.
Raises what `fsck_scan` raises; writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from shoal.records import FENCE_ID, SCRAPER_COLLECTION, Position
from shoal.store.audit_rows import SETTLE_S
from shoal.store.fsck import (
    ChunkHead,
    Code,
    Coherence,
    Finding,
    Findings,
    Head,
    Repeats,
    Severity,
    Subject,
    bad_vectors,
    repeated,
)
from shoal.store.fsck_indexes import Samples, check_indexes
from shoal.store.fsck_scan import Held, Opened, Unreadable, batches, open_tables
from shoal.store.fsck_spend import spend_fault
from shoal.store.orphans import leaked, unfinished_state
from shoal.store.schemas import KEYS, LAYOUT_VERSION, SPEND_TABLE, VECTOR_COLUMNS, TableKind

_ORIGIN = ("s3_path", "kafka_cluster", "kafka_topic", "kafka_partition", "kafka_offset", "kafka_timestamp_ms")
_HEAD = ("revision", "id", "version", "sha256_hash", "superseded_at", "chunk_count", "validation_status", "fence")
_CHUNK = ("id", "metadata_id", "document_version", "sha256_hash", "chunk_index", "fence")
_VECTOR_FAULTS = (Code.VECTOR_NOT_FINITE, Code.VECTOR_ZERO)


@dataclass(frozen=True, slots=True)
class Report:
    """`rows`: per table what was read, without the fence row. `notes`: what could not be judged, and why."""

    findings: tuple[Finding, ...]
    rows: dict[str, int]
    notes: tuple[str, ...]

    @property
    def errors(self) -> int:
        return sum(finding.severity is Severity.ERROR for finding in self.findings)


def check(
    uri: str,
    options: dict[str, str],
    *,
    leaked_before: datetime,
    index_rows_min: int | None,
    collection: str = SCRAPER_COLLECTION,
    settle_s: float = SETTLE_S,
    progress: Callable[[str], None] = lambda _: None,
) -> Report | None:
    """Everything that is wrong, None where there are no tables yet. `leaked_before`: files that no version names
    count as leaked where they were last written before; `index_rows_min`: the setting, None where no vector index is
    wanted; `settle_s`: how long a writer between two tables is waited for."""
    opened = open_tables(uri, options, collection, settle_s=settle_s)
    if not opened.tables:
        return None
    return _Check(opened, index_rows_min, progress).run(uri, leaked_before)


class _Check:
    def __init__(self, opened: Opened, index_rows_min: int | None, progress: Callable[[str], None]) -> None:
        self._opened = opened
        self._tables = opened.tables
        self._index_rows_min = index_rows_min
        self._progress = progress
        self._findings = Findings()
        self._rows: dict[str, int] = {}
        self._nulls: dict[TableKind, int] = {}
        self._samples = {kind: Samples(held) for kind, held in opened.tables.items()}
        self._notes: list[str] = []
        self._coherence = Coherence()

    def run(self, uri: str, leaked_before: datetime) -> Report:
        for name in self._opened.missing:
            detail = "the other tables are there: a writer was killed while it made them, or the table was removed"
            # Tables of before the ledger have none until a writer opens them.
            severity = Severity.WARNING if name == SPEND_TABLE else None
            self._findings.add(Code.TABLE_MISSING, name, Subject(name, detail), severity=severity)
        for held in self._tables.values():
            if held.facts.layout < LAYOUT_VERSION:
                detail = f"layout {held.facts.layout}; this Shoal writes {LAYOUT_VERSION}"
                self._findings.add(Code.OLDER_LAYOUT, held.name, Subject(held.name, detail))
        if "metadata" in self._tables:
            self._check_metadata(self._tables["metadata"])
        if "vectors" in self._tables and "metadata" in self._tables:
            self._check_chunks(self._tables["vectors"], self._tables["metadata"])
        for kind in ("fixes", "jobs"):
            if kind in self._tables:
                self._check_keyed(self._tables[kind])
        if "spend" in self._tables:
            self._check_spend(self._tables["spend"])
        self._check_fences()
        for held in self._tables.values():
            nulls, rows = self._nulls.get(held.kind, 0), self._rows.get(held.name, 0) + len(held.fences)
            check_indexes(
                held, self._findings, rows, nulls, self._samples[held.kind], self._index_rows_min,
                is_whole=self._is_whole(held),
            )  # fmt: skip
            for path, size_bytes in leaked(held, leaked_before):
                self._findings.add(Code.LEAKED_FILES, held.name, Subject(path, f"{size_bytes} bytes"))
        for name in unfinished_state(uri, leaked_before):
            self._findings.add(Code.UNFINISHED_STATE_FILE, "_shoal", Subject(name))
        return Report(self._findings.listed(), self._rows, tuple(self._notes))

    # --- fences -------------------------------------------------------------------------------

    def _check_fences(self) -> None:
        add = self._findings.add
        for held in self._tables.values():
            if not held.fences and not self._is_whole(held):
                self._notes.append(f"the fence of {held.name} lies in what can't be read")
            elif len(held.fences) != 1:
                add(Code.FENCE_ROWS, held.name, Subject(FENCE_ID, f"{len(held.fences)} fence rows, not one"))
            elif held.fence is None:
                add(Code.FENCE_ROWS, held.name, Subject(FENCE_ID, "the fence row can't be read"))
        fences = {kind: held.fence for kind, held in self._tables.items()}
        metadata = fences.get("metadata")
        if metadata is None:
            return
        if self._opened.is_torn:
            detail = f"metadata is at {metadata.commit_sequence}: its writer died; readers do not see the rest"
            add(Code.HALF_WRITTEN_BATCH, self._tables["metadata"].name, Subject("commit_sequence", detail))
        for kind, held in self._tables.items():
            fence = fences[kind]
            if fence is None:
                continue
            if (fence.model, fence.width, fence.layout) != (held.facts.model, held.facts.width, held.facts.layout):
                detail = (
                    f"the fence says {fence.model}, {fence.width}, layout {fence.layout}; the schema says {held.facts}"
                )
                add(Code.FENCE_INCONSISTENT, held.name, Subject("model", detail))
            elif (fence.model, fence.width) != (metadata.model, metadata.width):
                detail = f"{fence.model}, {fence.width}; the metadata's is {metadata.model}, {metadata.width}"
                add(Code.FENCE_INCONSISTENT, held.name, Subject("model", detail))
            if kind == "jobs" and fence.commit_sequence > metadata.commit_sequence:
                detail = f"{fence.commit_sequence}; the metadata, written before it, has {metadata.commit_sequence}"
                add(Code.FENCE_INCONSISTENT, held.name, Subject("commit_sequence", detail))
            if fence.epoch > metadata.epoch:
                detail = f"{fence.epoch}; the metadata, taken first, has {metadata.epoch}"
                add(Code.FENCE_INCONSISTENT, held.name, Subject("epoch", detail))
            elif fence.epoch < metadata.epoch:
                detail = f"{fence.epoch}; the metadata has {metadata.epoch}: a writer opens the tables, or died over it"
                add(Code.OPENING_UNFINISHED, held.name, Subject("epoch", detail))

    # --- rows ---------------------------------------------------------------------------------

    def _scan(self, held: Held, columns: Iterable[str] | None = None) -> Iterable[pa.RecordBatch]:
        """Batches of a table; what can't be read is told in the whole pass only."""
        told = columns is None

        def damaged(found: Unreadable) -> None:
            if told:
                self._findings.add(
                    Code.UNREADABLE_FRAGMENT, held.name,
                    Subject(f"fragment {found.fragment}", f"{found.rows} rows: {found.detail}"),
                )  # fmt: skip

        rows = 0
        for batch in batches(held, None if columns is None else list(columns), damaged):
            rows += batch.num_rows
            if told:
                self._rows[held.name] = rows - len(held.fences)
                self._samples[held.kind].take(batch)
                self._progress(f"{held.name}: {rows} rows")
            yield batch

    def _is_whole(self, held: Held) -> bool:
        return not self._findings.has(Code.UNREADABLE_FRAGMENT, held.name)

    def _check_metadata(self, held: Held) -> None:
        keys = Repeats()
        for batch in self._scan(held):
            rows = batch.select(list(_HEAD)).to_pylist()
            keys.add(row["revision"] for row in rows if row["revision"] != FENCE_ID)
            for row in rows:
                if row["fence"] is None:
                    self._coherence.head(_head(row))
            self._check_vectors(held, batch, [(row["id"], row["revision"]) for row in rows])
        self._check_width(held)
        several = self._coherence.several_current()
        suspects = keys.suspects() | several
        self._several: set[str] = set()
        if not suspects:
            return
        found: list[dict[str, Any]] = []
        for batch in self._scan(held, (*_HEAD, *_ORIGIN)):
            for row in batch.to_pylist():
                if row["revision"] != FENCE_ID and (hash(row["revision"]) in suspects or hash(row["id"]) in suspects):
                    found.append(row)
        by_key = {row["revision"]: row for row in found}
        for key, count in repeated(row["revision"] for row in found).items():
            self._findings.add(
                Code.DUPLICATE_KEY, held.name, _subject(by_key[key], f"{key} is there {count} times")
            )  # fmt: skip
        current: dict[str, set[str]] = {}
        for row in found:
            if row["fence"] is None and row["superseded_at"] is None:
                current.setdefault(row["id"], set()).add(row["revision"])
        for document_id, revisions in current.items():
            if len(revisions) > 1:
                self._several.add(document_id)
                detail = f"{len(revisions)} current: {', '.join(sorted(revisions)[:3])}"
                self._findings.add(Code.SEVERAL_CURRENT, held.name, Subject(document_id, detail))

    def _check_chunks(self, held: Held, metadata: Held) -> None:
        self._coherence.begin_chunks(self._several)
        judges_orphans = self._is_whole(metadata)
        keys = Repeats()
        for batch in self._scan(held):
            rows = batch.select(list(_CHUNK)).to_pylist()
            keys.add(row["id"] for row in rows if row["id"] != FENCE_ID)
            orphans, misnumbered = self._coherence.chunks([_chunk(row) for row in rows if row["fence"] is None])
            for chunk in orphans if judges_orphans else ():
                detail = f"{chunk.key} of version {chunk.version!r}: no current row has that version and bytes"
                self._findings.add(Code.ORPHAN_CHUNKS, held.name, Subject(chunk.document_id, detail))
            for chunk in misnumbered:
                detail = f"{chunk.key} has index {chunk.index}, which is not among its document's"
                self._findings.add(Code.CHUNK_MISNUMBERED, held.name, Subject(chunk.document_id, detail))
            self._check_vectors(held, batch, [(row["metadata_id"], row["id"]) for row in rows], needed=True)
        self._check_width(held)
        if not judges_orphans:
            self._notes.append(f"orphan chunks were not looked for: {metadata.name} can't be read whole")
        if suspects := keys.suspects():
            found = [
                _chunk(row)
                for batch in self._scan(held, _CHUNK)
                for row in batch.to_pylist()
                if row["fence"] is None and hash(row["id"]) in suspects
            ]
            by_key = {chunk.key: chunk for chunk in found}
            for key, count in repeated(chunk.key for chunk in found).items():
                self._coherence.counted_twice(by_key[key], count - 1)
                detail = f"{key} is there {count} times"
                self._findings.add(Code.DUPLICATE_KEY, held.name, Subject(by_key[key].document_id, detail))
        if self._coherence.lacks_any:
            self._name_missing(held, metadata)
        self._place(metadata)

    def _name_missing(self, held: Held, metadata: Held) -> None:
        """Tell the documents that lack chunks. Where a part of the chunks can't be read, they may well be there."""
        is_whole, lacking = self._is_whole(held), 0
        done: set[str] = set()
        for batch in self._scan(metadata, (*_HEAD, *_ORIGIN)):
            for row in batch.to_pylist():
                if row["fence"] is not None or (lacks := self._coherence.missing(_head(row))) == 0:
                    continue
                if row["revision"] in done:  # a row that is there twice lacks them once
                    continue
                done.add(row["revision"])
                lacking += 1
                if is_whole:
                    detail = f"{lacks} of {row['chunk_count']} chunks of version {row['version']!r}"
                    self._findings.add(Code.CHUNKS_MISSING, held.name, _subject(row, detail))
        if not is_whole:
            self._notes.append(
                f"{lacking} documents have chunks in fragments of {held.name} that can't be read: indexed again "
                "(shoal replay) they have them anew, once the table can be written"
            )

    def _place(self, metadata: Held) -> None:
        """Say of every document that a replay would mend where it came from."""
        wanted = {
            subject.name: None
            for finding in self._findings.listed()
            if finding.code in (Code.CHUNK_MISNUMBERED, Code.VECTOR_MISSING, *_VECTOR_FAULTS)
            and finding.table in (metadata.name, self._tables["vectors"].name)
            for subject in finding.subjects
        }
        if not wanted:
            return
        origin: dict[str, Subject] = {}
        for batch in self._scan(metadata, (*_HEAD, *_ORIGIN)):
            for row in batch.to_pylist():
                if row["fence"] is None and row["superseded_at"] is None and row["id"] in wanted:
                    origin[row["id"]] = _subject(row, "")
        for finding in self._findings.listed():
            finding.subjects[:] = [
                Subject(each.name, each.detail, origin[each.name].position, origin[each.name].s3_path)
                if each.position is None and each.name in origin
                else each
                for each in finding.subjects
            ]

    def _check_keyed(self, held: Held) -> None:
        keys, key = Repeats(), KEYS[held.kind]
        for batch in self._scan(held):
            names = batch.column(key).to_pylist()
            keys.add(name for name in names if name != FENCE_ID)
            self._check_vectors(held, batch, [(name, name) for name in names])
        self._check_width(held)
        if suspects := keys.suspects():
            found = (
                name
                for batch in self._scan(held, (key,))
                for name in batch.column(key).to_pylist()
                if hash(name) in suspects
            )
            for name, count in repeated(found).items():
                self._findings.add(Code.DUPLICATE_KEY, held.name, Subject(name, f"{name} is there {count} times"))

    def _check_spend(self, held: Held) -> None:
        """A row per key and day: few enough to hold their keys."""
        names: Counter[str] = Counter()
        for batch in self._scan(held):
            for row in batch.to_pylist():
                if row["fence"] is None:
                    name = str(row["key"])
                    names[name] += 1
                    if (fault := spend_fault(row)) is not None:
                        self._findings.add(Code.SPEND_WRONG, held.name, Subject(name, fault))
        for name, count in names.items():
            if count > 1:
                self._findings.add(Code.SPEND_WRONG, held.name, Subject(name, f"{name} is there {count} times"))

    # --- vectors ------------------------------------------------------------------------------

    def _width(self, held: Held) -> int | None:
        """The width of the vector column, where it has the collection's; None where there is nothing to check."""
        column = VECTOR_COLUMNS[held.kind]
        if column is None or column not in held.dataset.schema.names:
            return None
        found = held.dataset.schema.field(column).type
        is_right = pa.types.is_fixed_size_list(found) and found.list_size == held.facts.width
        return held.facts.width if is_right else None

    def _check_width(self, held: Held) -> None:
        column = VECTOR_COLUMNS[held.kind]
        if column in held.dataset.schema.names and self._width(held) is None:
            detail = f"{held.dataset.schema.field(column).type}; the collection's width is {held.facts.width}"
            self._findings.add(Code.WRONG_WIDTH, held.name, Subject(str(column), detail))

    def _check_vectors(
        self, held: Held, batch: pa.RecordBatch, rows: Sequence[tuple[str, str]], *, needed: bool = False
    ) -> None:
        """`rows`: (document, key) of each row. `needed`: every row that is no fence must have one."""
        column = VECTOR_COLUMNS[held.kind]
        if column is None or column not in batch.schema.names:
            return
        vectors = batch.column(column)
        self._nulls[held.kind] = self._nulls.get(held.kind, 0) + vectors.null_count
        if needed and vectors.null_count:
            missing = np.flatnonzero(vectors.is_null().to_numpy(zero_copy_only=False))
            fences = batch.column("fence")
            for at in missing.tolist():
                if not fences[at].is_valid:
                    self._findings.add(Code.VECTOR_MISSING, held.name, Subject(*rows[at]))
        width = self._width(held)
        there = np.flatnonzero(vectors.is_valid().to_numpy(zero_copy_only=False))
        if width is None or not len(there):
            return
        matrix = vectors.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        for code, places in zip(_VECTOR_FAULTS, bad_vectors(matrix), strict=True):
            for at in places:
                self._findings.add(code, held.name, Subject(*rows[int(there[at])]))


def _head(row: dict[str, Any]) -> Head:
    has_text = row["validation_status"] == "indexed"
    return Head(
        row["revision"], row["id"], row["version"], row["sha256_hash"], row["superseded_at"] is None,
        (row["chunk_count"] or 0) if has_text else 0,
    )  # fmt: skip


def _chunk(row: dict[str, Any]) -> ChunkHead:
    index = -1 if row["chunk_index"] is None else row["chunk_index"]
    return ChunkHead(row["id"], row["metadata_id"], row["document_version"], row["sha256_hash"], index)


def _subject(row: dict[str, Any], detail: str) -> Subject:
    position = None
    if row["kafka_topic"] is not None and row["kafka_offset"] is not None:
        position = Position(*(row[name] for name in _ORIGIN[1:]))
    return Subject(row["id"], detail, position, row["s3_path"])
