"""Whoever is killed in upkeep, at whatever point of it, leaves nothing wrong: the next one makes it whole.

Real processes, real SIGKILL. Each of the named points of upkeep is reached, or its test fails. Right after each kill
searches answer; after the last heir's upkeep the rows are the model's, `shoal check` finds nothing, no file is left
over and every index covers. `SHOAL_TEST_KILL_SEEDS=50` kills at random moments, and looks more often than CI does.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import pytest

from shoal.faults import POINTS
from shoal.store import scrubbing
from shoal.store.fsck_tables import check
from shoal.store.index_views import views
from shoal.store.purging import holding, is_purged
from shoal.store.recall import FILE
from shoal.store.requests import SearchRequest
from shoal.store.search import SearchIndex
from shoal.store.state_files import read_state
from shoal.store.tables import FencedTable
from shoal.store.verification import coverage
from tests.fixtures import damage
from tests.fixtures.damage import INDEX_ROWS_MIN, B
from tests.fixtures.documents import vector
from tests.fixtures.upkeep_process import (
    DEAD,
    OLD,
    PURGE,
    REBUILD,
    REPAIR,
    TASKS,
    Run,
    arguments,
    do,
    make_tables,
    prepare,
    settings_of,
)
from tests.fixtures.writer_process import snapshot
from tests.parts.test_writer_killed import POINTS as OF_WRITING

REPO = Path(__file__).resolve().parents[2]
HANG_S = 120.0  # a guard; nothing is measured by it
LATER_S = 86_400.0
SEEDS = range(int(os.environ.get("SHOAL_TEST_KILL_SEEDS", "1")))
KILLS = 3  # of one seed
Rows = dict[str, list[tuple[Any, ...]]]

pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True, slots=True)
class Case:
    """`in_child`: it is the build's process that gets there, and its writer goes on."""

    point: str
    task: str
    in_child: bool = False


CASES = (
    Case("writer.opening", "open"),
    Case("writer.indexing", "open"),
    Case("writer.indexing", "build", in_child=True),
    Case("build.made", "build", in_child=True),
    Case("writer.compacting", "round"),
    Case("writer.folding", "round"),
    Case("writer.snapshotting", "round"),
    Case("writer.cleaning", "round"),
    Case("state.writing", "round"),
    Case("writer.answering", "rebuild"),
    Case("writer.expiring", "expire"),
    Case("writer.repairing", "repair"),
    Case("writer.migrating", "migrate"),
    Case("writer.migrated", "migrate"),
    Case("writer.purging", "purge"),
    Case("writer.purged", "purge"),
    Case("recall.measured", "recall"),
    Case("writer.scrubbing", "scrub"),
)


@pytest.fixture(autouse=True)
def quiet_lance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANCE_LOG", "error")
    monkeypatch.setattr("shoal.store.purging.HOLD", timedelta(0))  # so that it is put back


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made") / "lancedb"
    make_tables(str(place))
    return place


@pytest.fixture(scope="module")
def expected(made: Path) -> Rows:
    return rows_of(str(made))


def rows_of(uri: str) -> Rows:
    """Everything but the jobs of a task's own command."""
    found = snapshot(uri, {})
    jobs = [row for row in found["shoal_jobs"] if dict(row)["command_id"] not in (REBUILD, REPAIR)]
    return found | {"shoal_jobs": jobs}


def model(task: str, expected: Rows) -> Rows:
    """The rows that the task leaves: all, but those whose time is over."""
    if task != "expire":
        return expected
    return {
        table: [row for row in rows if not any(str(value).startswith(OLD) for _, value in row)]
        for table, rows in expected.items()
    }


def killed_at(run: Run, faults: Path, point: str, delay_ms: int, *, in_child: bool) -> None:
    """The task in a process that is killed at `point`, or whose child is; it must get there."""
    faults.mkdir()
    (faults / point).write_text(str(delay_ms))
    with begun(run, faults) as process:
        said, _ = process.communicate(timeout=HANG_S)
    taken = [int(path.name.rpartition("-")[2]) for path in faults.glob(f"{point}.taken-*")]
    assert taken, f"{point} was not reached:\n{said}"
    assert (taken != [process.pid]) == in_child, "another process got there"
    assert process.returncode == (0 if in_child else -signal.SIGKILL), said


