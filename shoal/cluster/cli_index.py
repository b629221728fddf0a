"""`shoal index`: the commands about indexes. Their work is in indexes.py."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cluster.cli_options import DataDir, Output, format_of, settings_with

index_app = typer.Typer(
    help="The indexes: the writer builds, folds and verifies them by itself; here is what it knows.\n\n"
    "On call: `shoal index status`. A search is right without any index, only slower; what verification finds "
    "wrong is built anew by itself.",
    no_args_is_help=True,
)

Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="Only content_embedding, schema_embedding or content_summary; may be repeated."),
]
Timeout = Annotated[float, typer.Option(min=1, help="Wait at most so many seconds; the work goes on after that.")]


@index_app.command()
def status(output: Output = "table", data_dir: DataDir = None) -> None:
    """Each index: rows, what it covers, its training, the last build and verification, what is due and why not yet.

    Exit code 1 where verification found something or the last build failed.
    """
    from shoal.cluster.indexes import show

    raise typer.Exit(show(settings_with(data_dir=data_dir), format_of(output)))


@index_app.command()
def rebuild(column: Columns = None, timeout: Timeout = 600, output: Output = "table", data_dir: DataDir = None) -> None:
    """Train the vector indexes and build the full-text index anew, now. Writes and searches go on."""
    from shoal.cluster.indexes import request

    settings = settings_with(data_dir=data_dir)
    raise typer.Exit(request(settings, "index_rebuild", column or (), timeout, format_of(output)))


@index_app.command()
def optimize(
    column: Columns = None, timeout: Timeout = 600, output: Output = "table", data_dir: DataDir = None
) -> None:
    """Compact the tables, fold all rows into the indexes, and merge their deltas, now. Trains nothing anew."""
    from shoal.cluster.indexes import request

    settings = settings_with(data_dir=data_dir)
    raise typer.Exit(request(settings, "index_optimize", column or (), timeout, format_of(output)))
