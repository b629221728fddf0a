"""Readers and fetch workers that follow the load, on a real Kafka: a burst makes them come, calm makes them go.

One service, as its user runs it. Each claim is waited for; the figures of the settings are small so that this is short.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shoal.settings import Settings, load
from shoal.sources.ids import document_id
from shoal.sources.kafka import open_producer
from tests.fixtures.kafka_server import KafkaServer
from tests.fixtures.stack import Stack

PARTITIONS, READERS, FETCHERS = 6, 3, 2
GUARD_S = 240.0
"""A guard against hanging, not a measure: test machines are busy."""
AHEAD = 150  # documents kept waiting while there is to be pressure
DOCUMENT_BYTES = 150_000  # so that fetch workers have something to do
pytestmark = pytest.mark.timeout(4 * GUARD_S)


class Feed:
    """Documents on disk, announced one by one, each once."""

    def __init__(self, settings: Settings, place: Path) -> None:
        self.settings, self.place = settings, place
        self.announced = 0
        self._producer = open_producer(settings)
        self._random = random.Random(7)
        place.mkdir(parents=True)

    def send(self, count: int) -> None:
        words = [f"w{number}" for number in range(5000)]
        for _ in range(count):
            urn = f"{self.announced}.html"
            text = " ".join(self._random.choices(words, k=DOCUMENT_BYTES // 6))
            (self.place / urn).write_text(f"<html><body><h1>{urn}</h1><p>{text}</p></body></html>")
            metadata = {"publish_dtm": "2025-01-20T14:30:00Z", "source": "nyiso", "data_type": "load"}
            body = {"dataset": "d", "urn": urn, "location": (self.place / urn).as_uri(), "metadata": metadata}
            key = document_id("prod", "d", urn).encode()
            self._producer.send(self.settings.kafka_topics[0], key, json.dumps(body).encode())
            self.announced += 1
        self._producer.flush(30)


class Service:
    def __init__(self, stack: Stack, feed: Feed) -> None:
        self.stack, self.feed = stack, feed

    def status(self) -> dict[str, Any]:
        return dict(self.stack.get("/api/v1/ingest")["ingest"])

    def wait(self, true: Callable[[dict[str, Any]], object], *, under_pressure: bool = False) -> dict[str, Any]:
        """Until it is true of a status; meanwhile there is always more to do where so wanted."""
        deadline, status = time.monotonic() + GUARD_S, {}
        while time.monotonic() < deadline:
            try:
                status = self.status()
            except httpx.HTTPError:
                continue
            if true(status):
                return status
            if under_pressure and self.feed.announced - status["totals"]["ended"] < AHEAD:
                self.feed.send(40)
            time.sleep(0.2)
        shown = {name: status.get(name) for name in ("scaling", "totals", "reasons", "problems", "paused", "actors")}
        raise AssertionError(f"not within {GUARD_S} s: {json.dumps(shown, indent=1)}\n{self.stack.log()}")


@pytest.fixture
def service(kafka_server: KafkaServer, tmp_path: Path) -> Iterator[Service]:
    topic = kafka_server.create_topic(f"scrapes-{uuid.uuid4().hex[:8]}", PARTITIONS)
    environment = {
        "KAFKA_BROKERS": kafka_server.bootstrap, "KAFKA_TOPIC": topic, "KAFKA_GROUP_ID": f"group-{topic}",
        "SHOAL_COMMAND_TOPIC": f"commands-{topic}", "SHOAL_EMBEDDING_PROVIDER": "hash",
        "SHOAL_READERS": "1", "SHOAL_READERS_MAX": str(READERS), "SHOAL_FETCHERS": "1",
        "SHOAL_FETCHERS_MAX": str(FETCHERS), "SHOAL_LAG_TARGET_S": "1", "SHOAL_SCALE_OUT_S": "1",
        "SHOAL_SCALE_IN_S": "4", "SHOAL_IN_FLIGHT_ITEMS_MAX": "12", "SHOAL_CHUNKS_PER_DOCUMENT_MAX": "2",
        "SHOAL_SERVE_REPLICAS_MAX": "1",
    }  # fmt: skip
    with Stack(tmp_path, environment, ready_s=GUARD_S) as stack:
        settings = load(data_dir=tmp_path / "data", kafka_brokers=kafka_server.bootstrap, kafka_topics=(topic,))
        yield Service(stack, Feed(settings, tmp_path / "data" / "objects"))


def working(status: dict[str, Any]) -> tuple[int, int]:
    return status["scaling"]["readers"]["working"], status["scaling"]["fetchers"]["working"]


def there(status: dict[str, Any]) -> tuple[int, int]:
    """Also those on their way."""
    readers, fetchers = (
        sum(status["scaling"][pool][how] for how in ("working", "pending", "leaving"))
        for pool in ("readers", "fetchers")
    )
    return readers, fetchers


def owners(status: dict[str, Any]) -> set[str | None]:
    return {entry["owner"] for entry in status["partitions"]}


def test_a_burst_brings_readers_and_fetch_workers_calm_sends_them_away_and_each_file_is_indexed_once(
    service: Service,
) -> None:
    service.wait(lambda status: working(status) == (1, 1) and len(status["partitions"]) > PARTITIONS)
    # 1. More and more to do: all come that may, and they share the partitions.
    everyone = {f"reader-{number}" for number in range(READERS)}
    come: set[str] = set()  # the ones may go before the others are there: what holds documents up changes

    def all_have_come(status: dict[str, Any]) -> bool:
        readers, fetchers = working(status)
        come.update(["readers"] * (readers == READERS and owners(status) == everyone))
        come.update(["fetchers"] * (fetchers == FETCHERS))
        return len(come) == 2

    service.wait(all_have_come, under_pressure=True)
    # 2. Calm: all go that may, what they had is another's at once, and no one is called dead.
    calm = service.wait(lambda status: there(status) == (1, 1) and owners(status) == {"reader-0"})
    assert set(calm["actors"]) == {"writer", "embedder", "fetcher-0", "reader-0"}
    extra = ("reader-1", "reader-2", "fetcher-1")
    assert not [reason for reason in calm["reasons"] if any(name in str(reason) for name in extra)]
    # 3. Who is left does the work of all.
    service.feed.send(12)

    def is_done(status: dict[str, Any]) -> bool:
        totals = status["totals"]
        return totals["outcomes"]["indexed"] >= service.feed.announced and totals["lag_records"] == 0

    done = service.wait(is_done)
    # 4. Nothing was lost, nothing is there twice; what was in flight in a hand-over may have been looked at again.
    verified = service.stack.run("verify", "-o", "json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert done["totals"]["outcomes"]["indexed"] == service.feed.announced
    assert done["totals"]["outcomes"].keys() <= {"indexed", "unchanged"}
    assert "fetch" not in done["totals"]["retried"], "a document was given to a fetch worker that had gone"
