"""Retention: what of a collection has outlived its time, some hundred rows at a time.

Four rules, each by the writer's clock:
- a version whose dataset has `keep_days` goes once it was collected longer ago; with its current version a document
  goes whole, history, chunks and all;
- of a document whose dataset has `keep_versions`, the newest so many versions stay, the current one among them;
- history goes `superseded_days` after it became that;
- what remembers a deletion (tombstone) or a removed object (mark) goes once no log can deliver again what it holds
  back: `log_retention_days` after it was written, and a mark not while it still shadows history of its document.

No tombstone is left for what expires: if a replay brings it back while the log still has it, it expires again at the
next look. The rows go through the writer's own fenced commits, chunks first, and a kill leaves what any kill leaves.
Reads only; `due` says what to remove, and the writer removes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from shoal.records import FENCE_ID
from shoal.settings import Settings
from shoal.store.audit_expiry import CLOCKS, Expiry
from shoal.store.lookups import stored_version
from shoal.store.planning import Version
from shoal.store.rows import Row
from shoal.store.schemas import IS_CURRENT, IS_DOCUMENT, METADATA_KEY, literal
from shoal.store.tables import LOOKUP_KEYS_MAX, FencedTable, lance_errors

ROWS_MAX = LOOKUP_KEYS_MAX
"""Rows of one step, so that it is one predicate and holds the writer for milliseconds; what is left comes with the
next step, behind whatever has arrived meanwhile."""
LOOK_EVERY = timedelta(hours=1)
"""Limits are in days; a look costs a scan of some columns."""
_IS_HISTORY = f"superseded_at IS NOT NULL AND {IS_DOCUMENT}"
_RANKED = (
    METADATA_KEY, "id", "version", "sha256_hash", "s3_path", "version_id", "validation_status", "superseded_at",
    "fence", "kafka_cluster", "kafka_topic", "kafka_partition", "kafka_offset", "kafka_timestamp_ms",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rule:
    """What is kept of a dataset; None: no limit."""

    keep_days: float | None = None
    keep_versions: int | None = None


@dataclass(frozen=True, slots=True)
class Expired:
    """What is to go: rows of the metadata table by revision, and the documents of which the chunks go too."""

    revisions: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Retention:
    """The rules in force. `rules`: dataset, or prefix with `*` at its end -> rule; the exact name wins, then the
    longest prefix. None: kept for ever."""

    rules: Mapping[str, Rule]
    superseded_days: float | None
    log_retention_days: float | None

    @classmethod
    def of(cls, settings: Settings) -> Retention:
        return cls(
            {pattern: Rule(raw.keep_days, raw.keep_versions) for pattern, raw in settings.retention.items()},
            settings.superseded_keep_days or None,
            settings.log_retention_days or None,
        )

    def rule(self, dataset: str | None) -> Rule:
        """The rule of a dataset."""
        if dataset is None:
            return Rule()
        if dataset in self.rules:
            return self.rules[dataset]
        prefixes = [name for name in self.rules if name.endswith("*") and dataset.startswith(name[:-1])]
        return self.rules[max(prefixes, key=len)] if prefixes else Rule()

    def has_expired(self, dataset: str, collected_at: datetime, now: datetime) -> bool:
        """Whether `keep_days` takes a version, at `now` or at the next look."""
        days = self.rule(dataset).keep_days
        return days is not None and collected_at < now - _days(days)

    def expiry(self, now: datetime) -> Expiry:
        """What has gone by `now`, or goes at the next look, for the audit."""

        def before_ms(days: float | None) -> float | None:
            return None if days is None else (now - _days(days) + CLOCKS).timestamp() * 1000

        return Expiry(
            lambda said: self.has_expired(said.dataset, said.collected_at, now),
            lambda said: self.rule(said.dataset).keep_versions,
            before_ms(self.superseded_days),
            before_ms(self.log_retention_days),
        )

    def due(self, metadata: FencedTable, now: datetime) -> Expired | None:
        """Some of what has expired at `now`, None where nothing has. Raises TransientError."""
        for pattern, rule in sorted(self.rules.items()):
            governed = self._governed(pattern)
            if rule.keep_days is not None and (found := _older(metadata, governed, now - _days(rule.keep_days))):
                return found
            if rule.keep_versions is not None and (found := _beyond(metadata, governed, rule.keep_versions)):
                return found
        if self.superseded_days is not None:
            before = _sql(now - _days(self.superseded_days))
            rows = _some(metadata, (METADATA_KEY,), f"superseded_at < {before} AND {_IS_HISTORY}")
            if rows:
                return Expired(tuple(row[METADATA_KEY] for row in rows))
        return self._memories(metadata, now)

    def _memories(self, metadata: FencedTable, now: datetime) -> Expired | None:
        if self.log_retention_days is None:
            return None
        before = _sql(now - _days(self.log_retention_days))
        hidden = f"fence IS NOT NULL AND {METADATA_KEY} <> {literal(FENCE_ID)} AND indexed_at < {before}"
        shadowing: set[str] = set()
        # A mark that still shadows history stays, and must not hide from us those that can go: all are looked at.
        rows = _some(metadata, (METADATA_KEY, "id"), hidden, None)
        for start in range(0, len(rows), ROWS_MAX):
            some = rows[start : start + ROWS_MAX]
            shadowing = {row["id"] for row in metadata.rows_of(("id",), "id", [r["id"] for r in some], _IS_HISTORY)}
            if gone := tuple(row[METADATA_KEY] for row in some if row["id"] not in shadowing):
                return Expired(gone)
        return None

    def _governed(self, pattern: str) -> str:
        """SQL: the dataset's rule is that of `pattern`."""
        if not pattern.endswith("*"):
            return f"dataset = {literal(pattern)}"
        nearer = [other for other in self.rules if other != pattern and other.startswith(pattern[:-1])]
        conditions = [f"starts_with(dataset, {literal(pattern[:-1])})"]
        conditions += [f"NOT ({_named(other)})" for other in nearer]
        return " AND ".join(conditions)


