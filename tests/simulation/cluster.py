"""The simulated cluster: the real actors in simulated processes, the calls between them, and who restarts them.

Stands where Ray stands. A call may be slow (so calls overtake one another), be lost before or after it was carried
out, or be carried out twice, the second time much later; a process may die under it. Ray's own error classes tell
the caller, so that the real `RayStages` translates them.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError

from shoal.actors.embedder import Embedder
from shoal.actors.fetcher import Fetcher
from shoal.actors.names import EMBEDDER, WRITER, fetcher_name, reader_name
from shoal.actors.reader import Reader
from shoal.actors.writer import Writer
from shoal.errors import FencedError, ShoalError
from shoal.settings import Settings
from shoal.sources.kafka import Connection
from tests.simulation.broker import CLUSTER
from tests.simulation.kernel import Killed, Process, World, here
from tests.simulation.systems import MODEL, WIDTH

TWO_RESULTS = ("fetch", "embed")  # those of two results, by ray.method
SUPERVISE_S = 1.0


class Ref:
    """An object reference: may be awaited, and handed to another call."""

    def __init__(self, world: World) -> None:
        self.future: asyncio.Future[Any] = world.loop.create_future()
        self.future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.is_lost = False

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.shield(self.future).__await__()


class Handle:
    """A named actor as its callers hold it. `life` is of the actor that it was looked up for."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster, self._name, self._life = cluster, name, cluster.lives[name]

    def __getattr__(self, method: str) -> Any:
        return _Method(lambda args: self._cluster.call(self._name, self._life, method, args))


class _Method:
    def __init__(self, call: Callable[[tuple[Any, ...]], Any]) -> None:
        self._call = call

    def remote(self, *args: Any) -> Any:
        return self._call(args)


def task_error(method: str, cause: BaseException) -> RayTaskError:
    return RayTaskError(method, "simulated", cause, proctitle="simulated", pid=1, ip="simulated")


