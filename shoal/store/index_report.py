"""The indexes as they are shown, by `shoal index status` and over REST: what the writer published, one row per index.

Pure; what is no state of ours is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class IndexReport:
    """`indexes`: {table, column, ...IndexRecord} each; `build`: what is built now; `requests`: those of operators."""

    at: str | None
    indexes: tuple[dict[str, Any], ...]
    build: Mapping[str, Any] | None
    requests: Mapping[str, Any]

    @property
    def wrong(self) -> tuple[dict[str, Any], ...]:
        """Those where verification found something or the last builds failed."""
        return tuple(row for row in self.indexes if row.get("failures") or _outcome(row.get("verified")) != "ok")

    def shown(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "at": self.at,
            "ok": not self.wrong,
            "indexes": list(self.indexes),
            "build": self.build,
            "requests": self.requests,
        }


def report(found: Any) -> IndexReport | None:
    """Of what the state file holds (index_state.py); None where there is none yet."""
    if not isinstance(found, Mapping):
        return None
    indexes = tuple(
        {"table": table, "column": column, **record}
        for table, columns in _mapping(found.get("tables")).items()
        for column, record in _mapping(columns).items()
        if isinstance(record, Mapping)
    )
    build = found.get("build")
    return IndexReport(
        found.get("at"), indexes, build if isinstance(build, Mapping) else None, _mapping(found.get("requests"))
    )


def _outcome(verified: Any) -> Any:
    return _mapping(verified).get("outcome", "ok")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
