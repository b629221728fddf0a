"""A writer that is killed at any moment, over and over, leaves the tables that one which never died leaves.

Real processes, real SIGKILL: one writes a log until it is killed, the next opens the tables, delivers again what
was not acknowledged, cut otherwise, and is killed too. `SHOAL_TEST_KILL_SEEDS=20` runs more seeds than CI does;
each prints its kills.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from shoal.settings import Settings
from shoal.store.writing import storage_options
from tests.fixtures.s3_server import S3Server
from tests.fixtures.writer_process import DONE, FENCED, Run, acked, arguments, make_log, snapshot, work

REPO = Path(__file__).resolve().parents[2]
HANG_S = 120.0  # a guard; nothing is measured by it
LENGTH = 80
SEEDS = range(int(os.environ.get("SHOAL_TEST_KILL_SEEDS", "1")))
POINTS = (
    "opening", "cleaning", "before_chunks", "after_chunks", "before_metadata", "after_metadata", "before_ack",
    "folding", "compacting",
)  # fmt: skip
LATER_MS = {"opening": 40, "folding": 30, "after_chunks": 15, "before_metadata": 10}
"""Armed a second time with a delay: the work goes on meanwhile and is hit in its middle."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(autouse=True)
def quiet_lance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANCE_LOG", "error")


