"""Which fragments a compaction leaves alone: pure.

Joining everything that is not full each time writes the unfinished fragment over and over, and every index over it
too, since a compaction moves its rows: an hour of small commits wrote a small table a hundred times. So fragments are
joined by size classes, as log-structured stores do: a class waits until it adds up to a fragment of the next one.
Each row is then rewritten about once per class, and less than FAN_IN fragments of each class stay. What is worn by
deletions is rewritten whatever its class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FAN_IN = 8
"""The base of the classes: higher rewrites less and leaves more files for a scan to open."""
WORN = 0.1
"""The share of deleted rows from which on a fragment is rewritten; Lance's own default."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A data file's rows: all that it holds, and how many of them are deleted."""

    id: int
    rows: int
    deleted: int

    @property
    def live(self) -> int:
        return self.rows - self.deleted


def left_alone(fragments: Iterable[Fragment], fan_in: int = FAN_IN) -> list[int]:
    """The ids of those to exclude: neither worn, nor of a class that adds up, with all below it, to one of the next."""
    whole = [one for one in fragments if one.deleted <= WORN * one.rows]
    sums: dict[int, int] = {}
    for one in whole:
        sums[_class(one.live, fan_in)] = sums.get(_class(one.live, fan_in), 0) + one.live
    joined, added = -1, 0
    for size_class in sorted(sums):
        added += sums[size_class]
        if added >= fan_in ** (size_class + 1):
            joined = size_class
    return [one.id for one in whole if _class(one.live, fan_in) > joined]


def _class(rows: int, fan_in: int) -> int:
    """c where fan_in**c <= rows < fan_in**(c + 1); by integers, since a logarithm errs at the edges."""
    found = 0
    while rows >= fan_in:
        rows //= fan_in
        found += 1
    return found
