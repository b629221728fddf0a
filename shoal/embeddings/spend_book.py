"""The book: what this machine has spent, on disk, so that no kill loses it.

One small sqlite file in the data directory, shared by every process here that embeds (the embedder, the replicas of
the query embedder): each adds in a transaction. It holds the whole counts of each key since it was begun, which are
what is told to the ledger (shoal.spending), and up to where each was told. A kill -9 of a process keeps what was added;
a power cut may lose the last seconds (no fsync per request: sqlite's WAL, synchronous=NORMAL). A lost disk loses what
was not told yet, and a new disk begins a new book, so nothing counts twice. Keep no two machines on copies of one file.

Blocking; for one thread at a time. Raises sqlite3.Error where the disk is full or broken.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from datetime import date, timedelta
from pathlib import Path

from shoal.spending import COUNT_NAMES, KEY_NAMES, Counts, SpendKey

KEPT_DAYS = 40
"""Days that are kept here after they were told: what the budget of a month needs while the ledger lags behind."""
BUSY_S = 5.0
"""How long one process waits for another's transaction of a millisecond."""

_KEYS, _COUNTS = ", ".join(KEY_NAMES), ", ".join(COUNT_NAMES)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS book (name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spent (
    {", ".join(f"{name} TEXT NOT NULL" for name in KEY_NAMES)},
    {", ".join(f"{name} INTEGER NOT NULL" for name in COUNT_NAMES)},
    changes INTEGER NOT NULL DEFAULT 1,
    told INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY ({_KEYS})
) WITHOUT ROWID;
"""
_ADD = (
    f"INSERT INTO spent ({_KEYS}, {_COUNTS}) VALUES ({', '.join('?' * (len(KEY_NAMES) + len(COUNT_NAMES)))}) "  # noqa: S608
    f"ON CONFLICT DO UPDATE SET changes = changes + 1, {', '.join(f'{n} = {n} + excluded.{n}' for n in COUNT_NAMES)}"
)
_TOLD = f"UPDATE spent SET told = max(told, ?) WHERE {' AND '.join(f'{name} = ?' for name in KEY_NAMES)}"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Line:
    """A key's whole counts; `changes` names this state of it."""

    key: SpendKey
    counts: Counts
    changes: int


class SpendBook:
    """Open one per process."""

    def __init__(self, path: Path) -> None:
        """Opens or begins the book at `path`. Raises sqlite3.Error, OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # The thread that closes it need not be the one that used it.
        self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)
        self._db.execute(
            "INSERT INTO book SELECT ? WHERE NOT EXISTS (SELECT 1 FROM book)", (f"b-{uuid.uuid4().hex}",)
        )  # one statement: two processes that begin it together agree on one name
        (self.name,) = self._db.execute("SELECT name FROM book").fetchone()

    def add(self, spent: Iterable[tuple[SpendKey, Counts]]) -> None:
        """Durable when it returns: all of it or nothing."""
        self._many(_ADD, [(*astuple(key), *astuple(counts)) for key, counts in spent])

    def untold(self, limit: int) -> list[Line]:
        """At most `limit` keys whose counts have changed since they were told, oldest days first."""
        return self._lines("WHERE changes > told", limit)

    def told(self, lines: Sequence[Line]) -> None:
        """These are in the log for good. What was added to them meanwhile stays untold."""
        self._many(_TOLD, [(line.changes, *astuple(line.key)) for line in lines])

    def lines(self, since: str) -> list[Line]:
        """Everything of the day `since` and later."""
        return self._lines("WHERE day >= ?", -1, since)

    def forget(self, today: str) -> None:
        """Remove what was told and is older than KEPT_DAYS."""
        before = (date.fromisoformat(today) - timedelta(days=KEPT_DAYS)).isoformat()
        self._db.execute("DELETE FROM spent WHERE day < ? AND told >= changes", (before,))

    def close(self) -> None:
        self._db.close()

    def _many(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(statement, rows)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _lines(self, where: str, limit: int, *values: str) -> list[Line]:
        found = self._db.execute(
            f"SELECT {_KEYS}, {_COUNTS}, changes FROM spent {where} ORDER BY {_KEYS} LIMIT ?", (*values, limit)  # noqa: S608
        ).fetchall()  # fmt: skip
        split = len(KEY_NAMES)
        return [Line(SpendKey(*row[:split]), Counts(*row[split:-1]), row[-1]) for row in found]
