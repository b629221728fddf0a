"""The journal: the durable half of the embedded broker, one SQLite file.

The embedded broker is librdkafka's mock cluster: it keeps everything in memory and silently drops the oldest
of more than 5 MiB per partition. So nobody writes to it directly. A producer appends to the journal and
returns once that is on disk (WAL, synchronous=FULL); whether a broker runs is of no concern to it. The
broker's process feeds the mock from here (shoal.cluster.journal_feed), and marks an entry
done when the consumer group has committed past it; every new life of the broker, which is a new Kafka
cluster id, begins with the entries that are not done.

Guarantee: what `flush` returned for is announced until it is committed, in the order of the appends, with
its first timestamp; at least once, since what was committed in the instant before a kill is announced again.
One message is at most MESSAGE_BYTES_MAX, and is refused at `send` otherwise. Any number of processes may
append; one feeds. It is for one machine: SQLite's locks need a local file system.

Why a database and not a log of our own: appends from several processes, durable marks, and pruning are what
it is good at, and a crash at any byte is its problem, solved.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from shoal.errors import ConfigurationError, PermanentError, ShoalError, TransientError
from shoal.sources.dead_letters import DEAD_LETTER_SUFFIX, STATE_SUFFIX
from shoal.sources.log_producer import FailureMarks, Headers
from shoal.tracing import carried

MIB = 1024 * 1024
# The mock keeps 5 MiB per partition and cannot serve a batch above that; 4.7 MB of noise was seen to pass.
MESSAGE_BYTES_MAX = 4 * MIB + MIB // 2
# A producer's unflushed messages: beyond this `send` writes them out itself.
BUFFER_BYTES_MAX = 8 * MIB
BUFFER_ITEMS_MAX = 10_000
# Done entries are the only record of what was announced; they are kept a while for looking into.
KEPT_MS = 7 * 24 * 3600 * 1000
KEPT_BYTES_MAX = 256 * MIB
# Dead letters that a new life announces again so that they stay listable; less than a partition can hold.
DEAD_LETTERS_AGAIN_MAX = 5_000
DEAD_LETTER_BYTES_AGAIN_MAX = 3 * MIB

# The broker's partitions and offsets begin anew with each of its lives. What must be named for longer is named by
# its number here, as the offset of this partition.
JOURNAL_PARTITION = 0

_LAYOUT = 1
_SCHEMA = """
CREATE TABLE entries (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  topic TEXT NOT NULL, key_hash INTEGER NOT NULL, bytes INTEGER NOT NULL, created_ms INTEGER NOT NULL,
  done_ms INTEGER,
  key BLOB, headers BLOB, value BLOB);
