"""The writer with scripted tables: every caller hears what became of its document, whatever the tables do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shoal import tracing
from shoal.actors import writer as module
from shoal.actors.writer import Writer
from shoal.errors import ConfigurationError, DeadReason, FencedError, TransientError
from shoal.records import (
    Ack,
    Announcement,
    Command,
    Deletion,
    Embedded,
    EmbeddedCommand,
    Fetched,
    Outcome,
    Position,
    Progress,
    Writable,
)
from shoal.settings import Settings
from shoal.store.generations import MovedError
from shoal.store.writing import TablesStatistics

CALLERS = [f"00-{digit * 32}-{digit * 16}-01" for digit in "abc"]


def deletion(name: str) -> Deletion:
    return Deletion(Position("c", "t", 0, 0, 0), "scraper", name)


class FakeTables:
    """`apply` does what the script says for a batch, and remembers what became durable, in order."""

    def __init__(self, script: Callable[[list[str]], None] = lambda _: None) -> None:
        self.script = script
        self.batches: list[list[str]] = []
        self.durable: list[str] = []
        self.progress: Sequence[Progress] = ()
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def apply(self, batch: Sequence[Writable], progress: Sequence[Progress], now: datetime) -> list[Ack]:
        names = [str(item.document_id) for item in batch if isinstance(item, Deletion)]
        self.batches.append(names)
        self.script(names)
        self.durable += names
        self.progress = progress
        return [Ack(Outcome.DELETED, commit_sequence=len(self.durable)) for _ in batch]

    is_building = False

    def maintain(self, now: datetime) -> str | None:
        return None

    def statistics(self) -> TablesStatistics:
        return TablesStatistics(1, len(self.durable), len(self.batches), None, 0, 0, 0, "none yet")

    def resolve_paths(self, paths: Sequence[str]) -> dict[str, str]:
        return {path: f"id of {path}" for path in paths}


class Opened:
    """Stands for `TableWriter`: counts how often the tables are opened."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.count, self.gate = list(answers), 0, threading.Event()
        self.gate.set()

    def open(self, *_: Any, **__: Any) -> FakeTables:
        self.gate.wait(5)
        self.count += 1
        answer = self.answers[min(self.count, len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Writer, Opened]]:
    def make(*answers: Any, rows_max: int = 100) -> tuple[Writer, Opened]:
        opened = Opened(*answers)
        monkeypatch.setattr(module, "TableWriter", opened)
        settings = Settings(commit_linger_ms=20, commit_rows_max=rows_max, _env_file=None)
        return Writer(settings, "hash:8", 8), opened

    return make


async def write_all(writer: Writer, names: Sequence[str]) -> list[Any]:
    """What each caller is told; nobody may wait for ever."""
    calls = (writer.write(deletion(name)) for name in names)
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)


async def test_calls_share_a_commit_and_each_gets_its_own_ack(made: Any) -> None:
    tables = FakeTables()
    writer, _ = made(tables)
    acks = await write_all(writer, ["a", "b", "c"])
    assert tables.batches == [["a", "b", "c"]]
    assert [ack.outcome for ack in acks] == [Outcome.DELETED] * 3


async def test_what_it_writes_of_each_message_stands_in_its_trace_whatever_was_asked(made: Any) -> None:
    exporter = InMemorySpanExporter()
    tracing.configure(Settings(_env_file=None), "test", exporter)
    at, when = Position("c", "t", 0, 0, 0), datetime(2026, 1, 1, tzinfo=UTC)
    document = Announcement(
        at, "scraper", "a", "1", "s3://b/k", None, "d", "prod", "a", "S", "data", "s", when, trace=CALLERS[0]
    )
    asked: list[Writable] = [
        Embedded(Fetched(document, "0" * 64)),
        Deletion(at, "scraper", "b", trace=CALLERS[1]),
        EmbeddedCommand(Command(at, "c", "fix", "scraper", "{}", "me", when, trace=CALLERS[2])),
        deletion("of nobody who traces"),
    ]
    try:
        writer, _ = made(FakeTables())
        await asyncio.wait_for(asyncio.gather(*map(writer.write, asked)), 5)
    finally:
        tracing.stop()
    spans = exporter.get_finished_spans()
    (group,) = [span for span in spans if span.name == "group commit"]
    assert [f"{link.context.trace_id:032x}" for link in group.links] == [of.split("-")[1] for of in CALLERS]
    for caller in CALLERS:
        mine = {span.name: span for span in spans if f"{span.context.trace_id:032x}" == caller.split("-")[1]}
        assert mine.keys() == {"write", "commit"}
        assert f"{mine['write'].parent.span_id:016x}" == caller.split("-")[2]
        assert mine["commit"].parent.span_id == mine["write"].context.span_id
        assert [link.context.span_id for link in mine["commit"].links] == [group.context.span_id]
    assert len(spans) == 2 * len(CALLERS) + 1


async def test_many_calls_that_meet_a_restarted_writer_open_the_tables_once(made: Any) -> None:
    # Each opening takes an epoch: a second one would fence the first, and this writer would end by its own hand.
    tables = FakeTables()
    writer, opened = made(tables)
    opened.gate.clear()
    calls = [asyncio.create_task(writer.write(deletion(str(n)))) for n in range(50)]
    starts = [asyncio.create_task(writer.start()) for _ in range(3)]
    await asyncio.sleep(0.05)
    opened.gate.set()
    await asyncio.wait_for(asyncio.gather(*calls, *starts), 5)
    assert opened.count == 1
    assert sorted(tables.durable) == sorted(map(str, range(50)))


