"""What the check reads of the tables: opened as they lie, and read fragment by fragment.

It trusts nothing that may itself be damaged: no index answers for it, a fence row that is gone or there twice is
something to tell, and a fragment whose file is gone or damaged is told and passed over. Only what concerns the
place as a whole ends it: TransientError where the storage doesn't answer, ConfigurationError where the tables are
not ours, of a newer layout, or not readable for us. Reads only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lance
import pyarrow as pa

from shoal.errors import ConfigurationError, PermanentError, TransientError
from shoal.records import FENCE_ID
from shoal.store.audit_rows import SETTLE_S
from shoal.store.fence import Fence
from shoal.store.orphans import sizes
from shoal.store.schemas import (
    FENCE_PREDICATES,
    FIXES_TABLE,
    JOBS_TABLE,
    KEYS,
    SPEND_TABLE,
    CollectionFacts,
    TableKind,
    collection_facts,
    metadata_table,
    table_uri,
    vectors_table,
)
from shoal.store.tables import ROLLBACK_VERSIONS_MAX, lance_errors

BATCH_BYTES = 32 * 1024 * 1024
"""What a batch may hold at most, by rule of thumb; a scan has a few of them in memory."""
_ROW_TEXT_BYTES = 4 * 1024
_POLL_S = 0.05


@dataclass(slots=True)
class Held:
    """One table at one version. `fences`: the texts of its fence rows; there should be one."""

    kind: TableKind
    uri: str
    options: dict[str, str]
    dataset: Any
    facts: CollectionFacts
    fences: list[str]

    @property
    def name(self) -> str:
        return self.uri.rpartition("/")[2].removesuffix(".lance")

    @property
    def fence(self) -> Fence | None:
        """The fence, where there is exactly one that can be read."""
        if len(self.fences) != 1:
            return None
        try:
            return Fence.from_json(self.fences[0])
        except PermanentError:
            return None

    @property
    def batch_rows(self) -> int:
        return max(64, min(8_192, BATCH_BYTES // (4 * self.facts.width + _ROW_TEXT_BYTES)))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A fragment that can't be read. `rows`: how many it holds."""

    fragment: int
    rows: int
    detail: str


@dataclass(frozen=True, slots=True)
class Opened:
    """The tables that there are. `is_torn`: the chunk, fix or spend table is ahead of the metadata; then the chunk
    table is held at its last whole version, or is missing here where there is none any more. `agree`: they are at
    one moment of one writer, jobs too."""

    tables: dict[TableKind, Held]
    missing: tuple[str, ...]
    is_torn: bool
    agree: bool


def open_tables(uri: str, options: dict[str, str], collection: str, *, settle_s: float = SETTLE_S) -> Opened:
    """The tables at versions that agree; a writer at work is waited for a little. All may be missing."""
    names: dict[TableKind, str] = {
        "metadata": metadata_table(collection), "vectors": vectors_table(collection), "fixes": FIXES_TABLE,
        "jobs": JOBS_TABLE, "spend": SPEND_TABLE,
    }  # fmt: skip
    deadline = time.monotonic() + settle_s
    while True:
        # Metadata first, as every reader: so nothing of one batch is seen there and missing in the chunks.
        held = {kind: _open(kind, table_uri(uri, name), options) for kind, name in names.items()}
        tables = {kind: table for kind, table in held.items() if table is not None}
        agree = _agree(tables)
        if agree or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    is_torn = any(_is_ahead(tables, kind) for kind in ("vectors", "fixes", "spend"))
    if _is_ahead(tables, "vectors"):
        metadata = tables["metadata"].fence
        assert metadata is not None
        whole = _whole(tables.pop("vectors"), metadata.commit_sequence)
        if whole is not None:
            tables["vectors"] = whole
    return Opened(tables, tuple(name for kind, name in names.items() if held[kind] is None), is_torn, agree)


def _is_ahead(tables: dict[TableKind, Held], kind: TableKind) -> bool:
    one, other = tables.get("metadata"), tables.get(kind)
    if one is None or other is None or one.fence is None or other.fence is None:
        return False
    return other.fence.commit_sequence > one.fence.commit_sequence