CREATE INDEX open_entries ON entries (topic, seq, key_hash) WHERE done_ms IS NULL;
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A journaled message. `size_bytes` is what it takes in the broker, uncompressed."""

    seq: int
    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    created_ms: int
    size_bytes: int


class Journal:
    """One connection to the journal file, which is created where absent. Thread-safe.

    Raises TransientError where the file is busy or the disk full, ConfigurationError where it is no journal.
    """

    def __init__(self, path: Path, *, busy_timeout_s: float = 30.0) -> None:
        self.path = path
        self._lock = threading.RLock()
        with _translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA journal_size_limit = 67108864")
            self._create()

    def _create(self) -> None:
        with self._transaction(durable=True):
            (layout,) = self._db.execute("PRAGMA user_version").fetchone()
            if layout == 0:
                for statement in _SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_LAYOUT}")
            elif layout != _LAYOUT:
                raise ConfigurationError(
                    f"{self.path} has layout {layout}, this Shoal knows {_LAYOUT}: use the Shoal that wrote it, or "
                    "another data directory"
                )

    def close(self) -> None:
        """Close the file; nothing may be called afterwards."""
        with self._lock:
            self._db.close()

    # --- producers ----------------------------------------------------------------------------

    def append(self, messages: Sequence[tuple[str, bytes | None, bytes | None, Headers, int]]) -> None:
        """Add (topic, key, value, headers, created_ms) in order; on disk, all or none, when it returns."""
        rows = [
            (topic, _key_hash(key), size_bytes(key, value, headers), created_ms, key, _pack(headers), value)
            for topic, key, value, headers, created_ms in messages
        ]
        with self._transaction(durable=True):
            self._db.executemany(
                "INSERT INTO entries (topic, key_hash, bytes, created_ms, key, headers, value)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )

    # --- whoever looks back -------------------------------------------------------------------

    def entries_between(self, topic: str, from_seq: int, to_seq: int) -> Generator[Entry, None, None]:
        """Entries of a topic, done or not, with from_seq <= seq < to_seq, in order, one at a time; close it early
        or not at all."""
        with self._lock, _translated(self.path):
            cursor = self._db.execute(
                "SELECT seq, topic, key, value, headers, created_ms, bytes FROM entries"
                " WHERE topic = ? AND seq >= ? AND seq < ? ORDER BY seq",
                (topic, from_seq, to_seq),
            )
            try:
                for seq, topic_, key, value, headers, created_ms, size in cursor:
                    yield Entry(seq, topic_, key, value, _unpack(headers), created_ms, size)
            finally:
                cursor.close()

    def entries_of_size(self, topic: str, value_bytes: int) -> Generator[Entry, None, None]:
        """Entries of a topic, done or not, whose value has that many bytes, newest first."""
        with self._lock, _translated(self.path):
            cursor = self._db.execute(
                "SELECT seq, topic, key, value, headers, created_ms, bytes FROM entries"
                " WHERE topic = ? AND length(value) = ? ORDER BY seq DESC",
                (topic, value_bytes),
            )
            try:
                for seq, topic_, key, value, headers, created_ms, size in cursor:
                    yield Entry(seq, topic_, key, value, _unpack(headers), created_ms, size)
            finally:
                cursor.close()

    # --- the broker's process -----------------------------------------------------------------

    def begin_life(self, now_ms: int) -> None:
        """A new, empty broker: open the newest dead letters and their states again, and prune what is old."""
        with self._transaction(durable=True):
            self._prune(now_ms)
            self._compact_states()
            topics = self._db.execute(
                "SELECT DISTINCT topic FROM entries WHERE substr(topic, ?) = ? OR substr(topic, ?) = ?",
                (-len(DEAD_LETTER_SUFFIX), DEAD_LETTER_SUFFIX, -len(STATE_SUFFIX), STATE_SUFFIX),
            ).fetchall()
            for (topic,) in topics:
                self._db.execute("UPDATE entries SET done_ms = ? WHERE topic = ? AND done_ms IS NULL", (now_ms, topic))
                self._db.execute(
                    "UPDATE entries SET done_ms = NULL WHERE seq IN (SELECT seq FROM (SELECT seq,"
                    " row_number() OVER newest AS place, sum(bytes) OVER newest AS total FROM entries"
                    " WHERE topic = ? WINDOW newest AS (ORDER BY seq DESC)) WHERE place <= ? AND total <= ?)",
                    (topic, DEAD_LETTERS_AGAIN_MAX, DEAD_LETTER_BYTES_AGAIN_MAX),
                )

    def _prune(self, now_ms: int) -> None:
        """States stay as long as their dead letters, which would else count as open again."""
        self._db.execute(
            "DELETE FROM entries WHERE substr(topic, ?) <> ? AND (done_ms < ? OR seq IN (SELECT seq FROM (SELECT seq,"
            " sum(bytes) OVER (ORDER BY seq DESC) AS total FROM entries WHERE done_ms IS NOT NULL) WHERE total > ?))",
            (-len(STATE_SUFFIX), STATE_SUFFIX, now_ms - KEPT_MS, KEPT_BYTES_MAX),
        )

    def _compact_states(self) -> None:
        """Keep the last state under each key, and none of a dead letter that is gone."""
        last: dict[tuple[str, bytes], int] = {}
        superseded: list[tuple[int]] = []
        for seq, topic, key in self._db.execute(
            "SELECT seq, topic, key FROM entries WHERE substr(topic, ?) = ? ORDER BY seq",
            (-len(STATE_SUFFIX), STATE_SUFFIX),
        ):
            before = last.get((topic, key or b""))
            if before is not None:
                superseded.append((before,))
            last[topic, key or b""] = seq
        letters = {
            f"{topic}/{JOURNAL_PARTITION}/{seq}".encode()
            for seq, topic in self._db.execute(
                "SELECT seq, topic FROM entries WHERE substr(topic, ?) = ?",
                (-len(DEAD_LETTER_SUFFIX), DEAD_LETTER_SUFFIX),
            )
        }
        superseded += [(seq,) for (_, key), seq in last.items() if key.split(b"#")[0] not in letters]
        self._db.executemany("DELETE FROM entries WHERE seq = ?", superseded)

    def version(self) -> int:
        """Changes when another connection has written: cheap enough to ask fifty times a second."""
        with self._lock, _translated(self.path):
            return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def open_topics(self) -> list[str]:
        """Topics with entries that are not done."""
        found: list[str] = []
        query = "SELECT min(topic) FROM entries WHERE done_ms IS NULL AND topic > ?"
        with self._lock, _translated(self.path):
            while (topic := self._db.execute(query, (found[-1] if found else "",)).fetchone()[0]) is not None:
                found.append(topic)
        return found

    def open_entries(self, topic: str, partition: int, partitions: int, after_seq: int) -> Generator[Entry, None, None]:
        """Entries of one partition that are not done, in order, one at a time; close it when enough were taken."""
        with self._lock, _translated(self.path):
            cursor = self._db.execute(
                "SELECT seq, topic, key, value, headers, created_ms, bytes FROM entries"
                " WHERE done_ms IS NULL AND topic = ? AND seq > ? AND key_hash % ? = ? ORDER BY seq",
                (topic, after_seq, partitions, partition),
            )
            try:
                for seq, topic_, key, value, headers, created_ms, size in cursor:
                    yield Entry(seq, topic_, key, value, _unpack(headers), created_ms, size)
            finally:
                cursor.close()

    def last_seq(self) -> int:
        """The newest entry's number; 0 where there is none."""
        with self._lock, _translated(self.path):
            return int(self._db.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()[0])

    def finish(self, seqs: Sequence[int], now_ms: int) -> None:
        """Mark entries done."""
        with self._transaction(durable=False):
            self._db.executemany("UPDATE entries SET done_ms = ? WHERE seq = ?", [(now_ms, seq) for seq in seqs])

    def open_count(self, topic: str | None = None) -> int:
        """How many entries (of one topic) are not done."""
        with self._lock, _translated(self.path):
            row = self._db.execute(
                "SELECT count(*) FROM entries WHERE done_ms IS NULL AND (?1 IS NULL OR topic = ?1)", (topic,)
            ).fetchone()
        return int(row[0])

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool) -> Iterator[None]:
        with self._lock, _translated(self.path):
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


