"""Purging: no file of the tables holds deleted rows any more, by a stated time and not by some later cleanup.

A deletion takes rows out of the current version; their bytes stay in its files until a compaction leaves them out,
in its indexes until these are rebuilt, and in older versions until cleanup. A request beside the tables
(`_shoal/purge.json`, as draining.py asks) makes the writer do all of it: drop the kept states,
rewrite every fragment with deleted rows, rebuild the scalar and full-text indexes, and after `HOLD`, the least age at
which cleanup can't break a reader (facts 4), remove every older version and orphan. Then it answers in
`_shoal/purged.json`. A writer that is killed on the way, or its heir, begins anew: each step may be repeated.

It holds the writer while it rewrites, seconds per GB; that is why it must be asked for. `holding` is the other
side: what still holds given documents, by looking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from shoal.errors import TransientError
from shoal.faults import reach
from shoal.settings import Settings
from shoal.store.orphans import sweep
from shoal.store.schemas import IS_DOCUMENT, TOMBSTONE, TableKind, metadata_table, table_uri, vectors_table
from shoal.store.snapshots import PairKind, SnapshotKeeper
from shoal.store.state_files import read_state, write_state
from shoal.store.tables import FencedTable, lance_errors

REQUEST, ANSWER = "purge.json", "purged.json"
HOLD = timedelta(minutes=10)
"""The floor of `cleanup_age_s`: below it a long query of another process may lose its files."""
LOOK_EVERY = timedelta(seconds=10)  # for a request: one small file, over the network where the tables are in S3
COMPACTIONS_MAX = 10_000  # steps of one purge, each of some 256 MiB

_ID: Mapping[PairKind, str] = {"metadata": "id", "vectors": "metadata_id"}


@dataclass(frozen=True, slots=True)
class Request:
    """A wish that nothing holds what was deleted before commit `sequence`."""

    id: str
    sequence: int


def request_purge(settings: Settings, request: Request) -> None:
    """Ask the writer. Raises TransientError."""
    write_state(settings, REQUEST, {"id": request.id, "sequence": request.sequence})


def is_purged(settings: Settings, request: Request) -> bool:
    """Whether the writer has answered, this request or a later one. Raises TransientError."""
    found = read_state(settings, ANSWER)
    if not isinstance(found, Mapping):
        return False
    sequence = found.get("sequence")  # another's answer covers what was deleted before its commit
    return found.get("id") == request.id or (isinstance(sequence, int) and sequence >= request.sequence)


class Purger:
    """The writer's side. `compact` does one thorough step and tells what, or None; `rebuild` makes the scalar indexes
    of a table anew."""

    def __init__(
        self,
        settings: Settings,
        tables: Mapping[PairKind, FencedTable],
        keeper: SnapshotKeeper,
        compact: Callable[[TableKind, int], str | None],
        rebuild: Callable[[TableKind, int], None],
    ) -> None:
        self._settings, self._tables, self._keeper = settings, tables, keeper
        self._compact, self._rebuild = compact, rebuild
        self._looked_at: datetime | None = None
        self._rewritten: str | None = None  # the request of which no new version holds anything
        self._held_since: datetime | None = None  # a look after that rewrite
        self._done: str | None = None
        self.is_thorough = False  # compactions leave out every deleted row, however few

    def due(self, now: datetime) -> Request | None:
        """The request that something is to be done for now. Raises TransientError."""
        if self._looked_at is not None and now - self._looked_at < LOOK_EVERY:
            return None
        self._looked_at = now
        found = read_state(self._settings, REQUEST)
        if not isinstance(found, Mapping) or not isinstance(found.get("sequence"), int):
            return None
        request = Request(str(found.get("id")), found["sequence"])
        if request.id == self._done or is_purged(self._settings, request):
            return None
        if self._rewritten == request.id:
            # Not from the step's `now`, which is of before a rewrite that takes minutes: the versions that it went
            # through would be too young for the cleanup, and stay behind the answer.
            self._held_since = self._held_since or now
            if now - self._held_since < HOLD:
                return None
        return request

    def step(self, request: Request, now: datetime, epoch: int) -> str:
        """The next part. Raises TransientError, FencedError."""
        for table in self._tables.values():
            table.settle(epoch)
        if self._rewritten != request.id:
            # All: a state from after the deletion, too, names files in which the deleted rows still lie.
            self._keeper.drop(self._keeper.listed())
            self.is_thorough = True
            try:
                for kind in self._tables:
                    for _ in range(COMPACTIONS_MAX):
                        if self._compact(kind, epoch) is None:
                            break
                    self._rebuild(kind, epoch)
            finally:
                self.is_thorough = False
            reach("writer.purging")
            self._rewritten, self._held_since = request.id, None
            return f"rewrote what held rows deleted before commit {request.sequence}"
        for table in self._tables.values():
            with lance_errors(f"cleaning {table.uri}"):
                table.dataset.cleanup_old_versions(HOLD, error_if_tagged_old_versions=False)
            sweep(table, HOLD)
            table.settle(epoch)
        reach("writer.purged")
        write_state(self._settings, ANSWER, {"id": request.id, "sequence": request.sequence, "at": now.isoformat()})
        self._done = request.id
        return f"no version holds rows deleted before commit {request.sequence}"


@dataclass(frozen=True, slots=True)
class Holding:
    """Where documents still are. `rows` and `chunks`: of the current versions, history too. `sequence`: the commit of
    those. `versions`: older versions of the tables in which they are found, kept states among them; `kept` those
    by name. `remembered`: ids with a tombstone, which holds the id and its place in the log, nothing else."""

    sequence: int
    rows: int
    chunks: int
    versions: int
    kept: tuple[str, ...]
    remembered: int

    @property
    def is_current_clean(self) -> bool:
        return self.rows == 0 and self.chunks == 0

    @property
    def is_clean(self) -> bool:
        return self.is_current_clean and self.versions == 0


def holding(settings: Settings, options: dict[str, str], collection: str, ids: Iterable[str]) -> Holding:
    """Look into every version that there is for `ids`. Counts, in each, by key: thousands of versions take minutes.
    Raises TransientError."""
    wanted = list(dict.fromkeys(ids))
    names = {"metadata": metadata_table(collection), "vectors": vectors_table(collection)}
    found: dict[str, Any] = {"versions": 0, "kept": set()}
    counts = {}
    for kind, column in _ID.items():
        table = FencedTable.open(kind, table_uri(settings.tables_uri, names[kind]), options)
        if table is None:
            continue
        counts[kind] = len(table.rows_of((column,), column, wanted, IS_DOCUMENT))
        if kind == "metadata":
            found["sequence"] = table.fence.commit_sequence
            stones = table.rows_of(("id",), "id", wanted, f"fence = '{TOMBSTONE}'")
            found["remembered"] = len({row["id"] for row in stones})
        with lance_errors(f"listing the versions of {table.uri}"):
            latest = int(table.dataset.version)
            versions = sorted(int(version["version"]) for version in table.dataset.versions())
            tags = {int(tag["version"]): name for name, tag in table.dataset.tags.list().items()}
        for version in versions:
            if version < latest and _holds(table, version, column, wanted):
                found["versions"] += 1
                found["kept"] |= {tags[version]} if version in tags else set()
    return Holding(
        sequence=found.get("sequence", 0),
        rows=counts.get("metadata", 0),
        chunks=counts.get("vectors", 0),
        versions=found["versions"],
        kept=tuple(sorted(found["kept"])),
        remembered=found.get("remembered", 0),
    )


def _holds(table: FencedTable, version: int, column: str, ids: list[str]) -> bool:
    """Raises TransientError where the version is there and can't be read: nobody knows then what it holds."""
    try:
        with lance_errors(f"opening version {version} of {table.uri}"):
            old = FencedTable(table.kind, table.uri, table.options, table.dataset.checkout_version(version))
            return bool(old.rows_of((column,), column, ids, IS_DOCUMENT))
    except (TransientError, ValueError) as error:
        if "not found" in str(error).lower():
            with lance_errors(f"listing the versions of {table.uri}"):
                if version not in {int(each["version"]) for each in table.dataset.versions()}:
                    return False  # cleaned away since
        raise TransientError(f"version {version} of {table.uri} can't be read: {error}: look again") from error


def gone_by(settings: Settings, now: datetime) -> datetime:
    """When, without a purge, no kept state and no older version holds what was deleted by `now`: a state is kept for
    `as_of_days` after the next one, cleanup takes what is older than its age, and looks every half of that. No query
    finds it then; its bytes may stay in files of the current version until a compaction takes these."""
    interval_s = min(settings.as_of_interval_s, settings.cleanup_age_s / 2)
    seconds = 2 * interval_s + 1.5 * settings.cleanup_age_s
    return (now + timedelta(days=settings.as_of_days, seconds=seconds)).astimezone(UTC)
