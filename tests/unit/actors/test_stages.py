"""The stages' own decisions, without Ray: what is sent where, and what an actor's error means."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayTaskError

from shoal.actors.pipeline import PayloadLostError, UnforeseenError
from shoal.actors.stages import RayStages
from shoal.errors import BadDocument, ConfigurationError, DeadReason, PermanentError, TransientError
from shoal.records import Failure, Outcome, Position
from shoal.settings import Settings
from shoal.sources.messages import RawMessage

RAW = RawMessage(Position("c", "t", 0, 5, 0), b"k", b"x" * 100_000, ())
FAILURE = Failure(DeadReason.NOT_JSON, "no", "parse")


class FakeProducer:
    def __init__(self, refuse_above: int = 1_000_000, error: Exception | None = None) -> None:
        self.sent: list[tuple[str, Any, Any]] = []
        self.refuse_above, self.error = refuse_above, error

    def send(self, topic: str, key: Any, value: Any, headers: Any = ()) -> None:
        if self.error is not None:
            raise self.error
        if len(value or b"") > self.refuse_above:
            raise PermanentError("kafka: message too large")
        self.sent.append((topic, key, value))

    def flush(self, timeout_s: float) -> None: ...


def stages(producer: FakeProducer, outcomes: FakeProducer | None = None) -> RayStages:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return RayStages(Settings(_env_file=None), producer, outcomes or producer, tuple, lambda: now)


async def test_a_dead_letter_too_large_for_its_topic_is_sent_as_a_stub() -> None:
    producer = FakeProducer(refuse_above=50_000)
    await stages(producer).dead_letter(RAW, FAILURE)
    assert orjson.loads(producer.sent[0][2])["shoal_stub"] is True


async def test_a_dead_letter_topic_that_refuses_us_is_said_so() -> None:
    with pytest.raises(ConfigurationError, match="ACL"):
        await stages(FakeProducer(error=ConfigurationError("allow it in the ACL"))).dead_letter(RAW, FAILURE)


async def test_an_outcome_is_keyed_by_the_name_its_publisher_waits_for() -> None:
    outcomes = FakeProducer()
    await stages(FakeProducer(), outcomes).report("batch:1", Outcome.INDEXED, RAW, {"commit_sequence": 3})
    topic, key, value = outcomes.sent[0]
    assert (topic, key) == ("shoal_outcomes", b"batch:1")
    assert orjson.loads(value)["commit_sequence"] == 3


def raised(cause: Exception) -> RayTaskError:
    return RayTaskError("write", "traceback", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (raised(TransientError("slow")), TransientError),
        (raised(BadDocument(DeadReason.EMBEDDING_REJECTED, "no")), BadDocument),
        (raised(KeyError("a bug")), UnforeseenError),
        (raised(ObjectLostError("ab", None, "")), PayloadLostError),
        (ActorDiedError(), TransientError),
        (ActorUnavailableError("restarting", b"0" * 16), TransientError),
        (ObjectLostError("ab", None, ""), PayloadLostError),
    ],
)
async def test_rays_errors_become_ours(error: Exception, ours: type[Exception]) -> None:
    async def failing() -> None:
        raise error

    with pytest.raises(ours) as caught:
        await stages(FakeProducer())._await("writer", failing())
    assert type(caught.value) is ours


async def test_documents_go_to_the_fetch_workers_that_are_named_in_turn_and_to_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up: list[str] = []

    class Fetcher:
        def __getattr__(self, method: str) -> Any:
            async def answer(*_: Any) -> bool:
                return True

            return SimpleNamespace(remote=answer)

    def found(name: str, namespace: str) -> Fetcher:
        looked_up.append(name)
        return Fetcher()

    monkeypatch.setattr("shoal.actors.stages.ray.get_actor", found)
    routed = stages(FakeProducer())
    for _ in range(4):
        assert await routed.alive("s3://b")
    assert looked_up == ["fetcher-0", "fetcher-1"], "two by default, each looked up once"
    routed.route(("fetcher-1", "fetcher-2"))
    routed.route(("fetcher-0", "fetcher-1"))
    for _ in range(2):
        await routed.alive("s3://b")
    assert looked_up == ["fetcher-0", "fetcher-1", "fetcher-0"], "one that went may come back as another"
