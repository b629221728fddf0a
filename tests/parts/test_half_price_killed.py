"""kill -9 of the embedder while its batch is being created: the batch is found again, and serves the documents."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.embeddings.batch_job import State
from shoal.embeddings.spend_book import SpendBook
from shoal.store.half_price_shelf import HalfPriceShelf
from tests.fixtures.embedder_process import WIDTH
from tests.fixtures.half_price_process import JOB, ask, settings_of
from tests.fixtures.openai_account import count_words
from tests.fixtures.openai_batches import BatchApi
from tests.fixtures.openai_server import FakeOpenAI

REPO = Path(__file__).resolve().parents[2]
HANG_S = 240.0  # a guard; nothing is measured by it


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI(WIDTH)
    server.batches = BatchApi(server.embeddings, count=count_words)
    yield server
    server.close()


@contextmanager
def embedder(fake: FakeOpenAI, home: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fixtures.half_price_process", fake.url, str(home)],
        cwd=REPO, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=HANG_S)


def test_a_kill_between_a_batch_and_its_id_pays_once_and_the_documents_cost_nothing(
    fake: FakeOpenAI, tmp_path: Path
) -> None:
    api, settings = fake.batches, settings_of(fake.url, tmp_path)
    assert api is not None
    count = ask(settings)
    # 1. The provider makes the batch, and its answer never arrives.
    created, real = threading.Event(), api.answer

    def withheld(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Any:
        answer = real(method, path, headers, body)
        if (method, path) == ("POST", "/v1/batches"):
            created.set()
            fake.ending.wait(HANG_S)
        return answer

    api.answer = withheld  # type: ignore[method-assign]
    with embedder(fake, tmp_path) as process:
        assert created.wait(HANG_S), process.communicate(timeout=HANG_S)[0]
        # 2. The embedder is killed.
        process.kill()
        process.wait(HANG_S)
    state = State.of(HalfPriceShelf(settings).state(JOB))
    assert state is not None
    assert (state.parts[0].phase, state.parts[0].batch_id) == ("creating", "")
    # 3. The next one finds the batch, reads it, and embeds the documents that it was for.
    api.answer = real  # type: ignore[method-assign]
    with embedder(fake, tmp_path) as process:
        said, _ = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, said
    # 4. One batch, each text paid once, no other request, and the ledger has it at the batch's price.
    assert len(api.batches) == 1
    assert set(api.billed.values()) == {1}
    assert len(api.billed) == count
    assert fake.requests == []
    assert api.files == {}
    book = SpendBook(tmp_path / "ledger" / "spend.sqlite")
    lines = book.lines("2000-01-01")
    book.close()
    tokens = sum(count_words(text) for text in api.billed)
    assert [(line.key.lane, line.key.dataset, line.counts.tokens) for line in lines] == [
        ("batch", "nyiso_load", tokens)
    ]
