"""kill -9 of the embedder in a burst costs what was in flight, and re-indexing what is unchanged costs nothing; and the
ledger holds what the provider was sent, but for that."""

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

from shoal.embeddings import cl100k
from shoal.settings import load
from shoal.spending import COUNT_NAMES, Counts
from shoal.store.spending import read_spend
from tests.fixtures.embedder_process import MODEL, WIDTH, documents, texts
from tests.fixtures.ledger import apply_log
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


def booked(home: Path) -> Counts:
    """What the machine's book holds by now."""
    file = home / "ledger" / "spend.sqlite"
    if not file.exists():
        return Counts()
    sums = ", ".join(f"coalesce(sum({name}), 0)" for name in COUNT_NAMES)
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        try:
            return Counts(*connection.execute(f"SELECT {sums} FROM spent").fetchone())
        except sqlite3.OperationalError:  # being made
            return Counts()


def token_counts() -> dict[str, int]:
    """Of each text that is paid for: the chunker's count of a chunk, the model's of what similar APIs are found by."""
    counts: dict[str, int] = {}
    for fetched in documents(COUNT):
        assert fetched.extraction is not None
        counts |= {chunk.text: chunk.token_count for chunk in fetched.extraction.chunks}
        counts[str(fetched.extraction.api_text)] = cl100k.count(str(fetched.extraction.api_text))
    return counts


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


def test_the_ledger_holds_every_request_that_was_sent_but_those_in_flight_at_a_kill(
    fake: FakeOpenAI, tmp_path: Path
) -> None:
    tokens_of = token_counts()
    # 1. An error, a refusal for the rate, half an answer, a batch that is refused and halved; some answers; silence.
    received: list[tuple[dict[str, Any], str]] = []
    order = threading.Lock()
    fates = ["error", "rate", "half", "halved"]

    def reply(request: dict[str, Any]) -> Reply:
        with order:
            met = [fate for _, fate in received]
            left = [fate for fate in fates if fate not in met and (fate != "halved" or len(request["input"]) > 1)]
            fate = left[0] if left else "answered" if met.count("answered") < ANSWERED else "hanging"
            received.append((request, fate))
        match fate:
            case "error":
                return Reply(500, {"error": {"message": "x"}})
            case "rate":
                return Reply(429, {"error": {"code": "rate_limit_exceeded"}}, {"retry-after-ms": "50"})
            case "half":
                return Reply(body=b'{"data": [{"index": 0, "emb')
            case "halved":
                return Reply(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
            case "answered":
                return Reply()
            case _:
                return Reply(delay_s=10 * HANG_S)

    def counted(*of: str) -> Counts:
        """By what reached the provider."""
        some = [(request["input"], fate) for request, fate in received if fate in of]
        tokens = [(sum(tokens_of[text] for text in inputs), fate) for inputs, fate in some]
        failed = [size for size, fate in tokens if fate in fates]
        return Counts(
            len(some), len(failed), sum(len(inputs) for inputs, _ in some), sum(size for size, _ in tokens), sum(failed)
        )

    fake.script = [reply] * 100
    with embedder(fake, tmp_path) as process:
        until = time.monotonic() + HANG_S
        while not counted("hanging").requests or booked(tmp_path) != counted(*fates, "answered"):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < until, (booked(tmp_path), [fate for _, fate in received])
            time.sleep(0.05)
        # 2. It is killed while some requests have no answer.
        process.kill()
        process.wait(HANG_S)
    in_flight = counted("hanging").requests
    assert 0 < in_flight < len(received)
    assert {fate for _, fate in received} >= set(fates)
    # 3. The next one does the rest, and tells of both lives.
    fake.script = []
    before = len(fake.requests)
    with embedder(fake, tmp_path) as process:
        said, _ = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, said
    received += [(request, "answered") for request in fake.requests[before:]]
    assert len(received) == len(fake.requests)
    # 4. The table holds what the provider was sent, but for what was in flight; told twice, it is the same.
    settings = load(data_dir=tmp_path)
    for _ in range(2):
        apply_log(settings, MODEL, WIDTH)
        rows = read_spend(settings.tables_uri, {})
        assert sum((row.counts for row in rows), Counts()) == counted(*fates, "answered")
    assert {row.key.model for row in rows} == {MODEL}
