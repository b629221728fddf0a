"""The flow as the query side sees it: the published status and the feeds, judged at the time of asking.

Pure. The supervisor can't say that it is gone; whoever reads its status must. A status without a fresh time is
`unknown`, however well it says that things are. What the status only remembers for its next turn is not shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from shoal.store.feeds import Catalogue, Feed

STATUS_AGE_S_MAX = 15.0  # the supervisor writes every 2 s; a restart of it takes some seconds
FEEDS_MAX = 100  # of which the quiet come first

Json = dict[str, Any]


def shown(status: Any) -> Any:
    """`status` without its memory."""
    if not isinstance(status, Mapping):
        return status
    return {name: value for name, value in status.items() if name != "memory"}


def age_s(status: Any, now: datetime) -> float | None:
    """How old `status` is in seconds; None where it does not tell its time."""
    try:
        return round((now - datetime.fromisoformat(status["at"])).total_seconds(), 1)
    except (TypeError, KeyError, ValueError):
        return None


def judged(status: Any, age_s: float | None) -> Json:
    """{health: ok|degraded|down|unknown, reasons}: the status's own, unless it is missing or too old to believe."""
    if not isinstance(status, Mapping) or age_s is None:
        return {
            "health": "unknown",
            "reasons": [_gone("it has published no status beside these tables that tells its time")],
        }
    if age_s > STATUS_AGE_S_MAX:
        why = f"the status is {age_s:.0f} s old: its supervisor is gone, or can't write beside the tables"
        return {"health": "unknown", "reasons": [_gone(why)]}
    return {"health": status.get("health", "unknown"), "reasons": list(status.get("reasons") or ())}


def _gone(why: str) -> Json:
    do = "Is `shoal up` (or the ingest cluster) running, on these tables? It is restarted by itself; if not, start it."
    return {"severity": "down", "what": "supervisor", "why": why, "do": do}


def feeds_of(catalogue: Catalogue, now: datetime) -> Json:
    """{at, total, overdue, unknown, listed}: the overdue first (the longest beyond its bound before others), then
    those whose cadence is known, then the rest; each group by how long it is silent."""
    entries = [entry_of(feed, now) for feed in catalogue.feeds]
    entries.sort(key=_urgency)
    return {
        "at": catalogue.at,
        "total": len(entries),
        "overdue": sum(entry["overdue"] is True for entry in entries),
        "unknown": sum(entry["overdue"] is None for entry in entries),
        "listed": entries[:FEEDS_MAX],
    }


def _urgency(entry: Json) -> tuple[int, float]:
    silent_s = entry["silent_s"] or 0.0
    if entry["overdue"] is None:
        return 2, -silent_s
    return (0 if entry["overdue"] else 1), -silent_s / entry["overdue_after_s"]


def entry_of(feed: Feed, now: datetime) -> Json:
    """One dataset as it is now; times in UTC, seconds. What is None is not known (yet)."""
    cadence = feed.at(now)
    usual = cadence.rhythm
    return {
        "environment": feed.environment,
        "dataset": feed.dataset,
        "data_source": feed.data_source,
        "documents": feed.documents,
        "last_seen_at": feed.last_seen_at,
        "last_collected_at": feed.last_collected_at,
        "silent_s": None if cadence.silent_s is None else round(cadence.silent_s, 1),
        "expected_every_s": usual.median_gap_s if usual else None,
        "overdue_after_s": usual.overdue_after_s if usual else None,
        "overdue": cadence.overdue,
    }
