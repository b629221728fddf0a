"""`shoal export` and `shoal import-lancedb`: the tables out as Parquet, and tables of an earlier index in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from shoal.cluster.cli_options import DataDir, Output, format_of, settings_with
from shoal.errors import ConfigurationError


def export(
    to: Annotated[Path, typer.Option(help="Directory to make; it must not be there yet.")],
    table: Annotated[str, typer.Option(help="metadata, vectors or all.", metavar="metadata|vectors|all")] = "all",
    since: Annotated[str, typer.Option(help="Only documents indexed since: a time, or an age (2h, 3d).")] = "",
    include_superseded: Annotated[
        bool, typer.Option("--include-superseded", help="Earlier versions too (metadata only: they have no chunks).")
    ] = False,
    no_vectors: Annotated[bool, typer.Option("--no-vectors", help="Without the embeddings.")] = False,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Write the tables (LANCEDB_PATH) as Parquet files with a manifest, all of one moment.

    Works with or without a running Shoal and changes nothing in the tables. The directory appears when it is whole:
    the files, and manifest.json with versions, row counts and sha256. docs/check.md.
    """
    from datetime import UTC, datetime

    from shoal.cluster.output import Format, emit_json, emit_rows, err, say
    from shoal.sources.dead_letter_choice import moment
    from shoal.store.exporting import export as run
    from shoal.store.place import current
    from shoal.store.schemas import TableKind
    from shoal.store.writing import storage_options

    form, settings = format_of(output), settings_with(data_dir=data_dir)
    if re.match(r"\w[\w+.-]*:/", str(to)):  # what a path leaves of `s3://`
        raise ConfigurationError(f"--to {to}: a local directory is needed; copy it there afterwards")
    kinds: dict[str, tuple[TableKind, ...]] = {
        "all": ("metadata", "vectors"), "metadata": ("metadata",), "vectors": ("vectors",),
    }  # fmt: skip
    if table not in kinds:
        raise ConfigurationError(f"--table {table}: choose metadata, vectors or all")
    now = datetime.now(UTC)
    try:
        from_time = moment(since, now)
    except ConfigurationError as error:
        raise ConfigurationError(f"--since: {error}") from None
    with err.status("opening the tables") as status:
        done = run(
            current(settings).tables_uri, storage_options(settings), to, kinds=kinds[table], since=from_time,
            include_superseded=include_superseded, with_vectors=not no_vectors, now=now, progress=status.update,
        )  # fmt: skip
    if form is Format.json:
        emit_json(done.manifest)
    else:
        emit_rows(done.manifest["tables"], ("table", "file", "rows", "size_bytes", "sha256"))
        say(f"exported to {done.directory}, as of commit {done.manifest['commit_sequence']}")


def import_lancedb(
    uri: Annotated[str, typer.Argument(help="Where the earlier index is: a directory or s3://bucket/prefix.")],
    metadata_table: Annotated[str, typer.Option(help="Its metadata table.")] = "scraper_metadata",
    vectors_table: Annotated[str, typer.Option(help="Its chunk table.")] = "scraper_vectors",
    model: Annotated[
        str, typer.Option(help="What made its vectors (openai:NAME, local:NAME); needed where the rows don't say.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only read, check and count.")] = False,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Take over the LanceDB tables of an earlier index, embeddings and all: nothing is embedded anew.

    Stop Shoal first: this process is the writer while it runs. Safe to run again, also after a kill: what is there
    stays. Exit code 1 where some documents could not be taken over; they are counted and the first are named.
    docs/check.md says which columns are read.
    """
    from shoal.cluster.importing import import_lancedb as run

    form = format_of(output)
    code = run(
        settings_with(data_dir=data_dir), uri, metadata_table=metadata_table, vectors_table=vectors_table, model=model,
        dry_run=dry_run, form=form,
    )  # fmt: skip
    raise typer.Exit(code)
