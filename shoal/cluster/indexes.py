"""What `shoal index` does: show what the writer says of its indexes, and ask it for work on them.

The state is a file beside the tables, so looking needs no service. A wish is a command on the log (contracts 1.6);
the writer says in the same file how far it is, and that is what a waiting caller follows.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from shoal.cluster.draining import living
from shoal.cluster.output import Exit, Format, emit_json, emit_rows, err, say
from shoal.errors import ConfigurationError, TransientError
from shoal.records import SCRAPER_COLLECTION
from shoal.settings import Settings
from shoal.sources.commands import command_id, command_message
from shoal.sources.kafka import open_producer
from shoal.store.index_report import report
from shoal.store.index_requests import COLUMNS
from shoal.store.index_state import STATE
from shoal.store.place import current
from shoal.store.state_files import read_state

FLUSH_S = 30.0
POLL_S = 0.5
SHOWN = (
    "table", "column", "kind", "rows", "indexed", "unindexed", "deltas", "trained_rows", "last build", "verified",
    "state",
)  # fmt: skip


def show(settings: Settings, form: Format) -> int:
    """The `status` command: an exit code, FAILED where verification found something or builds fail."""
    found = _state(settings)
    if found is None:
        raise TransientError(
            f"no writer has described its indexes at {settings.tables_uri} yet: start `shoal up`, or name the "
            "tables with LANCEDB_PATH or --data-dir"
        )
    described = report(found)
    assert described is not None
    wrong = described.wrong
    if form is Format.json:
        emit_json(found)
        return Exit.FAILED if wrong else Exit.OK
    emit_rows([row | _shown(row) for row in described.indexes], SHOWN)
    say(f"as of {described.at}")
    if described.build:
        say(f"building now: {_progress(described.build)}")
    for name, request in described.requests.items():
        if request["state"] not in ("done", "failed"):
            say(f"asked for: {name} is {request['state']}")
    for row in wrong:
        last = (row["last_build"] or {}).get("outcome")
        say(f"{row['column']}: {(row['verified'] or {}).get('outcome')}; last build: {last}; {row['why']}")
    return Exit.FAILED if wrong else Exit.OK


def request(
    settings: Settings,
    kind: str,
    columns: Sequence[str],
    timeout_s: float,
    form: Format,
    *,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Ask for `kind` of `columns` (none: all) and wait until it is done: an exit code.

    Raises ConfigurationError for a column that has no such index, TransientError where nothing indexes now.
    """
    for column in columns:
        if column not in COLUMNS:
            raise ConfigurationError(f"--column {column}: choose {', '.join(COLUMNS)}")
    living(settings, "ask")
    asked = command_id()
    message = command_message(
        settings.command_topic, command_id=asked, kind=kind, collection=SCRAPER_COLLECTION,
        body={"columns": list(columns)}, actor=f"cli:{getpass.getuser()}", at=datetime.now(UTC),
    )  # fmt: skip
    producer = open_producer(settings)
    producer.send(*message)
    producer.flush(FLUSH_S)
    deadline = clock() + timeout_s
    answer: dict[str, Any] = {"state": "sent", "detail": ""}
    with err.status("waiting for the writer") as status:
        while clock() < deadline:
            found = _state(settings) or {}
            answer = found.get("requests", {}).get(asked, answer)
            if answer["state"] in ("done", "failed"):
                break
            build = found.get("build")
            status.update(f"{answer['state']}: {_progress(build)}" if build else str(answer["state"]))
            pause(POLL_S)
    if form is Format.json:
        emit_json({"command_id": asked, "state": answer["state"], "detail": answer["detail"]})
    elif answer["state"] in ("done", "failed"):
        say(f"{answer['state']}: {answer['detail']}")
    else:
        say(f"not done within {timeout_s:g} s ({answer['state']}); it goes on: `shoal index status` shows it ({asked})")
    return {"done": Exit.OK, "failed": Exit.FAILED}.get(answer["state"], Exit.TIMEOUT)


def _state(settings: Settings) -> dict[str, Any] | None:
    found = read_state(current(settings), STATE)
    return found if isinstance(found, dict) else None


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    build, verified = row["last_build"], row["verified"]
    return {
        "last build": f"{build['what']} {build['at']}, {build['took_s']:g} s" if build else None,
        "verified": f"{verified['outcome']} {verified['at']}" if verified else None,
        "state": row["why"] if row["due"] == "nothing" else f"{row['due']}: {row['why']}",
    }


def _progress(build: Mapping[str, Any]) -> str:
    said = f"{build.get('what')} {build.get('column')}"
    if not build.get("stage"):
        return said
    total = f" of {build['total']}" if build.get("total") else ""
    return f"{said}, {build['stage']} {build.get('completed', 0)}{total}"
