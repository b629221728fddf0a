"""Embeddings that were paid for once, in a sqlite file: key to float32 vector, exact.

Guarantee: a hit is bit for bit what was put: each entry is sealed with its key. A full, damaged, locked or read-only
file costs money, never a failure: reads miss, writes are dropped, and a damaged file is made anew, each with a warning.
The file stays within `bytes_max` (and some MB of write-ahead log): when it is reached the least recently used tenth
goes, at the grain of generations. Safe for the threads of one process; several processes may share a file on one
machine. Never put it on a network file system. It is a cache: nothing may depend on an entry being there.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from threading import Lock

import numpy as np

from shoal.embeddings.texts import Kind
from shoal.errors import TransientError
from shoal.records import Vector

_log = logging.getLogger(__name__)

_KEYS_PER_QUERY = 500  # sqlite takes at least 999 variables
_BUSY_TIMEOUT_S = 2.0  # longer would stall embedding for the sake of a cache

# An entry counts as used in the generation of its last use; a generation is this share of the file. Finer means
# more writes for hits, coarser forgets less well what is not used.
_GENERATION_SHARE = 1 / 16

_SEAL_BYTES = 8

_TABLE = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, used INTEGER NOT NULL, vector BLOB NOT NULL)"


def cache_key(model: str, width: int, kind: Kind, text: str) -> bytes:
    """32 bytes that name a text's vector. The kind is part of it: an over-long query is cut, a document refused."""
    return hashlib.sha256(f"{model}\0{width}\0{kind}\0{text}".encode("utf-8", "surrogatepass")).digest()


def _sealed(key: bytes, vector: Vector) -> bytes:
    raw: bytes = vector.astype("<f4").tobytes()
    return raw + _seal(key, raw)


def _seal(key: bytes, raw: bytes) -> bytes:
    """In a damaged file the index of keys may lead to another key's row, and sqlite doesn't notice."""
    return hashlib.blake2b(key + raw, digest_size=_SEAL_BYTES).digest()


def _unsealed(key: bytes, blob: bytes, width: int) -> Vector | None:
    """Raises sqlite3.DatabaseError where the file holds another entry in this one's place."""
    raw, seal = blob[: 4 * width], blob[4 * width :]
    if len(raw) < 4 * width:
        return None
    if seal and seal != _seal(key, raw):  # rows of earlier releases have none
        raise sqlite3.DatabaseError("an entry is not what was put there")
    return np.frombuffer(raw, np.float32)


