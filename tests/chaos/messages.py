"""What the campaign announces, and what each message must lead to.

`Effect`s say in the campaign's own words what a message means; the oracle needs nothing else. They are not made by
Shoal's parser, so that a message misread by both can't look right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

BUCKET = "chaos-objects"
MODEL = "chaos-64"
WIDTH = 64  # of its vectors
EPOCH = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Put:
    """A version of a document. `row_only`: it can't be extracted, keeps its row, and is a dead letter."""

    document_id: str
    version: str
    location: str
    sha256: str
    dataset: str
    urn: str
    source: str
    data_type: str
    collected_at: datetime
    row_only: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Of a document by its id, or of the one whose current version lies at `location`."""

    document_id: str | None = None
    location: str | None = None


@dataclass(frozen=True, slots=True)
class Fix:
    """A reported fix; reports of one `group` count as one fix."""

    command_id: str
    group: tuple[str, ...]


Effect = Put | Delete | Fix


@dataclass(frozen=True, slots=True)
class Message:
    """`objects` must be stored before it is sent: (key, body, content type). `reason`: of the dead letter it must
    become, beside its effects (a message of several records is buried when one of them is bad)."""

    serial: int
    kind: str
    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    effects: tuple[Effect, ...] = ()
    reason: str | None = None
    failed_command: str | None = None  # a command that must be recorded as failed
    objects: tuple[tuple[str, bytes, str], ...] = ()


@dataclass(slots=True)
class Logged:
    """A message where the log has it."""

    message: Message
    partition: int
    offset: int
    timestamp_ms: int
    serial: int = field(init=False)

    def __post_init__(self) -> None:
        self.serial = self.message.serial


def moment(minutes: int) -> datetime:
    return EPOCH + timedelta(minutes=minutes)


def version_text(minutes: int) -> str:
    return moment(minutes).strftime("%Y%m%dT%H%M%SZ")
