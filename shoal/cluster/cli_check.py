"""`shoal check`: whether the tables are whole by themselves."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cluster.cli_options import DataDir, Output, format_of, settings_with


def check(
    show: Annotated[int, typer.Option(min=0, help="Examples shown of each finding.")] = 3,
    leaked_age: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds after which a file that nothing names has leaked; default twice cleanup_age_s."
        ),
    ] = None,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Check the tables (LANCEDB_PATH): rows, chunks, vectors, indexes, fences and files; exit code 1 on any error.

    Works with or without a running Shoal, and changes nothing. Every row is read, in batches of bounded memory.
    Warnings mend themselves and leave the exit code 0. docs/check.md says what each code means and what mends it;
    `shoal verify` compares the tables with the log.
    """
    from shoal.cluster.checking import check as run

    form = format_of(output)
    raise typer.Exit(run(settings_with(data_dir=data_dir), leaked_age_s=leaked_age, shown_max=show, form=form))
