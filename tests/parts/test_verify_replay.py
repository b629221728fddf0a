"""`shoal verify`, `replay` and `backfill` on a real Kafka and real tables, beside an indexer without Ray.

The indexer does what readers and the writer do together: it takes messages from the group's offsets, writes them
through the real TableWriter, sends dead letters and outcomes, then commits. Its "extraction" takes the text from
the location's name, so that no test waits for files or models.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lance
import orjson
import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from shoal.cluster.backfilling import About, backfill
from shoal.cluster.embedded_broker import start_broker
from shoal.cluster.output import Exit, Format
from shoal.cluster.replaying import Choice, replay
from shoal.cluster.verifying import compare, look, verify
from shoal.errors import BadDocument, ConfigurationError, DeadReason
from shoal.records import Announcement, Deletion, EmbeddedCommand, Failure, Outcome, Position, Work, Writable
from shoal.settings import Settings, load
from shoal.sources.dead_letters import dead_letter
from shoal.sources.kafka import Connection, LogProducer, connection, consumer_config, ensure_topics, open_producer
from shoal.sources.log_reader import LogReader, Stretch
from shoal.sources.messages import RawMessage, outcome_id, parse_message
from shoal.store.audit import Kind
from shoal.store.schemas import IS_CURRENT, IS_DOCUMENT
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, document, failed

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)
DATASET = "nyiso_load"
BATCH_MAX = 50  # of the indexer that runs beside a test: as a writer, it commits what waits together


@dataclass
class Service:
    """The log, the tables, and what fills the one from the other."""

    settings: Settings
    place: Connection
    producer: LogProducer

    @property
    def topic(self) -> str:
        return self.settings.kafka_topics[0]

    def announce(self, urn: str, version: str = "1", *, location: str | None = None, **more: Any) -> str:
        identity = f"prod:{DATASET}:{urn}"
        value = {
            "dataset": DATASET, "urn": urn, "version": version, "location": location or f"s3://scrapes/{urn}/{version}",
            "metadata": {"publish_dtm": "2025-01-20T14:30:00Z", "source": "nyiso", "data_type": "load"}, **more,
        }  # fmt: skip
        self.send(identity.encode(), orjson.dumps(value))
        return identity

    def send(self, key: bytes | None, value: bytes | None) -> None:
        self.producer.send(self.topic, key, value)
        self.producer.flush(30)

    def writer(self) -> TableWriter:
        return TableWriter.open(self.settings.tables_uri, {}, MODEL, WIDTH, settings=self.settings, now=NOW)

    def index(self, *, commit: bool = True, writer: TableWriter | None = None, batch_max: int = 1) -> int:
        """Everything that the group has not committed, in writes of `batch_max` messages; returns how many messages."""
        writer = writer or self.writer()
        with LogReader(self.settings, self.place) as reader:
            stretches = reader.whole([self.topic])
            done = reader.committed([each.key for each in stretches])
            left = [replace(each, start=max(each.start, done.get(each.key, 0))) for each in stretches]
            found = sorted(reader.read(left), key=lambda raw: raw.position.timestamp_ms)  # as they were sent
        for first in range(0, len(found), batch_max):
            self._batch(found[first : first + batch_max], writer)
        if commit and found:
            self.commit(left)
        return len(found)

    def commit(self, stretches: list[Stretch]) -> None:
        consumer = Consumer(consumer_config(self.settings, self.place.brokers))
        offsets = [TopicPartition(each.topic, each.partition, each.end) for each in stretches]
        for _ in range(100):
            try:
                consumer.commit(offsets=offsets, asynchronous=False)
                break
            except KafkaException:  # a group's coordinator may be about to be found
                threading.Event().wait(0.2)
        else:
            pytest.fail("the broker takes no commit")
        consumer.close()

    def _batch(self, batch: list[RawMessage], writer: TableWriter) -> None:
        ends: dict[Position, list[tuple[Work | None, Outcome, Failure | None]]] = {}
        writing: list[tuple[Position, Work, Writable]] = []
        for raw in batch:
            at = raw.position
            ends[at] = []
            try:
                for work in parse_message(raw, self.settings):
                    made = self._made(work, writer)
                    if isinstance(made, Failure):
                        ends[at].append((work, Outcome.DEAD_LETTERED, made))
                    else:
                        writing.append((at, work, made))
            except BadDocument as error:
                failure = Failure(error.reason, error.message, "parse")
                ends[at].append((None, Outcome.DEAD_LETTERED, failure))
        acks = writer.apply([item for _, _, item in writing], (), NOW)
        for (at, work, _), ack in zip(writing, acks, strict=True):
            bad = isinstance(work, Announcement) and "broken" in (work.location or "")
            failure_of = Failure(DeadReason.EXTRACTION_FAILED, "broken", "extract") if bad else ack.failure
            ends[at].append((work, Outcome.DEAD_LETTERED if failure_of else ack.outcome, failure_of))
        for raw in batch:
            self._tell(raw, ends[raw.position])
        self.producer.flush(30)

    def _made(self, work: Work, writer: TableWriter) -> Writable | Failure:
        if not isinstance(work, Announcement):
            return work if isinstance(work, Deletion) else EmbeddedCommand(work)
        assert work.location is not None
        if work.document_id.startswith("prod:s3:"):
            known = writer.resolve_paths([work.location])
            work = replace(work, document_id=known.get(work.location, work.document_id))
        content = work.location or ""
        if "gone" in content:
            return Failure(DeadReason.OBJECT_MISSING, "no such key", "fetch")
        make = failed if "broken" in content else document
        made = make(work.document_id, 0, content=content)
        return replace(made, fetched=replace(made.fetched, announcement=work))

    def _tell(self, raw: RawMessage, ends: list[tuple[Work | None, Outcome, Failure | None]]) -> None:
        """Its dead letter and its outcomes."""
        for failure in [failure for _, _, failure in ends if failure][:1]:
            self.producer.send(*dead_letter(raw, failure, NOW))
        for work, outcome, failure in ends:
            waiting = work.outcome_id if work else outcome_id(raw)
            if waiting is not None:
                record = {"outcome": outcome, "reason": failure.reason if failure else None}
                self.producer.send(self.settings.outcome_topic, waiting.encode(), orjson.dumps(record))

    def rows(self, table: str, columns: list[str], condition: str = IS_DOCUMENT) -> list[tuple[Any, ...]]:
        dataset = lance.dataset(f"{self.settings.tables_uri}/scraper_{table}.lance")
        found = dataset.to_table(columns=columns, filter=condition).to_pylist()
        return sorted(tuple(row[column] for column in columns) for row in found)

    def state(self) -> list[Any]:
        columns = ["id", "version", "sha256_hash", "validation_status", "kafka_offset", "kafka_partition"]
        return [
            self.rows("metadata", columns), self.rows("metadata", ["id", "version"], IS_CURRENT),
            self.rows("vectors", ["id", "metadata_id", "document_version", "sha256_hash", "content_summary"]),
        ]  # fmt: skip

    def delete(self, table: str, condition: str) -> None:
        """Damage done by hand."""
        lance.dataset(f"{self.settings.tables_uri}/scraper_{table}.lance").delete(condition)

    def update(self, table: str, changes: dict[str, str], condition: str) -> None:
        lance.dataset(f"{self.settings.tables_uri}/scraper_{table}.lance").update(changes, condition)


@pytest.fixture
def service(kafka_server: Any, tmp_path: Path) -> Service:
    name = uuid.uuid4().hex[:8]
    settings = load(
        data_dir=tmp_path, kafka_brokers=kafka_server.bootstrap, kafka_topics=f"in-{name}",
        command_topic=f"commands-{name}", outcome_topic=f"outcomes-{name}", kafka_group_id=f"group-{name}",
    )  # fmt: skip
    place = connection(settings)
    assert ensure_topics(settings, place) == ()
    return Service(settings, place, open_producer(settings))


@pytest.fixture
def indexing(service: Service) -> Iterator[Callable[[], None]]:
    """Starts the indexer beside the test, until the test ends."""
    stop, threads, failures = threading.Event(), list[threading.Thread](), list[BaseException]()

    def run() -> None:
        try:
            writer = service.writer()
            while not stop.is_set():
                if not service.index(writer=writer, batch_max=BATCH_MAX):
                    stop.wait(0.05)
        except BaseException as error:
            failures.append(error)

    def start() -> None:
        threads.append(threading.Thread(target=run))
        threads[0].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join(60)
    assert failures == []


def fill(service: Service) -> None:
    """A bit of everything: versions, late ones, failures, deletions, S3 events, what can't be used."""
    for number in range(12):
        service.announce(f"f{number}")
    service.announce("f0", "2")
    service.announce("f1", "0")  # late
    service.announce("f2", "2", location="s3://scrapes/broken")
    service.announce("f3", "2", location="s3://scrapes/gone")
    service.announce("f4")  # the same again
    service.send(f"prod:{DATASET}:f5".encode(), None)
    service.announce("f6", "", location="s3://scrapes/first")
    service.announce("f6", "", location="s3://scrapes/second")
    service.send(b"k", b"not json")
    service.send(None, event("ObjectCreated:Put", "new.json", "2025-01-21T00:00:00Z"))
    service.send(None, event("ObjectCreated:Put", "f7/1", "2025-01-21T00:00:00Z"))


