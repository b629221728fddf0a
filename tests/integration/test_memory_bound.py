"""A burst of 10 MB objects while the embedding provider answers nothing: Shoal holds back, and its memory is bounded.

The bound is stated by formula (`burst_bytes_max`) from the settings and two constants of the fetcher; what was
measured is printed. See docs/guarantees.md, G6.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.processes import MemoryWatch, Tree, role
from shoal.actors.fetcher import HELD_OBJECTS_MAX
from tests.fixtures.openai_server import FakeOpenAI
from tests.fixtures.stack import Stack

MIB = 1024 * 1024
OBJECT_BYTES, OBJECTS = 10 * MIB, 40
READERS, FETCHERS, ITEMS_MAX, HELD_BYTES_MAX = 2, 2, 12, 8 * MIB
STALLED_S = 240.0  # a hang guard, for a busy machine

pytestmark = pytest.mark.timeout(600)


def burst_bytes_max() -> int:
    """What the burst may add to the memory of the whole stack, however many objects are announced.

    Each fetcher holds a few objects, and each of them twice while it crosses into the extracting child; the child
    of each fetcher needs up to 16 times an object's size (JSON: measured at 64 MB, see shoal.actors.extraction),
    and allocators keep what they once had. What was extracted is held within the readers' bound, in the object
    store, and once more in the embedder and in the writer.
    """
    objects = FETCHERS * HELD_OBJECTS_MAX * OBJECT_BYTES * 2
    children = FETCHERS * 16 * OBJECT_BYTES
    payloads = READERS * HELD_BYTES_MAX * 3
    return objects + children + payloads


class StallingProvider(FakeOpenAI):
    """Answers nothing while it is stalled; who waited then gets its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.well = threading.Event()
        self.well.set()
        self.waiting = 0

    def embeddings(self, request: dict[str, Any], as_lists: bool = False, **changes: Any) -> dict[str, Any]:
        self.waiting += 1
        while not self.well.wait(0.2):
            if self.ending.is_set():
                break
        self.waiting -= 1
        return super().embeddings(request, as_lists, **changes)


@pytest.fixture
def provider() -> Iterator[StallingProvider]:
    fake = StallingProvider()
    yield fake
    fake.close()


@pytest.fixture
def stack(provider: StallingProvider, tmp_path: Path) -> Iterator[Stack]:
    environment = {
        "SHOAL_EMBEDDING_PROVIDER": "openai",
        "SHOAL_OPENAI_API_KEY": "test",
        "SHOAL_OPENAI_BASE_URL": provider.url,
        "SHOAL_OPENAI_TOKENS_PER_MINUTE": "1000000000",  # the provider stalls; our own limiter must not hold it back
        "SHOAL_READERS": str(READERS),
        "SHOAL_FETCHERS": str(FETCHERS),
        "SHOAL_IN_FLIGHT_ITEMS_MAX": str(ITEMS_MAX),
        "SHOAL_IN_FLIGHT_BYTES_MAX": str(HELD_BYTES_MAX),
    }
    with Stack(tmp_path / "stack", environment) as running:
        yield running


