"""The book and its keeper: every request that was sent is in the ledger once, whatever is killed or unwell."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.embeddings.budget import Budget
from shoal.embeddings.prices import Prices
from shoal.embeddings.purposes import Charge, Purpose
from shoal.embeddings.spend_book import KEPT_DAYS, SpendBook
from shoal.embeddings.spend_keeping import KEYS_PER_DAY_MAX, OTHER, Gathered, SpendKeeper
from shoal.errors import TransientError
from shoal.spending import Counts, SpendKey, read_entry, spend_key

SMALL = "openai:text-embedding-3-small"
NOW = datetime(2026, 1, 20, 15, tzinfo=UTC)
DAY = "2026-01-20"
PURPOSE = Purpose("live", "scraper", "NYISO", "nyiso_load")
KEY = spend_key(DAY, SMALL, "scraper", "NYISO", "nyiso_load", "live")
DOLLAR = 50_000_000


def charge(tokens: int = 100, *, purpose: Purpose = PURPOSE, failed: bool = False, model: str = SMALL) -> Charge:
    return Charge(model, purpose, 1, 1, tokens, failed)


class World:
    """A log and a table beside one machine's data directory; a keeper may be killed and another begun."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now, self.at = NOW, 100.0
        self.log_is_down = self.table_is_down = False
        self.tellings: list[Mapping[str, Any]] = []
        self.table: dict[SpendKey, dict[str, Counts]] = {}

    def send(self, body: Mapping[str, Any]) -> None:
        if self.log_is_down:
            raise TransientError("no broker")
        self.tellings.append(body)

    def apply(self) -> None:
        """What the writer does with everything in the log, from its beginning: delivered again and again."""
        for body in self.tellings:
            for raw in body["entries"]:
                key, counts = read_entry(raw)
                books = self.table.setdefault(key, {})
                books[body["book"]] = books.get(body["book"], Counts()).joined(counts)

    def read(self, since: str) -> list[tuple[SpendKey, dict[str, Counts]]]:
        if self.table_is_down:
            raise TransientError("no table")
        return [(key, dict(books)) for key, books in self.table.items() if key.day >= since]

    def keeper(self, limit_day_usd: float = 0.0) -> SpendKeeper:
        budget = Budget(Prices.load(None), limit_day_usd)
        return SpendKeeper(
            lambda: SpendBook(self.path / "spend.sqlite"), budget, self.send, self.read,
            now=lambda: self.now, clock=lambda: self.at, starts=False,
        )  # fmt: skip

    def later(self, seconds: float) -> None:
        self.at += seconds
        self.now += timedelta(seconds=seconds)

    @property
    def ledger(self) -> dict[SpendKey, Counts]:
        self.apply()
        return {key: sum(books.values(), Counts()) for key, books in self.table.items()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_charges_are_told_as_sums_after_seconds_and_once_when_nothing_follows(world: World) -> None:
    keeper = world.keeper()
    for _ in range(5):
        keeper.charged([charge(), charge(7, failed=True)])
        keeper.turn()
        world.later(0.1)
    world.later(10)
    keeper.turn()
    world.later(60)
    assert keeper.turn() > 600  # nothing is due
    assert world.ledger == {KEY: Counts(10, 5, 10, 535, 35)}
    assert len(world.tellings) <= 2
    assert keeper.statistics().is_told


def test_a_killed_keeper_loses_nothing_that_it_kept_and_its_successor_tells_it(world: World) -> None:
    world.log_is_down = True
    keeper = world.keeper()
    keeper.charged([charge(100)])
    keeper.turn()  # kept
    world.later(2)
    keeper.turn()  # the log is down
    assert not keeper.statistics().is_told
    assert "no broker" in (keeper.statistics().last_error or "")
    del keeper  # killed
    world.log_is_down = False
    world.keeper().turn()
    assert world.ledger == {KEY: Counts(1, 0, 1, 100, 0)}


def test_a_telling_whose_answer_was_lost_is_told_again_and_counts_once(world: World) -> None:
    keeper = world.keeper()
    real = world.send

    def lands_but_fails(body: Mapping[str, Any]) -> None:
        real(body)
        raise TransientError("the answer was lost")

    keeper._send = lands_but_fails
    keeper.charged([charge(100)])
    keeper.turn()
    world.later(2)
    keeper.turn()
    world.later(20)
    keeper.turn()
    keeper._send = real
    world.later(20)
    keeper.turn()
    assert len(world.tellings) == 3
    assert world.ledger == {KEY: Counts(1, 0, 1, 100, 0)}


def test_a_full_disk_keeps_counting_in_memory_until_it_has_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = world.keeper()

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(SpendBook, "add", full)
        for _ in range(3):
            keeper.charged([charge(100)])
            assert keeper.turn() >= 0.05  # and no busy loop
            world.later(1)
    assert "disk is full" in (keeper.statistics().last_error or "")
    world.later(10)
    keeper.turn()
    assert world.ledger == {KEY: Counts(3, 0, 3, 300, 0)}
    assert keeper.statistics().last_error is None


steps = st.lists(
    st.one_of(
        st.tuples(st.just("charge"), st.integers(0, 1), st.integers(0, 5000), st.booleans()),
        st.tuples(st.just("turn"), st.integers(0, 1)),
        st.tuples(st.just("kill"), st.integers(0, 1)),
        st.sampled_from([("later",), ("log",), ("apply",)]),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_the_ledger_adds_up_to_the_requests_sent(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    """Two processes of one machine, killed and begun anew, with a log that comes and goes and delivers twice."""
    world = World(tmp_path_factory.mktemp("spend"))
    keepers, sent = [world.keeper(), world.keeper()], Counts()
    for name, *values in steps:
        match name:
            case "charge":
                which, tokens, failed = values
                keepers[which].charged([charge(tokens, failed=failed)])
                keepers[which].turn()  # its thread does so at once
                sent += Counts(1, int(failed), 1, tokens, tokens * failed)
            case "turn":
                keepers[values[0]].turn()
            case "kill":
                keepers[values[0]] = world.keeper()
            case "later":
                world.later(11)
            case "log":
                world.log_is_down = not world.log_is_down
            case _:
                world.apply()
    world.log_is_down = False
    for keeper in keepers:
        world.later(30)
        keeper.turn()
    assert sum(world.ledger.values(), Counts()) == sent


def _charge_until_killed(path: Path, sent: Any) -> None:
    world = World(path)
    keeper = world.keeper()
    while True:
        keeper.charged([charge(1)])
        keeper.turn()
        sent.value += 1  # only what was kept
        if sent.value == 20:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_sigkill_of_the_process_loses_nothing_that_was_kept(world: World) -> None:
    context = multiprocessing.get_context("spawn")
    sent = context.Value("i", 0)
    child = context.Process(target=_charge_until_killed, args=(world.path, sent))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    world.keeper().turn()
    assert world.ledger[KEY].requests >= sent.value == 20


def test_names_without_end_do_not_make_the_ledger_grow_without_bound() -> None:
    gathered = Gathered()
    for number in range(KEYS_PER_DAY_MAX + 50):
        gathered.add([charge(1, purpose=Purpose("live", "scraper", "S", f"d{number}"))], DAY)
    counts = gathered.take()
    assert len(counts) == KEYS_PER_DAY_MAX + 1
    assert counts[spend_key(DAY, SMALL, "scraper", "", OTHER, "live")].tokens == 50


def test_the_model_for_tests_is_not_counted_and_local_ones_are(world: World) -> None:
    keeper = world.keeper()
    keeper.charged([charge(model="hash:64"), charge(model="local:m")])
    keeper.turn()
    world.later(2)
    keeper.turn()
    assert [key.model for key in world.ledger] == ["local:m"]


def test_the_book_forgets_only_what_was_told_and_is_old(world: World) -> None:
    book = SpendBook(world.path / "b.sqlite")
    old, older = (spend_key((NOW - timedelta(days=KEPT_DAYS + n)).date().isoformat(), "m", "", "", "", "live")
                  for n in (1, 2))  # fmt: skip
    book.add([(old, Counts(1)), (older, Counts(1)), (KEY, Counts(1))])
    book.told([line for line in book.untold(10) if line.key != older])
    book.forget(DAY)
    assert [line.key for line in book.lines("")] == [older, KEY]


def test_what_is_added_while_it_is_told_is_told_next(world: World) -> None:
    book = SpendBook(world.path / "b.sqlite")
    book.add([(KEY, Counts(1))])
    lines = book.untold(10)
    book.add([(KEY, Counts(1))])
    book.told(lines)
    assert [line.counts for line in book.untold(10)] == [Counts(2)]


# --- the budget -----------------------------------------------------------------------------------------------


def test_nothing_is_paid_for_before_it_is_known_what_was_spent(world: World) -> None:
    world.table_is_down = True
    keeper = world.keeper(limit_day_usd=1.0)
    may_spend = keeper.gate(SMALL)
    assert may_spend is not None
    assert isinstance(may_spend(PURPOSE, 10), TransientError)
    keeper.turn()
    refused = may_spend(PURPOSE, 10)
    assert refused is not None
    assert "no table" in str(refused)
    assert keeper.gate("local:m")(PURPOSE, 10) is None  # type: ignore[misc]  # costs nothing
    world.table_is_down = False
    world.later(10)
    keeper.turn()
    assert may_spend(PURPOSE, 10) is None


def test_the_budget_survives_a_restart_and_counts_what_other_machines_spent(world: World, tmp_path: Path) -> None:
    world.table[KEY] = {"another": Counts(1, 0, 1, DOLLAR * 6 // 10, 0)}
    keeper = world.keeper(limit_day_usd=1.0)
    keeper.turn()
    keeper.charged([charge(DOLLAR * 3 // 10)])
    keeper.turn()
    assert keeper.statistics().level == "warned"
    keeper.charged([charge(DOLLAR // 10)])
    keeper.turn()
    assert keeper.statistics().level == "exhausted"
    again = world.keeper(limit_day_usd=1.0)
    again.turn()  # before anything of it was applied to the table
    assert again.statistics().level == "exhausted"
    error = again.gate(SMALL)(PURPOSE, 10)  # type: ignore[misc]
    assert isinstance(error, TransientError)
    assert error.retry_after_s == 60.0
    world.apply()
    world.later(70)
    again.turn()
    assert again.statistics().spent_day_usd == pytest.approx(1.0)  # its own are not counted twice
    assert world.keeper(limit_day_usd=2.0).gate(SMALL) is not None
    world.later(9 * 3600)  # the day turns
    assert again.gate(SMALL)(PURPOSE, 10) is None  # type: ignore[misc]


def test_a_budget_whose_rest_is_too_little_for_a_text_says_that_it_waits(world: World) -> None:
    keeper = world.keeper(limit_day_usd=1.0)
    keeper.charged([charge(DOLLAR // 2)])
    keeper.turn()
    may_spend = keeper.gate(SMALL)
    assert may_spend is not None
    assert may_spend(PURPOSE, DOLLAR // 4) is None
    assert keeper.statistics().level == "ok"
    assert isinstance(may_spend(PURPOSE, DOLLAR), TransientError)
    assert keeper.statistics().level == "exhausted"
    assert "nothing more is paid for until 2026-01-21 00:00 UTC" in keeper.statistics().message
    world.later(9 * 3600)  # the day turns
    assert keeper.statistics().level == "ok"


def test_without_a_budget_there_is_no_gate_and_no_look_at_the_table(world: World) -> None:
    world.table_is_down = True
    keeper = world.keeper()
    assert keeper.gate(SMALL) is None
    keeper.charged([charge()])
    keeper.turn()
    assert keeper.statistics().last_error is None


def test_its_thread_tells_at_the_end_and_close_waits_for_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    budget = Budget(Prices.load(None))
    keeper = SpendKeeper(lambda: SpendBook(tmp_path / "spend.sqlite"), budget, world.send, world.read)
    keeper.charged([charge()])
    keeper.close(30.0)
    assert [counts.requests for counts in world.ledger.values()] == [1]


def test_what_goes_in_batches_has_a_lane_and_a_price_of_its_own(world: World) -> None:
    keeper = world.keeper(limit_day_usd=1.0)
    keeper.turn()
    full, half = keeper.gate(SMALL), keeper.gate(SMALL, "batch")
    assert full is not None
    assert half is not None
    tokens = 60_000_000  # $1.20, or $0.60
    assert full(PURPOSE, tokens) is not None
    assert half(PURPOSE, tokens) is None
    keeper.charged([replace(charge(tokens), is_batch=True)])
    keeper.turn()
    assert half(PURPOSE, tokens) is not None
    assert keeper.statistics().spent_day_usd == pytest.approx(0.6)
