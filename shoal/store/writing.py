"""The table writer: batches of documents and commands in, durable rows and acks out.

One batch is: chunks, then fixes and spend, then metadata, then jobs; each a transaction with the fence. A document is
visible when its metadata row is, so a reader never sees half of one; `apply` returns after the last of them.
A kill between them leaves chunks ahead of metadata, which the commit sequences in the fences tell; whoever
opens the tables next rolls the chunks back to the last whole batch, and the log delivers the rest again.

The fence refuses a second writer: each takes an epoch above every earlier one, and every commit is a
compare-and-set on a version whose epoch was checked (G3). A writer that is refused looks again: a higher epoch
ends it (FencedError), its own epoch makes it plan anew. After an error nothing held is trusted: the next call
first fences the metadata, so that a commit still on its way can't land later, and then looks what is there.

It keeps no document between calls. Synchronous, for one thread; `statistics()` may be called from any.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from shoal.errors import BadDocument, ConfigurationError, FencedError, TransientError
from shoal.faults import reach
from shoal.records import SCRAPER_COLLECTION, Ack, Deletion, EmbeddedCommand, Outcome, Progress, Writable
from shoal.settings import Settings
from shoal.store.commands import CommandPlan, plan_commands
from shoal.store.fence import Fence
from shoal.store.generations import ACTIVE, Role, active
from shoal.store.lookups import stored_commands, stored_documents, stored_spend
from shoal.store.maintenance import Maintenance
from shoal.store.migrations import check_ways, migrate
from shoal.store.mirroring import KEYED, Page
from shoal.store.planning import TEXT_DROPPED, CommitPlan, plan
from shoal.store.repairing import RepairPlan, Rewrite, is_repair, read_repair, wanted
from shoal.store.retention import LOOK_EVERY, Expired, Retention
from shoal.store.rows import Row
from shoal.store.schemas import (
    FIXES_TABLE,
    IS_CURRENT,
    JOBS_TABLE,
    KEYS,
    METADATA_COLUMNS,
    METADATA_KEY,
    SPEND_TABLE,
    CollectionFacts,
    TableKind,
    metadata_table,
    table_uri,
    vectors_table,
)
from shoal.store.tables import CommitRefused, FencedTable, in_list

ATTEMPTS_MAX = 5
"""Plans of one batch before the caller is told to come back: index builds and compactions elsewhere refuse a
commit now and then, not five in a row."""
PATIENCE = {"client_max_retries": "3", "retry_timeout": "30s"}
"""Of Lance with S3. Its own (10 and 180 s) hold the writer's thread for an hour when the network goes silent, each
request of a commit for three minutes; whoever called us tries again anyway, and says meanwhile why it waits."""
UPKEEP_RETRY = timedelta(seconds=60)
"""After a step of upkeep failed. The tables are opened anew for the next: that is a commit to each."""
_KINDS: tuple[TableKind, ...] = ("metadata", "vectors", "fixes", "jobs", "spend")


def storage_options(settings: Settings) -> dict[str, str]:
    """What Lance needs to reach the tables: nothing on disk; for s3:// the endpoint, and the AWS_ variables."""
    if not settings.tables_uri.startswith("s3://"):
        return {}
    options = dict(PATIENCE)
    options |= {
        name: value
        for name, value in {
            "aws_access_key_id": os.environ.get("AWS_ACCESS_KEY_ID"),
            "aws_secret_access_key": os.environ.get("AWS_SECRET_ACCESS_KEY"),
            "aws_session_token": os.environ.get("AWS_SESSION_TOKEN"),
            "aws_region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        }.items()
        if value
    }
    if settings.s3_endpoint_url:
        options["aws_endpoint"] = settings.s3_endpoint_url
        options.setdefault("aws_region", "us-east-1")
        if settings.s3_endpoint_url.startswith("http://"):
            options["allow_http"] = "true"
    return options


def collection_model(uri: str, options: dict[str, str], collection: str = SCRAPER_COLLECTION) -> tuple[str, int] | None:
    """The model and width of a collection that exists, in the generation in use, else None."""
    used = active(uri, options, collection)
    return None if used is None else (used.facts.model, used.facts.width)


@dataclass(frozen=True, slots=True)
class TablesStatistics:
    """The writer's own figures. `documents` and `chunks` are of the tables, `commits` since it was opened;
    `unindexed_rows`: chunks that the full-text index doesn't hold yet (a search scans them)."""

    epoch: int
    commit_sequence: int
    commits: int
    last_commit_at: datetime | None
    documents: int
    chunks: int
    unindexed_rows: int
    maintenance: str


@dataclass(slots=True)
class _Planned:
    """A whole batch, planned: what goes into each table, and the acks in the batch's order."""

    documents: CommitPlan = field(default_factory=CommitPlan)
    commands: CommandPlan = field(default_factory=CommandPlan)
    repair: RepairPlan = field(default_factory=RepairPlan)
    acks: list[Ack] = field(default_factory=list)


class TableWriter:
    """The only writer of a collection's tables, for as long as nobody opens them after it."""

    def __init__(
        self,
        tables: dict[TableKind, FencedTable],
        facts: CollectionFacts,
        collection: str,
        settings: Settings,
        role: Role = ACTIVE,
    ) -> None:
        """Use `open`."""
        self._role = role
        self._metadata, self._vectors = tables["metadata"], tables["vectors"]
        self._fixes, self._jobs, self._spend = tables["fixes"], tables["jobs"], tables["spend"]
        self._tables = tables
        self._facts = facts
        self._collection = collection
        self._epoch = 0  # `open` takes one
        self._sound = False  # whether the held versions may be staged on
        self._commits = 0
        self._documents = 0
        self._maintenance = Maintenance(tables, settings, keeps_states=not role.is_copy)
        self._retention = Retention.of(settings)
        self._retained_at: datetime | None = None
        self._failed_at: datetime | None = None  # the last step of upkeep that did
        self._statistics: TablesStatistics | None = None

    @classmethod
    def open(
        cls,
        uri: str,
        storage_options: dict[str, str],
        model: str,
        width: int,
        *,
        settings: Settings,
        now: datetime,
        collection: str = SCRAPER_COLLECTION,
        role: Role = ACTIVE,
    ) -> TableWriter:
        """Create what is missing, take the next epoch, and mend what a killed writer left. `role`: which generation of
        the tables these are (`generations.active` says it); only the one that is in use may be written to but by its
        copying.

        Raises ConfigurationError where the collection has another model or width or the place can't be written,
        FencedError where a later writer came in the meantime, MovedError where another generation has come into use,
        TransientError where it may work later.
        """
        facts = CollectionFacts(model, width, dtype=settings.vector_dtype)
        names: dict[TableKind, str] = {
            "metadata": metadata_table(collection),
            "vectors": vectors_table(collection),
            "fixes": FIXES_TABLE,
            "jobs": JOBS_TABLE,
            "spend": SPEND_TABLE,
        }
        places = {kind: table_uri(uri, name) for kind, name in names.items()}
        found = {kind: FencedTable.open(kind, place, storage_options) for kind, place in places.items()}
        for table in found.values():  # before anything is created
            _refuse_other(table, facts)
        if stored := next((table for table in found.values() if table is not None), None):
            facts = replace(facts, dtype=stored.facts.dtype)  # the setting is for new collections only
        check_ways(found.values())
        for table in found.values():
            if table is not None:
                table.drop_broken_key_index()
        tables: dict[TableKind, FencedTable] = {}
        for kind, table in found.items():
            tables[kind] = table or FencedTable.create(kind, places[kind], storage_options, facts)
            _refuse_other(tables[kind], facts)  # somebody else may have created it
        writer = cls(tables, facts, collection, settings, role)
        for _ in range(ATTEMPTS_MAX):
            try:
                writer._take(now, is_opening=True)
                migrate(tables, writer._epoch)
                while writer._maintenance.is_pending:  # the indexes that readers can't do without
                    writer.maintain(now)
                return writer
            except (CommitRefused, FencedError):  # another was opened at the same time: the last one stays
                continue
        raise TransientError(f"the tables at {uri} are being opened by others at the same time: try again")

    def apply(self, batch: Sequence[Writable], progress: Sequence[Progress], now: datetime) -> list[Ack]:
        """Write a batch; one Ack per writable, in order, when all of it is durable.

        Raises FencedError when another writer has the tables, TransientError when the storage fails (the batch
        may have landed; applying it again is safe), ConfigurationError where a vector is of another model or
        the storage refuses us, and ValueError or TypeError where a row can't be stored: halve the batch.
        """
        assert not self._role.is_copy, "a copy takes what `mirror` brings, and nothing else"
        if len(batch) > 1 and any(map(is_repair, batch)):
            return [ack for run in _runs(batch) for ack in self.apply(run, progress, now)]
        for item in batch:
            if not isinstance(item, Deletion) and item.model is not None and item.model != self._facts.model:
                raise ConfigurationError(
                    f"collection {self._collection!r} is embedded with {self._facts.model}, not {item.model}"
                )
        for _ in range(ATTEMPTS_MAX):
            if not self._sound:
                self._take(now)
            sequence = 1 + max(table.fence.commit_sequence for table in self._tables.values())
            planned = self._plan(batch, sequence, now)
            last = self._jobs if planned.commands.jobs else self._metadata
            fence = self._metadata.fence.advanced(token=uuid.uuid4().hex, now=now, sequence=sequence, progress=progress)
            try:
                self._sound = False
                self._write(planned, fence)
                self._documents += planned.documents.documents
            except (CommitRefused, TransientError) as error:
                # _take counts the documents anew. It reads every fence before it writes its own: so it tells whether
                # this commit landed.
                if self._take(now).get(last.kind) != fence.token:
                    if isinstance(error, CommitRefused):
                        continue
                    raise
            self._sound = True
            self._commits += 1
            self._maintenance.committed(len(planned.documents.chunks))
            if planned.commands.jobs:
                self._maintenance.asked()
            if planned.repair.tables:
                self._documents = self._metadata.count(IS_CURRENT)
            for kind, name in planned.repair.indexes:
                self._maintenance.rebuild(kind, name)
            self._publish()
            return [replace(ack, commit_sequence=sequence) for ack in planned.acks]
        raise TransientError(f"{ATTEMPTS_MAX} commits in a row were refused by others' changes: try again")

    def mirror(self, page: Page, source: Fence, now: datetime) -> None:
        """Make what `page` names the same as it brings, in the order of every batch: all rows of its documents, and
        the fixes and jobs by key. `source`: the fence of the generation it was read from; its progress and commit
        sequence are taken over, so that they go on from there where this one comes into use.

        Safe to repeat. Raises as `apply` does; the next call looks first what landed.
        """
        assert self._role.is_copy, "only a copy is a copy of something"
        if not self._sound:
            self._take(now)
        sequence = 1 + max(source.commit_sequence, *(table.fence.commit_sequence for table in self._tables.values()))
        progress = [Progress(*partition, offset) for partition, offset in source.progress]
        fence = self._metadata.fence.advanced(token=uuid.uuid4().hex, now=now, sequence=sequence, progress=progress)
        self._sound = False
        if page.documents:
            reach("mirror.before_chunks")
            self._vectors.commit(page.chunks, fence, in_list("metadata_id", page.documents))
            reach("mirror.after_chunks")
        for kind in KEYED:
            if kind != "jobs":
                self._mirror_keyed(kind, page, fence)
        removed = in_list("id", page.documents) if page.documents else None
        self._metadata.commit(page.metadata, fence, removed, hidden=True)
        reach("mirror.after_metadata")
        self._mirror_keyed("jobs", page, fence)
        self._documents = self._metadata.count(IS_CURRENT)
        self._sound = True
        self._commits += 1
        self._maintenance.committed(len(page.chunks))
        self._publish()

    def _mirror_keyed(self, kind: TableKind, page: Page, fence: Fence) -> None:
        rows, gone = page.keyed.get(kind, {}), page.gone.get(kind, ())
        if rows or gone:
            self._tables[kind].commit(list(rows.values()), fence, in_list(KEYS[kind], gone) if gone else None)

    @property
    def facts(self) -> CollectionFacts:
        """What the collection's tables of this generation are."""
        return self._facts

    @property
    def tables(self) -> Mapping[TableKind, FencedTable]:
        """The tables at the versions that are held; to be read only."""
        return self._tables

    def resolve_paths(self, s3_paths: Sequence[str]) -> dict[str, str]:
        """s3_path -> document id, of current rows."""
        found = self._metadata.rows_of(("s3_path", "id"), "s3_path", s3_paths, IS_CURRENT)
        return {row["s3_path"]: row["id"] for row in found}

    def maintain(self, now: datetime) -> str | None:
        """At most one bounded step of upkeep; what it did, or None where nothing is due. Raises FencedError,
        TransientError; a failed step comes again later."""
        if not self._sound and self._failed_at is not None and now - self._failed_at < UPKEEP_RETRY:
            return None  # a batch that comes looks what is there first
        try:
            if not self._sound:  # perhaps no batch comes, and what failed is owed still
                self._take(now)
                return f"opened the tables anew after a failure at {now:%Y-%m-%dT%H:%M:%SZ}"
            self._sound = False  # a step that fails may leave a handle past a version whose epoch nobody checked
            done = self._maintenance.step(self._epoch, now) or self._expire(now)
        except Exception:
            self._failed_at = now
            raise
        self._sound = True
        if done is not None:
            self._publish()
        return done

    def close(self) -> None:
        """Nothing more is written or built by this writer: its tables are another's, or are opened anew."""
        self._maintenance.close()

    @property
    def is_building(self) -> bool:
        """Whether an index is built beside this writer: `maintain` is worth a call each second."""
        return self._maintenance.is_building

    def _expire(self, now: datetime) -> str | None:
        """Remove some of what has outlived its time, in a commit of its own like any other."""
        if self._role.is_copy:
            return None  # what it is a copy of decides
        if self._retained_at is not None and now - self._retained_at < LOOK_EVERY:
            return None
        expired = self._retention.due(self._metadata, now)
        if expired is None:
            self._retained_at = now
            return None
        self._remove(expired, now)
        return f"removed {len(expired.revisions)} expired rows at {now:%Y-%m-%dT%H:%M:%SZ}"

    def _remove(self, expired: Expired, now: datetime) -> None:
        sequence = 1 + max(table.fence.commit_sequence for table in self._tables.values())
        fence = self._metadata.fence.advanced(token=uuid.uuid4().hex, now=now, sequence=sequence)
        if expired.documents:
            self._vectors.commit((), fence, in_list("metadata_id", expired.documents))
            reach("writer.expiring")
        self._metadata.commit((), fence, in_list(METADATA_KEY, expired.revisions), hidden=True)
        self._documents -= len(expired.documents)
        self._commits += 1
        self._maintenance.committed(0)

    def statistics(self) -> TablesStatistics:
        """As of the last commit or upkeep; costs nothing."""
        assert self._statistics is not None, "open() publishes the first"
        return self._statistics

    def _take(self, now: datetime, *, is_opening: bool = False) -> dict[TableKind, str]:
        """Make every table ours at its latest version, and the tables agree. Returns the fences' tokens as
        they were found. `is_opening`: with an epoch above all that are found there now. So no two writers have one:
        the metadata, which come first, refuse whoever chose by the same version.

        Metadata comes first: once its fence is ours, no other writer can finish a batch, and a commit of our
        own whose answer was lost has landed or never will. So whether the chunks are ahead of it is settled,
        if they don't change before they are ours too, which their own commit refuses. Raises FencedError,
        MovedError, CommitRefused, TransientError.
        """
        self._sound = False
        for table in self._tables.values():
            table.refresh()
        if is_opening:
            self._epoch = 1 + max(table.fence.epoch for table in self._tables.values())
        for table in self._tables.values():
            table.check_epoch(self._epoch)
        self._role.check(self._metadata, now)
        tokens = {kind: table.fence.token for kind, table in self._tables.items()}
        for kind in _KINDS:
            table = self._tables[kind]
            if kind == "vectors":
                reach("writer.opening")  # some tables ours, some not yet
            mine = replace(table.fence, epoch=self._epoch, token=uuid.uuid4().hex, is_copy=self._role.is_copy)
            if kind == "metadata" and not self._role.is_copy:
                mine = replace(mine, moved_to=0, turn=max(mine.turn, self._role.turn), held_until_ms=0)
            if kind == "vectors":
                whole = self._metadata.fence.commit_sequence
                if table.fence.commit_sequence > whole:
                    table.undo(whole, replace(mine, commit_sequence=whole))
                    continue
            table.commit((), mine)
        self._documents = self._metadata.count(IS_CURRENT)
        self._sound = True
        self._maintenance.reopened()
        self._publish()
        return tokens

    def _write(self, planned: _Planned, fence: Fence) -> None:
        documents, commands = planned.documents, planned.commands
        if planned.repair.tables:
            self._rewrite(planned.repair, commands.jobs, fence)
            return
        if documents.touches_chunks:
            reach("writer.before_chunks")
            other = in_list("metadata_id", documents.replaced) if documents.replaced else None
            self._vectors.commit(documents.chunks, fence, other)
            reach("writer.after_chunks")
        if commands.fixes:
            self._fixes.commit(commands.fixes, fence)
        if commands.spend:
            self._spend.commit(commands.spend, fence)
        removed = in_list(METADATA_KEY, documents.removed) if documents.removed else None
        reach("writer.before_metadata")
        self._metadata.commit([*documents.metadata, *self._restamped(documents, fence)], fence, removed)
        reach("writer.after_metadata")
        if commands.jobs:
            self._jobs.commit(commands.jobs, fence)

    def _rewrite(self, repair: RepairPlan, jobs: list[Row], fence: Fence) -> None:
        """A repair, in the order of every batch; each table by itself is right after it, whatever is cut off."""
        for kind in ("vectors", "fixes"):
            if change := repair.tables.get(kind):
                self._tables[kind].replace(change.keys, change.put, fence)
        reach("writer.repairing")
        change = repair.tables.get("metadata", Rewrite())
        self._metadata.replace(change.keys, change.put, fence)
        ids = {job["command_id"] for job in jobs}
        change = repair.tables.get("jobs", Rewrite())
        put = [row for row in change.put if row["command_id"] not in ids]
        self._jobs.replace([*change.keys, *ids], [*put, *jobs], fence)

    def _restamped(self, documents: CommitPlan, fence: Fence) -> list[Row]:
        """Stored rows whose place in history changes; a row in history keeps no vector."""
        changed = [*documents.superseded, *documents.promoted]
        if not changed:
            return []
        promoted = set(documents.promoted)
        rows = self._metadata.rows_of((METADATA_KEY, *METADATA_COLUMNS), METADATA_KEY, changed)
        for row in rows:
            if row[METADATA_KEY] not in promoted:
                row["superseded_at"] = fence.committed_at
                continue
            row["superseded_at"] = None
            if row["validation_status"] != "error":
                row |= {"validation_status": "error", "error_count": 1, "chunk_count": 0}
                row["warnings"] = [*(row["warnings"] or ()), TEXT_DROPPED]
        return rows

    def _plan(self, batch: Sequence[Writable], sequence: int, now: datetime) -> _Planned:
        documents = [item for item in batch if not isinstance(item, EmbeddedCommand)]
        commands = [item for item in batch if isinstance(item, EmbeddedCommand)]
        planned = _Planned()
        if documents:
            stored = stored_documents(self._metadata, documents)
            planned.documents = plan(documents, stored, self._facts, self._collection, now)
        if commands:
            fixes, done, failed = stored_commands(self._fixes, self._jobs, commands)
            repaired: dict[str, dict[str, Any] | BadDocument] = {}
            if is_repair(commands[0]) and commands[0].command.collection == self._collection:
                try:
                    planned.repair = read_repair(self._tables, wanted(commands[0]), now)
                    repaired[commands[0].command.command_id] = planned.repair.result
                except BadDocument as error:
                    repaired[commands[0].command.command_id] = error
            planned.commands = plan_commands(
                commands, fixes, done, failed, self._facts, self._collection, sequence, now, repaired,
                stored_spend(self._spend, commands),
            )  # fmt: skip
            if planned.commands.acks[0].outcome is not Outcome.INDEXED:  # applied before, or refused
                planned.repair = RepairPlan()
        of_documents, of_commands = iter(planned.documents.acks), iter(planned.commands.acks)
        planned.acks = [next(of_commands if isinstance(item, EmbeddedCommand) else of_documents) for item in batch]
        return planned

    def _publish(self) -> None:
        fence = self._metadata.fence
        self._statistics = TablesStatistics(
            epoch=self._epoch,
            commit_sequence=fence.commit_sequence,
            commits=self._commits,
            last_commit_at=fence.committed_at,
            documents=self._documents,
            chunks=self._vectors.count() - 1,
            unindexed_rows=self._maintenance.unindexed_rows,
            maintenance=self._maintenance.last,
        )


def _runs(batch: Sequence[Writable]) -> list[list[Writable]]:
    """`batch` in its order, each repair by itself: it plans from what is stored, not from what comes with it."""
    runs: list[list[Writable]] = []
    for item in batch:
        if runs and not is_repair(item) and not is_repair(runs[-1][0]):
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


def _refuse_other(table: FencedTable | None, facts: CollectionFacts) -> None:
    if table is not None and (table.facts.model, table.facts.width) != (facts.model, facts.width):
        raise ConfigurationError(
            f"{table.uri} was built with {table.facts.model} (width {table.facts.width}), not {facts.model} (width "
            f"{facts.width}): use that model, or another LANCEDB_PATH"
        )
