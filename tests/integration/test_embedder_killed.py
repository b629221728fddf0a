"""kill -9 of the embedder in a burst costs what was in flight, and re-indexing what is unchanged costs nothing."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.embedder_process import WIDTH, documents, texts
from tests.fixtures.openai_server import FakeOpenAI, Reply

REPO = Path(__file__).resolve().parents[2]
HANG_S = 120.0  # a guard; nothing is measured by it
COUNT = 150
ANSWERED = 6
HANGING = 4
"""The model's concurrency: so many requests are under way at least."""


@contextmanager
def embedder(fake: FakeOpenAI, home: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fixtures.embedder_process", fake.url, str(home), str(COUNT)],
        cwd=REPO, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=HANG_S)


def paid(requests: list[dict[str, Any]]) -> Counter[str]:
    return Counter(text for request in requests for text in request["input"])


def kept(home: Path) -> int:
    file = home / "cache" / "embeddings.sqlite"
    if not file.exists():
        return 0
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM vectors").fetchone()[0])
        except sqlite3.OperationalError:  # being made
            return 0


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI(WIDTH)
    yield server
    server.close()


def test_a_kill_in_a_burst_pays_twice_for_what_was_in_flight_and_for_nothing_else(
    fake: FakeOpenAI, tmp_path: Path
) -> None:
    wanted = {text for fetched in documents(COUNT) for text in texts(fetched)}
    # 1. Some requests are answered and kept; those after them get no answer.
    answered: list[dict[str, Any]] = []
    hanging: list[dict[str, Any]] = []
    order = threading.Lock()

    def reply(request: dict[str, Any]) -> Reply:
        with order:
            if len(answered) < ANSWERED:
                answered.append(request)
                return Reply()
            hanging.append(request)
            return Reply(delay_s=10 * HANG_S)

    fake.script = [reply] * 100
    with embedder(fake, tmp_path) as process:
        until = time.monotonic() + HANG_S
        while len(hanging) < HANGING or kept(tmp_path) < sum(paid(answered).values()):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < until, (len(hanging), kept(tmp_path))
            time.sleep(0.05)
        # 2. It is killed.
        process.kill()
        process.wait(HANG_S)
    in_flight = paid(hanging)
    assert set(paid(fake.requests).values()) == {1}
    # 3. The next one does the whole work again.
    fake.script = []
    with embedder(fake, tmp_path) as process:
        said, _ = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, said
    assert paid(fake.requests) == Counter(wanted) + in_flight
    # 4. And another, of unchanged documents, costs nothing.
    before = len(fake.requests)
    with embedder(fake, tmp_path) as process:
        said, _ = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, said
    assert len(fake.requests) == before
