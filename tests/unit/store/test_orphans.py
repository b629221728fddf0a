"""What a killed writer leaves is removed once it is old, and nothing that anybody may still need."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import pytest
from lance.optimize import Compaction

from shoal.errors import FencedError
from shoal.settings import Settings
from shoal.store.orphans import fileless_indexes, sweep, sweep_state
from shoal.store.schemas import IS_DOCUMENT, TableKind
from shoal.store.state_files import UNFINISHED_PREFIX, read_state, write_state
from shoal.store.tables import CommitRefused, FencedTable
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, document

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)
AGE = timedelta(hours=1)
OLD_S = 2 * 3600
HANG_S = 60
TRIES = 10


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "lancedb")


def open_writer(place: str, **settings: Any) -> TableWriter:
    return TableWriter.open(place, {}, MODEL, WIDTH, settings=Settings(**settings), now=NOW)


def table(place: str, kind: TableKind = "vectors", name: str = "scraper_vectors") -> FencedTable:
    found = FencedTable.open(kind, f"{place}/{name}.lance", {})
    assert found is not None
    return found


def files(place: str) -> dict[str, int]:
    return {
        os.path.join(folder, name): os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(place)
        for name in names
    }


def age(place: str, *, since: dict[str, int] | None = None, seconds: float = OLD_S) -> None:
    """Make the files older than they are; with `since` only those that were not there then."""
    then = time.time() - seconds
    for path in files(place):
        if since is None or path not in since:
            os.utime(path, (then, then))


def clean(writer: TableWriter, now: datetime = NOW) -> str:
    done = []
    while (step := writer.maintain(now)) is not None:
        done.append(step)
    return "; ".join(done)


def rows(place: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        lance.dataset(f"{place}/scraper_vectors.lance").to_table(columns=["id"], filter=IS_DOCUMENT).to_pylist()
    )
    return sorted(found, key=lambda row: str(row["id"]))


BUILD = """
import sys, lance
dataset = lance.dataset(sys.argv[1])
print("building", flush=True)
dataset.create_index("content_embedding", "IVF_PQ", name="content_embedding_idx", metric="cosine",
                     num_partitions=64, num_sub_vectors=4, replace=True)
