"""The tally of `publish --wait`: what happened, counted once, whatever else stands on the outcome topic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from shoal.cluster import announcing
from shoal.cluster.announcing import Announcer
from shoal.records import Outcome, Position
from shoal.settings import Settings
from shoal.sources.messages import OUTCOME_HEADER, RawMessage
from shoal.sources.publishing import Prepared


class FakeLog:
    """Producer and outcome topic in one: every message sent is answered as `answers` says."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.pending: list[RawMessage] = []
        self.noise: list[RawMessage] = []

    def send(self, topic: str, key: Any, value: Any, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        self.ids.append(dict(headers)[OUTCOME_HEADER].decode())

    def flush(self, timeout_s: float) -> None: ...

    def answer(self, outcome_id: str, outcome: Outcome, **more: Any) -> None:
        value = orjson.dumps({"outcome_id": outcome_id, "outcome": outcome.value, **more})
        self.pending.append(RawMessage(Position("c", "o", 0, 0, 0), outcome_id.encode(), value, ()))

    def poll(self, timeout_s: float) -> list[RawMessage]:
        found, self.pending = self.pending, []
        return found

    def close(self) -> None: ...


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> FakeLog:
    made = FakeLog()
    monkeypatch.setattr(announcing, "open_producer", lambda _: made)
    monkeypatch.setattr(announcing, "connection", lambda _: None)
    monkeypatch.setattr(announcing, "TailReader", lambda *_: made)
    return made


@pytest.fixture
def announcer(log: FakeLog, tmp_path: Path) -> Announcer:
    made = Announcer(Settings(data_dir=tmp_path, _env_file=None), listen=True)
    made.send([Prepared(b"k", b"{}", urn, urn, "file:///x", 2) for urn in ("a", "b", "c")])
    return made


def test_the_tally_adds_up_when_each_has_an_outcome(log: FakeLog, announcer: Announcer) -> None:
    log.answer(log.ids[0], Outcome.INDEXED, commit_sequence=7)
    log.answer(log.ids[1], Outcome.DEAD_LETTERED, reason="empty", message="no bytes")
    log.answer(log.ids[2], Outcome.UNCHANGED)
    assert announcer.wait(1.0)
    assert announcer.tally.adds_up
    assert announcer.tally.dead == [("b", "empty", "no bytes")]
    assert announcer.tally.commit_sequence == 7


def test_an_outcome_that_is_told_twice_counts_once(log: FakeLog, announcer: Announcer) -> None:
    for _ in range(2):
        for outcome_id in log.ids:
            log.answer(outcome_id, Outcome.INDEXED)
    assert announcer.wait(1.0)
    assert announcer.tally.outcomes == {"indexed": 3}


def test_what_others_write_on_the_outcome_topic_is_not_ours_to_parse(log: FakeLog, announcer: Announcer) -> None:
    for key, value in ((b"someone:1", b"not json"), (None, b"\xff"), (b"\xff\xfe", None)):
        log.pending.append(RawMessage(Position("c", "o", 0, 0, 0), key, value, ()))
    for outcome_id in log.ids:
        log.answer(outcome_id, Outcome.INDEXED)
    assert announcer.wait(1.0)
    assert announcer.tally.adds_up


def test_waiting_ends_without_progress_and_says_what_is_missing(log: FakeLog, announcer: Announcer) -> None:
    log.answer(log.ids[0], Outcome.INDEXED)
    assert not announcer.wait(0.05)
    assert not announcer.tally.adds_up
    assert sorted(announcer.tally.waiting.values()) == ["b", "c"]