async def test_who_waits_for_an_opening_that_fails_is_told_at_once_and_may_come_again(made: Any) -> None:
    tables = FakeTables()
    writer, opened = made(TransientError("storage down"), tables)
    told = await write_all(writer, ["a", "b", "c"])
    assert [str(error) for error in told] == ["storage down"] * 3
    assert opened.count == 1, "one refusal for all who asked at once"
    assert [ack.outcome for ack in await write_all(writer, ["a"])] == [Outcome.DELETED]


async def test_a_row_that_can_not_be_stored_is_found_and_the_others_are_written(made: Any) -> None:
    def refuse(names: list[str]) -> None:
        if "bad" in names:
            raise ValueError("not an array")

    tables = FakeTables(refuse)
    writer, _ = made(tables)
    names = ["a", "b", "bad", "c", "d"]
    acks = dict(zip(names, await write_all(writer, names), strict=True))
    assert tables.durable == ["a", "b", "c", "d"]
    assert acks["bad"].failure.reason is DeadReason.WRITE_REJECTED
    assert "not an array" in acks["bad"].failure.message
    assert acks["d"].outcome is Outcome.DELETED


async def test_a_row_that_makes_the_tables_fail_oddly_does_not_stop_the_others(made: Any) -> None:
    def stumble(names: list[str]) -> None:
        if "bad" in names:
            raise KeyError("a bug")

    tables = FakeTables(stumble)
    writer, _ = made(tables)
    names = ["a", "bad", "c"]
    told = dict(zip(names, await write_all(writer, names), strict=True))
    assert tables.durable == ["a", "c"]
    assert isinstance(told["bad"], KeyError), "as it was: the reader decides when to give it up"


async def test_an_unwell_storage_is_told_to_all_without_looking_for_a_culprit(made: Any) -> None:
    def down(_: list[str]) -> None:
        raise TransientError("S3 is slow")

    tables = FakeTables(down)
    writer, _ = made(tables)
    told = await write_all(writer, ["a", "b", "c", "d"])
    assert [str(error) for error in told] == ["S3 is slow"] * 4
    assert len(tables.batches) == 1


async def test_a_fenced_writer_tells_everyone_who_waits_and_who_comes(made: Any) -> None:
    def fenced(_: list[str]) -> None:
        raise FencedError("a later writer has the tables")

    tables = FakeTables(fenced)
    writer, opened = made(tables, rows_max=2)  # ten callers are five batches: four of them are still queued
    told = await write_all(writer, [str(n) for n in range(10)])
    assert [type(error) for error in told] == [FencedError] * 10
    assert tables.closed, "nothing is built beside a writer that has lost its tables"
    assert len(tables.batches) == 1, "nothing is tried again"
    assert [type(error) for error in await write_all(writer, ["late"])] == [FencedError]
    assert "FENCED" in (await writer.statistics()).ended
    assert opened.count == 1, "it does not take the tables back"


class PanicException(BaseException):
    """As pyo3's: native code that panics raises no Exception."""


async def test_a_panic_in_native_code_leaves_nobody_waiting_and_the_next_call_opens_anew(made: Any) -> None:
    def panic(names: list[str]) -> None:
        if "panic" in names:
            raise PanicException("index out of bounds")

    tables = FakeTables(panic)
    writer, opened = made(tables, rows_max=1)
    told = await write_all(writer, ["panic", "queued behind it"])
    assert [type(error) for error in told] == [TransientError] * 2
    assert "PanicException" in str(told[0])
    assert [ack.outcome for ack in await write_all(writer, ["a"])] == [Outcome.DELETED]
    assert opened.count == 2


async def test_a_writer_whose_tables_were_left_looks_for_the_collection_at_the_next_call(made: Any) -> None:
    # There and back before the supervisor looked: the model is the same, so nobody would start this writer anew.
    def left(_: list[str]) -> None:
        raise MovedError("moved")

    old, new = FakeTables(left), FakeTables()
    writer, opened = made(old, new)
    assert [type(told) for told in await write_all(writer, ["a", "b"])] == [MovedError] * 2
    assert [ack.outcome for ack in await write_all(writer, ["a", "b"])] == [Outcome.DELETED] * 2
    assert opened.count == 2
    assert old.closed


async def test_the_fence_carries_the_furthest_progress_of_each_partition(made: Any) -> None:
    tables = FakeTables()
    writer, _ = made(tables)
    late, early = Progress("c", "t", 0, 9), Progress("c", "t", 0, 4)
    await asyncio.wait_for(asyncio.gather(writer.write(deletion("a"), [late]), writer.write(deletion("b"), [early])), 5)
    assert tables.progress == (late,)


async def test_a_path_is_resolved_by_a_writer_that_was_just_restarted(made: Any) -> None:
    writer, _ = made(FakeTables())
    assert await writer.resolve("s3://b/k") == "id of s3://b/k"


async def test_tables_that_refuse_are_told_as_a_configuration_error(made: Any) -> None:
    writer, _ = made(ConfigurationError("another model"))
    with pytest.raises(ConfigurationError, match="another model"):
        await writer.start()