def event(name: str, key: str, at: str) -> bytes:
    entity = {"bucket": {"name": "scrapes"}, "object": {"key": key, "size": 3}}
    return orjson.dumps({"Records": [{"eventVersion": "2.1", "eventTime": at, "eventName": name, "s3": entity}]})


def kinds(service: Service) -> dict[str, int]:
    found = look(service.settings)
    return {kind: count for kind in Kind if (count := found.report.counts[kind])}


def test_a_log_that_was_indexed_is_verified_and_so_is_one_whose_commits_are_late(service: Service) -> None:
    fill(service)
    before = look(service.settings)
    assert (before.has_tables, before.is_whole) == (False, True)
    assert before.report.counts["pending"] == before.report.counts["log_messages"] == 23
    service.index(commit=False)
    assert kinds(service) == {}
    service.index()
    found = look(service.settings)
    assert found.findings == ()
    assert found.report.counts["pending"] == found.report.counts["undecided"] == 0
    assert found.report.counts["dead_letters"] == 3


def test_each_damage_is_found_by_name_and_a_replay_of_what_verify_says_mends_it(
    service: Service, capsys: pytest.CaptureFixture[str], indexing: Callable[[], None]
) -> None:
    fill(service)
    service.index()
    whole = service.state()
    service.delete("metadata", f"id = 'prod:{DATASET}:f8'")  # a lost row; its chunks are orphans
    service.delete("vectors", f"id = 'prod:{DATASET}:f9#1'")
    service.update("vectors", {"document_version": "'0'"}, f"metadata_id = 'prod:{DATASET}:f10'")
    service.update("metadata", {"superseded_at": "NULL"}, f"id = 'prod:{DATASET}:f0'")
    found = kinds(service)
    assert found == {"missing": 1, "orphan_chunks": 2, "missing_chunks": 2, "stale_chunks": 2, "duplicate": 1}

    assert verify(service.settings, settle_s=1, from_time_ms=None, shown_max=50, form=Format.json) == Exit.FAILED
    told = json.loads(capsys.readouterr().out)
    assert told["missing"] == 1
    remedies = [line["remedy"] for line in told["findings"] if line["position"]]
    places = {remedy.removeprefix("shoal replay --from-offset ") for remedy in remedies}
    indexing()
    for place in sorted(places):
        assert run_replay(service, Choice(places=(place,))) == Exit.OK
    assert kinds(service) == {}
    assert differences(service.state(), whole) == []


