"""What was spent, from the ledger: one report for `GET /api/v1/cost` and `shoal cost`.

`report` is pure; `Costs` reads the table and never on an event loop. Tokens are exact. Money is tokens times the price
of that day; where a model has no price the money of its tokens is unknown, and each row says how many those are:
`usd` is null where nothing of a row has a price, and leaves out `unpriced_tokens` where something has not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from shoal.embeddings.budget import Budget
from shoal.embeddings.prices import Prices
from shoal.errors import TransientError
from shoal.serve_apps.models import Name, Request, Text
from shoal.serve_apps.times import time_bound
from shoal.settings import Settings
from shoal.spending import Counts, SpendKey, day_of
from shoal.store.place import current
from shoal.store.spending import SpendRow, read_spend
from shoal.store.writing import storage_options

Json = dict[str, Any]
By = Literal["day", "month", "collection", "source", "dataset", "model", "lane"]

DEFAULT_DAYS = 30
DEADLINE_S = 10.0
"""A scan of a year's ledger takes some tens of milliseconds on disk, a second on S3."""


class CostQuery(Request):
    """Parameters of `GET /api/v1/cost`."""

    by: Text = Field(
        "day", max_length=100,
        description="What to group by, comma-separated: day, month, collection, source, dataset, model, lane.",
        examples=["source,dataset"],
    )  # fmt: skip
    since: Text | None = Field(
        None, max_length=40, description="First day, UTC (2025-01-20, or a time of it); by default 30 days ago.",
        examples=["2025-01-01"],
    )  # fmt: skip
    until: Text | None = Field(None, max_length=40, description="Last day, UTC; by default today.")
    collection: Name | None = Field(None, description="Only this collection.")
    data_source: Name | None = Field(None, description="Only this source, in any case.")
    dataset: Name | None = Field(None, description="Only this dataset.")
    model: Name | None = Field(None, description="Only this model: openai:text-embedding-3-small.")
    limit: int = Field(1000, ge=1, le=10_000, description="Rows at most; the rest is in `total` and told.")

    @field_validator("by")
    @classmethod
    def _known(cls, value: str) -> str:
        names = list(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
        wrong = [name for name in names if name not in get_args(By)]
        if wrong or not names:
            raise ValueError(f"choose of {', '.join(get_args(By))}, separated by commas")
        return ",".join(names)

    @field_validator("since", "until")
    @classmethod
    def _day(cls, value: str | None) -> str | None:
        return None if value is None else day_of(time_bound(value, is_end=False)[0])

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self.by.split(","))

    def first_day(self, now: datetime) -> str:
        return self.since or day_of(now - timedelta(days=DEFAULT_DAYS))

    def wants(self, key: SpendKey) -> bool:
        asked = (self.collection, self.dataset, self.model)
        if any(
            name is not None and name != of
            for name, of in zip(asked, (key.collection, key.dataset, key.model), strict=True)
        ):
            return False
        return self.data_source is None or self.data_source.casefold() == key.data_source.casefold()


def report(rows: Iterable[SpendRow], prices: Prices, asked: CostQuery, now: datetime) -> Json:
    """`rows`: of the days asked for. The newest day first, or the costliest where there is no day."""
    groups: dict[tuple[str, ...], _Sum] = {}
    total, through = _Sum(), None
    for row in rows:
        through = max(filter(None, (through, row.updated_at)), default=None)
        if not asked.wants(row.key):
            continue
        usd = prices.usd(row.key, row.counts)
        for each in (total, groups.setdefault(tuple(_part(row.key, by) for by in asked.groups), _Sum())):
            each.add(row.key, row.counts, usd)
    found: list[Json] = [
        {**dict(zip(asked.groups, names, strict=True)), **each.shown()} for names, each in groups.items()
    ]
    times = [by for by in asked.groups if by in ("day", "month")]
    found.sort(key=lambda row: (-(row["usd"] or 0.0), -row["tokens"], *(row[by] for by in asked.groups)))
    for by in reversed(times):
        found.sort(key=lambda row: str(row[by]), reverse=True)
    warnings = [
        f"no price is known of {model}: {tokens} tokens are not in the money; put it into SHOAL_PRICES (docs/cost.md)"
        for model, tokens in sorted(total.unpriced.items())
    ]
    if len(found) > asked.limit:
        warnings.append(f"{len(found) - asked.limit} more rows are only in the total: ask for fewer groups or days")
    return {
        "by": list(asked.groups),
        "since": asked.first_day(now),
        "until": asked.until or day_of(now),
        "currency": "USD",
        "rows": found[: asked.limit],
        "total": total.shown(),
        "recorded_through": through,
        "at": now,
        "warnings": warnings,
    }


class _Sum:
    def __init__(self) -> None:
        self.counts, self.usd, self.unpriced = Counts(), 0.0, dict[str, int]()

    def add(self, key: SpendKey, counts: Counts, usd: float | None) -> None:
        self.counts += counts
        if usd is None:
            self.unpriced[key.model] = self.unpriced.get(key.model, 0) + counts.answered_tokens
        else:
            self.usd += usd

    def shown(self) -> Json:
        unpriced_tokens = sum(self.unpriced.values())
        is_unknown = bool(unpriced_tokens) and unpriced_tokens == self.counts.answered_tokens
        usd = None if is_unknown else round(self.usd, 6)
        return {"usd": usd, **asdict(self.counts), "unpriced_tokens": unpriced_tokens}


def _part(key: SpendKey, by: str) -> str:
    return key.day[:7] if by == "month" else str(getattr(key, "data_source" if by == "source" else by))


class Costs:
    """One per process. Raises ConfigurationError where the price table can't be read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prices = Prices.load(settings.prices)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="cost")  # a store that hangs holds up nobody else

    def read(self, parameters: CostQuery | Mapping[str, object], now: datetime) -> Json:
        """Blocking. Raises InvalidParameter, TransientError, ConfigurationError."""
        asked, settings = CostQuery.read(parameters), self._settings
        first, month = asked.first_day(now), day_of(now)[:8] + "01"
        rows = read_spend(current(settings).tables_uri, storage_options(settings), min(first, month))
        last = asked.until or "9999"
        found = report((row for row in rows if first <= row.key.day <= last), self._prices, asked, now)
        budget = Budget(self._prices, settings.budget_day_usd, settings.budget_month_usd)
        budget.add((row.key, row.counts) for row in rows if row.key.day >= month)
        state = budget.state(now)
        return found | {
            "budget": {
                "level": state.level,
                "spent_day_usd": round(state.spent_day_usd, 6),
                "limit_day_usd": state.limit_day_usd or None,
                "spent_month_usd": round(state.spent_month_usd, 6),
                "limit_month_usd": state.limit_month_usd or None,
            },
        }

    async def ask(self, parameters: CostQuery | Mapping[str, object]) -> Json:
        """`read`, off the loop. Raises TransientError where the store does not answer in time, too."""
        asked = CostQuery.read(parameters)
        reading = asyncio.get_running_loop().run_in_executor(self._threads, self.read, asked, datetime.now(UTC))
        try:
            return await asyncio.wait_for(reading, DEADLINE_S)
        except TimeoutError:
            raise TransientError("the ledger can't be read now: the tables' store does not answer", 5.0) from None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
