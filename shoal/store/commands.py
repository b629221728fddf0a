"""What commands do to the tables: reported fixes, marks on them, spending, and the record of every command's outcome.

Pure: the stored rows and a batch of commands in, rows out. A command is applied once by its id: a fix's own id
is its command's, so a redelivery after a crash finds it. The same fix reported again counts on the first
report's row instead of standing beside it. What a command asks wrongly is its own failure: it gets a job row
that says so and a dead letter, and the others go on. The same message delivered again fails the same way, even if
what it lacked has come meanwhile; the same command sent again is another message, and is tried.

A command that tells what was spent is the one that leaves no job: it comes every few seconds for ever, and its rows
themselves tell whether they hold it (spending.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson

from shoal.errors import BadDocument, DeadReason
from shoal.records import FENCE_ID, Ack, EmbeddedCommand, Failure, Outcome, Position
from shoal.spending import SPEND_KIND
from shoal.store.fix_ranking import diff_hash
from shoal.store.index_requests import ACCEPTED, ACTS, accepted
from shoal.store.rows import Row, check_key, check_vectors, clean
from shoal.store.schemas import CollectionFacts
from shoal.store.spending import StoredSpend

FIX_NAME_MAX = 200
_TEXT_MAX = {"scraper_name": FIX_NAME_MAX, "error_type": 200, "error_message": 8_000, "summary": 8_000, "diff": 200_000,
             "version": 200, "reported_by": 200}  # fmt: skip
"""Longest text of a fix in characters. Longer is cut: a report is worth keeping without its tail."""
MARK_NOTE_MAX = 400
_OUTCOMES = ("worked", "failed")
_VARYING = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}(?:-[0-9a-f]{4,})*|\d+(?:[.:,/-]\d+)*", re.IGNORECASE)

FixKey = tuple[str, str, str, str, str]


@dataclass(slots=True)
class CommandPlan:
    """Rows to upsert in `scraper_fixes`, `shoal_spend` and `shoal_jobs`, and one Ack per command in order."""

    fixes: list[Row] = field(default_factory=list)
    spend: list[Row] = field(default_factory=list)
    jobs: list[Row] = field(default_factory=list)
    acks: list[Ack] = field(default_factory=list)


def place(position: Position) -> str:
    """Where a message stands in the log, as a failed command's job keeps it."""
    return f"{position.cluster}/{position.topic}/{position.partition}/{position.offset}"


def normalised(message: str | None) -> str:
    """`message` without what differs from one time to the next: numbers, times, hex ids, case, spacing."""
    return " ".join(_VARYING.sub("#", message or "").casefold().split())


def fix_key(row: Row) -> FixKey:
    """What makes two reports the same fix: the same error of the same scraper and the same change (the words of the
    summary where there is no diff). The outcome belongs to it: 'failed' never counts as 'worked'."""
    return (*fix_change(row), row["outcome"] or "")


def fix_error(row: Row) -> tuple[str, str, str]:
    """What makes the errors of two reports the same."""
    return row["scraper_name"] or "", (row["error_type"] or "").casefold(), normalised(row["error_message"])


def fix_change(row: Row) -> tuple[str, str, str, str]:
    """What makes two reports tell of the same change to the same error, whatever came of it."""
    return *fix_error(row), diff_hash(row["diff"]) or " ".join((row["summary"] or "").casefold().split())


