"""What is known of the indexes, for people: `{tables}/_shoal/index.json` (contracts 5), written by the table writer.

Nothing depends on it but the memory of how many vectors an index was trained on; without the file that is estimated
from the index. A store that can't take it now gets the next one: upkeep goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from shoal.errors import ShoalError
from shoal.settings import Settings
from shoal.store.state_files import read_state, write_state

log = logging.getLogger("shoal.store")

STATE = "index.json"
FINISHED_MAX = 20
"""Requests remembered after they ended: for whoever asks late."""


@dataclass(slots=True)
class IndexRecord:
    """One index. Times are RFC 3339. `training` names the training by its centroids, so that it is known again."""

    kind: str | None = None
    rows: int = 0
    indexed: int = 0
    unindexed: int = 0
    deltas: int = 0
    size_bytes: int = 0
    partitions: int | None = None
    training: str | None = None
    trained_rows: int | None = None
    trained_at: str | None = None
    due: str = "nothing"
    why: str = ""
    last_build: dict[str, Any] | None = None  # {what, at, took_s, cpu_s, outcome}
    failures: int = 0
    verified: dict[str, Any] | None = None  # {after, at, outcome}


@dataclass(slots=True)
class IndexState:
    """The whole. `tables` maps kind of table -> column -> record; `build` is what a child does now; `requests` are
    those of operators, the unfinished and the last finished."""

    settings: Settings
    tables: dict[str, dict[str, IndexRecord]] = field(default_factory=dict)
    build: dict[str, Any] | None = None
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    _written: Any = None

    def record(self, kind: str, column: str) -> IndexRecord:
        return self.tables.setdefault(kind, {}).setdefault(column, IndexRecord())

    def restore(self) -> None:
        """Take what an earlier writer knew. What is no state of ours counts as none."""
        try:
            found = read_state(self.settings, STATE)
        except (ShoalError, OSError) as error:
            log.warning("%s can't be read, training sizes are estimated: %s", STATE, error)
            return
        if not isinstance(found, Mapping):
            return
        for kind, columns in _mapping(found.get("tables")).items():
            for column, values in _mapping(columns).items():
                known = {name: value for name, value in _mapping(values).items() if name in IndexRecord.__slots__}
                record = self.tables.setdefault(str(kind), {})[str(column)] = IndexRecord(**known)
                if not isinstance(record.trained_rows, int):
                    record.trained_rows = None
        for name, value in _mapping(found.get("requests")).items():
            if isinstance(value, Mapping) and "state" in value:
                self.requests[str(name)] = dict(value)
        self.build = dict(_mapping(found.get("build"))) or None

    def finish(self, request: str, state: str, detail: str, now: datetime) -> None:
        """How a request ended."""
        self.requests.pop(request, None)
        self.requests[request] = {"state": state, "detail": detail, "at": stamp(now)}
        ended = [name for name, value in self.requests.items() if value["state"] in ("done", "failed")]
        for name in ended[:-FINISHED_MAX]:
            del self.requests[name]

    def publish(self, now: datetime) -> None:
        """Write it where anything changed."""
        value = {
            "tables": {
                kind: {column: asdict(record) for column, record in columns.items()}
                for kind, columns in self.tables.items()
            },
            "build": self.build, "requests": self.requests,
        }  # fmt: skip
        if value == self._written:
            return
        try:
            write_state(self.settings, STATE, {"at": stamp(now), **value})
        except (ShoalError, OSError) as error:
            log.warning("%s could not be written: %s", STATE, error)
        else:
            # Copied: records change in place.
            self._written = value | {"build": self.build and dict(self.build), "requests": _copied(self.requests)}


def stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: Any) -> datetime | None:
    """What `stamp` wrote; None for anything else."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None


def _copied(values: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: dict(value) for name, value in values.items()}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
