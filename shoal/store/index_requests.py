"""What operators ask of the indexes: commands that take longer than a commit (contracts 1.6).

Such a command is applied in two steps. Its batch records it in `shoal_jobs` as `accepted`, which is durable and done
once; when the work is over the writer sets the row to `done` or `failed`. So a writer that is killed in between
finds in its tables what it still owes, and a command that is delivered again changes nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from shoal.errors import BadDocument, DeadReason
from shoal.store.index_policy import Act
from shoal.store.schemas import IS_DOCUMENT, JOB_COLUMNS

if TYPE_CHECKING:
    from shoal.store.tables import FencedTable

ACCEPTED = "accepted"
REBUILD, OPTIMIZE = "index_rebuild", "index_optimize"
ACTS: Mapping[str, Act] = {REBUILD: Act.TRAIN, OPTIMIZE: Act.MERGE}
COLUMNS = ("content_embedding", "schema_embedding", "content_summary")
"""What may be named: the vector indexes, and the full-text one."""


@dataclass(slots=True)
class Request:
    """One of them. `left`: columns that are still to be done; `ended`: column -> what became of it."""

    id: str
    kind: str
    left: list[str]
    ended: dict[str, str] = field(default_factory=dict)
    is_failed: bool = False

    @property
    def act(self) -> Act:
        return ACTS[self.kind]

    def end(self, column: str, outcome: str, *, failed: bool = False) -> None:
        """A column is done with."""
        if column in self.left:
            self.left.remove(column)
            self.ended[column] = outcome
            self.is_failed |= failed

    @property
    def detail(self) -> str:
        return "; ".join(f"{column}: {outcome}" for column, outcome in self.ended.items())


def accepted(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the job's row keeps of a command's body. Raises BadDocument where it can't be meant."""
    columns = body.get("columns") or list(COLUMNS)
    if not isinstance(columns, list) or not all(column in COLUMNS for column in columns):
        raise BadDocument(DeadReason.SCHEMA_INVALID, f"columns is a list of {', '.join(COLUMNS)}")
    return {"columns": list(dict.fromkeys(columns))}


def unfinished(jobs: FencedTable) -> list[Request]:
    """What the table says is owed, oldest first. Raises TransientError."""
    rows = jobs.rows(("command_id", "kind", "result", "applied_at"), f"status = '{ACCEPTED}' AND {IS_DOCUMENT}")
    rows.sort(key=lambda row: (row["applied_at"], row["command_id"]))
    return [
        Request(row["command_id"], row["kind"], orjson.loads(row["result"])["columns"])
        for row in rows
        if row["kind"] in ACTS
    ]


def record(jobs: FencedTable, request: Request, now: datetime) -> None:
    """Make the end of a request durable: one commit on the held version. Raises CommitRefused, TransientError."""
    rows = jobs.rows_of(JOB_COLUMNS, "command_id", [request.id], IS_DOCUMENT)
    for row in rows:
        row["status"] = "failed" if request.is_failed else "done"
        row["error"] = request.detail if request.is_failed else None
        kept = {"position": orjson.loads(row["result"])["position"]} if request.is_failed else {}  # as of any failure
        row["result"] = orjson.dumps(request.ended | kept).decode()
        row["applied_at"] = now
    jobs.commit(rows, replace(jobs.fence, token=uuid.uuid4().hex))
