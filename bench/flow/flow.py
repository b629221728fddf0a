"""The flow from announcement to searchable, in virtual time: real cores that decide, modelled stages that take time.

Real: `Intake` with its offsets and credits (backpressure), the embedder's batcher, limiter and concurrency
(provider.py), group commit, the choice of fragments to compact and of indexes to build (tables.py). Modelled: how
long each stage takes (figures.toml). Every actor is a station of one server, since it is one process, and what it
does also takes a core of its machine. Documents are drawn from the measured set; all sizes of one are of one rank.

Arrivals are Poisson, spread evenly over the partitions. They are drawn ahead and kept as times, so that what nobody
reads costs nothing: a thousand times what a node can do is simulated as fast as once.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from bench.flow.deployment import MESSAGE_BYTES, Deployment, Load
from bench.flow.engine import Cores, Engine, Level, Station
from bench.flow.figures import Figures
from bench.flow.provider import Embedding, Local, Provided
from bench.flow.tables import WIDTH_LOCAL, WIDTH_OPENAI, ModelledWriter
from shoal.actors.backpressure import Credits
from shoal.actors.fetcher import HELD_OBJECTS_MAX
from shoal.actors.intake import Held, Intake
from shoal.actors.reader import CHUNK_BYTES, COMMIT_INTERVAL_S, POLL_MESSAGES_MAX, POLL_S
from shoal.settings import Settings

CHUNKS_MAX: int = Settings.model_fields["chunks_per_document_max"].default
QUESTIONS_AT_ONCE = 600
"""Of an installation, further ones are refused (429): 300 of each REST replica (serve_apps/apps.py), of which two."""
BACKGROUND_SLICE_S = 0.005


@dataclass(slots=True)
class Document:
    """One on its way. Sizes are drawn when it is fetched."""

    announced: float
    tokens: int = 0
    chunks: int = 0
    payload_bytes: int = 0


@dataclass(slots=True)
class Counts:
    """Documents; `latencies` in seconds from the announcement to the commit, since the last restart."""

    announced: int = 0
    polled: int = 0
    committed: int = 0
    offsets: int = 0  # that count as committed at the broker
    latencies: list[float] = field(default_factory=list)


class Log:
    """The topic: times of announcement per partition, and how far each was read."""

    def __init__(self, rng: random.Random, partitions: int, load: Load, seconds: float) -> None:
        draw = np.random.default_rng(rng.randrange(2**32))
        if load.backlog:
            times = np.zeros(load.backlog)
        else:
            count = draw.poisson(load.documents_per_s * seconds)
            times = np.sort(draw.random(count)) * seconds
        places = draw.integers(0, partitions, len(times))
        self._times = [times[places == partition] for partition in range(partitions)]
        self.offsets = [0] * partitions

    def take(self, partition: int, count: int, now: float) -> list[float]:
        """The next messages that are there, in order."""
        times, start = self._times[partition], self.offsets[partition]
        end = min(start + count, int(np.searchsorted(times, now, side="right")))
        self.offsets[partition] = end
        return [float(at) for at in times[start:end]]

    def announced(self, now: float) -> int:
        return sum(int(np.searchsorted(times, now, side="right")) for times in self._times)


class Flow:
    """One installation with its share of the load."""

    def __init__(self, figures: Figures, deployment: Deployment, load: Load, seconds: float, seed: int) -> None:
        self.figures, self.deployment = figures, deployment
        self.rng, self.engine, self.counts = random.Random(seed), Engine(), Counts()
        engine, place = self.engine, "this machine" if deployment.is_one_machine else "readers and fetchers"
        self.flow_cores = Cores(engine, f"cores of {place}", deployment.flow_cores)
        self.core_cores = self.query_cores = self.flow_cores
        if not deployment.is_one_machine:
            self.core_cores = Cores(engine, "cores of writer and embedder", deployment.core_cores)
            self.query_cores = Cores(engine, "cores of queries", max(1, deployment.query_cores))
        share = replace(
            load,
            documents_per_s=load.documents_per_s / deployment.installations,
            questions_per_s=load.questions_per_s / deployment.installations,
            backlog=-(-load.backlog // deployment.installations),
        )
        self.load = share
        self.log = Log(self.rng, deployment.partitions, share, seconds)
        self.kind = "openai" if deployment.tier else "local"
        self.width = WIDTH_OPENAI if deployment.tier else WIDTH_LOCAL
        self.fetchers = [Fetcher(self, i) for i in range(deployment.fetchers)]
        self.embedder = Station(engine, "embedder", 1, self.core_cores)
        self.embedding: Embedding = (
            Provided(engine, figures, figures.tiers[deployment.tier], self.rng)
            if deployment.tier
            else Local(engine, figures, self.core_cores)
        )
        self.writer = ModelledWriter(engine, figures, deployment, self.core_cores)
        self.others = Station(engine, "Ray and the rest", 1_000, self.flow_cores)
        self.queries = Station(engine, "queries", self.query_cores.servers, self.query_cores)  # Lance's threads
        self.questions = self.refused = 0
        self.question_s: list[float] = []
        count = min(deployment.readers, deployment.partitions)  # one more than partitions has nothing to read
        self.readers = [Reader(self, range(i, deployment.partitions, count)) for i in range(count)]
        self._background(figures.value("background_cores") * (1 + share.idle_neighbours))
        if share.has_publisher:
            publisher = Station(engine, "publisher", 1, self.flow_cores)
            for _ in range(share.backlog):
                publisher.submit(figures.seconds("publisher_cpu_ms"), lambda: None)
        if share.questions_per_s:
            self._question()

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        self.engine.run(until, done)
        self.counts.announced = self.log.announced(self.engine.now)

    def restart(self) -> None:
        """Measure from now on."""
        self.counts.latencies.clear()
        self.refused = 0
        self.question_s.clear()
        for measured in (
            self.flow_cores, self.core_cores, self.query_cores, self.embedder, self.embedding, self.writer, self.others,
            self.queries, *self.fetchers, *self.readers,
        ):  # fmt: skip
            measured.restart()

    def in_flight(self) -> int:
        return sum(reader.credits.items for reader in self.readers)

    def _background(self, cores: float) -> None:
        """What runs whether documents come or not: Ray, Serve, statistics."""

        def tick() -> None:
            self.others.submit(BACKGROUND_SLICE_S, lambda: None)
            self.engine.after(self.rng.expovariate(cores / BACKGROUND_SLICE_S), tick)

        if cores:
            tick()

    def _question(self) -> None:
        self.engine.after(self.rng.expovariate(self.load.questions_per_s), self._question)
        if self.questions >= QUESTIONS_AT_ONCE:
            self.refused += 1
            return
        began = self.engine.now
        self.questions += 1

        def answered() -> None:
            self.questions -= 1
            self.question_s.append(self.engine.now - began)

        cost_s = self.figures.laws["question_cpu_ms"].at(self.writer.table.rows) / 1000
        cost_s += self.figures.seconds("question_http_cpu_ms")
        self.queries.submit(self.rng.expovariate(1 / cost_s), answered)


class Fetcher:
    """One fetch worker: so many objects at once, each downloaded, then extracted in its one child."""

    def __init__(self, flow: Flow, number: int) -> None:
        self.flow = flow
        self.process = Station(flow.engine, f"fetcher-{number}", 1, flow.flow_cores)
        self.child = Station(flow.engine, f"extraction-{number}", 1, flow.flow_cores)
        self.queue, self.held = Level(), Level()
        self._slots = HELD_OBJECTS_MAX
        self._waiting: deque[tuple[Document, Callable[[], None]]] = deque()

    def fetch(self, document: Document, done: Callable[[], None]) -> None:
        self.queue.add(1, self.flow.engine.now)
        self._waiting.append((document, done))
        self._next()

    def restart(self) -> None:
        for measured in (self.process, self.child):
            measured.restart()
        self.queue.restart(self.flow.engine.now)
        self.held.restart(self.flow.engine.now)

    def _next(self) -> None:
        flow = self.flow
        while self._waiting and self._slots:
            self._slots -= 1
            document, done = self._waiting.popleft()
            self.queue.add(-1, flow.engine.now)
            self.held.add(1, flow.engine.now)
            self._download(document, done)

    def _download(self, document: Document, done: Callable[[], None]) -> None:
        flow, figures = self.flow, self.flow.figures
        share = flow.rng.random()
        spreads, kind = figures.spreads, flow.kind
        document.tokens = max(1, round(spreads[f"tokens_{kind}"].at(share)))
        document.chunks = max(1, round(spreads[f"chunks_{kind}"].at(share)))
        text_bytes = spreads["text_bytes"].at(share)
        document.payload_bytes = int(4096 + text_bytes + 4 * flow.width * (1 + document.chunks))
        wait_s = 0.0
        if flow.deployment.storage == "s3":
            mean_s = figures.seconds("s3_get_first_byte_ms")
            wait_s = flow.rng.expovariate(1 / mean_s) + spreads["bytes"].at(share) / figures.value("s3_bytes_per_s")
        extract_s = spreads["extract_cpu_ms"].at(share) / 1000

        def extracted() -> None:
            self._slots += 1
            self.held.add(-1, flow.engine.now)
            self._next()
            done()

        flow.engine.after(
            wait_s,
            lambda: self.process.submit(
                figures.seconds("fetcher_cpu_ms"), lambda: self.child.submit(extract_s, extracted)
            ),
        )


class Reader:
    """One partition reader: the real intake, and what it drives."""

    def __init__(self, flow: Flow, partitions: range) -> None:
        self.flow, self.partitions = flow, partitions
        self.process = Station(flow.engine, "reader", 1, flow.flow_cores)
        self.credits = Credits(flow.deployment.in_flight_items_max, flow.deployment.in_flight_bytes_max)
        self.intake: Intake[Document] = Intake(self.credits)
        self.intake.assign(("t", partition) for partition in partitions)
        self.in_flight, self.paused = Level(), Level()
        self._reserve = CHUNKS_MAX * (CHUNK_BYTES + 4 * flow.width)
        self._room: deque[Held[Document]] = deque()  # waiting for room, in order
        self._fetcher = 0
        self._turn_of = 0
        flow.engine.at(flow.rng.uniform(0, POLL_S), self._poll)
        flow.engine.after(COMMIT_INTERVAL_S, self._commit)

    def restart(self) -> None:
        self.process.restart()
        self.in_flight.restart(self.flow.engine.now)
        self.paused.restart(self.flow.engine.now)

    def _poll(self) -> None:
        flow, wait_s, now = self.flow, POLL_S, self.flow.engine.now
        is_paused = self.credits.should_pause()
        self.paused.add(float(is_paused) - self.paused.value, flow.engine.now)
        if not is_paused:
            room = min(POLL_MESSAGES_MAX, max(1, flow.deployment.in_flight_items_max - self.credits.items))
            left = room
            for _ in self.partitions:
                partition = self.partitions[self._turn_of % len(self.partitions)]
                self._turn_of += 1
                first = flow.log.offsets[partition]
                for offset, announced in enumerate(flow.log.take(partition, left, now), first):
                    self._take(partition, offset, announced)
                    left -= 1
                if not left:
                    break
            if not left:  # there is more: the client has it at hand
                wait_s = room * flow.figures.seconds("reader_cpu_ms")
        flow.engine.after(wait_s, self._poll)

    def _take(self, partition: int, offset: int, announced: float) -> None:
        held = self.intake.deliver(("t", partition), offset, MESSAGE_BYTES, Document(announced))
        assert held is not None, "its partitions stay its own"
        self.flow.counts.polled += 1
        self.in_flight.add(1, self.flow.engine.now)
        self.flow.others.submit(self.flow.figures.seconds("ray_cpu_ms"), lambda: None)
        self.process.submit(self.flow.figures.seconds("reader_cpu_ms"), lambda: self._begin(held))

    def _begin(self, held: Held[Document]) -> None:
        self._room.append(held)
        self._admit()

    def _admit(self) -> None:
        while self._room and self.credits.admit(self._reserve):
            held = self._room.popleft()
            self._fetcher += 1
            fetcher = self.flow.fetchers[self._fetcher % len(self.flow.fetchers)]
            fetcher.fetch(held.what, lambda held=held: self._fetched(held))  # type: ignore[misc]

    def _fetched(self, held: Held[Document]) -> None:
        document, flow = held.what, self.flow
        self.credits.resize(self._reserve, document.payload_bytes)
        self._admit()
        cost_s = flow.figures.seconds("embedder_cpu_ms")
        cost_s += flow.figures.seconds("embedder_cpu_chunk_ms") * document.chunks
        flow.embedder.submit(cost_s, lambda: flow.embedding.add(document.tokens, lambda: self._embedded(held)))

    def _embedded(self, held: Held[Document]) -> None:
        document = held.what
        self.flow.writer.add(document.chunks, document.payload_bytes, lambda: self._written(held))

    def _written(self, held: Held[Document]) -> None:
        flow = self.flow
        flow.counts.committed += 1
        flow.counts.latencies.append(flow.engine.now - held.what.announced)
        self.credits.drop(held.what.payload_bytes)
        self.intake.end(held)
        self.in_flight.add(-1, flow.engine.now)
        self._admit()

    def _commit(self) -> None:
        due = self.intake.offsets.to_commit()
        self.intake.offsets.sent(due)
        for key, offset in due.items():
            before = self.intake.offsets.committed_offset(key) or 0
            self.intake.offsets.answered(key, offset, ok=True)
            self.flow.counts.offsets += offset - before
        self.flow.engine.after(COMMIT_INTERVAL_S, self._commit)
