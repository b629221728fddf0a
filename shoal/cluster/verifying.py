"""`shoal verify`: reads the log and the tables beside a live system, and tells every difference.

The order of the looks makes one look exact: first how far the readers are, then the tables (one held pair of
versions), then dead letters and log up to their ends. So whatever counts as done is in the tables that are
looked at, and whatever those tables hold is in the log that is read. A difference is looked at again all the
same, after the next commit and within `settle_s`; only what stays is told. What the differences are is the
business of `shoal.store.audit`; this module feeds it and shows what it found. It changes nothing.

So the tables are opened before the log is read and scanned after it, and nothing holds that pair of versions
against cleanup: a log that takes longer than `cleanup_age_s` to read must be compared in part (`--from-time`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from shoal.cluster.output import Exit, Format, emit_json, emit_pairs, emit_rows, err, say
from shoal.errors import BadDocument
from shoal.records import Position
from shoal.settings import Settings
from shoal.sources.dead_letters import DEAD_LETTER_SUFFIX
from shoal.sources.kafka import Connection, connection
from shoal.sources.log_reader import LogReader, Partition, Stretch
from shoal.sources.messages import RawMessage, parse_message
from shoal.sources.s3_events import is_s3_event_id
from shoal.store.audit import FINDINGS_KEPT_MAX, Audit, Finding, Kind, Report, Span, differing
from shoal.store.audit_expiry import Expiry
from shoal.store.audit_rows import TablesSnapshot
from shoal.store.place import current
from shoal.store.retention import Retention
from shoal.store.writing import storage_options

PROGRESS_ITEMS = 5_000  # messages or rows between two words of progress
LOOK_S = 0.5  # between two looks whether anything was committed
SHOWN_MAX = 20
_DEAD = "__connect.errors."
_DEAD_AT = (_DEAD + "topic", _DEAD + "partition", _DEAD + "offset")
_DEAD_TIME = "shoal.dlq.original_timestamp"

DeadPosition = tuple[str, int, int, int]
"""(topic, partition, offset, timestamp in ms): no cluster, since a dead letter does not name its own; the time
tells the lives of an embedded broker apart."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A report, and what it was made of. `state`: how far readers and writer were; equal, nothing has moved."""

    report: Report
    findings: tuple[Finding, ...]
    cluster: str
    has_tables: bool
    is_torn: bool
    dead_letters_are_whole: bool
    state: object

    @property
    def is_whole(self) -> bool:
        return not self.findings and not self.report.differences


def dead_position(raw: RawMessage) -> DeadPosition | None:
    """Which message a dead letter is of; None where it does not say so."""
    about = dict(raw.headers)
    try:
        topic, partition, offset = ((about[name] or b"").decode() for name in _DEAD_AT)
        return topic, int(partition), int(offset), int((about[_DEAD_TIME] or b"").decode())
    except (KeyError, ValueError):
        return None


def look(
    settings: Settings, from_time_ms: int | None = None, progress: Callable[[str], None] = lambda _: None
) -> Verdict:
    """One comparison, as of now. Raises TransientError where the log or the tables can't be read, or the
    tables as they were opened have been cleaned up."""
    where = connection(settings)
    with LogReader(settings, where) as reader:
        topics = reader.existing((*settings.kafka_topics, settings.command_topic))
        dead_topics = reader.existing(topic + DEAD_LETTER_SUFFIX for topic in topics)
        done = reader.committed([each.key for each in reader.whole(topics)])
        snapshot = TablesSnapshot.open(current(settings).tables_uri, storage_options(settings))
        state = (dict(done), snapshot.fence.commit_sequence if snapshot else None)
        for (cluster, topic, partition), offset in (snapshot.fence.positions() if snapshot else {}).items():
            if cluster == where.cluster:
                done[topic, partition] = max(offset, done.get((topic, partition), 0))
        letters = reader.whole(dead_topics)
        dead = {found for raw in reader.read(letters) if (found := dead_position(raw)) is not None}
        stretches = reader.whole(topics)
        if from_time_ms is not None:
            stretches = reader.since(stretches, from_time_ms)
        # As of a moment after the tables were opened: whatever retention had taken by then had expired by now.
        audit = _audit(stretches, letters, done, where, Retention.of(settings).expiry(datetime.now(UTC)))
        for number, raw in enumerate(reader.read(stretches), start=1):
            _tell(audit, raw, settings, dead)
            if number % PROGRESS_ITEMS == 0:
                progress(f"{number} messages read")
        audit.begins_at({(where.cluster, *key): offset for key, offset in reader.earliest(stretches).items()})
    for number, row in enumerate(snapshot.versions() if snapshot else (), start=1):
        stored, chunk_count, has_dropped_text = row
        audit.row(stored, chunk_count=chunk_count, has_dropped_text=has_dropped_text)
        if number % PROGRESS_ITEMS == 0:
            progress(f"{number} rows compared")
    for number, chunk in enumerate(snapshot.chunks() if snapshot else (), start=1):
        audit.chunk(*chunk)
        if number % PROGRESS_ITEMS == 0:
            progress(f"{number} chunks compared")
    for command_id in snapshot.job_ids() if snapshot else ():
        audit.job(command_id)
    report = audit.report()
    is_torn = snapshot is not None and snapshot.is_torn
    whole = all(each.start == 0 for each in letters)
    return Verdict(report, report.findings, where.cluster, snapshot is not None, is_torn, whole, state)


