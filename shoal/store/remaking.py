"""How often upkeep drops an index that verification refuses and makes it anew. Pure.

Making it anew can't help where the cause is elsewhere: a bug of Lance's, a check that is wrong, a failing disk. Without
a bound that would be all a writer does, also before its first batch. The index then stays as it is: people are told,
and upkeep goes on.
"""

from __future__ import annotations

from datetime import datetime, timedelta

TRIES_MAX, PERIOD = 3, timedelta(hours=1)


class Remakes:
    """Those of one writer's tables; an index is (kind of table, name)."""

    def __init__(self) -> None:
        self._tries: dict[tuple[str, str], list[datetime]] = {}
        self._refused_at: dict[tuple[str, str], datetime] = {}

    def may(self, kind: str, name: str, now: datetime) -> bool:
        """Whether it may be made anew once more: TRIES_MAX times in PERIOD. That counts as done."""
        recent = [at for at in self._tries.get((kind, name), ()) if now - at < PERIOD]
        if len(recent) >= TRIES_MAX:
            self._refused_at[kind, name] = now
            return False
        self._tries[kind, name] = [*recent, now]
        self._refused_at.pop((kind, name), None)
        return True

    def told(self, now: datetime) -> str:
        """For people, after what was done last: the indexes that are left as they are. Empty where there is none."""
        names = [f"{name} of {kind}" for (kind, name), at in self._refused_at.items() if now - at < PERIOD]
        if not names:
            return ""
        return f"; not right though made anew {TRIES_MAX} times: {', '.join(sorted(names))} (see the log)"