class EmbeddingCache:
    """Vectors by key. `path` None keeps them in memory, with the same bound."""

    def __init__(self, path: Path | None, bytes_max: int) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._lock = Lock()
        self._generation = self._generation_bytes = 0
        self._touched: set[bytes] = set()
        self._connection = self._connect()

    def get_many(self, keys: Sequence[bytes], width: int) -> dict[bytes, Vector]:
        """The vectors that are there. An entry that is no unit vector of `width` counts as absent."""
        found: dict[bytes, Vector] = {}
        with self._lock:
            try:
                for start in range(0, len(keys), _KEYS_PER_QUERY):
                    part = keys[start : start + _KEYS_PER_QUERY]
                    marks = ",".join("?" * len(part))
                    query = f"SELECT key, used, vector FROM vectors WHERE key IN ({marks})"  # noqa: S608  only marks
                    for key, used, blob in self._execute(query, part):
                        vector = _unsealed(key, blob, width)
                        if vector is None or not abs(float(vector @ vector) - 1) < 1e-3:
                            continue
                        found[key] = vector
                        if used != self._generation:
                            self._touched.add(key)
            except sqlite3.Error as error:
                self._failed(error)
        return found

    def put_many(self, vectors: Mapping[bytes, Vector]) -> None:
        """Keeps the vectors, and makes room for them."""
        with self._lock:
            try:
                with self._connection:
                    rows = [(key, self._generation, _sealed(key, vector)) for key, vector in vectors.items()]
                    self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)
                    touched = [(self._generation, key) for key in self._touched]
                    self._connection.executemany("UPDATE vectors SET used = ? WHERE key = ?", touched)
                    self._touched.clear()
                    self._make_room()
                self._generation_bytes += sum(vector.nbytes for vector in vectors.values())
                if self._generation_bytes > self._bytes_max * _GENERATION_SHARE:
                    self._generation, self._generation_bytes = self._generation + 1, 0
            except sqlite3.Error as error:
                self._failed(error)

    def forget_many(self, keys: Sequence[bytes]) -> int:
        """Removes entries for good: their bytes in the file are overwritten. Returns how many there were; unlike the
        rest, a file that can't be used is an error here. Raises TransientError."""
        with self._lock:
            try:
                self._connection.execute("PRAGMA secure_delete = ON")
                with self._connection:
                    gone = sum(
                        self._connection.execute("DELETE FROM vectors WHERE key = ?", (key,)).rowcount for key in keys
                    )
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # older pages lie in the log
            except sqlite3.Error as error:
                raise TransientError(f"the embedding cache {self._path} could not be used: {error}") from error
        return gone

    def close(self) -> None:
        """Ends the use of the file; safe to call twice. What is asked afterwards misses."""
        with self._lock:
            self._connection.close()

    def _make_room(self) -> None:
        pages, free, size = (self._one(f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size"))
        if (pages - free) * size <= self._bytes_max:
            return
        rows = self._one("SELECT count(*) FROM vectors")
        self._connection.execute(
            "DELETE FROM vectors WHERE key IN (SELECT key FROM vectors ORDER BY used, rowid LIMIT ?)", (rows // 10 + 1,)
        )

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._open()
        except sqlite3.OperationalError as error:  # no such directory, no permission, a full disk
            _log.warning("the embedding cache %s can't be opened (%s): caching in memory", self._path, error)
        except (sqlite3.DatabaseError, OSError) as error:
            return self._made_anew(error)
        self._path = None
        return self._open()

    def _open(self) -> sqlite3.Connection:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self._path or ":memory:", timeout=_BUSY_TIMEOUT_S, check_same_thread=False, cached_statements=16
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a power cut loses entries, not the file
            connection.execute(_TABLE)
            columns = [row[1] for row in connection.execute("PRAGMA table_info(vectors)")]
            if columns != ["key", "used", "vector"]:
                raise sqlite3.DatabaseError(f"it has other columns: {columns}")
            connection.execute("CREATE INDEX IF NOT EXISTS by_use ON vectors (used)")
            self._generation = 1 + (connection.execute("SELECT max(used) FROM vectors").fetchone()[0] or 0)
        except BaseException:
            connection.close()
            raise
        return connection

    def _made_anew(self, error: Exception) -> sqlite3.Connection:
        _log.warning("the embedding cache %s is damaged (%s): it is made anew", self._path, error)
        assert self._path is not None, "sqlite in memory can't be damaged"
        try:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            return self._open()
        except (sqlite3.Error, OSError) as second:
            _log.warning("nor can it be made anew (%s): caching in memory", second)
            self._path = None
            return self._open()

    def _failed(self, error: sqlite3.Error) -> None:
        self._touched.clear()
        if isinstance(error, sqlite3.ProgrammingError):  # closed: the process is ending
            return
        if isinstance(error, sqlite3.OperationalError):  # locked, full, read-only: may pass
            _log.warning("the embedding cache %s could not be used: %s", self._path, error)
            return
        self._connection.close()
        self._connection = self._made_anew(error)

    def _execute(self, query: str, parameters: Iterable[bytes]) -> sqlite3.Cursor:
        return self._connection.execute(query, tuple(parameters))

    def _one(self, query: str) -> int:
        value = self._connection.execute(query).fetchone()[0]
        return int(value)
