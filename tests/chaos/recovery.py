"""How long each kill took to be made good: a ledger of kills. Pure: times are arguments, in seconds of one clock.

A kill is made good when its role is back (another process reports as fine, or answers) and, where a probe was
announced after it, the probe is indexed. A role that is killed again before that is measured from the last of these
kills, which includes what was left of the earlier ones: one kill's time would say how often we kill. While the campaign
itself keeps the broker, the object store or a connection away, nothing can be made good: of what is open then, the time
begins when it gave that back. All else that is killed meanwhile is in a kill's time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

APART = ("head", "broker", "connection")
"""What is reported apart: the head and the broker by what they are, a connection because the clients' own timeouts
(a minute towards a provider) decide."""


@dataclass(slots=True)
class Kill:
    """One kill: `how` is SIGKILL, a point's name, stopped, a broken connection ..."""

    number: int
    role: str
    how: str
    at: float
    target: str  # the process or part, for the log
    probe: int | None = None  # serial of a document announced after it
    back_at: float | None = None
    indexed_at: float | None = None
    healed_at: float | None = None  # when the campaign gave back what it had taken: Shoal's time begins there
    overtaken: bool = False  # the role was killed again before it was made good
    alone: bool = True  # nothing else was killed while it recovered

    @property
    def is_over(self) -> bool:
        return self.overtaken or (self.back_at is not None and (self.probe is None or self.indexed_at is not None))

    @property
    def took_s(self) -> float:
        began = self.healed_at or self.at
        return max(began, self.back_at or self.at, self.indexed_at or self.at) - began


class Ledger:
    def __init__(self) -> None:
        self.kills: list[Kill] = []

    def killed(self, role: str, how: str, target: str, now: float) -> Kill:
        kill = Kill(len(self.kills) + 1, role, how, now, target)
        for other in self.open():
            other.alone = kill.alone = False
            if other.role == role:
                other.overtaken = True
        self.kills.append(kill)
        return kill

    def open(self) -> list[Kill]:
        return [kill for kill in self.kills if not kill.is_over]

    def given_back(self, now: float, *, but: Kill | None = None) -> None:
        """The campaign gave back a server or a connection that it had taken."""
        for kill in self.open():
            if kill is not but:
                kill.healed_at = now

    def indexed(self, serial: int, now: float) -> list[Kill]:
        """The document with this serial is in the tables: the kills of which it was the probe."""
        found = [kill for kill in self.kills if kill.probe == serial and kill.indexed_at is None]
        for kill in found:
            kill.indexed_at = now
        return found

    def by_role(self) -> Counter[str]:
        return Counter(kill.role for kill in self.kills)

    def percentiles(self, of: Callable[[Kill], bool] = lambda _: True) -> tuple[float, float, float]:
        """p50, p95 and the longest, of the kills that were made good; 0 where there is none."""
        times = sorted(kill.took_s for kill in self.kills if kill.is_over and not kill.overtaken and of(kill))
        return percentile(times, 0.5), percentile(times, 0.95), percentile(times, 1.0)

    def back_p95(self, of: Callable[[Kill], bool] = lambda _: True) -> float:
        """Until the role was back, whatever was indexed when: what a replacement takes, without the queue before it."""
        times = []
        for kill in self.kills:
            if kill.back_at is not None and not kill.overtaken and of(kill):
                # What was given back only after the role was there did not hold it up.
                held_up = kill.healed_at is not None and kill.healed_at <= kill.back_at
                times.append(kill.back_at - (kill.healed_at if held_up and kill.healed_at else kill.at))
        return percentile(sorted(times), 0.95)

    def table(self) -> list[str]:
        heads = ("p50_s", "p95_s", "max_s", "back_p95_s", "alone_p95_s", "unrecovered")
        lines = [f"{'role':<16} {'kills':>5} " + " ".join(f"{head:>11}" for head in heads)]
        for role, count in sorted(self.by_role().items()):
            p50, p95, longest = self.percentiles(lambda kill, role=role: kill.role == role)  # type: ignore[misc]
            _, alone, _ = self.percentiles(lambda kill, role=role: kill.role == role and kill.alone)  # type: ignore[misc]
            back = self.back_p95(lambda kill, role=role: kill.role == role)  # type: ignore[misc]
            left = sum(kill.role == role for kill in self.open())
            figures = " ".join(f"{figure:>11.1f}" for figure in (p50, p95, longest, back, alone))
            lines.append(f"{role:<16} {count:>5} {figures} {left:>11}")
        return lines


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values; 0 of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
