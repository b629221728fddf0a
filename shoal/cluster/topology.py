"""Topology: which actors there are and how they are placed. The only place that spawns them.

Actors are detached, named and created with `get_if_exists`, so that a new supervisor adopts what an old one left.
Ray neither restarts them (`max_restarts=0`) nor makes calls again: it would do the first without any pause, with
the arguments of the first life, and without a word. The supervisor begins them again (shoal.cluster.watching);
a retried commit is the pipeline's decision, not the runtime's. Readers and fetchers are spread over the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from shoal.actors.embedder import EmbedderActor
from shoal.actors.fetcher import FetcherActor
from shoal.actors.names import EMBEDDER, NAMESPACE, WRITER, fetcher_name, reader_name
from shoal.actors.reader import ReaderActor
from shoal.actors.writer import WriterActor
from shoal.cluster.elasticity import FETCHERS, READERS
from shoal.settings import Settings
from shoal.sources.kafka import Connection

GONE_S = 10.0
"""How long a name may take to become free after its actor was ended by force."""


@dataclass(frozen=True, slots=True)
class Post:
    """A place in the crew: what holds it, and how it is made. `create` adopts the actor that holds it already."""

    name: str
    create: Callable[[Connection], Any]
    reads: bool = False  # from the log, so it depends on the connection
    starts: bool = False  # `start()` must be called once in each of its lives
    pool: str | None = None  # whose number follows the load (shoal.cluster.elasticity)
    is_extra: bool = False  # of its pool one that is only there while it is wanted


def posts(settings: Settings, model: str, width: int) -> tuple[Post, ...]:
    """Every ingest actor, in the order in which they should start; of the pools as many as there may be.

    CPU shares are small: a node's real work is bounded by threads and processes, and the shares only keep
    Ray from refusing to place them on a laptop. Where pools grow, `reader_cpus` and `fetcher_cpus` say how many fit
    on a node: those that do not are what Ray's autoscaler adds nodes for.
    """

    def fetcher(number: int) -> Post:
        name = fetcher_name(number)

        def create(_: Connection) -> Any:
            return _actor(FetcherActor, name, settings.fetcher_cpus, "SPREAD", name, settings, model, width)

        return Post(name, create, pool=FETCHERS, is_extra=number >= settings.fetchers)

    def reader(number: int) -> Post:
        name = reader_name(number)

        def create(place: Connection) -> Any:
            return _actor(ReaderActor, name, settings.reader_cpus, "SPREAD", name, settings, place, width)

        return Post(name, create, reads=True, starts=True, pool=READERS, is_extra=number >= settings.readers)

    core = {settings.core_resource: 0.001} if settings.core_resource else {}

    def cpus(share: float) -> float:
        # The resource alone is the core's room: a growing flow could fill the one node that has it while writer or
        # embedder begin again, and would then wait for them as they for it. Where that node has no CPUs, the flow (and
        # Serve) leave it alone.
        return 0.0 if core else share

    def writer(_: Connection) -> Any:
        return _actor(WriterActor, WRITER, cpus(0.2), "DEFAULT", settings, model, width, resources=core)

    def embedder(_: Connection) -> Any:
        return _actor(EmbedderActor, EMBEDDER, cpus(0.5), "DEFAULT", settings, model, width, resources=core)

    return (
        Post(WRITER, writer, starts=True),
        Post(EMBEDDER, embedder),
        *map(fetcher, range(pools(settings)[FETCHERS][1])),
        *map(reader, range(pools(settings)[READERS][1])),
    )


def pools(settings: Settings) -> dict[str, tuple[int, int]]:
    """The fewest and the most of each pool."""
    return {
        READERS: (settings.readers, max(settings.readers, settings.readers_max)),
        FETCHERS: (settings.fetchers, max(settings.fetchers, settings.fetchers_max)),
    }


def _actor(
    actor: Any, name: str, num_cpus: float, strategy: str, *args: Any, resources: Mapping[str, float] | None = None
) -> Any:
    return actor.options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=0,
        num_cpus=num_cpus,
        resources=dict(resources or {}),
        scheduling_strategy=strategy,
    ).remote(*args)


def end(handle: Any) -> None:
    """End an actor by force and free its name: SIGKILL within 5 s, also where it is stopped (SIGSTOP) or stuck."""
    ray.kill(handle, no_restart=True)
