"""Partitions that nobody reads while every reader is well: when one of the readers must join the group anew.

Pure core. A static member that is killed between the two rebalances of a cooperative hand-over, when it has given up
partitions and not yet said so, comes back to what the group's leader had left it: the broker sees a member that has
only restarted, rebalances nothing, and what was given up is nobody's for ever (seen on Kafka 4.1; the classic protocol
has no cure of its own). A member that leaves and joins makes the leader assign everything again. Times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNOWNED_S = 5.0
"""Longer than a hand-over between living readers, and than the return of a killed one."""
PATIENCE_S, PATIENCE_MAX_S = 15.0, 300.0
"""Before it is tried again, doubled each time: a member of the group that is none of ours may be what reads them."""


class Ownership:
    """Give every status to `look`."""

    def __init__(self) -> None:
        self._due_at = float("-inf")
        self._patience_s = PATIENCE_S

    def look(self, status: Mapping[str, Any], readers: Sequence[str], now: float) -> str | None:
        """Which of `readers` must join anew: the one that gives up least; None while nothing is wrong, or while some
        reader is away or has only just come, so that the group may still be at work on it."""
        unowned = [entry["unowned_s"] for entry in status["partitions"] if entry["owner"] is None]
        if not unowned:
            self._due_at, self._patience_s = float("-inf"), PATIENCE_S
            return None
        reports = {report["name"]: report for report in status["readers"]}
        settled = all(name in reports and reports[name]["uptime_s"] >= UNOWNED_S for name in readers)
        if not readers or not settled or max(unowned) < UNOWNED_S or now < self._due_at:
            return None
        self._due_at = now + self._patience_s
        self._patience_s = min(PATIENCE_MAX_S, 2 * self._patience_s)
        return min(readers, key=lambda name: (len(reports[name]["partitions"]), name))
