"""What a failed call to an actor means: is it dead, what is shown, and must a person mend it."""

from __future__ import annotations

from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from shoal.errors import ConfigurationError, ShoalError

SHOWN_CHARS_MAX = 300


def is_death(error: BaseException) -> bool:
    """Whether the actor is gone for good. One that can't be reached now may come back."""
    return isinstance(error, ActorDiedError)


def never_lived(error: BaseException) -> bool:
    """Whether its constructor failed."""
    return isinstance(error, RayActorError) and bool(error.actor_init_failed)


def refusal(error: BaseException) -> str | None:
    """What a person must mend, where that is why a call failed or an actor could not be made."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, ConfigurationError):
        return str(error.cause)
    if never_lived(error):  # the class survives only in the text
        name, message = _last_line(error)
        if name.endswith(ConfigurationError.__name__):
            return message
    return None


def told(error: BaseException) -> str:
    """One line for the status."""
    if (refused := refusal(error)) is not None:
        return refused
    if isinstance(error, RayTaskError) and isinstance(error.cause, ShoalError):
        return str(error.cause)
    if never_lived(error):
        return ": ".join(filter(None, _last_line(error)))[:SHOWN_CHARS_MAX]
    if isinstance(error, RayActorError):
        return _how_it_died(str(error))
    return f"{type(error).__name__}: {error}"[:SHOWN_CHARS_MAX]


def _last_line(error: BaseException) -> tuple[str, str]:
    name, _, message = str(error).strip().rpartition("\n")[2].partition(": ")
    return name, message


def _how_it_died(text: str) -> str:
    """Ray's explanation, without its ids and advice."""
    if "node" in text and "died" in text and "its node has died" in text:
        return "its node has died"
    if "ray.kill" in text:
        return "it was ended by force"
    if "Worker exit type: INTENDED" in text or "exit_actor" in text:
        return "it ended itself"
    return "its process ended"
