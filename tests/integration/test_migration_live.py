"""A change of the model while it is searched and written to: no question fails, nothing is lost or there twice."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import lance
import numpy as np
import pytest

from shoal.cluster.announcing import Announcer
from shoal.embeddings.hash_model import HashModel
from shoal.records import Outcome
from shoal.settings import Settings, load
from shoal.sources.publishing import prepare
from shoal.store.place import current
from tests.fixtures.stack import Stack

pytestmark = pytest.mark.timeout(600)  # a crowded machine took 260 s, of which a stack needs most to start twice

BEFORE, AFTER = "hash:64", "hash:128"
ASKED_S, ANNOUNCED_S = 0.1, 0.3
HANG_S = 120.0  # a guard; nothing is measured by it


class Load:
    """Asks a question every ASKED_S, announces a document every ANNOUNCED_S, and looks at the status: three threads."""

    def __init__(self, stack: Stack, settings: Settings, directory: Path) -> None:
        self._stack, self._settings, self._directory = stack, settings, directory
        self._enough, self._ended = threading.Event(), threading.Event()
        self.announced = 0
        self.outcomes: Counter[Outcome] = Counter()
        self.answers: list[dict[str, Any]] = []
        self.failed: list[str] = []
        self.statuses: list[dict[str, Any]] = []
        self.errors: list[BaseException] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ends with every document's outcome known."""
        writing = threading.Thread(target=self._guarded, args=(self._announce,))
        others = [threading.Thread(target=self._guarded, args=(step,)) for step in (self._ask, self._watch)]
        for thread in (writing, *others):
            thread.start()
        try:
            yield
        finally:
            self._enough.set()
            writing.join(HANG_S)
            self._ended.set()
            for thread in others:
                thread.join(HANG_S)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException as error:
            self.errors.append(error)

    def _announce(self) -> None:
        with Announcer(self._settings, listen=True) as announcer:
            while not self._enough.wait(ANNOUNCED_S):
                number = self.announced
                file = self._directory / f"doc-{number}.txt"
                file.write_text(f"document number {number} about load in zone {number % 7} " + "word " * 60)
                announcer.send(prepare([file], self._settings, dataset="d", source="nyiso", data_type="load"))
                self.announced += 1
            assert announcer.wait(HANG_S), announcer.tally.waiting
            self.outcomes = announcer.tally.outcomes

    def _ask(self) -> None:
        with httpx.Client(base_url=self._stack.url, timeout=30) as client:
            while not self._ended.wait(ASKED_S):
                number = len(self.answers) + len(self.failed)  # never the same question: each needs its vector
                if number % 2:
                    answer = client.get("/api/v1/scrapes/search", params={"query": f"load {number}", "limit": 5})
                else:
                    body = {"query": f"zone {number}", "limit": 5}
                    answer = client.post("/api/v1/collections/scraper/search", json=body)
                if answer.status_code == 200:
                    self.answers.append(answer.json())
                else:
                    self.failed.append(f"{answer.status_code}: {answer.text[:300]}")

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self.statuses.append(self._stack.get("/api/v1/ingest"))

    def wait_for(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + HANG_S
        while not holds():
            assert not self.errors, self.errors
            assert time.monotonic() < deadline, f"{what}; last status: {self.statuses[-1:]}"
            time.sleep(0.1)


def rows(settings: Settings, table: str, *columns: str) -> list[dict[str, Any]]:
    dataset = lance.dataset(f"{current(settings).tables_uri}/{table}.lance")
    found: list[dict[str, Any]] = dataset.to_table(columns=list(columns), filter="fence IS NULL").to_pylist()
    return found


def changing(status: dict[str, Any]) -> bool:
    return (status.get("ingest") or {}).get("changing_model") is not None


def test_no_question_fails_and_nothing_is_lost_or_doubled_while_the_model_changes(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    few = {"SHOAL_EMBEDDING_PROVIDER": "hash", "SHOAL_FETCHERS": "1", "SHOAL_READERS": "1"}
    with Stack(tmp_path / "stack", few) as stack:
        settings = load(data_dir=stack.directory / "data", embedding_provider="hash")
        load_ = Load(stack, settings, files)
        with load_.running():
            load_.wait_for(lambda: load_.announced >= 20 and len(load_.answers) >= 20, "it works before the change")
            # 1. The other set of tables is built, and the collection moves, both beside the load.
            for step in (("--to", AFTER), ("--switch",)):
                done = stack.run("migrate-model", "scraper", *step, "--yes")
                assert done.returncode == 0, done.stderr
            # 2. Ingest starts anew with the other model, and says so.
            load_.wait_for(lambda: any(changing(status) for status in load_.statuses), "the change is told")
            load_.wait_for(
                lambda: not changing(load_.statuses[-1]) and load_.statuses[-1]["ingest"]["model"] == AFTER,
                "the change ends",
            )
        # 3. Every question had its answer, or said that it is by words.
        assert not load_.errors
        assert not load_.failed
        for answer in load_.answers:
            is_meant = answer.get("query_type", answer.get("mode")) in ("vector", "hybrid")
            assert is_meant or answer["warnings"], answer
        during = [status for status in load_.statuses if changing(status)]
        assert {status["health"] for status in during} == {"degraded"}
        assert all("changing model" in {reason["what"] for reason in status["reasons"]} for status in during)
        # 4. Each document is there once, with vectors of the new model.
        assert load_.outcomes == {Outcome.INDEXED: load_.announced}
        documents = rows(settings, "scraper_metadata", "id", "embedding_model")
        assert Counter(row["id"] for row in documents) == {f"prod:d:doc-{i}.txt": 1 for i in range(load_.announced)}
        assert {row["embedding_model"] for row in documents} == {AFTER}
        chunks = rows(settings, "scraper_vectors", "id", "metadata_id", "content_summary", "content_embedding")
        assert len({row["id"] for row in chunks}) == len(chunks)
        assert {row["metadata_id"] for row in chunks} == {row["id"] for row in documents}
        right = HashModel(128).embed([row["content_summary"] for row in chunks])
        assert np.allclose(right, [row["content_embedding"] for row in chunks], atol=1e-6)
        assert stack.run("check").returncode == 0