def _agree(tables: dict[TableKind, Held]) -> bool:
    fences = [table.fence for table in tables.values()]
    whole = [fence for fence in fences if fence is not None]
    if len(whole) < len(fences) or not any(fence.epoch for fence in whole):
        return True  # waiting mends neither
    return len({fence.epoch for fence in whole}) == 1 and not any(
        _is_ahead(tables, kind) for kind in ("vectors", "fixes", "jobs", "spend")
    )


def _open(kind: TableKind, uri: str, options: dict[str, str], version: int | None = None) -> Held | None:
    try:
        with lance_errors(f"opening {uri}"):
            dataset = lance.dataset(uri, version=version, storage_options=options or None)
    except ValueError as error:
        if "not found" in str(error):
            return None
        raise PermanentError(f"opening {uri}: {str(error)[:300]}") from error
    try:
        facts = collection_facts(dataset.schema)
    except ConfigurationError as error:
        raise ConfigurationError(f"{uri}: {error}") from None
    held = Held(kind, uri, options, dataset, facts, [])
    held.fences = _fences(held)
    return held


def _fences(held: Held) -> list[str]:
    columns = [KEYS[held.kind], "fence"]
    try:
        with lance_errors(f"reading the fence of {held.uri}"):
            found = held.dataset.to_table(columns=columns, filter=FENCE_PREDICATES[held.kind]).to_pylist()
        if len(found) == 1:
            return [str(found[0]["fence"])]
    except (TransientError, ValueError):
        pass  # an index without files, a damaged fragment: without any index, then
    fences = []
    for batch in batches(held, columns, lambda _: None):
        for key, fence in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
            if key == FENCE_ID:
                fences.append(str(fence))
    return fences


def _whole(table: Held, sequence: int) -> Held | None:
    """The newest version whose fence is not past `sequence`."""
    newest = int(table.dataset.version)
    for version in range(newest - 1, max(0, newest - ROLLBACK_VERSIONS_MAX), -1):
        earlier = _open(table.kind, table.uri, table.options, version)
        if earlier is not None and earlier.fence is not None and earlier.fence.commit_sequence <= sequence:
            return earlier
    return None


def batches(
    held: Held, columns: Sequence[str] | None, damaged: Callable[[Unreadable], None]
) -> Iterator[pa.RecordBatch]:
    """The rows of all fragments that can be read, those that can't told to `damaged`. `columns` None: all."""
    for fragment in held.dataset.get_fragments():
        try:
            with lance_errors(f"reading fragment {fragment.fragment_id} of {held.uri}"):
                scanner = held.dataset.scanner(
                    columns=None if columns is None else list(columns), fragments=[fragment],
                    batch_size=held.batch_rows,
                )  # fmt: skip
                yield from scanner.to_batches()
        except (TransientError, ValueError, TypeError) as error:
            damaged(_unreadable(held, fragment, error))


def _unreadable(held: Held, fragment: Any, error: Exception) -> Unreadable:
    """What is wrong with a fragment. Raises TransientError where the storage doesn't answer: then it is not that."""
    metadata = fragment.metadata
    gone = metadata.deletion_file.num_deleted_rows if metadata.deletion_file is not None else 0
    files = {f"data/{file.path}": file.file_size_bytes for file in metadata.files}
    there = sizes(held, list(files))
    for path, size_bytes in files.items():
        if path not in there:
            return Unreadable(fragment.fragment_id, metadata.physical_rows - gone, f"{path} is gone")
        if size_bytes is not None and there[path] != size_bytes:
            detail = f"{path} has {there[path]} bytes, not {size_bytes}"
            return Unreadable(fragment.fragment_id, metadata.physical_rows - gone, detail)
    detail = f"{next(iter(files), 'no file')} is damaged: {' '.join(str(error).split())[:200]}"
    return Unreadable(fragment.fragment_id, metadata.physical_rows - gone, detail)
