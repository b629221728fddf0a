"""`python -m shoal.store.recall_check`: looks whether recall must be measured, measures it, and writes `recall.json`.

A process of its own, of lowest priority and on one thread, so that it takes only what nobody else wants. It gets its
settings as a line of JSON on stdin and ends when stdin does (whoever started it has ended), or after `RUN_S_MAX`. It
writes one state file and no table. Most times there is nothing to do and it ends within a second or two.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.settings import Settings

RUN_S_MAX = 540
"""Below the least age of cleanup (600 s): its version of the tables stays whole so long."""
SINGLE_THREADED = {
    "LANCE_CPU_THREADS": "1", "LANCE_IO_THREADS": "2", "TOKIO_WORKER_THREADS": "2", "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}  # fmt: skip
UNREACHABLE = 3


def line_for(settings: Settings) -> str:
    """What the process must be told of the settings; no secret is among it."""
    told = ("recall_target", "recall_interval_s", "index_cache_bytes", "metadata_cache_bytes", "s3_endpoint_url")
    values = {name: getattr(settings, name) for name in told}
    return json.dumps(values | {"lancedb_path": settings.tables_uri}) + "\n"


def check(settings: Settings, now: datetime) -> str:
    """Measure if it is due; what was done. Raises TransientError, OSError."""
    from shoal.faults import reach
    from shoal.store.query_sample import AGE_MAX, FILE_PREFIX
    from shoal.store.recall import FILE, is_due
    from shoal.store.recall_measuring import RecallTable, measure
    from shoal.store.state_files import read_state, remove_old_states, write_state

    async def run() -> str:
        remove_old_states(settings, FILE_PREFIX, now - AGE_MAX)  # in S3 nobody else does
        last = read_state(settings, FILE)
        table = await RecallTable.open(settings)
        try:
            mark, sequence = await table.mark(), await table.commit_sequence()
        finally:
            table.close()
        if not is_due(last, mark, sequence, now, settings.recall_interval_s, settings.recall_target):
            return "not due"
        measurement = await measure(settings, now, sweep=True)
        reach("recall.measured")
        write_state(settings, FILE, measurement.to_json())
        return f"recall@{measurement.k} {measurement.chosen.recall if measurement.chosen else 1.0:.3f}"

    return asyncio.run(run())


def _end_with_parent() -> None:
    while os.read(0, 4096):  # not sys.stdin: its lock, held by a thread that waits, would break the exit
        pass
    os._exit(0)


def main() -> int:
    """Exit code 0, or 3 where the tables can't be read now."""
    os.nice(19)
    os.environ.update(SINGLE_THREADED)  # before what reads them is imported
    signal.alarm(RUN_S_MAX)  # ends the process; nothing is half written
    from shoal.errors import TransientError
    from shoal.settings import load

    settings = load(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        print(check(settings, datetime.now(UTC)))  # noqa: T201 - the answer
    except (TransientError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return UNREACHABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