def _audit(
    stretches: list[Stretch], letters: list[Stretch], done: dict[Partition, int], where: Connection,
    expiry: Expiry,
) -> Audit:  # fmt: skip
    spans = {
        (where.cluster, each.topic, each.partition): Span(each.start, each.end, done.get(each.key, 0))
        for each in stretches
    }
    whole = all(each.start == 0 for each in letters)
    return Audit(spans, is_event_id=is_s3_event_id, dead_letters_are_whole=whole, expiry=expiry)


def _tell(audit: Audit, raw: RawMessage, settings: Settings, dead: set[DeadPosition]) -> None:
    at: Position = raw.position
    is_dead = (at.topic, at.partition, at.offset, at.timestamp_ms) in dead
    try:
        audit.message(at, parse_message(raw, settings), is_dead=is_dead)
    except BadDocument as error:
        audit.message(at, f"{error.reason}: {error.message}", is_dead=is_dead)


def compare(
    settings: Settings,
    settle_s: float,
    from_time_ms: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
    *,
    look_at: Callable[[Settings, int | None, Callable[[str], None]], Verdict] = look,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Verdict:
    """Look, and while there are differences look again, for at most `settle_s`: until something was committed in
    between and the difference stayed, or nothing is left to be committed."""
    deadline = clock() + settle_s
    found = look_at(settings, from_time_ms, progress)
    while not found.is_whole and clock() < deadline:
        progress(f"{len(found.findings)} differences: looking again after the next commit")
        pause(min(LOOK_S, max(0.0, deadline - clock())))
        again = look_at(settings, from_time_ms, progress)
        if again.state == found.state:
            found = again
            if not again.report.counts["pending"]:
                break  # nobody is at work
            continue
        stays = tuple(differing(found.report, again.report))
        if stays:
            return _only(again, stays)
        found = again
    return found


def _only(verdict: Verdict, findings: tuple[Finding, ...]) -> Verdict:
    counts = dict(verdict.report.counts)
    if len(verdict.findings) < FINDINGS_KEPT_MAX:  # else they are not all there to be counted
        kinds = Counter(finding.kind for finding in findings)
        counts |= {kind.value: kinds[kind] for kind in Kind}
    return replace(verdict, report=Report(counts, findings), findings=findings)


def verify(settings: Settings, *, settle_s: float, from_time_ms: int | None, shown_max: int, form: Format) -> int:
    """The `verify` command: an exit code."""
    began = time.monotonic()
    with err.status("reading the log") as status:
        found = compare(settings, settle_s, from_time_ms, status.update)
    took_s = time.monotonic() - began
    shown = found.findings[:shown_max]
    if form is Format.json:
        emit_json(
            {
                "ok": found.is_whole,
                "cluster": found.cluster,
                **found.report.counts,
                "half_written_batch": found.is_torn,
                "findings": [_shown(each) for each in shown],
                "not_shown": max(0, found.report.differences - len(shown)),
                "took_s": round(took_s, 2),
            }
        )
    else:
        emit_pairs({name.replace("_", " "): count for name, count in found.report.counts.items()})
        if shown:
            emit_rows([_shown(each) for each in shown], ("kind", "document", "position", "detail"))
    _advise(found, shown)
    return Exit.OK if found.is_whole else Exit.FAILED


def _shown(finding: Finding) -> dict[str, object]:
    at = finding.position
    return {
        "kind": finding.kind.value,
        "document": finding.document_id,
        "version": finding.version,
        "position": f"{at.topic}/{at.partition}:{at.offset}" if at else None,
        "detail": finding.detail,
        "remedy": remedy(finding),
    }


def remedy(finding: Finding) -> str:
    """What to do about one finding."""
    at = finding.position
    if at is not None:
        place = f"{at.topic}/{at.partition}:{at.offset}"
        return f"shoal replay --from-offset {place}-{at.offset}"
    if finding.kind in (Kind.EXTRA, Kind.ORPHAN_CHUNKS):
        return "delete it with a tombstone: a null value under the document's id as its key"
    return "its message is no longer in the log: announce the file again (shoal backfill, shoal publish)"


def _advise(found: Verdict, shown: tuple[Finding, ...]) -> None:
    counts = found.report.counts
    if not found.has_tables:
        say("there are no tables yet: everything in the log counts as not indexed")
    if found.is_torn:
        say("the last batch is half written, its writer died: the next writer takes it back (start one, verify again)")
    if counts["pending"]:
        say(f"{counts['pending']} messages are pending: not yet done, and so no difference")
    if counts["expired"]:
        say(
            f"{counts['expired']} are in the log and were taken by retention (docs/verify-and-replay.md): no difference"
        )
    if counts["undecided"]:
        say(f"{counts['undecided']} could not be decided (docs/verify-and-replay.md says when), and are no difference")
    if not found.findings:
        say("the tables hold what the log says")
        return
    hidden = found.report.differences - len(shown)
    say(f"{found.report.differences} differences{f', {hidden} of them not shown (--show)' if hidden > 0 else ''}")
    if counts[Kind.MISSING] and not found.dead_letters_are_whole:
        say("the oldest dead letters are gone: what is missing may have been one (compare with --from-time)")
    for advice in dict.fromkeys(remedy(each) for each in shown[:5]):
        say(f"to mend: {advice}")
