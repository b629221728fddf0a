"""The fence: who may write a table, and how far the log is done.

One row per table (contracts 2.4), rewritten by every commit in the same transaction as the rows: two commits
staged on the same version touch the same row, so the table itself refuses the second (facts A). The fence by
itself proves nothing to a writer that opens a table anew: it compares `epoch` each time (writing.py does).
Pure: the row's value and its JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

import orjson

from shoal.errors import PermanentError
from shoal.records import Progress

PARTITIONS_MAX = 10_000
"""Partitions remembered. Each start of the embedded broker is a new cluster; above this the oldest entries go,
so that the row stays small; far below, a big topic's own partitions would not fit."""

Partition = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Fence:
    """The value of the fence row.

    `epoch` names the writer; `commit_sequence` counts its batches across the tables; `token` is one commit
    attempt's own name, by which a writer knows its commit again after an answer was lost. `progress` maps
    (cluster, topic, partition) to the offset below which all is done, least recently reported first. `moved_to`,
    `turn`, `held_until_ms` (Unix time) and `is_copy` (this state was never the collection's): generations.py.
    """

    epoch: int
    commit_sequence: int
    committed_at: datetime | None
    model: str
    width: int
    layout: int
    token: str = ""
    progress: tuple[tuple[Partition, int], ...] = ()
    moved_to: int = 0
    turn: int = 0
    held_until_ms: int = 0
    is_copy: bool = False

    def positions(self) -> dict[Partition, int]:
        """(cluster, topic, partition) -> next offset."""
        return dict(self.progress)

    def advanced(self, *, token: str, now: datetime, sequence: int, progress: Iterable[Progress] = ()) -> Fence:
        """The fence of the next commit. Progress never goes back: readers of one partition change hands."""
        done = dict(self.progress)
        for item in progress:
            partition = (item.cluster, item.topic, item.partition)
            offset = max(done.pop(partition, 0), item.next_offset)
            done[partition] = offset
        kept = tuple(done.items())[-PARTITIONS_MAX:]
        return replace(self, token=token, commit_sequence=sequence, committed_at=now, progress=kept)

    def to_json(self) -> str:
        return orjson.dumps(
            {
                "epoch": self.epoch,
                "commit_sequence": self.commit_sequence,
                "committed_at": self.committed_at.isoformat() if self.committed_at else None,
                "model": self.model,
                "width": self.width,
                "layout": self.layout,
                "token": self.token,
                "progress": [[*partition, offset] for partition, offset in self.progress],
                "moved_to": self.moved_to,
                "turn": self.turn,
                "held_until_ms": self.held_until_ms,
                "is_copy": self.is_copy,
            }
        ).decode()

    @staticmethod
    def from_json(text: str) -> Fence:
        """Raises PermanentError where the text is no fence: the table is damaged or not ours."""
        try:
            raw = orjson.loads(text)
            at = raw["committed_at"]
            return Fence(
                epoch=int(raw["epoch"]),
                commit_sequence=int(raw["commit_sequence"]),
                committed_at=datetime.fromisoformat(at) if at else None,
                model=str(raw["model"]),
                width=int(raw["width"]),
                layout=int(raw["layout"]),
                token=str(raw["token"]),
                progress=tuple(((str(c), str(t), int(p)), int(n)) for c, t, p, n in raw["progress"]),
                moved_to=int(raw.get("moved_to", 0)),
                turn=int(raw.get("turn", 0)),
                held_until_ms=int(raw.get("held_until_ms", 0)),
                is_copy=bool(raw.get("is_copy", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PermanentError(f"the fence row can't be read ({error}): restore the table from a backup") from None
