"""`shoal check --repair`: what the check found, asked of the writer by commands of the log.

The log is the only road into a table, for a repair as well. A command names what to look at; the writer looks for
itself (`shoal.store.repairing`). So nothing is lost where the check was mistaken, or late, or asked twice. What only a
document's own message can mend is not asked of the writer: here the lines are made that send it once more.
"""

from __future__ import annotations

import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from shoal.cluster.living import living_status
from shoal.errors import TransientError
from shoal.records import SCRAPER_COLLECTION
from shoal.settings import Settings
from shoal.sources.commands import command_id, command_message
from shoal.sources.kafka import open_producer
from shoal.sources.log_producer import LogProducer
from shoal.store.foreign import IMPORTED
from shoal.store.fsck import Code, Finding, Repair, Subject
from shoal.store.place import current
from shoal.store.repairing import KIND, NAMES_MAX, Wanted, outcomes
from shoal.store.schemas import FIXES_TABLE, JOBS_TABLE, TableKind, metadata_table, vectors_table
from shoal.store.writing import storage_options

ACTOR = "shoal check"
BODY_BYTES_MAX = 200_000  # a broker's default takes a message of 1 MB
FLUSH_S = 30.0
POLL_S = 0.5
GAP_OFFSETS_MAX = 10
"""Messages between two that are replayed with them, to keep the lines few: a copy of what is whole changes nothing."""
LINES_MAX = 50
_INDEXES = (Code.INDEX_MISSING, Code.INDEX_WITHOUT_FILES, Code.INDEX_INCOMPLETE)


def wanted_of(findings: Iterable[Finding], collection: str = SCRAPER_COLLECTION) -> list[Wanted]:
    """What to ask of the writer, in commands of bounded size."""
    kinds: dict[str, TableKind] = {
        metadata_table(collection): "metadata", vectors_table(collection): "vectors", FIXES_TABLE: "fixes",
        JOBS_TABLE: "jobs",
    }  # fmt: skip
    names: dict[tuple[str, TableKind, str], int] = {}  # (what, kind of table, name) -> bytes
    for finding in findings:
        if finding.repair is not Repair.WRITER and finding.code not in _INDEXES:
            continue
        if (kind := kinds.get(finding.table)) is None:  # the ledger: nothing of it is mended by a command
            continue
        what = "index" if finding.code in _INDEXES else kind if kind in ("fixes", "jobs") else "document"
        for subject in finding.subjects:
            place = kind if what == "index" else "metadata"
            names[what, place, subject.name] = len(subject.name.encode("utf-8", "replace"))
    return [_together(part) for part in _parts(names)]


def _parts(names: dict[tuple[str, TableKind, str], int]) -> Iterator[list[tuple[str, TableKind, str]]]:
    part: list[tuple[str, TableKind, str]] = []
    size_bytes = 0
    for name, own_bytes in names.items():
        if part and (len(part) == NAMES_MAX or size_bytes + own_bytes > BODY_BYTES_MAX):
            yield part
            part, size_bytes = [], 0
        part.append(name)
        size_bytes += own_bytes
    if part:
        yield part


def _together(part: Sequence[tuple[str, TableKind, str]]) -> Wanted:
    def of(what: str) -> tuple[str, ...]:
        return tuple(name for each, _, name in part if each == what)

    indexes = tuple((kind, name) for what, kind, name in part if what == "index")
    return Wanted(of("document"), of("fixes"), of("jobs"), indexes)


def ask(
    settings: Settings,
    asked: Sequence[Wanted],
    timeout_s: float,
    progress: Callable[[str], None],
    *,
    producer: LogProducer | None = None,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[dict[str, Any]]:
    """Send the commands and wait for their jobs: {command_id, status, error, result} each; `status` is `pending`
    where there is no outcome in time: it comes, since the command is in the log.

    Raises TransientError where no Shoal works on the tables, or the log can't be reached.
    """
    try:
        living_status(settings)
    except TransientError as error:
        raise TransientError(f"{error}, and only its writer repairs: start it (shoal up), then again") from None
    producer = producer or open_producer(settings)
    commands = {command_id(): each for each in asked}
    for identity, each in commands.items():
        message = command_message(
            settings.command_topic, command_id=identity, kind=KIND, collection=SCRAPER_COLLECTION, body=each.body(),
            actor=ACTOR, at=datetime.now(UTC),
        )  # fmt: skip
        producer.send(*message)
    producer.flush(FLUSH_S)
    deadline = clock() + timeout_s
    while True:
        jobs = outcomes(current(settings).tables_uri, storage_options(settings), list(commands))
        if len(jobs) == len(commands) or clock() > deadline:
            break
        progress(f"{len(jobs)} of {len(commands)} repairs done")
        pause(POLL_S)
    return [_outcome(identity, jobs.get(identity)) for identity in commands]


def _outcome(identity: str, job: dict[str, Any] | None) -> dict[str, Any]:
    if job is None:
        return {"command_id": identity, "status": "pending", "error": None, "result": None}
    result = orjson.loads(job["result"]) if job["result"] else None
    return {"command_id": identity, "status": job["status"], "error": job["error"], "result": result}


def lines(findings: Iterable[Finding], cluster: str | None) -> tuple[list[str], int]:
    """The commands that have every document indexed once more which nothing else can mend, and how many are not shown.

    `cluster`: the Kafka cluster there is now, None where it is not known; a place in another one is no place.
    """
    offsets: dict[tuple[str, int], set[int]] = defaultdict(set)
    objects: dict[str, None] = {}
    unknown: dict[str, None] = {}
    for finding in findings:
        if finding.repair is not Repair.REPLAY:
            continue
        for subject in finding.subjects:
            at = subject.position
            if at is not None and cluster in (None, at.cluster) and not at.cluster.startswith(IMPORTED):
                offsets[at.topic, at.partition].add(at.offset)
            elif subject.s3_path:
                objects[_backfill(subject)] = None
            else:
                name = " ".join(subject.name.split())  # a comment ends with its line
                unknown[f"# announce {name} again: nothing says where it came from"] = None
    found = [
        f"shoal replay --from-offset {topic}/{partition}:{first}-{last} --wait"
        for (topic, partition), places in sorted(offsets.items())
        for first, last in _stretches(sorted(places))
    ]
    found += [*objects, *unknown]
    return found[:LINES_MAX], max(0, len(found) - LINES_MAX)


def _stretches(offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = last = offsets[0]
    for offset in offsets[1:]:
        if offset - last > GAP_OFFSETS_MAX:
            yield first, last
            first = offset
        last = offset
    yield first, last


def _backfill(subject: Subject) -> str:
    environment, _, rest = subject.name.partition(":")
    dataset = rest.partition(":")[0]
    place, environment, dataset = map(shlex.quote, (subject.s3_path or "", environment, dataset))  # foreign text
    return f"shoal backfill {place} --urn name --environment {environment} --dataset {dataset} --source SOURCE"
