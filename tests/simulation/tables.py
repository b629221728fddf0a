"""The simulated tables: versions of rows with a fence, below the real fence and commit logic.

A commit is a compare-and-set on the newest version, as in Lance. It may be refused, be slow, land though an error is
told, not land, or land later, if the version it was staged on is still the newest then. Between any two steps the
process may die or stand still while another writer goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from shoal.errors import PermanentError, TransientError
from shoal.records import FENCE_ID
from shoal.store.fence import Fence
from shoal.store.rows import Row
from shoal.store.schemas import KEYS, CollectionFacts, TableKind
from shoal.store.tables import CommitRefused, FencedTable, _fence_row, in_list
from tests.simulation.kernel import Violation, World, here

_LIST = re.compile(r"(\w+) IN \((.*)\)", re.DOTALL)
_LITERAL = re.compile(r"'((?:[^']|'')*)'")
_NULL = re.compile(r"(\w+) IS (NOT )?NULL")


def predicate(text: str) -> Callable[[Row], bool]:
    """The SQL that the store builds, as a function of a row."""
    text = text.strip()
    while text.startswith("(") and text.endswith(")") and " IN " not in text:
        text = text[1:-1]
    listed = _LIST.match(text)
    if listed is not None:
        last = text.rfind("')") + 1
        keys = {key.replace("''", "'") for key in _LITERAL.findall(text[: last + 1])}
        column, rest = listed[1], text[last + 1 :].removeprefix(" AND ").strip()
        if not rest:
            return lambda row: row.get(column) in keys
        also = predicate(rest)
        return lambda row: row.get(column) in keys and also(row)
    if " OR " in text:
        either = [predicate(part) for part in text.split(" OR ")]
        return lambda row: any(one(row) for one in either)
    tests: list[tuple[str, bool]] = []
    for part in text.split(" AND "):
        matched = _NULL.fullmatch(part.strip(" ()"))
        if matched is None:
            raise NotImplementedError(f"the simulated tables do not know {text!r}")
        tests.append((matched[1], matched[2] is None))
    return lambda row: all((row.get(column) is None) == null for column, null in tests)


@dataclass(frozen=True, slots=True)
class Version:
    number: int
    rows: dict[str, Row]  # by merge key, without the fence
    fence: Fence


@dataclass(slots=True)
class Stored:
    """One table at rest: all its versions."""

    kind: TableKind
    facts: CollectionFacts
    versions: list[Version] = field(default_factory=list)

    @property
    def newest(self) -> Version:
        return self.versions[-1]


class Storage:
    """Every table there is."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.tables: dict[str, Stored] = {}
        self.on_landed: Callable[[Stored, Version], None] = lambda stored, before: None

    def of(self, kind: TableKind) -> Stored | None:
        return next((stored for stored in self.tables.values() if stored.kind == kind), None)

    def land(self, stored: Stored, base: Version, rows: dict[str, Row], fence: Fence, who: str) -> Version | None:
        """The compare-and-set. None where another version came first."""
        newest = stored.newest
        if newest.number != base.number:
            return None
        if fence.epoch < newest.fence.epoch:
            raise Violation(f"{who} of epoch {fence.epoch} wrote {stored.kind} after epoch {newest.fence.epoch}")
        version = Version(newest.number + 1, rows, fence)
        stored.versions.append(version)
        self.world.note("landed", stored.kind, version.number, fence.epoch, fence.commit_sequence, who)
        self.on_landed(stored, newest)
        return version


