"""The ledger in the table: whatever is told, however often and in whatever order, each request counts once."""

from __future__ import annotations

import random
from dataclasses import astuple
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import BadDocument
from shoal.records import Outcome
from shoal.settings import Settings
from shoal.spending import Counts, SpendKey, entry, spend_key
from shoal.store import spending
from shoal.store.spending import StoredSpend, read_spend, told
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, command, document
from tests.fixtures.upkeep import upkeep

NOW = datetime(2026, 1, 20, 15, tzinfo=UTC)
DAY = "2026-01-20"
KEY = spend_key(DAY, "openai:small", "scraper", "NYISO", "nyiso_load", "live")
ONE = Counts(1, 0, 10, 5_000, 0)


def body(book: str, **told_of: Any) -> dict[str, Any]:
    counts: dict[SpendKey, Counts] = told_of.get("counts", {KEY: ONE})
    return {"book": book, "entries": [entry(key, each) for key, each in counts.items()]}


def open_writer(place: str) -> TableWriter:
    return TableWriter.open(place, {}, MODEL, WIDTH, settings=Settings(), now=NOW)


def tell(writer: TableWriter, *bodies: dict[str, Any]) -> list[Outcome]:
    batch = [command(f"s{random.random()}", "spend", each) for each in bodies]
    return [ack.outcome for ack in writer.apply(batch, (), NOW)]


# --- pure -----------------------------------------------------------------------------------------------------

requests = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),  # the book
        st.sampled_from(["NYISO", "CAISO", "", "%7C", "|"]),  # the source
        st.builds(
            lambda tokens, failed: Counts(1, int(failed), 1, tokens, tokens if failed else 0),
            st.integers(0, 10_000), st.booleans(),
        ),
    ),
    max_size=40,
)  # fmt: skip


@settings(deadline=None)
@given(requests, st.randoms(use_true_random=False))
def test_the_ledger_adds_up_to_the_requests_sent_however_it_is_told(
    sent: list[tuple[str, str, Counts]], rng: random.Random
) -> None:
    """1. Requests go into books. 2. Each book is told at any moments. 3. Tellings come twice, late, in any order."""
    books: dict[str, dict[SpendKey, Counts]] = {}
    wanted: dict[SpendKey, Counts] = {}
    tellings = []
    for book, source, counts in sent:
        key = spend_key(DAY, "m", "scraper", source, "d", "live")
        mine = books.setdefault(book, {})
        mine[key] = mine.get(key, Counts()) + counts
        wanted[key] = wanted.get(key, Counts()) + counts
        if rng.random() < 0.5:
            tellings.append(body(book, counts=dict(rng.sample(sorted(mine.items()), rng.randint(1, len(mine))))))
    tellings += [body(book, counts=counts) for book, counts in books.items()]
    tellings += rng.choices(tellings, k=len(tellings)) if tellings else []
    rng.shuffle(tellings)
    rows: dict[str, Any] = {}
    while tellings:  # in batches, each planned from what the one before it left
        batch = [tellings.pop() for _ in range(rng.randint(1, len(tellings)))]
        stored = StoredSpend(rows.values())
        for each in batch:
            stored.tell(each, NOW)
        rows |= {row["key"]: row for row in stored.changed()}
    assert {key: (rows[key.text]["requests"], rows[key.text]["tokens"]) for key in wanted} == {
        key: (counts.requests, counts.tokens) for key, counts in wanted.items()
    }
    assert len(rows) == len(wanted)


@settings(deadline=None)
@given(st.lists(st.text(max_size=4), min_size=5, max_size=5), st.lists(st.text(max_size=4), min_size=5, max_size=5))
def test_two_keys_never_share_a_row(one: list[str], other: list[str]) -> None:
    first, second = spend_key(DAY, *one), spend_key(DAY, *other)
    assert (first.text == second.text) == (first == second)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"book": "a b", "entries": []},
        {"book": "a", "entries": {}},
        {"book": "a", "entries": [{}]},
        {"book": "a", "entries": [entry(KEY, ONE) | {"tokens": -1}]},
        {"book": "a", "entries": [entry(KEY, ONE) | {"tokens": True}]},
        {"book": "a", "entries": [entry(KEY, ONE) | {"tokens": 2**60}]},
        {"book": "a", "entries": [entry(KEY, ONE) | {"day": "20260120"}]},
        {"book": "a", "entries": [entry(KEY, ONE) | {"day": "soon"}]},
        {"book": "a", "entries": [entry(KEY, ONE) | {"dataset": None}]},
        {"book": "a", "entries": [entry(KEY, ONE)] * 2_001},
    ],
)
def test_what_can_not_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadDocument, match="schema_invalid"):
        told(wrong)


def test_made_up_books_do_not_make_a_row_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spending, "BOOKS_MAX", 5)
    stored = StoredSpend(())
    for number in range(5):
        assert stored.tell(body(f"b{number}"), NOW)
    with pytest.raises(BadDocument, match="more than 5 books"):
        stored.tell(body("one-more"), NOW)
    (row,) = stored.changed()
    assert row["requests"] == 5


# --- on the table ---------------------------------------------------------------------------------------------


def test_a_telling_that_is_delivered_again_counts_once_and_leaves_no_job(tmp_path: Path) -> None:
    place = str(tmp_path)
    writer = open_writer(place)
    more = body("a", counts={KEY: ONE + ONE})
    assert tell(writer, body("a"), more, body("a")) == [Outcome.INDEXED, Outcome.INDEXED, Outcome.UNCHANGED]
    assert tell(open_writer(place), more, body("b")) == [Outcome.UNCHANGED, Outcome.INDEXED]
    (row,) = read_spend(place, {})
    assert (row.key, row.counts, row.updated_at) == (KEY, ONE + ONE + ONE, NOW)
    assert row.books == {"a": ONE + ONE, "b": ONE}
    import lance

    assert lance.dataset(f"{place}/shoal_jobs.lance").count_rows() == 1  # the fence


def test_a_bad_telling_is_a_dead_letter_and_the_others_of_its_batch_count(tmp_path: Path) -> None:
    place = str(tmp_path)
    outcomes = tell(open_writer(place), body("a"), {"book": "a", "entries": 7}, body("b"))
    assert outcomes == [Outcome.INDEXED, Outcome.DEAD_LETTERED, Outcome.INDEXED]
    assert [row.counts for row in read_spend(place, {})] == [ONE + ONE]


def test_the_ledger_is_read_by_day_and_never_shows_the_fence(tmp_path: Path) -> None:
    place = str(tmp_path)
    assert read_spend(place, {}) == []  # no table yet
    writer = open_writer(place)
    assert read_spend(place, {}) == []
    days = [(NOW - timedelta(days=back)).date().isoformat() for back in range(4)]
    tell(writer, body("a", counts={spend_key(day, "m", "c", "O'Neil", "d", "live"): ONE for day in days}))
    assert [row.key.day for row in read_spend(place, {}, since=days[2], until=days[1])] == [days[2], days[1]]
    assert len(read_spend(place, {})) == 4


def test_documents_and_tellings_of_one_batch_are_both_written(tmp_path: Path) -> None:
    writer = open_writer(str(tmp_path))
    acks = writer.apply([document("prod:ds:a", 1), command("s1", "spend", body("a"))], (), NOW)
    assert [ack.outcome for ack in acks] == [Outcome.INDEXED, Outcome.INDEXED]
    upkeep(writer, NOW)
    assert [astuple(row.counts) for row in read_spend(str(tmp_path), {})] == [astuple(ONE)]
