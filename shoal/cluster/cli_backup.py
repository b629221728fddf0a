"""`shoal backup` and `shoal restore`: the tables at one moment, to another place and back."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cluster.cli_options import DataDir, Output, format_of, settings_with


def backup(
    to: Annotated[str, typer.Argument(help="An empty place: a directory or s3://bucket/prefix.")],
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Copy the tables (LANCEDB_PATH) with their indexes, the API keys (hashes) and the audit trail.

    Works while Shoal runs and changes nothing of it. The copy is of one moment between two batches; its backup.json
    comes last, so a place without that file holds no backup. `LANCEDB_PATH=PLACE shoal check` looks it over. Not in it:
    the messages in Kafka and the scraped objects. docs/backup.md.
    """
    from shoal.cluster.backups import back_up
    from shoal.cluster.output import Format, emit_json, emit_rows, err, say

    form, settings = format_of(output), settings_with(data_dir=data_dir)
    with err.status("opening the tables") as status:
        manifest = back_up(settings, to, status.update)
    if form is Format.json:
        emit_json(manifest)
    else:
        emit_rows(manifest["tables"], ("table", "rows", "size_bytes", "version"))
        say(f"backed up to {to}, as of commit {manifest['commit_sequence']}")


def restore(
    from_: Annotated[str, typer.Argument(metavar="FROM", help="Where `shoal backup` copied to.")],
    keep_offsets: Annotated[
        bool, typer.Option("--keep-offsets", help="Leave the consumer group where it is: nothing is read again.")
    ] = False,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Put a backup into the place of the tables (LANCEDB_PATH), which must be empty; then start Shoal.

    Searches answer as they did at the backup, without anything embedded or indexed anew. The consumer group is set back
    to how far the backup is, so that what was announced since is read again, as far as the log still has it. The Shoal
    that wrote the old tables must be stopped: with members in the group it is refused. docs/backup.md has the steps.
    """
    from dataclasses import asdict

    from shoal.cluster.backups import restore as run
    from shoal.cluster.output import Format, emit_json, emit_rows, err, say

    form, settings = format_of(output), settings_with(data_dir=data_dir)
    with err.status("opening the backup") as status:
        done = run(settings, from_, status.update, keep_offsets=keep_offsets)
    if form is Format.json:
        emit_json(done.manifest | {"rewound": [asdict(one) for one in done.rewound]})
        return
    emit_rows(done.manifest["tables"], ("table", "rows", "size_bytes", "version"))
    say(f"restored to {settings.tables_uri}, as of commit {done.manifest['commit_sequence']}")
    if done.rewound:
        again = sum(one.was - one.to for one in done.rewound if one.was is not None)
        say(f"{again} messages of {len(done.rewound)} partitions will be read again")
    if gone := sum(one.gone for one in done.rewound):
        say(f"{gone} messages that it lacks are gone from the log by its retention: `shoal backfill` brings objects")
    if settings.is_embedded:
        say("the embedded broker does not feed what was done again: `shoal backfill` brings what came since the backup")
    say("look it over with `shoal check`, then `shoal up`")