def _named(pattern: str) -> str:
    if pattern.endswith("*"):
        return f"starts_with(dataset, {literal(pattern[:-1])})"
    return f"dataset = {literal(pattern)}"


def _older(metadata: FencedTable, governed: str, before: datetime) -> Expired | None:
    """Versions collected before `before`; where that is the current one, its whole document."""
    old = f"({governed}) AND collected_at < {_sql(before)}"
    rows = _some(metadata, ("id", METADATA_KEY), f"{old} AND {IS_CURRENT}")
    if rows:
        documents = [row["id"] for row in rows]
        every = metadata.rows_of((METADATA_KEY,), "id", documents, IS_DOCUMENT)
        return Expired(tuple(row[METADATA_KEY] for row in every), tuple(documents))
    rows = _some(metadata, (METADATA_KEY,), f"{old} AND {_IS_HISTORY}")
    return Expired(tuple(row[METADATA_KEY] for row in rows)) if rows else None


def _beyond(metadata: FencedTable, governed: str, versions: int) -> Expired | None:
    """History beyond the newest `versions` of a document, by the order of `planning.Version.rank`."""
    count: Counter[str] = Counter()
    with lance_errors(f"reading {metadata.uri}"):
        for batch in metadata.dataset.scanner(columns=["id"], filter=f"({governed}) AND {IS_DOCUMENT}").to_batches():
            count.update(batch["id"].to_pylist())
    many = [document for document, rows in count.items() if rows > versions][:ROWS_MAX]
    gone: list[str] = []
    for document, rows in _by_document(metadata.rows_of(_RANKED, "id", many, IS_DOCUMENT)).items():
        assert count[document] > 0
        # The current one is the greatest as a rule; where it is not (marks hide greater ones), it stays all the same.
        ordered = sorted(rows, key=lambda row: (row["superseded_at"] is None, _rank(row)), reverse=True)
        gone += [row[METADATA_KEY] for row in ordered[versions:] if row["superseded_at"] is not None]
    return Expired(tuple(gone[:ROWS_MAX])) if gone else None


def _by_document(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["id"], []).append(row)
    return found


def _rank(row: Row) -> Any:
    version = stored_version(row)
    assert isinstance(version, Version), "tombstones are no documents"
    return version.rank


def _some(table: FencedTable, columns: Sequence[str], predicate: str, limit: int | None = ROWS_MAX) -> list[Row]:
    with lance_errors(f"reading {table.uri}"):
        found: list[Row] = table.dataset.to_table(columns=list(columns), filter=predicate, limit=limit).to_pylist()
    return found


def _days(days: float) -> timedelta:
    return timedelta(days=days)


def _sql(moment: datetime) -> str:
    return f"timestamp '{moment:%Y-%m-%d %H:%M:%S.%f}'"
