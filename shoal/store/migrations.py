"""Layouts of the tables, and the way from an older one to ours.

The layout stands in each table's schema metadata and in its fence. Only the writer migrates, once every table is
its own (the epoch); a step changes the schema, then the fence says the new layout, then the schema metadata does. So
whoever is killed in between leaves a table that still counts as of the older layout, and the next writer does the step
again: steps are idempotent. Readers go on meanwhile (`Lacking`): a column that an older layout lacks is null to them.

Layout 1 is the first that was released. Tables of each released layout are kept in tests/fixtures/layouts.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from shoal.errors import ConfigurationError
from shoal.faults import reach
from shoal.store.rows import Row
from shoal.store.schemas import LAYOUT_VERSION, TableKind, collection_facts, table_schema
from shoal.store.tables import FencedTable, lance_errors


@dataclass(frozen=True, slots=True)
class Migration:
    """One step. `change` brings one table from the one layout to the other; it may find it half or wholly done."""

    from_layout: int
    to_layout: int
    change: Callable[[FencedTable], None]


MIGRATIONS: tuple[Migration, ...] = ()
"""In order; each begins where one before it ended."""


def add_missing_columns(table: FencedTable) -> None:
    """A step that only adds: every column of our layout that the table lacks, null in all rows (no data is written)."""
    missing = lacking(table.kind, table.schema)
    if missing:
        with lance_errors(f"adding columns to {table.uri}"):
            table.dataset.add_columns(pa.schema([pa.field(name, kind) for name, kind in missing.items()]))


def check_ways(tables: Iterable[FencedTable | None]) -> None:
    """Raises ConfigurationError where a table has a layout that no steps lead from. Before anything is touched."""
    for table in tables:
        if table is not None:
            _way(table)


def migrate(tables: Mapping[TableKind, FencedTable], epoch: int) -> list[str]:
    """Bring every table to our layout; what was done. The caller holds `epoch` in all of them.

    Raises FencedError, TransientError (the next call goes on), ConfigurationError.
    """
    done = []
    for table in tables.values():
        for step in _way(table):
            table.settle(epoch)
            step.change(table)
            reach("writer.migrating")
            table.settle(epoch)
            table.commit((), replace(table.fence, layout=step.to_layout, token=uuid.uuid4().hex))
            reach("writer.migrated")
            with lance_errors(f"changing the schema of {table.uri}"):
                table.dataset.update_schema_metadata({"shoal.layout": str(step.to_layout)})
            table.settle(epoch)
            done.append(f"{table.kind} from layout {step.from_layout} to {step.to_layout}")
    return done


def _way(table: FencedTable) -> list[Migration]:
    at, way = table.facts.layout, []
    while at < LAYOUT_VERSION:
        step = next((each for each in MIGRATIONS if each.from_layout == at), None)
        if step is None:
            raise ConfigurationError(
                f"{table.uri} has layout {table.facts.layout}, and this Shoal knows no way from {at} to "
                f"{LAYOUT_VERSION}: run the Shoal that wrote it, or index into another LANCEDB_PATH"
            )
        way.append(step)
        at = step.to_layout
    return way


def lacking(kind: TableKind, schema: pa.Schema) -> dict[str, pa.DataType]:
    """Column -> type of those that our layout has and `schema` does not."""
    names = set(schema.names)
    return {field.name: field.type for field in table_schema(kind, collection_facts(schema)) if field.name not in names}


class Lacking:
    """What the tables that a reader holds lack of our layout."""

    def __init__(self) -> None:
        self._of: dict[TableKind, dict[str, pa.DataType]] = {}

    def look(self, kind: TableKind, schema: pa.Schema) -> None:
        """`schema`: of the version that is held now."""
        if collection_facts(schema).layout < LAYOUT_VERSION:
            self._of[kind] = lacking(kind, schema)
        else:
            self._of.pop(kind, None)

    def concerns(self, kind: TableKind) -> bool:
        """Whether the table was of an older layout when it was last looked at."""
        return kind in self._of

    def there(self, kind: TableKind, columns: Sequence[str]) -> list[str]:
        """Those of `columns` that can be asked for."""
        missing = self._of.get(kind, {})
        return [name for name in columns if name not in missing]

    def filled(self, kind: TableKind, rows: list[Row], columns: Sequence[str]) -> list[Row]:
        """`rows` with nulls in those of `columns` that can't."""
        nulls: dict[str, Any] = {name: None for name in columns if name in self._of.get(kind, {})}
        return [{**nulls, **row} for row in rows] if nulls else rows

    def filled_batch(self, kind: TableKind, batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
        """The same for a batch."""
        missing = self._of.get(kind, {})
        for name in columns:
            if name in missing:
                batch = batch.append_column(name, pa.nulls(batch.num_rows, missing[name]))
        return batch
