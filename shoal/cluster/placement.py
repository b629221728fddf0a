"""Placement: on which node each actor of the crew is, who waits for room, and which nodes are about to go.

Ray's head knows, and is asked as Ray's own state API asks it: that API itself is the dashboard's, which a Ray that
`shoal up` started has none of. Nothing here decides anything (shoal.cluster.crew does).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import state as head
from ray.core.generated import gcs_pb2


@dataclass(frozen=True, slots=True)
class Place:
    """Where the actor behind `handle` is: a node's id in hex, or None while no node has room for it."""

    handle: Any
    node: str | None


@dataclass(frozen=True, slots=True)
class Placement:
    """`places`: by the actor's name, of those that Ray knows. `going`: nodes that are being drained (`ray drain-node`,
    a cloud's notice of preemption, the autoscaler): Ray places nothing on them any more."""

    places: Mapping[str, Place]
    going: frozenset[str]


def look(handles: Mapping[str, Any]) -> Placement:
    """Ask Ray's head about the actors behind these handles. Blocks; for long where the head is away."""
    accessor = head._connect_and_get_accessor()
    places = {}
    for name, handle in handles.items():
        if found := accessor.get_actor_info(handle._actor_id):
            address = gcs_pb2.ActorTableData.FromString(found).address  # type: ignore[attr-defined]  # generated
            # Before it has a worker, the node is only the one that looks for room.
            node = _hex(address.node_id) if _hex(address.worker_id) else None
            places[name] = Place(handle, node)
    return Placement(places, frozenset(head.get_draining_nodes()))


def own_node() -> str:
    """The node that this process is on; empty outside of Ray."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def _hex(found: bytes) -> str | None:
    """None for Ray's id of nothing, which is all ones."""
    return found.hex() if found.strip(b"\xff") else None
