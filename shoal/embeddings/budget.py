"""The budget: what may still be spent today and this month (UTC).

Pure: counts, prices and the time go in, and whether the next text may be paid for comes out. From WARN_SHARE of a
limit on it warns. At the limit it refuses every text that a provider would be paid for, until the day (or month)
turns or the limit is raised. What it refuses:

* ingest: documents wait as in an outage of the provider. Nothing becomes a dead letter, nothing is lost.
* queries: they fail, and the search answers by keywords and says so. What the caches hold costs nothing, and goes on.

It never falls back to the local model. Vectors of two models can't be compared: a local vector in a table of OpenAI's,
or asked of it, would be found next to nothing that it is like, without an error. A collection of its own with the local
model spends nothing and never waits, so nothing else would "degrade" than what was bought already. Whoever wants to go
on without paying makes that change for the whole collection (a migration), and that is a decision, not a fallback.

Precision: `may` counts what was answered by the time it is asked. What was let through and is still queued or in flight
comes on top: at most the service's queue (4,096 texts), some cents' worth. Failed requests count nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from shoal.embeddings.prices import MILLION, Prices
from shoal.spending import Counts, SpendKey, day_of, month_of

WARN_SHARE = 0.8

Level = Literal["ok", "warned", "exhausted"]


@dataclass(frozen=True, slots=True)
class BudgetState:
    """Money in US dollars. A limit of 0 is none. `resumes_at`: when an exhausted budget has room again by itself."""

    level: Level
    day: str
    spent_day_usd: float
    spent_month_usd: float
    limit_day_usd: float
    limit_month_usd: float
    unpriced_models: tuple[str, ...]
    resumes_at: datetime | None = None

    @property
    def message(self) -> str:
        """One line; what to do where something is to be done."""
        parts = []
        if self.limit_day_usd:
            parts.append(f"${self.spent_day_usd:.2f} of ${self.limit_day_usd:.2f} spent today")
        if self.limit_month_usd:
            parts.append(f"${self.spent_month_usd:.2f} of ${self.limit_month_usd:.2f} this month")
        text = ", ".join(parts) or "no budget is set"
        if self.level == "exhausted" and self.resumes_at is not None:
            text += (
                f": nothing more is paid for until {self.resumes_at:%Y-%m-%d %H:%M} UTC; raise SHOAL_BUDGET_DAY_USD or "
                "SHOAL_BUDGET_MONTH_USD and restart to go on now"
            )
        return text


class Budget:
    """One per process. Not thread-safe."""

    def __init__(self, prices: Prices, limit_day_usd: float = 0.0, limit_month_usd: float = 0.0) -> None:
        self._prices = prices
        self._limit_day_usd, self._limit_month_usd = limit_day_usd, limit_month_usd
        self._spent: dict[str, float] = {}  # day -> US dollars
        self._unpriced: set[str] = set()

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return bool(self._limit_day_usd or self._limit_month_usd)

    def restart(self, spent: Iterable[tuple[SpendKey, Counts]]) -> None:
        """Everything that is known to be spent, of the current month at least, in place of what was counted so far."""
        self._spent, self._unpriced = {}, set()
        self.add(spent)

    def add(self, spent: Iterable[tuple[SpendKey, Counts]]) -> None:
        """This was spent in addition."""
        for key, counts in spent:
            usd = self._prices.usd(key, counts)
            if usd is None:
                self._unpriced.add(key.model)
            else:
                self._spent[key.day] = self._spent.get(key.day, 0.0) + usd

    def state(self, now: datetime, more_usd: float = 0.0) -> BudgetState:
        """Where it stands at `now` (aware, UTC), if `more_usd` were spent too."""
        day = day_of(now)
        month = sum(usd for of, usd in self._spent.items() if month_of(of) == month_of(day))
        # Rounded, so that ten tenths are one.
        spent_day, spent_month = (round(usd + more_usd, 9) for usd in (self._spent.get(day, 0.0), month))
        level: Level = "ok"
        resumes_at: datetime | None = None
        limits = (
            (spent_day, self._limit_day_usd, _next_day(now)),
            (spent_month, self._limit_month_usd, _next_month(now)),
        )
        for spent, limit, turn in limits:
            if not limit:
                continue
            if spent >= limit:
                level, resumes_at = "exhausted", max(turn, resumes_at or turn)
            elif spent >= round(WARN_SHARE * limit, 9) and level == "ok":
                level = "warned"
        return BudgetState(
            level, day, spent_day, spent_month, self._limit_day_usd, self._limit_month_usd,
            tuple(sorted(self._unpriced)), resumes_at,
        )  # fmt: skip

    def costs(self, model: str, lane: str, now: datetime) -> bool:
        """Whether a text of this model is paid for, at a price that is known."""
        return bool(self._prices.per_million(model, lane, day_of(now)))

    def refusal(self, model: str, lane: str, tokens: int, now: datetime) -> BudgetState | None:
        """Why a text of so many tokens may not be paid for, or None where it may, or costs nothing, or nobody knows
        what it costs (`unpriced_models` tells)."""
        price = self._prices.per_million(model, lane, day_of(now))
        if not price or not self.is_limited:
            return None
        state = self.state(now, tokens * price / MILLION)
        return state if state.level == "exhausted" else None


def _next_day(now: datetime) -> datetime:
    return datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)


def _next_month(now: datetime) -> datetime:
    return datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
