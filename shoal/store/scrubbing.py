"""Scrubbing: the bytes of deleted documents leave the files within a stated time, unasked.

A deletion takes rows out of the current version; compaction leaves their bytes out only where a fragment is small or a
tenth of it is deleted, so those of one document in a large fragment would lie there for ever. So `scrub_days` after a
deletion, one round for all deletions until then, a bounded step at a time between commits: every fragment that has
deleted rows is rewritten, the scalar indexes are made anew, and the full-text index by the child beside the writer.
What kept states (`as_of`) still name goes when they have outlived their time; after `as_of_days` those from before the
round are dropped whatever else there is, so that not even the newest state of tables nobody writes to holds it. Cleanup
then takes the files. `gone_by` is the sum.

A deletion is what is remembered as one (tombstone, mark of a removed object); what retention or a newer version took
goes along. How far it is stands in `_shoal/scrubbed.json`; a writer that is killed in a round leaves it to the next,
which begins it anew. `purging.py` does the same at once, where it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from shoal.faults import reach
from shoal.records import FENCE_ID
from shoal.settings import Settings
from shoal.store.schemas import METADATA_KEY, TableKind, literal
from shoal.store.snapshots import PairKind, SnapshotKeeper
from shoal.store.state_files import read_state, write_state
from shoal.store.tables import FencedTable, lance_errors

STATE = "scrubbed.json"
LOOK_EVERY = timedelta(hours=1)
"""Limits are in days; a look costs a scan of some columns."""
_IS_MEMORY = f"fence IS NOT NULL AND {METADATA_KEY} <> {literal(FENCE_ID)}"


@dataclass(slots=True)
class _Round:
    """One under way. `left`: fragments with deleted rows when it began that are still there."""

    began: datetime
    left: dict[PairKind, set[int]]
    is_rebuilt: bool = False


class Scrubber:
    """The writer's rounds. `compact` does one thorough step and says what, or None; `rebuild` makes the scalar indexes
    of a table anew; `doubt` has the full-text index built anew beside the writer: done once `is_doubted` is false."""

    def __init__(
        self,
        settings: Settings,
        tables: Mapping[PairKind, FencedTable],
        keeper: SnapshotKeeper,
        compact: Callable[[TableKind, int], str | None],
        rebuild: Callable[[TableKind, int], None],
        doubt: Callable[[], object],
        is_doubted: Callable[[], bool],
    ) -> None:
        self._settings, self._tables, self._keeper = settings, tables, keeper
        self._compact, self._rebuild, self._doubt, self._is_doubted = compact, rebuild, doubt, is_doubted
        self._age = age(settings)
        self._looked_at: datetime | None = None
        self._round: _Round | None = None
        self.is_thorough = False

    def due(self, now: datetime) -> bool:
        """Whether `step` has something to do, or must look whether."""
        if self._age is None:
            return False
        if self._round is not None:
            return not (self._round.is_rebuilt and self._is_doubted())
        return self._looked_at is None or now - self._looked_at >= LOOK_EVERY

    def step(self, now: datetime, epoch: int) -> str | None:
        """The next part, if any. Raises TransientError, FencedError."""
        for table in self._tables.values():
            table.settle(epoch)
        if self._round is None:
            self._looked_at = now
            known = _known(self._settings)
            done = self._drop_states(known, now)
            if done is None and self._is_deletion_due(known, now):
                self._round = _Round(now, {kind: _with_deletions(table) for kind, table in self._tables.items()})
                done = "began to scrub the tables of deleted documents"
            return done
        try:
            return self._go_on(self._round, now, epoch)
        except BaseException:
            self._round = None  # the next look begins it anew
            raise

    def _go_on(self, round_: _Round, now: datetime, epoch: int) -> str:
        for kind, table in self._tables.items():
            round_.left[kind] &= _with_deletions(table)
            if round_.left[kind]:
                self.is_thorough = True
                try:
                    done = self._compact(kind, epoch)
                finally:
                    self.is_thorough = False
                if done is not None:
                    return f"scrubbing: {done}"
                round_.left[kind].clear()  # nothing that compaction takes
        if not round_.is_rebuilt:
            for kind in self._tables:
                self._rebuild(kind, epoch)
            self._doubt()
            round_.is_rebuilt = True
            return "scrubbing: made the scalar indexes anew"
        reach("writer.scrubbing")
        versions = {kind: int(table.dataset.version) for kind, table in self._tables.items()}
        write_state(
            self._settings, STATE,
            {"began": round_.began.isoformat(), "ended": now.isoformat(), "versions": versions, "is_dropped": False},
        )  # fmt: skip
        self._round = None
        return f"no current file holds what was deleted before {round_.began:%Y-%m-%dT%H:%M:%SZ}"

    def _is_deletion_due(self, known: Mapping[str, Any], now: datetime) -> bool:
        """Whether a deletion that no round has seen is old enough."""
        assert self._age is not None
        metadata = self._tables["metadata"]
        with lance_errors(f"reading {metadata.uri}"):
            found = metadata.dataset.to_table(columns=["indexed_at"], filter=_IS_MEMORY)["indexed_at"].to_pylist()
        seen = _moment(known.get("began"))
        return any(at is not None and at > seen and now - at >= self._age for at in found)

    def _drop_states(self, known: Mapping[str, Any], now: datetime) -> str | None:
        """Drop the kept states from before the last round, once their time is over."""
        versions = known.get("versions")
        over = _moment(known.get("ended")) + timedelta(days=self._settings.as_of_days)
        if not isinstance(versions, Mapping) or known.get("is_dropped") or now < over:
            return None
        old = [
            state
            for state in self._keeper.listed()
            if state.metadata < int(versions["metadata"]) or state.vectors < int(versions["vectors"])
        ]
        self._keeper.drop(old)
        write_state(self._settings, STATE, {**known, "is_dropped": True})
        return f"dropped {len(old)} kept states that named files with deleted documents"


def age(settings: Settings) -> timedelta | None:
    """After which time a deletion is scrubbed; None: only where it is asked for. What remembers a deletion must live
    that long."""
    days = settings.scrub_days
    if settings.log_retention_days:
        days = min(days, settings.log_retention_days)
    return timedelta(days=days) if settings.scrub_days else None


def gone_by(settings: Settings, now: datetime) -> datetime | None:
    """When no file of the tables holds what was deleted by `now`, give or take the time that rewriting them takes; None
    where only a purge sees to that. Both looks are hourly, cleanup comes every half of its age."""
    waits = age(settings)
    if waits is None:
        return None
    cleanup = timedelta(seconds=1.5 * settings.cleanup_age_s)
    return (now + waits + timedelta(days=settings.as_of_days) + 2 * LOOK_EVERY + cleanup).astimezone(UTC)


def _with_deletions(table: FencedTable) -> set[int]:
    with lance_errors(f"looking at the fragments of {table.uri}"):
        return {fragment.fragment_id for fragment in table.dataset.get_fragments() if fragment.num_deletions}


def _known(settings: Settings) -> Mapping[str, Any]:
    found = read_state(settings, STATE)
    return found if isinstance(found, Mapping) else {}


def _moment(text: Any) -> datetime:
    """What `isoformat` wrote; for anything else the beginning of time."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return datetime.min.replace(tzinfo=UTC)
