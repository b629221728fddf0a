"""The tools that say what there is and how it goes: list_collections and ingest_status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastmcp import FastMCP
from fastmcp.tools import ToolResult

from shoal.mcp.asking import READ, ServiceProtocol, answer, asked
from shoal.mcp.cleaning import clean, pick
from shoal.mcp.results import Collection, Collections, IngestStatus, QuietFeed, Reason

COLLECTIONS_MAX = 50
QUIET_MAX = 8
REASONS_MAX = 8
_DEAD_MAX = 15
_COLLECTION = tuple(name for name in Collection.model_fields if name != "contents")


def add_overview(server: FastMCP, service: ServiceProtocol) -> None:
    """Registers the two tools."""

    @server.tool(title="List collections", annotations=READ, output_schema=Collections.model_json_schema())
    async def list_collections() -> ToolResult:
        """What can be searched: each collection with its size, how fresh it is, and its commonest sources and formats.

        Use it first where you don't know what Shoal holds.
        """
        found = await asked(service.collections())
        cut = (
            [f"{len(found) - COLLECTIONS_MAX} more collections are not listed"] if len(found) > COLLECTIONS_MAX else []
        )
        return answer(Collections(collections=[collection_of(one) for one in found[:COLLECTIONS_MAX]], warnings=cut))

    @server.tool(title="How indexing goes", annotations=READ, output_schema=IngestStatus.model_json_schema())
    async def ingest_status() -> ToolResult:
        """Whether what was announced is searchable yet: lag, health with reasons, feeds that went quiet, dead letters.

        Use it when a file that should be there is not found, or before you trust that a search saw the latest.
        """
        return answer(status_of(await asked(service.ingest_status())))


def collection_of(row: Mapping[str, Any]) -> Collection:
    contents = row.get("contents") or {}
    shown = {
        clean(str(column), 60): {clean(str(value), 60): count for value, count in [*values.items()][:8]}
        for column, values in contents.items()
    }
    return Collection(**pick(row, _COLLECTION), contents=shown or None)


def status_of(body: Mapping[str, Any]) -> IngestStatus:
    """The compact truth of what REST tells at length."""
    ingest = _mapping(body.get("ingest"))
    totals, tables, feeds = _mapping(ingest.get("totals")), _mapping(body.get("tables")), _mapping(body.get("feeds"))
    reasons = [pick(_mapping(reason), tuple(Reason.model_fields)) for reason in body.get("reasons") or ()]
    quiet = [feed for feed in feeds.get("listed") or () if _mapping(feed).get("overdue")]
    dead = {clean(str(reason), 60): count for reason, count in _mapping(totals.get("dead_letters")).items() if count}
    committed = pick({"indexed_through": tables.get("committed_at")}, ("indexed_through",))
    return IngestStatus(
        health=str(body.get("health", "unknown")),
        reasons=[Reason(**reason) for reason in reasons[:REASONS_MAX]],
        status_age_s=body.get("age_s"),
        feeds=feeds.get("total"),
        feeds_overdue=feeds.get("overdue"),
        quiet=[QuietFeed(**pick(feed, tuple(QuietFeed.model_fields))) for feed in quiet[:QUIET_MAX]],
        dead_letters=dict([*dead.items()][:_DEAD_MAX]) or None,
        warnings=_texts(body.get("warnings") or ()),
        **{name: totals.get(name) for name in ("lag_records", "lag_s", "in_flight_items")},
        **{name: tables.get(name) for name in ("documents", "chunks")},
        **committed,
    )


def _texts(warnings: Sequence[Any]) -> list[str]:
    return [clean(str(warning), 300) for warning in warnings][:5]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
