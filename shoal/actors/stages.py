"""The stages as Ray calls: names to handles, Ray's errors to ours.

A dead or restarting actor is a bad system: `TransientError`, and the handle is looked up again. What an
actor raised keeps its own class. All calls are idempotent by design (G2), so each may be made again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import orjson
import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from shoal.actors.names import EMBEDDER, NAMESPACE, WRITER, fetcher_name
from shoal.actors.pipeline import FetchResult, PayloadLostError, UnforeseenError
from shoal.errors import ConfigurationError, PermanentError, ShoalError, TransientError
from shoal.faults import reach
from shoal.records import Ack, Announcement, Command, EmbeddedCommand, Failure, Outcome, Progress
from shoal.settings import Settings
from shoal.sources.dead_letter_state import replay_of, settled
from shoal.sources.dead_letters import dead_letter
from shoal.sources.kafka import LogProducer
from shoal.sources.messages import RawMessage

Result = TypeVar("Result")

DOWN_RETRY_S = 0.5  # an actor is back within seconds: asking its name costs little


class RayStages:
    """`Stages` of shoal.actors.pipeline, over the cluster's named actors."""

    def __init__(
        self,
        settings: Settings,
        producer: LogProducer,
        outcomes: LogProducer,
        progress: Callable[[], tuple[Progress, ...]],
        now: Callable[[], Any],
    ) -> None:
        self._settings = settings
        self._producer, self._outcomes = producer, outcomes
        self._progress, self._now = progress, now
        self._handles: dict[str, Any] = {}
        self.route([fetcher_name(number) for number in range(settings.fetchers)])

    def route(self, fetchers: Sequence[str]) -> None:
        """Give documents to these from now on, in turn. What others have already they finish."""
        for name in self._handles.keys() - {*fetchers, EMBEDDER, WRITER}:  # one of that name may come again
            del self._handles[name]
        self._next_fetcher = itertools.cycle(fetchers)

    async def fetch(self, announcement: Announcement) -> tuple[FetchResult, Any]:
        name = next(self._next_fetcher)
        result_ref, payload_ref = await self._submit(name, "fetch", announcement)
        return await self._await(name, result_ref), payload_ref

    async def alive(self, dependency: str) -> bool:
        answer: bool = await self._call(next(self._next_fetcher), "alive", dependency)
        return answer

    async def embed(self, fetched: Any) -> tuple[Failure | None, Any]:
        refused_ref, payload_ref = await self._submit(EMBEDDER, "embed", fetched)
        return await self._await(EMBEDDER, refused_ref), payload_ref

    async def embed_command(self, command: Command) -> EmbeddedCommand:
        made: EmbeddedCommand = await self._call(EMBEDDER, "embed_command", command)
        return made

    async def write(self, writable: Any) -> Ack:
        ack: Ack = await self._call(WRITER, "write", writable, self._progress())
        return ack

    async def resolve(self, s3_path: str) -> str | None:
        found: str | None = await self._call(WRITER, "resolve", s3_path)
        return found

    async def dead_letter(self, raw: RawMessage, failure: Failure) -> None:
        replay = replay_of(raw)
        died_before = replay.count if replay else 0
        topic, key, value, headers = dead_letter(raw, failure, self._now(), died_before)
        reach("reader.before_dead_letter")
        try:
            await asyncio.to_thread(_send, self._producer, topic, key, value, headers)
        except ConfigurationError:
            raise
        except PermanentError:  # too large for its topic: a stub that names the hash is better than a stuck partition
            topic, key, value, headers = dead_letter(raw, failure, self._now(), died_before, value_bytes_max=0)
            await asyncio.to_thread(_send, self._producer, topic, key, value, headers)
        reach("reader.after_dead_letter")

    async def settle(self, raw: RawMessage, outcome: Outcome | None, failure: Failure | None) -> None:
        record = settled(raw, outcome, self._now(), failure)
        if record is not None:
            topic, key, value = record
            await asyncio.to_thread(_send, self._producer, topic, key, value, ())

    async def report(self, outcome_id: str, outcome: Outcome, raw: RawMessage, detail: dict[str, Any]) -> None:
        record = {
            "outcome_id": outcome_id,
            "outcome": outcome,
            "topic": raw.position.topic,
            "partition": raw.position.partition,
            "offset": raw.position.offset,
            **detail,
        }
        key, value = outcome_id.encode(), orjson.dumps(record)
        await asyncio.to_thread(_send, self._outcomes, self._settings.outcome_topic, key, value, ())

    async def _call(self, name: str, method: str, *args: Any) -> Any:
        return await self._await(name, await self._submit(name, method, *args))

    async def _submit(self, name: str, method: str, *args: Any) -> Any:
        handle = self._handles.get(name)
        if handle is None:
            try:
                handle = await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
            except ValueError:
                raise TransientError(f"{name} is not running yet", DOWN_RETRY_S) from None
            self._handles[name] = handle
        try:
            return getattr(handle, method).remote(*args)
        except RayActorError as error:
            raise self._lost(name, error) from None

    async def _await(self, name: str, ref: Awaitable[Result]) -> Result:
        try:
            return await ref
        except RayTaskError as error:
            if isinstance(error.cause, ShoalError):
                raise error.cause from None
            if isinstance(error.cause, RayError):  # an argument could not be had
                raise PayloadLostError(f"{name}: {type(error.cause).__name__}") from None
            raise UnforeseenError(f"{name} failed: {type(error.cause).__name__}: {str(error.cause)[:300]}") from None
        except RayActorError as error:
            raise self._lost(name, error) from None
        except RayError as error:
            raise PayloadLostError(f"{name}: {type(error).__name__}") from None

    def _lost(self, name: str, error: RayActorError) -> TransientError:
        if isinstance(error, ActorDiedError):
            self._handles.pop(name, None)  # its successor has another handle
        return TransientError(f"{name} is down ({type(error).__name__})", DOWN_RETRY_S)


def _send(producer: LogProducer, topic: str, key: Any, value: Any, headers: Any) -> None:
    producer.send(topic, key, value, headers)
    producer.flush(10.0)
