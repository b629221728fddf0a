"""Backups: the tables of a collection at one moment, copied whole, and put back into an empty place.

A backup is what a kill between two batches would leave, and a writer goes on from it as from that: all tables at
versions that agree, each one version with its data, deletions and indexes, copied file by file by Lance (`deep_clone`),
so nothing is decoded and no index is built anew. It holds how far the log was read, and so what came later is read
again by whoever starts on it, as far as the log still has it.

The manifest comes last: a place without one holds no backup. A restore brings the metadata last: until then nobody
takes the place for a collection. Neither holds anything against cleanup, so that a killed one leaves nothing pinned;
one that takes longer than `cleanup_age_s` may end with an error that says so. `as_of` begins anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shoal.errors import ConfigurationError, TransientError
from shoal.records import SCRAPER_COLLECTION
from shoal.settings import Settings
from shoal.store.fsck_scan import Held, open_tables
from shoal.store.generations import DIRECTORY as GENERATIONS
from shoal.store.place import at
from shoal.store.schemas import TableKind, table_uri
from shoal.store.snapshots import files_of
from shoal.store.state_files import read_state, write_state
from shoal.store.tables import lance_errors
from shoal.store.writing import storage_options

MANIFEST = "backup.json"
FORMAT = 1
AGREE_S = 60.0
"""How long a moment is waited for at which no batch is half written: a batch's commits take some tens of ms."""
ORDER: tuple[TableKind, ...] = ("vectors", "fixes", "spend", "jobs", "metadata")
"""Metadata last: without it the place is no collection."""
NEEDED: frozenset[TableKind] = frozenset({"metadata", "vectors"})

Say = Callable[[str], None]
Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """Tables that agree. `facts` and `tables` are what the manifest says of them."""

    held: Mapping[TableKind, Held]
    facts: Manifest

    @property
    def size_bytes(self) -> int:
        return sum(int(table["size_bytes"]) for table in self.facts["tables"])


def open_source(settings: Settings, collection: str = SCRAPER_COLLECTION, *, agree_s: float = AGREE_S) -> Source:
    """The tables at `settings.tables_uri`, at one moment. Raises ConfigurationError where there are none,
    TransientError where the moment does not come."""
    opened = open_tables(settings.tables_uri, storage_options(settings), collection, settle_s=agree_s)
    if missing := NEEDED - opened.tables.keys():
        raise ConfigurationError(
            f"no {' and no '.join(sorted(missing))} table at {settings.tables_uri}: is LANCEDB_PATH right?"
        )
    if not opened.agree:
        raise TransientError(
            f"within {agree_s:.0f} s there was no moment without half a batch at {settings.tables_uri}: a writer that "
            "is down leaves one, and mends it when it starts; one that never rests is stopped by `shoal drain`"
        )
    fence = opened.tables["metadata"].fence
    if fence is None:
        raise ConfigurationError(f"the fence of the metadata at {settings.tables_uri} can't be read: see `shoal check`")
    tables = [_told(kind, opened.tables[kind]) for kind in ORDER if kind in opened.tables]
    facts = opened.tables["metadata"].facts
    return Source(
        opened.tables,
        {
            "format": FORMAT, "collection": collection, "model": facts.model, "width": facts.width,
            "layout": facts.layout, "commit_sequence": fence.commit_sequence,
            "committed_at": fence.committed_at.isoformat() if fence.committed_at else None, "tables": tables,
        },
    )  # fmt: skip


def copy(source: Source, settings: Settings, say: Say) -> None:
    """Every table of `source` to `settings.tables_uri`, where none may be. Raises ConfigurationError where there are
    some, TransientError; what was copied until then stays there."""
    options = storage_options(settings)
    check_empty(settings, str(source.facts["collection"]))
    for told in source.facts["tables"]:
        held = source.held[told["kind"]]
        say(f"{told['table']}: {told['rows']} rows, {told['size_bytes'] / 1e6:.1f} MB")
        uri = table_uri(settings.tables_uri, told["table"])
        try:
            with lance_errors(f"copying {held.uri} to {uri}"):
                made = held.dataset.deep_clone(uri, int(held.dataset.version), storage_options=options or None)
                rows = made.count_rows()
        except (TransientError, ValueError) as error:
            raise TransientError(
                f"{error}: what was copied so far is at {settings.tables_uri}; remove it and try again, with a longer "
                "SHOAL_CLEANUP_AGE_S where a file of the source was gone"
            ) from error
        if rows != told["rows"]:
            raise TransientError(f"{uri} has {rows} rows, not {told['rows']}: remove {settings.tables_uri}, try again")


def finish(settings: Settings, facts: Manifest, now: datetime) -> Manifest:
    """The copy at `settings.tables_uri` is a backup from here on; its manifest. Raises TransientError, OSError."""
    if not settings.tables_uri.startswith("s3://"):
        os.sync()  # what is called a backup survives a power cut; files were written by Lance, which does not wait
    manifest = {**facts, "made_at": now.isoformat()}
    write_state(settings, MANIFEST, manifest)
    return manifest


def read_manifest(settings: Settings) -> Manifest:
    """That of the backup at `settings.tables_uri`. Raises ConfigurationError where there is no whole one."""
    found = read_state(settings, MANIFEST)
    if not isinstance(found, dict):
        raise ConfigurationError(
            f"{settings.tables_uri} holds no whole backup: `shoal backup` writes its manifest last"
        )
    if found.get("format") != FORMAT:
        raise ConfigurationError(
            f"the backup at {settings.tables_uri} is of format {found.get('format')}, not {FORMAT}"
        )
    return found


def open_backup(settings: Settings) -> Source:
    """The tables of the backup at `settings.tables_uri`, as its manifest tells of them. Raises ConfigurationError where
    they are not; TransientError."""
    manifest = read_manifest(settings)
    source = open_source(settings, str(manifest["collection"]), agree_s=0.0)
    if source.facts["tables"] != manifest["tables"]:
        raise ConfigurationError(
            f"the tables at {settings.tables_uri} are not those of the backup that was made there: something wrote to "
            "them since; restore another one"
        )
    return Source(source.held, manifest)


def check_empty(settings: Settings, collection: str = SCRAPER_COLLECTION) -> None:
    """Raises ConfigurationError where there are tables at `settings.tables_uri`."""
    opened = open_tables(settings.tables_uri, storage_options(settings), collection, settle_s=0.0)
    if opened.tables:
        raise ConfigurationError(
            f"there are tables at {settings.tables_uri} already: choose an empty place (nothing is ever overwritten)"
        )


def target(settings: Settings, uri: str) -> Settings:
    """The settings of a place to copy to or from. Raises ConfigurationError where that is the tables' own."""
    place, own = uri.rstrip("/"), settings.tables_uri.rstrip("/")
    if "://" not in place:
        place, own = os.path.realpath(place), own if "://" in own else os.path.realpath(own)
    if place == own or place.startswith((f"{own}/{GENERATIONS}", f"{own}/_shoal")):
        raise ConfigurationError(f"{uri} is where the tables themselves are: choose a place beside them")
    return at(settings, place)


def _told(kind: TableKind, held: Held) -> Manifest:
    with lance_errors(f"looking at {held.uri}"):
        rows = int(held.dataset.count_rows())
    size = sum(files_of(held.dataset, held.uri).values())
    return {
        "kind": kind, "table": held.name, "version": int(held.dataset.version), "rows": rows, "size_bytes": size,
    }  # fmt: skip