def make_objects(directory: Path) -> None:
    """Prose, CSV and JSON of 10 MB, each of its own: one body, its digits exchanged.

    Tables are described in a few chunks; prose fills as many as a document may have, so that bytes bound it too.
    """
    rng = random.Random(11)
    rows = [(rng.randrange(10**8), rng.randrange(10**6), f"zone {rng.randrange(10**5)}") for _ in range(60_000)]
    csv = "".join(f"2025-01-20T14:30:00Z,{load},{price},{zone}\n" for load, price, zone in rows).encode()
    records = [
        {"time": "2025-01-20T14:30:00Z", "load": load, "price": price, "zone": zone} for load, price, zone in rows
    ]
    words = [f"{rng.choice(['load', 'price', 'reserve'])} {rng.randrange(10**4)}" for _ in range(100_000)]
    prose = "".join(f"{word}{'.' if not number % 12 else ''} " for number, word in enumerate(words)).encode()
    body = {"csv": csv, "json": json.dumps(records)[1:-1].encode(), "txt": prose}
    digits = list(b"123456789")
    directory.mkdir()
    for number in range(OBJECTS):
        form = ("txt", "csv", "txt", "json")[number % 4]
        rng.shuffle(digits)
        piece = body[form].translate(bytes.maketrans(b"123456789", bytes(digits)))
        path = directory / f"object-{number}.{form}"
        if form == "csv":
            whole = b"time,load,price,zone\n" + piece * (OBJECT_BYTES // len(piece) + 1)
            path.write_bytes(whole[: whole.rindex(b"\n", 0, OBJECT_BYTES) + 1])
        elif form == "txt":
            path.write_bytes((piece * (OBJECT_BYTES // len(piece) + 1))[:OBJECT_BYTES])
        else:
            times = OBJECT_BYTES // (len(piece) + 1)
            path.write_bytes(b'{"records": [' + b",".join([piece] * times) + b"]}")


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + STALLED_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def pids(stack: Stack) -> dict[tuple[int, float], str]:
    """Every process of the stack by (pid, start), with its role; Ray's spare workers come and go as they please."""
    found = {}
    for process in Tree(stack.pid).processes():
        try:
            found[process.pid, process.create_time()] = role(process.cmdline())
        except psutil.Error:
            continue
    return {key: name for key, name in found.items() if not name.startswith("ray::IDLE")}


def test_a_burst_of_large_objects_and_a_stalled_embedder_pause_the_partitions_within_the_stated_memory(
    stack: Stack, provider: StallingProvider, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ingest() -> dict[str, Any]:
        status: dict[str, Any] = stack.get("/api/v1/ingest")["ingest"]
        for reader in status["readers"]:
            assert reader["held_bytes"] <= HELD_BYTES_MAX + ITEMS_MAX * 4096, "held beyond the bound"
            assert reader["in_flight_items"] <= ITEMS_MAX
        for fetcher in status["fetchers"]:
            assert fetcher["held_bytes"] <= HELD_OBJECTS_MAX * (OBJECT_BYTES + MIB)
        return status

    make_objects(tmp_path / "burst")
    warm = tmp_path / "warm"
    warm.mkdir()
    for number in range(2 * FETCHERS):  # every extracting child has been started, every import been made
        (warm / f"small-{number}.json").write_text(json.dumps({"load": number}))
    assert stack.publish(str(warm), "--dataset", "warm")["adds_up"]
    before = pids(stack)
    idle = sum(usage.pss for usage in Tree(stack.pid).memory().values())

    provider.well.clear()
    with MemoryWatch(Tree(stack.pid), every_s=0.5) as watch, ThreadPoolExecutor(1) as aside:
        tally = aside.submit(stack.publish, str(tmp_path / "burst"), "--dataset", "burst")
        # 1. The readers fill up; the fetchers come to rest; what is held waits for the embedder.
        status: dict[str, Any] = {}

        def is_held_back() -> bool:
            nonlocal status
            status = ingest()
            paused = [reader for reader in status["readers"] if reader["paused_because"]]
            return bool(paused) and provider.waiting > 0 and not any(one["in_flight"] for one in status["fetchers"])

        until(is_held_back, "the partitions were never paused, or the fetchers never came to rest")
        stalled = status
        # 2. The provider recovers, and everything is indexed.
        provider.well.set()
        while not tally.done():
            ingest()
            time.sleep(0.5)
    after = pids(stack)
    with capsys.disabled():
        added, bound = watch.peak.total_pss - idle, burst_bytes_max()
        print(f"\nidle {idle // MIB} MiB, the burst added {added // MIB} of at most {bound // MIB} MiB")
        print({name: size // MIB for name, size in sorted(watch.peak.by_role.items(), key=lambda one: -one[1])[:9]})
        print({reader["name"]: (reader["held_bytes"], reader["paused_because"]) for reader in stalled["readers"]})

    assert any("in flight" in entry["paused_because"] for entry in stalled["partitions"] if entry["paused_because"])
    assert max(reader["held_bytes"] for reader in stalled["readers"]) > HELD_BYTES_MAX // 2, "bytes were scarce too"
    assert stalled["totals"]["oldest_item_waits_for"].startswith("embed")
    result = tally.result()
    assert result["outcomes"]["indexed"] == OBJECTS, result
    assert result["dead_letters"] == []
    assert added <= bound
    gone = {key: name for key, name in before.items() if key not in after}
    assert not gone, "nothing died"
    assert all(fetcher["extraction_kills"] == 0 for fetcher in ingest()["fetchers"])