class SimulatedTable(FencedTable):
    """A FencedTable whose Lance is `Storage`. What is not about Lance is the real class's."""

    storage: Storage  # set for each simulation

    def __init__(self, stored: Stored, uri: str) -> None:
        self.kind, self.uri, self.facts = stored.kind, uri, stored.facts
        self.options: dict[str, str] = {}
        self.stored, self.held = stored, stored.newest
        self.fence = self.held.fence
        self.dataset: Any = SimpleNamespace(version=self.held.number)
        self.process = here()
        self.has_broken_key_index = False

    @classmethod
    def open(cls, kind: TableKind, uri: str, options: dict[str, str]) -> FencedTable | None:
        here().check()
        stored = cls.storage.tables.get(uri)
        return None if stored is None else cls(stored, uri)

    @classmethod
    def create(cls, kind: TableKind, uri: str, options: dict[str, str], facts: CollectionFacts) -> FencedTable:
        here().check()
        fence = Fence(0, 0, None, facts.model, facts.width, facts.layout)
        cls.storage.tables.setdefault(uri, Stored(kind, facts, [Version(1, {}, fence)]))
        return cls(cls.storage.tables[uri], uri)

    def _pass(self, doing: str) -> None:
        """Time passes, and whatever may happen to a process or a store."""
        world = self.storage.world
        self.process.check()
        if world.dice.hit("table_slow"):
            world.sleep(world.dice.between(0.05, 3.0))
        elif world.dice.rng.random() < 0.3:
            world.sleep(world.dice.between(0.001, 0.03))
        if world.dice.hit("writer_killed_at_a_step"):
            self.process.kill(f"{doing} {self.kind}")
        if world.dice.hit("writer_frozen_at_a_step"):
            self.process.frozen_until = world.now() + world.dice.between(1.0, 25.0)
            world.note("frozen", self.process, doing, self.kind)
            world.sleep(0.001)
        self.process.check()

    def refresh(self) -> None:
        self._pass("opening")
        if self.storage.world.dice.hit("table_read_failed"):
            raise TransientError(f"opening {self.uri}: simulated")
        self.held = self.stored.newest
        self.dataset = SimpleNamespace(version=self.held.number)
        self.fence = Fence.from_json(self.held.fence.to_json())

    def rows(self, columns: Sequence[str], predicate_: str) -> list[Row]:
        self.process.check()
        if self.storage.world.dice.hit("table_read_failed"):
            raise TransientError(f"reading {self.uri}: simulated")
        wanted = predicate(predicate_)
        return [{name: row.get(name) for name in columns} for row in self.held.rows.values() if wanted(row)]

    def count(self, predicate_: str | None = None) -> int:
        if predicate_ is None:
            return len(self.held.rows) + 1  # the fence row
        wanted = predicate(predicate_)
        return sum(map(wanted, self.held.rows.values()))

    def commit(self, rows: Sequence[Row], fence: Fence, delete: str | None = None) -> None:
        world = self.storage.world
        self._pass("before a commit of")
        key = KEYS[self.kind]
        new = dict(self.held.rows)
        if delete is not None:
            gone, kept = predicate(delete), {row[key] for row in rows}
            new = {
                name: row for name, row in new.items() if name in kept or not (gone(row) and row.get("fence") is None)
            }
        for row in rows:
            if row[key] == FENCE_ID:
                raise Violation("a document took the fence's place")
            new[row[key]] = row
        stored_fence = Fence.from_json(_fence_row(self.kind, fence)["fence"])
        who, base = str(self.process), self.held
        if world.dice.hit("table_refused"):
            raise CommitRefused("simulated: others changed the table")
        if world.dice.hit("table_unknown_lost"):
            raise TransientError("simulated: no answer, nothing landed")
        if world.dice.hit("table_lands_late"):
            # On its way; it arrives whatever becomes of the process.
            world.loop.call_later(
                world.dice.between(0.01, 20.0), self.storage.land, self.stored, base, new, stored_fence, who + " late"
            )
            raise TransientError("simulated: no answer yet")
        landed = self.storage.land(self.stored, base, new, stored_fence, who)
        if landed is None:
            raise CommitRefused(f"{self.uri} moved past version {base.number}")
        if world.dice.hit("table_unknown_landed"):
            raise TransientError("simulated: landed, but no answer")
        self._pass("after a commit of")
        self.held, self.fence = landed, fence
        self.dataset = SimpleNamespace(version=landed.number)

    def undo(self, sequence: int, fence: Fence) -> None:
        world = self.storage.world
        earlier = next(
            (
                version
                for version in reversed(self.stored.versions)
                if version.number < self.held.number and version.fence.commit_sequence <= sequence
            ),
            None,
        )
        if earlier is None:
            raise PermanentError(f"{self.uri} has no whole version")
        world.dice.happened["half_batch_undone"] += 1
        key = KEYS[self.kind]
        rows = [row for name, row in earlier.rows.items() if self.held.rows.get(name) is not row]
        strangers = self.held.rows.keys() - earlier.rows.keys()
        self.commit(rows, fence, in_list(key, sorted(strangers)) if strangers else None)

    def touched_by_another(self) -> None:
        """A compaction or an index build: a new version with the same rows."""
        newest = self.stored.newest
        self.storage.land(self.stored, newest, newest.rows, newest.fence, "upkeep")


class SimulatedMaintenance:
    """Upkeep as a writer sees it: now and then a table has a new version, made past its fence."""

    def __init__(self, tables: dict[TableKind, SimulatedTable], settings: Any, *, keeps_states: bool = True) -> None:
        self._tables = tables
        self.unindexed_rows = 0
        self.last = "none yet"
        self.is_pending = False
        self.is_building = False

    def asked(self) -> None:
        pass

    def close(self) -> None:
        pass

    def committed(self, chunks: int) -> None:
        self.unindexed_rows += chunks

    def reopened(self) -> None:
        self.is_pending = True

    def step(self, epoch: int, now: datetime) -> str | None:
        world = SimulatedTable.storage.world
        self.is_pending = False
        if not world.dice.hit("upkeep"):
            return None
        table: SimulatedTable = world.dice.rng.choice(list(self._tables.values()))
        table.settle(epoch)
        table._pass("compacting")
        table.touched_by_another()
        table.settle(epoch)
        self.last = f"compacted {table.kind}"
        return self.last


class NothingExpires:
    """Retention reads with Lance, and its limits are in days: a run's tables are younger."""

    @classmethod
    def of(cls, _: Any) -> NothingExpires:
        return cls()

    def due(self, *_: Any) -> None:
        return None
