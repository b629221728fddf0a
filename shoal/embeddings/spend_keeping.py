"""The keeper of the book: from the embedding service's charges to the ledger, and back to what may be spent.

    charges -> gathered (memory) -> book (disk, at once) -> `send` (the log, every FLUSH_S) -> the table
    `may_spend` <- budget <- the table (every LOOK_S) joined with the book

`charged` and `gate` are for the event loop and never block; one thread does the rest. What a kill -9 loses: the
request that was in flight, and the milliseconds before the thread wrote the book. What was not sent is sent by whoever
opens the book next. Nothing counts twice, since the whole of the book is told each time (shoal.spending). A log, table
or disk that is unwell holds back no embedding: it is tried again, and `statistics` say so. With one exception: while a
budget is set and what was spent is not known yet, nothing is paid for.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from shoal.embeddings.budget import Budget, BudgetState, Level
from shoal.embeddings.prices import BATCH_LANE, Prices
from shoal.embeddings.purposes import Charge, Purpose
from shoal.embeddings.spend_book import SpendBook
from shoal.errors import ShoalError, TransientError
from shoal.metrics import SpendStatistics
from shoal.settings import Settings
from shoal.spending import Counts, SpendKey, day_of, entry, spend_key

FLUSH_S = 10.0
"""Between two tellings. Shorter: a command and a commit more often; longer: an older ledger. Nothing is lost either
way, unless the disk is."""
LOOK_S = 60.0
"""Between two looks at the table, where a budget is set: other machines spend from the same one."""
RETRY_S = 5.0
ENTRIES_PER_TELLING = 500
KEYS_PER_DAY_MAX = 10_000
"""Names come from messages. What is beyond is counted under OTHER, so that neither memory nor table grows by them."""
OTHER = "(other)"
REFUSED_RETRY_S = 60.0
"""The longest that a refused document waits before it asks again: the limit may have been raised."""
_UNCOUNTED = "hash:"
"""The model that has no meaning and is for tests only."""

Ledger = Iterable[tuple[SpendKey, Mapping[str, Counts]]]
"""Rows of the ledger: a key, and each book's counts."""

log = logging.getLogger("shoal.spend")


class Gathered:
    """Charges that are not in the book yet, by key. Pure; bounded by KEYS_PER_DAY_MAX."""

    def __init__(self) -> None:
        self._counts: dict[SpendKey, Counts] = {}
        self._seen: set[SpendKey] = set()
        self._day = ""

    def add(self, charges: Sequence[Charge], day: str) -> None:
        if day != self._day:
            self._day, self._seen = day, set()
        for charge in charges:
            key = _key(charge, day)
            if key not in self._seen:
                if len(self._seen) < KEYS_PER_DAY_MAX:
                    self._seen.add(key)
                else:
                    key = spend_key(day, key.model, key.collection, "", OTHER, key.lane)
            self._counts[key] = self._counts.get(key, Counts()) + _counts(charge)

    def take(self) -> dict[SpendKey, Counts]:
        """Everything gathered; then there is nothing."""
        taken, self._counts = self._counts, {}
        return taken


def _key(charge: Charge, day: str) -> SpendKey:
    purpose = charge.purpose
    lane = BATCH_LANE if charge.is_batch else purpose.lane
    return spend_key(day, charge.model, purpose.collection, purpose.data_source, purpose.dataset, lane)


def _counts(charge: Charge) -> Counts:
    requests, failed = charge.requests, charge.has_failed
    return Counts(requests, requests * failed, charge.texts, charge.tokens, charge.tokens * failed)


def joined(ledger: Ledger, book: str, mine: Mapping[SpendKey, Counts]) -> list[tuple[SpendKey, Counts]]:
    """What was spent by all: the ledger, where this book's own counts may be older than `mine`."""
    found: dict[SpendKey, Counts] = {}
    for key, books in ledger:
        own = books.get(book, Counts()).joined(mine.get(key, Counts()))
        others = (counts for name, counts in books.items() if name != book)
        found[key] = sum(others, own)
    return [*found.items(), *((key, counts) for key, counts in mine.items() if key not in found)]


