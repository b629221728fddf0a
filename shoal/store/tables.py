"""One fenced Lance table: open or create it, look rows up, commit rows and the fence in one transaction.

The seam to lance for writing: its calls are made, and its errors turned into ours, only here, in upkeep (of which
maintenance.py is the root) and in the child that builds. A commit is staged on the version that is held (its fence
was read and its epoch checked) and is refused where anything else touched the table's rows since (facts A):
`CommitRefused`. Any other failure leaves it unknown whether the commit landed. Either way the table is no longer to
be trusted until it is opened again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.commit import CommitConflictError

from shoal.errors import ConfigurationError, FencedError, PermanentError, TransientError
from shoal.records import FENCE_ID
from shoal.store.fence import Fence
from shoal.store.rows import Row
from shoal.store.schemas import (
    FENCE_PREDICATES,
    KEYS,
    CollectionFacts,
    TableKind,
    collection_facts,
    literal,
    table_schema,
)

LOOKUP_KEYS_MAX = 500
"""Keys of one lookup: far above, planning the SQL costs more than the scan; below, a batch takes many scans."""
ROLLBACK_VERSIONS_MAX = 1000
"""How far back the last whole commit is looked for. It is a few versions away; more means a damaged table."""


class CommitRefused(TransientError):
    """Someone else's commit came first: nothing of ours is in the table."""


_REFUSED = ("commit conflict", "incompatible transaction", "preempted by", "too many concurrent writers")
_MISCONFIGURED = (
    "accessdenied", "access denied", "invalidaccesskeyid", "signaturedoesnotmatch", "nosuchbucket", "forbidden",
    "permission denied", "read-only file system", "unauthorized", "expiredtoken",
)  # fmt: skip
_FULL = ("no space left", "(os error 28)", "disk quota exceeded", "(os error 122)")


@contextmanager
def lance_errors(doing: str) -> Iterator[None]:
    """Lance's errors as ours, by their text: their classes don't tell them apart (facts 8). A ValueError or
    TypeError about the rows themselves passes through: the caller looks for the culprit."""
    try:
        yield
    except CommitConflictError as error:
        raise CommitRefused(f"{doing}: {_short(error)}") from error
    except (ValueError, TypeError) as error:
        if "LanceError(IO)" in str(error) or "Generic " in str(error):
            raise _ours(doing, error) from error
        raise
    except (OSError, RuntimeError) as error:
        if "Invalid user input" in str(error):
            raise ValueError(f"{doing}: {_short(error)}") from error
        raise _ours(doing, error) from error
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # a bug in Rust reaches us outside the Exception tree
            raise TransientError(f"{doing}: {_short(error)}") from error
        raise


def _ours(doing: str, error: Exception) -> TransientError | ConfigurationError:
    text = str(error).lower()
    if any(mark in text for mark in _REFUSED):
        return CommitRefused(f"{doing}: {_short(error)}")
    if any(mark in text for mark in _FULL):
        return ConfigurationError(
            f"{doing}: the disk is full: free space on it, or give the tables more; the writer then goes on by itself"
        )
    if any(mark in text for mark in _MISCONFIGURED):
        return ConfigurationError(f"{doing}: {_short(error)}: check LANCEDB_PATH, its permissions and the AWS_ keys")
    return TransientError(f"{doing}: {_short(error)}")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def to_arrow(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows as a table of exactly `schema`; vectors as fixed-size lists, null where a row has none."""
    columns: list[pa.Array] = []
    for column in schema:
        values = [row.get(column.name) for row in rows]
        if pa.types.is_fixed_size_list(column.type):
            columns.append(_vectors(values, column.type))
        else:
            columns.append(pa.array(values, column.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _vectors(values: Sequence[Any], kind: pa.FixedSizeListType) -> pa.Array:
    """Vectors in the column's own number type: what comes in is float32, or was read from the table."""
    width = kind.list_size
    matrix = np.zeros((len(values), width), kind.value_type.to_pandas_dtype())
    missing = np.ones(len(values), bool)
    for at, value in enumerate(values):
        if value is not None:
            matrix[at] = value
            missing[at] = False
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), width, mask=pa.array(missing))


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def in_list(column: str, keys: Iterable[str]) -> str:
    """`column IN (...)` with each key quoted. `column` is ours, the keys are hostile."""
    return f"{column} IN ({', '.join(literal(key) for key in keys)})"


