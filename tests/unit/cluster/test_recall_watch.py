"""Who keeps recall measured: one process at a time, now and then, and only where there may be an index."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pytest

from shoal.cluster.recall_watch import IDLE_LOOK_S, LOOK_S, READ_S, REST_S_MAX, REST_S_MIN, RecallWatch, start_process
from shoal.settings import Settings
from shoal.store.index_state import STATE
from shoal.store.recall import FILE
from shoal.store.state_files import write_state

ENOUGH = 20_000


class FakeProcess:
    def __init__(self) -> None:
        self.returncode: int | None = None
        self.stdin = io.BytesIO()

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.returncode = -9

    def wait(self) -> int | None:
        return self.returncode


class Desk:
    """A watch with a clock to turn, and the processes that it began."""

    def __init__(self, place: Path) -> None:
        self.settings = Settings(lancedb_path=str(place))
        self.now_s = 1_000.0
        self.commit = 0
        self.began: list[FakeProcess] = []
        self.watch = RecallWatch(self.settings, start=self.start, clock=lambda: self.now_s)

    def start(self, _: Settings, said: IO[bytes]) -> Any:
        said.write(b"what it said")
        self.began.append(FakeProcess())
        return self.began[-1]

    def after(self, seconds: float, chunks: int | None = ENOUGH, commit: int | None = None) -> Any:
        """Another batch was written meanwhile, unless `commit` says which was the last."""
        self.now_s += seconds
        self.commit = self.commit + 1 if commit is None else commit
        return self.watch.turn(chunks, self.commit)

    def trained(self, training: str) -> None:
        write_state(self.settings, STATE, {"tables": {"vectors": {"content_embedding": {"training": training}}}})

    def measured(self, recall: float, alarm: str | None = None) -> None:
        value = {
            "at": datetime.now(UTC).isoformat(), "recall": recall, "target": 0.95, "k": 10, "nprobes": 20, "refine": 2,
            "queries": {"real": 60, "made": 4}, "alarm": alarm,
        }  # fmt: skip
        write_state(self.settings, FILE, value)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.watch.end()


def test_a_look_begins_now_and_then_and_one_at_a_time(desk: Desk) -> None:
    desk.after(0)
    assert desk.began == []  # a start has other things to do
    desk.after(LOOK_S)
    desk.after(10 * LOOK_S)
    assert len(desk.began) == 1  # the first still works
    desk.began[0].returncode = 0
    desk.after(0)
    assert len(desk.began) == 2


@pytest.mark.parametrize(
    ("ran_s", "rest_s"), [(1.0, REST_S_MIN), (20.0, 1_000.0), (540.0, REST_S_MAX)], ids=["at once", "soon", "at last"]
)
def test_one_that_failed_is_begun_again_after_a_rest_that_grows_with_its_work(
    desk: Desk, ran_s: float, rest_s: float
) -> None:
    desk.after(LOOK_S)
    desk.began[0].returncode = -14
    desk.after(ran_s)
    for _ in range(10):
        desk.after(rest_s / 11)
    assert len(desk.began) == 1
    desk.after(rest_s / 10)
    assert len(desk.began) == 2


def test_where_nothing_was_written_a_look_begins_only_after_long(desk: Desk) -> None:
    desk.trained("first")
    desk.after(LOOK_S, commit=7)
    desk.began[0].returncode = 0
    for _ in range(14):
        desk.after(LOOK_S, commit=7)
    assert len(desk.began) == 1
    desk.after(IDLE_LOOK_S - 14 * LOOK_S, commit=7)
    assert len(desk.began) == 2
    desk.began[1].returncode = 0
    desk.after(LOOK_S, commit=7)
    assert len(desk.began) == 2
    desk.after(LOOK_S, commit=8)
    assert len(desk.began) == 3, "a batch was written"
    desk.began[2].returncode = 0
    desk.trained("second")
    desk.after(LOOK_S, commit=8)
    assert len(desk.began) == 4, "the index was trained anew"


def test_what_failed_is_tried_again_though_nothing_was_written(desk: Desk) -> None:
    desk.after(LOOK_S, commit=7)
    desk.began[0].returncode = 3
    desk.after(0, commit=7)
    desk.after(REST_S_MIN, commit=7)
    assert len(desk.began) == 2


@pytest.mark.parametrize("chunks", [None, 0, 9_999])
def test_nothing_begins_where_there_is_no_index_or_no_writer(desk: Desk, chunks: int | None) -> None:
    desk.after(10 * LOOK_S, chunks)
    assert desk.began == []


def test_what_was_measured_is_shown_and_read_again_in_time_or_when_a_look_has_ended(desk: Desk) -> None:
    assert desk.after(0) is None
    desk.measured(0.97)
    assert desk.after(READ_S).recall == 0.97
    desk.measured(0.5, "too low")
    assert desk.after(READ_S / 2).recall == 0.97
    assert desk.after(READ_S / 2).alarm == "too low"
    desk.after(LOOK_S)
    desk.measured(0.99)
    desk.began[0].returncode = 0
    assert desk.after(0).recall == 0.99
    assert desk.after(0, None).recall == 0.99  # the writer is starting
    assert desk.after(READ_S, 10) is None  # the tables have shrunk


def test_a_damaged_file_shows_nothing(desk: Desk) -> None:
    write_state(desk.settings, FILE, {"recall": "high"})
    assert desk.after(READ_S) is None


def test_the_end_ends_the_process_and_begins_none(desk: Desk) -> None:
    desk.after(LOOK_S)
    desk.watch.end()
    assert desk.began[0].returncode == -9
    assert desk.began[0].stdin.closed
    desk.after(10 * LOOK_S)
    assert len(desk.began) == 1


def test_the_real_process_is_told_where_the_tables_are(tmp_path: Path) -> None:
    with (tmp_path / "said").open("wb") as said:
        process = start_process(Settings(lancedb_path=str(tmp_path / "none")), said)
        try:
            assert process.wait(100) == 3
        finally:
            process.kill()
            process.communicate()
    assert b"no tables yet" in (tmp_path / "said").read_bytes()
