"""`shoal dlq`: the commands for dead letters. Their work is in dead_letters and dead_letter_replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cluster.cli_options import DataDir, Output, format_of, settings_with

if TYPE_CHECKING:
    from shoal.settings import Settings
    from shoal.sources.dead_letter_choice import Selection

dlq_app = typer.Typer(
    help="Dead letters: messages that could not be used. Look at them, mend the cause, replay.\n\n"
    "On call: `shoal dlq list --by-reason`, `shoal dlq show ID`, then `shoal dlq replay --reason R --wait`; "
    "what needs nothing more: `shoal dlq purge`. docs/dead-letters.md says what to do about each reason.",
    no_args_is_help=True,
)

Ids = Annotated[list[str] | None, typer.Argument(help="Ids from `dlq list`; instead of filters.", show_default=False)]
Reasons = Annotated[
    list[str] | None, typer.Option("--reason", help="Only this reason; may be repeated. `none`: says none.")
]
Since = Annotated[str, typer.Option("--since", help="Failed at or after: 2025-01-20T14:30:00Z, or an age: 2h, 3d.")]
Until = Annotated[str, typer.Option("--until", help="Failed before: a time or an age.")]
Topics = Annotated[list[str] | None, typer.Option("--topic", help="Only messages of this topic; may be repeated.")]
Dataset = Annotated[str, typer.Option("--dataset", help="Only this dataset.")]
Handled = Annotated[
    bool, typer.Option("--all", help="Also those that are handled: replayed, succeeded, returned, purged.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most this many; default: no limit.")]


@dlq_app.command("list")
def list_(
    reason: Reasons = None,
    since: Since = "",
    until: Until = "",
    topic: Topics = None,
    dataset: Dataset = "",
    handled: Handled = False,
    by_reason: Annotated[bool, typer.Option("--by-reason", help="Count them by topic, reason and state.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Rows; the newest.")] = 50,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """List what failed and why, newest first. Open ones, unless --all."""
    from shoal.cluster.dead_letters import show_list

    settings, form = settings_with(data_dir=data_dir), format_of(output)
    wanted = _selection(
        settings, reasons=reason, since=since, until=until, topics=topic, dataset=dataset, handled=handled
    )
    raise typer.Exit(show_list(settings, wanted, limit=limit, by_reason=by_reason, form=form))


@dlq_app.command()
def show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="An id from `dlq list`.")],
    full: Annotated[bool, typer.Option("--full", help="The whole value, however long.")] = False,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Show one dead letter: why it failed, its headers, its value. Secrets are redacted."""
    from shoal.cluster.dead_letters import show_one

    form = format_of(output)
    raise typer.Exit(show_one(settings_with(data_dir=data_dir), id_, full=full, form=form))


@dlq_app.command()
def replay(
    ids: Ids = None,
    reason: Reasons = None,
    since: Since = "",
    until: Until = "",
    topic: Topics = None,
    dataset: Dataset = "",
    handled: Handled = False,
    limit: Limit = None,
    replays_max: Annotated[
        int, typer.Option("--replays-max", min=1, help="Leave out what was replayed this often already.")
    ] = 5,
    dry_run: DryRun = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when each has ended; tell how many returned.")] = False,
    timeout: Annotated[
        float, typer.Option(help="With --wait: give up after this many seconds without progress.")
    ] = 300,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Send the messages to their topics again, as they were. Mend the cause first.

    A replay twice is harmless: what is indexed already is not indexed again. What fails again comes back as a new
    dead letter with its count raised. Exit code 1: some came back, or could not be sent.
    """
    from shoal.cluster.dead_letter_replay import replay as replay_letters

    settings, form = settings_with(data_dir=data_dir), format_of(output)
    wanted = _selection(
        settings, ids=ids, reasons=reason, since=since, until=until, topics=topic, dataset=dataset, handled=handled
    )
    code = replay_letters(
        settings, wanted, limit=limit, replays_max=replays_max, dry_run=dry_run, wait=wait, timeout_s=timeout, form=form
    )
    raise typer.Exit(code)


@dlq_app.command()
def purge(
    ids: Ids = None,
    reason: Reasons = None,
    since: Since = "",
    until: Until = "",
    topic: Topics = None,
    dataset: Dataset = "",
    handled: Handled = False,
    limit: Limit = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Mark as handled what needs nothing more. Deletes nothing: the topic's retention does, in its time."""
    from shoal.cluster.dead_letters import purge as purge_letters

    settings, form = settings_with(data_dir=data_dir), format_of(output)
    wanted = _selection(
        settings, ids=ids, reasons=reason, since=since, until=until, topics=topic, dataset=dataset, handled=handled
    )
    code = purge_letters(
        settings, wanted, limit=limit, confirm=lambda text: yes or _confirmed(text), dry_run=dry_run, form=form
    )
    raise typer.Exit(code)


def _confirmed(text: str) -> bool:
    import sys

    from shoal.errors import ConfigurationError

    if not sys.stdin.isatty():
        raise ConfigurationError("purge asks before it marks anything, and there is nobody to ask here: add --yes")
    return typer.confirm(text, err=True)


def _selection(settings: Settings, **options: Any) -> Selection:
    from datetime import UTC, datetime

    from shoal.cluster.dead_letters import selection

    return selection(settings, datetime.now(UTC), **{name: value for name, value in options.items() if value})
