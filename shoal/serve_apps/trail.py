"""The audit trail: who asked, and who changed what. Append-only, from all replicas, beside the tables.

Why files beside the tables, and not the command topic or a table: whoever may ask must leave a trace even while the log
is down or belongs to another cluster, and a table has one writer, which a read must not wait for. Each replica writes
segments of its own (trail_files.py), so there is nothing to agree on, and they outlive it.

- A change leaves its line before it is begun, durably: no trail, no change (503). Changes that come at once share one
  write. What became of it (status, job) is a second line, within `FLUSH_S`.
- A read and a refusal leave a line within `FLUSH_S`; a replica that is killed takes the last such lines with it, and
  more than `WAITING_MAX` while the store is down are dropped, which is itself written down. No request waits for it.
  By setting only a share of the reads is kept.
- What is kept of a request: when, who, by what (rest, mcp, cli), the call, the collection, what its path names (secrets
  taken out, cut), the status, how long it took. Never a body, a query text, a header, or a key.
- Bounded: days by setting; reads, which anybody who may read can make many of, also in bytes, so that they can never
  push out a change.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from shoal.errors import TransientError
from shoal.redaction import redact_text
from shoal.settings import Settings
from shoal.store.trail_files import Segment, TrailFiles

log = logging.getLogger("shoal.trail")

CHANGES, READS = "changes", "reads"
FLUSH_S = 5.0
DURABLE_S = 10.0
"""How long a change waits for its line; the store's own client gives up before."""
WAITING_MAX = 10_000
SEGMENT_BYTES_MAX = 4 * 1024 * 1024
SEGMENT_BYTES_MAX_S3 = 128 * 1024
"""In S3 each write puts the segment whole: more would cost bandwidth, less would make more objects to list."""
SEGMENT_AGE = timedelta(hours=1)
VALUE_CHARS_MAX = 200

Entry = dict[str, Any]


def entry(kind: str, at: datetime, **fields: Any) -> Entry:
    """A line of the trail: {id, at, kind, ...}; what is None is left out, texts are cut and without secrets."""
    said = {name: _plain(value) for name, value in fields.items() if value not in (None, "", {})}
    return {"id": uuid.uuid4().hex, "at": _text(at), "kind": kind, **said}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return redact_text(value[: 4 * VALUE_CHARS_MAX])[:VALUE_CHARS_MAX]
    if isinstance(value, Mapping):
        return {str(name)[:60]: _plain(item) for name, item in value.items()}
    return value


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class SegmentWriter:
    """One process's segments of one kind. Used from one thread."""

    def __init__(self, files: TrailFiles, now: Callable[[], datetime]) -> None:
        self._files, self._now = files, now
        self._owner = uuid.uuid4().hex[:12]
        self._segment: Segment | None = None
        self._begun = now()
        self._bytes = 0
        self._held = b""  # the segment's bytes, where it must be put whole
        self._count = 0

    def write(self, lines: bytes) -> bool:
        """Durable when it returns; whether a segment was begun. Raises TransientError: then nothing is known of
        `lines`, and the next go into another segment."""
        now, limit = self._now(), SEGMENT_BYTES_MAX_S3 if self._files.in_s3 else SEGMENT_BYTES_MAX
        day, is_new = f"{now:%Y%m%d}", False
        if (
            self._segment is None or self._segment.day != day or self._bytes + len(lines) > limit
            or now - self._begun > SEGMENT_AGE
        ):  # fmt: skip
            self._count += 1
            self._segment = Segment(day, f"{now:%H%M%S}-{self._owner}-{self._count}.jsonl")
            self._begun, self._bytes, self._held, is_new = now, 0, b"", True
        try:
            self._files.append(self._segment, self._held, lines)
        except TransientError:
            self._segment = None  # its last line may be torn
            raise
        self._bytes += len(lines)
        if self._files.in_s3:
            self._held += lines
        return is_new


