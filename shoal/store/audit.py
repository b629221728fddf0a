"""The audit: what the log says against what the tables hold.

Pure core: messages as works, then rows, chunks and jobs go in, in streams; findings come out. It keeps, beside
the chunk bits, one small record per announced version and one per row: about 1.2 KB a document version that
stands in both (measured), whatever the size. It applies nothing: what must be there is decided by the rules of
`planning` (`precedes`, `Version.rank`), not by doing what the writer does once more.

What is claimed of whom:
* A message is *expected* once it is done (below its partition's `done`) and no dead letter: its version has a
  good row at its place or a later one, or a deletion at or after it. What is not done is *pending*: its row may
  be there already. A dead letter may have a row (`error`, or of a record that was good): it need not.
* A row is *extra* where its place lies within the log and the log does not say it there, or where the document's
  tombstone stands after it. A place before the log's start, or in another cluster, is beyond what can be said.
* Of the rows of a document the greatest by rank is current, and it alone has chunks: all of them, once.

Without knowing the bytes the log alone can't tell two things, so the tables' own word is taken where it fits the
log: which document an S3 event was about (a row or tombstone at its place tells), and in which order deletions
and announcements of different partitions were met (times within a producer's clock error). What stays open is
counted as `undecided`, and is no finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import chain

from shoal.records import Announcement, Command, Deletion, Position, Work
from shoal.spending import SPEND_KIND
from shoal.store.audit_expiry import NOTHING_EXPIRES, Expiry, is_beyond, said_rank
from shoal.store.planning import Tombstone, Version, precedes
from shoal.store.schemas import chunk_id

Place = tuple[str, str, int]
"""(cluster, topic, partition)."""

FINDINGS_KEPT_MAX = 10_000
"""Findings held with their words; beyond it they are only counted."""


class Kind(StrEnum):
    """What is different."""

    MISSING = "missing"  # the log says it, the tables don't hold it
    EXTRA = "extra"  # the tables hold it, the log doesn't say it
    DUPLICATE = "duplicate"
    WRONG_CURRENT = "wrong_current"
    ORPHAN_CHUNKS = "orphan_chunks"  # chunks of a document that has no current row
    STALE_CHUNKS = "stale_chunks"  # chunks of another version or of other bytes than the current row's
    MISSING_CHUNKS = "missing_chunks"
    LOST_DEAD_LETTER = "lost_dead_letter"  # it could not be used, and nothing says so


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. `position`: the message that a copy would mend it with, where one is in the log."""

    kind: Kind
    document_id: str
    version: str | None
    position: Position | None
    detail: str


@dataclass(frozen=True, slots=True)
class Span:
    """One partition: offsets from `start` to `end` were read; those below `done` have come to their end."""

    start: int
    end: int
    done: int


@dataclass(frozen=True, slots=True)
class Report:
    """`counts` has every kind and: log_messages, pending, dead_letters, documents, rows, chunks, older_rows,
    expired, undecided. `findings`: the first of them."""

    counts: Mapping[str, int]
    findings: tuple[Finding, ...]

    @property
    def differences(self) -> int:
        return sum(self.counts[kind] for kind in Kind)


@dataclass(slots=True)
class _Said:
    """One announcement in the log. `path`: hash of its location."""

    document_id: str
    version: str
    position: Position
    path: int
    is_expected: bool
    is_expired: bool  # by its own time
    keeps: int | None  # versions of its document


@dataclass(slots=True)
class _Document:
    """What is known of one id."""

    said: list[_Said] = field(default_factory=list)
    deletions: tuple[tuple[Position, bool], ...] = ()  # with whether it is expected; few have any
    rows: list[_Row] = field(default_factory=list)
    stones: tuple[Position, ...] = ()
    marks: tuple[_Mark, ...] = ()
    chunks: int = 0  # a bit per chunk index of the current version


