"""Simulated time, processes and threads: the ground that the real actors run on here.

One event loop whose clock jumps to the next timer, so that minutes cost milliseconds. Synchronous code that the
actors run in threads (the reader's consumer, the writer's tables) gets real threads, of which exactly one runs at a
time: a baton goes from the loop to a thread and back when it blocks. So nothing depends on the machine, and a seed
decides everything. A process is a name for tasks and threads that can be killed at any of their steps: its code
unwinds with `Killed`, and nothing that it does on the way has an effect any more.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

EPOCH_S = 1_700_000_000.0  # what the wall clock shows when a simulation begins


class Killed(BaseException):
    """The process that this code ran in is no more."""


class Stuck(Exception):
    """Nothing can ever happen again: no timer, no task that could run."""


class Violation(Exception):
    """A guarantee is broken."""


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Dice:
    """Every choice, from one seed. `hit` is a fault: it happens while faults are on, and is counted."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.rates: dict[str, float] = {}
        self.faults_on = True
        self.happened: Counter[str] = Counter()

    def hit(self, fault: str) -> bool:
        rate = self.rates[fault]
        if not self.faults_on or rate <= 0 or self.rng.random() >= rate:
            return False
        self.happened[fault] += 1
        return True

    def between(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without I/O. Time passes only while everybody waits."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._now = 0.0
        self._selector = self  # what BaseEventLoop asks for I/O, and how it waits

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck("no timer and nothing ready")
        if timeout > 0:
            self._now = max(self._now, self._scheduled[0].when())
        return []

    def _process_events(self, _: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        return self._world.run_aside(executor, func, args)


class Process:
    """One process of the simulated cluster."""

    _numbers = itertools.count()

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.pid = next(world.pids)
        self.alive = True
        self.frozen_until = 0.0  # its threads stand still until then
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.threads: dict[BatonThread, None] = {}
        self.executors: dict[int, list[Callable[[], None]]] = {}  # a pool of one thread: its queue
        self.at_death: list[Callable[[], None]] = []
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)

    def __repr__(self) -> str:
        return f"{self.name}/{self.pid}"

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.context.copy().run(self.world.loop.create_task, work)

    def check(self) -> None:
        """Before any effect: the dead have none."""
        if not self.alive:
            raise Killed

    def kill(self, why: str) -> None:
        if not self.alive:
            return
        self.alive = False
        self.world.note("killed", self, why)
        for task in list(self.tasks):
            task.cancel()
        for thread in list(self.threads):
            self.world.loop.call_soon(thread.unwind)
        for act in self.at_death:
            act()


def here() -> Process:
    """The process whose code is running."""
    process = PROCESS.get()
    assert process is not None, "this belongs to a process"
    return process


class _Worker:
    """A real thread, kept from one job to the next."""

    idle: ClassVar[list[_Worker]] = []

    def __init__(self) -> None:
        self.go, self.back = threading.Lock(), threading.Lock()
        self.go.acquire()
        self.back.acquire()
        self.job: Callable[[], None] | None = None
        threading.Thread(target=self._main, daemon=True).start()

    def _main(self) -> None:
        while True:
            self.go.acquire()
            assert self.job is not None
            self.job()
            self.job = None
            self.back.release()

    def run(self) -> None:
        """Hand over the baton; returns when it comes back."""
        self.go.release()
        self.back.acquire()

    def wait(self) -> None:
        """Give the baton back from inside, and wait for it."""
        self.back.release()
        self.go.acquire()


class BatonThread:
    """A thread of a process."""

    current: BatonThread | None = None

    def __init__(self, process: Process, work: Callable[[], Any]) -> None:
        self.process = process
        self._work = work
        self._worker = _Worker.idle.pop() if _Worker.idle else _Worker()
        self._worker.job = self._main
        self._is_done = False
        process.threads[self] = None
        process.world.loop.call_soon(self.resume)

    def _main(self) -> None:
        try:
            if self.process.alive:
                self.process.context.copy().run(self._work)
        except Killed:
            pass
        except BaseException as error:
            self.process.world.unexpected.append(f"{self.process}: a thread ended with {error!r}")
        self._is_done = True

    def resume(self) -> None:
        if self._is_done:
            return
        if self.process.alive and self.process.frozen_until > self.process.world.now():
            self.process.world.loop.call_at(self.process.frozen_until, self.resume)
            return
        before, BatonThread.current = BatonThread.current, self
        self._worker.run()
        BatonThread.current = before
        if self._is_done:
            self.process.threads.pop(self, None)
            _Worker.idle.append(self._worker)

    unwind = resume  # whoever wakes up dead unwinds

    def block(self, seconds: float) -> None:
        """From inside: let time pass."""
        self.process.check()
        self.process.world.loop.call_later(seconds, self.resume)
        self._worker.wait()
        self.process.check()


class World:
    """The simulated machine room: clock, dice, processes and what was seen."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.dice = Dice(seed)
        self.pids = itertools.count(1)
        self.processes: list[Process] = []
        self.unexpected: list[str] = []  # errors that nobody foresaw; any of them fails the seed
        self._trace = trace
        self._digest = hashlib.blake2b(digest_size=16)
        self.steps = 0
        self.loop = VirtualLoop(self)
        self.loop.set_task_factory(self._new_task)
        self.loop.set_exception_handler(self._task_failed)

    def now(self) -> float:
        return self.loop.time()

    def note(self, event: str, *what: Any) -> None:
        """One thing that happened: goes into the trace that a replay must repeat."""
        line = f"{self.loop.time():10.4f} {event} {' '.join(map(str, what))}"
        self._digest.update(line.encode())
        self.steps += 1
        if self._trace:
            print(line, flush=True)

    def digest(self) -> str:
        return self._digest.hexdigest()

    def process(self, name: str) -> Process:
        process = Process(self, name)
        self.processes.append(process)
        self.note("started", process)
        return process

    def sleep(self, seconds: float) -> None:
        """As time.sleep, from a thread of a process."""
        thread = BatonThread.current
        assert thread is not None, "only a thread may block"
        thread.block(seconds)

    def close(self) -> None:
        """End every process, and what runs in it."""
        for process in self.processes:
            process.kill("the simulation ends")
        for _ in range(20):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
        left = [process for process in self.processes if process.threads]
        self.loop.close()
        assert not left, f"threads that do not end: {left}"

    def run_aside(self, executor: Any, func: Callable[..., Any], args: tuple[Any, ...]) -> asyncio.Future[Any]:
        """What run_in_executor does: serially in a thread where the pool has one, else at once or a little later."""
        process = here()
        process.check()
        future = self.loop.create_future()
        context = contextvars.copy_context()

        def run() -> None:
            try:
                process.check()
                result = context.run(func, *args)
            except BaseException as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        prefix = getattr(executor, "_thread_name_prefix", "")
        if executor is None:
            BatonThread(process, run)
        elif prefix == "tables":
            self._in_line(process, id(executor), run)
        else:
            slow = prefix in ("download", "embed")
            self.loop.call_later(self.dice.between(0.005, 0.15) if slow else 0.0, run)
        return future

    def _in_line(self, process: Process, pool: int, job: Callable[[], None]) -> None:
        waiting = process.executors.get(pool)
        if waiting is not None:
            waiting.append(job)
            return
        process.executors[pool] = waiting = [job]

        def work() -> None:
            while waiting:
                waiting.pop(0)()
            del process.executors[pool]

        BatonThread(process, work)

    def _new_task(self, loop: Any, work: Any, context: Any = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context)
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            process.tasks[task] = None
            task.add_done_callback(lambda done: process.tasks.pop(done, None))
            if not process.alive:
                task.cancel()
        return task

    def _task_failed(self, _: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Killed | asyncio.CancelledError):
            return
        task = context.get("task") or context.get("future")
        self.unexpected.append(f"{context.get('message')}: {error!r} in {task!r}")
