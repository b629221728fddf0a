"""Dead letters as whoever is on call meets them: look, mend the cause, replay, on the whole service."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cluster.announcing import Announcer
from shoal.cluster.cli import app
from shoal.settings import Settings, load
from shoal.sources.ids import document_id
from shoal.sources.publishing import Prepared
from tests.fixtures.s3_server import S3Server
from tests.fixtures.stack import Stack

pytestmark = pytest.mark.timeout(400)
DATASET = "replayed"
HASH = {"SHOAL_EMBEDDING_PROVIDER": "hash"}  # vectors are not the matter


@dataclass
class Place:
    """A running stack, the settings that reach its log, and where its objects go."""

    stack: Stack
    settings: Settings
    locate: Callable[[str], str]
    store: Callable[[str, bytes], object]


@pytest.fixture(params=["embedded", "kafka-s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "embedded":
        objects = tmp_path / "data" / "objects"
        objects.mkdir(parents=True)
        with Stack(tmp_path, HASH) as stack:
            settings = load(data_dir=tmp_path / "data")
            store = lambda name, body: (objects / name).write_bytes(body)  # noqa: E731
            yield Place(stack, settings, lambda name: (objects / name).as_uri(), store)
        return
    kafka, s3 = request.getfixturevalue("kafka_server"), request.getfixturevalue("s3_server")
    assert isinstance(s3, S3Server)
    bucket, run = s3.bucket("dlq-objects"), uuid.uuid4().hex[:8]
    environment = (
        s3.env()
        | HASH
        | {
            "KAFKA_BROKERS": kafka.bootstrap,
            "KAFKA_TOPIC": f"dying-{run}",
            "KAFKA_GROUP_ID": f"group-{run}",
            "LANCEDB_PATH": f"s3://{s3.bucket('dlq-tables')}/{run}",
        }
    )
    client = s3.client()
    with Stack(tmp_path, environment) as stack:
        settings = load(data_dir=tmp_path / "data", kafka_brokers=kafka.bootstrap, kafka_topics=(f"dying-{run}",))
        yield Place(
            stack,
            settings,
            lambda name: f"s3://{bucket}/{run}/{name}",
            lambda name, body: client.put_object(Bucket=bucket, Key=f"{run}/{name}", Body=body),
        )


def notification(urn: str, location: str) -> Prepared:
    metadata = {"publish_dtm": "2025-01-20T14:30:00Z", "source": "nyiso", "data_type": "load_forecast"}
    body = {"dataset": DATASET, "urn": urn, "location": location, "metadata": metadata}
    name = document_id("prod", DATASET, urn)
    return Prepared(name.encode(), json.dumps(body).encode(), urn, name, location, 0)


def dlq(place: Place, *arguments: str, code: int = 0) -> dict[str, object]:
    """The command, in this process: one of its own takes seconds to import what this one has."""
    done = CliRunner().invoke(app, ["dlq", *arguments, "-o", "json"], env=place.stack.environment)
    assert done.exit_code == code, f"{arguments}: {done.exception!r}: {done.stdout}\n{done.stderr}\n{place.stack.log()}"
    return dict(json.loads(done.stdout))


def test_a_replay_after_the_cause_was_mended_is_indexed_and_one_before_that_returns(place: Place) -> None:
    """1. Two objects are missing: two dead letters. 2. One object comes; both are replayed: one is indexed, one
    returns with its count raised. 3. The other comes: its new letter is replayed, and is indexed too."""
    with Announcer(place.settings, listen=True) as announcer:
        announcer.send(notification(urn, place.locate(urn)) for urn in ("mended.csv", "missing.csv"))
        assert announcer.wait(90), place.stack.log()
    assert announcer.tally.outcomes == {"dead_lettered": 2}
    listed = dlq(place, "list", "--reason", "object_missing", "--since", "1h", "--dataset", DATASET)
    assert listed["matching"] == 2

    place.store("mended.csv", b"Time Stamp,Zone,Load (MW)\n01/20/2025 00:00,West,1350\n")
    told = dlq(place, "replay", "--reason", "object_missing", "--wait", "--timeout", "90", code=1)
    assert (told["replayed"], told["succeeded"], told["returned"]) == (2, 1, 1)
    assert told["outcomes"] == {"indexed": 1}
    states = {(row["key"], row["state"], row["retry_count"]) for row in rows(dlq(place, "list", "--all"))}
    assert states == {
        (f"prod:{DATASET}:mended.csv", "succeeded", 0),
        (f"prod:{DATASET}:missing.csv", "returned", 0),
        (f"prod:{DATASET}:missing.csv", "open", 1),
    }

    (returned,) = rows(dlq(place, "list"))
    place.store("missing.csv", b"Time Stamp,Zone,Load (MW)\n01/20/2025 00:00,Capital,980\n")
    told = dlq(place, "replay", str(returned["id"]), "--wait", "--timeout", "90")
    assert (told["succeeded"], told["returned"]) == (1, 0)
    shown = dlq(place, "show", str(returned["id"]))
    assert (shown["state"], shown["outcome"], shown["replays"]) == ("succeeded", "indexed", 2)
    token = place.stack.get("/api/v1/ingest")["ingest"]["writer"]["commit_sequence"]
    found = place.stack.get("/api/v1/scrapes/search", dataset=DATASET, limit=10, wait_token=str(token))["results"]
    assert {row["urn"] for row in found} == {"mended.csv", "missing.csv"}
    assert rows(dlq(place, "list")) == []


def rows(listed: dict[str, object]) -> list[dict[str, object]]:
    found = listed["dead_letters"]
    assert isinstance(found, list)
    return found
