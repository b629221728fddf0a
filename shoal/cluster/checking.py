"""`shoal check`: the tables by themselves, with or without a running Shoal. What may be wrong is `shoal.store.fsck`'s
business; this module runs it, shows what it found, and says what mends it. With
`--repair` it asks the writer (`repairs`), and looks again; else it only reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from shoal.cluster.output import Exit, Format, emit_json, emit_pairs, emit_rows, err, say
from shoal.cluster.repairs import ask, lines, wanted_of
from shoal.errors import ShoalError
from shoal.settings import Settings
from shoal.sources.kafka import connection
from shoal.store.fsck import Code, Finding, Repair, Subject
from shoal.store.fsck_tables import Report
from shoal.store.fsck_tables import check as check_tables
from shoal.store.place import current_or_damaged
from shoal.store.writing import storage_options

_BACKUP: dict[Code, str] = {
    Code.TABLE_MISSING: "start a writer (shoal up): it makes the table anew; what it held comes from a backup",
    Code.UNREADABLE_FRAGMENT: "put the file back from a backup; else index into a new LANCEDB_PATH from the log",
    Code.FENCE_ROWS: "no writer can open this table: restore it from a backup, or index into a new LANCEDB_PATH",
    Code.FENCE_INCONSISTENT: "the tables are not of one time: restore all of them from one backup",
    Code.WRONG_WIDTH: "the table is not of this collection: restore it from a backup",
    Code.SPEND_WRONG: "restore shoal_spend from a backup, or remove these rows: what each machine has spent lately is "
    "in its own book and is told again as it grows",
}
_UPKEEP: dict[Code, str] = {
    Code.HALF_WRITTEN_BATCH: "start a writer (shoal up): it takes the half batch back, and the log delivers it again",
    Code.OPENING_UNFINISHED: "start a writer (shoal up): it takes all the tables",
    Code.OLDER_LAYOUT: "start a writer (shoal up): it brings the tables to its layout",
    Code.INDEX_MISSING: "a running writer makes it",
    Code.LEAKED_FILES: "a running writer removes them (cleanup_age_s)",
    Code.UNFINISHED_STATE_FILE: "a running writer removes them (cleanup_age_s)",
}


def look(settings: Settings, leaked_age_s: float | None, progress: Callable[[str], None]) -> Report | None:
    """One check of the tables in use; None where there are none. Raises TransientError, ConfigurationError."""
    settings = current_or_damaged(settings)
    age_s = 2 * settings.cleanup_age_s if leaked_age_s is None else leaked_age_s
    return check_tables(
        settings.tables_uri, storage_options(settings), leaked_before=datetime.now(UTC) - timedelta(seconds=age_s),
        index_rows_min=None if settings.index_kind == "flat" else settings.index_rows_min, progress=progress,
    )  # fmt: skip


def check(
    settings: Settings,
    *,
    leaked_age_s: float | None,
    shown_max: int,
    form: Format,
    repair: bool = False,
    timeout_s: float = 300,
) -> int:
    """The `check` command: an exit code. After a repair it is that of a second look."""
    began = time.monotonic()
    with err.status("opening the tables") as status:
        report = look(settings, leaked_age_s, status.update)
        if report is None:
            say(f"there are no tables at {settings.tables_uri}: is LANCEDB_PATH (SHOAL_DATA_DIR) right?")
            return Exit.FAILED
        jobs: list[dict[str, Any]] = []
        if repair and (asked := wanted_of(report.findings)):
            for finding in report.findings:
                say(f"found {finding.count} {finding.code} in {finding.table}")
            jobs = ask(settings, asked, timeout_s, status.update)
            report = look(settings, leaked_age_s, status.update) or report
    _say_repairs(jobs)
    again, hidden = lines(report.findings, _cluster(settings) if repair else None)
    show(report, time.monotonic() - began, shown_max, form, jobs, again)
    for line in again if form is Format.table else ():
        say(f"to mend: {line}")
    if hidden:
        say(f"{hidden} more such lines: check again after these")
    if any(job["status"] == "pending" for job in jobs):
        return Exit.TIMEOUT
    return Exit.FAILED if report.errors else Exit.OK


def _cluster(settings: Settings) -> str | None:
    try:
        return connection(settings).cluster
    except ShoalError:
        return None


def _say_repairs(jobs: Sequence[Mapping[str, Any]]) -> None:
    for job in jobs:
        if job["status"] == "pending":
            say("a repair has no outcome yet: it is in the log, and comes; check again later")
        elif job["error"]:
            say(f"a repair failed: {job['error']}")
        else:
            result = job["result"] or {}
            removed = ", ".join(f"{count} rows of {table}" for table, count in result.get("removed", {}).items())
            indexes = ", ".join(result.get("indexes", ()))
            said = [f"removed {removed}"] if removed else []
            said += [f"{result['superseded']} rows are history now"] if result.get("superseded") else []
            said += [f"indexes asked to be made anew: {indexes}"] if indexes else []
            said += [f"{result['left']} documents were too much at once: repair again"] if result.get("left") else []
            say("repaired: " + ("; ".join(said) or "nothing was wrong any more"))


def show(
    report: Report,
    took_s: float,
    shown_max: int,
    form: Format,
    jobs: Sequence[Mapping[str, Any]] = (),
    again: Sequence[str] = (),
) -> None:
    """The report on stdout, advice on stderr."""
    if form is Format.json:
        emit_json(
            {
                "ok": not report.errors,
                "rows": report.rows,
                "findings": [_as_json(finding, shown_max) for finding in report.findings],
                "notes": report.notes,
                "repairs": jobs,
                "to_mend": again,
                "took_s": round(took_s, 2),
            }
        )
    else:
        emit_pairs({f"{table} rows": count for table, count in report.rows.items()})
        if report.findings:
            columns = ("severity", "code", "table", "count", "example")
            emit_rows([_as_row(finding, subject) for finding, subject in _examples(report, shown_max)], columns)
    for note in report.notes:
        say(f"note: {note}")
    if not report.findings:
        say("nothing is wrong with the tables")
    for finding in report.findings:
        say(f"{finding.code} in {finding.table}: {what_to_do(finding)}")


def what_to_do(finding: Finding) -> str:
    """What mends a finding, in words that can be typed where there are such."""
    if finding.repair is Repair.WRITER:
        return "shoal check --repair (a running Shoal does it)"
    if finding.repair is Repair.UPKEEP:
        return _UPKEEP[finding.code]
    if finding.repair is Repair.BACKUP:
        return _BACKUP[finding.code]
    return "index the documents once more: " + lines([finding], None)[0][0]


def _examples(report: Report, shown_max: int) -> Sequence[tuple[Finding, Subject]]:
    return [(finding, subject) for finding in report.findings for subject in finding.subjects[: max(1, shown_max)]]


def _as_row(finding: Finding, subject: Subject) -> dict[str, Any]:
    example = f"{subject.name}: {subject.detail}" if subject.detail else subject.name
    return {
        "severity": finding.severity.value, "code": finding.code.value, "table": finding.table,
        "count": finding.count, "example": example,
    }  # fmt: skip


def _as_json(finding: Finding, shown_max: int) -> dict[str, Any]:
    return {
        "code": finding.code.value,
        "severity": finding.severity.value,
        "table": finding.table,
        "count": finding.count,
        "repair": finding.repair.value,
        "what_to_do": what_to_do(finding),
        "examples": [_example(subject) for subject in finding.subjects[:shown_max]],
    }


def _example(subject: Subject) -> dict[str, Any]:
    at = subject.position
    place = f"{at.topic}/{at.partition}:{at.offset}" if at else None
    return {"name": subject.name, "detail": subject.detail, "position": place, "s3_path": subject.s3_path}
