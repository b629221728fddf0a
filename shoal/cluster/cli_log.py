"""The commands about the log: `shoal verify|replay|backfill`. What they do stands in modules of their own."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from shoal.cluster.cli_options import DataDir, Output, format_of, settings_with
from shoal.errors import ConfigurationError

Rate = Annotated[float, typer.Option(min=0, help="Messages a second at most; 0: no bound.")]
InFlight = Annotated[int, typer.Option(min=1, max=100_000, help="Messages without an outcome at most.")]
Timeout = Annotated[float, typer.Option(min=1, help="Give up after this many seconds without any outcome.")]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew instead of going on with an interrupted run.")]

TIMES = "a time (2025-01-20T14:30:00Z) or an age (2h, 3d)"


def verify(
    settle: Annotated[
        float, typer.Option(min=0, help="Look at differences again after the next commit, for this many seconds.")
    ] = 30,
    from_time: Annotated[str, typer.Option(help=f"Only the log from here on: {TIMES}.")] = "",
    show: Annotated[int, typer.Option(min=0, help="How many findings to show.")] = 20,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Compare the log and the tables; exit code 1 on any difference.

    Reads beside the live system and changes nothing. What is not committed yet counts as pending, and what is older
    than the log as beyond it: neither is a difference. Each finding says how to mend it.
    """
    from shoal.cluster.verifying import verify as run

    settings, form = settings_with(data_dir=data_dir), format_of(output)
    moment = _moment("--from-time", from_time)
    from_time_ms = int(moment.timestamp() * 1000) if moment else None
    raise typer.Exit(run(settings, settle_s=settle, from_time_ms=from_time_ms, shown_max=show, form=form))


def replay(
    from_offset: Annotated[
        list[str] | None,
        typer.Option(help="TOPIC/PARTITION:OFFSET (to the end) or :FIRST-LAST; may be given several times."),
    ] = None,
    from_time: Annotated[str, typer.Option(help=f"Messages of this time and later: {TIMES}.")] = "",
    dataset: Annotated[str, typer.Option(help="Only this dataset's announcements and deletions.")] = "",
    until: Annotated[str, typer.Option(help=f"Messages before: {TIMES}.")] = "",
    topic: Annotated[list[str] | None, typer.Option(help="Only this topic; default: all with notifications.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be replayed.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when each has an outcome; print the tally.")] = False,
    rate: Rate = 200,
    in_flight: InFlight = 200,
    timeout: Timeout = 300,
    restart: Restart = False,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Send messages of the log once more, to mend rows that are missing or damaged.

    Safe at any time and in any part: a copy keeps its original's place in the order of versions and deletions, so
    nothing newer is replaced and nothing deleted comes back. Ctrl-C stops it; the same command goes on.
    """
    from shoal.cluster.replaying import Choice
    from shoal.cluster.replaying import replay as run

    form = format_of(output)
    choice = Choice(
        places=tuple(from_offset or ()), from_time=_moment("--from-time", from_time), until=_moment("--until", until),
        dataset=dataset, topics=tuple(topic or ()), said=(from_time, until),
    )  # fmt: skip
    code = run(
        settings_with(data_dir=data_dir), choice, dry_run=dry_run, wait=wait, rate=rate, in_flight_max=in_flight,
        timeout_s=timeout, restart=restart, form=form,
    )  # fmt: skip
    raise typer.Exit(code)


def backfill(
    place: Annotated[str, typer.Argument(help="s3://bucket/prefix, or a directory.", metavar="s3://...|DIR")],
    source: Annotated[str, typer.Option(help="Data source, e.g. nyiso.")],
    dataset: Annotated[str, typer.Option(help="Dataset, e.g. nyiso_load_forecast.")],
    data_type: Annotated[str, typer.Option(help="Kind of data, e.g. load_forecast.")] = "other",
    environment: Annotated[str, typer.Option(help="dev, staging or prod.")] = "prod",
    urn: Annotated[
        str, typer.Option(help="What names a document: its `path` under the place, or its `name` alone.")
    ] = "path",
    half_price: Annotated[
        bool,
        typer.Option("--half-price", help="First embed through the provider's Batch API: half the price, up to a day."),
    ] = False,
    rate: Rate = 100,
    in_flight: InFlight = 200,
    timeout: Timeout = 300,
    restart: Restart = False,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Announce everything that lies at a place already, and wait for the outcomes.

    Bounded in rate and in flight, so that live messages are not buried. Ctrl-C stops it, and the same command goes
    on where it was; the tally at the end counts everything that was listed. --half-price needs a running Shoal and a
    model with a Batch API (OpenAI's); docs/cost.md.
    """
    from shoal.cluster.backfilling import About
    from shoal.cluster.backfilling import backfill as at_full_price
    from shoal.cluster.half_price import backfill_at_half_price

    run = backfill_at_half_price if half_price else at_full_price
    about = About(dataset, source, data_type, environment, urn)
    code = run(
        settings_with(data_dir=data_dir), place, about, rate=rate, in_flight_max=in_flight, timeout_s=timeout,
        restart=restart, form=format_of(output),
    )  # fmt: skip
    raise typer.Exit(code)


def _moment(option: str, text: str) -> datetime | None:
    from datetime import UTC

    from shoal.sources.dead_letter_choice import moment

    try:
        return moment(text, datetime.now(UTC))
    except ConfigurationError as error:
        raise ConfigurationError(f"{option}: {error}") from None
