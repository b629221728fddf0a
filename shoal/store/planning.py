"""What one commit does to the documents: which rows it writes, and what became of each writable.

Pure: stored rows and a batch in, a plan out. It guarantees that any split and any order of a log ends in the
same current versions:
- Of the versions of an id, the current one is the greatest by `Version.rank`: one with text before one without
  (a failed newer version never hides the last good one), then (version, Kafka timestamp, position, sha256).
- A deletion removes every version that stands before it in the log, and leaves a tombstone, so that a version
  from before it that arrives later is not raised from the dead.
- A row's key is (id, version): of two deliveries of one version the later in the log stands. Only a copy made by
  `shoal replay` writes anew what its original wrote.
- The removal of an object takes the versions that lay there and stand before it in the log, and no others. Each
  leaves a mark: a version from before the removal that ranks below the mark stays history, so that what a document
  was before does not come back; one that ranks above, or lies elsewhere, is not touched, whichever arrives first.
The one case that order can't mend: a deletion that is overtaken by a *lower* version announced after it. That
version's text is already dropped; its row then becomes current with the status `error` and says so.

It takes no decision that the tables must take (the fence), and asks nothing of a merge but its keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from shoal.errors import BadDocument, DeadReason, PermanentError
from shoal.records import FENCE_ID, Ack, Deletion, Embedded, Failure, Outcome, Position
from shoal.store.rows import Row, check_key, check_storable, chunk_rows, metadata_row
from shoal.store.schemas import REMOVED, TOMBSTONE, CollectionFacts, revision, tombstone_revision

TEXT_DROPPED = "a later version was deleted after this one was stored without text: announce it again"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a document: a stored metadata row (`embedded` None) or one arriving.

    `is_good`: it has text (`validation_status` indexed). `is_current` tells of the stored row.
    """

    document_id: str
    version: str
    sha256: str
    position: Position
    is_good: bool
    s3_path: str | None = None
    version_id: str | None = None
    removed_at: Position | None = None  # only a mark is left of it: its object was removed there ...
    removed_id: str | None = None  # ... by a removal of this version id, or of the whole object
    is_current: bool = False
    embedded: Embedded | None = None
    error: str | None = None

    @property
    def revision(self) -> str:
        return revision(self.document_id, self.version)

    @property
    def rank(self) -> tuple[bool, str, int, str, str, int, int, str]:
        """The total order of one document's versions. Offsets count within a partition only; across
        partitions their names stand in, arbitrary but the same for everyone."""
        at = self.position
        return (
            self.is_good, self.version, at.timestamp_ms, at.cluster, at.topic, at.partition, at.offset, self.sha256,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A deletion that is remembered."""

    document_id: str
    position: Position


@dataclass(slots=True)
class CommitPlan:
    """What to write. `replaced`: documents of which every chunk but those in `chunks` goes."""

    chunks: list[Row] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    metadata: list[Row] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)  # stored revisions that become history
    promoted: list[str] = field(default_factory=list)  # stored history that becomes current, without text
    removed: list[str] = field(default_factory=list)  # stored revisions that go
    acks: list[Ack] = field(default_factory=list)
    documents: int = 0  # how many more documents have a current version than before

    @property
    def touches_chunks(self) -> bool:
        return bool(self.chunks or self.replaced)


def precedes(earlier: Position, later: Position) -> bool:
    """Whether `earlier` stands at or before `later` in the log: by offset within one partition, else by time, and in
    one millisecond by their names, so that it is one order for everyone (of two deletions only one is kept)."""
    one = (earlier.cluster, earlier.topic, earlier.partition)
    other = (later.cluster, later.topic, later.partition)
    if one == other:
        return earlier.offset <= later.offset
    return (earlier.timestamp_ms, *one) < (later.timestamp_ms, *other)


@dataclass(slots=True)
class _Document:
    """One id while the batch is applied: its versions by revision, and the last deletion."""

    versions: dict[str, Version] = field(default_factory=dict)
    tombstone: Tombstone | None = None

    def marks(self) -> list[tuple[Version, Position]]:
        return [(version, version.removed_at) for version in self.versions.values() if version.removed_at is not None]

    def current(self) -> Version | None:
        marks = self.marks()
        live = (
            version
            for version in self.versions.values()
            if version.removed_at is None
            and not any(version.rank < mark.rank and precedes(version.position, at) for mark, at in marks)
        )
        return max(live, key=lambda version: version.rank, default=None)


def plan(
    batch: Sequence[Embedded | Deletion],
    stored: Iterable[Version | Tombstone],
    facts: CollectionFacts,
    collection: str,
    now: datetime,
) -> CommitPlan:
    """The plan for `batch`, in its order. `stored`: of every id concerned the current row, the rows of the
    batch's revisions, the marks and the tombstone; all rows of an id that is deleted, or has a version at a path of
    which the object is removed."""
    documents: dict[str, _Document] = {}
    before: dict[str, Version] = {}
    old_tombstones: dict[str, Tombstone] = {}
    for row in stored:
        document = documents.setdefault(row.document_id, _Document())
        if isinstance(row, Tombstone):
            document.tombstone = old_tombstones[row.document_id] = row
        else:
            document.versions[row.revision] = row
            before[row.revision] = row

    result = CommitPlan()
    arrived: list[Version | None] = []
    for item in batch:
        version: Version | None = None
        try:
            if isinstance(item, Deletion):
                ack = _delete(item, documents, collection)
            else:
                _check_collection(item.fetched.announcement.collection, collection)
                version, failure = _arriving(item, facts)
                ack = _insert(version, documents, failure)
        except BadDocument as error:
            ack = Ack(Outcome.DEAD_LETTERED, Failure(error.reason, error.message, "write"))
        result.acks.append(ack)
        arrived.append(version)

    _write_down(result, documents, before, old_tombstones, facts, collection, now)
    for at, version in enumerate(arrived):
        if version is not None and result.acks[at].outcome is Outcome.INDEXED:
            current = documents[version.document_id].current()
            if current is None or (current.revision, current.sha256) != (version.revision, version.sha256):
                result.acks[at] = Ack(Outcome.SUPERSEDED)
    return result


def _check_collection(named: str, ours: str) -> None:
    if named != ours:
        raise BadDocument(DeadReason.COLLECTION_REFUSED, f"no collection {named!r} here, only {ours!r}")


def _arriving(item: Embedded, facts: CollectionFacts) -> tuple[Version, Failure | None]:
    """The version that `item` is, and the failure the reader does not know of yet. Raises BadDocument where not
    even an error row can be kept."""
    fetched = item.fetched
    announcement = fetched.announcement
    check_key("id", announcement.document_id)
    check_key("version", announcement.version)
    if announcement.document_id == FENCE_ID:
        raise BadDocument(DeadReason.WRITE_REJECTED, f"{FENCE_ID} is no document's id")
    failure: Failure | None = None
    error = f"{fetched.failure.reason}: {fetched.failure.message}" if fetched.failure else None
    if error is None:
        try:
            check_storable(item, facts)
            if fetched.sha256 is None:
                raise BadDocument(DeadReason.WRITE_REJECTED, "the document has no sha256")
        except BadDocument as refused:
            failure = Failure(refused.reason, refused.message, "write")
            error = str(refused)
    version = Version(
        document_id=announcement.document_id,
        version=announcement.version,
        sha256=fetched.sha256 or "",
        position=announcement.position,
        is_good=error is None,
        s3_path=announcement.location,
        version_id=fetched.version_id or announcement.version_id,
        embedded=item,
        error=error,
    )
    return version, failure


def _insert(version: Version, documents: dict[str, _Document], failure: Failure | None) -> Ack:
    late = Ack(Outcome.SUPERSEDED) if version.is_good else Ack(Outcome.DEAD_LETTERED, failure)
    if not version.sha256:  # nothing was read: there is no file to keep a row of
        return late
    document = documents.setdefault(version.document_id, _Document())
    stone = document.tombstone
    # At one position stand the records of one message, which are applied in their order: what this one created after
    # removing it stays. Where it was the other way round, the removal comes again right behind.
    if stone is not None and version.position != stone.position and precedes(version.position, stone.position):
        return late
    for mark, at in document.marks():
        lay_there = mark.removed_id is None and mark.s3_path is not None and mark.s3_path == version.s3_path
        is_no_later = mark.revision == version.revision and version.rank <= mark.rank
        if (lay_there or is_no_later) and version.position != at and precedes(version.position, at):
            return late
    current = document.current()
    same = document.versions.get(version.revision)
    if same is not None and same.removed_at is not None and same.is_good and not version.is_good:
        return late  # the mark says more than an error: without it what it shadows would come back
    if same is not None and same.removed_at is None and not _stands_over(version, same):
        if version.is_good and version.sha256 == same.sha256:
            return Ack(Outcome.UNCHANGED)
        return late
    document.versions[version.revision] = version
    if not version.is_good or document.current() is not version:
        return late
    unchanged = current is not None and current.is_good and current.sha256 == version.sha256
    return Ack(Outcome.UNCHANGED if unchanged else Outcome.INDEXED)


def _stands_over(version: Version, same: Version) -> bool:
    """Whether `version` takes the row of the same revision: it is later in the log, or it is a copy of the very
    message, which is sent to mend that row and its chunks."""
    is_copy = version.embedded is not None and version.embedded.fetched.announcement.is_replay
    return version.rank[:-1] >= same.rank[:-1] if is_copy else version.rank > same.rank


def _delete(item: Deletion, documents: dict[str, _Document], collection: str) -> Ack:
    _check_collection(item.collection, collection)
    remains = False
    if item.document_id is not None:
        check_key("id", item.document_id)
        if item.document_id == FENCE_ID:
            raise BadDocument(DeadReason.WRITE_REJECTED, f"{FENCE_ID} is no document's id")
        ids = [item.document_id]
    else:
        return _remove(item, documents)
    for document_id in ids:
        document = documents.setdefault(document_id, _Document())
        if document.tombstone is None or precedes(document.tombstone.position, item.position):
            document.tombstone = Tombstone(document_id, item.position)
        for key, version in list(document.versions.items()):
            if precedes(version.position, item.position):
                del document.versions[key]
        remains = remains or document.current() is not None
    return Ack(Outcome.SUPERSEDED if remains else Outcome.DELETED)


def _remove(item: Deletion, documents: dict[str, _Document]) -> Ack:
    """The object of `item.s3_path` went: every version that lay there and stands before it in the log goes with it."""
    remains = False
    for document in documents.values():
        there = [version for version in document.versions.values() if _lies_there(version, item)]
        taken = [version for version in there if precedes(version.position, item.position)]
        for version in taken:
            at, named = item.position, item.version_id
            if version.removed_at is not None and precedes(version.removed_at, at):
                at, named = version.removed_at, version.removed_id  # it was gone already
            document.versions[version.revision] = replace(version, removed_at=at, removed_id=named, embedded=None)
        current = document.current()
        remains = remains or (current is not None and _lies_there(current, item))
    return Ack(Outcome.SUPERSEDED if remains else Outcome.DELETED)


def _lies_there(version: Version, item: Deletion) -> bool:
    """Whether what `item` removes is this version: of an object that keeps versions, one may go while a later one
    stays. Where either side names no version, the object itself is meant."""
    if version.s3_path != item.s3_path:
        return False
    return item.version_id is None or version.version_id is None or version.version_id == item.version_id


def _write_down(
    result: CommitPlan,
    documents: dict[str, _Document],
    before: dict[str, Version],
    old_tombstones: dict[str, Tombstone],
    facts: CollectionFacts,
    collection: str,
    now: datetime,
) -> None:
    """The difference between what was stored and what the batch made of it."""
    had_rows = {version.document_id for version in before.values()}
    had_chunks = {version.document_id for version in before.values() if version.is_current and version.is_good}
    for key, version in before.items():
        if key not in documents[version.document_id].versions:
            result.removed.append(key)
    had_current = {version.document_id for version in before.values() if version.is_current}
    for document_id, document in documents.items():
        current = document.current()
        result.documents += (current is not None) - (document_id in had_current)
        for key, version in document.versions.items():
            if version.removed_at is not None:
                if key not in before or before[key].removed_at != version.removed_at:
                    result.metadata.append(_mark_row(version, version.removed_at, collection, now))
            elif version.embedded is not None:
                row = metadata_row(version.embedded, facts, error=version.error, now=now)
                if version is not current:
                    row |= {"superseded_at": now, "schema_embedding": None}
                result.metadata.append(row)
            elif version.is_current and version is not current:
                result.superseded.append(key)
            elif version is current and not version.is_current:
                result.promoted.append(key)
        if current is None or current.embedded is None or not current.is_good:
            if document_id in had_chunks and not (current and current.is_current):
                result.replaced.append(document_id)
        else:
            result.chunks += chunk_rows(current.embedded)
            if document_id in had_rows:  # a document new to the tables has no other chunks
                result.replaced.append(document_id)
        if document.tombstone is not None and document.tombstone is not old_tombstones.get(document_id):
            result.metadata.append(_tombstone_row(document.tombstone, collection, now))


def _tombstone_row(tombstone: Tombstone, collection: str, now: datetime) -> Row:
    return {
        "revision": tombstone_revision(tombstone.document_id),
        "id": tombstone.document_id,
        "collection": collection,
        "superseded_at": now,
        **_place(tombstone.position),
        "indexed_at": now,
        "fence": TOMBSTONE,
    }


def _mark_row(version: Version, removed_at: Position, collection: str, now: datetime) -> Row:
    """What remains of the row of a version whose object was removed: what `Version` knows, invisible to readers."""
    return {
        "revision": version.revision,
        "id": version.document_id,
        "version": version.version,
        "collection": collection,
        "sha256_hash": version.sha256,
        "s3_path": version.s3_path,
        "version_id": version.version_id,
        "validation_status": "indexed" if version.is_good else "error",
        "superseded_at": now,
        **_place(version.position),
        "indexed_at": now,
        "fence": mark_text(removed_at, version.removed_id),
    }


def _place(at: Position) -> Row:
    return {
        "kafka_cluster": at.cluster,
        "kafka_topic": at.topic,
        "kafka_partition": at.partition,
        "kafka_offset": at.offset,
        "kafka_timestamp_ms": at.timestamp_ms,
    }


def mark_text(removed_at: Position, removed_id: str | None) -> str:
    """The `fence` of a mark: where its object was removed, and which version of it (None: all)."""
    at = removed_at
    return json.dumps({REMOVED: [at.cluster, at.topic, at.partition, at.offset, at.timestamp_ms, removed_id]})


def read_mark(text: str) -> tuple[Position, str | None]:
    """(where the object was removed, which version of it) from the `fence` of a mark. Raises PermanentError."""
    try:
        cluster, topic, partition, offset, timestamp_ms, removed_id = json.loads(text)[REMOVED]
        return Position(cluster, topic, partition, offset, timestamp_ms), removed_id
    except (KeyError, TypeError, ValueError) as error:
        raise PermanentError(f"a row's mark can't be read ({error}): restore the table from a backup") from None
