"""Asking the audit trail: `GET /api/v1/audit` and `shoal audit`. Newest first, over all replicas' segments.

`matching` is pure. A question reads `SCAN_BYTES_MAX` at most, the latest segments first; where that did not reach, the
answer's `complete` is false and says to narrow the time. A change and what became of it are one entry.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import orjson
from pydantic import Field, ValidationInfo, field_validator

from shoal.errors import TransientError
from shoal.serve_apps.models import InvalidParameter, Name, Request, Text
from shoal.serve_apps.times import time_bound
from shoal.serve_apps.trail import CHANGES, READS, Entry
from shoal.settings import Settings
from shoal.store.trail_files import TrailFiles

SCAN_BYTES_MAX = 64 * 1024 * 1024
"""Some 200,000 lines, parsed in half a second; memory is bounded by it."""
DEADLINE_S = 20.0
DEFAULT_DAYS = 7
TOO_MUCH = "more was written in this time than one question reads: narrow it by `since`, `until` and `kind`"


AUDIT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The entries.",
        "content": {
            "application/json": {
                "example": {
                    "entries": [
                        {
                            "id": "0b8e3b7c5d6f4a0f9a1e2d3c4b5a6978", "at": "2025-01-20T14:30:04.120311Z",
                            "kind": "change", "request_id": "6d1f", "via": "rest", "caller": "k3j9x2m4qa",
                            "caller_name": "ci", "caller_kind": "key", "call": "POST /api/v1/agents/fixes",
                            "collection": "scraper", "peer": "10.0.0.7", "status": 201, "ms": 41.2,
                            "job": "5a0b2f1e-6c1d-5d0c-9a6c-2d1f0a7be5c1",
                        }
                    ],
                    "count": 1, "next_cursor": None, "complete": True, "warnings": [],
                }
            }
        },
    }
}  # fmt: skip
"""For OpenAPI."""


class AuditQuery(Request):
    """Parameters of `GET /api/v1/audit`."""

    kind: Literal["change", "read", "refused"] | None = Field(
        None, description="Only changes, reads, or requests that were refused; by default all."
    )
    caller: Name | None = Field(None, description="A key's id or name, or a token's subject.")
    call: Text | None = Field(None, max_length=200, description="A part of the call: DELETE, report_fix, /documents.")
    collection: Name | None = Field(None, description="Only this collection.")
    request_id: Name | None = Field(None, description="The X-Request-Id of one request.")
    since: Text | None = Field(None, max_length=40, description="From here on, UTC; by default 7 days ago.")
    until: Text | None = Field(None, max_length=40, description="Up to here, UTC; a date includes that day.")
    limit: int = Field(100, ge=1, le=1000, description="Entries at most.")
    cursor: Text | None = Field(None, max_length=200, description="next_cursor of the page before.")

    @field_validator("since", "until")
    @classmethod
    def _time(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:  # after the last day there is none that could end it
            time_bound(value, is_end=info.field_name == "until")
        return value

    def bounds(self, now: datetime) -> tuple[str, str]:
        """[first, last) as texts that compare as the entries' times do."""
        first = time_bound(self.since, is_end=False)[0] if self.since else now - timedelta(days=DEFAULT_DAYS)
        last = time_bound(self.until, is_end=True)[0] if self.until else now + timedelta(days=1)
        return tuple(f"{at:%Y-%m-%dT%H:%M:%S.%fZ}" for at in (first, last))  # type: ignore[return-value]

    def before(self) -> tuple[str, str] | None:
        """Where the page before ended: (at, id). Raises InvalidParameter."""
        if self.cursor is None:
            return None
        try:
            at, identity = orjson.loads(base64.urlsafe_b64decode(self.cursor.encode()))
            if not isinstance(at, str) or not isinstance(identity, str):
                raise ValueError
        except (ValueError, TypeError):
            raise InvalidParameter("cursor", "is damaged: take it from an answer as it is") from None
        return at, identity

    def wants(self, line: Mapping[str, Any]) -> bool:
        if self.kind is not None and line.get("kind") != self.kind:
            return False
        if self.caller is not None and self.caller not in (line.get("caller"), line.get("caller_name")):
            return False
        if self.call is not None and self.call.casefold() not in str(line.get("call", "")).casefold():
            return False
        if self.collection is not None and line.get("collection") != self.collection:
            return False
        return self.request_id is None or line.get("request_id") == self.request_id


def matching(lines: Iterable[bytes], asked: AuditQuery, now: datetime) -> tuple[list[Entry], str | None]:
    """(the entries that `asked` wants, newest first, at most its limit; the cursor of the next page)."""
    first, last = asked.bounds(now)
    before = asked.before()
    found: dict[str, Entry] = {}
    outcomes: dict[str, Entry] = {}
    for line in lines:
        try:
            value = orjson.loads(line)
            at, identity = value["at"], value["id"]
            if value["kind"] == "outcome":
                outcomes[identity] = value
            elif first <= at < last and (before is None or (at, identity) < before) and asked.wants(value):
                found[identity] = value
        except (orjson.JSONDecodeError, KeyError, TypeError):
            continue  # torn by its owner's death, or somebody else's
    page = sorted(found.values(), key=lambda one: (one["at"], one["id"]), reverse=True)
    shown = page[: asked.limit]
    for one in shown:
        if (outcome := outcomes.get(one["id"])) is not None:
            one.update({name: outcome[name] for name in ("status", "ms", "job") if name in outcome})
    more = len(page) > asked.limit
    return shown, cursor_of(shown[-1]) if more else None


def cursor_of(last: Entry) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([last["at"], last["id"]])).decode()


class TrailSearch:
    """Reads the trail. `ask` is for an event loop; `read` blocks."""

    def __init__(self, settings: Settings) -> None:
        self._files = {kind: TrailFiles(settings, kind) for kind in (CHANGES, READS)}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")

    def read(self, asked: AuditQuery, now: datetime, bytes_max: int = SCAN_BYTES_MAX) -> dict[str, Any]:
        """{entries, count, next_cursor, complete, warnings}. Raises TransientError, InvalidParameter."""
        first, last = asked.bounds(now)
        if (before := asked.before()) is not None:
            last = min(last, before[0] + "Z")
        kinds = {"change": (CHANGES,), "read": (READS,), "refused": (READS,)}.get(asked.kind or "", (CHANGES, READS))
        days = first[:10].replace("-", ""), last[:10].replace("-", "")
        segments = [(one, kind) for kind in kinds for one in self._files[kind].segments(*days)]
        segments.sort(key=lambda pair: pair[0], reverse=True)
        lines: list[bytes] = []
        left, is_complete = bytes_max, True
        for segment, kind in segments:
            if segment.size_bytes > left:
                is_complete = False
                break
            left -= segment.size_bytes
            lines += self._files[kind].read(segment).splitlines()
        entries, cursor = matching(lines, asked, now)
        warnings = [] if is_complete else [TOO_MUCH]
        return {
            "entries": entries, "count": len(entries), "next_cursor": cursor, "complete": is_complete,
            "warnings": warnings,
        }  # fmt: skip

    async def ask(self, parameters: AuditQuery) -> dict[str, Any]:
        """`read`, off the loop. Raises TransientError where the store does not answer in time, too."""
        reading = asyncio.get_running_loop().run_in_executor(self._thread, self.read, parameters, datetime.now(UTC))
        try:
            return await asyncio.wait_for(reading, DEADLINE_S)
        except TimeoutError:
            raise TransientError("the audit trail can't be read now: the tables' store does not answer", 5.0) from None

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