@dataclass(frozen=True, slots=True)
class _Mark:
    """What is left of a version whose object was removed."""

    stored: Version
    removed_at: Position
    path: int

    def took(self, at: Position, version: str, path: int) -> bool:
        """Whether what was announced at `at` went with it, or was gone already."""
        is_there = self.stored.version == version or (self.stored.removed_id is None and self.path == path)
        return is_there and precedes(at, self.removed_at)

    def shadows(self, row: Version) -> bool:
        """Whether `row` stays history: it was announced before the removal and ranks below what went."""
        return row.rank < self.stored.rank and precedes(row.position, self.removed_at)


@dataclass(slots=True)
class _Row:
    """A metadata row; `stored` has no s3_path (`path` is its hash)."""

    stored: Version
    chunk_count: int
    path: int
    has_dropped_text: bool


class Audit:
    """Feed it in this order: all messages, all rows, all chunks and jobs; then ask for the report."""

    def __init__(
        self,
        spans: Mapping[Place, Span],
        *,
        is_event_id: Callable[[str], bool] = lambda _: False,
        dead_letters_are_whole: bool = True,
        expiry: Expiry = NOTHING_EXPIRES,
    ) -> None:
        """`is_event_id`: ids made from an S3 event, which may stand for another document's. `dead_letters_are_whole`:
        the dead-letter topics still begin where they began. `expiry`: what retention takes, or has by now."""
        self._spans = dict(spans)
        self._is_event_id = is_event_id
        self._dead_letters_are_whole = dead_letters_are_whole
        self._expiry = expiry
        self._documents: dict[str, _Document] = {}
        self._events: dict[int, list[_Said]] = {}  # path -> S3 events about it
        self._removals: dict[int, list[tuple[Position, bool, str | None]]] = {}  # path -> ObjectRemoved (of a version)
        self._removed_at: set[Position] = set()
        self._commands: dict[str, Position] = {}  # expected
        self._jobs: Counter[str] = Counter()
        self._unread: dict[Position, str] = {}  # done, unusable, and no dead letter
        self._seen: Counter[Place] = Counter()
        self._places: dict[Place, Place] = {}
        self._counts: Counter[str] = Counter()
        self._findings: list[Finding] = []

    # --- the log ------------------------------------------------------------------------------

    def message(self, at: Position, works: Sequence[Work] | str, *, is_dead: bool) -> None:
        """One message: what it asks for, or why it can't be used."""
        place = (at.cluster, at.topic, at.partition)
        span = self._spans[place]
        self._seen[place] += 1
        self._counts["log_messages"] += 1
        is_done = at.offset < span.done
        self._counts["pending"] += not is_done
        self._counts["dead_letters"] += is_dead
        is_expected = is_done and not is_dead
        if isinstance(works, str):
            if is_expected:
                self._unread[at] = works
            return
        for work in works:
            if isinstance(work, Announcement):
                said = _Said(
                    work.document_id, work.version, self._shared(work.position), hash(work.location or ""),
                    is_expected, self._expiry.has_expired(work), self._expiry.versions(work),
                )  # fmt: skip
                if self._is_event_id(work.document_id):
                    self._events.setdefault(said.path, []).append(said)
                else:
                    self._document(work.document_id).said.append(said)
            elif isinstance(work, Deletion):
                deletion = (self._shared(work.position), is_expected)
                if work.document_id is not None:
                    self._document(work.document_id).deletions += (deletion,)
                else:
                    self._removals.setdefault(hash(work.s3_path), []).append((*deletion, work.version_id))
                    self._removed_at.add(deletion[0])
            elif is_expected:
                assert isinstance(work, Command)
                if work.kind != SPEND_KIND:  # those leave no job: there is one every few seconds
                    self._commands[work.command_id] = work.position

    def _shared(self, at: Position) -> Position:
        """`at`, with the texts that all its neighbours share."""
        place = (at.cluster, at.topic, at.partition)
        cluster, topic, partition = self._places.setdefault(place, place)
        return Position(cluster, topic, partition, at.offset, at.timestamp_ms)

    def _document(self, document_id: str) -> _Document:
        found = self._documents.get(document_id)
        if found is None:
            found = self._documents[document_id] = _Document()
        return found

    def begins_at(self, starts: Mapping[Place, int]) -> None:
        """Where the log begins now: retention may have taken messages while they were being read."""
        for place, start in starts.items():
            span = self._spans[place]
            self._spans[place] = replace(span, start=max(span.start, start))

    # --- the tables ---------------------------------------------------------------------------

    def row(self, stored: Version | Tombstone, *, chunk_count: int = 0, has_dropped_text: bool = False) -> None:
        """One metadata row. `has_dropped_text`: its text went when a later version was deleted (planning)."""
        document = self._document(stored.document_id)
        if isinstance(stored, Tombstone):
            document.stones += (self._shared(stored.position),)
            return
        if stored.removed_at is not None:
            document.marks += (_Mark(replace(stored, s3_path=None), stored.removed_at, hash(stored.s3_path or "")),)
            return
        self._counts["rows"] += 1
        self._unread.pop(stored.position, None)
        # Most rows are what one message says: then they share its texts.
        said = next((said for said in reversed(document.said) if said.position == stored.position), None)
        kept = Version(
            document_id=said.document_id if said else stored.document_id,
            version=said.version if said and said.version == stored.version else stored.version,
            sha256=stored.sha256, position=said.position if said else self._shared(stored.position),
            is_good=stored.is_good, version_id=stored.version_id, is_current=stored.is_current,
        )  # fmt: skip
        document.rows.append(_Row(kept, chunk_count, hash(stored.s3_path or ""), has_dropped_text))

    def chunk(self, key: str, document_id: str, version: str, sha256: str, index: int) -> None:
        """One chunk."""
        self._counts["chunks"] += 1
        document = self._documents.get(document_id)
        current = [row for row in document.rows if row.stored.is_current] if document else []
        if not current or document is None:
            self._find(Kind.ORPHAN_CHUNKS, document_id, version, None, f"chunk {key}: no current row")
            return
        mine = [row for row in current if (row.stored.version, row.stored.sha256) == (version, sha256)]
        if not mine:
            detail = f"chunk {key} is of version {version!r}, sha256 {sha256[:12]}; current is {_told(current[0])}"
            self._find(Kind.STALE_CHUNKS, document_id, version, current[0].stored.position, detail)
        elif not 0 <= index < mine[0].chunk_count or key != chunk_id(document_id, index):
            detail = f"chunk {key}, index {index}: the document has {mine[0].chunk_count}"
            self._find(Kind.STALE_CHUNKS, document_id, version, mine[0].stored.position, detail)
        elif document.chunks >> index & 1:
            self._find(Kind.DUPLICATE, document_id, version, mine[0].stored.position, f"chunk {key} is there twice")
        else:
            document.chunks |= 1 << index

    def job(self, command_id: str) -> None:
        """One row of `shoal_jobs`."""
        self._jobs[command_id] += 1

    # --- the verdict --------------------------------------------------------------------------

    def report(self) -> Report:
        """The differences. Asked once, at the end."""
        for document_id, document in self._documents.items():
            if document.stones:
                self._check_stones(document_id, document)
            if document.marks:
                self._check_marks(document_id, document)
        ids_at = self._ids_at_event_paths()
        for said in chain.from_iterable(self._events.values()):
            self._check_event(said, ids_at.get(said.path, set()) | {said.document_id})
        for document_id, document in self._documents.items():
            self._check_document(document_id, document)
        for at, why in self._unread.items():
            if self._dead_letters_are_whole:
                self._find(Kind.LOST_DEAD_LETTER, "", None, at, f"can't be used ({why}), and there is no dead letter")
            else:
                self._counts["undecided"] += 1
        for command_id, at in self._commands.items():
            if command_id not in self._jobs:
                self._find(Kind.MISSING, f"command {command_id}", None, at, "no job tells its outcome")
        for command_id, count in self._jobs.items():
            if count > 1:
                self._find(Kind.DUPLICATE, f"command {command_id}", None, None, f"{count} jobs tell its outcome")
        self._counts["documents"] = sum(
            any(row.stored.is_current for row in document.rows) for document in self._documents.values()
        )
        names = (
            "log_messages", "pending", "dead_letters", "documents", "rows", "chunks", "older_rows", "expired",
            "undecided",
        )  # fmt: skip
        counts = {name: self._counts[name] for name in (*names, *(kind.value for kind in Kind))}
        return Report(counts, tuple(self._findings))

    def _find(self, kind: Kind, document_id: str, version: str | None, at: Position | None, detail: str) -> None:
        self._counts[kind] += 1
        if len(self._findings) < FINDINGS_KEPT_MAX:
            # The original of a copy may be gone, or of another cluster: what stands at that offset is another message.
            mending = at if at is not None and self._is_in_log(at) else None
            self._findings.append(Finding(kind, document_id, version, mending, detail))

    def _is_in_log(self, at: Position) -> bool:
        """Whether the log, as it was read, would have to hold the message at `at`."""
        span = self._spans.get((at.cluster, at.topic, at.partition))
        return span is not None and at.offset >= span.start

    def _ids_at_event_paths(self) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        if self._events:
            for document_id, document in self._documents.items():
                paths = {said.path for said in document.said} | {row.path for row in document.rows}
                paths |= {mark.path for mark in document.marks}
                for path in paths & self._events.keys():
                    found.setdefault(path, set()).add(document_id)
        return found

    def _check_event(self, said: _Said, ids: Iterable[str]) -> None:
        """An S3 event became a version of some document that lies, or lay, at its path."""
        if not said.is_expected:
            return
        documents = [document for name in ids if (document := self._documents.get(name)) is not None]
        if not any(
            _is_kept(said, document) or _is_deleted(said.position, document) or _is_removed(said, document)
            for document in documents
        ):
            if said.is_expired or any(self._has_outlived(said, document) for document in documents):
                self._counts["expired"] += 1
                return
            detail = f"an S3 event of version {said.version!r} has no row"
            self._find(Kind.MISSING, said.document_id, said.version, said.position, detail)

    def _check_document(self, document_id: str, document: _Document) -> None:
        self._check_deletions(document_id, document)
        is_gone = _is_expired_whole(document)
        for said in document.said:
            if not said.is_expected or _is_deleted(said.position, document) or _is_kept(said, document):
                continue
            if _is_removed(said, document):
                continue
            if any(precedes(said.position, at) for at, _ in document.deletions if document.stones):
                self._counts["undecided"] += 1  # deletions of several partitions, which clocks don't put in order
                continue
            same = [row for row in document.rows if row.stored.version == said.version]
            if any(row.stored.position == said.position for row in same):
                continue  # as an error: `_check_row` asks for its dead letter
            if said.is_expired or is_gone or (not same and self._has_outlived(said, document)):
                self._counts["expired"] += 1
                continue
            found = f"there is {_told(same[0])}" if same else "it has no row"
            self._find(Kind.MISSING, document_id, said.version, said.position, f"version {said.version!r}: {found}")
        for row in document.rows:
            self._check_row(document_id, document, row)
        if document.rows:
            self._check_current(document_id, document)

    def _has_outlived(self, said: _Said, document: _Document) -> bool:
        """Whether retention took the row of `said` though its own time is not over: it is history, or was deleted."""
        if any(precedes(said.position, at) and self._has_forgotten(at, document) for at, _ in document.deletions):
            return True
        removals = (at for at, _, version_id in self._removals.get(said.path, ()) if version_id is None)
        if any(precedes(said.position, at) and self._expiry.took_memory(at) for at in removals):
            return True
        rank = said_rank(said.version, said.position)
        if is_beyond(rank, said.keeps, (row.stored for row in document.rows)):
            return True
        if not any(row.stored.is_current for row in document.rows):
            return False  # what made it history is gone itself: a loss explains nothing
        later = (
            other.position
            for other in document.said
            if other.is_expected
            and said_rank(other.version, other.position) > rank
            and not (_is_removed(other, document) or _is_deleted(other.position, document))
        )
        return self._expiry.took_history(said.position, later)

    def _has_forgotten(self, deletion: Position, document: _Document) -> bool:
        """Whether the deletion was done, as far as the rows tell, and is so old that nothing remembers it."""
        return self._expiry.took_memory(deletion) and not any(
            precedes(row.stored.position, deletion) for row in document.rows
        )

    def _check_stones(self, document_id: str, document: _Document) -> None:
        """Only tombstones that the log may have said delete anything."""
        if len(document.stones) > 1:
            self._find(Kind.DUPLICATE, document_id, None, None, f"{len(document.stones)} tombstones")
        kept = []
        for stone in document.stones:
            beyond = not self._is_in_log(stone) or self._is_compacted_away(stone, document)
            if beyond or stone in self._removed_at or any(at == stone for at, _ in document.deletions):
                kept.append(stone)
            elif self._may_be_a_gap(stone):
                self._counts["undecided"] += 1  # compaction takes deletions too, and leaves nothing later
                kept.append(stone)
            else:
                self._find(Kind.EXTRA, document_id, None, None, f"a tombstone, but no deletion at {_where(stone)}")
        document.stones = tuple(kept)

    def _check_marks(self, document_id: str, document: _Document) -> None:
        """Only removals that the log may have said take anything."""
        kept = []
        for mark in document.marks:
            if self._is_in_log(mark.removed_at) and mark.removed_at not in self._removed_at:
                detail = f"a mark of a removed object, but no removal at {_where(mark.removed_at)}"
                self._find(Kind.EXTRA, document_id, mark.stored.version, None, detail)
            else:
                kept.append(mark)
        document.marks = tuple(kept)

    def _check_deletions(self, document_id: str, document: _Document) -> None:
        for at, is_expected in document.deletions:
            if not is_expected or any(precedes(at, stone) for stone in document.stones):
                continue
            if self._has_forgotten(at, document):
                self._counts["expired"] += 1
                continue
            if document.stones and len({(a.cluster, a.topic, a.partition) for a, _ in document.deletions}) > 1:
                self._counts["undecided"] += 1
                continue
            self._find(Kind.MISSING, document_id, None, at, "its deletion left no tombstone")
        self._check_removals(document_id, document)

    def _check_removals(self, document_id: str, document: _Document) -> None:
        """An object's removal takes the versions that lay there; nothing remembers it where none did, so only
        within one partition it is sure which came first."""
        for row in document.rows:
            if _is_deleted(row.stored.position, document):
                continue
            for at, is_expected, version_id in self._removals.get(row.path, ()):
                if not is_expected or not precedes(row.stored.position, at) or row.stored.position == at:
                    continue
                if version_id is not None and row.stored.version_id not in (None, version_id):
                    continue
                if _partition(row.stored.position) != _partition(at):
                    self._counts["undecided"] += 1
                    continue
                detail = f"its object was removed at {_where(at)}, and it is still there"
                self._find(Kind.EXTRA, document_id, row.stored.version, at, detail)

    def _check_row(self, document_id: str, document: _Document, row: _Row) -> None:
        at, version = row.stored.position, row.stored.version
        # One message may remove an object and create it anew: then both stand at its place.
        deletions = (stone for stone in document.stones if precedes(at, stone) and at != stone)
        if (stone := next(deletions, None)) is not None:
            detail = f"{_told(row)} was deleted at {_where(stone)}"
            self._find(Kind.EXTRA, document_id, version, stone, detail)
            return
        if not self._is_in_log(at):
            self._counts["older_rows"] += 1
            return
        said = [
            each for each in chain(document.said, self._events.get(row.path, ()))
            if each.position == at and each.version == version
        ]  # fmt: skip
        if not said:
            if self._is_compacted_away(at, document):
                self._counts["undecided"] += 1
            else:
                self._find(Kind.EXTRA, document_id, version, None, f"the log does not say this at {_where(at)}")
        elif not row.stored.is_good and not row.has_dropped_text and all(each.is_expected for each in said):
            if self._dead_letters_are_whole:
                detail = f"{_told(row)}, and no dead letter says why"
                self._find(Kind.LOST_DEAD_LETTER, document_id, version, at, detail)
            else:
                self._counts["undecided"] += 1

    def _may_be_a_gap(self, at: Position) -> bool:
        """The partition has gaps, and `at`, which must be of the log, may be in one."""
        span = self._spans[_partition(at)]
        return self._seen[_partition(at)] < span.end - span.start and at.offset < span.end

    def _is_compacted_away(self, at: Position, document: _Document) -> bool:
        """The partition has gaps, and a later message about the document explains one at `at`."""
        place = _partition(at)
        if not self._may_be_a_gap(at):
            return False
        later = chain((said.position for said in document.said), (position for position, _ in document.deletions))
        return any(_partition(other) == place and other.offset > at.offset for other in later)

    def _check_current(self, document_id: str, document: _Document) -> None:
        rows = document.rows
        twice = [version for version, count in Counter(row.stored.version for row in rows).items() if count > 1]
        for version in twice:
            row = max((row for row in rows if row.stored.version == version), key=lambda row: row.stored.rank)
            self._find(
                Kind.DUPLICATE, document_id, version, row.stored.position, f"several rows of version {version!r}"
            )
        current = [row for row in rows if row.stored.is_current]
        if len(current) > 1 and not twice:
            shown = ", ".join(_told(row) for row in current[:3])
            best = max(rows, key=lambda row: row.stored.rank)
            self._find(Kind.DUPLICATE, document_id, None, best.stored.position, f"several current rows: {shown}")
        live = [row for row in rows if not any(mark.shadows(row.stored) for mark in document.marks)]
        if not live:
            for row in current:
                detail = f"{_told(row)} is current; the object of a later version was removed after it"
                self._find(Kind.WRONG_CURRENT, document_id, row.stored.version, row.stored.position, detail)
            return
        due = max(live, key=lambda row: row.stored.rank)
        if current and any(row.has_dropped_text for row in rows):
            self._counts["undecided"] += due not in current  # a row without its text was good when it became current
        elif all(row.stored.rank != due.stored.rank for row in current):
            shown = f"{_told(current[0])} is" if current else "no row is"
            detail = f"{shown} current; {_told(due)} comes last in the log"
            self._find(Kind.WRONG_CURRENT, document_id, due.stored.version, due.stored.position, detail)
        if current and document.chunks != (1 << (count := max(row.chunk_count for row in current))) - 1:
            detail = f"{document.chunks.bit_count()} of {count} chunks are there"
            at = current[0].stored.position
            self._find(Kind.MISSING_CHUNKS, document_id, current[0].stored.version, at, detail)


