"""What the tables must hold: a simple model of contracts 1.1 and 1.5, made from the log alone.

Independent of the planner: it never sees a batch, only the whole log, in one pass per document.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from shoal.errors import DeadReason
from tests.simulation.broker import Key, Record


@dataclass(frozen=True, slots=True)
class Document:
    """One announced version. `lines`: its chunks; `bad`: why it ends as a dead letter, or None; `sha256`: of its
    bytes, None where none can be read, and then it leaves no row."""

    document_id: str
    version: str
    path: str
    lines: tuple[str, ...] = ()
    sha256: str | None = None
    bad: DeadReason | None = None


@dataclass(frozen=True, slots=True)
class Removal:
    """A deletion by id or by path."""

    document_id: str | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Fix:
    """A reported fix; `same_as` names reports that are the same fix."""

    command_id: str
    same_as: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """A message that nobody can use."""

    bad: DeadReason


Asked = Document | Removal | Fix | Garbage


@dataclass(frozen=True, slots=True)
class Announced:
    """A message in the log, and what it asks for."""

    record: Record
    asked: tuple[Asked, ...]
    outcome_id: str | None = None

    @property
    def bad(self) -> DeadReason | None:
        """Why it must end as a dead letter: its first bad part."""
        return next((part.bad for part in self.asked if isinstance(part, Document | Garbage) and part.bad), None)


@dataclass(frozen=True, slots=True)
class Row:
    """A metadata row, as far as the model knows it."""

    version: str
    sha256: str
    is_good: bool
    is_current: bool
    partition: int
    offset: int


@dataclass(slots=True)
class Expected:
    """The tables at the end."""

    rows: dict[str, Row] = field(default_factory=dict)  # by revision
    tombstones: dict[str, int] = field(default_factory=dict)  # id -> offset of the last deletion
    chunks: dict[str, tuple[str, str, str]] = field(default_factory=dict)  # id -> (text, version, sha256)
    fixes: dict[str, set[str]] = field(default_factory=dict)  # the same fix -> ids of its reports
    dead: dict[tuple[Key, int], DeadReason] = field(default_factory=dict)


@dataclass(slots=True)
class _Life:
    versions: list[tuple[Announced, Document]] = field(default_factory=list)
    removed: list[tuple[tuple[Announced, Document], int]] = field(default_factory=list)  # with the removal's offset
    tombstone: int | None = None

    def drop_errors_below_marks(self) -> None:
        """Where a good version was removed, no error announced for the same version takes the place of its mark."""
        marked = {gone.version for (_, gone), _ in self.removed if gone.bad is None}
        self.versions = [found for found in self.versions if found[1].bad is None or found[1].version not in marked]

    def current(self) -> tuple[Announced, Document] | None:
        """The greatest that no removed one outranks which it preceded."""
        live = [
            found
            for found in self.versions
            if not any(rank(*found) < rank(*gone) and found[0].record.offset_ <= at for gone, at in self.removed)
        ]
        return max(live, key=lambda found: rank(*found), default=None)


def rank(message: Announced, document: Document) -> tuple[bool, str, int, int, int, str]:
    """The order of a document's versions (contracts 1.1); a bad one never hides a good one."""
    at = message.record
    return (
        document.bad is None, document.version, at.timestamp_ms, at.key_[1], at.offset_, document.sha256 or "",
    )  # fmt: skip


def expected(log: list[Announced]) -> Expected:
    """`log` in the order of each partition; a document that is ever deleted has one partition only."""
    result = Expected()
    lives: dict[str, _Life] = defaultdict(_Life)
    for message in log:
        if message.bad is not None:
            result.dead[message.record.key_, message.record.offset_] = message.bad
        for part in message.asked:
            if isinstance(part, Document) and part.sha256 is not None:
                lives[part.document_id].versions.append((message, part))
            elif isinstance(part, Removal):
                if part.path is not None:
                    for life in lives.values():
                        gone = [found for found in life.versions if found[1].path == part.path]
                        life.versions = [found for found in life.versions if found[1].path != part.path]
                        life.removed += [(found, message.record.offset_) for found in gone]
                else:
                    lives[str(part.document_id)].versions.clear()
                    lives[str(part.document_id)].removed.clear()
                    lives[str(part.document_id)].tombstone = message.record.offset_
            elif isinstance(part, Fix):
                result.fixes.setdefault(part.same_as, set()).add(part.command_id)
    for document_id, life in lives.items():
        if life.tombstone is not None:
            result.tombstones[document_id] = life.tombstone
        life.drop_errors_below_marks()
        if not life.versions:
            continue
        current = life.current()
        for version in {document.version for _, document in life.versions}:
            same = [found for found in life.versions if found[1].version == version]
            message, document = max(same, key=lambda found: rank(*found))
            result.rows[f"{document_id}@{version}"] = Row(
                version, str(document.sha256), document.bad is None, current is not None and document is current[1],
                message.record.key_[1], message.record.offset_,
            )  # fmt: skip
        if current is not None and current[1].bad is None:
            for number, line in enumerate(current[1].lines):
                result.chunks[f"{document_id}#{number}"] = (line, current[1].version, str(current[1].sha256))
    return result
