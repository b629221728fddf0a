"""Removes a generation of a collection's tables that is not in use: one that was left, or was only being built.

First the way to it is closed: no fence leads there any more. Then the tables go, and what lies beside them. Whoever
is killed in between does the rest when asked again. The first generation's metadata table stays, without its rows: it
tells where the collection is (generations.py).
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import lancedb

from shoal.errors import ConfigurationError, TransientError
from shoal.faults import reach
from shoal.records import FENCE_ID, SCRAPER_COLLECTION
from shoal.settings import Settings
from shoal.store.generations import Generation, generation_uri
from shoal.store.schemas import (
    FIXES_TABLE,
    JOBS_TABLE,
    METADATA_KEY,
    SPEND_TABLE,
    literal,
    metadata_table,
    table_uri,
    vectors_table,
)
from shoal.store.state_files import list_states, remove_state
from shoal.store.tables import FencedTable, lance_errors


def drop(settings: Settings, options: dict[str, str], one: Generation, used: Generation) -> None:
    """Remove `one`; the collection stays in `used`. Raises CommitRefused, TransientError: ask again."""
    if one.number == used.number:
        raise ConfigurationError(f"generation {one.number} is in use")
    root = settings.tables_uri
    signpost = _metadata(root, options)
    if used.number == 1:  # its writer forgets where it had moved when it next starts; this must not wait for that
        _point(signpost, 0, used.turn)
    elif signpost.fence.moved_to != used.number:
        _point(signpost, used.number, used.turn)
    reach("migration.dropping")
    # The chunks first: without them it is none.
    names = [vectors_table(SCRAPER_COLLECTION), FIXES_TABLE, SPEND_TABLE, JOBS_TABLE]
    if one.number == 1:
        _empty(signpost)
    else:
        names.append(metadata_table(SCRAPER_COLLECTION))
    with lance_errors(f"removing the tables at {one.uri}"):
        connection = lancedb.connect(one.uri, storage_options=options or None)
        for name in names:
            with _absent_is_fine():
                connection.drop_table(name)
    if one.number == 1:  # what lies beside them is the service's own
        return
    beside = settings.model_copy(update={"lancedb_path": one.uri})
    for name in list_states(beside, ""):
        remove_state(beside, name)
    if "://" not in one.uri:
        shutil.rmtree(Path(one.uri), ignore_errors=True)


def _metadata(root: str, options: dict[str, str]) -> FencedTable:
    table = FencedTable.open(
        "metadata", table_uri(generation_uri(root, 1), metadata_table(SCRAPER_COLLECTION)), options
    )
    if table is None:
        raise TransientError(f"there are no tables at {root}")
    return table


def _point(signpost: FencedTable, number: int, turn: int) -> None:
    fence = signpost.fence
    if (fence.moved_to, fence.turn) != (number, turn):
        signpost.commit((), replace(fence, moved_to=number, turn=turn, token=uuid.uuid4().hex))


def _empty(table: FencedTable) -> None:
    everything = f"{METADATA_KEY} <> {literal(FENCE_ID)}"
    if table.count() > 1:
        table.commit((), replace(table.fence, token=uuid.uuid4().hex), everything, hidden=True)
    with lance_errors(f"cleaning {table.uri}"):  # nobody reads it but for the fence
        for name in table.dataset.tags.list():
            table.dataset.tags.delete(name)
        table.dataset.cleanup_old_versions(timedelta(0), error_if_tagged_old_versions=False)


@contextlib.contextmanager
def _absent_is_fine() -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        if "not found" not in str(error).lower() and "does not exist" not in str(error).lower():
            raise
