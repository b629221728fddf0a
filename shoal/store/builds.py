"""A build of an index in a process of its own, as the writer sees it: begin, look now and then, end.

The child (building.py) has fewer threads and a lower priority than the writer, so commits and queries go first. It
is told by its stdin, which it also watches: our end, however it comes, closes that pipe and ends the child. Only
one runs at a time. Never raises for what the child does: a child that was killed or failed is a `Report` that says so.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from shoal.store.building import Job, Report

NICENESS = 10
"""A quarter of the share that a process of normal priority gets, on a machine that has no core to spare."""


@dataclass(slots=True)
class _Heard:
    """What the child said. The thread that listens holds this, not the build: a build nobody holds is ended."""

    stage: dict[str, Any] = field(default_factory=dict)
    report: Report | None = None

    def listen(self, pipe: Any) -> None:
        for line in pipe:
            try:
                said = orjson.loads(line)
            except ValueError:  # a library's own words
                continue
            if "report" in said:
                self.report = Report(**said["report"])
            else:
                self.stage = said


class Build:
    """One build under way, for one thread."""

    def __init__(self, job: Job, threads: int) -> None:
        """Start the child. Raises OSError where no process can be had."""
        self.job = job
        self._heard = _Heard()
        self._began = time.monotonic()
        many = str(threads)
        # What this process can import, the child can: an actor's path is not that of its environment.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "LANCE_CPU_THREADS": many, "RAYON_NUM_THREADS": many, "OMP_NUM_THREADS": many,
            "LANCE_LOG": os.environ.get("LANCE_LOG", "error"),
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", "shoal.store.building"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment, start_new_session=True,  # Ctrl-C is the writer's affair
        )  # fmt: skip
        assert self._process.stdin is not None
        self._reader = threading.Thread(
            target=self._heard.listen, args=(self._process.stdout,), name="build", daemon=True
        )
        self._end = weakref.finalize(self, _end, self._process, self._reader)
        try:
            self._process.stdin.write(orjson.dumps(asdict(job)) + b"\n")
            self._process.stdin.flush()  # and stays open: it is the child's life line
        except OSError:  # it died at once; its end says so
            pass
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def took_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def stage(self) -> dict[str, Any]:
        """{stage, completed, total} as Lance last told it; empty before."""
        return self._heard.stage

    def poll(self) -> Report | None:
        """How it ended, None while it goes on."""
        code = self._process.poll()
        if code is None:
            return None
        took_s = self.took_s
        self._end()
        return self._heard.report or Report(took_s, 0.0, error=f"the build's process {_ended(code)}")

    def wait(self, timeout_s: float) -> Report | None:
        """As `poll`, once it has ended or `timeout_s` are over."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return self.poll()

    def kill(self) -> None:
        """End it. What it had written goes with the orphans."""
        self._end()


def _end(process: subprocess.Popen[bytes], reader: threading.Thread) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    if reader.is_alive():
        reader.join()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what the child never read
                pass


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