class JournalProducer:
    """A `LogProducer` that appends to the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._buffer: list[tuple[str, bytes | None, bytes | None, Headers, int]] = []
        self._buffered_bytes = 0
        self._marks = FailureMarks()

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        """Take a message, with the current trace; `flush` makes it durable. PermanentError over MESSAGE_BYTES_MAX."""
        headers = carried(headers)
        size = size_bytes(key, value, headers)
        if size > MESSAGE_BYTES_MAX:
            raise PermanentError(
                f"a message of {size} bytes for {topic}: the embedded broker takes at most {MESSAGE_BYTES_MAX}; put "
                "the content into a file and announce its location, or set KAFKA_BROKERS to a real Kafka"
            )
        self._marks.sending()
        with self._lock:
            self._buffer.append((topic, key, value, tuple(headers), time.time_ns() // 1_000_000))
            self._buffered_bytes += size
            if self._buffered_bytes >= BUFFER_BYTES_MAX or len(self._buffer) >= BUFFER_ITEMS_MAX:
                self._write()

    def flush(self, timeout_s: float) -> None:
        """Return once everything sent is on disk; `timeout_s` is the file's own busy timeout here."""
        with self._lock:
            self._write()
        self._marks.raise_failures()

    def _write(self) -> None:
        """Append the buffer. What could not be is dropped, and told to all who had sent."""
        messages, self._buffer, self._buffered_bytes = self._buffer, [], 0
        if not messages:
            return
        try:
            self._journal.append(messages)
        except ShoalError as error:
            self._marks.failed(error)


def size_bytes(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """What a message takes in the broker, with room for its own bookkeeping."""
    return len(key or b"") + len(value or b"") + sum(len(name) + len(data or b"") + 8 for name, data in headers) + 64


def _key_hash(key: bytes | None) -> int:
    """As librdkafka's consistent partitioner: the partition is this modulo their number. No key: spread by time."""
    return zlib.crc32(key) if key else time.monotonic_ns() // 1000 % 2**32


def _pack(headers: Headers) -> bytes | None:
    if not headers:
        return None
    return orjson.dumps([[name, None if data is None else data.hex()] for name, data in headers])


def _unpack(packed: bytes | None) -> tuple[tuple[str, bytes | None], ...]:
    if packed is None:
        return ()
    return tuple((name, None if data is None else bytes.fromhex(data)) for name, data in orjson.loads(packed))


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:  # locked, disk full, I/O error, cannot open
        raise TransientError(f"journal {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(
            f"{path} is damaged or no journal ({error}): move it away; what was announced and not yet indexed "
            "must be published again"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"journal {path}: {error.strerror}; choose a data directory one may write to"
        ) from error
