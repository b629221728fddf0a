"""Commands: what REST, MCP and the CLI ask of the tables, as messages (contracts 1.6).

A command is written to the log like any notification, and applied once by its `command_id`. Where the caller
gave an `Idempotency-Key` the id is derived from it, so that the same request sent again is the same command.
This module makes and reads the messages; what a kind means is the writer's business.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator

from shoal.errors import BadDocument, DeadReason
from shoal.records import Command, Position

# A fixed name space of ours, so that ids derived anywhere agree.
_IDS = uuid.UUID("6f6d0f5e-5a2b-5d0c-9a6c-2d1f0a7be5c1")


def command_id(idempotency_key: str | None = None, *, actor: str = "", kind: str = "", collection: str = "") -> str:
    """An id for a new command: derived where an `Idempotency-Key` was given (within actor, kind and
    collection: two callers' equal keys are two commands), else random."""
    if idempotency_key is None:
        return str(uuid.uuid4())
    return str(uuid.uuid5(_IDS, "\0".join((actor, kind, collection, idempotency_key))))


def command_message(
    topic: str, *, command_id: str, kind: str, collection: str, body: Mapping[str, Any], actor: str, at: datetime
) -> tuple[str, bytes, bytes]:
    """(topic, key, value) of a command; keyed by collection, so that one collection's commands keep their order.

    Raises ValueError where `body` is not JSON.
    """
    value = {
        "command_id": command_id,
        "kind": kind,
        "collection": collection,
        "body": dict(body),
        "actor": actor,
        "at": at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
    }
    try:
        return topic, collection.encode(), orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise ValueError(f"the body of a command must be JSON: {error}") from None


class CommandBody(BaseModel):
    """A command on the wire; unknown fields are ignored, so that a newer client can talk to us."""

    model_config = ConfigDict(frozen=True)

    command_id: Annotated[str, Field(min_length=1, max_length=200)]
    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.]{0,63}$")]
    collection: Annotated[str, Field(min_length=1, max_length=200)]
    body: dict[str, Any]
    actor: Annotated[str, Field(max_length=200)] = ""
    at: datetime

    @field_validator("at")
    @classmethod
    def _utc(cls, value: datetime) -> datetime:
        if not 1900 <= value.year < 2200:
            raise ValueError("is not between the years 1900 and 2200")
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    def to_command(self, position: Position, outcome_id: str | None) -> Command:
        """The work item of this command. Raises BadDocument where the body nests too deep to be written again."""
        try:
            body = orjson.dumps(self.body).decode()
        except orjson.JSONEncodeError as error:
            raise BadDocument(DeadReason.SCHEMA_INVALID, f"body: {error}") from None
        return Command(
            position=position,
            command_id=self.command_id,
            kind=self.kind,
            collection=self.collection,
            body=body,
            actor=self.actor,
            at=self.at,
            outcome_id=outcome_id,
        )
