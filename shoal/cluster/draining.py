"""Draining on request: `shoal drain` asks, the supervisor does it, and both need only the tables' place.

The request is a small file beside the tables, `{tables}/_shoal/drain.json`, and the answer stands in the status:
no port, no Ray address and no process id, so that it works from another machine, a container's preStop hook, or
beside the service. A request names the life of the service that it is for, so it neither outlives that service
nor is forgotten when the supervisor itself is restarted in the middle of it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.cluster.living import living_status
from shoal.errors import TransientError
from shoal.settings import Settings
from shoal.store.state_files import read_state, write_state

REQUEST = "drain.json"
POLL_S = 0.5
NOTICE_S = 15.0
"""How long a living supervisor may take to begin, and to say that it has ended."""
JOIN_NOTICE_S = 8.0
"""How much later than a node the head may ask, where both were told to go at once: its `shoal drain` has to start."""


@dataclass(frozen=True, slots=True)
class Request:
    """A wish to drain."""

    id: str
    timeout_s: float


@dataclass(slots=True)
class Drain:
    """A drain under way or done, as the status shows it."""

    id: str
    state: str = "draining"  # then drained
    left: dict[str, int] = field(default_factory=dict)  # actor -> messages that did not end in time

    def shown(self) -> dict[str, Any]:
        return {"id": self.id, "state": self.state, "left": self.left}


def wanted(settings: Settings, life: str) -> Request | None:
    """The request that stands for this life of the service. Raises TransientError."""
    found = read_state(settings, REQUEST)
    if not isinstance(found, Mapping) or found.get("life") != life:
        return None
    return Request(str(found.get("id")), float(found.get("timeout_s", settings.drain_s)))


def request_drain(
    settings: Settings,
    timeout_s: float,
    *,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Ask, and wait until it is done: {state, left}. `state` is `draining` where it did not end in time.

    Raises TransientError where no supervisor has written a status lately, or the store does not answer.
    """
    status = living(settings)
    life, under_way = str(status.get("life", "")), status.get("drain")
    if under_way:  # asked for already: one drain is enough
        request_id = under_way["id"]
    else:
        request_id = uuid.uuid4().hex
        write_state(settings, REQUEST, {"id": request_id, "life": life, "timeout_s": timeout_s})
    deadline = clock() + timeout_s + NOTICE_S
    while clock() < deadline:
        status = living(settings)
        if status.get("life") != life:
            raise TransientError("the service was restarted while it drained: ask again")
        drain = status.get("drain")
        if drain and drain["id"] == request_id and drain["state"] == "drained":
            return {"state": "drained", "left": drain["left"]}
        pause(POLL_S)
    in_flight = {reader["name"]: reader["in_flight_items"] for reader in status.get("readers") or ()}
    return {"state": "draining", "left": {name: count for name, count in in_flight.items() if count}}


def join_drain(
    settings: Settings,
    timeout_s: float,
    *,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Ask for nothing, and wait for a drain that another has asked for: {state, left}; `state` is `none` where nobody
    has within `JOIN_NOTICE_S`, `draining` where it did not end in time.

    One node of several may go alone: whoever asked for a drain then would stop all of ingest. Where all go at once, the
    head asks, and the nodes that the work is on must live until it is done. Raises TransientError."""
    began = clock()
    life = str(living(settings).get("life", ""))
    while clock() - began < timeout_s + NOTICE_S:
        status = living(settings)
        if status.get("life") != life:
            return {"state": "none", "left": {}}  # a new service: it is not this one's end
        drain = status.get("drain")
        if drain and drain["state"] == "drained":
            return {"state": "drained", "left": drain["left"]}
        if not drain and wanted(settings, life) is None and clock() - began >= JOIN_NOTICE_S:
            return {"state": "none", "left": {}}
        pause(POLL_S)
    return {"state": "draining", "left": {}}


def living(settings: Settings, wish: str = "drain") -> dict[str, Any]:
    """The status of the service that indexes into these tables. Raises TransientError where there is none."""
    try:
        return living_status(settings)
    except TransientError as error:
        raise TransientError(f"{error}: there is nothing to {wish}") from None
