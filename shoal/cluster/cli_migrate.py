"""`shoal migrate-model`: another embedding model for a collection, while it is searched and written to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cluster.cli_options import DataDir, Output, format_of, settings_with
from shoal.errors import ConfigurationError

_ONE_OF = "--to MODEL, --status, --follow, --switch, --back, --drop or --cancel"


def migrate_model(
    collection: Annotated[str, typer.Argument(help="The collection, e.g. scraper.")],
    to: Annotated[str, typer.Option("--to", help="Build beside: e.g. openai:text-embedding-3-large.")] = "",
    status: Annotated[bool, typer.Option("--status", help="What there is, and what differs.")] = False,
    switch: Annotated[bool, typer.Option("--switch", help="Catch up, compare, and move the collection.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Keep what is beside up to date, until Ctrl-C.")] = False,
    back: Annotated[bool, typer.Option("--back", help="Catch up and move back to the model before.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Remove what was left; there is no way back then.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Remove what was built and never used.")] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=0, help="Embed at most so many tokens, over all runs.", show_default=False)
    ] = None,
    max_usd: Annotated[
        float | None, typer.Option(min=0, help="The same in dollars; needs --usd-per-million.", show_default=False)
    ] = None,
    usd_per_million: Annotated[
        float | None, typer.Option(min=0, help="What the model costs per million tokens.", show_default=False)
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(help="Questions to compare the models by, one a line.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Change the embedding model of a collection with no downtime: build, compare, switch, and back if need be.

    1. `shoal migrate-model scraper --to MODEL` says what it would embed and cost, asks, and builds the collection anew
    beside itself. Shoal may run. Stop it when you like: asked again it goes on, and pays at most once more for the page
    that was in flight. Then it compares both models: how many of the first ten documents they have in common.
    2. `--switch` brings over what came since and moves the collection in one commit. Searches go on; ingest waits for
    some seconds, then goes on with the new model.
    3. `--back` does the same the other way round, as long as you have not asked for `--drop`.

    New documents go to the tables in use; the others get them from --follow, and from --switch and --back. Works at
    the tables (LANCEDB_PATH), so run it where they can be written. Exit code 1: the bound is reached, or you said no.
    """
    asked = [bool(to), status, follow, switch, back, drop, cancel]
    if sum(asked) != 1:
        raise ConfigurationError(f"migrate-model does one thing at a time: {_ONE_OF}")
    if max_usd is not None and (max_tokens is not None or not usd_per_million):
        raise ConfigurationError("--max-usd needs --usd-per-million above 0, and takes the place of --max-tokens")
    from shoal.cluster import migration_steps as steps
    from shoal.records import SCRAPER_COLLECTION

    if collection != SCRAPER_COLLECTION:
        raise ConfigurationError(f"there is no collection {collection[:60]!r}; known: {SCRAPER_COLLECTION}")
    form, settings = format_of(output), settings_with(data_dir=data_dir)

    def confirm(question: str) -> bool:
        return yes or typer.confirm(question, err=True)

    bound = max_tokens if max_usd is None else int(1e6 * max_usd / (usd_per_million or 1.0))
    if to:
        code = steps.build(settings, to, bound, usd_per_million, queries, confirm, form)
    elif status:
        code = steps.show(settings, form)
    elif follow:
        code = steps.follow(settings, bound)
    elif switch or back:
        code = steps.move(settings, confirm, form, is_back=back)
    else:
        code = steps.remove(settings, confirm, form, is_cancel=cancel)
    raise typer.Exit(code)
