"""`shoal audit`: who asked, and who changed what."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from shoal.cluster.cli_options import DataDir, Output, format_of, settings_with
from shoal.errors import ConfigurationError


def audit(
    kind: Annotated[str, typer.Option(help="Only this kind.", metavar="change|read|refused")] = "",
    caller: Annotated[str, typer.Option(help="A key's id or name, a token's subject, or a user of this machine.")] = "",
    call: Annotated[str, typer.Option(help="A part of the call: DELETE, report_fix, /documents, keys.")] = "",
    collection: Annotated[str, typer.Option(help="Only this collection.")] = "",
    since: Annotated[str, typer.Option(help="From here on: a time (UTC) or an age (2h, 30d).")] = "7d",
    until: Annotated[str, typer.Option(help="Up to here; a date includes that day.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Entries at most.")] = 100,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Who asked and who changed what, newest first, from every replica: read from beside the tables (LANCEDB_PATH), so
    it works with or without a running Shoal.

    A change stands there before it was begun, reads and refusals some seconds after. What is kept of a request, and
    what never is (bodies, query texts, keys): docs/security.md.

    `shoal audit --kind change --call DELETE --since 30d` · `shoal audit --kind refused` · `shoal audit --caller ci`
    """
    from datetime import UTC, datetime

    from shoal.cluster.output import Format, emit_json, emit_rows, say
    from shoal.serve_apps.models import InvalidParameter
    from shoal.serve_apps.trail_search import AuditQuery, TrailSearch
    from shoal.sources.dead_letter_choice import moment

    form, now = format_of(output), datetime.now(UTC)
    first = moment(since, now)
    asked: dict[str, Any] = {
        "kind": kind, "caller": caller, "call": call, "collection": collection, "until": until, "limit": limit,
        "since": first.isoformat() if first else "",
    }  # fmt: skip
    try:
        query = AuditQuery.read(asked)
    except InvalidParameter as error:
        raise ConfigurationError(f"--{error}") from None
    found = TrailSearch(settings_with(data_dir=data_dir)).read(query, now)
    if form is Format.json:
        emit_json(found)
    else:
        columns = ("at", "kind", "via", "caller", "caller_name", "call", "collection", "status", "about")
        rows = [
            row | {"about": " ".join(f"{k}={v}" for k, v in row.get("about", {}).items())} for row in found["entries"]
        ]
        emit_rows(rows, columns)
    for warning in found["warnings"]:
        say(warning)
    if found["next_cursor"]:
        say(f"there is more: --limit, or --until {found['entries'][-1]['at']}")