"""


def _written_since(place: str, before: dict[str, int]) -> int:
    try:
        return sum(
            size for path, size in files(f"{place}/scraper_vectors.lance/_indices").items() if path not in before
        )
    except FileNotFoundError:  # renamed while we looked: it is whole
        return 0


def test_half_an_index_that_a_killed_build_left_goes_once_it_is_old(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANCE_LOG", "error")
    writer = open_writer(place)
    writer.apply([document(f"prod:ds:{n}", n, content=f"t{n}", chunks=40) for n in range(300)], (), NOW)
    clean(writer)
    # 1. A process builds an index and is killed as soon as there is something of it; again, if it was too fast.
    for _ in range(TRIES):
        before, version = files(place), table(place).dataset.version
        with subprocess.Popen([sys.executable, "-c", BUILD, f"{place}/scraper_vectors.lance"]) as build:
            deadline = time.monotonic() + HANG_S
            while build.poll() is None and not _written_since(place, before):
                assert time.monotonic() < deadline
            build.kill()
        if table(place).dataset.version > version:  # it was committed, whatever became of the process after
            continue
        left = set(files(place)) - set(before)
        if any(os.path.getsize(path) for path in left):
            break
    else:
        pytest.fail("every build was over before it could be killed")
    before = {path: size for path, size in files(place).items() if path not in left}
    # 2. The next writer leaves them alone while somebody may still be building.
    heir = open_writer(place)
    clean(heir)
    assert left <= set(files(place))
    # 3. Once they are old, they go, all and only they.
    age(place, since=before)
    kept = rows(place)
    clean(open_writer(place))
    assert not left & set(files(place))
    assert before.keys() <= files(place).keys()
    assert rows(place) == kept


def test_rows_that_were_staged_and_never_committed_go_once_they_are_old(place: str) -> None:
    writer = open_writer(place)
    writer.apply([document("prod:ds:a", 1)], (), NOW)
    before = files(place)
    staged = table(place)
    staged.dataset.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute_uncommitted(
        staged.dataset.to_table()
    )
    half = Path(place) / "scraper_vectors.lance" / "data" / "killed-while-writing.lance#1"
    half.write_bytes(b"x" * 1000)
    left = set(files(place)) - set(before)
    assert len(left) == 2
    assert sweep(table(place), AGE).files == 0
    age(place, since=before)
    swept = sweep(table(place), AGE)
    assert swept.files == 2
    assert swept.size_bytes > 1000
    assert files(place) == before


def test_an_index_of_which_one_part_is_young_is_left_whole(place: str) -> None:
    open_writer(place)
    built = Path(place) / "scraper_vectors.lance" / "_indices" / "11111111-2222-3333-4444-555555555555"
    built.mkdir()
    for name in ("first", "last"):
        (built / f"{name}.lance").write_bytes(b"x")
    os.utime(built / "first.lance", (time.time() - OLD_S,) * 2)
    assert sweep(table(place), AGE).files == 0
    os.utime(built / "last.lance", (time.time() - OLD_S,) * 2)
    assert sweep(table(place), AGE).files == 2
    assert not built.exists()


def test_no_reader_of_an_older_version_loses_a_file(place: str) -> None:
    writer = open_writer(place, compact_commits=2)
    for n in range(4):
        writer.apply([document(f"prod:ds:{n}", n)], (), NOW)
    held = lance.dataset(f"{place}/scraper_vectors.lance")
    wanted = held.to_table(columns=["id", "content_summary"], filter=IS_DOCUMENT).to_pylist()
    for n in range(4, 8):
        writer.apply([document(f"prod:ds:{n - 2}", n, version="v2", content=f"t{n}")], (), NOW)
    age(place)  # every file is older than the age; the versions, by their own time, are not
    assert "compacted vectors" in clean(writer)
    clean(open_writer(place))
    assert sweep(table(place), AGE).files == 0
    fresh = lance.dataset(f"{place}/scraper_vectors.lance", version=held.version)  # nothing of it is cached
    assert fresh.to_table(columns=["id", "content_summary"], filter=IS_DOCUMENT).to_pylist() == wanted


def test_a_zombie_whose_staged_files_were_swept_is_refused_and_harms_nothing(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A writer stops between staging its chunks and committing them; 2. long after, its heir sweeps; 3. it wakes.
    zombie = open_writer(place)
    zombie.apply([document("prod:ds:a", 1)], (), NOW)
    before = files(place)
    real = lance.LanceDataset.commit
    swept: list[int] = []

    def commit(base: Any, transaction: Any, **options: Any) -> Any:
        if not swept:
            swept.append(0)
            left = set(files(place)) - set(before)
            age(place, since=before)
            heir = open_writer(place)
            clean(heir)
            assert left, "something was staged"
            assert not left & set(files(place)), "and is gone"
            heir.apply([document("prod:ds:b", 2)], (), NOW)
        return real(base, transaction, **options)

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(commit))
    with pytest.raises(FencedError):
        zombie.apply([document("prod:ds:a", 3, version="v2", content="zombie")], (), NOW)
    assert [row["id"] for row in rows(place)] == ["prod:ds:a#0", "prod:ds:a#1", "prod:ds:b#0", "prod:ds:b#1"]
    lance.dataset(f"{place}/scraper_vectors.lance").to_table()


def test_a_zombies_compaction_is_refused_also_where_it_left_the_last_batch_alone(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fence row lies in the last batch's fragment. Here that is big, and what is worth joining are the others.
    zombie = open_writer(place, compact_commits=2)
    for n in range(4):
        zombie.apply([document(f"prod:ds:{n}", n)], (), NOW)
    monkeypatch.setattr("shoal.store.maintenance.FRAGMENT_BYTES", 8 * (4 * WIDTH + 1024))
    zombie.apply([document("prod:ds:big", 9, chunks=30)], (), NOW)
    planned = Compaction.plan(table(place).dataset, {"target_rows_per_fragment": 8}).tasks
    fence = table(place).fence_fragment()
    assert planned, "something is worth joining"
    assert all(fragment.id != fence for task in planned for fragment in task.fragments)
    wanted = rows(place)
    real = Compaction.commit
    met: list[str] = []

    def commit(dataset: Any, rewritten: Any, options: Any) -> Any:
        if "vectors" in dataset.uri and not met:
            met.append("stopped")
            open_writer(place)
        return real(dataset, rewritten, options)

    monkeypatch.setattr(Compaction, "commit", staticmethod(commit))
    with pytest.raises(FencedError):
        clean(zombie)
    assert met
    fragments = {fragment.fragment_id for fragment in lance.dataset(f"{place}/scraper_vectors.lance").get_fragments()}
    assert {fragment.id for task in planned for fragment in task.fragments} <= fragments, "nothing was joined"
    assert rows(place) == wanted


def test_a_compaction_that_rewrites_the_fence_by_itself_keeps_every_row(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(place, compact_commits=2)
    for n in range(4):
        writer.apply([document(f"prod:ds:{n}", n)], (), NOW)
    monkeypatch.setattr("shoal.store.maintenance.FRAGMENT_BYTES", 8 * (4 * WIDTH + 1024))
    writer.apply([document("prod:ds:big", 9, chunks=30)], (), NOW)
    wanted = rows(place)
    assert "compacted vectors" in clean(writer)
    assert rows(place) == wanted
    writer.apply([document("prod:ds:big", 10, version="v2", content="new", chunks=1)], (), NOW)
    assert len(rows(place)) == len(wanted) - 29
    stale = table(place)
    open_writer(place)
    with pytest.raises(CommitRefused):
        stale.commit((), stale.fence)


def test_an_index_whose_files_are_gone_is_dropped_and_built_again(place: str) -> None:
    writer = open_writer(place)
    writer.apply([document("prod:ds:a", 1, content="needle")], (), NOW)
    indices = Path(place) / "scraper_vectors.lance" / "_indices"
    (gone,) = [
        segment.uuid
        for index in lance.dataset(f"{place}/scraper_vectors.lance").describe_indices()
        for segment in index.segments
        if index.name == "content_summary_idx"
    ]
    for path in (indices / str(gone)).iterdir():
        path.unlink()
    assert fileless_indexes(table(place)) == ["content_summary_idx"]
    assert "indexed content_summary of vectors" in clean(open_writer(place))
    assert fileless_indexes(table(place)) == []
    found = lance.dataset(f"{place}/scraper_vectors.lance").to_table(columns=["id"], full_text_query="needle")
    assert found.num_rows == 2


def test_state_files_whose_writer_was_killed_go_once_they_are_old(place: str) -> None:
    settings = Settings(lancedb_path=place)
    write_state(settings, "status.json", {"a": 1})
    half = Path(place) / "_shoal" / f"{UNFINISHED_PREFIX}x1"
    half.write_text("{")
    assert sweep_state(place, AGE).files == 0
    age(f"{place}/_shoal")
    assert sweep_state(place, AGE).files == 1
    assert not half.exists()
    assert read_state(settings, "status.json") == {"a": 1}


def test_samples_of_replicas_that_are_gone_go_after_a_day_and_younger_ones_stay(place: str) -> None:
    settings = Settings(lancedb_path=place)
    for name in ("queries-old.json", "queries-young.json", "status.json"):
        write_state(settings, name, {"a": 1})
    day_s = 86_400
    for name, age_s in (
        ("queries-old.json", day_s + 60),
        ("queries-young.json", day_s - 60),
        ("status.json", 9 * day_s),
    ):
        at_s = time.time() - age_s
        os.utime(f"{place}/_shoal/{name}", (at_s, at_s))
    assert sweep_state(place, AGE).files == 1
    assert sorted(os.listdir(f"{place}/_shoal")) == ["queries-young.json", "status.json"]


def test_a_state_file_that_could_not_be_written_leaves_nothing_and_the_last_one_stays(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(lancedb_path=place)
    write_state(settings, "status.json", {"a": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shoal.store.state_files.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_state(settings, "status.json", {"a": 2})
    assert os.listdir(f"{place}/_shoal") == ["status.json"]
    assert read_state(settings, "status.json") == {"a": 1}
