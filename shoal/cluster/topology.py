"""Topology: which actors there are and how they are placed. The only place that spawns them.

Actors are detached, named and created with `get_if_exists`, so that a new supervisor adopts what an old one left.
Ray neither restarts them (`max_restarts=0`) nor makes calls again: it would do the first without any pause, with
the arguments of the first life, and without a word. The supervisor begins them again (shoal.cluster.watching);
a retried commit is the pipeline's decision, not the runtime's. Readers and fetchers are spread over the nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from shoal.actors.embedder import EmbedderActor
from shoal.actors.fetcher import FetcherActor
from shoal.actors.names import EMBEDDER, NAMESPACE, WRITER, fetcher_name, reader_name
from shoal.actors.reader import ReaderActor
from shoal.actors.writer import WriterActor
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


def posts(settings: Settings, model: str, width: int) -> tuple[Post, ...]:
    """Every ingest actor, in the order in which they should start.

    CPU shares are small: a node's real work is bounded by threads and processes, and the shares only keep
    Ray from refusing to place them on a laptop.
    """

    def fetcher(name: str) -> Post:
        return Post(name, lambda _: _actor(FetcherActor, name, 0.2, "SPREAD", name, settings, model, width))

    def reader(name: str) -> Post:
        def create(place: Connection) -> Any:
            return _actor(ReaderActor, name, 0.1, "SPREAD", name, settings, place, width)

        return Post(name, create, reads=True, starts=True)

    return (
        Post(WRITER, lambda _: _actor(WriterActor, WRITER, 0.2, "DEFAULT", settings, model, width), starts=True),
        Post(EMBEDDER, lambda _: _actor(EmbedderActor, EMBEDDER, 0.5, "DEFAULT", settings, model, width)),
        *(fetcher(fetcher_name(number)) for number in range(settings.fetchers)),
        *(reader(reader_name(number)) for number in range(settings.readers)),
    )


def _actor(actor: Any, name: str, num_cpus: float, strategy: str, *args: Any) -> Any:
    return actor.options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=0,
        num_cpus=num_cpus,
        scheduling_strategy=strategy,
    ).remote(*args)


def end(handle: Any) -> None:
    """End an actor by force and free its name: SIGKILL within 5 s, also where it is stopped (SIGSTOP) or stuck."""
    ray.kill(handle, no_restart=True)
