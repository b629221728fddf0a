"""One simulation: a log, a plan of faults, both from the seed; then quiet, and the verdict.

`run(seed)` returns what happened or what was violated. Each kind of fault is on or off for a seed as a whole and has
a rate of its own, so that seeds differ in kind (Groce et al., "Swarm Testing", 2012).
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from shoal.actors.names import WRITER
from shoal.errors import DeadReason
from shoal.faults import POINTS, RARE
from shoal.settings import Settings
from shoal.sources.messages import OUTCOME_HEADER
from tests.simulation.broker import Broker, Consumer, Key
from tests.simulation.cluster import Cluster
from tests.simulation.kernel import Stuck, Violation, World
from tests.simulation.model import Announced, Asked, Document, Fix, Garbage, Removal
from tests.simulation.oracle import Oracle
from tests.simulation.seams import seams
from tests.simulation.systems import BROKEN_TEXT, REFUSED_TEXT, Systems
from tests.simulation.tables import Storage

TOPIC, COMMANDS = "scraper-notifications", "shoal_commands"
PARTITIONS = 3
ANNOUNCED_S = 20.0  # messages come for so long
FAULTS_S = 35.0  # and faults
DRAINED_S = 600.0  # a quiet system must be done within this: the longest give-up, twice, and its retries
SETTLED_S = 30.0  # what was still on its way, for longer than any message travels
GIVE_UP_S = 60.0
FETCHERS_MAX = 4
MIXED_EVENTS = False
"""Whether one message may both remove and create the same object. Its records share one position in the log, so that
a late repetition of the removal still takes the creation: seeds 20076 and 20050 fail with True."""

PER_CALL = {
    "commit_refused": 0.2, "commit_answer_lost": 0.2, "commit_answer_slow": 0.2, "poll_error": 0.02,
    "produce_failed": 0.15, "produce_answer_lost": 0.15,
    "call_slow": 0.05, "call_lost": 0.04, "call_twice": 0.06, "answer_lost": 0.05, "answer_slow": 0.05,
    "payload_lost": 0.05,
    "object_failed": 0.15, "object_throttled": 0.1, "provider_throttled": 0.1, "provider_failed": 0.15,
    "table_slow": 0.1, "table_refused": 0.08, "table_unknown_lost": 0.05, "table_unknown_landed": 0.06,
    "table_lands_late": 0.05, "table_read_failed": 0.02, "upkeep": 0.3,
    "writer_killed_at_a_step": 0.02, "writer_frozen_at_a_step": 0.01,
    **{f"killed_at_{point}": 0.02 for point in POINTS if point not in RARE},
}  # fmt: skip
"""Rates per occasion, about; `writer_*_at_a_step` falls between any two steps of the tables."""

PER_MINUTE = {
    "reader_killed": 4.0, "fetcher_killed": 4.0, "embedder_killed": 3.0, "writer_killed": 3.0, "writer_zombie": 3.0,
    "reader_frozen": 2.0, "member_evicted": 2.0, "rebalanced": 4.0, "reader_drained": 2.0, "bucket_out": 2.0,
    "fetchers_resized": 3.0,
    "provider_out": 2.0,
}  # fmt: skip

SEEN_OTHERWISE = (
    "member_lost", "paused", "half_batch_undone", "writer_fenced", "bucket_outage", "provider_outage",
    "poisoned_object", "provider_refused",
)  # fmt: skip
"""What must have happened as well, as a consequence."""
NOT_HERE = (
    "writer.compacting",
    "writer.indexing",
    "writer.cleaning",
    "writer.snapshotting",
    "writer.expiring",
)  # upkeep is simulated: see tables.py

SETTINGS = Settings(
    _env_file=None, kafka_brokers="simulated", kafka_topics=TOPIC, command_topic=COMMANDS, embedding_provider="hash",
    transient_retry_s=GIVE_UP_S, in_flight_items_max=12, fetchers=2, commit_rows_max=8, commit_linger_ms=100,
    lancedb_path="/simulated", chunks_per_document_max=4,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one seed. `failure` is None where every guarantee held."""

    seed: int
    digest: str
    failure: str | None
    simulated_s: float
    messages: int
    steps: int
    happened: Counter[str]