def keeper_of(
    settings: Settings, send: Callable[[Mapping[str, Any]], None], read: Callable[[str], Ledger]
) -> SpendKeeper:
    """The keeper of this machine's book. Raises ConfigurationError where the price table can't be read."""
    budget = Budget(Prices.load(settings.prices), settings.budget_day_usd, settings.budget_month_usd)
    return SpendKeeper(lambda: SpendBook(settings.home / "ledger" / "spend.sqlite"), budget, send, read)


class SpendKeeper:
    """One per process. `turn` is one round of its thread, and the whole of it for tests."""

    def __init__(
        self,
        open_book: Callable[[], SpendBook],
        budget: Budget,
        send: Callable[[Mapping[str, Any]], None],
        read: Callable[[str], Ledger],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
        starts: bool = True,
    ) -> None:
        """`send(body of a spend command)`: returns when that is durable in the log. `read(day)`: the ledger since then.
        Both block, and raise ShoalError. `starts=False`: no thread of its own."""
        self._open_book, self._budget, self._send, self._read = open_book, budget, send, read
        self._now, self._clock, self._starts = now, clock, starts
        self._book: SpendBook | None = None
        self._gathered, self._unkept = Gathered(), dict[SpendKey, Counts]()
        self._lock = threading.Lock()  # of what the loop and the thread share: gathered, the budget, the figures below
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._is_known = not budget.is_limited
        self._is_read = threading.Event()
        if self._is_known:
            self._is_read.set()
        self._level: Level = "ok"
        self._refused_until: datetime | None = None
        self._flush_at = self._look_at = 0.0
        self._forgotten = ""
        self._is_told = True
        self._told_at: datetime | None = None
        self._error: str | None = None
        if budget.is_limited:
            self._start()

    # --- on the event loop --------------------------------------------------------------------

    def charged(self, charges: Sequence[Charge]) -> None:
        """The service's `on_charges`, and a model's, in whatever thread."""
        charges = [charge for charge in charges if not charge.model.startswith(_UNCOUNTED)]
        if not charges:
            return
        with self._lock:
            self._gathered.add(charges, day_of(self._now()))
            self._start()
        self._woken.set()

    def gate(self, model: str, at_price_of: str = "") -> Callable[[Purpose, int], ShoalError | None] | None:
        """The service's `may_spend` for this model; None where there is no budget. `at_price_of`: a lane, where it
        is not the purpose's own."""
        if not self._budget.is_limited:
            return None

        def may_spend(purpose: Purpose, tokens: int) -> ShoalError | None:
            now, lane = self._now(), at_price_of or purpose.lane
            with self._lock:
                refused = self._budget.refusal(model, lane, tokens, now)
                is_known = self._is_known or not self._budget.costs(model, lane, now)
            if refused is not None and refused.resumes_at is not None:
                self._refused_until = refused.resumes_at
                wait_s = (refused.resumes_at - now).total_seconds()
                return TransientError(f"the budget is spent: {refused.message}", min(max(wait_s, 1.0), REFUSED_RETRY_S))
            if not is_known:
                return TransientError(
                    f"what was spent is not known yet ({self._error or 'reading the ledger'})", RETRY_S
                )
            return None

        return may_spend

    def await_known(self, timeout_s: float) -> None:
        """Until what was spent is known, where there is a budget; for callers that are no event loop. Where that takes
        longer, the gate says why."""
        self._is_read.wait(timeout_s)

    def statistics(self) -> SpendStatistics:
        """For the status; costs nothing."""
        state = self._state(self._now())
        return SpendStatistics(
            level=state.level,
            message=state.message,
            day=state.day,
            spent_day_usd=round(state.spent_day_usd, 6),
            spent_month_usd=round(state.spent_month_usd, 6),
            limit_day_usd=state.limit_day_usd,
            limit_month_usd=state.limit_month_usd,
            unpriced_models=state.unpriced_models,
            is_told=self._is_told,
            told_at=self._told_at.isoformat() if self._told_at else None,
            last_error=self._error,
        )

    def _state(self, now: datetime) -> BudgetState:
        """As the budget has it; exhausted already where what is left was too little for a text that now waits."""
        with self._lock:
            state = self._budget.state(now)
        if state.level != "exhausted" and self._refused_until is not None and now < self._refused_until:
            return replace(state, level="exhausted", resumes_at=self._refused_until)
        return state

    def close(self, timeout_s: float = 5.0) -> None:
        """Keep and tell what there is, for at most `timeout_s`; what is not told then, the next start tells."""
        self._is_closed = True
        self._woken.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    # --- on the thread ------------------------------------------------------------------------

    def _start(self) -> None:
        """With the lock held: the loop and the half-price lane may be the first at once."""
        if self._thread is not None or not self._starts or self._is_closed:
            return
        self._thread = threading.Thread(target=self._run, name="spend", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_closed:
            self._woken.wait(self.turn())
            self._woken.clear()
        self._flush_at = 0.0
        self.turn()
        if self._book is not None:
            self._book.close()

    def turn(self) -> float:
        """Keep what was gathered, and send and look where that is due. Seconds until the next turn is due."""
        now, at = self._now(), self._clock()
        with self._lock:
            taken = self._gathered.take()
            self._budget.add(taken.items())
        for key, counts in taken.items():
            self._unkept[key] = self._unkept.get(key, Counts()) + counts
        try:
            book = self._keep(now)
            if taken and self._is_told:
                self._is_told, self._flush_at = False, max(self._flush_at, at + 1.0)  # others may follow at once
            if at >= self._flush_at:
                self._tell(book)
                self._flush_at = at + FLUSH_S
            if self._budget.is_limited and at >= self._look_at:
                self._look(book, now)
                self._look_at = at + LOOK_S
            self._error = None
        except (ShoalError, sqlite3.Error, OSError) as error:
            self._flush_at, self._look_at = max(self._flush_at, at + RETRY_S), max(self._look_at, at + RETRY_S)
            if self._error is None:
                log.warning("the ledger lags behind, nothing of it is lost: %s", error)
            self._error = f"{type(error).__name__}: {error}"[:300]
        self._warn(now)
        due = [self._look_at] if self._budget.is_limited else []
        due += [] if self._is_told and not self._unkept else [self._flush_at]
        return max(0.05, min(due, default=at + 3600.0) - self._clock())

    def _keep(self, now: datetime) -> SpendBook:
        if self._book is None:
            self._book = self._open_book()
            self._is_told = not self._book.untold(1)  # a life before this one may have been cut short
        if self._unkept:
            self._book.add(self._unkept.items())
            self._unkept = {}
        if self._forgotten != day_of(now):
            self._book.forget(day_of(now))
            self._forgotten = day_of(now)
        return self._book

    def _tell(self, book: SpendBook) -> None:
        while lines := book.untold(ENTRIES_PER_TELLING):
            body = {"book": book.name, "entries": [entry(line.key, line.counts) for line in lines]}
            self._send(body)
            book.told(lines)
            self._told_at = self._now()
        self._is_told = True

    def _look(self, book: SpendBook, now: datetime) -> None:
        since = (date.fromisoformat(day_of(now)).replace(day=1) - timedelta(days=1)).isoformat()  # a clock may step
        ledger = list(self._read(since))
        spent = joined(ledger, book.name, {line.key: line.counts for line in book.lines(since)})
        with self._lock:
            # What was gathered since this turn began is added by the next one.
            self._budget.restart(spent)
            self._is_known = True
        self._is_read.set()

    def _warn(self, now: datetime) -> None:
        state = self._state(now)
        if state.level != self._level:
            log.log(
                logging.INFO if state.level == "ok" else logging.WARNING, "budget %s: %s", state.level, state.message
            )
            self._level = state.level
