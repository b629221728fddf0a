"""The window settles from the front, whatever order answers come in; and a run's memory is whole or absent."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.cluster import sending
from shoal.cluster.sending import Pace, PacedSender, StateFile, Window, interruptible
from shoal.errors import ConfigurationError, TransientError
from shoal.records import Outcome
from shoal.settings import load
from shoal.sources.journal import JournalProducer


@given(
    st.lists(st.one_of(st.integers(1, 3), st.just(0)), max_size=20),
    st.randoms(use_true_random=False),
    st.integers(0, 60),
)
@settings(max_examples=200, deadline=None)
def test_what_is_remembered_is_true_of_everything_up_to_one_point(
    parts: list[int], rng: random.Random, heard: int
) -> None:
    """`parts`: how many answers each message has; 0 is one that is passed over."""
    window = Window()
    answers = []
    for number, count in enumerate(parts):
        if count == 0:
            window.skip("passed over", ("at", number))
        else:
            ids = [f"{number}/{part}" for part in range(count)]
            window.send(str(number), ids, ("at", number))
            answers += ids
    rng.shuffle(answers)
    for outcome_id in answers[:heard]:
        assert window.answer(outcome_id, Outcome.INDEXED)
        assert not window.answer(outcome_id, Outcome.INDEXED), "an outcome that is told twice counts once"
        window.settle()
    waiting = {outcome_id.split("/")[0] for outcome_id in answers[heard:]}
    assert window.unanswered == len(waiting)
    first = min((int(name) for name in waiting), default=len(parts))
    assert window.marks.get("at", -1) == first - 1
    settled = parts[:first]
    assert window.counts["sent"] == sum(count > 0 for count in settled)
    assert window.counts["passed over"] == settled.count(0)
    assert window.counts["indexed"] == sum(settled)


def test_a_window_goes_on_where_an_earlier_run_was() -> None:
    window = Window({"a": 3}, {"sent": 4, "indexed": 4})
    window.send("x", ["1"], ("a", 4))
    window.answer("1", Outcome.DEAD_LETTERED, "empty", "no bytes")
    window.settle()
    assert window.marks == {"a": 4}
    assert window.counts == {"sent": 5, "indexed": 4, "dead_lettered": 1}
    assert window.dead == [("x", "empty", "no bytes")]


def test_a_pace_is_even_and_does_not_catch_up_after_a_pause() -> None:
    pace = Pace(10)
    assert pace.wait_s(0.0) == 0
    pace.gone(0.0)
    assert pace.wait_s(0.0) == pytest.approx(0.1)
    assert pace.wait_s(5.0) == 0
    pace.gone(5.0)
    assert pace.wait_s(5.0) == pytest.approx(0.1)
    unbounded = Pace(0)
    unbounded.gone(1.0)
    assert unbounded.wait_s(1.0) == 0


def test_a_state_is_found_by_the_same_arguments_only(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "runs", {"place": "s3://b/p"})
    assert file.load() is None
    file.save({"marks": {"after": "k"}})
    assert StateFile(tmp_path / "runs", {"place": "s3://b/p"}).load() == {"marks": {"after": "k"}}
    assert StateFile(tmp_path / "runs", {"place": "s3://b/q"}).load() is None
    file.forget()
    assert file.load() is None
    file.forget()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"arguments": {}}'])
def test_a_state_that_can_not_be_read_is_told_and_not_taken_for_none(tmp_path: Path, content: bytes) -> None:
    file = StateFile(tmp_path, {})
    file.path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="remove it"):
        file.load()


def test_a_first_signal_asks_and_a_second_ends() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.wait(10)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


class Journal:
    """As the journal, but that an append may fail."""

    def __init__(self) -> None:
        self.held: list[bytes] = []
        self.error: BaseException | None = None

    def append(self, messages: list[Any]) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.held += [key for _, key, *_ in messages]


@pytest.mark.parametrize(
    "error", [TransientError("the disk is unwell"), ConfigurationError("the disk is full"), KeyboardInterrupt()]
)
def test_what_a_failed_flush_lost_is_not_remembered_as_sent(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, saved = Journal(), []
    monkeypatch.setattr(sending, "open_producer", lambda _: JournalProducer(journal))  # type: ignore[arg-type]
    sender = PacedSender(
        load(data_dir=tmp_path), Window(), listen=False, rate=0, in_flight_max=10, timeout_s=5,
        save=lambda now: saved.append((dict(now.marks), now.counts["sent"])), asked_to_stop=threading.Event(),
    )  # fmt: skip
    sender.send("t", b"0", b"v", (), name="0", mark=("t/0", 1))
    assert sender.finish()
    for number in (1, 2):
        sender.send("t", str(number).encode(), b"v", (), name=str(number), mark=("t/0", number + 1))
    journal.error = error
    with pytest.raises(type(error)):
        sender.finish()
    sender.leave()
    assert journal.held == [b"0"]
    assert saved[-1] == ({"t/0": 1}, 1)


def test_what_is_settled_is_saved_whatever_the_last_flush_meets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, saved = Journal(), []
    monkeypatch.setattr(sending, "open_producer", lambda _: JournalProducer(journal))  # type: ignore[arg-type]
    sender = PacedSender(
        load(data_dir=tmp_path), Window({"t/0": 1}), listen=False, rate=0, in_flight_max=10, timeout_s=5,
        save=lambda now: saved.append(dict(now.marks)), asked_to_stop=threading.Event(),
    )  # fmt: skip
    sender.send("t", b"k", b"v", (), name="1", mark=("t/0", 2))
    journal.error = ConfigurationError("the disk is full")
    with pytest.raises(ConfigurationError):
        sender.leave()
    assert saved == [{"t/0": 1}]
