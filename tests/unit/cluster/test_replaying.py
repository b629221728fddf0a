"""What a replay chooses, and what its copies say of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from shoal.cluster import verifying
from shoal.cluster.replaying import COPY, NOTHING_ASKED, OTHER_DATASET, OTHER_TIME, Choice, Chooser, copy_headers
from shoal.cluster.verifying import Verdict, compare, dead_position, remedy
from shoal.errors import BadDocument, DeadReason
from shoal.records import Announcement, Deletion, Failure, Position
from shoal.settings import Settings, load
from shoal.sources.dead_letters import dead_letter
from shoal.sources.log_reader import Stretch
from shoal.sources.messages import OUTCOME_HEADER, REPLAY_HEADER, RawMessage, origin_of, parse_message
from shoal.store.audit import Finding, Kind, Report

AT = Position("cluster-A", "t", 3, 17, 1_700_000_000_123)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(data_dir=tmp_path, kafka_topics="t")


def raw(value: Any = None, key: bytes | None = b"k", at: Position = AT, **headers: bytes | None) -> RawMessage:
    given = tuple((name.replace("_", "."), text) for name, text in headers.items())
    return RawMessage(at, key, None if value is None else orjson.dumps(value), given)


def notification(dataset: str = "ds") -> dict[str, Any]:
    return {
        "dataset": dataset, "urn": "a", "location": "s3://bucket/a",
        "metadata": {"publish_dtm": "2025-01-20T14:30:00Z", "source": "x", "data_type": "y"},
    }  # fmt: skip


def copy(original: RawMessage) -> RawMessage:
    later = Position(AT.cluster, AT.topic, 0, 99, AT.timestamp_ms + 1_000_000)
    return RawMessage(later, original.key, original.value, tuple(copy_headers(original)))


def test_a_copy_stands_where_its_original_stood_and_so_does_a_copy_of_a_copy(settings: Settings) -> None:
    original = raw(notification())
    for again in (copy(original), copy(copy(original))):
        (work,) = parse_message(again, settings)
        assert isinstance(work, Announcement)
        assert (work.position, work.is_replay, work.is_backfill) == (AT, True, True)
        assert again.position != AT
    (work,) = parse_message(original, settings)
    assert isinstance(work, Announcement)
    assert (work.is_replay, work.is_backfill) == (False, False)
    (gone,) = parse_message(copy(raw(None, key=b"prod:ds:a")), settings)
    assert isinstance(gone, Deletion)
    assert gone.position == AT


@pytest.mark.parametrize(
    "text", [b"", b"x", b"c/t/1/2", b"c/t/1/-2@3", b"c/t/1/99999999999999999999@3", b"\xff/t/1/2@3\n", None]
)
def test_a_copy_that_does_not_say_where_its_original_stood_is_a_bad_record(
    settings: Settings, text: bytes | None
) -> None:
    told = RawMessage(AT, b"k", orjson.dumps(notification()), ((REPLAY_HEADER, text),))
    with pytest.raises(BadDocument) as caught:
        parse_message(told, settings)
    assert caught.value.reason is DeadReason.SCHEMA_INVALID


def test_a_copy_has_the_headers_of_its_original_but_for_those_of_its_senders(settings: Settings) -> None:
    original = RawMessage(
        AT, b"k", b"{}", (("trace", b"1"), (OUTCOME_HEADER, b"w:1"), ("shoal.dlq.replayed", b"2"), ("none", None))
    )
    assert copy_headers(original) == [
        ("trace", b"1"), ("none", None), (REPLAY_HEADER, b"cluster-A/t/3/17@1700000000123"),
    ]  # fmt: skip
    dead = dead_letter(copy(original), Failure(DeadReason.EMPTY, "x", "fetch"), datetime.now(UTC))
    assert origin_of(RawMessage(AT, None, None, tuple(dead[3]))) == AT, "a dead copy is replayed as what it was"


@pytest.mark.parametrize(
    ("choice", "told", "why_not"),
    [
        (Choice(dataset="ds"), raw(notification()), None),
        (Choice(dataset="ds"), raw(notification("other")), OTHER_DATASET),
        (Choice(dataset="ds"), raw(None, key=b"prod:ds:a"), None),
        (Choice(dataset="ds"), raw(None, key=b"prod:other:a"), OTHER_DATASET),
        (Choice(dataset="ds"), raw(["no object"]), OTHER_DATASET),
        (Choice(), raw(["no object"]), None),
        (Choice(), raw({"Event": "s3:TestEvent"}), NOTHING_ASKED),
        (Choice(until=datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)), raw(notification()), OTHER_TIME),
        (Choice(until=datetime(2023, 11, 14, 22, 13, 21, tzinfo=UTC)), raw(notification()), None),
        (Choice(from_time=datetime(2023, 11, 14, 22, 13, 21, tzinfo=UTC)), raw(notification()), OTHER_TIME),
        (Choice(), copy(raw(notification())), COPY),
        (Choice(), copy(raw(notification(), at=replace(AT, offset=2))), None),
        (Choice(), copy(raw(notification(), at=replace(AT, cluster="before"))), None),
    ],
)  # fmt: skip
def test_only_what_is_meant_is_chosen_and_what_is_not_has_a_reason(
    settings: Settings, choice: Choice, told: RawMessage, why_not: str | None
) -> None:
    chooser = Chooser(choice, settings, AT.cluster, {("t", 3): 5, ("t", 0): 0})
    assert chooser.judge(told).why_not == why_not


def test_a_message_of_several_records_has_several_outcomes(settings: Settings) -> None:
    record = {
        "eventTime": "2025-01-21T00:00:00Z", "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "bucket"}, "object": {"key": "a"}},
    }  # fmt: skip
    assert Chooser(Choice(), settings, "c", {}).judge(raw({"Records": [record, record]})).answers == 2


# --- verify ---------------------------------------------------------------------------------------


def test_a_dead_letter_names_its_message_and_garbage_names_none() -> None:
    made = dead_letter(raw(notification()), Failure(DeadReason.EMPTY, "x", "fetch"), datetime.now(UTC))
    there = Position("cluster-A", "t_dlq", 0, 0, 1)
    assert dead_position(RawMessage(there, made[1], made[2], tuple(made[3]))) == ("t", 3, 17, AT.timestamp_ms)
    assert dead_position(raw()) is None
    assert dead_position(raw(None, **{"__connect.errors.topic": b"\xff"})) is None


def finding(name: str) -> Finding:
    return Finding(Kind.MISSING, name, None, AT, "")


def verdict(state: int, *names: str, pending: int = 1) -> Verdict:
    findings = tuple(map(finding, names))
    counts = {**{kind.value: 0 for kind in Kind}, "missing": len(names), "pending": pending}
    return Verdict(Report(counts, findings), findings, "c", True, False, True, state)


@pytest.mark.parametrize(
    ("looks", "left"),
    [
        ([verdict(1)], []),
        ([verdict(1, "a"), verdict(2)], []),  # the next commit explains it
        ([verdict(1, "a", "b"), verdict(2, "b", "c")], ["b"]),  # it stayed
        ([verdict(1, "a"), verdict(1, "a"), verdict(2)], []),  # without a commit between, a look tells nothing new
        ([verdict(1, "a"), verdict(2, "b"), verdict(3)], []),  # others each time: none is sure
        ([verdict(1, "a", pending=0), verdict(1, "a", pending=0)], ["a"]),  # nobody is at work
    ],
)
def test_only_a_difference_that_a_commit_left_is_told(
    settings: Settings, looks: list[Verdict], left: list[str]
) -> None:
    coming: Iterator[Verdict] = iter(looks)
    found = compare(
        settings, 30, look_at=lambda *_: next(coming), clock=lambda: 0.0, pause=lambda _: None
    )  # fmt: skip
    assert [each.document_id for each in found.findings] == left
    assert found.report.counts["missing"] == len(left)
    assert next(coming, None) is None, "no look too few"


def test_looking_again_ends_with_the_time_for_it(settings: Settings) -> None:
    ticks = iter([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    states = iter(range(100))
    found = compare(
        settings, 2.5, look_at=lambda *_: verdict(1, f"{next(states)}"), clock=lambda: next(ticks), pause=lambda _: None
    )  # fmt: skip
    assert len(found.findings) == 1


def test_every_finding_has_a_remedy_that_names_its_message() -> None:
    assert remedy(finding("a")) == "shoal replay --from-offset t/3:17-17"
    for kind in Kind:
        assert remedy(Finding(kind, "a", None, None, ""))


@pytest.mark.parametrize(("rule", "expired", "missing"), [({"ds": {"keep_days": 1}}, 1, 0), ({}, 0, 1)])
def test_verify_judges_the_log_by_the_retention_of_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any], expired: int, missing: int
) -> None:
    """The announcement was collected long ago, is done, and there are no tables."""
    stretch = Stretch("t", 0, 0, 1)

    class Log:
        def __init__(self, *_: Any) -> None: ...
        def __enter__(self) -> Log:
            return self

        def __exit__(self, *_: object) -> None: ...
        def existing(self, topics: Any) -> list[str]:
            return [topic for topic in topics if topic == "t"]

        def whole(self, topics: list[str]) -> list[Stretch]:
            return [stretch] * len(topics)

        def committed(self, _: Any) -> dict[Any, int]:
            return {("t", 0): 1}

        def read(self, stretches: list[Stretch]) -> Iterator[RawMessage]:
            yield from [raw(notification(), at=Position("c", "t", 0, 0, 1))] * len(stretches)

        def earliest(self, _: Any) -> dict[Any, int]:
            return {("t", 0): 0}

    monkeypatch.setattr(verifying, "LogReader", Log)
    monkeypatch.setattr(verifying, "connection", lambda _: SimpleNamespace(cluster="c"))
    settings = load(data_dir=tmp_path, kafka_topics="t", retention=rule)
    counts = verifying.look(settings).report.counts
    assert (counts["expired"], counts["missing"]) == (expired, missing)