def begun(run: Run, faults: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments(run), cwd=REPO, env={**os.environ, "SHOAL_FAULT_DIR": str(faults)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


async def ask(uri: str) -> list[set[str]]:
    """What a search by filter, by words, and by meaning finds, on the tables as they lie there."""
    index = await SearchIndex.open(uri, {}, refresh_interval_s=0.0)
    try:
        pages = [
            await index.search(SearchRequest(mode="sql", limit=200)),
            await index.search(SearchRequest(mode="keyword", query="b2")),
            await index.search(SearchRequest(mode="vector", vector=vector("b2 part 0"), limit=1)),
        ]
    finally:
        await index.close()
    return [{hit.metadata["id"] for hit in page.hits} for page in pages]


def assert_searches_answer(uri: str) -> None:
    everything, by_words, by_meaning = asyncio.run(ask(uri))
    assert B in everything
    assert B in by_words
    assert by_meaning == {B}


def assert_whole(run: Run, expected: Rows) -> None:
    """After the heir's upkeep: rows, check, files, indexes, kept states, and what the task was to do."""
    found, wanted = rows_of(run.uri), model(run.task, expected)
    for table, rows in wanted.items():
        assert found[table] == rows, table
    report = check(
        run.uri, {}, leaked_before=datetime.now(UTC) + timedelta(seconds=1), index_rows_min=INDEX_ROWS_MIN, settle_s=0
    )
    assert report is not None
    assert report.findings == ()
    tags = []
    for table, kind in zip(damage.KEYS, ("metadata", "vectors", "fixes", "jobs", "spend"), strict=True):
        held = FencedTable.open(kind, f"{run.uri}/{table}.lance", {})
        assert held is not None
        for name, view in views(held).items():
            assert coverage(view, whole="embedding" not in name) is None
        tags.append(set(held.dataset.tags.list()))
    assert tags[0] == tags[1], "no half of a kept state"
    settings = settings_of(run)
    match run.task:
        case "purge":
            assert is_purged(settings, PURGE)
            assert holding(settings, {}, "scraper", [DEAD]).is_clean
        case "scrub":
            assert read_state(settings, scrubbing.STATE)["began"]
        case "recall":
            assert read_state(settings, FILE)["recall"] > 0
        case "rebuild" | "repair":
            jobs = lance.dataset(f"{run.uri}/shoal_jobs.lance").to_table().to_pylist()
            (job,) = [row for row in jobs if row["command_id"] in (REBUILD, REPAIR)]
            assert job["status"] == "done", job
    assert_searches_answer(run.uri)


def inherit(run: Run, expected: Rows) -> None:
    """1. Readers find the tables as the dead left them. 2. An heir does the task, then a round of all upkeep."""
    assert_searches_answer(run.uri)
    later = replace(run, late_s=run.late_s + LATER_S)
    do(later)
    if run.task != "round":
        do(replace(later, task="round"))
    assert_whole(run, expected)


def test_every_point_of_the_writer_and_its_helpers_is_met_by_a_kill() -> None:
    met = {case.point for case in CASES} | {f"writer.{point}" for point in OF_WRITING}
    others = {point for point in POINTS if point.startswith(("reader.", "fetcher.", "embedder."))}
    assert met | others == set(POINTS)


@pytest.mark.parametrize("task", TASKS)
def test_killed_at_each_point_of_a_task_in_turn_nothing_is_wrong_after_the_last_heir(
    task: str, made: Path, expected: Rows, tmp_path: Path
) -> None:
    run = Run(str(shutil.copytree(made, tmp_path / "lancedb")), task)
    prepare(run)
    cases = [case for case in CASES if case.task == task]
    assert cases
    for number, case in enumerate(cases):
        if case.in_child and number:
            run = replace(run, late_s=LATER_S * number)  # who builds rests after a failure
        killed_at(run, tmp_path / f"faults-{number}", case.point, 0, in_child=case.in_child)
        assert_searches_answer(run.uri)
    inherit(run, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_random_moments_of_upkeep_nothing_is_wrong_after_the_next_ones(
    seed: int, made: Path, expected: Rows, tmp_path: Path
) -> None:
    """Up to three in a row, each at a point and some milliseconds later, or at any moment."""
    draw, kills = random.Random(seed), Counter[str]()
    while kills.total() < KILLS:
        case = draw.choice(CASES)
        place = tmp_path / f"{kills.total()}"
        run = Run(str(shutil.copytree(made, place / "lancedb")), case.task)
        prepare(run)
        for number in range(draw.randint(1, 3)):
            faults = place / f"faults-{number}"
            faults.mkdir()
            if draw.random() < 0.7:
                (faults / case.point).write_text(str(draw.choice((0, 1, 3, 10, 30, 100))))
                with begun(run, faults) as process:
                    process.communicate(timeout=HANG_S)
                reached = any(faults.glob("*.taken-*"))  # not where one before got further
                kills[case.point if reached else "not reached"] += 1
            else:
                with begun(run, faults) as process:
                    assert process.stdout is not None
                    process.stdout.readline()
                    try:
                        process.wait(draw.uniform(0, 1.5))
                    except subprocess.TimeoutExpired:
                        process.kill()
                        kills[f"random in {case.task}"] += 1
        inherit(run, expected)
        shutil.rmtree(place)
    print(f"kills={dict(kills)}")
