"""The child that builds an index: `python -m shoal.store.building`, started by builds.py.

One line of JSON on stdin says what to build; lines of JSON on stdout say how far it is, the last one how it ended.
stdin stays open for as long as who asked lives: at its end this process kills itself, so no build outlives its
writer by more than a moment. It commits one thing only, an index of the version that it opened. That changes no
row, and it checks no fence (ADR 5 says why that is harmless).
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from io import FileIO
from typing import Any

import lance
import orjson

from shoal.faults import reach

PROGRESS_S = 0.5
"""Least time between two lines: Lance tells each round of training."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to build. `how`: `train` (a vector index), `scalar` (a scalar or full-text index), or `merge` (take new
    rows in, and the newest `merges` deltas with them; None: as Lance does it). `sort` is Lance's name of the type."""

    uri: str
    how: str
    column: str
    name: str
    sort: str = ""
    merges: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict, repr=False)  # storage options hold keys
    niceness: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """How a build ended. `version` is the one that it made, 0 where it made none; the table's rows in it, and in the
    one before it."""

    took_s: float
    cpu_s: float
    version: int = 0
    rows_before: int = 0
    rows_after: int = 0
    error: str | None = None


def build(job: Job, tell: Any = lambda _: None) -> Report:
    """Do `job` on the newest version. Raises whatever Lance does."""
    began, dataset = time.monotonic(), lance.dataset(job.uri, storage_options=job.options or None)
    opened = int(dataset.version)
    reach("writer.indexing")
    if job.how == "train":
        dataset.create_index(
            job.column, job.sort, name=job.name, metric="cosine", replace=True,
            progress_callback=tell, **job.parameters,
        )  # fmt: skip
    elif job.how == "scalar":
        sort: Any = job.sort
        dataset.create_scalar_index(job.column, sort, name=job.name, replace=True, **job.parameters)
    elif job.how == "merge":
        dataset.optimize.optimize_indices(index_names=[job.name], num_indices_to_merge=job.merges)
    else:
        raise ValueError(f"no such build: {job.how}")
    reach("build.made")
    version = int(dataset.version)
    if version == opened:  # a merge had nothing to do, and the version before may be cleaned away
        rows = int(dataset.count_rows())
        return Report(time.monotonic() - began, _cpu_s(), 0, rows, rows)
    before, after = (
        int(lance.dataset(job.uri, version=number, storage_options=job.options or None).count_rows())
        for number in (version - 1, version)
    )
    return Report(time.monotonic() - began, _cpu_s(), version, before, after)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _watch(life: FileIO) -> None:
    while life.read(4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _say(value: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(value) + b"\n")
    sys.stdout.buffer.flush()


class _Progress:
    """Lance's progress as a line now and then. It is called from Lance's threads."""

    def __init__(self) -> None:
        self._told_at = 0.0

    def __call__(self, progress: Any) -> None:
        now = time.monotonic()
        if progress.event != "start" and now - self._told_at < PROGRESS_S:
            return
        self._told_at = now
        _say({"stage": progress.stage, "completed": progress.completed, "total": progress.total})


def main() -> None:
    """Read the job, build, report."""
    life = FileIO(sys.stdin.fileno(), closefd=False)  # unbuffered: two threads must not share a buffer's lock
    job = Job(**orjson.loads(life.readline()))
    threading.Thread(target=_watch, args=(life,), daemon=True).start()
    os.nice(job.niceness)
    began = time.monotonic()
    try:
        report = build(job, _Progress())
    except BaseException as error:  # Rust's panics too: what it was goes to who asked
        report = Report(time.monotonic() - began, _cpu_s(), error=f"{type(error).__name__}: {error}"[:500])
    _say({"report": asdict(report)})
    os._exit(0)  # Lance's threads may still be at work after a failure, and nobody waits for them


if __name__ == "__main__":
    main()
