"""The seeded generator of the campaign's load: every kind of message that a topic may hold.

Pure: a seed gives the same messages, whatever happens meanwhile. New documents, newer and late older versions,
duplicates, the same bytes again, tombstones, S3 events of several records, removals, bad messages of every reason,
commands, now and then a large object. Every announcement names an object of its own, which is never changed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

from tests.chaos.messages import BUCKET, Delete, Effect, Fix, Message, Put, moment, version_text

LIVE_MAX = 400  # documents that may still change; older ones stay as they are
LARGE_BYTES = 1_500_000
OBJECT_BYTES_MAX = 4 * 1024 * 1024  # of the stack's settings: what is above is a dead letter
S3_GROUPS = 24  # keys of one group share a partition, so that their order is the log's
WORDS = (
    "load", "forecast", "zone", "price", "megawatt", "hourly", "interchange", "generation", "reserve", "outage",
    "capacity", "congestion", "loss", "energy", "demand", "actual", "schedule", "limit", "flow", "interface", "wind",
    "solar", "hydro", "nuclear", "gas", "import", "export", "settlement", "market", "day", "ahead", "real", "time",
    "ancillary", "regulation", "spinning", "node", "hub", "bus", "transmission", "line", "rating", "temperature",
)  # fmt: skip
DATASETS = ("nyiso_load", "caiso_lmp", "ercot_wind", "pjm_outages", "miso_mix")
WEIGHTS = {
    "new": 30, "newer": 18, "late": 8, "same_bytes": 5, "duplicate": 8, "tombstone": 6, "s3_created": 9,
    "s3_removed": 3, "removed_current": 2, "removed_older": 1, "bad": 8, "fix": 5, "bad_command": 1, "large": 0.5,
}  # fmt: skip
OF_KNOWN = ("newer", "late", "same_bytes", "duplicate", "tombstone", "removed_current", "removed_older")
Body = tuple[bytes, str, str]  # bytes, ending, content type


@dataclass(slots=True)
class _Document:
    document_id: str
    dataset: str
    urn: str
    newest: int  # minutes of the greatest version announced
    used: set[int]
    last: Put
    body: Body
    messages: list[Message] = field(default_factory=list)


class Load:
    """`next()` is the next message. `topic`, `commands`: with how many partitions each."""

    def __init__(self, seed: int, topic: str, partitions: int, commands: str, command_partitions: int) -> None:
        self._rng = random.Random(seed)
        self._topic, self._partitions = topic, partitions
        self._commands, self._command_partitions = commands, command_partitions
        self._serial = 0
        self._documents: list[_Document] = []
        self._s3: dict[str, int] = {}  # key -> its last event's minute, where the object is there
        self._s3_groups: dict[str, int] = {}
        self._objects: dict[str, tuple[bytes, str]] = {}
        self._minute = 0
        self._fixes: list[Message] = []
        self.bodies: dict[str, tuple[bytes, str]] = {}  # sha256 -> (bytes, content type)

    def next(self) -> Message:
        kind = self._rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if kind in OF_KNOWN and not self._documents:
            kind = "new"
        if kind == "s3_removed" and not self._s3:
            kind = "s3_created"
        self._serial += 1
        made: Message = getattr(self, f"_{kind}")()
        return made

    def probe(self, partition: int | None = None) -> Message:
        """A new document, in the partition asked for."""
        self._serial += 1
        return self._new(kind="probe", partition=partition)

    # --- documents ----------------------------------------------------------------------------

    def _new(self, kind: str = "new", partition: int | None = None, body: Body | None = None) -> Message:
        body = body or self._body()
        dataset = self._rng.choice(DATASETS)
        while True:
            urn = f"{kind}-{self._serial}-{self._rng.randrange(10**6)}{body[1]}"
            if partition is None or self._partition(f"prod:{dataset}:{urn}") == partition:
                break
        start = self._rng.randrange(0, 200_000)
        message = self._announce(kind, dataset, urn, start, body)
        put = message.effects[0]
        assert isinstance(put, Put)
        self._documents.append(_Document(put.document_id, dataset, urn, start, {start}, put, body, [message]))
        if len(self._documents) > LIVE_MAX:
            self._documents.pop(self._rng.randrange(LIVE_MAX // 2))
        return message

    def _large(self) -> Message:
        return self._new("large", body=self._table(LARGE_BYTES // 30))

    def _newer(self) -> Message:
        document = self._pick()
        return self._version(document, "newer", document.newest + self._rng.randrange(2, 9), self._body())

    def _same_bytes(self) -> Message:
        document = self._pick()
        return self._version(document, "same_bytes", document.newest + self._rng.randrange(2, 9), document.body)

    def _late(self) -> Message:
        document = self._pick()
        at = document.newest - 1
        while at in document.used:
            at -= 1
        return self._version(document, "late", at, self._body())

    def _version(self, document: _Document, kind: str, at: int, body: Body) -> Message:
        message = self._announce(kind, document.dataset, document.urn, at, body)
        put = message.effects[0]
        assert isinstance(put, Put)
        document.used.add(at)
        if at > document.newest:
            document.newest, document.last, document.body = at, put, body
        document.messages = [*document.messages[-5:], message]
        return message

    def _duplicate(self) -> Message:
        document = self._pick()
        return replace(self._rng.choice(document.messages), serial=self._serial, kind="duplicate")

    def _tombstone(self) -> Message:
        document = self._pick()
        key = document.document_id.encode()
        return self._message("tombstone", key, None, (Delete(document.document_id),))

    def _removed_current(self) -> Message:
        """The store says that the object of a document's greatest version is gone."""
        document = self._pick()
        return self._removal("removed_current", document, document.last.location)

    def _removed_older(self) -> Message:
        """The store says that an object is gone which a newer version has replaced: nothing is to happen."""
        document = self._pick()
        puts = [effect for message in document.messages for effect in message.effects if isinstance(effect, Put)]
        return self._removal("removed_older", document, self._rng.choice(puts).location)

    def _removal(self, kind: str, document: _Document, location: str) -> Message:
        value = {"Records": [self._record("ObjectRemoved:Delete", location.removeprefix(f"s3://{BUCKET}/"), b"")]}
        message = self._message(kind, None, json.dumps(value).encode(), (Delete(location=location),))
        return replace(message, partition=self._partition(document.document_id))  # so that their order is the log's

    def _announce(self, kind: str, dataset: str, urn: str, at: int, body: Body) -> Message:
        data, ending, content_type = body
        sha256 = self._keep(data, content_type)
        key = f"{dataset}/{self._serial}-{sha256[:12]}{ending}"
        put = Put(
            f"prod:{dataset}:{urn}", version_text(at), f"s3://{BUCKET}/{key}", sha256, dataset, urn,
            dataset.partition("_")[0], dataset.partition("_")[2], moment(at),
        )  # fmt: skip
        value = self._notification(put, data)
        return self._message(kind, put.document_id.encode(), value, (put,), objects=((key, data, content_type),))

    def _notification(self, put: Put, data: bytes, **metadata: object) -> bytes:
        about = {
            "publish_dtm": put.collected_at.isoformat(), "source": put.source, "data_type": put.data_type,
            "original_file_size": len(data), "original_file_md5sum": hashlib.md5(data).hexdigest(), **metadata,
        }  # fmt: skip
        return json.dumps(
            {
                "dataset": put.dataset,
                "urn": put.urn,
                "location": put.location,
                "version": put.version,
                "metadata": about,
                "serial": self._serial,
            }
        ).encode()

    def _pick(self) -> _Document:
        recent = self._documents[-60:]  # the same document again while it is still in flight
        return self._rng.choice(recent if self._rng.random() < 0.7 else self._documents)

    # --- S3 events ----------------------------------------------------------------------------

    def _s3_created(self) -> Message:
        group = self._rng.randrange(S3_GROUPS)
        known = [key for key, of in self._s3_groups.items() if of == group]
        effects: list[Effect] = []
        records: list[dict[str, Any]] = []
        objects = []
        for _ in range(self._rng.choice((1, 1, 2, 3, 4))):
            self._minute += 1
            if known and self._rng.random() < 0.25:
                key = self._rng.choice(known)  # an event of the same object again: only its version is newer
                data, content_type = self._objects[key]
            else:
                data, ending, content_type = self._body()
                key = f"events/g{group}/{self._serial}-{len(records)}{ending}"
                objects.append((key, data, content_type))
                self._s3_groups[key] = group
                self._objects[key] = (data, content_type)
            if key in [record["s3"]["object"]["key"] for record in records]:
                continue
            self._s3[key] = self._minute
            records.append(self._record("ObjectCreated:Put", key, data))
            effects.append(
                Put(
                    f"prod:s3:{BUCKET}/{key}", f"{version_text(self._minute)}~{self._minute:024X}",
                    f"s3://{BUCKET}/{key}", self._keep(data, content_type), BUCKET, key.rsplit("/", 1)[-1], "events",
                    "other", moment(self._minute),
                )
            )  # fmt: skip
        reason = None
        if self._rng.random() < 0.08:  # one of them is not there: the others are indexed, the message is buried
            self._minute += 1
            records.append(self._record("ObjectCreated:Put", f"events/g{group}/{self._serial}-missing.csv", b"x"))
            reason = "object_missing"
        return self._event("s3_created", group, records, tuple(effects), tuple(objects), reason)

    def _s3_removed(self) -> Message:
        first = self._rng.choice(list(self._s3))
        group = self._s3_groups[first]
        keys = [first, *[key for key in self._s3 if self._s3_groups[key] == group and key != first][:1]]
        records = []
        for key in keys:
            self._minute += 1
            del self._s3[key]
            records.append(self._record("ObjectRemoved:Delete", key, b""))
        effects = tuple(Delete(location=f"s3://{BUCKET}/{key}") for key in keys)
        return self._event("s3_removed", group, records, effects)

    def _event(
        self, kind: str, group: int, records: list[dict[str, Any]], effects: tuple[Effect, ...],
        objects: tuple[tuple[str, bytes, str], ...] = (), reason: str | None = None,
    ) -> Message:  # fmt: skip
        key, value = f"s3-group-{group}".encode(), json.dumps({"Records": records}).encode()
        return self._message(kind, key, value, effects, reason=reason, objects=objects)

    def _record(self, name: str, key: str, data: bytes) -> dict[str, Any]:
        thing: dict[str, object] = {"key": key, "sequencer": f"{self._minute:X}"}
        if data:
            thing |= {"size": len(data), "eTag": hashlib.md5(data).hexdigest()}
        return {
            "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": name,
            "eventTime": moment(self._minute).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "s3": {"bucket": {"name": BUCKET}, "object": thing},
        }  # fmt: skip

    # --- bad messages -------------------------------------------------------------------------

    def _bad(self) -> Message:
        key = f"bad-{self._serial}".encode()
        raw: dict[str, bytes] = {
            "not_json": b"{nope %d" % self._serial,
            "schema_invalid": b'{"dataset": 7, "urn": [], "serial": %d}' % self._serial,
            "unknown_version": json.dumps(
                {"Records": [self._record("ObjectCreated:Put", "events/x.csv", b"x") | {"eventVersion": "3.0"}]}
            ).encode(),
        }
        drawn = self._rng.choice([*raw, "location_refused", "object_missing", "empty", "extraction_failed",
                                  "unsupported_format", "object_mismatch", "too_large"])  # fmt: skip
        if drawn in raw:
            return self._message("bad", key, raw[drawn], reason=drawn)
        data, ending = self._bad_body(drawn)
        object_key = f"bad/{self._serial}{ending}"
        location = "gopher://nowhere/x" if drawn == "location_refused" else f"s3://{BUCKET}/{object_key}"
        urn = f"bad-{self._serial}{ending}"
        put = Put(
            f"prod:{DATASETS[0]}:{urn}", version_text(self._serial), location, hashlib.sha256(data).hexdigest(),
            DATASETS[0], urn, "nyiso", "load", moment(self._serial), row_only=True,
        )  # fmt: skip
        wrong = {"original_file_md5sum": "0" * 32} if drawn == "object_mismatch" else {}
        read = drawn in ("extraction_failed", "unsupported_format")
        stored = drawn not in ("location_refused", "object_missing")
        return self._message(
            "bad", put.document_id.encode(), self._notification(put, data, **wrong), (put,) if read else (),
            reason=drawn, objects=((object_key, data, "application/octet-stream"),) if stored else (),
        )  # fmt: skip

    def _bad_body(self, reason: str) -> tuple[bytes, str]:
        mark = str(self._serial).encode()
        if reason == "empty":
            return b"", ".json"
        if reason == "extraction_failed":
            if self._rng.random() < 0.5:
                return gzip.compress(mark + b" load 1\n" * 400, mtime=0)[:-12], ".csv.gz"
            return b'{"load": [1, 2, {"a": ' + mark, ".json"
        if reason == "unsupported_format":
            return b"\x89PNG\r\n\x1a\n" + mark + bytes(500), ".png"
        if reason == "too_large":
            return mark + b"," * OBJECT_BYTES_MAX, ".csv"
        return b'{"load": ' + mark + b"}", ".json"

    def _bad_command(self) -> Message:
        command_id = f"bad-command-{self._serial}"
        message = self._command(command_id, "nonsense", {"serial": self._serial}, ())
        return replace(message, kind="bad_command", reason="schema_invalid", failed_command=command_id)

    # --- commands -----------------------------------------------------------------------------

    def _fix(self) -> Message:
        if self._fixes and self._rng.random() < 0.25:  # the same command again
            return replace(self._rng.choice(self._fixes[-20:]), serial=self._serial)
        scraper, number = self._rng.choice(DATASETS), self._rng.randrange(6)
        body: dict[str, object] = {
            "scraper_name": scraper, "error_type": "KeyError", "error_message": f"line {self._serial}: no column",
            "summary": f"remedy {chr(ord('a') + number)}", "outcome": "worked",
        }  # fmt: skip
        command_id = f"fix-{self._serial}"
        message = self._command(command_id, "fix", body, (Fix(command_id, (scraper, str(body["summary"]))),))
        self._fixes.append(message)
        return message

    def _command(self, command_id: str, kind: str, body: dict[str, object], effects: tuple[Effect, ...]) -> Message:
        value = {
            "command_id": command_id, "kind": kind, "collection": "scraper", "body": body, "actor": "chaos",
            "at": moment(self._serial).isoformat(),
        }  # fmt: skip
        partition = zlib.crc32(command_id.encode()) % self._command_partitions
        return Message(self._serial, "fix", self._commands, partition, b"scraper", json.dumps(value).encode(), effects)

    # --- bytes --------------------------------------------------------------------------------

    def _body(self) -> Body:
        drawn = self._rng.random()
        if drawn < 0.45:
            return self._table(self._rng.randrange(4, 30))
        if drawn < 0.65:
            zone = " ".join(self._rng.choices(WORDS, k=3))
            record = {"zone": zone, "serial": self._serial, "load_mw": [self._rng.randrange(9999) for _ in range(12)]}
            return json.dumps(record).encode(), ".json", "application/json"
        # Text of one to six chunks: a version with fewer chunks must take the others away.
        paragraphs = [
            " ".join(self._rng.choices(WORDS, k=self._rng.randrange(40, 160))).capitalize() + "."
            for _ in range(self._rng.choice((1, 2, 8, 20, 40)))
        ]
        return f"# Notes {self._serial}\n\n".encode() + "\n\n".join(paragraphs).encode(), ".md", "text/markdown"

    def _table(self, rows: int) -> Body:
        zone = self._rng.choice(WORDS).capitalize()
        lines = [f"Time Stamp,{zone} Load (MW),Total (MW)"]
        low = self._rng.randrange(100, 9000)
        lines += [f"01/20/2025 {n % 24:02d}:00,{low + 7 * n},{2 * low + n}" for n in range(rows)]
        return "\n".join(lines).encode() + b"\n", ".csv", "text/csv"

    # --- frame --------------------------------------------------------------------------------

    def _keep(self, data: bytes, content_type: str) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.bodies[sha256] = (data, content_type)
        return sha256

    def _partition(self, key: str) -> int:
        return zlib.crc32(key.encode()) % self._partitions

    def _message(
        self, kind: str, key: bytes | None, value: bytes | None, effects: tuple[Effect, ...] = (), *,
        reason: str | None = None, objects: tuple[tuple[str, bytes, str], ...] = (),
    ) -> Message:  # fmt: skip
        partition = self._partition((key or b"").decode())
        return Message(self._serial, kind, self._topic, partition, key, value, effects, reason, objects=objects)
