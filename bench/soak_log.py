"""The log of a soak: what the nth commit writes, and what the tables must hold when it is in.

Made from a seed and the offset alone, so a writer that was killed is given the same again, and the check at the end
needs nothing that a process remembered. New documents, new versions of old ones, late older versions, deletions, and
the same once more.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.corpus import Corpus, document_id
from shoal.records import SCRAPER_COLLECTION, Announcement, Deletion, Embedded, Position, Progress, Writable
from shoal.store.audit import Audit, Report, Span
from shoal.store.audit_rows import TablesSnapshot

MESSAGES = 2
"""Of one commit. Small, so that there are many commits of few rows: what wears tables out."""
PLACE = ("bench", "bench", 0)
NEW, NEWER, LATE, GONE = 0.55, 0.85, 0.90, 0.97  # cumulated chances; beyond: the same document once more


class Log:
    """`seed` decides everything."""

    def __init__(self, seed: int, width: int, *, chunks: int = 2, words: int = 24) -> None:
        self._seed = seed
        self.corpus = Corpus(width, chunks=chunks, words=words, seed=seed)

    def batch(self, number: int) -> list[Writable]:
        """What commit `number` writes."""
        return [self.message(offset) for offset in range(MESSAGES * number, MESSAGES * (number + 1))]

    def progress(self, number: int) -> tuple[Progress, ...]:
        """How far the log is done once that commit is in."""
        return (Progress(*PLACE, MESSAGES * (number + 1)),)

    def message(self, offset: int) -> Writable:
        """The message at `offset`."""
        draw = random.Random(f"{self._seed}/{offset}")
        kind, other = draw.random(), draw.randrange(max(1, offset))
        if kind < NEW or offset == 0:
            return self._document(offset, offset, offset)
        if kind < NEWER:
            return self._document(other, offset, offset)
        if kind < LATE:
            return self._document(other, offset, draw.randrange(offset))
        if kind < GONE:
            at = Position(*PLACE, offset, 1_700_000_000_000 + offset)
            return Deletion(at, SCRAPER_COLLECTION, document_id(other))
        return self._document(other, offset, other)  # the version it had when it was new, if it was

    def _document(self, number: int, offset: int, version: int) -> Embedded:
        return self.corpus.document(number, offset, version, mark=mark(document_id(number), f"v{version:06}"))

    def works(self, commits: int) -> Iterator[tuple[Position, Announcement | Deletion]]:
        """Every message of so many commits, as the log has it."""
        for offset in range(MESSAGES * commits):
            written = self.message(offset)
            work = written.fetched.announcement if isinstance(written, Embedded) else written
            assert isinstance(work, Announcement | Deletion)
            yield work.position, work


def mark(document: str, version: str) -> str:
    """What each chunk's text begins with: a chunk that is shown beside another version's metadata tells on itself."""
    return f"[{document} {version}] "


def audit(log: Log, commits: int, uri: str) -> Report:
    """The tables against the log: missing, extra, double, orphaned. Raises what the store raises."""
    end = MESSAGES * commits
    found = Audit({PLACE: Span(0, end, end)})
    for at, work in log.works(commits):
        found.message(at, [work], is_dead=False)
    snapshot = TablesSnapshot.open(uri, {})
    assert snapshot is not None, "the writer made the tables"
    for stored, chunk_count, has_dropped_text in snapshot.versions():
        found.row(stored, chunk_count=chunk_count, has_dropped_text=has_dropped_text)
    for chunk in snapshot.chunks():
        found.chunk(*chunk)
    for job in snapshot.job_ids():
        found.job(job)
    return found.report()


def check(uri: str, index_rows_min: int, age_s: float) -> list[str]:
    """What `shoal check` has against the tables, errors only; nothing where this Shoal has none."""
    if not (Path(__file__).parents[1] / "shoal" / "store" / "fsck_tables.py").exists():
        return []
    from shoal.store import fsck_tables  # type: ignore[attr-defined, unused-ignore]

    before = datetime.now(UTC) - timedelta(seconds=2 * age_s)
    report = fsck_tables.check(uri, {}, leaked_before=before, index_rows_min=index_rows_min)
    return [
        f"{finding.code} in {finding.table}: {finding.count}, {[one.name for one in finding.subjects[:3]]}"
        for finding in (report.findings if report else ())
        if finding.severity == "error"
    ]
