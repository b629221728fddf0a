"""How fresh an answer is: what the tables hold, how far behind the log that is, and what no index covers yet.

The lag is the supervisor's, read from where it publishes it. That read may be slow (an object store), so no query
waits for it: it is made beside the queries, at most every `STATUS_READ_S`, and a status too old to believe counts
as none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from shoal.errors import ShoalError
from shoal.serve_apps.flow import STATUS_AGE_S_MAX, age_s
from shoal.store.reading import Freshness

STATUS_READ_S = 2.0
"""The supervisor publishes as often; reading more would tell nothing new."""
FIRST_READ_WAIT_S = 0.25
"""The first answer of a process waits so long for the first status; later ones never."""


class Lag:
    """What is known of the lag. One per process, used from its event loop; `read_status` may block."""

    def __init__(self, read_status: Callable[[], Any | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._read_status = read_status
        self._clock = clock
        self._status: Any | None = None
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def now(self) -> dict[str, Any]:
        """{lag_records, lag_s}: behind the log, None where it is not known; begins another read where due."""
        if self._clock() - self._read_at > STATUS_READ_S and self._reading is None:
            self._reading = asyncio.ensure_future(self._read())
            if self._read_at == float("-inf"):
                await asyncio.wait({self._reading}, timeout=FIRST_READ_WAIT_S)
        age = age_s(self._status, datetime.now(UTC))
        totals = self._status.get("totals") if isinstance(self._status, Mapping) else None
        if age is None or age > STATUS_AGE_S_MAX or not isinstance(totals, Mapping):
            return {"lag_records": None, "lag_s": None}
        return {"lag_records": totals.get("lag_records"), "lag_s": totals.get("lag_s")}

    async def _read(self) -> None:
        try:
            self._status = await asyncio.to_thread(self._read_status)
        except ShoalError:
            self._status = None
        finally:
            self._read_at, self._reading = self._clock(), None


def freshness_of(
    freshness: Freshness, unindexed_rows: Mapping[str, int | None], lag: Mapping[str, Any]
) -> dict[str, Any]:
    """The freshness of an answer. `wait_token` names the commit it was read at: who hands it to another search reads
    no older state. `unindexed_rows`: rows that each search scans beside the index (they are found all the same)."""
    return {
        "indexed_through": freshness.committed_at,
        "wait_token": str(freshness.commit_sequence),
        **lag,
        "unindexed_rows": unindexed_rows,
    }
