"""Whether a Shoal works on the tables now, told from the status beside them: no port, no address, no process id."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from shoal.errors import TransientError
from shoal.settings import Settings
from shoal.store.state_files import read_state

SILENT_S = 15.0
"""A status older than this: there is nobody to ask. The supervisor writes one every 2 s."""


def living_status(settings: Settings) -> dict[str, Any]:
    """The status of the Shoal that indexes into the tables. Raises TransientError where there is none."""
    status = read_state(settings, "status.json")
    nobody = f"no Shoal indexes into {settings.tables_uri} now"
    if not isinstance(status, dict):
        raise TransientError(nobody)
    age_s = (datetime.now(UTC) - datetime.fromisoformat(status["at"])).total_seconds()
    if age_s > SILENT_S:
        raise TransientError(f"{nobody} (its last status is {age_s:.0f} s old)")
    return status
