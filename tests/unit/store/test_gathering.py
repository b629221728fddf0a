"""Look-ups of several questions in one query."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import pytest

from shoal.errors import TransientError
from shoal.store import gathering
from shoal.store.gathering import Gathering


class Table:
    """Rows {id, text} for every key but those that begin with "none"; each reading waits to be let go."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], str]] = []
        self.let = asyncio.Event()
        self.error: Exception | None = None
        self.of_each = 1

    async def read(
        self, kind: str, column: str, keys: Collection[str], columns: Sequence[str], condition: str, most: int | None
    ) -> list[dict[str, Any]]:
        self.asked.append((sorted(keys), condition))
        await self.let.wait()
        if self.error is not None:
            raise self.error
        rows = [{"id": key, "text": key.upper()} for key in sorted(keys) if not key.startswith("none")] * self.of_each
        return rows[:most]


@pytest.fixture
def table() -> Table:
    return Table()


def ask(gathered: Gathering, *keys: str, **how: Any) -> asyncio.Task[list[dict[str, Any]] | None]:
    return asyncio.create_task(gathered.rows("vectors", "id", keys, ("id", "text"), **how))


async def test_what_is_asked_while_a_query_runs_goes_together_in_the_next(table: Table) -> None:
    gathered = Gathering(table.read)
    first = ask(gathered, "a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [ask(gathered, "b", "c"), ask(gathered, "c", "none"), ask(gathered, "none")]
    await asyncio.sleep(0)
    assert table.asked == [(["a"], "")], "the first waited for nobody"
    table.let.set()
    assert [[row["id"] for row in await each or ()] for each in (first, *others)] == [["a"], ["b", "c"], ["c"], []]
    assert table.asked[1:] == [(["b", "c", "none"], "")]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not gathered._waiting
    assert not gathered._running


async def test_questions_of_another_condition_are_not_mixed(table: Table) -> None:
    table.let.set()
    gathered = Gathering(table.read)
    await asyncio.gather(ask(gathered, "a"), ask(gathered, "b", condition="x = 1"))
    assert sorted(table.asked) == [(["a"], ""), (["b"], "x = 1")]


async def test_each_caller_has_rows_of_its_own(table: Table) -> None:
    table.let.set()
    gathered = Gathering(table.read)
    one, two = await asyncio.gather(ask(gathered, "a"), ask(gathered, "a"))
    assert one
    one[0]["text"] = "changed"
    assert two == [{"id": "a", "text": "A"}]


async def test_one_who_gives_up_takes_nothing_from_the_others(table: Table) -> None:
    gathered = Gathering(table.read)
    running, waits, gives_up = ask(gathered, "a"), ask(gathered, "b"), ask(gathered, "c")
    await asyncio.sleep(0)
    for task in (running, gives_up):
        task.cancel()
    await asyncio.sleep(0)
    table.let.set()
    assert await waits == [{"id": "b", "text": "B"}]


async def test_an_error_reaches_all_who_asked_together_and_not_those_after(table: Table) -> None:
    table.let.set()
    table.error = TransientError("away")
    gathered = Gathering(table.read)
    answers = await asyncio.gather(ask(gathered, "a"), ask(gathered, "b"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [TransientError, TransientError]
    table.error = None
    assert await ask(gathered, "a") == [{"id": "a", "text": "A"}]


async def test_a_query_stays_below_its_keys_however_many_wait(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "KEYS_MAX", 3)
    table.let.set()
    gathered = Gathering(table.read)
    await asyncio.gather(*(ask(gathered, f"{n}a", f"{n}b") for n in range(4)), ask(gathered, *"abcdefgh"))
    assert [len(keys) for keys, _ in table.asked] == [2, 2, 2, 2, 8], "one that is larger goes alone"


async def test_who_asks_beside_one_with_too_many_rows_is_told_to_ask_alone(table: Table) -> None:
    table.let.set()
    table.of_each = 5
    gathered = Gathering(table.read)
    assert await ask(gathered, "a", most=5) is None
    assert len(await ask(gathered, "a", most=6) or ()) == 5


async def test_who_comes_just_as_the_last_query_ends_is_answered(table: Table) -> None:
    table.let.set()
    gathered = Gathering(table.read)
    for _ in range(50):
        first = ask(gathered, "a")
        for _ in range(8):  # at whatever step of the first
            late = ask(gathered, "b")
            await asyncio.sleep(0)
            assert await late == [{"id": "b", "text": "B"}]
        assert await first == [{"id": "a", "text": "A"}]


async def test_nobody_waits_for_a_query_that_is_ended(table: Table) -> None:
    gathered = Gathering(table.read)
    asks = [ask(gathered, "a"), ask(gathered, "b")]
    await asyncio.sleep(0)
    (running,) = gathered._running.values()
    running.cancel()
    answers = await asyncio.gather(*asks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [asyncio.CancelledError] * 2