def differences(state: list[Any], other: list[Any]) -> list[Any]:
    return [set(one) ^ set(two) for one, two in zip(state, other, strict=True) if one != two]


def run_replay(service: Service, choice: Choice, **options: Any) -> int:
    given: dict[str, Any] = {
        "dry_run": False, "wait": True, "rate": 0, "in_flight_max": 50, "timeout_s": 60, "restart": False,
        "form": Format.json, **options,
    }  # fmt: skip
    return replay(service.settings, choice, **given)


def test_a_replay_of_everything_or_of_any_part_changes_nothing(
    service: Service, indexing: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fill(service)
    service.index()
    service.announce("f5")  # announced again after its deletion
    service.index()
    whole, ends = service.state(), {}
    with LogReader(service.settings, service.place) as reader:
        ends = {each.key: each for each in reader.whole([service.topic])}
    indexing()
    # Every message alone, the latest first: old versions, an old deletion, what a deletion took.
    busiest = max(ends.values(), key=lambda each: each.end)
    for offset in reversed(range(busiest.start, busiest.end)):
        place = f"{busiest.topic}/{busiest.partition}:{offset}-{offset}"
        assert run_replay(service, Choice(places=(place,))) == Exit.OK
    assert differences(service.state(), whole) == []
    for choice in (Choice(dataset=DATASET), Choice(from_time=datetime(2020, 1, 1, tzinfo=UTC))):
        capsys.readouterr()
        assert run_replay(service, choice) == Exit.OK
        told = json.loads(capsys.readouterr().out)
        assert sum(told["outcomes"].values()) == told["replayed"] > 0
        assert told["copies whose original is in the log"] > 0
        assert differences(service.state(), whole) == []
    assert kinds(service) == {}


def test_a_dry_run_counts_and_sends_nothing(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    fill(service)
    choice = Choice(dataset=DATASET)
    assert run_replay(service, choice, dry_run=True) == Exit.OK
    assert json.loads(capsys.readouterr().out) == {"to replay": 20, "of another dataset": 3}
    until = Choice(from_time=datetime(2020, 1, 1, tzinfo=UTC), until=datetime(2020, 1, 2, tzinfo=UTC))
    assert run_replay(service, until, dry_run=True) == Exit.OK
    assert json.loads(capsys.readouterr().out) == {"to replay": 0, "of another time": 23}
    later = Choice(from_time=datetime(2100, 1, 1, tzinfo=UTC))
    assert run_replay(service, later, dry_run=True) == Exit.OK
    assert json.loads(capsys.readouterr().out) == {"to replay": 0}
    assert look(service.settings).report.counts["log_messages"] == 23


@pytest.mark.parametrize("place", ["nowhere/0:1", "{topic}/99:0", "{topic}/0:999999", "{topic}:5", "{topic}/0:x"])
def test_a_place_that_is_not_in_the_log_is_refused_before_anything_is_sent(service: Service, place: str) -> None:
    with pytest.raises(ConfigurationError, match="--from-offset"):
        run_replay(service, Choice(places=(place.format(topic=service.topic),)))


def test_nothing_chosen_is_refused(service: Service) -> None:
    with pytest.raises(ConfigurationError, match="--from-time"):
        run_replay(service, Choice(until=NOW))


def test_an_extra_row_and_a_wrong_current_one_are_told_but_not_those_older_than_the_log(service: Service) -> None:
    fill(service)
    service.index()
    writer = service.writer()
    stranger = document("prod:ds:old", 0)
    writer.apply([stranger], (), NOW)  # of another Kafka cluster
    assert kinds(service) == {}
    at = replace(stranger.fetched.announcement.position, cluster=service.place.cluster, topic=service.topic)
    writer.apply([document("prod:ds:new", 0, at=at)], (), NOW)
    assert kinds(service) == {"extra": 1}
    service.delete("metadata", "id = 'prod:ds:new'")
    service.delete("vectors", "metadata_id = 'prod:ds:new'")
    service.update("metadata", {"superseded_at": "indexed_at"}, f"id = 'prod:{DATASET}:f0' AND version = '2'")
    service.update("metadata", {"superseded_at": "NULL"}, f"id = 'prod:{DATASET}:f0' AND version = '1'")
    assert kinds(service) == {"wrong_current": 1, "stale_chunks": 2, "missing_chunks": 1}


def test_a_difference_that_the_next_commit_explains_is_not_told(service: Service) -> None:
    """A look between the halves of a damage and its mending sees it; the verdict is of what stays."""
    fill(service)
    service.index()
    service.delete("vectors", f"id = 'prod:{DATASET}:f9#1'")
    service.announce("f9", "2")
    looks = []

    def mending(settings: Settings, from_time_ms: int | None, progress: Any) -> Any:
        looks.append(look(settings, from_time_ms, progress))
        if len(looks) == 1:
            service.index()
        return looks[-1]

    found = compare(service.settings, 30, look_at=mending, pause=lambda _: None)
    assert looks[0].findings != ()
    assert found.is_whole


def test_what_retention_took_is_neither_missing_nor_extra(service: Service, kafka_server: Any) -> None:
    fill(service)
    service.index()
    admin = kafka_server.admin()
    with LogReader(service.settings, service.place) as reader:
        stretches = reader.whole([service.topic])
    cut = [TopicPartition(each.topic, each.partition, each.end // 2) for each in stretches]
    for future in admin.delete_records(cut).values():
        future.result(30)
    found = look(service.settings)
    assert found.findings == ()
    assert found.report.counts["older_rows"] > 0


def test_a_replay_whose_service_is_silent_ends_and_the_same_command_goes_on(
    service: Service, indexing: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(30):
        service.announce(f"f{number}")
    service.index()
    choice = Choice(dataset=DATASET)
    assert run_replay(service, choice, in_flight_max=10, timeout_s=1) == Exit.TIMEOUT
    assert json.loads(capsys.readouterr().out)["finished"] is False
    indexing()
    assert run_replay(service, choice, in_flight_max=10) == Exit.OK
    told = capsys.readouterr()
    assert "going on" in told.err
    assert json.loads(told.out)["replayed"] == 30
    assert kinds(service) == {}
    assert list((service.settings.home / "replays").iterdir()) == []


def test_the_embedded_brokers_lives_are_logs_of_their_own(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path)
    broker = start_broker(settings)
    try:
        service = Service(settings, broker.connection, open_producer(settings))
        fill(service)
        wait_for(lambda: look(settings).report.counts["log_messages"] == 23)
        assert look(settings).report.counts["pending"] == 23
        service.index()
        found = look(settings)
        assert (found.findings, found.report.counts["pending"]) == ((), 0)
        rows = found.report.counts["rows"]
        service.delete("metadata", f"id = 'prod:{DATASET}:f8'")
        assert kinds(service) == {"missing": 1, "orphan_chunks": 2}
    finally:
        broker.stop()
    broker = start_broker(settings)
    try:
        found = look(settings)
        assert found.report.counts["older_rows"] == rows - 1
        assert found.report.counts["log_messages"] == 0
        assert found.report.counts["missing"] == 0
    finally:
        broker.stop()


# --- backfill -------------------------------------------------------------------------------------

ABOUT = About(DATASET, "nyiso", "load")


def run_backfill(service: Service, place: str, about: About = ABOUT, **options: Any) -> int:
    given: dict[str, Any] = {
        "rate": 0, "in_flight_max": 20, "timeout_s": 60, "restart": False, "form": Format.json, **options,
    }  # fmt: skip
    return backfill(service.settings, place, about, **given)


def test_a_prefix_is_announced_whole_and_every_key_is_accounted_for(
    service: Service, s3_server: Any, monkeypatch: pytest.MonkeyPatch, indexing: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    settings = load(**service.settings.model_dump(exclude={"s3_endpoint_url"}), s3_endpoint_url=s3_server.endpoint)
    service.settings = settings
    bucket, client = s3_server.bucket(f"backfill-{uuid.uuid4().hex[:8]}"), s3_server.client()
    names = [f"in/a {number:02}.json" for number in range(40)] + ["in/späť/+&%20.json"]
    for name in names:
        client.put_object(Bucket=bucket, Key=name, Body=b"{}")
    client.put_object(Bucket=bucket, Key="in/folder/", Body=b"")
    client.put_object(Bucket=bucket, Key="other.json", Body=b"{}")
    client.close()
    indexing()
    assert run_backfill(service, f"s3://{bucket}/in/") == Exit.OK
    told = json.loads(capsys.readouterr().out)
    assert told["announced"] == told["outcomes"]["indexed"] == 41
    assert told["folder markers"] == told["not announced"] == 1
    found = service.rows("metadata", ["s3_path", "etag", "file_size_bytes"])
    assert [row[0] for row in found] == sorted(f"s3://{bucket}/{name}" for name in names)
    assert all(row[1] for row in found)
    assert run_backfill(service, f"s3://{bucket}/in/") == Exit.OK
    assert json.loads(capsys.readouterr().out)["outcomes"]["unchanged"] == 41
    assert kinds(service) == {}


def test_files_are_announced_in_place_under_an_allowed_root_and_copied_from_elsewhere(
    service: Service, tmp_path: Path, indexing: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tmp_path / "tree"
    for name in ("b.json", "a/c.json", "a.json", ".hidden", "a/.git/x"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "link").symlink_to(tree / "b.json")
    os.mkfifo(tree / "pipe")
    indexing()
    assert run_backfill(service, str(tree)) == Exit.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["announced"], told["hidden files"], told["links, pipes and other irregular files"]) == (3, 2, 2)
    copied = (service.settings.home / "objects").as_uri()
    assert all(row[0].startswith(copied) for row in service.rows("metadata", ["s3_path"]))

    roots = load(**service.settings.model_dump(exclude={"allowed_roots"}), allowed_roots=str(tree))
    service.settings = roots
    assert run_backfill(service, str(tree), replace(ABOUT, dataset="in_place", urn="name")) == Exit.OK
    found = service.rows("metadata", ["s3_path", "urn"], f"{IS_DOCUMENT} AND dataset = 'in_place'")
    assert [(row[0], row[1]) for row in found] == [
        ((tree / name).as_uri(), name.rpartition("/")[2]) for name in ("a.json", "a/c.json", "b.json")
    ]


def test_a_backfill_that_is_killed_goes_on_behind_what_was_answered(
    service: Service, tmp_path: Path, indexing: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    count = 120
    for number in range(count):
        (tree / f"{number:03}.json").write_text(str(number))
    indexing()
    arguments = [
        "backfill", str(tree), "--source", "nyiso", "--dataset", DATASET, "--data-type", "load", "--rate", "40",
        "--in-flight", "10", "-o", "json",
    ]  # fmt: skip
    # 1. A kill that nothing can be done about.
    # 2. Ctrl-C.
    # 3. To the end.
    runs = []
    for number in (signal.SIGKILL, signal.SIGINT, None):
        before = memory(service)
        process = shoal(service, *arguments)
        if number is not None:
            wait_for(lambda before=before: memory(service) > before + 10)  # type: ignore[misc]
            process.send_signal(number)
        out, said = process.communicate(timeout=100)
        runs.append((process.returncode, out, said))
    assert [code for code, _, _ in runs] == [-signal.SIGKILL, Exit.INTERRUPTED, Exit.OK], runs
    assert "goes on" in runs[1][2]
    assert "going on after" in runs[1][2]
    last = json.loads(runs[2][1])
    assert last["announced"] == sum(last["outcomes"].values()) == count
    assert len(service.rows("metadata", ["id"])) == count
    sent = look(service.settings).report.counts["log_messages"]
    assert count <= sent < 2 * count - 40, "what was answered is not announced again"
    assert kinds(service) == {}


def memory(service: Service) -> int:
    """How many are settled, as the unfinished run remembers it."""
    for path in (service.settings.home / "backfills").glob("*.json"):
        return int(json.loads(path.read_text())["state"]["counts"].get("sent", 0))
    return 0


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        threading.Event().wait(0.1)
    pytest.fail("it never came true")


def shoal(service: Service, *arguments: str) -> subprocess.Popen[str]:
    settings = service.settings
    environment = {
        **os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "KAFKA_BROKERS": settings.kafka_brokers,
        "KAFKA_TOPIC": service.topic, "SHOAL_COMMAND_TOPIC": settings.command_topic,
        "SHOAL_OUTCOME_TOPIC": settings.outcome_topic, "KAFKA_GROUP_ID": settings.kafka_group_id,
        "SHOAL_DATA_DIR": str(settings.home),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", "from shoal.cluster.cli import main; main()", *arguments], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=settings.home,
    )  # fmt: skip