@dataclass
class Killed:
    """One log, written by processes that are killed."""

    run: Run
    faults: Path
    kills: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def process(self, **changes: object) -> Iterator[subprocess.Popen[str]]:
        """The next writer; it is gone afterwards."""
        self.run = replace(self.run, attempt=self.run.attempt + 1, **changes)  # type: ignore[arg-type]
        process = subprocess.Popen(
            arguments(self.run),
            cwd=REPO,
            env={**os.environ, "SHOAL_FAULT_DIR": str(self.faults)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.send_signal(signal.SIGCONT)
            process.communicate(timeout=HANG_S)

    def kill_at(self, point: str, delay_ms: int = 0) -> None:
        """A writer that is killed at this point; it must get there."""
        armed = self.faults / f"writer.{point}"
        armed.write_text(str(delay_ms))
        with self.process() as process:
            said, _ = process.communicate(timeout=HANG_S)
            assert not armed.exists(), f"{point} was not reached:\n{said}"
            assert process.returncode == -signal.SIGKILL, said
        self.kills[point if not delay_ms else f"{point}+{delay_ms} ms"] += 1

    def kill_after(self, delay_s: float) -> None:
        """A writer that is killed a while after it opened the tables, wherever it is then."""
        with self.process() as process:
            assert process.stdout is not None
            assert "opened" in process.stdout.readline()
            try:
                process.wait(delay_s)
            except subprocess.TimeoutExpired:
                process.kill()
                self.kills["random"] += 1

    def finish(self) -> None:
        with self.process() as process:
            said, _ = process.communicate(timeout=HANG_S)
            assert process.returncode == DONE, said
        log = make_log(self.run.seed, self.run.length)
        assert acked(self.run.acks) == [set(range(len(items))) for items in log], "every item is acknowledged"

    def assert_like_never_killed(self, tmp_path: Path) -> None:
        whole = str(tmp_path / f"never-killed-{self.run.seed}")
        work(replace(self.run, uri=whole, options={}, acks=f"{whole}-acks", attempt=0, stop_at=""))
        expected, found = snapshot(whole, {}), snapshot(self.run.uri, self.run.options)
        for table, rows in expected.items():
            assert found[table] == rows, f"{table} differs after {dict(self.kills)}"
        print(f"kills={self.kills.total()} {dict(self.kills)}")


def killed(tmp_path: Path, seed: int, uri: str, options: dict[str, str]) -> Killed:
    faults = tmp_path / "faults"
    faults.mkdir()
    return Killed(Run(uri, options, seed, LENGTH, str(tmp_path / "acks")), faults)


def s3_place(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, str]]:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    settings = Settings(lancedb_path=f"s3://{s3_server.bucket('killed')}/{uuid.uuid4().hex}")
    return settings.tables_uri, storage_options(settings)


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_every_named_point_on_disk_the_tables_end_as_if_it_never_died(tmp_path: Path, seed: int) -> None:
    writer = killed(tmp_path, seed, str(tmp_path / "lancedb"), {})
    points = [(point, 0) for point in POINTS] + list(LATER_MS.items())
    random.Random(seed).shuffle(points)
    for point, delay_ms in points:
        writer.run = replace(writer.run, batch_max=3)  # so that the log lasts for every point
        writer.kill_at(point, delay_ms)
    writer.finish()
    writer.assert_like_never_killed(tmp_path)
    assert writer.kills.total() == len(POINTS) + len(LATER_MS)


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_random_moments_on_disk_the_tables_end_as_if_it_never_died(tmp_path: Path, seed: int) -> None:
    writer = killed(tmp_path, 100 + seed, str(tmp_path / "lancedb"), {})
    draw = random.Random(seed)
    for _ in range(8):
        writer.kill_after(draw.uniform(0, 0.6))
    writer.finish()
    writer.assert_like_never_killed(tmp_path)
    assert writer.kills


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_the_points_that_matter_on_s3_the_tables_end_as_if_it_never_died(
    tmp_path: Path, seed: int, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = killed(tmp_path, 200 + seed, *s3_place(s3_server, monkeypatch))
    points = ["after_chunks", "before_metadata", "after_metadata", "before_ack", "opening", "compacting"]
    random.Random(seed).shuffle(points)
    for point in points:
        writer.run = replace(writer.run, batch_max=3)
        writer.kill_at(point)
    writer.finish()
    writer.assert_like_never_killed(tmp_path)
    assert writer.kills.total() == len(points)


ZOMBIES = ["scraper_vectors:2:before", "scraper_vectors:3:after", "scraper_metadata:3:before", "shoal_jobs:2:before"]
"""Counted from the commits by which it takes the tables: the first of each table."""


def assert_a_zombie_is_refused(writer: Killed, tmp_path: Path, stop_at: str) -> None:
    """1. A writer stops with its commit staged; 2. another takes the tables and writes all of the log; 3. the first
    wakes up, commits, and is refused."""
    with writer.process(stop_at=stop_at) as zombie:
        assert zombie.stdout is not None
        for line in zombie.stdout:
            if "stopping" in line:
                break
        os.waitid(os.P_PID, zombie.pid, os.WSTOPPED | os.WNOWAIT)
        zombies_acks = [set(offsets) for offsets in acked(writer.run.acks)]
        writer.run = replace(writer.run, stop_at="")
        with writer.process() as heir:
            said, _ = heir.communicate(timeout=HANG_S)
            assert heir.returncode == DONE, said
        before = snapshot(writer.run.uri, writer.run.options)
        acks = Path(writer.run.acks).read_text()
        zombie.send_signal(signal.SIGCONT)
        said, _ = zombie.communicate(timeout=HANG_S)
        assert zombie.returncode == FENCED, said
        assert "this one ends" in said
    assert snapshot(writer.run.uri, writer.run.options) == before, "nothing of the zombie is in the tables"
    assert Path(writer.run.acks).read_text() == acks, "the zombie acknowledged nothing"
    assert all(theirs <= ours for theirs, ours in zip(zombies_acks, acked(writer.run.acks), strict=True))
    writer.assert_like_never_killed(tmp_path)


@pytest.mark.parametrize("stop_at", ZOMBIES)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_zombie_that_wakes_with_a_staged_commit_on_disk_is_refused_and_ends(
    tmp_path: Path, seed: int, stop_at: str
) -> None:
    writer = killed(tmp_path, 300 + seed, str(tmp_path / "lancedb"), {})
    assert_a_zombie_is_refused(writer, tmp_path, stop_at)


@pytest.mark.parametrize("stop_at", ZOMBIES[:3:2])
def test_a_zombie_that_wakes_with_a_staged_commit_on_s3_is_refused_and_ends(
    tmp_path: Path, stop_at: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = killed(tmp_path, 400, *s3_place(s3_server, monkeypatch))
    writer.run = replace(writer.run, length=30)
    assert_a_zombie_is_refused(writer, tmp_path, stop_at)
