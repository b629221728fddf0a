"""`shoal recall`: how much of the exact answer searches by vector find, measured now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cluster.cli_options import DataDir, Output, format_of, settings_with

if TYPE_CHECKING:
    from shoal.store.recall import Measurement, Rung


def recall(
    queries: Annotated[
        int, typer.Option(min=1, max=1000, help="Questions: recent real ones, filled up with made ones.")
    ] = 64,
    k: Annotated[int, typer.Option("--k", min=1, max=1000, help="How many nearest chunks are compared.")] = 10,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Measure recall now: searches by index against the exact answer; exit code 1 where it is below the target.

    Read-only, at the tables (LANCEDB_PATH, SHOAL_DATA_DIR), with or without a running Shoal. The setting in force is
    marked; then settings are tried from cheap to costly until one holds SHOAL_RECALL_TARGET. A running Shoal does the
    same by itself and takes the cheapest that holds. It reads every vector once: some seconds for 100,000 chunks.
    """
    import asyncio
    from datetime import UTC, datetime

    from shoal.cluster.output import Exit, Format, emit_json, say

    form, settings = format_of(output), settings_with(data_dir=data_dir)
    from shoal.store.place import current
    from shoal.store.recall_measuring import measure

    settings = current(settings)
    found = asyncio.run(measure(settings, datetime.now(UTC), queries=queries, k=k))
    below = found.before is not None and found.before.recall < found.target
    if form is Format.json:
        emit_json(found.to_json())
    elif found.index is None:
        say(f"there is no vector index at {settings.tables_uri}: every search is exact, recall is 1")
    else:
        _show(found, below=below)
    raise typer.Exit(Exit.FAILED if below else Exit.OK)


def _show(found: Measurement, *, below: bool) -> None:
    from shoal.cluster.output import emit_rows, say

    name = f"recall@{found.k}"
    rows = [
        {
            "nprobes": "all" if rung.setting.nprobes is None else rung.setting.nprobes,
            "refine": rung.setting.refine,
            name: f"{rung.recall:.3f}",
            "ms p50": rung.ms_p50,
            "": _note(rung, found),
        }
        for rung in found.rungs
    ]
    emit_rows(rows, ("nprobes", "refine", name, "ms p50", ""))
    assert found.index is not None
    parts = f" in {found.index.partitions} partitions" if found.index.partitions else ""
    say(f"{found.real} real and {found.made} made questions, {found.index.indexed_rows} rows indexed{parts}")
    if found.alarm:
        say(f"{found.alarm}. The index no longer fits the vectors: `shoal index rebuild` trains it anew")
    elif below:
        say(f"{name} is below {found.target:g} now; a running Shoal takes up the setting that holds by itself")


def _note(rung: Rung, found: Measurement) -> str:
    best = "cheapest that holds" if rung.recall >= found.target else "the best there is"
    notes = (["in force"] if rung == found.before else []) + ([best] if rung == found.chosen else [])
    return ", ".join(notes)
