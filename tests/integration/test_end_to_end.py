"""The whole service as its user runs it: on a real Kafka and a real S3 server, and on the embedded defaults.

`shoal up` runs in a process of its own; messages go in through the log, answers come out over REST and MCP.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import signal
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import lance
import pyarrow as pa
import pytest
from confluent_kafka import Consumer

from shoal.cluster.announcing import Announcer, Tally
from shoal.settings import Settings, load
from shoal.sources.ids import document_id
from shoal.sources.kafka import connection, open_producer
from shoal.sources.publishing import Prepared
from shoal.store.schemas import table_uri, vectors_table
from shoal.store.writing import storage_options
from tests.fixtures.s3_server import S3Server
from tests.fixtures.stack import Stack

IDLE_S = 90.0
MIB = 1024 * 1024
pytestmark = pytest.mark.timeout(400)


@dataclass
class Place:
    """A running stack, the settings that reach its log, and where its objects go."""

    stack: Stack
    settings: Settings
    store: Callable[[str, bytes], str]  # (name, bytes) -> location
    missing: str

    def announce(self, messages: list[Prepared]) -> Tally:
        with Announcer(self.settings, listen=True) as announcer:
            announcer.send(messages)
            assert announcer.wait(IDLE_S), f"no outcome for {announcer.tally.waiting}\n{self.stack.log()}"
            return announcer.tally

    def document(self, urn: str, body: bytes, **more: Any) -> Prepared:
        return notification(urn, self.store(urn, body), **more)


def notification(urn: str, location: str, *, dataset: str = "e2e", version: str = "", **more: Any) -> Prepared:
    metadata = {"publish_dtm": "2025-01-20T14:30:00Z", "source": "nyiso", "data_type": "load_forecast"}
    metadata |= more.pop("metadata", {})
    body = {"dataset": dataset, "urn": urn, "location": location, "metadata": metadata} | more
    if version:
        body["version"] = version
    name = document_id("prod", dataset, urn)
    return Prepared(name.encode(), json.dumps(body).encode(), urn, name, location, 0)


def raw(urn: str, value: bytes) -> Prepared:
    return Prepared(urn.encode(), value, urn, urn, "", 0)


LIMITS = {"SHOAL_OBJECT_BYTES_MAX": str(24 * MIB), "SHOAL_DECOMPRESSED_BYTES_MAX": str(32 * MIB)}


@pytest.fixture(scope="module", params=["embedded", "kafka-s3"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "embedded":
        with Stack(directory, LIMITS) as stack:
            objects = directory / "data" / "objects"

            def store_file(name: str, body: bytes) -> str:
                (objects / name).parent.mkdir(parents=True, exist_ok=True)
                (objects / name).write_bytes(body)
                return (objects / name).as_uri()

            yield Place(stack, load(data_dir=directory / "data"), store_file, (objects / "nothing.json").as_uri())
        return
    kafka = request.getfixturevalue("kafka_server")
    s3: S3Server = request.getfixturevalue("s3_server")
    bucket, run = s3.bucket("e2e-objects"), uuid.uuid4().hex[:8]
    environment = (
        LIMITS
        | s3.env()
        | {
            "KAFKA_BROKERS": kafka.bootstrap,
            "KAFKA_TOPIC": f"scrapes-{run}",
            "KAFKA_GROUP_ID": f"group-{run}",
            "LANCEDB_PATH": f"s3://{s3.bucket('e2e-tables')}/{run}",
        }
    )
    client = s3.client()

    def store_object(name: str, body: bytes) -> str:
        client.put_object(Bucket=bucket, Key=f"{run}/{name}", Body=body)
        return f"s3://{bucket}/{run}/{name}"

    with Stack(directory, environment) as stack:
        settings = load(data_dir=directory / "data", kafka_brokers=kafka.bootstrap, kafka_topics=(f"scrapes-{run}",))
        yield Place(stack, settings, store_object, f"s3://{bucket}/{run}/nothing.json")


def forecast(zone: str, low: int) -> bytes:
    rows = "".join(f"01/20/2025 {hour:02d}:00,{low + 10 * hour},{low + 7 * hour}\n" for hour in range(24))
    return f"Time Stamp,{zone} Load (MW),NYISO Load (MW)\n{rows}".encode()


def test_a_document_becomes_searchable_by_hash_filter_and_meaning(place: Place) -> None:
    body = forecast("Hudson Valley", 900)
    tally = place.announce([place.document("hudson.csv", body, version="20250120T143000Z")])
    assert tally.outcomes == {"indexed": 1}
    token = str(tally.commit_sequence)
    place.stack.get("/api/v1/scrapes/search", limit=1, wait_token=token)  # readers see a commit within seconds
    sha256 = hashlib.sha256(body).hexdigest()
    known = place.stack.get(f"/api/v1/scrapes/{sha256}")
    assert known["exists"]
    assert known["data"]["data_source"] == "NYISO"
    assert known["data"]["kafka_cluster"] == connection(place.settings).cluster
    listed = place.stack.get("/api/v1/scrapes/search", data_source="nyiso", dataset="e2e", wait_token=token)
    assert "hudson.csv" in [row["urn"] for row in listed["results"]]
    found = place.stack.get("/api/v1/scrapes/search", query="electricity demand forecast Hudson Valley", limit=3)
    assert found["query_type"] == "vector"
    assert found["results"][0]["urn"] == "hudson.csv"


def test_versions_replace_repeat_and_arrive_late(place: Place) -> None:
    def version(number: int, low: int) -> Prepared:
        body = forecast("Capital", low)
        return notification("capital.csv", place.store(f"capital-{low}.csv", body), version=f"2025012{number}T000000Z")

    assert place.announce([version(2, 500)]).outcomes == {"indexed": 1}
    assert place.announce([version(2, 500)]).outcomes == {"unchanged": 1}, "the same message again"
    assert place.announce([version(3, 500)]).outcomes == {"unchanged": 1}, "a newer version of the same bytes"
    assert place.announce([version(1, 400)]).outcomes == {"superseded": 1}, "an older one that arrives late"
    tally = place.announce([version(4, 600)])
    assert tally.outcomes == {"indexed": 1}
    rows = place.stack.get(
        "/api/v1/scrapes/search", dataset="e2e", query="Capital load", limit=50, wait_token=str(tally.commit_sequence)
    )["results"]
    current = [row for row in rows if row["urn"] == "capital.csv"]
    assert [row["version"] for row in current] == ["20250124T000000Z"]
    place.stack.get("/api/v1/scrapes/search", limit=1, wait_token=str(tally.commit_sequence))
    late = place.stack.get(f"/api/v1/scrapes/{hashlib.sha256(forecast('Capital', 400)).hexdigest()}")
    assert late["exists"], "history is found by hash"


def test_a_tombstone_deletes(place: Place) -> None:
    body = forecast("Genesee", 300)
    message = place.document("genesee.csv", body)
    assert place.announce([message]).outcomes == {"indexed": 1}
    producer = open_producer(place.settings)
    producer.send(place.settings.kafka_topics[0], message.key, None)
    producer.flush(30)
    wait_until(lambda: not place.stack.get(f"/api/v1/scrapes/{hashlib.sha256(body).hexdigest()}")["exists"])


def bad_inputs(place: Place) -> list[tuple[Prepared, str | None]]:
    """(message, the reason it must be a dead letter for, or None where it must be indexed)."""
    put = place.document
    deep_xml = b"<a>" * 50_000 + b"</a>" * 50_000
    entities = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY %c "%s">' % (c, b"&%c;" % (c - 1) * 10) for c in range(ord("b"), ord("k"))
    )
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.csv", b"0" * (40 * MIB))
    series = [{"t": f"2025-01-{1 + n % 28:02d}T00:00:00Z", "load_mw": n} for n in range(250_000)]
    good = b'{"load_mw": [1, 2, 3]}'
    return [
        (raw("not json", b"{nope"), "not_json"),
        (raw("NaN in the message", b'{"dataset": NaN}'), "not_json"),
        (raw("invalid utf-8 in the message", b'{"dataset": "\xff"}'), "not_json"),
        (raw("wrong types", b'{"dataset": 7, "urn": [], "location": 1, "metadata": 2}'), "schema_invalid"),
        (notification("gopher.json", "gopher://b/k"), "location_refused"),
        (notification("passwd", "file:///etc/passwd"), "location_refused"),
        (notification("dots.json", (Path("/") / "etc" / ".." / "etc" / "passwd").as_uri()), "location_refused"),
        (notification("missing.json", place.missing), "object_missing"),
        (put("empty.json", b""), "empty"),
        (put("truncated.json", b'{"load": [1, 2, {"a": '), "extraction_failed"),
        (put("truncated.json.gz", gzip.compress(good * 1000)[:-20]), "extraction_failed"),
        (put("large.csv", b"a,b\n" * (7 * MIB)), "too_large"),
        (put("altered.json", good, metadata={"original_file_md5sum": "0" * 32}), "object_mismatch"),
        (put("bomb.json.gz", gzip.compress(b" " * (40 * MIB))), "too_large"),
        (put("bomb.zip", zipped.getvalue()), "too_large"),
        (put("deep.xml", deep_xml), "extraction_failed"),
        (put("entities.xml", entities + b"]><x>&j;</x>"), "extraction_failed"),
        (put("nested.html", b"<html><body>" + b"<div>" * 200_000 + b"deep"), "extraction_failed"),
        (put("photo.png", b"\x89PNG\r\n\x1a\n" + bytes(2000)), "unsupported_format"),
        (put("latin1.csv", "Región,Carga (MW)\nCórdoba,7\nBogotá,9\n".encode("latin-1")), None),
        (put("nan.json", b'{"load_mw": [1.5, NaN, Infinity], "zone": "Capital"}'), None),
        (put("ten_megabytes.json", json.dumps({"series": series}).encode()), None),
        (put("unknown_fields.json", good, surprise={"kept": True}), None),
    ]


def test_bad_input_ends_as_dead_letters_and_stops_nobody(place: Place) -> None:
    cases = bad_inputs(place)
    after = [place.document(f"after-{n}.csv", forecast("West", 100 + n)) for n in range(5)]
    tally = place.announce([message for message, _ in cases] + after)
    found = {urn: reason for urn, reason, _ in tally.dead}
    expected = {message.urn: reason for message, reason in cases if reason}
    assert found == expected
    assert tally.outcomes["dead_lettered"] == len(expected)
    assert tally.outcomes["indexed"] == len(cases) - len(expected) + len(after)
    kept = place.stack.get("/api/v1/scrapes/search", dataset="e2e", wait_token=str(tally.commit_sequence), limit=200)
    rows = {row["urn"]: row for row in kept["results"]}
    assert json.loads(rows["unknown_fields.json"]["extra"])["surprise"] == {"kept": True}
    assert rows["truncated.json"]["validation_status"] == "error", "'have we got this file' is answered truly"
    letters = dead_letters(place, len(expected))
    assert {letter["shoal.dlq.reason"] for letter in letters} >= set(expected.values())
    for letter in letters:
        assert letter["__connect.errors.topic"] == place.settings.kafka_topics[0]


def dead_letters(place: Place, count: int) -> list[dict[str, str]]:
    consumer = Consumer(
        {"bootstrap.servers": connection(place.settings).brokers, "group.id": uuid.uuid4().hex,
         "auto.offset.reset": "earliest", "enable.auto.commit": False, "session.timeout.ms": 6000}
    )  # fmt: skip
    consumer.subscribe([f"{place.settings.kafka_topics[0]}_dlq"])
    found: list[dict[str, str]] = []
    try:
        deadline = time.monotonic() + 60
        while len(found) < count and time.monotonic() < deadline:
            for message in consumer.consume(50, timeout=1.0):
                if message.error() is None:
                    found.append({name: (value or b"").decode() for name, value in message.headers() or []})
    finally:
        consumer.close()
    return found


@pytest.mark.parametrize("victim", ["writer", "readers", "fetchers", "embedder"])
def test_every_document_has_its_outcome_though_an_actor_is_killed(place: Place, victim: str) -> None:
    documents = [place.document(f"{victim}-{n}.csv", forecast(f"Zone {n}", 50 + n)) for n in range(40)]
    with Announcer(place.settings, listen=True) as announcer:
        announcer.send(documents[:20])
        flow = place.stack.get("/api/v1/ingest")["ingest"]
        actor = flow[victim][0] if isinstance(flow[victim], list) else flow[victim]
        os.kill(actor["pid"], signal.SIGKILL)
        announcer.send(documents[20:])
        assert announcer.wait(IDLE_S), f"no outcome for {announcer.tally.waiting}\n{place.stack.log()}"
    tally = announcer.tally
    assert tally.adds_up
    # A message that is delivered again after the kill may find its document already there.
    assert tally.outcomes["indexed"] + tally.outcomes["unchanged"] == len(documents)
    listed = place.stack.get(
        "/api/v1/scrapes/search", dataset="e2e", limit=1000, wait_token=str(tally.commit_sequence)
    )["results"]
    urns = [row["urn"] for row in listed]
    assert {document.urn for document in documents} <= set(urns)
    assert len(urns) == len(set(urns)), "nothing is there twice"


async def test_a_real_mcp_client_lists_and_calls_the_tools(place: Place) -> None:
    from fastmcp import Client

    tally = place.announce([place.document("mcp.csv", forecast("Long Island", 800))])
    place.stack.get("/api/v1/scrapes/search", limit=1, wait_token=str(tally.commit_sequence))
    async with Client(f"{place.stack.url}/mcp") as client:
        names = {tool.name for tool in await client.list_tools()}
        assert names >= {"search_scrapes", "find_similar_apis", "get_fix_patterns", "report_fix"}
        found = await client.call_tool("search_scrapes", {"query": "Long Island load", "limit": 3})
        assert "Long Island" in json.dumps(found.structured_content)
        similar = await client.call_tool(
            "find_similar_apis", {"endpoint": "https://api.example.org/load", "method": "GET", "limit": 3}
        )
        assert similar.structured_content
        report = {
            "scraper_name": "nyiso_load", "error_type": "KeyError", "error_message": "'Time Stamp'",
            "summary": "the column is now called timestamp", "outcome": "worked",
        }  # fmt: skip
        await client.call_tool("report_fix", report)
        deadline = time.monotonic() + 30
        while True:
            patterns = await client.call_tool("get_fix_patterns", {"scraper_name": "nyiso_load"})
            if "now called timestamp" in json.dumps(patterns.structured_content):
                break
            assert time.monotonic() < deadline, patterns.structured_content


def test_a_fix_reported_over_rest_is_applied_once(place: Place) -> None:
    body = {
        "scraper_name": "caiso_lmp", "error_type": "HTTPError", "error_message": "429 Too Many Requests",
        "summary": "wait for Retry-After", "outcome": "worked",
    }  # fmt: skip
    for _ in range(2):
        answer = httpx.post(
            f"{place.stack.url}/api/v1/agents/fixes", json=body, headers={"Idempotency-Key": "once"}, timeout=30
        )
        assert answer.status_code in (200, 201, 202), answer.text

    def counts() -> list[int]:
        patterns = place.stack.post("/api/v1/agents/context/fix-patterns", {"scraper_name": "caiso_lmp"})
        return [fix["count"] for pattern in patterns["fix_patterns"] for fix in pattern["fix_history"]]

    wait_until(lambda: counts() == [1])


def test_the_status_tells_the_truth(place: Place) -> None:
    def unrest() -> dict[str, Any]:
        """Everything in the status that is not at rest."""
        flow = place.stack.get("/api/v1/ingest")["ingest"]
        partitions = [partition for reader in flow["readers"] for partition in reader["partitions"]]
        found: dict[str, Any] = dict(flow["problems"])
        found |= {reader["name"]: reader for reader in flow["readers"] if reader["in_flight_items"]}
        found |= {f"{p['topic']}/{p['partition']}": p for p in partitions if p["lag_records"] != 0}
        return found

    wait_until(lambda: not unrest(), unrest)
    done = place.stack.run("status", "-o", "json")
    assert done.returncode == 0, done.stderr
    flow = json.loads(done.stdout)["ingest"]
    age_s = (datetime.now(UTC) - datetime.fromisoformat(flow["at"])).total_seconds()
    assert age_s < 15
    assert flow["writer"]["documents"] > 0


def test_upkeep_that_is_asked_for_is_done_while_searches_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Questions are asked without a pause. 2. Every command of upkeep is given; 3. each does what it says."""
    for name, value in place.stack.environment.items():
        if name.startswith(("AWS_", "LANCEDB_")):
            monkeypatch.setenv(name, value)
    settings = load(data_dir=place.stack.directory / "data")
    body = forecast("Erasure", 40)
    doomed = place.document("erased.csv", body, dataset="upkeep")
    kept = [place.document(f"kept-{n}.csv", forecast(f"Area {n}", n), dataset="upkeep") for n in range(3)]
    token = str(place.announce([doomed, *kept]).commit_sequence)
    place.stack.get("/api/v1/scrapes/search", limit=1, wait_token=token)
    vectors, options = table_uri(settings.tables_uri, vectors_table("scraper")), storage_options(settings)
    held = lance.dataset(vectors, storage_options=options)
    (row,) = held.to_table(filter=f"id = '{kept[0].document_id}#0'").to_pylist()
    orphan = {**row, "id": "prod:upkeep:nobody#0", "metadata_id": "prod:upkeep:nobody"}
    lance.write_dataset(
        pa.Table.from_pylist([orphan], schema=held.schema), vectors, mode="append", storage_options=options
    )
    answered, failures, is_over = [], [], threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            for mode in ("keyword", "vector"):
                try:
                    found = place.stack.get("/api/v1/scrapes/search", dataset="upkeep", query="Area 1 load", mode=mode)
                    answered.append(any(hit["urn"] == "kept-1.csv" for hit in found["results"]))
                except httpx.HTTPError as error:
                    failures.append(repr(error))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        said = {}
        for name, arguments in {
            "found": ("check",), "rebuild": ("index", "rebuild"), "optimize": ("index", "optimize"),
            "repair": ("check", "--repair"), "whole": ("check",), "erase": ("erase", doomed.document_id, "--yes"),
            "recall": ("recall",), "status": ("index", "status"), "verify": ("verify",),
        }.items():  # fmt: skip
            before = len(answered)
            done = place.stack.run(*arguments, "-o", "json")
            assert done.returncode == (1 if name == "found" else 0), f"{name}: {done.stdout}{done.stderr}"
            said[name] = json.loads(done.stdout)
            assert len(answered) > before, f"no answer during {name}"
    finally:
        is_over.set()
        asking.join()
    assert failures == []
    assert all(answered)
    errors = [finding["code"] for finding in said["found"]["findings"] if finding["severity"] == "error"]
    assert errors == ["orphan_chunks"]
    assert "content_summary: train took" in said["rebuild"]["detail"]
    assert said["optimize"]["state"] == "done"
    (repair,) = said["repair"]["repairs"]
    assert repair["result"]["removed"] == {"vectors": 1}
    assert said["whole"]["ok"]
    assert (said["erase"]["rows"], said["erase"]["chunks"], said["erase"]["remembered"]) == (0, 0, 1)
    assert not place.stack.get(f"/api/v1/scrapes/{hashlib.sha256(body).hexdigest()}")["exists"]
    assert said["status"]["requests"], "what was asked for is told"


