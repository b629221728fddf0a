"""Topology: which actors there are and how they are placed. The only place that spawns them.

Actors are detached, named and created with `get_if_exists`, so that a new supervisor adopts what an old one
left. Ray restarts their processes (`max_restarts=-1`); calls are not re-executed by Ray (a retried commit is
the pipeline's decision, not the runtime's).
"""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Crew:
    """Handles of every ingest actor, by name, in the order they must start."""

    writer: Any
    embedder: Any
    fetchers: dict[str, Any]
    readers: dict[str, Any]

    def handles(self) -> dict[str, Any]:
        return {WRITER: self.writer, EMBEDDER: self.embedder, **self.fetchers, **self.readers}


def ensure_crew(settings: Settings, connection: Connection, model: str, width: int) -> Crew:
    """Create the actors that don't exist yet, adopt those that do.

    CPU shares are small: a node's real work is bounded by threads and processes, and the shares only keep
    Ray from refusing to place them on a laptop.
    """
    return Crew(
        writer=_actor(WriterActor, WRITER, 0.2, settings, model, width),
        embedder=_actor(EmbedderActor, EMBEDDER, 0.5, settings, model),
        fetchers={
            name: _actor(FetcherActor, name, 0.2, name, settings, model)
            for name in map(fetcher_name, range(settings.fetchers))
        },
        readers={
            name: _actor(ReaderActor, name, 0.1, name, settings, connection)
            for name in map(reader_name, range(settings.readers))
        },
    )


def _actor(actor: Any, name: str, num_cpus: float, *args: Any) -> Any:
    return actor.options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        num_cpus=num_cpus,
    ).remote(*args)


def dismiss(crew: Crew) -> None:
    """Kill every actor and free its name."""
    for handle in crew.handles().values():
        ray.kill(handle)
