"""What a commit and its upkeep cost, by the size of the table: where the simulation's writer has its figures from.

    python -m bench.flow.measure_writer --rows 5000 20000 80000

The real `TableWriter` with its own upkeep (bench.store_writer), documents of eight chunks on the local disk. At each
number of rows: commits as small as a quiet log makes them, then as large as `commit_rows_max`; processor time of the
commits themselves, and of each kind of upkeep, for a commit. All documents are new.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from typing import Any

from bench.store import BATCH_ROWS, CORPUS, SMALL_BATCH_ROWS
from bench.store_writer import Work, WriterProcess

COMMITS = {SMALL_BATCH_ROWS: 48, BATCH_ROWS: 8}
"""How many of each size are measured: enough that folds and compactions are due in between."""


def main() -> int:
    parser = argparse.ArgumentParser("python -m bench.flow.measure_writer", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 20_000, 80_000], metavar="N", help="chunks")
    parser.add_argument("--width", type=int, default=1536, metavar="N", help="of vectors (default: 1536)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-bench-writer-") as directory:
        writer = WriterProcess()
        try:
            writer.call("open", uri=f"{directory}/tables", width=options.width, corpus=CORPUS, settings={})
            print(json.dumps(_measure(writer, sorted(options.rows)) | {"width": options.width}, indent=2))
        finally:
            writer.close()
    return 0


def _measure(writer: WriterProcess, sizes: list[int]) -> dict[str, Any]:
    chunks, number, found = int(CORPUS["chunks"]), 0, []

    def write(rows: int, batch_rows: int) -> Work:
        nonlocal number
        documents = range(number, number + rows // chunks)
        number += len(documents)
        return writer.call("write", numbers=documents, batch=batch_rows // chunks, version=0, upkeep=True)

    for size in sizes:
        write(max(0, size - number * chunks), BATCH_ROWS)
        settled = writer.call("settle", with_vectors=False)
        builds = [span.cpu_s for span in settled.spans if span.kind == "build"]
        for batch, commits in COMMITS.items():
            rows = number * chunks
            work = write(batch * commits, batch)
            found.append({"rows": rows, "commit_rows": batch, **_by_commit(work), "settling_builds_cpu_s": builds})
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
            writer.call("settle", with_vectors=False)
    return {"cores": os.cpu_count(), "load": os.getloadavg()[0], "measured": found}


def _by_commit(work: Work) -> dict[str, Any]:
    """Milliseconds of processor time for a commit: its own, and of each kind of upkeep."""
    upkeep: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    for span in work.spans:
        upkeep[span.kind] += span.cpu_s  # type: ignore[assignment]
        steps[span.kind] += 1
    return {
        "commits": work.commits,
        "commit_cpu_ms": 1000 * (work.cpu_s - work.upkeep_cpu_s) / work.commits,
        "commit_wall_ms": 1000 * (work.took_s - work.upkeep_s) / work.commits,
        "upkeep_cpu_ms": 1000 * work.upkeep_cpu_s / work.commits,
        "step_cpu_ms": {kind: 1000 * spent / steps[kind] for kind, spent in upkeep.items()},
        "steps": dict(steps),
    }


if __name__ == "__main__":
    sys.exit(main())
