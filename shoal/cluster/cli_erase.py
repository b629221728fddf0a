"""`shoal erase`: delete documents for good, and prove it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from shoal.cluster.cli_options import DataDir, Output, format_of, settings_with

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Ids of documents.", show_default=False)]


def erase(
    ids: Ids = None,
    dataset: Annotated[str, typer.Option(help="All documents of this dataset instead.")] = "",
    before: Annotated[
        str, typer.Option(help="With --dataset: only documents last collected before this time, or so long ago (90d).")
    ] = "",
    now: Annotated[
        bool, typer.Option("--now", help="Also drop all kept states (as_of) and rewrite every file that holds them.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds to wait; default 120, with --now 1200.", show_default=False)
    ] = None,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Erase documents: out of the tables, their history, older versions and the embedding cache; and show the proof.

    Deletes through the log of the running service, waits until that is applied, then looks into every version of
    the tables and says what it found, and what Shoal can't erase (stored files, Kafka's topics, backups). Without
    --now older states hold them until they are dropped by age; the answer says when. With --now the writer drops
    all older states (as_of knows nothing from before), rewrites and, ten minutes later, cleans: docs/erasure.md.
    Exit code 1: something is still there; 4: not finished in time. Safe to repeat.
    """
    from shoal.cluster.erasing import erase as run
    from shoal.sources.dead_letter_choice import moment

    form = format_of(output)
    code = run(
        settings_with(data_dir=data_dir),
        ids or [],
        dataset=dataset,
        before=moment(before, datetime.now(UTC)),
        now=now,
        timeout_s=timeout or (1200 if now else 120),
        confirm=lambda question: yes or typer.confirm(question, err=True),
        form=form,
    )
    raise typer.Exit(code)
