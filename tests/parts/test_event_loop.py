"""Nothing that blocks is done on a replica's event loop: real tables, every read that REST has, one loop.

What blocks is seen by Python's audit events (PEP 578): a file, a directory, a socket, a process or a nap that is asked
for on a thread whose event loop runs. And no single step of the loop may take long, counted in CPU time of that thread,
which another program's load does not change.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures.letters import FakeLetters
from tests.fixtures.query_side import application, publish_status, seed

BLOCKING = frozenset({
    "open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "socket.connect", "socket.getaddrinfo",
    "subprocess.Popen", "sqlite3.connect", "time.sleep", "fcntl.flock", "shutil.copyfile",
})  # fmt: skip
STEP_S = 0.25  # CPU; measured: 0.05. A replica has 100 requests at once, and each of them waits for it

_seen: list[str] | None = None


def _hear(event: str, arguments: Any) -> None:
    if _seen is not None and event in BLOCKING and asyncio._get_running_loop() is not None:
        stack = [f"{at.f_code.co_filename}:{line}" for at, line in itertools.islice(traceback.walk_stack(None), 1, 12)]
        _seen.append("\n  ".join([f"{event} {arguments!r:.200}", *stack]))  # no source lines: they would be read


@pytest.fixture(scope="module")
def hook() -> None:
    """A hook stays for good, so there is one, and it hears only while a test listens."""
    sys.addaudithook(_hear)


@pytest.fixture
def blocked(hook: None) -> Iterator[list[str]]:
    """What was asked for that blocks."""
    global _seen
    _seen = []
    yield _seen
    _seen = None


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """Every step of an event loop: CPU seconds of its thread, and what it was."""
    found: list[tuple[float, str]] = []
    run = asyncio.Handle._run

    def measured(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        found.append((time.thread_time() - began, repr(handle)))

    monkeypatch.setattr(asyncio.Handle, "_run", measured)
    return found


def questions(id: str, sha256: str) -> list[tuple[str, str, Any]]:
    """One of each read, the heaviest that it takes."""
    place = "/api/v1/collections/scraper"
    every = {"limit": 200, "facets": ["data_source", "dataset", "file_format"]}
    return [
        ("GET", "/readyz", None), ("GET", "/metrics", None), ("GET", "/api/v1/ingest", None),
        ("GET", "/api/v1/cost?by=dataset", None), ("GET", "/api/v1/scrapes/datasets?limit=1000", None),
        ("GET", "/api/v1/collections", None), ("GET", place, None), ("GET", f"{place}/index", None),
        ("GET", "/api/v1/scrapes/search?limit=1000", None),
        ("GET", "/api/v1/scrapes/search?query=load+forecast&mode=hybrid&limit=1000&explain=true", None),
        ("GET", f"/api/v1/scrapes/{sha256}", None),
        ("GET", f"{place}/documents/{id}?chunks=200", None), ("GET", f"{place}/documents/{id}/raw", None),
        ("POST", f"{place}/search", every),
        ("POST", f"{place}/search", {**every, "query": "load forecast in MW", "highlight": True, "explain": True,
                                     "chunks_per_document": 3, "mmr_lambda": 0.5}),
        ("POST", "/api/v1/agents/context/similar-apis?limit=50", {"endpoint": "https://example.org/load"}),
        ("POST", "/api/v1/agents/context/fix-patterns", {"scraper_name": "x", "error_message": "KeyError: load"}),
        ("GET", "/api/v1/dead-letters", None), ("GET", "/ui/", None), ("GET", "/docs", None),
        ("GET", "/openapi.json", None),
    ]  # fmt: skip


async def test_no_read_blocks_the_loop_or_holds_it_long(
    tmp_path: Path, blocked: list[str], steps: list[tuple[float, str]]
) -> None:
    settings, _, announced = await asyncio.to_thread(seed, tmp_path, 200)
    await asyncio.to_thread(publish_status, settings)
    app = application(settings, FakeLetters(), None)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shoal", timeout=120) as client:
        first = (await client.get("/api/v1/scrapes/search?limit=1")).json()["results"][0]
        asked = questions(first["id"], first["sha256_hash"])
        for method, path, body in asked:  # once before: what is imported and kept is there then
            answer = await client.request(method, path, json=body)
            assert answer.is_success, f"{path}: {answer.text[:300]}"
        gc.collect()
        gc.freeze()  # what thousands of tests before have left here no replica has: a collection would go through it
        await asyncio.sleep(0)  # ends the step of this test itself, which has that collection in it
        try:
            blocked.clear()
            steps.clear()
            for _ in range(3):
                await asyncio.gather(*(client.request(method, path, json=body) for method, path, body in asked))
        finally:
            gc.unfreeze()
    steps.sort(reverse=True)
    for took_s, what in steps[:5]:
        print(f"{1000 * took_s:.1f} ms {what[:200]}")
    assert announced
    assert blocked == [], "\n\n".join(blocked[:5])
    assert steps[0][0] < STEP_S, steps[0]


async def test_a_read_on_the_loop_is_heard(tmp_path: Path, blocked: list[str]) -> None:
    (tmp_path / "a").write_text("a")
    assert len(blocked) == 1
    assert "open" in blocked[0]
    await asyncio.to_thread((tmp_path / "a").read_text)
    assert len(blocked) == 1
