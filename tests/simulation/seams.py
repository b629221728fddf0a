"""Where the real modules meet the simulated world: their clock, threads, random numbers and vendors' calls.

Every loaded module of `shoal` that says `time.monotonic()`, `random.random()`, `uuid.uuid4()`, `datetime.now()` or
`reach(...)` says it to the world of the simulation that runs. Nothing outside of `shoal` is changed; a process that
has simulated should do nothing else (the tests start one of its own).
"""

from __future__ import annotations

import datetime as datetime_module
import logging
import os
import random
import sys
import threading
import time
import traceback
import types
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

from shoal import faults
from shoal.actors import embedder, fetcher, reader, stages, writer
from shoal.embeddings import service  # noqa: F401 - loaded, so that it is changed
from shoal.sources.objects import ObjectReader
from shoal.store import generations, writing
from tests.simulation.broker import Broker, Consumer, Producer
from tests.simulation.kernel import EPOCH_S, BatonThread, Killed, World, here
from tests.simulation.systems import Cache, Extractor, Model, Store, Systems
from tests.simulation.tables import NothingExpires, SimulatedMaintenance, SimulatedTable, Storage


class Shim:
    """A module with some of its names replaced."""

    def __init__(self, module: ModuleType, **names: Any) -> None:
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Event:
    """threading.Event whose wait lets simulated time pass."""

    def __init__(self, world: World) -> None:
        self._world, self._is_set = world, False

    def set(self) -> None:
        self._is_set = True

    def clear(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        until = self._world.now() + (timeout if timeout is not None else 1e9)
        while not self._is_set and self._world.now() < until:
            self._world.sleep(0.1)
        return self._is_set


class Thread:
    """threading.Thread of a simulated process."""

    def __init__(
        self, target: Callable[[], Any], name: str = "", daemon: bool = True, args: tuple[Any, ...] = ()
    ) -> None:
        self._work, self._process = (lambda: target(*args)), here()
        self._thread: BatonThread | None = None

    def start(self) -> None:
        self._thread = BatonThread(self._process, self._work)

    def is_alive(self) -> bool:
        return self._thread is not None and self._thread in self._process.threads


class NoSurvey:
    """reader.Survey: what only a broker can tell the status stays unknown here."""

    def __init__(self, *_: Any) -> None:
        self.found: dict[Any, Any] = {}
        self.heard_at = 0.0

    def ask(self, *_: Any, **__: Any) -> None: ...

    def forget(self, _: Any) -> None: ...

    def stop(self) -> None: ...


class NothingKnown:
    """embedder.KnownVectors: the tables answer no lookup, so every text that the cache lacks is embedded."""

    def __init__(self, *_: Any) -> None: ...

    async def of(self, *_: Any) -> dict[str, Any]:
        return {}

    async def close(self) -> None: ...


@contextmanager
def seams(world: World, broker: Broker, storage: Storage, systems: Systems, get_actor: Any) -> Iterator[None]:
    """The real modules live in `world` for as long as this is open."""
    rng = random.Random(world.dice.rng.random())

    def monotonic() -> float:
        return world.now()

    class Moment(datetime_module.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime_module.datetime.fromtimestamp(EPOCH_S + world.now(), tz)

    class Seeded(random.Random):
        def __init__(self, seed: Any = None) -> None:
            super().__init__(rng.random() if seed is None else seed)

    def leave(code: int) -> None:
        process = here()
        process.check()  # the dead unwind through here
        error = sys.exc_info()[1]
        told = "".join(traceback.format_exception(error)[-4:]) if error else f"code {code}"
        world.unexpected.append(f"{process} ended itself: {told}")
        process.kill("it ended itself")
        raise Killed

    def reach(point: str) -> None:
        process = here()
        process.check()
        if world.dice.hit(f"killed_at_{point}"):
            process.kill(f"at {point}")
            raise Killed

    by_module = {
        time: Shim(time, monotonic=monotonic, time=lambda: EPOCH_S + world.now(), sleep=world.sleep),
        random: Shim(random, Random=Seeded, uniform=rng.uniform, random=rng.random, choice=rng.choice),
        uuid: Shim(uuid, uuid4=lambda: uuid.UUID(int=rng.getrandbits(128))),
        os: Shim(os, _exit=leave),
        threading: Shim(threading, Thread=Thread, Event=lambda: Event(world)),
        logging: Shim(logging, shutdown=lambda: None),
    }
    SimulatedTable.storage = storage
    by_place: dict[ModuleType, dict[str, Any]] = {
        reader: {
            "Consumer": lambda config: Consumer(broker, config),
            "open_producer": lambda *_: Producer(broker, here()),
            "open_direct_producer": lambda *_: Producer(broker, here()),
            "Survey": NoSurvey,
            # Simulated polls cost as much as real ones, and nobody waits for them.
            "POLL_S": rng.choice((0.1, 0.5, 1.0)),
            "WATERMARK_INTERVAL_S": 5.0,
        },
        stages: {"ray": SimpleNamespace(get_actor=get_actor)},
        fetcher: {"ExtractionPool": Extractor, "ObjectReader": lambda settings: ObjectReader(settings, Store(systems))},
        embedder: {
            "EmbeddingCache": lambda *_: Cache(systems),
            "create_model": lambda *_, **__: Model(systems),
            "KnownVectors": NothingKnown,
        },
        writing: {"FencedTable": SimulatedTable, "Maintenance": SimulatedMaintenance, "Retention": NothingExpires},
        generations: {"FencedTable": SimulatedTable},
        writer: {},
    }
    undo: list[Callable[[], None]] = []

    def put(place: Any, name: str, value: Any) -> None:
        before = getattr(place, name)
        undo.append(lambda: setattr(place, name, before))
        setattr(place, name, value)

    real_now, real_reach = time.monotonic, faults.reach
    for module in [found for name, found in sys.modules.items() if name.startswith("shoal.") and found is not None]:
        if module is faults:
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, ModuleType) and value in by_module:
                put(module, name, by_module[value])
            elif value is datetime_module.datetime and module.__name__.startswith("shoal.actors"):
                put(module, name, Moment)
            elif value is real_reach:
                put(module, name, reach)
            elif name == "configure_logging":
                put(module, name, lambda _: None)
            elif isinstance(value, type) and value.__module__ == module.__name__:
                made = vars(value).get("__init__")
                if isinstance(made, types.FunctionType):
                    _default_clock(made, real_now, monotonic, put)
    for module, names in by_place.items():
        for name, value in names.items():
            put(module, name, value)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for act in reversed(undo):
            act()


def _default_clock(function: Any, real: Any, simulated: Any, put: Callable[[Any, str, Any], None]) -> None:
    """A clock that is a default argument was bound before the simulation began."""
    if real in (function.__defaults__ or ()):
        put(function, "__defaults__", tuple(simulated if value is real else value for value in function.__defaults__))
    if real in (function.__kwdefaults__ or {}).values():
        changed = {name: simulated if value is real else value for name, value in function.__kwdefaults__.items()}
        put(function, "__kwdefaults__", changed)