class Trail:
    """A replica's trail. Used from its event loop; writes on a thread of its own."""

    def __init__(
        self,
        settings: Settings,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._settings, self._now, self._chance = settings, now, chance
        self._files = {kind: TrailFiles(settings, kind) for kind in (CHANGES, READS)}
        self._writers = {kind: SegmentWriter(files, now) for kind, files in self._files.items()}
        self._lock = threading.Lock()
        self._durable: list[tuple[bytes, Future[None]]] = []
        self._later: dict[str, list[bytes]] = {CHANGES: [], READS: []}
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trail")

    async def change(self, line: Entry) -> None:
        """Returns when `line` is durable. Raises TransientError."""
        written: Future[None] = Future()
        with self._lock:
            self._durable.append((_line(line), written))
        try:
            self._thread.submit(self._flush)
            await asyncio.wait_for(asyncio.wrap_future(written), DURABLE_S)
        except TimeoutError:
            raise TransientError(
                "the audit trail can't be written now, and no change is made without it", 2.0
            ) from None
        except RuntimeError:
            raise TransientError("this process ends: ask again", 1.0) from None

    def outcome(self, of: Entry, status: int, took_ms: float, job: str | None) -> None:
        """What became of a change."""
        line = entry("outcome", self._now(), status=status, ms=round(took_ms, 1), job=job)
        self._note(CHANGES, line | {"id": of["id"]})

    def read(self, line: Entry) -> None:
        """Note a read, or not, by the setting's share."""
        share = self._settings.audit_read_share
        if share >= 1 or (share > 0 and self._chance() < share):
            self._note(READS, line)

    def refusal(self, line: Entry) -> None:
        """Note that somebody was not let in."""
        self._note(READS, line)

    def _note(self, kind: str, line: Entry) -> None:
        with self._lock:
            if len(self._later[kind]) >= WAITING_MAX:
                self._dropped += 1
                return
            self._later[kind].append(_line(line))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush_later)

    def _flush_later(self) -> None:
        self._timer = None
        try:
            self._thread.submit(self._flush)
        except RuntimeError:  # closed: its last flush is done
            return

    def _flush(self) -> None:
        """On the thread: write whatever waits."""
        with self._lock:
            # Whoever gave up waiting makes no change: its line is not written.
            durable = [one for one in self._durable if one[1].set_running_or_notify_cancel()]
            self._durable = []
            later, self._later = self._later, {CHANGES: [], READS: []}
            dropped, self._dropped = self._dropped, 0
        if dropped:
            later[READS].append(_line(entry("dropped", self._now(), count=dropped)))
        begun = False
        for kind in (CHANGES, READS):
            urgent = durable if kind == CHANGES else []
            lines = [line for line, _ in urgent] + later[kind]
            if not lines:
                continue
            try:
                begun |= self._writers[kind].write(b"".join(lines))
            except TransientError as error:
                log.error("the audit trail can't be written: %s", error)
                for _, future in urgent:
                    future.set_exception(
                        TransientError(f"no change is made without its line in the audit trail: {error}", 2.0)
                    )
                self._keep(kind, later[kind])
            else:
                for _, future in urgent:
                    future.set_result(None)
        if begun:
            prune(self._files, self._settings, self._now())

    def _keep(self, kind: str, lines: list[bytes]) -> None:
        with self._lock:
            room = WAITING_MAX - len(self._later[kind])
            self._dropped += max(0, len(lines) - room)
            self._later[kind][:0] = lines[:room]

    def close(self) -> None:
        """Writes what waits."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._thread.submit(self._flush)
        except RuntimeError:
            return
        self._thread.shutdown(wait=True)


def _line(value: Entry) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE)


def record_now(settings: Settings, line: Entry) -> None:
    """One durable line from a process that is no replica: a command of an operator. Blocking. Raises TransientError."""
    SegmentWriter(TrailFiles(settings, CHANGES), lambda: datetime.now(UTC)).write(_line(line))


def prune(files: Mapping[str, TrailFiles], settings: Settings, now: datetime) -> int:
    """Remove what is older than the setting's days, and the oldest reads above their bytes; how many segments. Any
    replica does it, when it begins a segment; never raises."""
    oldest = f"{now - timedelta(days=settings.audit_days):%Y%m%d}"
    removed = 0
    for kind, of_kind in files.items():
        try:
            kept_bytes = 0
            for segment in reversed(of_kind.segments()):
                kept_bytes += segment.size_bytes
                is_much = kind == READS and kept_bytes > settings.audit_reads_bytes_max
                if segment.day < oldest or is_much:
                    of_kind.remove(segment)
                    removed += 1
        except TransientError as error:
            log.warning("old segments of the audit trail stay for now: %s", error)
    return removed
