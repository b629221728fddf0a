"""The check of the tables by themselves (fsck): what may not be so, whatever the log says.

Pure core: keys, rows and chunks go in, in streams; findings of a closed list of codes come out. `shoal verify`
(audit.py) compares the tables with the log; this needs no log, and looks where the audit does not: at vectors,
indexes, fences and files. It keeps 64-bit hashes of keys in flat arrays: 8 bytes a row and about 50 a current
document (measured: 83 with both at the peak). So whatever looks wrong is only suspected after the first pass, and the
caller reads the suspects again (`suspects`), whole: two keys with one hash are told apart, and no finding rests on a
hash.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from shoal.records import Position
from shoal.store.schemas import chunk_id

SUBJECTS_MAX = 10_000
"""What is affected is named up to here for each code and table; beyond it, only counted."""


class Code(StrEnum):
    """What is wrong. Closed: scripts match on it; docs/check.md explains each."""

    TABLE_MISSING = "table_missing"
    UNREADABLE_FRAGMENT = "unreadable_fragment"
    FENCE_ROWS = "fence_rows"  # not exactly one fence row, or one that can't be read
    FENCE_INCONSISTENT = "fence_inconsistent"  # the tables' fences contradict each other
    OPENING_UNFINISHED = "opening_unfinished"  # a writer took some of the tables and not yet the others
    HALF_WRITTEN_BATCH = "half_written_batch"
    OLDER_LAYOUT = "older_layout"
    WRONG_WIDTH = "wrong_width"
    DUPLICATE_KEY = "duplicate_key"
    SEVERAL_CURRENT = "several_current"
    ORPHAN_CHUNKS = "orphan_chunks"  # no current row of their document, version and bytes
    CHUNK_MISNUMBERED = "chunk_misnumbered"  # its index is past the document's count, or its key is another's
    CHUNKS_MISSING = "chunks_missing"
    VECTOR_MISSING = "vector_missing"
    VECTOR_NOT_FINITE = "vector_not_finite"
    VECTOR_ZERO = "vector_zero"
    SPEND_WRONG = "spend_wrong"  # a row of the ledger that is there twice, or can't be so
    INDEX_MISSING = "index_missing"
    INDEX_WITHOUT_FILES = "index_without_files"
    INDEX_INCOMPLETE = "index_incomplete"  # it claims rows that it does not hold: searches lose them
    LEAKED_FILES = "leaked_files"
    UNFINISHED_STATE_FILE = "unfinished_state_file"


class Severity(StrEnum):
    """`error`: an answer may be wrong, or something is lost. `warning`: it mends itself, or only costs."""

    ERROR = "error"
    WARNING = "warning"


class Repair(StrEnum):
    """What mends it."""

    WRITER = "writer"  # `shoal check --repair`: the writer looks again and mends it
    REPLAY = "replay"  # the message once more (`shoal replay`), else the file
    UPKEEP = "upkeep"  # a running writer does it by itself
    BACKUP = "backup"  # nothing of ours: a backup, or new tables from the log


WARNINGS = frozenset(
    (Code.HALF_WRITTEN_BATCH, Code.OPENING_UNFINISHED, Code.OLDER_LAYOUT, Code.LEAKED_FILES, Code.UNFINISHED_STATE_FILE)
)
REPAIRS: dict[Code, Repair] = {
    Code.TABLE_MISSING: Repair.BACKUP, Code.UNREADABLE_FRAGMENT: Repair.BACKUP, Code.FENCE_ROWS: Repair.BACKUP,
    Code.FENCE_INCONSISTENT: Repair.BACKUP, Code.OPENING_UNFINISHED: Repair.UPKEEP,
    Code.HALF_WRITTEN_BATCH: Repair.UPKEEP, Code.OLDER_LAYOUT: Repair.UPKEEP, Code.WRONG_WIDTH: Repair.BACKUP,
    Code.DUPLICATE_KEY: Repair.WRITER, Code.SEVERAL_CURRENT: Repair.WRITER, Code.ORPHAN_CHUNKS: Repair.WRITER,
    Code.CHUNK_MISNUMBERED: Repair.REPLAY, Code.CHUNKS_MISSING: Repair.REPLAY, Code.VECTOR_MISSING: Repair.REPLAY,
    Code.VECTOR_NOT_FINITE: Repair.REPLAY, Code.VECTOR_ZERO: Repair.REPLAY, Code.INDEX_MISSING: Repair.UPKEEP,
    Code.INDEX_WITHOUT_FILES: Repair.WRITER, Code.INDEX_INCOMPLETE: Repair.WRITER, Code.LEAKED_FILES: Repair.UPKEEP,
    Code.UNFINISHED_STATE_FILE: Repair.UPKEEP, Code.SPEND_WRONG: Repair.BACKUP,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing that is affected. `name`: a document's id, a key, an index, a file. `position` and `s3_path`: where
    a document came from, by which it can be indexed again."""

    name: str
    detail: str = ""
    position: Position | None = None
    s3_path: str | None = None


@dataclass(slots=True)
class Finding:
    """All of one code in one table. `count`: how many things are affected; `subjects`: the first of them."""

    code: Code
    table: str
    count: int = 0
    subjects: list[Subject] = field(default_factory=list)
    severity: Severity = Severity.ERROR

    @property
    def repair(self) -> Repair:
        return REPAIRS[self.code]


