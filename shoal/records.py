"""The dataclasses that cross rooms: what one stage hands to the next.

Plain frozen values without behaviour, so that they pickle cheaply and every room can hold them without
importing another. The order below is the life of a document: announced, fetched, embedded, written.
Units stand last in names; every time is aware and UTC; hashes are lower-case hex.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from shoal.errors import DeadReason

Vector = npt.NDArray[np.float32]
"""One embedding, shape (width,), L2-normalised."""
Matrix = npt.NDArray[np.float32]
"""Embeddings of several texts, shape (texts, width), rows L2-normalised."""

SCRAPER_COLLECTION = "scraper"
FENCE_ID = "__fence__"
"""The key of the row that is no document (contracts 2.4). Announced ids contain ':' and can't equal it."""


class Outcome(StrEnum):
    """What became of an announced document; `shoal publish --wait` tallies these."""

    INDEXED = "indexed"
    UNCHANGED = "unchanged"  # the same bytes as the current version: nothing was embedded again
    SUPERSEDED = "superseded"  # older than the current version: recorded as history, without chunks
    DELETED = "deleted"
    DEAD_LETTERED = "dead_lettered"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a message stands in the log. `cluster` is the Kafka cluster's id: offsets of two clusters,
    or of two lives of the embedded broker, are never compared."""

    cluster: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Announcement:
    """One document to index: the body is at `location`, or inline in `content`."""

    position: Position
    collection: str
    document_id: str
    version: str  # comparable text, '' where the message had none (sorts first)
    location: str | None
    content: bytes | None
    dataset: str
    environment: str
    urn: str
    data_source: str  # upper-case
    data_type: str
    scraper_name: str
    collected_at: datetime
    published_at: datetime | None = None  # `version` where it parses as a time
    source_url: str | None = None  # already redacted
    s3_guid: str | None = None
    etag: str | None = None
    version_id: str | None = None
    expected_size_bytes: int | None = None
    expected_md5: str | None = None
    content_type: str | None = None
    outcome_id: str | None = None  # the publisher waits for the outcome under this name
    warnings: tuple[str, ...] = ()
    extra: str = "{}"  # JSON of the message's unknown fields
    is_replay: bool = False  # a copy: `position` is the original's, whose rows it may write anew
    is_backfill: bool = False  # history that is read again: what is new goes before it
    trace: str | None = None  # the traceparent that its stages go on with (shoal/tracing.py)


@dataclass(frozen=True, slots=True)
class Deletion:
    """A tombstone or an ObjectRemoved event; exactly one of `document_id` and `s3_path` is set.

    `version_id`: the one version of the object that is gone; None where the object itself is.
    """

    position: Position
    collection: str
    document_id: str | None
    s3_path: str | None = None
    outcome_id: str | None = None
    version_id: str | None = None
    trace: str | None = None  # as an announcement's


@dataclass(frozen=True, slots=True)
class Command:
    """A request that came in through the command topic (contracts 1.6); `body` is JSON."""

    position: Position
    command_id: str
    kind: str
    collection: str
    body: str
    actor: str
    at: datetime
    outcome_id: str | None = None
    trace: str | None = None  # as an announcement's


Work = Announcement | Deletion | Command


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document's text, small enough for the collection's model.

    `text` is what is embedded and shown (it may begin with a heading line); `char_start:char_end` is its
    span in the extracted text.
    """

    index: int
    text: str
    heading: str | None
    char_start: int
    char_end: int
    token_count: int


@dataclass(frozen=True, slots=True)
class ApiTraits:
    """What the content or its URL tells of the API it came from; None where nothing tells.

    `evidence` maps a trait's name to the words it was read from.
    """

    api_endpoint: str | None = None
    auth_method: str | None = None
    rate_limit: str | None = None
    data_freshness: str | None = None
    pagination_type: str | None = None
    evidence: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Extraction:
    """What extraction found in a document's bytes."""

    file_format: str  # JSON, CSV, XML, HTML, MARKDOWN, TEXT, CODE, XLSX, ZIP, ...
    content_type: str | None
    charset: str | None
    title: str | None
    chunks: tuple[Chunk, ...]
    schema: str | None  # JSON: fields with types, units, ranges
    api_text: str | None  # the description embedded as `schema_embedding` (similar-apis)
    traits: ApiTraits = field(default_factory=ApiTraits)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a document is a dead letter. `stage` names the part of the flow that gave up."""

    reason: DeadReason
    message: str
    stage: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """A document whose bytes were read and whose text was extracted, or why not.

    `sha256`, `md5` are of the stored bytes; None where none could be read. Exactly one of `extraction` and
    `failure` is set. A failure with a `sha256` keeps its metadata row as `validation_status = error`.
    """

    announcement: Announcement
    sha256: str | None = None
    md5: str | None = None
    size_bytes: int | None = None
    etag: str | None = None
    version_id: str | None = None
    extraction: Extraction | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Embedded:
    """A document ready to be written: vectors beside its chunks, or the failure it carries to its row."""

    fetched: Fetched
    model: str | None = None
    vectors: Matrix | None = None  # (len(extraction.chunks), width)
    schema_vector: Vector | None = None


@dataclass(frozen=True, slots=True)
class EmbeddedCommand:
    """A command ready to be applied, with the vector of the text it must be findable by (or None)."""

    command: Command
    model: str | None = None
    vector: Vector | None = None


Writable = Embedded | Deletion | EmbeddedCommand


@dataclass(frozen=True, slots=True)
class Ack:
    """What the writer made of one writable, said only after the commit is durable.

    `failure` is set when the row itself was refused (`write_rejected`, `collection_refused`): the reader
    makes the dead letter.
    """

    outcome: Outcome
    failure: Failure | None = None
    commit_sequence: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a reader has finished a partition: every offset below `next_offset` is done."""

    cluster: str
    topic: str
    partition: int
    next_offset: int