class FencedTable:
    """One table at one version. Not thread-safe; of the methods only `refresh` moves to another's version."""

    def __init__(self, kind: TableKind, uri: str, options: dict[str, str], dataset: Any) -> None:
        self.kind: TableKind = kind
        self.uri = uri
        self.dataset = dataset
        self.options = options
        self.schema: pa.Schema = dataset.schema
        self.facts = collection_facts(self.schema)
        self.has_broken_key_index = False  # its fence row was found by a scan only
        self.fence = self._read_fence()

    @classmethod
    def open(cls, kind: TableKind, uri: str, options: dict[str, str]) -> FencedTable | None:
        """The table at its latest version; None where there is none yet."""
        try:
            with lance_errors(f"opening {uri}"):
                dataset = lance.dataset(uri, storage_options=options or None)
        except ValueError as error:
            if "was not found" in str(error):
                return None
            raise PermanentError(f"opening {uri}: {_short(error)}") from error
        return cls(kind, uri, options, dataset)

    @classmethod
    def create(cls, kind: TableKind, uri: str, options: dict[str, str], facts: CollectionFacts) -> FencedTable:
        """The new table, or the one that somebody else made first. It holds a fence of epoch 0."""
        schema = table_schema(kind, facts)
        fence = Fence(0, 0, None, facts.model, facts.width, facts.layout)
        try:
            with lance_errors(f"creating {uri}"):
                lance.write_dataset(
                    to_arrow([_fence_row(kind, fence)], schema), uri, mode="create", storage_options=options or None
                )
        except TransientError as error:
            if not isinstance(error, CommitRefused) and "already exists" not in str(error):
                raise
        table = cls.open(kind, uri, options)
        if table is None:
            raise TransientError(f"{uri} vanished while it was created")
        return table

    def refresh(self) -> None:
        """Move to the latest version, whoever wrote it, and read its fence."""
        with lance_errors(f"opening {self.uri}"):
            self.dataset = lance.dataset(self.uri, storage_options=self.options or None)
        self.schema = self.dataset.schema  # a migration changes it
        self.facts = collection_facts(self.schema)
        self.fence = self._read_fence()

    def check_epoch(self, epoch: int) -> None:
        """Raises FencedError where another writer has taken this table."""
        if self.fence.epoch > epoch:
            raise FencedError(f"writer {self.fence.epoch} took {self.uri} from writer {epoch}: this one ends")

    def settle(self, epoch: int) -> None:
        """After an operation that may have moved the handle past others' commits: trust nothing, look again.

        Raises FencedError; CommitRefused where a writer that was opened at the same moment, with the same epoch, has
        committed: its commits, half a batch too, would be taken for ours.
        """
        held = self.fence.token
        self.refresh()
        self.check_epoch(epoch)
        if self.fence.token != held:
            raise CommitRefused(f"{self.uri} was written by another writer of epoch {epoch}")

    def rows(self, columns: Sequence[str], predicate: str) -> list[Row]:
        """The rows that `predicate` (SQL, built from quoted literals) selects, vectors only where named."""
        with lance_errors(f"reading {self.uri}"):
            found: list[Row] = self.dataset.to_table(columns=list(columns), filter=predicate).to_pylist()
        return found

    def rows_of(self, columns: Sequence[str], column: str, keys: Iterable[str], also: str = "") -> list[Row]:
        """The rows whose `column` is one of `keys` and, where given, that `also` selects, in bounded scans. A key
        that is no valid text is in no table."""
        wanted = [key for key in dict.fromkeys(keys) if _is_text(key)]
        found: list[Row] = []
        for start in range(0, len(wanted), LOOKUP_KEYS_MAX):
            predicate = in_list(column, wanted[start : start + LOOKUP_KEYS_MAX])
            found += self.rows(columns, f"{predicate} AND {also}" if also else predicate)
        return found

    def scanned(self, columns: Sequence[str], column: str, keys: Sequence[str]) -> list[Row]:
        """The rows whose `column` is one of `keys`, each with its `_rowaddr`, found by a scan and by no index: every
        copy of a key, also where the index is not whole."""
        wanted = [key for key in dict.fromkeys(keys) if _is_text(key)]
        found: list[Row] = []
        with lance_errors(f"reading {self.uri}"):
            for start in range(0, len(wanted), LOOKUP_KEYS_MAX):
                scanner = self.dataset.scanner(
                    columns=list(columns), filter=in_list(column, wanted[start : start + LOOKUP_KEYS_MAX]),
                    with_row_address=True, use_scalar_index=False,
                )  # fmt: skip
                found += scanner.to_table().to_pylist()
        return found

    def rows_at(self, addresses: Sequence[int]) -> dict[int, Row]:
        """Address -> the whole row there."""
        found: dict[int, Row] = {}
        with lance_errors(f"reading {self.uri}"):
            for start in range(0, len(addresses), LOOKUP_KEYS_MAX):
                wanted = ", ".join(map(str, addresses[start : start + LOOKUP_KEYS_MAX]))
                scanner = self.dataset.scanner(filter=f"_rowaddr IN ({wanted})", with_row_address=True)
                for row in scanner.to_table().to_pylist():
                    found[row.pop("_rowaddr")] = row
        return found

    def count(self, predicate: str | None = None) -> int:
        with lance_errors(f"counting {self.uri}"):
            return int(self.dataset.count_rows(predicate))

    def commit(self, rows: Sequence[Row], fence: Fence, delete: str | None = None, *, hidden: bool = False) -> None:
        """Upsert `rows` by key, delete what `delete` selects and `rows` doesn't hold, and set the fence: one
        transaction on the held version. `hidden`: what remembers deletions goes too. Raises
        CommitRefused, TransientError (unknown outcome), or ValueError and TypeError where a row can't be stored."""
        table = to_arrow([*rows, _fence_row(self.kind, fence)], self.schema)
        with lance_errors(f"writing {self.uri}"):
            merge = self.dataset.merge_insert(KEYS[self.kind]).when_matched_update_all().when_not_matched_insert_all()
            if delete is not None:
                # The fence row is in the source, and no key of it is in the predicate: it can't be deleted.
                also = "true" if hidden else "fence IS NULL"
                merge = merge.when_not_matched_by_source_delete(f"({delete}) AND {also}")
            transaction, _ = merge.execute_uncommitted(table)
            self.dataset = lance.LanceDataset.commit(self.dataset, transaction, max_retries=0)
        self.fence = fence

    def replace(self, keys: Sequence[str], rows: Sequence[Row], fence: Fence) -> None:
        """Every row whose key is one of `keys` goes, however many there are of it, `rows` come, and the fence is set:
        one transaction on the held version. An upsert can't do that: it changes every copy of a key. Raises as
        `commit` does."""
        key = KEYS[self.kind]
        table = to_arrow([*rows, _fence_row(self.kind, fence)], self.schema)
        # What is put must match nothing: of these columns one is null in every row (null equals nothing), and the
        # fence's text is new.
        on = [key, "fence", "urn"] if self.kind == "metadata" else [key, "fence"]
        with lance_errors(f"writing {self.uri}"):
            merge = self.dataset.merge_insert(on).when_not_matched_insert_all()
            merge = merge.when_not_matched_by_source_delete(in_list(key, [*keys, FENCE_ID]))
            transaction, _ = merge.execute_uncommitted(table)
            self.dataset = lance.LanceDataset.commit(self.dataset, transaction, max_retries=0)
        self.fence = fence

    def fence_fragment(self) -> int:
        """The fragment that holds the fence row. Whatever rewrites it is refused once anybody else has."""
        with lance_errors(f"reading the fence of {self.uri}"):
            scanner = self.dataset.scanner(columns=[], filter=FENCE_PREDICATES[self.kind], with_row_address=True)
            (address,) = scanner.to_table()["_rowaddr"].to_pylist()
        return int(address) >> 32

    def undo(self, sequence: int, fence: Fence) -> None:
        """Put back the rows of the newest version whose fence is not past `sequence`, and set `fence`.

        A commit like any other, and refused like any other. Lance's own restore is not: it would also undo
        what another writer wrote since we looked. Raises PermanentError where no such version is left.
        """
        earlier = self._whole_version(sequence)
        with lance_errors(f"reading what changed in {self.uri}"):
            before, now = _addresses(earlier), _addresses(self.dataset)
            rows = _rows_at(earlier, self.schema.names, np.setdiff1d(before, now))
            new = _rows_at(self.dataset, (KEYS[self.kind], "fence"), np.setdiff1d(now, before))
        strangers = {row[KEYS[self.kind]] for row in new} - {row[KEYS[self.kind]] for row in rows}
        rows = list({row[KEYS[self.kind]]: row for row in rows}.values())  # a half repair's: a key that was there twice
        self.commit(rows, fence, in_list(KEYS[self.kind], strangers) if strangers else None)

    def step_back(self, sequence: int) -> None:
        """Hold the newest version whose fence is not past `sequence`, to read from. Raises as `undo` does."""
        if self.fence.commit_sequence > sequence:
            self.dataset = self._whole_version(sequence)
            self.fence = self._read_fence()

    def _whole_version(self, sequence: int) -> Any:
        version = int(self.dataset.version)
        for earlier in range(version - 1, max(0, version - ROLLBACK_VERSIONS_MAX), -1):
            try:
                with lance_errors(f"opening version {earlier} of {self.uri}"):
                    dataset = lance.dataset(self.uri, version=earlier, storage_options=self.options or None)
            except ValueError:  # cleaned up; the one looked for is kept for as long as nothing whole follows it
                continue
            if self._read_fence(dataset).commit_sequence <= sequence:
                return dataset
        raise PermanentError(f"{self.uri} holds half a commit and no version before it: restore it from a backup")

    def _read_fence(self, dataset: Any = None) -> Fence:
        held = self.dataset if dataset is None else dataset
        try:
            found = self._fence_rows(held, use_index=True)
        except TransientError:
            found = []
        if len(found) != 1:  # the key's index may be what is wrong
            found = self._fence_rows(held, use_index=False)
            self.has_broken_key_index = self.has_broken_key_index or len(found) == 1
        if len(found) != 1:
            raise PermanentError(f"{self.uri} holds {len(found)} fence rows, not one: restore it from a backup")
        return Fence.from_json(found[0])

    def _fence_rows(self, dataset: Any, *, use_index: bool) -> list[str]:
        with lance_errors(f"reading the fence of {self.uri}"):
            scanner = dataset.scanner(
                columns=["fence"], filter=FENCE_PREDICATES[self.kind], use_scalar_index=use_index
            )  # fmt: skip
            rows: list[str] = scanner.to_table()["fence"].to_pylist()
        return rows

    def drop_broken_key_index(self) -> None:
        """An upsert by an index that leaves rows out inserts them again, the fence row first. The index is made anew
        when the tables are open; nobody else is harmed by its absence."""
        if self.has_broken_key_index:
            with lance_errors(f"dropping the key's index of {self.uri}"):
                self.dataset.drop_index(f"{KEYS[self.kind]}_idx")
            self.has_broken_key_index = False
            self.refresh()


def _addresses(dataset: Any) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Where each row lies. An upserted row moves, so two versions differ by the addresses they don't share."""
    found = dataset.scanner(columns=[], with_row_address=True).to_table()
    addresses: np.ndarray[Any, np.dtype[np.uint64]] = found["_rowaddr"].to_numpy()
    return addresses


def _rows_at(dataset: Any, columns: Sequence[str], addresses: np.ndarray[Any, np.dtype[np.uint64]]) -> list[Row]:
    """The rows at these addresses, but for the fence."""
    rows: list[Row] = []
    for start in range(0, len(addresses), LOOKUP_KEYS_MAX):
        wanted = ", ".join(map(str, addresses[start : start + LOOKUP_KEYS_MAX]))
        rows += dataset.to_table(columns=list(columns), filter=f"_rowaddr IN ({wanted})").to_pylist()
    return [row for row in rows if row["fence"] is None]


def _fence_row(kind: TableKind, fence: Fence) -> Row:
    """The row that is no document. Only the metadata table's carries the progress: one copy is the truth."""
    kept = fence if kind == "metadata" else replace(fence, progress=())
    return {"id": FENCE_ID, KEYS[kind]: FENCE_ID, "fence": kept.to_json()}