class Simulation:
    """One seed."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.world = World(seed, trace=trace)
        self.dice = self.world.dice
        rng = self.dice.rng
        self.broker = Broker(self.world, {TOPIC: PARTITIONS, COMMANDS: 1})
        self.storage = Storage(self.world)
        self.systems = Systems(self.world)
        self.oracle = Oracle(self.broker, self.storage)
        self.cluster = Cluster(self.world, SETTINGS, readers=rng.choice((1, 2, 2, 3)))
        self.announced: list[Announced] = []
        calm = rng.random() < 0.03  # now and then nothing is wrong at all
        self.dice.rates = {
            name: 0.0 if calm or rng.random() < 0.5 else rate * rng.uniform(0.3, 2.0) for name, rate in PER_CALL.items()
        }
        self.events = {
            name: 0.0 if calm or rng.random() < 0.5 else rate * rng.uniform(0.3, 2.0)
            for name, rate in PER_MINUTE.items()
        }
        self._count = 0

    def run(self) -> Result:
        failure = None
        with seams(self.world, self.broker, self.storage, self.systems, self.cluster.get_actor):
            try:
                self.world.loop.run_until_complete(self._main())
            except (Violation, Stuck) as error:
                failure = f"{type(error).__name__}: {error}"
            except Exception:
                failure = traceback.format_exc()
            finally:
                if failure is None and self.world.unexpected:
                    failure = "unforeseen: " + "; ".join(self.world.unexpected[:3])
                simulated_s = self.world.now()
                self.world.close()
        return Result(
            self.world.seed, self.world.digest(), failure, simulated_s, len(self.announced), self.world.steps,
            self.dice.happened,
        )  # fmt: skip

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        supervising = loop.create_task(self.cluster.supervise())
        announcing, breaking = loop.create_task(self._announce()), loop.create_task(self._break())
        try:
            await asyncio.sleep(FAULTS_S)
            await asyncio.gather(announcing, breaking)
            self._fail_on_unexpected()
            self.dice.faults_on = False
            self.world.note("quiet")
            for process, _ in self.cluster.zombies:
                process.frozen_until = 0.0
            await self._drained()
            await asyncio.sleep(SETTLED_S)
            await self._drained()
            await self._check()
        finally:
            for task in (supervising, announcing, breaking):
                task.cancel()

    def _fail_on_unexpected(self) -> None:
        if self.world.unexpected:
            raise Violation("unforeseen: " + "; ".join(self.world.unexpected[:3]))

    async def _drained(self) -> None:
        """Liveness: no item waits for ever."""
        deadline = self.world.now() + DRAINED_S
        while True:
            self._fail_on_unexpected()
            held = [
                (name, statistics)
                for name, _, actor in self.cluster.living("reader")
                if (statistics := await actor.statistics()).in_flight_items
            ]
            if self.broker.is_drained() and not held:
                return
            if self.world.now() > deadline:
                behind = {key: (self.broker.committed.get(key, 0), self.broker.end(key)) for key in self.broker.logs}
                raise Violation(f"not drained after {DRAINED_S:.0f} s: (committed, end) {behind}; {held}")
            await asyncio.sleep(1.0)

    async def _check(self) -> None:
        self.oracle.check_end(self.announced)
        for name, _, actor in self.cluster.living("reader"):
            statistics = await actor.statistics()
            if statistics.in_flight_items or statistics.in_flight_bytes or statistics.held_bytes:
                raise Violation(f"{name} holds credits at the end: {statistics}")

    # --- faults -------------------------------------------------------------------------------

    async def _break(self) -> None:
        rng = self.dice.rng
        kinds = [name for name, rate in self.events.items() if rate > 0]
        if not kinds:
            return
        per_second = sum(self.events[name] for name in kinds) / 60
        while True:
            await asyncio.sleep(rng.expovariate(per_second))
            if self.world.now() >= FAULTS_S:
                return
            kind = rng.choices(kinds, [self.events[name] for name in kinds])[0]
            if self._happens(kind):
                self.dice.happened[kind] += 1

    def _happens(self, kind: str) -> bool:
        rng, cluster = self.dice.rng, self.cluster
        what, _, how = kind.partition("_")
        if kind == "writer_zombie":
            had = len(cluster.zombies)
            if rng.random() < 0.7 and (found := cluster.living(WRITER)):
                found[0][1].frozen_until = self.world.now() + self.dice.between(0.1, 15.0)
            cluster.replace_writer()
            return len(cluster.zombies) > had
        if how == "killed":
            found = cluster.living(what)
            if found:
                rng.choice(found)[1].kill("at random")
            return bool(found)
        if kind == "bucket_out":
            self.systems.outage(rng.choice(("data", "events")), self.dice.between(1.0, 15.0))
        elif kind == "provider_out":
            self.systems.outage("provider", self.dice.between(1.0, 15.0))
        elif kind == "rebalanced":
            self.broker.rebalance("at random")
        elif kind == "fetchers_resized":
            return cluster.resize_fetchers(rng.randint(SETTINGS.fetchers, FETCHERS_MAX))
        elif kind == "reader_drained":
            found = cluster.living("reader")
            if found:
                _, process, actor = rng.choice(found)
                draining = process.spawn(rng.choice((actor.drain, actor.leave))(8.0))
                draining.add_done_callback(lambda _: process.kill("drained"))
            return bool(found)
        else:
            members: list[Consumer] = list(self.broker.members.values())
            if not members:
                return False
            member = rng.choice(members)
            if kind == "reader_frozen":
                member.freeze(self.dice.between(2.0, 20.0))
            else:
                self.world.note("evicted", member.process)
                self.broker.leave(member, "a member was evicted")
        return True

    # --- the log ------------------------------------------------------------------------------

    async def _announce(self) -> None:
        rng = self.dice.rng
        count = rng.randint(20, 90)
        makers: list[Callable[[], None]] = [
            self._document, self._document, self._document, self._document, self._document, self._object_event,
            self._object_event, self._tombstone, self._fix, self._garbage, self._again, self._scattered,
            self._moved,
        ]  # fmt: skip
        weights = [rng.uniform(0.1, 1.0) for _ in makers]
        ids = rng.randint(2, 12)
        self._ids = [f"d{number}" for number in range(ids)]
        self._places: dict[str, list[str]] = {}  # urn -> where its versions lie, or lay
        self._poison = rng.random() < 0.1
        while len(self.announced) < count:
            for maker in rng.choices(makers, weights, k=rng.choice((1, 1, 2, 5, 12))):
                maker()
            await asyncio.sleep(rng.expovariate(count / 4 / ANNOUNCED_S) if rng.random() < 0.8 else 0.0)

    def _send(
        self, key: Key, message_key: bytes | None, value: Any, asked: tuple[Asked, ...], late_ms: int = 0
    ) -> None:
        rng = self.dice.rng
        outcome_id = f"o{len(self.announced)}" if rng.random() < 0.3 else None
        headers = [(OUTCOME_HEADER, outcome_id.encode())] if outcome_id else []
        data = value if value is None or isinstance(value, bytes) else orjson.dumps(value)
        record = self.broker.append(
            key, message_key, data, headers, gap=rng.choice((0, 0, 0, 0, 1, 7)), late_ms=late_ms
        )
        message = Announced(record, asked, outcome_id)
        self.announced.append(message)
        self.oracle.announce(message)

    def _home(self, name: str) -> Key:
        """Messages of one document have one partition, as Kafka gives them by their key."""
        return (TOPIC, int(hashlib.md5(name.encode()).hexdigest(), 16) % PARTITIONS)

    def _content(self) -> tuple[bytes, tuple[str, ...], DeadReason | None]:
        """Bytes, their chunks, and what is wrong with them."""
        rng = self.dice.rng
        chance = rng.random()
        number = rng.randint(0, 30)  # texts come again, as the same bytes in another document
        lines = tuple(f"text {number} line {line}" for line in range(rng.randint(1, 3)))
        if chance < 0.05:
            return BROKEN_TEXT + str(number).encode(), (), DeadReason.EXTRACTION_FAILED
        if chance < 0.1:
            lines = (*lines, f"{REFUSED_TEXT} {number}")
            return "\n".join(lines).encode(), (), DeadReason.EMBEDDING_REJECTED
        if chance < 0.13:
            return b"", (), DeadReason.EMPTY
        return "\n".join(lines).encode(), lines, None

    def _version(self) -> str:
        rng = self.dice.rng
        return rng.choice(("", f"v{rng.randint(0, 5)}", f"w{len(self.announced):04}", f"w{len(self.announced):04}"))

    def _document(self) -> None:
        self._notify(self.dice.rng.choice(self._ids), None)

    def _scattered(self) -> None:
        """A document whose messages come in every partition: nothing but versions and times orders them."""
        rng = self.dice.rng
        self._notify(f"s{rng.randint(0, 2)}", (TOPIC, rng.randrange(PARTITIONS)))

    def _notify(self, urn: str, home: Key | None, version: str | None = None) -> None:
        rng = self.dice.rng
        self._count += 1
        document_id = f"prod:set:{urn}"
        version = self._version() if version is None else version
        path = f"{urn}/{self._count}"
        data, lines, bad = self._content()
        chance, md5 = rng.random(), hashlib.md5(data).hexdigest()
        sha256: str | None = hashlib.sha256(data).hexdigest()
        if chance < 0.04:
            bad, sha256 = DeadReason.OBJECT_MISSING, None
        else:
            self.systems.objects["data", path, None] = data
            if bad is DeadReason.EMPTY:
                sha256 = None
            elif chance < 0.08:
                md5, bad, sha256 = "0" * 32, DeadReason.OBJECT_MISMATCH, None
            elif chance < 0.3 and self._poison:
                self._poison = False
                self.systems.poisoned.add(path)
                bad, sha256 = DeadReason.OBJECT_UNAVAILABLE, None
        body: dict[str, Any] = {
            "dataset": "set",
            "urn": urn,
            "location": f"s3://data/{path}",
            "metadata": {
                "publish_dtm": "2025-01-20T14:30:00Z",
                "source": "sim",
                "data_type": "load",
                "original_file_md5sum": md5,
            },
        }
        if version:
            body["version"] = version
        document = Document(document_id, version, f"s3://data/{path}", lines, sha256, bad)
        late_ms = rng.choice((0, 0, 0, 5_000))
        self._send(home or self._home(document_id), document_id.encode(), body, (document,), late_ms)

    def _moved(self) -> None:
        """A document whose every version lies elsewhere, and the removal of an object that it has, or had."""
        rng = self.dice.rng
        urn = f"m{rng.randint(0, 2)}"
        document_id, places = f"prod:set:{urn}", self._places.setdefault(urn, [])
        home = self._home(document_id)
        if not places or rng.random() < 0.6:
            places.append(f"s3://data/{urn}/{self._count + 1}")
            self._notify(urn, home, f"w{len(self.announced):04}")
            return
        bucket, _, name = rng.choice(places).removeprefix("s3://").partition("/")
        where = {"bucket": {"name": bucket}, "object": {"key": name}}
        records = [{"eventName": "ObjectRemoved:Delete", "eventTime": "2025-01-20T14:30:00Z", "s3": where}]
        self._send(home, name.encode(), {"Records": records}, (Removal(path=f"s3://{bucket}/{name}"),))

    def _tombstone(self) -> None:
        document_id = f"prod:set:{self.dice.rng.choice(self._ids)}"
        self._send(self._home(document_id), document_id.encode(), None, (Removal(document_id),))

    def _object_event(self) -> None:
        """S3 events: several records in one message, all of one key's partition."""
        rng = self.dice.rng
        home = rng.randrange(PARTITIONS)
        records: list[dict[str, Any]] = []
        asked: list[Asked] = []
        touched: dict[str, bool] = {}
        for _ in range(rng.choice((1, 1, 2, 3))):
            self._count += 1
            name = f"p{home}/o{rng.randint(0, 3)}"
            removes = rng.random() < 0.25
            if touched.setdefault(name, removes) != removes and not MIXED_EVENTS:
                continue
            path = f"s3://events/{name}"
            bucket = {"bucket": {"name": "events"}}
            if removes:
                where = bucket | {"object": {"key": name}}
                records.append({"eventName": "ObjectRemoved:Delete", "eventTime": "2025-01-20T14:30:00Z", "s3": where})
                asked.append(Removal(path=path))
                continue
            data, lines, bad = self._content()
            second = rng.randint(0, 59)
            version_id = f"i{self._count}"
            sha256 = None if bad is DeadReason.EMPTY else hashlib.sha256(data).hexdigest()
            self.systems.objects["events", name, version_id] = data
            records.append(
                {
                    "eventName": "ObjectCreated:Put",
                    "eventTime": f"2025-01-20T14:30:{second:02}Z",
                    "s3": bucket | {"object": {"key": name, "size": len(data), "versionId": version_id}},
                }
            )
            version = f"20250120T1430{second:02}Z"
            asked.append(Document(f"prod:s3:events/{name}", version, path, lines, sha256, bad))
        self._send((TOPIC, home), None, {"Records": records}, tuple(asked))

    def _fix(self) -> None:
        rng = self.dice.rng
        self._count += 1
        same_as = f"cure {rng.randint(0, 2)}"
        command_id = f"c{self._count}" if rng.random() < 0.8 else f"c{rng.choice('xyz')}"
        if not command_id[1:].isdigit():
            same_as = f"cure of {command_id}"  # one command, sent again
        body = {"scraper_name": "s", "summary": same_as, "error_message": "m"}
        value = {
            "command_id": command_id, "kind": "fix", "collection": "scraper", "body": body, "actor": "a",
            "at": "2025-01-20T14:30:00Z",
        }  # fmt: skip
        self._send((COMMANDS, 0), b"scraper", value, (Fix(command_id, same_as),))

    def _garbage(self) -> None:
        rng = self.dice.rng
        key = (TOPIC, rng.randrange(PARTITIONS))
        value, bad = rng.choice(
            (
                (b"{", DeadReason.NOT_JSON),
                (b'{"dataset": "set"}', DeadReason.SCHEMA_INVALID),
                (b"[]", DeadReason.SCHEMA_INVALID),
            )
        )
        self._send(key, b"k", value, (Garbage(bad),))

    def _again(self) -> None:
        """A message sent twice by its producer."""
        if not self.announced:
            return
        message = self.dice.rng.choice(self.announced)
        record = message.record
        self._send(record.key_, record.message_key, record.message_value, message.asked)


def run(seed: int, *, trace: bool = False) -> Result:
    """Simulate `seed`."""
    gc.disable()  # a simulation is one heap of cycles that ends all at once
    try:
        return Simulation(seed, trace=trace).run()
    finally:
        gc.enable()
        if seed % 8 == 0:
            gc.collect()