def test_a_restored_backup_answers_as_then_and_what_came_since_is_read_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. back up while it runs; 2. change, announce, delete; 3. stop, restore elsewhere, start: all of it is there."""
    if place.settings.is_embedded:
        pytest.skip("the embedded broker has no group to set back: docs/backup.md")
    place.announce([place.document(f"kept-{n}.csv", forecast("Kept", n), dataset="restored") for n in range(4)])
    wait_until(lambda: len(found_in(place, "restored")) == 4)  # readers see a commit within seconds
    before = {row["urn"]: row["sha256_hash"] for row in found_in(place, "restored")}
    backup, tables = (place.stack.environment["LANCEDB_PATH"] + end for end in ("-backup", "-restored"))
    done = place.stack.run("backup", backup, "-o", "json")
    assert done.returncode == 0, done.stderr
    urns = before.keys() - {"kept-2.csv"} | {"later.csv"}
    later = place.document("later.csv", forecast("Later", 7), dataset="restored", version="20250121T000000Z")
    changed = place.document("kept-1.csv", forecast("Kept", 77), dataset="restored", version="20250121T000000Z")
    place.announce([later, changed])
    assert (
        httpx.delete(
            f"{place.stack.url}/api/v1/collections/scraper/documents/prod:restored:kept-2.csv", timeout=60
        ).status_code
        < 300
    )
    wait_until(lambda: {row["urn"] for row in found_in(place, "restored")} == urns)
    after = {row["urn"]: row["sha256_hash"] for row in found_in(place, "restored")}
    refused = place.stack.run("restore", backup)
    assert refused.returncode != 0, "there are tables"
    place.stack.stop()
    place.stack.environment["LANCEDB_PATH"] = tables
    restored = place.stack.run("restore", backup, "-o", "json")
    assert restored.returncode == 0, restored.stderr
    assert json.loads(restored.stdout)["rewound"]
    assert place.stack.run("check").returncode == 0
    for name, value in place.stack.environment.items():
        if name.startswith(("AWS_", "LANCEDB_")):
            monkeypatch.setenv(name, value)
    seen = lance.dataset(f"{tables}/scraper_metadata.lance", storage_options=storage_options(load()))
    rows = seen.to_table(columns=["urn", "sha256_hash"], filter="dataset = 'restored'").to_pylist()
    assert {row["urn"]: row["sha256_hash"] for row in rows} == before
    place.stack.start()
    wait_until(lambda: {row["urn"]: row["sha256_hash"] for row in found_in(place, "restored")} == after)
    assert place.stack.run("verify").returncode == 0


def found_in(place: Place, dataset: str) -> list[dict[str, Any]]:
    return list(place.stack.get("/api/v1/scrapes/search", dataset=dataset)["results"])


def test_after_a_kill_of_everything_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """1. index; 2. kill -9 of all; 3. announce while nothing runs; 4. start: both are there, once."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "first.csv").write_bytes(forecast("North", 100))
    (files / "second.csv").write_bytes(forecast("Mohawk Valley", 200))
    stack = Stack(tmp_path / "stack")
    stack.start()
    try:
        assert (
            stack.publish(str(files / "first.csv"), "--source", "nyiso", "--dataset", "d")["outcomes"]["indexed"] == 1
        )
        stack.kill()
        done = stack.run("publish", str(files / "second.csv"), "--source", "nyiso", "--dataset", "d")
        assert done.returncode == 0, done.stderr
        stack.start()

        def urns() -> list[str]:
            return sorted(row["urn"] for row in stack.get("/api/v1/scrapes/search", dataset="d")["results"])

        wait_until(lambda: urns() == ["first.csv", "second.csv"])
        assert stack.stop() < 30
    finally:
        stack.kill()


def wait_until(
    condition: Callable[[], bool], otherwise: Callable[[], object] = lambda: "", timeout_s: float = 60.0
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {otherwise()}"
        time.sleep(0.2)
