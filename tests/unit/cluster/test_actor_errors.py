"""Ray's errors: which is a death, and which a person must mend. The texts are Ray's own, as measured."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError

from shoal.cluster.actor_errors import is_death, never_lived, refusal, told
from shoal.errors import ConfigurationError, FencedError, TransientError

INIT_FAILED = (
    "The actor died because of an error raised in its creation task, \x1b[36mray::embedder:Embedder.__init__()\x1b[39m "
    '(pid=1, ip=127.0.0.1)\n  File "x.py", line 1, in __init__\n'
)


class InitFailed(ActorDiedError):
    def __init__(self, last_line: str) -> None:
        super().__init__()
        self._text = INIT_FAILED + last_line

    @property
    def actor_init_failed(self) -> bool:
        return True

    def __str__(self) -> str:
        return self._text


def test_only_rays_word_is_a_death() -> None:
    assert is_death(ActorDiedError())
    assert not is_death(ActorUnavailableError("for now", None))
    assert not is_death(RayTaskError("f", "t", RuntimeError("x")))
    assert not is_death(TimeoutError())


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RayTaskError("f", "t", ConfigurationError("no such bucket")), "no such bucket"),
        (InitFailed("shoal.errors.ConfigurationError: set OPENAI_API_KEY"), "set OPENAI_API_KEY"),
        (InitFailed("OSError: disk full"), None),
        (RayTaskError("f", "t", TransientError("busy")), None),
        (RayTaskError("f", "t", FencedError("another writer")), None),
        (ActorDiedError(), None),
        (RuntimeError("ConfigurationError: no"), None),
    ],
)
def test_what_a_person_must_mend_is_told_from_what_may_pass(error: BaseException, text: str | None) -> None:
    assert refusal(error) == text


def test_a_constructor_that_failed_is_told_by_its_last_line() -> None:
    error = InitFailed("OSError: disk full")
    assert never_lived(error)
    assert told(error) == "OSError: disk full"
    assert not never_lived(RayActorError())


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RayTaskError("f", "t", TransientError("busy")), "busy"),
        (RuntimeError("odd"), "RuntimeError: odd"),
        (ActorDiedError(), "its process ended"),
    ],
)
def test_the_rest_is_one_line(error: BaseException, text: str) -> None:
    assert told(error) == text
