"""Partitions that nobody reads: who joins the group anew, and when nobody must."""

from __future__ import annotations

import itertools
from typing import Any

from shoal.cluster.ownership import PATIENCE_MAX_S, PATIENCE_S, UNOWNED_S, Ownership

READERS = ("reader-0", "reader-1")


def status(unowned_s: float = UNOWNED_S, uptime_s: float = 60.0, **partitions: int) -> dict[str, Any]:
    owned = partitions or {"reader-0": 4, "reader-1": 1}
    return {
        "partitions": [{"owner": "reader-0", "unowned_s": 0.0}, {"owner": None, "unowned_s": unowned_s}],
        "readers": [
            {"name": name, "uptime_s": uptime_s, "partitions": [{}] * count} for name, count in owned.items()
        ],
    }  # fmt: skip


def test_the_reader_that_gives_up_least_joins_anew_when_a_partition_stays_without_an_owner() -> None:
    assert Ownership().look(status(), READERS, 0.0) == "reader-1"


def test_nobody_joins_anew_while_a_hand_over_may_still_be_under_way() -> None:
    assert Ownership().look(status(unowned_s=UNOWNED_S - 0.1), READERS, 0.0) is None
    assert Ownership().look(status(uptime_s=UNOWNED_S - 0.1), READERS, 0.0) is None
    assert Ownership().look(status(**{"reader-0": 4}), READERS, 0.0) is None, "reader-1 is away"


def test_partitions_that_somebody_else_reads_are_asked_for_ever_more_seldom() -> None:
    ownership, asked = Ownership(), []
    for now in range(3600):
        if ownership.look(status(), READERS, now) is not None:
            asked.append(now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert pauses[0] == PATIENCE_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == PATIENCE_MAX_S


def test_once_everything_is_owned_the_next_trouble_is_met_at_once() -> None:
    ownership = Ownership()
    assert ownership.look(status(), READERS, 0.0) is not None
    whole = status()
    whole["partitions"].pop()
    assert ownership.look(whole, READERS, 1.0) is None
    assert ownership.look(status(), READERS, 2.0) is not None
