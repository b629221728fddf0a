"""Whether Shoal may start where it is told to listen: nobody should find out later that it was open to the network."""

from __future__ import annotations

from datetime import UTC, datetime

from shoal.errors import ConfigurationError
from shoal.serve_apps.guard import Policy
from shoal.serve_apps.key_store import keys_place, load_ring
from shoal.serve_apps.tokens import Tokens
from shoal.settings import Settings


def check_exposure(settings: Settings) -> None:
    """Raises ConfigurationError where others can reach it and nobody has a key; TransientError where that can't be
    told."""
    if Policy.of(settings).is_local or settings.auth == "anyone_may_do_anything":
        return
    if Tokens.of(settings) is not None:  # an identity provider says who may
        return
    place = keys_place(settings)
    ring, _ = load_ring(place)
    if ring.has_active(datetime.now(UTC)):
        return
    bound = (
        f"http_host {settings.http_host}" if not settings.ray_address else "ray_address (its Serve may listen anywhere)"
    )
    raise ConfigurationError(
        f"{bound} can be reached by others, and there is no active API key in {place.place}: make one (`shoal keys "
        "create --name NAME --scope read`), or, if really anyone who can reach it may read, change and delete "
        "everything, set SHOAL_AUTH=anyone_may_do_anything"
    )


def open_buckets(settings: Settings) -> str | None:
    """What to say where Shoal serves others and reads any bucket that its credentials open; None: all is well.

    A warning and no refusal: whoever can announce files can write to Kafka, which keys of ours do not guard, and a
    deployment that was right yesterday must start today.
    """
    if settings.allowed_buckets or Policy.of(settings).is_local:
        return None
    return (
        "any S3 bucket that Shoal's credentials open can be named by an announcement and read by whoever has a key: "
        "name those that are meant in SHOAL_ALLOWED_BUCKETS"
    )