def fix_body(command: EmbeddedCommand) -> dict[str, Any]:
    """The body of a command. Raises BadDocument(SCHEMA_INVALID) where it is no JSON object."""
    try:
        body = orjson.loads(command.command.body)
    except orjson.JSONDecodeError as error:
        raise _invalid(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise _invalid("the body is no JSON object")
    return body


def plan_commands(
    batch: Sequence[EmbeddedCommand],
    stored_fixes: Iterable[Row],
    done: Iterable[str],
    failed: Mapping[str, tuple[str, str]],
    facts: CollectionFacts,
    collection: str,
    sequence: int,
    now: datetime,
    repaired: Mapping[str, dict[str, Any] | BadDocument] = MappingProxyType({}),
    stored_spend: Iterable[Row] = (),
) -> CommandPlan:
    """The plan for `batch`. `stored_fixes`: full rows of the fixes named by id, and of the unmerged ones of the
    scrapers concerned; `done`: ids of commands already applied, also of those named by id; `failed`: id -> (place in
    the log, error) of those that failed last. `sequence` goes into the job rows. `repaired`: id -> what a repair
    comes to, or why it fails; `stored_spend`: full rows of the ledger that the batch tells of."""
    plan = CommandPlan()
    spend = StoredSpend(stored_spend)
    fixes: dict[str, Row] = {row["id"]: row for row in stored_fixes}
    by_key: dict[FixKey, str] = {}
    for row in sorted(fixes.values(), key=lambda row: (str(row["reported_at"]), row["id"])):
        if row["merged_into"] is None:
            by_key.setdefault(fix_key(row), row["id"])
    changed: dict[str, Row] = {}
    applied = set(done)
    told = dict(failed)
    jobs: dict[str, Row] = {}
    for item in batch:
        command = item.command
        if command.command_id in applied:
            plan.acks.append(Ack(Outcome.UNCHANGED))
            continue
        at, said = told.get(command.command_id, ("", ""))
        if at == place(command.position):
            plan.acks.append(Ack(Outcome.DEAD_LETTERED, Failure(DeadReason.SCHEMA_INVALID, said, "write")))
            continue
        error: str | None = None
        result: dict[str, Any] = {}
        try:
            if command.collection != collection:
                raise BadDocument(
                    DeadReason.COLLECTION_REFUSED, f"no collection {command.collection!r} here, only {collection!r}"
                )
            check_key("command id", command.command_id)
            if command.command_id == FENCE_ID:
                raise BadDocument(DeadReason.WRITE_REJECTED, f"{FENCE_ID} is no command's id")
            if command.kind == SPEND_KIND:
                is_new = spend.tell(fix_body(item), now)
                plan.acks.append(Ack(Outcome.INDEXED if is_new else Outcome.UNCHANGED))
                continue
            if command.kind == "fix":
                result = _report(item, fixes, by_key, changed, facts)
            elif command.kind == "fix_mark":
                result = _mark(item, fixes, by_key, changed, applied)
            elif command.kind in ACTS:  # done when maintenance says so
                result = accepted(fix_body(item)) | {"position": place(command.position)}
            elif command.command_id in repaired:
                came = repaired[command.command_id]
                if isinstance(came, BadDocument):
                    raise came
                result = came
            else:
                raise _invalid(f"unknown kind of command {command.kind!r}")
            plan.acks.append(Ack(Outcome.INDEXED))
        except BadDocument as refused:
            error = refused.message
            plan.acks.append(Ack(Outcome.DEAD_LETTERED, Failure(refused.reason, refused.message, "write")))
            if refused.reason is not DeadReason.SCHEMA_INVALID:
                continue  # the id itself can't be stored, or belongs to another collection's record
        if error is None:
            applied.add(command.command_id)
        else:
            told[command.command_id] = (place(command.position), error)
            result = {"position": place(command.position)}
        jobs[command.command_id] = {
            "command_id": command.command_id,
            "kind": clean(command.kind),
            "collection": command.collection,
            "status": "failed" if error is not None else ACCEPTED if command.kind in ACTS else "done",
            "error": clean(error),
            "result": orjson.dumps(result).decode() if result else None,
            "actor": clean(command.actor),
            "at": command.at,
            "applied_at": now,
            "commit_sequence": sequence,
        }
    plan.fixes, plan.spend, plan.jobs = list(changed.values()), spend.changed(), list(jobs.values())
    return plan


def _report(
    item: EmbeddedCommand,
    fixes: dict[str, Row],
    by_key: dict[FixKey, str],
    changed: dict[str, Row],
    facts: CollectionFacts,
) -> dict[str, Any]:
    command = item.command
    known = fixes.get(command.command_id)
    if known is not None:  # written before a crash that lost its job row
        return {"id": known["id"], "merged_into": known["merged_into"]}
    body = fix_body(item)
    row: Row = {"id": command.command_id, "count": 1, "merged_into": None, "marked_wrong_by": None}
    for name, longest in _TEXT_MAX.items():
        value = body.get(name)
        if value is not None and not isinstance(value, str):
            raise _invalid(f"{name} is no text")
        row[name] = clean(value[:longest]) if value else None
    if not row["scraper_name"] or not row["summary"]:
        raise _invalid("a fix needs scraper_name and summary")
    row["outcome"] = body.get("outcome", "worked")
    if row["outcome"] not in _OUTCOMES:
        raise _invalid(f"outcome is one of {', '.join(_OUTCOMES)}")
    row["reported_by"] = row["reported_by"] or clean(command.actor)
    row["reported_at"] = command.at
    row["error_embedding"] = _checked(item.vector, facts)
    known_as = by_key.setdefault(fix_key(row), row["id"])
    if known_as != row["id"]:
        first = {**fixes[known_as], "count": (fixes[known_as]["count"] or 1) + 1}
        fixes[known_as] = changed[known_as] = first
        row |= {"merged_into": known_as, "error_embedding": None, "diff": None}
    fixes[row["id"]] = changed[row["id"]] = row
    return {"id": row["id"], "merged_into": row["merged_into"]}


def _checked(vector: np.ndarray[Any, Any] | None, facts: CollectionFacts) -> np.ndarray[Any, Any] | None:
    if vector is None:
        return None
    if vector.shape != (facts.width,):
        raise _invalid(f"the vector has shape {vector.shape}, the collection needs {(facts.width,)}")
    try:
        check_vectors(vector[np.newaxis, :], facts)
    except BadDocument as error:
        raise _invalid(error.message) from None
    return np.ascontiguousarray(vector, dtype=np.float32)


def _mark(
    item: EmbeddedCommand,
    fixes: dict[str, Row],
    by_key: dict[FixKey, str],
    changed: dict[str, Row],
    applied: Collection[str],
) -> dict[str, Any]:
    """Says that a fix is wrong (or right after all), or that it came out otherwise than reported. It is kept.

    A fix that is not among `applied` was written before a crash that lost its job row. Its report comes again, after
    this mark, which is refused as it was before the crash."""
    body = fix_body(item)
    named, wrong, outcome = body.get("id"), body.get("wrong"), body.get("outcome")
    by, note = body.get("by") or item.command.actor, body.get("note") or ""
    is_sound = isinstance(named, str) and isinstance(by, str) and isinstance(note, str)
    says = isinstance(wrong, bool) or (wrong is None and outcome is not None)
    if not is_sound or not says or outcome not in (None, *_OUTCOMES):
        raise _invalid('a fix_mark is {"id": text, "wrong": true or false, "outcome": worked or failed, "by", "note"}')
    row = fixes.get(str(named)) if named in applied else None
    if row is not None and row["merged_into"] is not None:
        row = fixes.get(row["merged_into"])
    if row is None:
        raise _invalid(f"no fix {named!r}")
    if by_key.get(fix_key(row)) == row["id"]:
        del by_key[fix_key(row)]
    row = {**row, "outcome": outcome or row["outcome"]}
    if wrong is not None:
        who = by[: _TEXT_MAX["reported_by"]] or "somebody"
        row["marked_wrong_by"] = clean(f"{who}: {note[:MARK_NOTE_MAX]}" if note else who) if wrong else None
    by_key.setdefault(fix_key(row), row["id"])
    fixes[row["id"]] = changed[row["id"]] = row
    return {name: row[name] for name in ("id", "outcome", "marked_wrong_by")} | ({"note": note} if note else {})


def _invalid(message: str) -> BadDocument:
    return BadDocument(DeadReason.SCHEMA_INVALID, message)