def _is_kept(said: _Said, document: _Document) -> bool:
    """A good row of its version stands at its place or a later one."""
    return any(
        row.stored.version == said.version
        and (row.stored.is_good or row.has_dropped_text)
        and _order(row.stored.position) >= _order(said.position)
        for row in document.rows
    )


def _is_expired_whole(document: _Document) -> bool:
    """With its current version a document goes whole, though an earlier one was collected later."""
    said = [said for said in document.said if said.is_expected]
    if not said or any(row.stored.is_current for row in document.rows):
        return False
    return max(said, key=lambda each: (each.version, _order(each.position))).is_expired


def _is_removed(said: _Said, document: _Document) -> bool:
    return any(mark.took(said.position, said.version, said.path) for mark in document.marks)


def _is_deleted(at: Position, document: _Document) -> bool:
    return any(precedes(at, stone) for stone in document.stones)


def _order(at: Position) -> tuple[int, str, str, int, int]:
    """Among announcements of one version, as `Version.rank`."""
    return (at.timestamp_ms, at.cluster, at.topic, at.partition, at.offset)


def _partition(at: Position) -> Place:
    return at.cluster, at.topic, at.partition


def _where(at: Position) -> str:
    return f"{at.topic}/{at.partition}:{at.offset}"


def _told(row: _Row) -> str:
    status = "indexed" if row.stored.is_good else "error"
    return f"version {row.stored.version!r} ({status}) from {_where(row.stored.position)}"


def differing(first: Report, second: Report) -> Iterator[Finding]:
    """The findings of `second` that `first` has too: those that a later look did not explain."""
    known = {(finding.kind, finding.document_id, finding.version) for finding in first.findings}
    return (each for each in second.findings if (each.kind, each.document_id, each.version) in known)
