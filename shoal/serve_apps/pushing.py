"""Pushing a file over REST: its bytes go where the flow reads them, then it is announced like any other.

Nothing is kept about a push but what the flow keeps: the job's id says which version of which document with which bytes
was meant, and the tables say whether they have it. So any replica can answer for it, and the same push sent again (the
same document, time and bytes) is the same job. What is not announced yet when its caller goes away is a stored object
that nobody names.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import IO

from pydantic import Field, field_validator

from shoal.errors import BadDocument, TransientError
from shoal.records import Position
from shoal.redaction import redact_url
from shoal.serve_apps.models import InvalidParameter, Name, Request, Text
from shoal.serve_apps.times import time_bound
from shoal.settings import Settings
from shoal.sources.messages import RawMessage, parse_message
from shoal.sources.publishing import Description, Prepared, Publisher, Stored, notification

SPOOL_BYTES = 1024 * 1024
"""Held in memory of one push; what is larger goes to disk."""
_NAMED = {
    "metadata.publish_dtm": "collected_at", "metadata.source": "data_source", "metadata.data_type": "data_type",
    "metadata.url": "source_url",
}  # fmt: skip
_JOB = re.compile(r"push-([0-9TZ.]{1,30})-([0-9a-f]{64})-([0-9a-f]{16})")


class PushQuery(Request):
    """What is said of a pushed file; its bytes are the body."""

    dataset: Name = Field(
        min_length=1, description="Dataset, e.g. nyiso_load_forecast.", examples=["nyiso_load_forecast"]
    )
    urn: Name = Field(
        min_length=1, description="The file's name within the dataset.", examples=["load_20250120_14.csv"]
    )
    data_source: Name = Field(min_length=1, description="Who publishes it.", examples=["nyiso"])
    data_type: Name = Field(min_length=1, description="Kind of data.", examples=["load_forecast"])
    environment: Name = Field("prod", pattern="^(dev|staging|prod)$", description="dev, staging or prod.")
    collected_at: Text | None = Field(
        None, max_length=40, examples=["2025-01-20T14:30:00Z"],
        description="When it was collected, which is its version; by default now. Needed with an Idempotency-Key.",
    )  # fmt: skip
    source_url: Text | None = Field(
        None, max_length=4000, description="Where it came from; secrets in it are left out."
    )

    @field_validator("collected_at")
    @classmethod
    def _time(cls, value: str | None) -> str | None:
        return None if value is None else time_bound(value, is_end=False)[0].isoformat()

    def described(self, now: datetime, content_type: str | None) -> Description:
        at = time_bound(self.collected_at, is_end=False)[0] if self.collected_at else now
        return Description(
            environment=self.environment,
            dataset=self.dataset,
            urn=self.urn,
            source=self.data_source,
            data_type=self.data_type,
            collected_at=at,
            content_type=content_type,
            url=redact_url(self.source_url) if self.source_url else None,
        )


def check(description: Description, settings: Settings) -> None:
    """Raises InvalidParameter for what the flow would make a dead letter of."""
    made_up = Stored("file:///checked", 1, "0" * 32, "0" * 64)
    position = Position("rest", settings.kafka_topics[0], 0, 0, 0)
    try:
        parse_message(RawMessage(position, None, notification(description, made_up), ()), settings)
    except BadDocument as error:
        name, _, text = error.message.partition(": ")
        raise InvalidParameter(_NAMED.get(name, name)[:60] if text else "body", text or error.message) from None


def job_of(prepared: Prepared, version: str, sha256: str) -> str:
    """The id of the job of a push."""
    return f"push-{version}-{sha256}-{digest(prepared.document_id)}"


def named_by(job_id: str) -> tuple[str, str, str] | None:
    """(version, sha256, digest of the document's id) that the id of a push's job names."""
    found = _JOB.fullmatch(job_id)
    return (found[1], found[2], found[3]) if found else None


def digest(identity: str) -> str:
    return hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:16]


class Pusher:
    """Stores what is pushed; one per process, thread-safe. Blocking but for `received`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._publisher: Publisher | None = None

    async def received(self, body: AsyncIterator[bytes]) -> IO[bytes]:
        """The whole body, in a file at its beginning, which the caller closes. Raises InvalidParameter where empty."""
        file: IO[bytes] = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 - handed on
        try:
            held = bytearray()
            async for piece in body:
                held += piece
                if len(held) >= SPOOL_BYTES:
                    await asyncio.to_thread(file.write, bytes(held))
                    held.clear()
            await asyncio.to_thread(file.write, bytes(held))
            if not file.tell():
                raise InvalidParameter("body", "is empty: send the file's bytes (curl --data-binary @FILE)")
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def store(self, description: Description, file: IO[bytes]) -> tuple[Prepared, str]:
        """(its notification, ready to be sent; the sha256 of the bytes) once they are stored. Raises TransientError,
        ConfigurationError, BadDocument."""
        if self._publisher is None:
            self._publisher = Publisher(self._settings, self._settings.push_to)
        hashed = hashlib.sha256()
        while piece := file.read(SPOOL_BYTES):
            hashed.update(piece)
        file.seek(0)
        try:
            return self._publisher.publish_file(file, description), hashed.hexdigest()
        except OSError as error:
            raise TransientError(f"the file can't be stored now: {error.strerror or error}", 5.0) from None

    def described(self, asked: PushQuery, content_type: str | None, now: datetime) -> Description:
        """What is announced of it. Raises InvalidParameter."""
        description = asked.described(now.astimezone(UTC), content_type)
        check(description, self._settings)
        return description

    @property
    def topic(self) -> str:
        """Where it is announced."""
        return self._settings.kafka_topics[0]
