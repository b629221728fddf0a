"""Generations: which tables a collection is in, and the one commit by which it moves to others.

A change of the model builds the collection anew beside itself: a whole set of tables, metadata, chunks, fixes and
jobs, in a directory of its own. The first generation lies where the tables always lay, number n in
`{tables}/_generations/{n}`. Which of them is in use is told by the metadata tables' fences alone:

- The fence of a generation that was left names the one it was left for (`moved_to`), and the `turn` in which that
  happened. Turns count up over all generations.
- Who looks for the collection begins at the first and goes on for as long as the turn of the fence is later than the
  one that led there. So one commit moves the collection, there and back, and is refused like any commit where anybody
  wrote since its writer looked.

A reader of a generation learns from the fence it reads anyway that it was left. A writer says in which turn it came
to its tables and is refused where they were left later; a copy of another generation (`Role.copy`) may be written
although it is not in use. The first generation's metadata table is the signpost, so it stays, empty, when that
generation is dropped.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import datetime

from shoal.errors import PermanentError, TransientError
from shoal.faults import reach
from shoal.records import SCRAPER_COLLECTION
from shoal.store.fence import Fence
from shoal.store.schemas import CollectionFacts, TableKind, metadata_table, table_uri, vectors_table
from shoal.store.tables import FencedTable

DIRECTORY = "_generations"
HOLD_S_MAX = 120.0
"""Longest hold that a writer waits for: whoever asked for it may be dead, or have another clock."""
HOPS_MAX = 1_000
"""Of one search for the collection. A hop is a model that it once had and that was not dropped."""


class MovedError(TransientError):
    """The collection is in another generation now: look for it again."""


@dataclass(frozen=True, slots=True)
class Role:
    """As what tables are opened for writing: the generation in use since `turn`, or a copy of the one in use."""

    turn: int = 0
    is_copy: bool = False

    def check(self, metadata: FencedTable, now: datetime) -> None:
        """Raises MovedError where these tables are not in use any more, or a copy has come into use; TransientError
        while they are held for that."""
        fence = metadata.fence
        if self.is_copy:
            if fence.epoch and not fence.is_copy and not fence.moved_to:
                raise MovedError(
                    f"{metadata.uri} is in use now, and is nobody's copy: ask again for what there is to do"
                )
            return
        left_s = fence.held_until_ms / 1000 - now.timestamp()
        if 0 < left_s <= HOLD_S_MAX:
            raise TransientError(
                f"{metadata.uri} is held for {left_s:.0f} s at most, until its copy is the same: writing goes on then",
                min(left_s, 1.0),
            )
        self.check_left(metadata)

    def check_left(self, metadata: FencedTable) -> None:
        """Raises MovedError where the collection has left these tables since."""
        fence = metadata.fence
        if fence.moved_to and fence.turn > self.turn:
            raise MovedError(
                f"the collection of {metadata.uri} has moved to its generation {fence.moved_to}: the writer is started "
                "there by itself; a command must be started again"
            )


ACTIVE, COPY = Role(), Role(is_copy=True)


@dataclass(frozen=True, slots=True)
class Generation:
    """A collection's tables. `turn`: in which they came into use (of the one in use; 0: the first ever); `came_from`:
    the generation that was left for them then, 0 where there was none."""

    number: int
    uri: str
    facts: CollectionFacts
    turn: int = 0
    came_from: int = 0

    @property
    def role(self) -> Role:
        """That of its writer."""
        return Role(self.turn)


def generation_uri(root: str, number: int) -> str:
    """Where the tables of a generation are, of a collection whose first is at `root`."""
    return root.rstrip("/") if number == 1 else f"{root.rstrip('/')}/{DIRECTORY}/{number}"


def active(
    root: str, options: dict[str, str], collection: str = SCRAPER_COLLECTION, looked_at: list[str] | None = None
) -> Generation | None:
    """The generation in use; None where the collection does not exist. `looked_at` gets the places on the way. Raises
    TransientError, PermanentError."""
    number, turn, came_from = 1, 0, 0
    for _ in range(HOPS_MAX):
        uri = generation_uri(root, number)
        if looked_at is not None:
            looked_at.append(uri)
        table = FencedTable.open("metadata", table_uri(uri, metadata_table(collection)), options)
        if table is None:
            if number == 1:
                return None
            raise PermanentError(f"the collection is in {uri}, where no tables are: restore them from a backup")
        fence = table.fence
        if not fence.moved_to or fence.turn <= turn:
            return Generation(number, uri, table.facts, max(turn, fence.turn), came_from)
        number, turn, came_from = fence.moved_to, fence.turn, number
    raise PermanentError(f"the generations of the collection at {root} lead to one another: restore from a backup")


def other(
    root: str, options: dict[str, str], used: Generation, collection: str = SCRAPER_COLLECTION
) -> Generation | None:
    """The generation beside the one in use: being built, or left and not dropped. At most one there is: each new one
    is the successor of the one in use."""
    for number in (used.number + 1, used.number - 1):
        if number < 1:
            continue
        uri = generation_uri(root, number)
        # Of the first the metadata stays; of any other it is made first and removed last.
        kind: TableKind = "vectors" if number == 1 else "metadata"
        name = vectors_table(collection) if number == 1 else metadata_table(collection)
        table = FencedTable.open(kind, table_uri(uri, name), options)
        if table is not None:
            return Generation(number, uri, table.facts)
    return None


def was_left_for(root: str, options: dict[str, str], one: Generation, used: Generation) -> bool:
    """Whether the collection was in `one` before: it can go back there."""
    table = FencedTable.open("metadata", table_uri(one.uri, metadata_table(SCRAPER_COLLECTION)), options)
    return table is not None and table.fence.moved_to == used.number


class Handover:
    """The move of a collection from the tables it is in. It writes nothing but the fences of their metadata and
    jobs, each time a commit that is refused where anybody wrote since; so what was compared is what is left."""

    def __init__(self, metadata: FencedTable) -> None:
        self._metadata = metadata

    def hold(self, until: datetime) -> None:
        """Ask the writer to wait until then, HOLD_S_MAX at most. A hint to it: no commit of its own is lost, nor is
        anything wrong where it does not wait. Raises CommitRefused, TransientError."""
        self._commit(replace(self._metadata.fence, held_until_ms=round(1000 * until.timestamp())))

    def settle(self, jobs: FencedTable) -> None:
        """From here on a commit of jobs whose batch came before the hold is refused, and its batch comes again. Jobs
        are committed after the metadata: such a one would otherwise land where nobody looks. Raises as `hold` does."""
        jobs.refresh()
        jobs.commit((), replace(jobs.fence, token=uuid.uuid4().hex))

    def release(self) -> None:
        """The writer may go on. Raises as `hold` does."""
        self._metadata.refresh()
        if self._metadata.fence.held_until_ms:
            self._commit(replace(self._metadata.fence, held_until_ms=0))

    def move(self, number: int, turn: int) -> None:
        """The collection is in the generation `number` from this commit on. Raises CommitRefused: it is not;
        TransientError: `active` tells."""
        reach("handover.before")
        self._commit(replace(self._metadata.fence, moved_to=number, turn=turn, held_until_ms=0))
        reach("handover.after")

    def _commit(self, fence: Fence) -> None:
        self._metadata.commit((), replace(fence, token=uuid.uuid4().hex))
