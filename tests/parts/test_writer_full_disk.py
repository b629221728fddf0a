"""A full disk stops the writing for as long as it is full: nothing is lost, nothing is there twice.

On a small file system of our own where one may be mounted; the same claims at a seam everywhere.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lance
import pytest

from shoal.errors import ConfigurationError, ShoalError
from shoal.records import Writable
from shoal.settings import Settings
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, command, deletion, document
from tests.fixtures.writer_process import snapshot

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)
SIZE_KB = 6 * 1024
BATCHES_MAX = 400


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of SIZE_KB."""
    where = tmp_path / "small"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_KB}k", "shoal-test", str(where)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def batch(number: int) -> list[Writable]:
    return [
        document(f"prod:ds:{number}", 4 * number, content=f"text {number} " + "x" * 2_000, chunks=6),
        document("prod:ds:same", 4 * number + 1, version=f"{number:04}", content=f"same {number}"),
        deletion(f"prod:ds:{number - 3}", 4 * number + 2),
        command(f"c{number}", "fix", {"scraper_name": "s", "summary": f"fix {number}"}, offset=number),
    ]


def open_writer(place: str) -> TableWriter:
    return TableWriter.open(place, {}, MODEL, WIDTH, settings=Settings(compact_commits=3), now=NOW)


def fill(disk: Path) -> Path:
    """Takes all the room that is left."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError:
            pass
    return ballast


def upkeep(writer: TableWriter) -> list[str]:
    """As the actor does it; the errors it met."""
    errors = []
    for _ in range(50):
        try:
            if writer.maintain(NOW) is None:
                break
        except ShoalError as error:
            errors.append(str(error))
    return errors


def expected(tmp_path: Path, batches: int) -> dict[str, list[tuple[Any, ...]]]:
    place = str(tmp_path / "roomy")
    writer = open_writer(place)
    for number in range(batches):
        writer.apply(batch(number), (), NOW)
    return snapshot(place, {})


def test_a_full_disk_is_said_with_what_to_do_and_after_space_is_freed_the_same_writer_goes_on(
    small_disk: Path, tmp_path: Path
) -> None:
    place = str(small_disk / "lancedb")
    writer = open_writer(place)
    done = 0
    for _ in range(3):
        writer.apply(batch(done), (), NOW)
        done += 1
    said: list[str] = []
    for room in (0, 8, 24, 40):  # in KB: it fails at another file of the commit each time
        ballast = fill(small_disk)
        with open(ballast, "r+b") as file:
            file.truncate(ballast.stat().st_size - room * 1024)
        refused = 0
        while refused < 3 and done < BATCHES_MAX:
            try:
                writer.apply(batch(done), (), NOW)
                done += 1
            except ConfigurationError as error:
                said.append(str(error))
                refused += 1
            upkeep(writer)
        assert refused == 3, "it became full"
        ballast.unlink()
        writer.apply(batch(done), (), NOW)
        done += 1
        upkeep(writer)
    assert all("the disk is full: free space" in text for text in said)
    assert snapshot(place, {}) == expected(tmp_path, done)
    heir = open_writer(place)
    heir.apply(batch(done), (), NOW)
    assert snapshot(place, {}) == expected(tmp_path / "again", done + 1)


@pytest.mark.parametrize("table", ["scraper_vectors", "scraper_fixes", "scraper_metadata", "shoal_jobs"])
def test_no_space_at_any_table_of_a_batch_loses_and_doubles_nothing(
    tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "lancedb")
    writer = open_writer(place)
    writer.apply(batch(0), (), NOW)
    real = lance.LanceDataset.commit

    def full(base: Any, transaction: Any, **options: Any) -> Any:
        if table in str(base.uri):
            raise OSError("LanceError(IO): Generic LocalFileSystem error: No space left on device (os error 28)")
        return real(base, transaction, **options)

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(full))
    for _ in range(2):  # also when it only looks what is there
        with pytest.raises(ConfigurationError, match="the disk is full: free space"):
            writer.apply(batch(1), (), NOW)
    monkeypatch.undo()
    writer.apply(batch(1), (), NOW)
    assert snapshot(place, {}) == expected(tmp_path, 2)


def test_upkeep_that_finds_the_disk_full_does_not_stop_the_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "lancedb")
    writer = open_writer(place)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError("LanceError(IO): No space left on device (os error 28)")

    monkeypatch.setattr("lance.optimize.Compaction.execute", full)
    monkeypatch.setattr("lance.optimize.Compaction.commit", full)
    monkeypatch.setattr(lance.LanceDataset, "cleanup_old_versions", full)
    met: list[str] = []
    for number in range(6):
        writer.apply(batch(number), (), NOW)
        met += upkeep(writer)
    assert any("the disk is full" in error for error in met)
    monkeypatch.undo()
    assert upkeep(writer) == []
    assert snapshot(place, {}) == expected(tmp_path, 6)