@dataclass(slots=True)
class Findings:
    """Findings as they come, one per code and table."""

    _by_code: dict[tuple[Code, str], Finding] = field(default_factory=dict)

    def add(self, code: Code, table: str, subject: Subject, *, severity: Severity | None = None) -> None:
        usual = Severity.WARNING if code in WARNINGS else Severity.ERROR
        finding = self._by_code.setdefault((code, table), Finding(code, table, severity=severity or usual))
        if severity is Severity.ERROR:
            finding.severity = severity  # one of them is grave
        finding.count += 1
        if len(finding.subjects) < SUBJECTS_MAX:
            finding.subjects.append(subject)

    def has(self, code: Code, table: str) -> bool:
        return (code, table) in self._by_code

    def listed(self) -> tuple[Finding, ...]:
        """Errors first, then in the order of the codes."""
        order = list(Code)
        found = self._by_code.values()
        return tuple(sorted(found, key=lambda each: (each.severity, order.index(each.code), each.table)))


class Repeats:
    """Which keys came more than once: 8 bytes a key."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, keys: Iterable[str]) -> None:
        self._hashes.extend(map(hash, keys))

    def __len__(self) -> int:
        return len(self._hashes)

    def suspects(self) -> frozenset[int]:
        """The hashes that came more than once."""
        values, counts = np.unique(np.array(self._hashes, np.int64), return_counts=True)
        return frozenset(values[counts > 1].tolist())


def repeated(keys: Iterable[str]) -> dict[str, int]:
    """Key -> how often it came, of those that came more than once."""
    counts: dict[str, int] = defaultdict(int)
    for key in keys:
        counts[key] += 1
    return {key: count for key, count in counts.items() if count > 1}


@dataclass(frozen=True, slots=True)
class Head:
    """What the check needs of a metadata row of a document."""

    revision: str
    document_id: str
    version: str
    sha256: str | None
    is_current: bool
    chunk_count: int


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """What the check needs of a chunk but its vector."""

    key: str
    document_id: str
    version: str
    sha256: str | None
    index: int


class Coherence:
    """Whether every current document has its chunks, all of them and no others.

    Feed `head` for all rows, then `begin_chunks`, then all chunks. A document with several current rows has no
    answer to which chunks it should have: it is left out of `missing`.
    """

    def __init__(self) -> None:
        self._documents = array("q")  # hash of (id, version, sha256) of each current row
        self._ids = array("q")
        self._wanted = array("q")
        self._keys: Any = None
        self._wanted_of: Any = None
        self._is_judged: Any = None
        self._seen: Any = None
        self.current_rows = 0

    def head(self, row: Head) -> None:
        if row.is_current:
            self.current_rows += 1
            self._documents.append(hash((row.document_id, row.version, row.sha256)))
            self._ids.append(hash(row.document_id))
            self._wanted.append(row.chunk_count)

    def several_current(self) -> frozenset[int]:
        """Hashes of the ids that may have several current revisions; a row that is there twice is one of them too."""
        values, counts = np.unique(np.array(self._ids, np.int64), return_counts=True)
        return frozenset(values[counts > 1].tolist())

    def begin_chunks(self, without: Iterable[str] = ()) -> None:
        """All rows are in. `without`: ids of which nothing is said to be missing."""
        keys, first = np.unique(np.array(self._documents, np.int64), return_index=True)
        self._keys = keys
        self._wanted_of = np.array(self._wanted, np.int64)[first]
        ids = np.array(self._ids, np.int64)[first]
        left_out = np.array(sorted(map(hash, without)), np.int64)
        self._is_judged = ~np.isin(ids, left_out)
        self._seen = np.zeros(len(keys), np.int64)

    def chunks(self, rows: Sequence[ChunkHead]) -> tuple[list[ChunkHead], list[ChunkHead]]:
        """(orphans, misnumbered) among `rows`; the others count for their documents."""
        hashes = np.fromiter((hash((row.document_id, row.version, row.sha256)) for row in rows), np.int64, len(rows))
        at = np.searchsorted(self._keys, hashes) if len(self._keys) else np.zeros(len(rows), np.int64)
        orphans: list[ChunkHead] = []
        misnumbered: list[ChunkHead] = []
        good: list[int] = []
        for row, place, hashed in zip(rows, at.tolist(), hashes.tolist(), strict=True):
            if place >= len(self._keys) or self._keys[place] != hashed:
                orphans.append(row)
            elif not 0 <= row.index < self._wanted_of[place] or row.key != chunk_id(row.document_id, row.index):
                misnumbered.append(row)
            else:
                good.append(place)
        np.add.at(self._seen, good, 1)
        return orphans, misnumbered

    def counted_twice(self, row: ChunkHead, times: int) -> None:
        """`row` is there `times` times too often."""
        hashed = hash((row.document_id, row.version, row.sha256))
        place = int(np.searchsorted(self._keys, hashed))
        if place < len(self._keys) and self._keys[place] == hashed:
            self._seen[place] -= times

    def missing(self, row: Head) -> int:
        """How many chunks this current row lacks."""
        if not row.is_current:
            return 0
        place = int(np.searchsorted(self._keys, hash((row.document_id, row.version, row.sha256))))
        if not self._is_judged[place]:
            return 0
        return max(0, row.chunk_count - int(self._seen[place]))

    @property
    def lacks_any(self) -> bool:
        return bool(np.any((self._seen < self._wanted_of) & self._is_judged))


def bad_vectors(matrix: np.ndarray[Any, Any]) -> tuple[list[int], list[int]]:
    """(rows that are not finite, rows that are zero) of a matrix of shape (rows, width)."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(matrix.astype(np.float64), axis=1)
    finite = np.isfinite(norms)
    return np.flatnonzero(~finite).tolist(), np.flatnonzero(finite & (norms == 0)).tolist()
