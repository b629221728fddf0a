"""The child that builds an index: it builds, it dies with its parent, and its death leaves nothing wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import psutil
import pyarrow as pa
import pytest

from shoal.store.building import Job, build
from shoal.store.builds import Build

HANG_S = 90.0
ROWS, WIDTH = 3_000, 16
PARENT = """
import json, os, sys, time
from shoal.store.building import Job
from shoal.store.builds import Build
build = Build(Job(**json.loads(sys.argv[1])), 1)
print(build.pid, flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    uri = str(tmp_path / "t.lance")
    append(uri, ROWS)
    return uri


def append(uri: str, rows: int) -> None:
    numbers = np.random.default_rng(rows).standard_normal((rows, WIDTH)).astype(np.float32)
    start = lance.dataset(uri).count_rows() if Path(uri).exists() else 0
    table = pa.table(
        {
            "id": [f"r{start + n}" for n in range(rows)],
            "v": pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), WIDTH),
        }
    )
    lance.write_dataset(table, uri, mode="append" if start else "create")


def job(uri: str, **changes: object) -> Job:
    parameters = {"num_partitions": 8, "num_sub_vectors": 4}
    return Job(**{  # type: ignore[arg-type]
        "uri": uri, "how": "train", "column": "v", "name": "v_idx", "sort": "IVF_PQ", "parameters": parameters,
        **changes,
    })  # fmt: skip


def indexed(uri: str) -> list[int]:
    return [index.num_rows_indexed for index in lance.dataset(uri).describe_indices()]


def wait_until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_S
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("sort", "parameters"),
    [
        ("IVF_PQ", {"num_partitions": 8, "num_sub_vectors": 4, "sample_rate": 64, "max_iters": 25}),
        ("IVF_RQ", {"num_partitions": 8}),
        ("IVF_HNSW_SQ", {"num_partitions": 1}),
    ],
)
def test_a_child_builds_each_kind_of_index_with_less_than_the_writers_priority(
    uri: str, sort: str, parameters: dict[str, int]
) -> None:
    build = Build(job(uri, sort=sort, parameters=parameters, niceness=1), 1)
    report = build.wait(HANG_S)
    assert report is not None
    assert report.error is None
    assert (report.rows_before, report.rows_after) == (ROWS, ROWS)
    assert report.cpu_s > 0
    assert indexed(uri) == [ROWS]
    append(uri, 100)
    merged = Build(job(uri, how="merge", merges=0), 1).wait(HANG_S)
    assert merged is not None
    assert merged.error is None
    assert indexed(uri) == [ROWS + 100]


def test_what_a_child_can_not_do_is_said_in_its_report(uri: str) -> None:
    missing = Build(job(uri, column="nothing"), 1).wait(HANG_S)
    assert missing is not None
    assert "nothing" in str(missing.error)
    assert missing.version == 0
    unknown = Build(job(uri, how="guess"), 1).wait(HANG_S)
    assert unknown is not None
    assert "no such build" in str(unknown.error)


def test_a_merge_with_nothing_to_do_needs_no_version_before(uri: str) -> None:
    build(job(uri))
    dataset = lance.dataset(uri)
    dataset.cleanup_old_versions(timedelta(0))
    assert len(lance.dataset(uri).versions()) == 1
    report = build(job(uri, how="merge", merges=0))
    assert (report.version, report.rows_before, report.rows_after) == (0, ROWS, ROWS)


def test_rows_that_come_while_it_builds_are_kept_and_only_not_indexed(uri: str, tmp_path: Path) -> None:
    # 1. The child has opened the table and stands still; 2. rows come; 3. it goes on.
    faults = tmp_path / "faults"
    faults.mkdir()
    build = Build(job(uri), 1)
    wait_until(lambda: bool(build.stage) or not psutil.pid_exists(build.pid))
    os.kill(build.pid, signal.SIGSTOP)
    append(uri, 500)
    os.kill(build.pid, signal.SIGCONT)
    report = build.wait(HANG_S)
    assert report is not None
    assert report.error is None
    assert lance.dataset(uri).count_rows() == ROWS + 500
    assert indexed(uri) in ([ROWS], [ROWS + 500]), "depends on whether it had committed before the rows came"


@pytest.mark.parametrize("delay_ms", [0, 20, 200])
def test_a_child_killed_in_the_middle_leaves_nothing_wrong(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delay_ms: int
) -> None:
    (tmp_path / "writer.indexing").write_text(str(delay_ms))
    monkeypatch.setenv("SHOAL_FAULT_DIR", str(tmp_path))
    build = Build(job(uri), 1)
    report = build.wait(HANG_S)
    assert list(tmp_path.glob("writer.indexing.taken-*")), "the child got there"
    assert report is not None
    if report.error is not None:  # else it was faster than the delay
        assert "SIGKILL" in report.error
    assert delay_ms or report.error
    assert lance.dataset(uri).count_rows() == ROWS
    assert indexed(uri) in ([], [ROWS])
    again = Build(job(uri), 1).wait(HANG_S)
    assert again is not None
    assert again.error is None
    assert indexed(uri) == [ROWS]


def test_a_child_whose_writer_was_killed_ends_itself(uri: str) -> None:
    import json
    from dataclasses import asdict

    with subprocess.Popen(
        [sys.executable, "-c", PARENT, json.dumps(asdict(job(uri))), str(HANG_S)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        child.suspend()  # so that it is certainly not done yet
        parent.kill()
        parent.wait()
        child.resume()
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert indexed(uri) == []
    assert lance.dataset(uri).count_rows() == ROWS


def test_a_build_that_nobody_holds_any_more_is_ended(uri: str) -> None:
    build = Build(job(uri), 1)
    child = psutil.Process(build.pid)
    child.suspend()
    del build
    wait_until(lambda: not child.is_running())
