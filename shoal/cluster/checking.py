"""`shoal check`: the tables by themselves, with or without a running Shoal. What may be wrong is `shoal.store.fsck`'s
business; this module runs it, shows what it found, and says what mends it. Without `--repair` it only reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from shoal.cluster.output import Exit, Format, emit_json, emit_pairs, emit_rows, err, say
from shoal.settings import Settings
from shoal.store.fsck import Code, Finding, Repair, Subject
from shoal.store.fsck_tables import Report
from shoal.store.fsck_tables import check as check_tables
from shoal.store.writing import storage_options

_BACKUP: dict[Code, str] = {
    Code.TABLE_MISSING: "start a writer (shoal up): it makes the table anew; what it held comes from a backup",
    Code.UNREADABLE_FRAGMENT: "put the file back from a backup; else index into a new LANCEDB_PATH from the log",
    Code.FENCE_ROWS: "no writer can open this table: restore it from a backup, or index into a new LANCEDB_PATH",
    Code.FENCE_INCONSISTENT: "the tables are not of one time: restore all of them from one backup",
    Code.WRONG_WIDTH: "the table is not of this collection: restore it from a backup",
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
    """One check of the tables at `tables_uri`; None where there are none. Raises TransientError, ConfigurationError."""
    age_s = 2 * settings.cleanup_age_s if leaked_age_s is None else leaked_age_s
    return check_tables(
        settings.tables_uri, storage_options(settings), leaked_before=datetime.now(UTC) - timedelta(seconds=age_s),
        index_rows_min=settings.index_rows_min, progress=progress,
    )  # fmt: skip


def check(settings: Settings, *, leaked_age_s: float | None, shown_max: int, form: Format) -> int:
    """The `check` command: an exit code."""
    began = time.monotonic()
    with err.status("opening the tables") as status:
        report = look(settings, leaked_age_s, status.update)
    if report is None:
        say(f"there are no tables at {settings.tables_uri}: is LANCEDB_PATH (SHOAL_DATA_DIR) right?")
        return Exit.FAILED
    show(report, time.monotonic() - began, shown_max, form)
    return Exit.FAILED if report.errors else Exit.OK


def show(report: Report, took_s: float, shown_max: int, form: Format) -> None:
    """The report on stdout, advice on stderr."""
    if form is Format.json:
        emit_json(
            {
                "ok": not report.errors,
                "rows": report.rows,
                "findings": [_as_json(finding, shown_max) for finding in report.findings],
                "notes": report.notes,
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
    return "shoal check --repair; by hand, of the first: " + again(finding.subjects[0])


def again(subject: Subject) -> str:
    """The command that has a document indexed once more."""
    at = subject.position
    if at is not None:
        place = f"{at.topic}/{at.partition}:{at.offset}-{at.offset}"
        said = f"shoal replay --from-offset {place}"
        return said if subject.s3_path is None else f"{said} (out of the log: announce {subject.s3_path} again)"
    if subject.s3_path is not None:
        return f"announce {subject.s3_path} again (shoal backfill)"
    return f"announce {subject.name} again: nothing says where it came from"


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
