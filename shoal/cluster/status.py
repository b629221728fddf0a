"""The status: what the actors report, made into one truth that a person on call can act on.

Pure: `build_status` takes the reports, what the supervisor and its watcher know, the time, and the status before
this one; it returns what is written to `status.json` and served at `/api/v1/ingest` (docs/status.md explains each
field). All that it must remember from turn to turn travels in the status itself, in `partitions` and `memory`, so
that a new supervisor that reads the file goes on where the old one stopped. Guarantees: a tally never falls because
an actor, or the supervisor, restarted; a partition without an owner stays in sight with its last known marks; and
whenever `health` is not `ok`, `reasons` says why and what to do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from shoal.cluster.tallies import (
    DEAD_LETTER,
    DURATION,
    OUTCOME,
    REQUEST_FAILURE,
    RETRIED,
    Report,
    Tallies,
    rates,
    tally,
)
from shoal.cluster.verdict import health_of, reasons_for
from shoal.metrics import FetcherStatistics, PartitionStatistics, ReaderStatistics, RecallStatistics

Json = dict[str, Any]

WRITER, EMBEDDER = "writer", "embedder"  # as actors/names.py; what it imports is no part of a pure core


@dataclass(frozen=True, slots=True)
class Facts:
    """What doesn't change while a supervisor lives. `topics` are all that the readers subscribe to, the command
    topic among them: partitions of other topics are forgotten."""

    cluster: str
    broker: str  # embedded | kafka
    ingress: str
    model: str
    topics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelChange:
    """The collection has moved to tables of another model, and ingest is not whole there yet."""

    before: str
    after: str
    since: datetime

    def shown(self, now: datetime) -> Json:
        """As the status shows it."""
        since, for_s = self.since.isoformat(), _seconds(self.since, now)
        return {"from": self.before, "to": self.after, "since": since, "for_s": for_s}


@dataclass(frozen=True, slots=True)
class _Memory:
    """What the status before this one knew."""

    at: datetime
    tallies: Tallies
    partitions: tuple[Json, ...] = ()
    heard_at: dict[str, str] = field(default_factory=dict)  # actor -> when it last reported
    paused_at: dict[str, str] = field(default_factory=dict)  # what is paused -> since when


def build_status(
    *,
    now: datetime,
    started_at: datetime,
    facts: Facts,
    reports: Mapping[str, Report],
    problems: Mapping[str, str],
    refusals: Mapping[str, str],
    actors: Mapping[str, Mapping[str, Any]],
    previous: Mapping[str, Any] | None,
    recall: RecallStatistics | None = None,
    change: ModelChange | None = None,
    disk: Mapping[str, int] | None = None,
) -> Json:
    """The status at `now` (UTC, aware), JSON-shaped.

    `reports`: by actor's name ("writer", "embedder", "fetcher-0", "reader-0", ...), only of those that answered
    this time. `problems` and `refusals`: the supervisor's own, passed through ("writer ended" is added here from
    the writer's report: the supervisor need not). `actors`: the watcher's view, {name: {state, pid, restarts,
    last_restart_at, reason, backoff_s}}; {} where there is none. `previous`: what the last call returned; at the
    supervisor's start what `read_state(settings, "status.json")` gives (where that is None or odd it counts from
    zero; partitions of another cluster are forgotten). `recall`: as last measured, None where there is no index.
    `change`: of the collection's model, None where none is under way. `disk`: {free_bytes, size_bytes} of the data
    directory's, None where it can't be told.
    """
    before = _remembered(previous, facts.cluster, now)
    at = now.isoformat()
    tallies = tally(before.tallies, reports, now.timestamp())
    readers = [report for report in reports.values() if isinstance(report, ReaderStatistics)]
    writer = reports.get(WRITER)
    partitions = _partitions(readers, before, facts, now)
    paused, paused_at = _paused(readers, partitions, before.paused_at, at)
    heard_at = before.heard_at | dict.fromkeys(reports, at)
    all_problems = dict(problems)
    if (ended := getattr(writer, "ended", None)) is not None:
        all_problems.setdefault("writer ended", ended)
    status: Json = {
        "at": at,
        "started_at": started_at.isoformat(),
        "health": "ok",
        "reasons": [],
        "problems": all_problems,
        "refusals": dict(refusals),
        "cluster": facts.cluster,
        "broker": facts.broker,
        "ingress": facts.ingress,
        "model": facts.model,
        "totals": _totals(readers, partitions, tallies, now.timestamp()),
        "partitions": partitions,
        "paused": paused,
        "actors": _actors(actors, reports, heard_at, now),
        "writer_epoch": getattr(writer, "epoch", None),
        "last_commit_age_s": _age_s(getattr(writer, "last_commit_at", None), now),
        "writer": _plain(writer),
        "embedder": _plain(reports.get(EMBEDDER)),
        "fetchers": [_plain(report) for report in reports.values() if isinstance(report, FetcherStatistics)],
        "readers": [_plain(report) for report in readers],
        "disk": None if disk is None else dict(disk),
        "recall": None if recall is None else dataclasses.asdict(recall),
        "changing_model": None if change is None else change.shown(now),
        "memory": {"tallies": tallies.to_json(), "heard_at": heard_at, "paused_at": paused_at},
    }
    status["reasons"] = reasons_for(status, running_s=(now - started_at).total_seconds())
    status["health"] = health_of(status["reasons"])
    return status


def _remembered(previous: Mapping[str, Any] | None, cluster: str, now: datetime) -> _Memory:
    """What `previous` knew; nothing where it is not a status that we wrote. Offsets are of one cluster only (each
    life of the embedded broker is another one); tallies are of the tables, whatever fills them."""
    fresh = _Memory(now, Tallies(since_s=now.timestamp()))
    if not isinstance(previous, Mapping):
        return fresh
    try:
        memory = previous["memory"]
        return _Memory(
            _time(previous["at"]),
            Tallies.from_json(memory["tallies"]),
            tuple(_mark(entry) for entry in previous["partitions"]) if previous["cluster"] == cluster else (),
            {str(name): _time(at).isoformat() for name, at in memory["heard_at"].items()},
            {str(name): _time(at).isoformat() for name, at in memory["paused_at"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return fresh  # an older Shoal's, or damaged: the figures begin anew, and `totals.since` says so


def _mark(entry: Mapping[str, Any]) -> Json:
    _time(entry["seen_at"]), _time(entry["moved_at"])
    names = {field.name for field in dataclasses.fields(PartitionStatistics)}
    if missing := names - entry.keys():
        raise KeyError(*missing)
    return dict(entry)


# --- partitions -------------------------------------------------------------------------------


def _partitions(readers: Sequence[ReaderStatistics], before: _Memory, facts: Facts, now: datetime) -> list[Json]:
    """Every partition known: as its owner reports it, else as it was last reported. Where two readers name one
    (a hand-over), the one that is further speaks for it."""
    found: dict[tuple[str, int], tuple[str, PartitionStatistics]] = {}
    for reader in readers:
        for mark in reader.partitions:
            rival = found.get((mark.topic, mark.partition))
            if rival is None or _reached(rival[1]) < _reached(mark):
                found[mark.topic, mark.partition] = (reader.name, mark)
    known = {(entry["topic"], entry["partition"]): entry for entry in before.partitions}
    entries = {key: _owned(owner, mark, known.get(key), now) for key, (owner, mark) in found.items()}
    for key, entry in known.items():
        if key not in entries and key[0] in facts.topics:
            entries[key] = _unowned(entry, before.at, now)
    return [entries[key] for key in sorted(entries)]


def _owned(owner: str, mark: PartitionStatistics, last: Json | None, now: datetime) -> Json:
    entry = dataclasses.asdict(mark)
    # Committed offsets, not what is done: a reader that dies again and again does the same work again and again.
    rests = not (mark.lag_records or mark.in_flight)
    if last is not None and mark.committed_offset is None:
        entry["committed_offset"] = last["committed_offset"]  # not asked yet: says nothing
    moved = last is None or entry["committed_offset"] != last["committed_offset"]
    moved_at = now if last is None or moved or rests else _time(last["moved_at"])
    return entry | {
        "owner": owner,
        "last_owner": owner,
        "seen_at": now.isoformat(),
        "unowned_s": 0.0,
        "moved_at": moved_at.isoformat(),
        "stuck_s": _seconds(moved_at, now),
    }


def _unowned(last: Json, before: datetime, now: datetime) -> Json:
    """Nothing is known of it now but that it stands still: what waits there gets older, and more may wait."""
    waits = bool(last["lag_records"])
    old_s = last["lag_s"]
    return last | {
        "owner": None,
        "in_flight": 0,
        "paused_because": None,
        "unowned_s": _seconds(_time(last["seen_at"]), now),
        "lag_s": round(old_s + _seconds(before, now), 1) if waits and old_s is not None else None,
        "stuck_s": _seconds(_time(last["moved_at"]), now) if waits else 0.0,
    }


def _reached(mark: PartitionStatistics) -> int:
    return max((offset for offset in (mark.next_offset, mark.committed_offset) if offset is not None), default=-1)


# --- the whole --------------------------------------------------------------------------------


def _totals(readers: Sequence[ReaderStatistics], partitions: Sequence[Json], tallies: Tallies, now_s: float) -> Json:
    lags = [entry["lag_records"] for entry in partitions]
    ages = [entry["lag_s"] for entry in partitions if entry["lag_s"] is not None]
    waiting = [reader for reader in readers if reader.oldest_item_s is not None]
    oldest = max(waiting, key=lambda reader: reader.oldest_item_s or 0.0, default=None)
    return {
        "lag_records": sum(lag for lag in lags if lag is not None) if any(lag is not None for lag in lags) else None,
        "lag_unknown_partitions": sum(lag is None for lag in lags),
        "lag_s": max(ages, default=None),
        "in_flight_items": sum(reader.in_flight_items for reader in readers),
        "in_flight_bytes": sum(reader.in_flight_bytes for reader in readers),
        "held_bytes": sum(reader.held_bytes for reader in readers),
        "held_bytes_max": sum(reader.held_bytes_max for reader in readers),
        "broker_unreachable_s": max((reader.broker_unreachable_s for reader in readers), default=None),
        "oldest_item_s": oldest.oldest_item_s if oldest else None,
        "oldest_item_waits_for": oldest.oldest_item_stage if oldest else None,
        "oldest_item_position": _oldest_position(oldest) if oldest else None,
        "oldest_item_reader": oldest.name if oldest else None,
        "oldest_item_error": oldest.last_error if oldest else None,
        "rates": rates(tallies, now_s),
        "since": datetime.fromtimestamp(tallies.since_s, UTC).isoformat(),
        "ended": tallies.sums.get("ended", 0),
        "retries": tallies.sums.get("retries", 0),
        "outcomes": tallies.named(OUTCOME),
        "dead_letters": tallies.named(DEAD_LETTER),
        "retried": tallies.named(RETRIED),
        "request_failures": tallies.named(REQUEST_FAILURE),
        "counted": tallies.plain(),
        "durations": tallies.named(DURATION),
    }


def _oldest_position(reader: ReaderStatistics) -> str | None:
    """As the reader says; else the lowest offset not done of the partition that lags most."""
    if reader.oldest_item_position is not None:
        return reader.oldest_item_position
    busy = [mark for mark in reader.partitions if mark.in_flight and mark.next_offset is not None]
    last = max(busy, key=lambda mark: mark.lag_s or 0.0, default=None)
    return f"{last.topic}/{last.partition}@{last.next_offset}" if last else None


def _paused(
    readers: Sequence[ReaderStatistics], partitions: Sequence[Json], before: Mapping[str, str], at: str
) -> tuple[list[Json], dict[str, str]]:
    """What stands still on purpose, because of what and since when: partitions, readers, dependencies."""
    found: dict[str, Json] = {}
    for reader in readers:
        if reader.paused_because:
            found[reader.name] = {"kind": "reader", "because": reader.paused_because}
        for dependency, why in reader.breakers.items():
            found[dependency] = {"kind": "dependency", "because": why}
    for entry in partitions:
        if entry["paused_because"]:
            name = f"{entry['topic']}/{entry['partition']}"
            found[name] = {"kind": "partition", "because": entry["paused_because"]}
    paused_at = {name: before.get(name, at) for name in found}
    return [{"what": name} | what | {"since": paused_at[name]} for name, what in found.items()], paused_at


def _actors(
    watched: Mapping[str, Mapping[str, Any]], reports: Mapping[str, Report], heard_at: Mapping[str, str], now: datetime
) -> Json:
    """The watcher's view, with how long each has been silent and stalled. Who only reports is shown too, and
    where nobody watches, who ever did."""
    names = dict.fromkeys([*(watched or heard_at), *reports])
    found: Json = {}
    for name in names:
        report = reports.get(name)
        seen = heard_at.get(name)
        told: Json = {"state": "running" if report is not None else "silent", "pid": getattr(report, "pid", None)}
        found[name] = told | dict(watched.get(name, {})) | {
            "uptime_s": getattr(report, "uptime_s", None),
            "silent_s": _seconds(_time(seen), now) if seen else None,
            "stalled_s": getattr(report, "stalled_s", None),
        }  # fmt: skip
    return found


def _plain(report: Report | None) -> Json | None:
    return None if report is None else dataclasses.asdict(report)


def _age_s(at: str | None, now: datetime) -> float | None:
    try:
        return None if at is None else _seconds(_time(at), now)
    except ValueError:
        return None


def _seconds(then: datetime, now: datetime) -> float:
    return round(max(0.0, (now - then).total_seconds()), 1)


def _time(text: Any) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