class Cluster:
    """The actors by name."""

    def __init__(self, world: World, settings: Settings, readers: int) -> None:
        self.world, self.settings = world, settings
        self.readers = readers
        self.fetchers = settings.fetchers  # follows the load, as it were
        self.actors: dict[str, tuple[Process, Any]] = {}
        self.lives: dict[str, int] = {}  # name -> how many actors it had: a new one has another handle
        self.zombies: list[tuple[Process, Any]] = []
        self._waiting: dict[str, bool] = {}  # names that are being restarted

    def names(self) -> list[str]:
        return [
            WRITER,
            EMBEDDER,
            *map(fetcher_name, range(self.fetchers)),
            *map(reader_name, range(self.readers)),
        ]

    def living(self, prefix: str) -> list[tuple[str, Process, Any]]:
        return [
            (name, process, actor)
            for name, (process, actor) in self.actors.items()
            if name.startswith(prefix) and process.alive
        ]

    def _make(self, name: str) -> Any:
        settings = self.settings
        if name == WRITER:
            return Writer(settings, MODEL, WIDTH)
        if name == EMBEDDER:
            return Embedder(settings, MODEL, WIDTH)
        if name.startswith("fetcher"):
            return Fetcher(name, settings, MODEL, WIDTH)
        return Reader(name, settings, Connection("simulated", CLUSTER), WIDTH)

    async def start(self, name: str) -> None:
        """A new process for `name`."""
        process = self.world.process(name)
        self.lives[name] = self.lives.get(name, 0) + (self.world.dice.rng.random() < 0.5 or name not in self.lives)
        # Made in the process: what it opens is the process's own.
        made = process.spawn(self._made(name))
        try:
            actor = await made
        except (Killed, asyncio.CancelledError):
            return
        self.actors[name] = (process, actor)
        if hasattr(actor, "start"):
            started = process.spawn(actor.start())
            started.add_done_callback(lambda done: self._started(name, process, done))

    async def _made(self, name: str) -> Any:
        return self._make(name)

    def _started(self, name: str, process: Process, done: asyncio.Task[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None and not isinstance(error, Killed | ShoalError):
            self.world.unexpected.append(f"{process} did not start: {error!r}")

    async def supervise(self) -> None:
        """Replaces what died or was fenced. Stops with the simulation."""
        while True:
            for name in self.names():
                found = self.actors.get(name)
                gone = found is None or not found[0].alive
                if found is not None and name == WRITER and found[0].alive and found[1]._ended:
                    self.world.dice.happened["writer_fenced"] += 1
                    found[0].kill("fenced")
                    gone = True
                if gone and not self._waiting.get(name):
                    self._waiting[name] = True
                    asyncio.get_running_loop().create_task(self._restart(name))
            await asyncio.sleep(SUPERVISE_S)

    async def _restart(self, name: str) -> None:
        await asyncio.sleep(self.world.dice.between(0.0, 3.0))
        await self.start(name)
        self._waiting[name] = False

    def replace_writer(self) -> None:
        """The supervisor takes the writer for dead, and it isn't: a zombie."""
        found = self.actors.pop(WRITER, None)
        if found is None or not found[0].alive:
            return
        self.zombies.append(found)
        self.lives[WRITER] += 1
        self.world.note("zombie", found[0])

    def resize_fetchers(self, count: int) -> bool:
        """So many from now on. The readers are told, and who is one too many ends soon, whatever it still has."""
        before, self.fetchers = self.fetchers, count
        route = tuple(map(fetcher_name, range(count)))
        for _, process, actor in self.living("reader"):
            process.spawn(actor.route(route))
        for name in map(fetcher_name, range(count, before)):
            if found := self.actors.get(name):
                self.world.loop.call_later(self.world.dice.between(0.001, 5.0), found[0].kill, "one too many")
        return count != before

    # --- calls --------------------------------------------------------------------------------

    def get_actor(self, name: str, namespace: str) -> Handle:
        if name not in self.actors:
            raise ValueError(name)
        return Handle(self, name)

    def call(self, name: str, life: int, method: str, args: tuple[Any, ...]) -> Any:
        caller = here()
        caller.check()
        dice = self.world.dice
        refs = [Ref(self.world) for _ in range(2 if method in TWO_RESULTS else 1)]
        delay = dice.between(0.3, 8.0) if dice.hit("call_slow") else dice.between(0.0005, 0.01)
        if dice.hit("call_lost"):
            self.world.loop.call_later(delay, self._fail, refs, ActorUnavailableError("simulated: not delivered", None))
        else:
            self.world.loop.call_later(delay, self._deliver, name, life, method, args, refs)
            if dice.hit("call_twice"):
                twin = [Ref(self.world) for _ in refs]
                later = dice.between(0.001, 20.0)
                self.world.loop.call_later(delay + later, self._deliver, name, life, method, args, twin)
        return refs if len(refs) > 1 else refs[0]

    def _fail(self, refs: list[Ref], error: Exception) -> None:
        for ref in refs:
            if not ref.future.done():
                ref.future.set_exception(error)

    def _deliver(self, name: str, life: int, method: str, args: tuple[Any, ...], refs: list[Ref]) -> None:
        if life != self.lives[name]:
            zombie = next((found for found in self.zombies if found[0].name == name and found[0].alive), None)
            if zombie is None or self.world.dice.rng.random() < 0.5:
                self._fail(refs, ActorDiedError())
                return
            found: Any = zombie  # who holds its handle still gets through to it
        else:
            found = self.actors.get(name)
        if found is None or not found[0].alive:
            self._fail(refs, ActorUnavailableError("simulated: down", None))
            return
        process, actor = found
        process.spawn(self._carry_out(process, actor, method, args, refs))

    async def _carry_out(
        self, process: Process, actor: Any, method: str, args: tuple[Any, ...], refs: list[Ref]
    ) -> None:
        dice = self.world.dice
        died = [lambda: self._fail(refs, ActorUnavailableError("simulated: died in a call", None))]
        process.at_death.append(died[0])
        try:
            given = []
            for arg in args:
                if isinstance(arg, Ref):
                    if arg.is_lost:
                        raise task_error(method, RayError("simulated: the object is lost"))
                    arg = await arg
                given.append(arg)
            result = getattr(actor, method)(*given)
            if inspect.isawaitable(result):
                result = await result
        except Killed:
            return
        except RayTaskError as error:
            self._fail(refs, error)
            return
        except Exception as error:
            if not isinstance(error, ShoalError):
                self.world.unexpected.append(f"{process}.{method} raised {error!r}")
            if isinstance(error, FencedError):
                dice.happened["fenced_call"] += 1
            self._fail(refs, task_error(method, error))
            return
        finally:
            process.at_death.remove(died[0])
        if not process.alive:
            self._fail(refs, ActorUnavailableError("simulated: died before its answer", None))
            return
        if dice.hit("answer_lost"):
            self._fail(refs, ActorUnavailableError("simulated: the answer is lost", None))
            return
        results = result if len(refs) > 1 else (result,)
        delay = dice.between(0.3, 8.0) if dice.hit("answer_slow") else dice.between(0.0005, 0.01)
        lost = len(refs) > 1 and dice.hit("payload_lost")
        self.world.loop.call_later(delay, self._answer, refs, results, lost)

    def _answer(self, refs: list[Ref], results: tuple[Any, ...], lost: bool) -> None:
        for ref, result in zip(refs, results, strict=True):
            if not ref.future.done():
                ref.future.set_result(result)
        refs[-1].is_lost = lost
