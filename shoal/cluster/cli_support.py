"""`shoal support-bundle`: what one needs for a bug report."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from shoal.cluster.cli_options import DataDir, settings_with


def support_bundle(
    to: Annotated[
        Path | None, typer.Option("--to", help="The file to write (.tar.gz); a name with the time, here, by default.")
    ] = None,
    url: Annotated[str, typer.Option("--url", envvar="SHOAL_URL", help="Where Shoal runs; empty: here.")] = "",
    data_dir: DataDir = None,
) -> None:
    """Gather versions, settings, findings, status, indexes, metrics, a check and recent logs into one .tar.gz.

    Secrets are taken out: those that the settings and the environment hold wherever they stand, others by their name
    and shape. No text of a document and no question is in it; ids and addresses of documents may be. Works with or
    without a running Shoal; what could not be had stands in missing.txt. Look it over before you send it. The check
    reads every row, for up to two minutes.
    """
    from shoal.cluster.output import Exit, err, say
    from shoal.cluster.support_bundle import bundle, default_name

    settings = settings_with(data_dir=data_dir)
    now = datetime.now(UTC)
    place = to or Path(default_name(now))
    try:
        with err.status("gathering") as status:
            missing = bundle(settings, place, url or f"http://127.0.0.1:{settings.http_port}", now, status.update)
    except FileExistsError:
        say(f"{place} is there already: name another file with --to")
        raise typer.Exit(Exit.USAGE) from None
    except OSError as error:
        say(f"{place} can't be written: {error.strerror}")
        raise typer.Exit(Exit.USAGE) from None
    for line in missing:
        say(f"not in it: {line}")
    typer.echo(place)
