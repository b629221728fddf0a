"""The pipeline with scripted stages: each test is a story of one fault."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from shoal.actors.backpressure import Credits
from shoal.actors.pipeline import RECORDS_AT_ONCE, FetchResult, Item, PayloadLostError, Pipeline, UnforeseenError
from shoal.errors import BadDocument, ConfigurationError, DeadReason, PermanentError, TransientError
from shoal.histograms import read
from shoal.records import (
    Ack,
    Announcement,
    Command,
    Deletion,
    Embedded,
    EmbeddedCommand,
    Failure,
    Fetched,
    Outcome,
    Position,
    Work,
)
from shoal.sources.messages import RawMessage


def message(offset: int = 0) -> RawMessage:
    return RawMessage(Position("c", "t", 0, offset, 1_700_000_000_000), b"k", b"{}", ())


def announcement(document_id: str = "prod:d:u", offset: int = 0, location: str = "s3://b/k") -> Announcement:
    return Announcement(
        position=message(offset).position, collection="scraper", document_id=document_id, version="1",
        location=location, content=None, dataset="d", environment="prod", urn="u", data_source="S",
        data_type="x", scraper_name="d", collected_at=datetime(2026, 1, 1, tzinfo=UTC), outcome_id="o1",
    )  # fmt: skip


class FakeStages:
    """Every stage answers well unless the script for it holds an error or a value to give first."""

    def __init__(self) -> None:
        self.script: dict[str, list[Any]] = defaultdict(list)
        self.calls: list[tuple[str, Any]] = []
        self.answer: Callable[[Announcement], tuple[FetchResult, Any]] | None = None
        self.settled: list[tuple[int, Outcome | None]] = []
        self.gate: asyncio.Event | None = None
        self.running = self.most_running = 0

    def _next(self, stage: str, subject: Any, default: Any) -> Any:
        self.calls.append((stage, subject))
        answer = self.script[stage].pop(0) if self.script[stage] else default
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def fetch(self, announcement: Announcement) -> tuple[FetchResult, Any]:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        if self.gate:
            await self.gate.wait()
        self.running -= 1
        if self.answer is not None:
            self.calls.append(("fetch", announcement))
            return self.answer(announcement)
        return self._next("fetch", announcement, (FetchResult(None), Fetched(announcement, "a" * 64)))

    async def embed(self, fetched: Any) -> tuple[Failure | None, Any]:
        return self._next("embed", fetched, (None, Embedded(fetched)))

    async def embed_command(self, command: Command) -> EmbeddedCommand:
        return self._next("embed_command", command, EmbeddedCommand(command))

    async def write(self, writable: Any) -> Ack:
        return self._next("write", writable, Ack(Outcome.INDEXED, commit_sequence=9))

    async def resolve(self, s3_path: str) -> str | None:
        return self._next("resolve", s3_path, None)

    async def dead_letter(self, raw: RawMessage, failure: Failure) -> None:
        self._next("dead_letter", failure, None)

    async def alive(self, dependency: str) -> bool:
        return self._next("alive", dependency, True)

    async def settle(self, raw: RawMessage, outcome: Outcome | None, failure: Failure | None) -> None:
        self.settled.append((raw.position.offset, outcome))

    async def report(self, outcome_id: str, outcome: Outcome, raw: RawMessage, detail: dict[str, Any]) -> None:
        self._next("report", (outcome_id, outcome, detail), None)

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def pipeline(
    stages: FakeStages, parse: Callable[[RawMessage], list[Work]], **more: Any
) -> tuple[Pipeline, list[float]]:
    now = [0.0]

    async def pause(seconds: float) -> None:
        now[0] += seconds
        await asyncio.sleep(0)

    made = Pipeline(stages, parse, give_up_after_s=10.0, clock=lambda: now[0], pause=pause, **more)
    return made, now


def item(offset: int = 0) -> Item:
    return Item(message(offset), started_at=0.0)


async def test_a_document_passes_every_stage_and_is_reported_after_the_ack() -> None:
    stages = FakeStages()
    line, _ = pipeline(stages, lambda _: [announcement()])
    await line.run(item())
    assert stages.names() == ["fetch", "embed", "write", "report"]
    assert stages.calls[-1][1] == ("o1", Outcome.INDEXED, {"commit_sequence": 9})
    assert line.outcomes == {"indexed": 1}


async def test_an_unusable_message_becomes_a_dead_letter_and_nothing_else() -> None:
    def parse(_: RawMessage) -> list[Work]:
        raise BadDocument(DeadReason.NOT_JSON, "no")

    stages = FakeStages()
    line, _ = pipeline(stages, parse, outcome_id_of=lambda _: "o1")
    await line.run(item())
    assert stages.names() == ["dead_letter", "report"]
    assert line.dead_letters == {"not_json": 1}


async def test_the_dead_letter_is_durable_before_the_item_ends() -> None:
    stages = FakeStages()
    stages.script["fetch"] = [(FetchResult(Fetched(announcement(), failure=Failure(DeadReason.EMPTY, "", "x"))), None)]
    stages.script["dead_letter"] = [TransientError("broker down"), TransientError("still down")]
    line, _ = pipeline(stages, lambda _: [announcement()])
    await line.run(item())
    assert stages.names() == ["fetch", "dead_letter", "dead_letter", "dead_letter", "report"]


async def test_a_document_that_was_fetched_but_not_extracted_keeps_its_row() -> None:
    failed = Fetched(announcement(), "a" * 64, failure=Failure(DeadReason.EXTRACTION_FAILED, "bad", "extract"))
    stages = FakeStages()
    stages.script["fetch"] = [(FetchResult(failed), None)]
    line, _ = pipeline(stages, lambda _: [announcement()])
    await line.run(item())
    assert stages.names() == ["fetch", "write", "dead_letter", "report"]
    assert stages.calls[1][1] == Embedded(failed)
    assert line.outcomes == {"dead_lettered": 1}


async def test_texts_that_the_provider_refuses_are_written_as_an_error_and_dead_lettered() -> None:
    stages = FakeStages()
    stages.script["embed"] = [(Failure(DeadReason.EMBEDDING_REJECTED, "no", "embed"), "payload")]
    line, _ = pipeline(stages, lambda _: [announcement()])
    await line.run(item())
    assert stages.names() == ["fetch", "embed", "write", "dead_letter", "report"]


async def test_bad_systems_are_retried_until_they_recover() -> None:
    stages = FakeStages()
    stages.script["fetch"] = [TransientError("slow down", 3.0)]
    stages.script["embed"] = [ConfigurationError("wrong key")] * 5
    stages.script["write"] = [TransientError("conflict")]
    line, now = pipeline(stages, lambda _: [announcement()])
    await line.run(item())
    assert line.outcomes == {"indexed": 1}
    assert line.retries == 7
    assert now[0] > 3.0, "it waited as long as it was told to"


async def test_one_bad_object_is_given_up_while_others_of_its_bucket_succeed() -> None:
    stages = FakeStages()
    line, _ = pipeline(stages, lambda raw: [announcement(f"prod:d:{raw.position.offset}", raw.position.offset)])
    await line.run(item(1))
    stages.script["fetch"] = [TransientError("500")] * 1000
    await asyncio.wait_for(line.run(item(2)), 5)
    assert line.dead_letters == {"object_unavailable": 1}


async def test_one_object_that_fails_on_a_quiet_night_is_given_up_only_if_its_bucket_answers() -> None:
    stages = FakeStages()
    stages.script["fetch"] = [TransientError("503")] * 60
    stages.script["alive"] = [False] * 20
    line, now = pipeline(stages, lambda _: [announcement()])
    await asyncio.wait_for(line.run(item()), 5)
    assert line.dead_letters == {"object_unavailable": 1}
    assert stages.names().count("alive") == 21, "asked after its time, again and again, until it answered"
    assert now[0] > 15.0


async def test_an_outage_makes_all_wait_behind_one_probe_and_loses_nobody() -> None:
    stages = FakeStages()
    stages.script["fetch"] = [ConfigurationError("AccessDenied; check the permissions")] * 60
    stages.script["alive"] = [False] * 1000
    line, now = pipeline(
        stages, lambda raw: [announcement(f"prod:d:{raw.position.offset}", location=f"s3://b/{raw.position.offset}")]
    )
    tasks = [asyncio.create_task(line.run(item(offset))) for offset in range(40)]
    while now[0] < 30.0:
        await asyncio.sleep(0)
    assert list(line.breakers()) == ["s3://b"]
    assert "AccessDenied" in line.breakers()["s3://b"]
    tried = stages.names().count("fetch")
    assert tried < 60, "the forty that began, then probes"
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert line.outcomes == {"indexed": 40}
    assert line.breakers() == {}


async def test_what_is_fetched_is_held_within_the_bound_and_given_back_however_it_ends() -> None:
    stages, credits, most = FakeStages(), Credits(1000, 1000), [0]
    stages.script["embed"] = [TransientError("slow down")] * 3
    stages.script["fetch"] = [(FetchResult(None, 300), "payload") for _ in range(20)]

    async def watch() -> None:
        while True:
            most[0] = max(most[0], credits.payload_bytes)
            await asyncio.sleep(0)

    line, _ = pipeline(
        stages,
        lambda raw: [announcement(f"prod:d:{raw.position.offset}", location=f"s3://b/{raw.position.offset}")],
        credits=credits,
        payload_bytes=400,
    )
    watcher = asyncio.create_task(watch())
    await asyncio.wait_for(asyncio.gather(*(line.run(item(offset)) for offset in range(20))), 5)
    watcher.cancel()
    assert 600 <= most[0] <= 1000, "several at once, never more than the bound"
    assert (credits.payloads, credits.payload_bytes) == (0, 0)


async def test_a_bucket_that_does_not_exist_does_not_stop_those_that_do() -> None:
    """More messages of it than there is room for at once, and they come first."""
    stages, credits = FakeStages(), Credits(1000, 1000)

    def answer(announcement: Announcement) -> tuple[FetchResult, Any]:
        if announcement.location.startswith("s3://typo"):
            raise ConfigurationError("NoSuchBucket")
        return FetchResult(None, 10), "payload"

    stages.answer = answer
    stages.script["alive"] = [False] * 10_000

    def parse(raw: RawMessage) -> list[Work]:
        bucket = "typo" if raw.position.offset < 30 else "good"
        return [announcement(f"prod:d:{raw.position.offset}", location=f"s3://{bucket}/{raw.position.offset}")]

    line, _ = pipeline(stages, parse, credits=credits, payload_bytes=400)
    await asyncio.wait_for(asyncio.gather(*(line.run(item(offset)) for offset in range(80))), 20)
    assert line.outcomes == {"indexed": 50, "dead_lettered": 30}
    assert line.dead_letters == {"access_refused": 30}
    assert {failure.stage for name, failure in stages.calls if name == "dead_letter"} == {"fetch"}
    assert line.breakers() == {}
    assert (credits.payloads, credits.payload_bytes) == (0, 0)


async def test_an_abandoned_work_does_not_let_the_next_one_overtake_those_before_it() -> None:
    stages = FakeStages()
    stages.gate = asyncio.Event()
    line, _ = pipeline(
        stages, lambda raw: [announcement("prod:d:same", raw.position.offset, f"s3://b/{raw.position.offset}")]
    )
    first, abandoned, last = (asyncio.create_task(line.run(item(offset))) for offset in range(3))
    while not stages.running:
        await asyncio.sleep(0)
    abandoned.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert stages.most_running == 1, "the last still waits for the first"
    stages.gate.set()
    await asyncio.gather(first, last)
    assert [call.position.offset for name, call in stages.calls if name == "fetch"] == [0, 2]


async def test_an_abandoned_document_gives_its_room_back() -> None:
    stages, credits = FakeStages(), Credits(1000, 1000)
    stages.gate = asyncio.Event()
    line, _ = pipeline(stages, lambda _: [announcement()], credits=credits, payload_bytes=400)
    task = asyncio.create_task(line.run(item()))
    while not stages.running:
        await asyncio.sleep(0)
    assert credits.payload_bytes == 400
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (credits.payloads, credits.payload_bytes) == (0, 0)


async def test_what_became_of_a_message_is_settled_before_it_ends() -> None:
    stages = FakeStages()
    line, _ = pipeline(stages, lambda _: [announcement()])
    await line.run(item(1))
    stages.script["fetch"] = [BadDocument(DeadReason.EMPTY, "no bytes")]
    await line.run(item(2))
    assert stages.settled == [(1, Outcome.INDEXED), (2, Outcome.DEAD_LETTERED)]


async def test_documents_of_one_id_run_one_after_the_other_in_log_order() -> None:
    stages = FakeStages()
    stages.gate = asyncio.Event()
    line, _ = pipeline(stages, lambda raw: [announcement("prod:d:same", raw.position.offset)])
    tasks = [asyncio.create_task(line.run(item(offset))) for offset in range(4)]
    await asyncio.sleep(0)
    stages.gate.set()
    await asyncio.gather(*tasks)
    assert stages.most_running == 1
    assert [call.position.offset for name, call in stages.calls if name == "fetch"] == [0, 1, 2, 3]
    assert line._tails == {}, "nothing is kept of finished documents"


async def test_documents_of_different_ids_run_side_by_side() -> None:
    stages = FakeStages()
    stages.gate = asyncio.Event()
    line, _ = pipeline(
        stages, lambda raw: [announcement(f"prod:d:{raw.position.offset}", location=f"s3://b/{raw.position.offset}")]
    )
    tasks = [asyncio.create_task(line.run(item(offset))) for offset in range(4)]
    while stages.running < 4:
        await asyncio.sleep(0)
    stages.gate.set()
    await asyncio.gather(*tasks)
    assert stages.most_running == 4


async def test_a_deletion_waits_for_the_insert_of_the_same_object() -> None:
    stages = FakeStages()
    works: dict[int, Work] = {
        0: announcement(location="s3://b/k"),
        1: Deletion(message(1).position, "scraper", None, s3_path="s3://b/k"),
    }
    line, _ = pipeline(stages, lambda raw: [works[raw.position.offset]])
    await asyncio.gather(line.run(item(0)), line.run(item(1)))
    written = [call for name, call in stages.calls if name == "write"]
    assert isinstance(written[0], Embedded)
    assert isinstance(written[1], Deletion)


async def test_a_lost_payload_starts_the_document_over() -> None:
    stages = FakeStages()
    stages.script["embed"] = [PayloadLostError("node died")]
    stages.script["write"] = [PayloadLostError("node died")]
    line, _ = pipeline(stages, lambda _: [announcement()])
    await line.run(item())
    assert stages.names() == ["fetch", "embed", "fetch", "embed", "write", "fetch", "embed", "write", "report"]


async def test_an_s3_event_is_matched_to_the_document_at_its_path() -> None:
    stages = FakeStages()
    stages.script["resolve"] = ["prod:d:known"]
    line, _ = pipeline(stages, lambda _: [announcement("prod:s3:b/k")], is_s3_event_id=lambda name: ":s3:" in name)
    await line.run(item())
    assert stages.calls[1][1].document_id == "prod:d:known"


async def test_a_message_of_several_records_ends_only_when_all_did() -> None:
    stages = FakeStages()
    works = [announcement(f"prod:d:{n}", location=f"s3://b/{n}") for n in range(3)]
    refused = Fetched(works[1], failure=Failure(DeadReason.OBJECT_MISSING, "gone", "fetch"))
    stages.script["fetch"] = [(FetchResult(None), Fetched(works[0])), (FetchResult(refused), None)]
    line, _ = pipeline(stages, lambda _: list(works))
    await line.run(item())
    assert stages.names().count("dead_letter") == 1
    assert line.outcomes == {"indexed": 2, "dead_lettered": 1}


async def test_a_row_that_the_writer_refuses_becomes_a_dead_letter() -> None:
    stages = FakeStages()
    failure = Failure(DeadReason.COLLECTION_REFUSED, "no such collection", "write")
    stages.script["write"] = [Ack(Outcome.DEAD_LETTERED, failure)]
    line, _ = pipeline(stages, lambda _: [announcement()])
    await line.run(item())
    assert line.dead_letters == {"collection_refused": 1}


async def test_a_bug_is_not_swallowed() -> None:
    stages = FakeStages()
    stages.script["write"] = [RuntimeError("a bug")]
    line, _ = pipeline(stages, lambda _: [announcement()])
    with pytest.raises(RuntimeError):
        await line.run(item())


@pytest.mark.parametrize("kind", ["spend", "fix_mark", "delete"])
async def test_a_command_without_a_vector_is_done_while_the_embedder_embeds_nothing(kind: str) -> None:
    stages = FakeStages()
    stages.script["embed"] = stages.script["embed_command"] = [TransientError("the budget is spent", 60.0)]
    telling = Command(message().position, "s1", kind, "scraper", "{}", "e", datetime(2026, 1, 1, tzinfo=UTC))
    line, _ = pipeline(stages, lambda _: [telling])
    await line.run(item())
    assert stages.names() == ["write"]


async def test_a_bad_record_found_by_any_stage_is_a_dead_letter_and_no_bug() -> None:
    command = Command(message().position, "c1", "fix", "scraper", "{}", "me", datetime(2026, 1, 1, tzinfo=UTC))
    stages = FakeStages()
    stages.script["embed_command"] = [BadDocument(DeadReason.EMBEDDING_REJECTED, "refused")]
    line, _ = pipeline(stages, lambda _: [command])
    await line.run(item())
    assert stages.names() == ["embed_command", "dead_letter"]
    assert stages.calls[1][1].reason is DeadReason.EMBEDDING_REJECTED


@pytest.mark.parametrize(
    ("stage", "reason"), [("embed", DeadReason.EMBEDDING_REJECTED), ("write", DeadReason.WRITE_REJECTED)]
)
async def test_a_document_that_alone_meets_a_bug_is_given_up_while_others_pass(stage: str, reason: DeadReason) -> None:
    stages = FakeStages()
    line, _ = pipeline(stages, lambda raw: [announcement(f"prod:d:{raw.position.offset}", raw.position.offset)])
    await line.run(item(1))
    stages.script[stage] = [UnforeseenError("KeyError: a bug")] * 1000
    await asyncio.wait_for(line.run(item(2)), 5)
    assert line.dead_letters == {reason.value: 1}


async def test_a_bug_that_all_documents_meet_gives_up_nobody() -> None:
    stages = FakeStages()
    stages.script["write"] = [UnforeseenError("RuntimeError: nobody knows")] * 300
    line, now = pipeline(stages, lambda raw: [announcement(f"prod:d:{raw.position.offset}", raw.position.offset)])
    await asyncio.wait_for(asyncio.gather(line.run(item(1)), line.run(item(2))), 5)
    assert now[0] > 100.0, "much longer than one document is tried alone"
    assert line.outcomes == {"indexed": 2}


async def test_a_system_that_says_never_is_still_no_bad_document() -> None:
    stages = FakeStages()
    stages.script["write"] = [PermanentError("the table is damaged: restore it from a backup")] * 3
    line, _ = pipeline(stages, lambda _: [announcement()])
    await line.run(item())
    assert line.outcomes == {"indexed": 1}
    assert line.retries == 3


async def test_a_report_that_nobody_can_take_does_not_hold_up_the_partition() -> None:
    stages = FakeStages()
    stages.script["report"] = [ConfigurationError("no such topic")] * 1000
    line, now = pipeline(stages, lambda _: [announcement()])
    await asyncio.wait_for(line.run(item()), 5)
    assert line.outcomes == {"indexed": 1}
    assert now[0] >= 10.0, "it was tried as long as a document is"


async def test_the_records_of_one_message_run_a_few_at_a_time() -> None:
    stages = FakeStages()
    works = [announcement(f"prod:d:{n}", location=f"s3://b/{n}") for n in range(10 * RECORDS_AT_ONCE)]
    line, _ = pipeline(stages, lambda _: list(works))
    await asyncio.wait_for(line.run(item()), 5)
    assert stages.most_running == RECORDS_AT_ONCE
    assert line.outcomes == {"indexed": len(works)}


async def test_many_records_of_one_document_in_one_message_do_not_wait_for_each_other_for_ever() -> None:
    stages = FakeStages()
    works = [announcement(f"prod:d:{n % 3}", offset=n, location="s3://b/k") for n in range(5 * RECORDS_AT_ONCE)]
    line, _ = pipeline(stages, lambda _: list(works))
    await asyncio.wait_for(line.run(item()), 5)
    assert [call.position.offset for name, call in stages.calls if name == "fetch"] == list(range(len(works)))


KINDS = ("fix", "fix_mark")  # with a vector, and without


async def test_every_stage_gets_the_trace_of_its_message() -> None:
    stages = FakeStages()
    at = message().position
    fix, mark = (Command(at, kind, kind, "scraper", "{}", "me", datetime(2026, 1, 1, tzinfo=UTC)) for kind in KINDS)
    works = [announcement(), announcement(), Deletion(at, "scraper", "prod:d:gone"), fix, mark]
    line, _ = pipeline(stages, lambda _: works)
    driven = item()
    driven.trace = f"00-{'a' * 32}-{'b' * 16}-01"
    await line.run(driven)
    traces = {(name, of.trace) for name, of in stages.calls if name in {"fetch", "embed_command"}}
    assert traces == {("fetch", driven.trace), ("embed_command", driven.trace)}
    written = [of for name, of in stages.calls if name == "write"]
    assert {of.trace for of in written if isinstance(of, Deletion)} == {driven.trace}
    commands = [of.command for of in written if isinstance(of, EmbeddedCommand)]
    assert [(command.kind, command.trace) for command in commands] == [(kind, driven.trace) for kind in KINDS]


async def test_each_call_of_a_stage_is_measured_and_each_retry_counted() -> None:
    stages = FakeStages()
    stages.script["fetch"] = [TransientError("away")]
    line, _ = pipeline(stages, lambda _: [announcement()])
    await line.run(item())
    readings = read(line.durations.counts())
    assert {name: reading.count for name, reading in readings.items()} == {
        "stage.wait_for_room": 2, "stage.fetch": 2, "stage.embed": 1, "stage.write": 1, "stage.settle": 1,
        "stage.report": 1,
    }  # fmt: skip
    assert line.retried == {"fetch": 1}
    assert line.retries == 1
