"""Keeps recall measured: starts the process that does it (shoal.store.recall_check), and knows what it last found.

The process decides itself whether there is something to do; here it is only begun now and then, one at a time, where
the tables are large enough to have an index, and hardly ever where nothing was written since the last look. It never
outlives us: its stdin closes with this process. One that fails is begun again after a rest, the longer the longer it
took, and searches go on as they are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any

from shoal.errors import TransientError
from shoal.metrics import RecallStatistics
from shoal.settings import Settings
from shoal.store.index_state import STATE
from shoal.store.recall import FILE, REST_PER_WORK, statistics_of
from shoal.store.recall_check import SINGLE_THREADED, line_for
from shoal.store.state_files import read_state

LOOK_S = 120.0
"""Between two looks: an index that was trained anew is searched with its predecessor's settings for about so long. A
look costs a second of processor time, at the lowest priority."""
IDLE_LOOK_S = 1_800.0
"""Between two looks while nobody has written and no index was trained: the last measuring still holds."""
REST_S_MIN, REST_S_MAX = 300.0, 3_600.0
"""Of a process that failed: one that is killed in its full time (RUN_S_MAX) would else take a core for ever."""
READ_S = 30.0
_SAID_BYTES_MAX = 2_000

log = logging.getLogger("shoal.supervisor")

Process = subprocess.Popen[bytes]


def start_process(settings: Settings, said: IO[bytes]) -> Process:
    """Begin one look. Raises OSError."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal.store.recall_check"],
        stdin=subprocess.PIPE,
        stdout=said,
        stderr=said,
        env=os.environ | SINGLE_THREADED | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdin is not None
    process.stdin.write(line_for(settings).encode())
    process.stdin.flush()
    return process


class RecallWatch:
    """One per supervisor. `turn` blocks for a moment (state files, starting a process): call it on a thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        start: Callable[[Settings, IO[bytes]], Any] = start_process,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._start, self._clock = settings, start, clock
        self._process: Any = None
        self._said: IO[bytes] | None = None
        self._started_at = clock()
        self._not_before = self._started_at + LOOK_S  # the first look waits too: a start has other things to do
        self._looking_at: tuple[int, Any] | None = None  # (commit, training) of the look under way
        self._seen: tuple[int, Any] | None = None  # of the last look that ended well
        self._read_at = float("-inf")
        self._found: RecallStatistics | None = None
        self._is_ended = False

    def turn(self, chunks: int | None, commit_sequence: int = 0) -> RecallStatistics | None:
        """What was last measured; None where there is too little to have an index, or nothing was. `chunks`: how many
        the writer counts, None where it does not say; `commit_sequence`: its last commit. Raises OSError."""
        if self._is_ended or chunks is None:
            return self._found
        if chunks < self._settings.index_rows_min // 2:  # an index outlives some removals
            self._found, self._read_at = None, float("-inf")
            return None
        if self._process is not None and self._process.poll() is not None:
            self._ended()
        now = self._clock()
        if self._process is None and now >= self._not_before and self._is_worth_it(commit_sequence, now):
            self._started_at = now
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
            try:
                self._process = self._start(self._settings, self._said)
            except OSError:  # no memory for a process, say
                self._forget()
                raise
        if now - self._read_at >= READ_S:
            self._read_at = now
            with contextlib.suppress(TransientError):  # what was read last goes on
                self._found = statistics_of(read_state(self._settings, FILE))
        return self._found

    def _is_worth_it(self, commit_sequence: int, now: float) -> bool:
        """Whether anything has changed since the last look, or it is long ago."""
        self._not_before = now + LOOK_S
        self._looking_at = commit_sequence, self._training()
        return self._looking_at != self._seen or now - self._started_at >= IDLE_LOOK_S

    def _training(self) -> Any:
        """Of the chunks' index, as the writer says; None where it does not."""
        try:
            state: Any = read_state(self._settings, STATE)
            return state["tables"]["vectors"]["content_embedding"]["training"]
        except (TransientError, KeyError, TypeError):
            return None

    def end(self) -> None:
        """End the process, if there is one; none begins any more."""
        self._is_ended = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._forget()

    def _ended(self) -> None:
        assert self._said is not None
        self._said.seek(0)
        said = self._said.read(_SAID_BYTES_MAX).decode(errors="replace").strip()
        code = self._process.returncode
        now = self._clock()
        if code:
            rest_s = REST_PER_WORK * (now - self._started_at)
            self._not_before, self._seen = now + min(max(rest_s, REST_S_MIN), REST_S_MAX), None
        else:
            self._seen = self._looking_at
        log.log(logging.WARNING if code else logging.DEBUG, "measuring recall ended with %s: %s", code, said)
        self._forget()
        self._read_at = float("-inf")

    def _forget(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        if self._said is not None:
            self._said.close()
        self._process = self._said = None
