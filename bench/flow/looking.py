"""One run of the simulation, and what there is to say of it: throughput, stages, latencies, what saturates first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.flow.deployment import ONE_NODE, Deployment, Load
from bench.flow.figures import Figures
from bench.flow.flow import Flow
from shoal.actors.fetcher import HELD_OBJECTS_MAX

SATURATED = 0.9
"""A stage that is busy for so much of the time is what holds up the rest, where these fall behind."""
BEHIND = 0.03
"""Of what is announced: if the log grows by more, the load is not carried. Less is chance."""
PAUSED = 0.5


@dataclass(frozen=True, slots=True)
class Stage:
    """`busy`: share of the time that its servers work. `queue`: documents or jobs that wait, on average, at most."""

    name: str
    servers: int
    busy: float
    queue: float
    queue_max: float


@dataclass(frozen=True, slots=True)
class Look:
    """Of one installation but for `documents_per_s`, `announced_per_s` and `questions_per_s`, which are of all."""

    deployment: Deployment
    announced_per_s: float
    documents_per_s: float
    lag: int  # at the end, of one
    lag_growth_per_s: float
    in_flight: float
    paused: float  # share of the time that readers were
    latency_s: tuple[float, float]  # p50, p95 of announcement to searchable
    questions_per_s: float
    question_s: tuple[float, float]
    commits_per_s: float
    stages: tuple[Stage, ...]

    @property
    def is_carried(self) -> bool:
        """By the log: commits come in bursts, and what is in flight is bounded."""
        return self.lag_growth_per_s <= BEHIND * self.announced_per_s

    @property
    def saturates(self) -> str:
        """What is at its end, the busiest first; or what comes nearest, where nothing is."""
        ordered = sorted(self.stages, key=lambda stage: -stage.busy)
        ends = [stage for stage in ordered if stage.busy >= SATURATED]
        if not ends and self.paused > PAUSED:
            return "documents in flight"
        return ", ".join(f"{stage.name} {stage.busy:.0%}" for stage in ends or ordered[:1])


def look(figures: Figures, deployment: Deployment, load: Load, *, warm_up_s: float, seconds: float, seed: int) -> Look:
    """Let it run, and measure after the warm-up."""
    flow = Flow(figures, deployment, load, warm_up_s + seconds, seed)
    flow.run(warm_up_s)
    announced, committed = flow.counts.announced, flow.counts.committed
    lag = announced - flow.counts.polled
    flow.restart()
    flow.run(warm_up_s + seconds)
    counts, now, times = flow.counts, flow.engine.now, deployment.installations
    return Look(
        deployment,
        times * (counts.announced - announced) / seconds,
        times * (counts.committed - committed) / seconds,
        counts.announced - counts.polled,
        times * (counts.announced - counts.polled - lag) / seconds,
        sum(reader.in_flight.mean(now) for reader in flow.readers),
        fmean(reader.paused.mean(now) for reader in flow.readers),
        _quantiles(counts.latencies),
        times * len(flow.question_s) / seconds,
        _quantiles(flow.question_s),
        flow.writer.commits / seconds,
        tuple(_stages(flow)),
    )


def calibrate(figures: Figures, seed: int, documents: int = 912) -> float:
    """Documents a minute of the run that docs/benchmarks.md measured: all announced at once to one node, by a publisher
    on the same machine, an idle second stack beside it."""
    load = Load(backlog=documents, has_publisher=True, idle_neighbours=1)
    flow = Flow(figures, ONE_NODE, load, 3_600, seed)
    flow.run(3_600, lambda: flow.counts.committed >= documents)
    return 60 * flow.counts.committed / flow.engine.now


def _stages(flow: Flow) -> list[Stage]:
    now = flow.engine.now
    pools = {id(pool): pool for pool in (flow.flow_cores, flow.core_cores, flow.query_cores)}
    if flow.query_cores is not flow.flow_cores and not flow.load.questions_per_s:
        del pools[id(flow.query_cores)]
    found = [
        Stage(pool.name, pool.servers, pool.utilisation(), pool.queue.mean(now), pool.queue.highest)
        for pool in pools.values()
    ]
    processes = [reader.process for reader in flow.readers]
    found.append(
        Stage(
            "readers",
            len(processes),
            fmean(one.utilisation() for one in processes),
            sum(one.queue.mean(now) for one in processes),
            sum(one.queue.highest for one in processes),
        )
    )
    fetchers = flow.fetchers
    found.append(
        Stage(
            "extraction children",
            len(fetchers),
            fmean(one.child.utilisation() for one in fetchers),
            sum(one.child.queue.mean(now) for one in fetchers),
            sum(one.child.queue.highest for one in fetchers),
        )
    )
    found.append(
        Stage(
            "fetch slots",
            HELD_OBJECTS_MAX * len(fetchers),
            sum(one.held.mean(now) for one in fetchers) / (HELD_OBJECTS_MAX * len(fetchers)),
            sum(one.queue.mean(now) for one in fetchers),
            sum(one.queue.highest for one in fetchers),
        )
    )
    embedder, embedding, writer = flow.embedder, flow.embedding, flow.writer
    found.append(Stage("embedder", 1, embedder.utilisation(), embedder.queue.mean(now), embedder.queue.highest))
    name = "tokens a minute" if flow.deployment.tier else "local model"
    found.append(Stage(name, 1, embedding.utilisation(), embedding.queue.mean(now), embedding.queue.highest))
    found.append(Stage("writer", 1, writer.utilisation(), writer.queue.mean(now), writer.queue.highest))
    # What waits for cores holds its slot meanwhile: slots count only where the cores are not at their end.
    if flow.flow_cores.utilisation() >= SATURATED:
        found = [stage for stage in found if stage.name != "fetch slots"]
    return found


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    if not ordered:
        return 0.0, 0.0
    last = len(ordered) - 1
    return ordered[min(last, len(ordered) // 2)], ordered[min(last, int(0.95 * len(ordered)))]
