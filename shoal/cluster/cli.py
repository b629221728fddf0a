"""The command line; `shoal --help` lists the commands.

Each command's work lives in a module of its own, imported when the command runs: the help imports neither
Ray nor LanceDB. Data goes to stdout, diagnostics to stderr; exit codes are those of `output.Exit`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal import __version__
from shoal.cluster.cli_dead_letters import dlq_app
from shoal.cluster.cli_index import index_app
from shoal.cluster.cli_options import DataDir, Output, format_of, settings_with
from shoal.errors import ConfigurationError, ShoalError, TransientError

if TYPE_CHECKING:
    from shoal.client import Shoal

EPILOG = (
    "Exit codes: 0 ok; 1 the answer is no (a check failed, a tally does not add up); 2 wrong arguments or settings; "
    "3 the service, broker or store can't be reached; 4 not finished within --timeout; 130 interrupted. "
    "Settings: `shoal config show`, docs/settings.md."
)

app = typer.Typer(
    name="shoal",
    help="Announced on Kafka, searchable in seconds. `shoal demo` shows it; `shoal up` runs it.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="The settings in force.", no_args_is_help=True)
app.add_typer(config_app, name="config")

Url = Annotated[str, typer.Option("--url", envvar="SHOAL_URL", help="Where Shoal runs; empty: here.")]
Port = Annotated[int | None, typer.Option("--port", help="Port of REST and MCP (SHOAL_HTTP_PORT).")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"shoal {__version__}")
        raise typer.Exit


@app.command()
def up(data_dir: DataDir = None, port: Port = None) -> None:
    """Run the service here until Ctrl-C: broker (unless KAFKA_BROKERS is set), ingest, REST and MCP."""
    from shoal.cluster.serving import serve_until_stopped

    serve_until_stopped(settings_with(data_dir=data_dir, http_port=port))


@app.command()
def demo(
    leave: Annotated[
        bool, typer.Option("--exit", help="End after the tour; 0 only if every file is accounted for.")
    ] = False,
    count: Annotated[int, typer.Option(min=20, max=5000, help="How many sample scrapes to make.")] = 300,
    port: Port = None,
) -> None:
    """The tour: start everything, index a few hundred sample scrapes, ask questions over REST and MCP.

    Uses its own data directory, the embedded broker and the local model: it never spends money.
    """
    from shoal.cluster.demo import tour

    raise typer.Exit(tour(settings_with(http_port=port), count=count, stay=not leave))


@app.command()
def publish(
    paths: Annotated[list[Path], typer.Argument(help="Files, directories, or a directory with a MANIFEST.json.")],
    source: Annotated[str, typer.Option(help="Data source; default: the directory's name.")] = "",
    dataset: Annotated[str, typer.Option(help="Dataset; default: the directory's name.")] = "",
    data_type: Annotated[str, typer.Option(help="Kind of data, e.g. load_forecast.")] = "",
    environment: Annotated[str, typer.Option(help="dev, staging or prod.")] = "prod",
    to: Annotated[str, typer.Option(help="s3://bucket/prefix to upload to; default: the local object directory.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return when each has an outcome; print the tally.")] = False,
    timeout: Annotated[
        float, typer.Option(help="With --wait: give up after this many seconds without progress.")
    ] = 300,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Announce files on Kafka so that they are indexed."""
    from shoal.cluster.announcing import publish_paths

    form = format_of(output)
    code = publish_paths(
        settings_with(data_dir=data_dir), paths, source=source, dataset=dataset, data_type=data_type,
        environment=environment, to=to, wait=wait, timeout_s=timeout, form=form,
    )  # fmt: skip
    raise typer.Exit(code)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for; empty: newest first.")] = "",
    source: Annotated[str, typer.Option(help="Only this data source.")] = "",
    data_type: Annotated[str, typer.Option(help="Only this kind of data.")] = "",
    dataset: Annotated[str, typer.Option(help="Only this dataset.")] = "",
    start: Annotated[str, typer.Option(help="Collected on or after (date or time).")] = "",
    end: Annotated[str, typer.Option(help="Collected until (a date includes its day).")] = "",
    file_hash: Annotated[str, typer.Option("--hash", help="sha256 of the file.")] = "",
    mode: Annotated[str, typer.Option(help="vector, keyword or hybrid.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most 200 of the general search.")] = 10,
    as_of: Annotated[str, typer.Option("--as-of", help="The index as it was at a time (UTC), or at a commit.")] = "",
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="column=value, =a,b, =begin*, =null, !=, >=, <, or a JSON tree; repeatable."),
    ] = None,
    facets: Annotated[str, typer.Option(help="Count the values of these columns, comma-separated.")] = "",
    explain: Annotated[bool, typer.Option("--explain", help="Say why each result stands where it does.")] = False,
    rerank: Annotated[bool, typer.Option("--rerank", help="Let the configured reranker order the best.")] = False,
    output: Output = "table",
    url: Url = "",
) -> None:
    """Search the index of a running Shoal.

    With --filter, --facets, --explain or --rerank it is the general search, by meaning and words unless --mode says
    otherwise: `shoal search "wind speed" --filter year=2025 --facets dataset,file_format --explain`.
    """
    from shoal.cluster.searching import general, show

    form = format_of(output)
    asked: dict[str, Any] = {
        "query": query, "data_source": source, "data_type": data_type, "dataset": dataset, "start_date": start,
        "end_date": end, "hash": file_hash, "mode": mode, "limit": limit,
        "as_of": as_of,
    }  # fmt: skip
    if filters or facets or explain or rerank:
        body = general(asked, filters or [], facets, explain=explain, rerank=rerank)
        show(_client(url).search_collection(**body), form)
        return
    show(_client(url).search(**{name: value for name, value in asked.items() if value}), form)


@app.command()
def status(
    seconds: Annotated[float | None, typer.Argument(help="With --watch: how often, in seconds; default 2.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until Ctrl-C.")] = False,
    output: Output = "table",
    url: Url = "",
) -> None:
    """The truth about the flow: how it is, what is wrong and what to do; lag, in flight, oldest, rates, dead letters.

    Exit code 0 only where health is ok (`shoal status >/dev/null || page-somebody`). `--watch` outlives a service
    that is down, prints a block per interval where stdout is no terminal (with -o json: a line), and ends by Ctrl-C
    with 0. docs/status.md says of each field what to do when it is bad.
    """
    from shoal.cluster.asking import show_status

    form = format_of(output)
    client = _client(url)
    if seconds is not None and not watch:
        raise ConfigurationError("SECONDS belongs to --watch: shoal status --watch 5")
    if not watch:
        raise typer.Exit(show_status(client.ingest(), form))
    from shoal.cluster.live import INTERVAL_S, INTERVAL_S_MIN
    from shoal.cluster.live import watch as watch_status

    raise typer.Exit(watch_status(client.ingest, max(INTERVAL_S_MIN, seconds or INTERVAL_S), form))


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(help="A file.")],
    source: Annotated[str, typer.Option(help="Data source it would be announced with.")] = "unknown",
    data_type: Annotated[str, typer.Option(help="Kind of data it would be announced with.")] = "other",
    dataset: Annotated[str, typer.Option(help="Dataset; default: the directory's name.")] = "",
    output: Output = "table",
) -> None:
    """Show what would be extracted, chunked and embedded, without doing it."""
    from shoal.cluster.asking import show_explanation
    from shoal.cluster.explaining import explain as explain_file

    form = format_of(output)
    raise typer.Exit(show_explanation(explain_file(file, settings_with(), source, data_type, dataset), form))


@app.command()
def doctor(output: Output = "table", data_dir: DataDir = None) -> None:
    """Check this machine and the settings; each finding says what to do."""
    from shoal.cluster.asking import show_findings
    from shoal.cluster.doctor import examine

    form = format_of(output)
    raise typer.Exit(show_findings(list(examine(settings_with(data_dir=data_dir))), form))


@config_app.command("show")
def config_show(output: Output = "table") -> None:
    """Every setting: its value, where it comes from, how to set it. Secrets are not shown."""
    from shoal.cluster.configuration import rows
    from shoal.cluster.output import emit_json, emit_rows

    form = format_of(output)
    found = rows(settings_with())
    if form == "json":
        emit_json(found)
    else:
        emit_rows(found, ("name", "value", "from", "set by", "meaning"), fold=True)


from shoal.cluster.cli_drain import drain  # noqa: E402 - light: a command of its own

app.command()(drain)

from shoal.cluster import cli_log  # noqa: E402 - light: commands of their own
from shoal.cluster.cli_recall import recall  # noqa: E402 - light: a command of its own

app.command()(recall)

for _command in (cli_log.verify, cli_log.replay, cli_log.backfill):
    app.command()(_command)

from shoal.cluster import cli_check, cli_tables  # noqa: E402 - light: the tables by themselves

app.command()(cli_check.check)
app.command()(cli_tables.export)
app.command()(cli_tables.import_lancedb)

from shoal.cluster import cli_backup  # noqa: E402 - light: commands of their own

app.command()(cli_backup.backup)
app.command()(cli_backup.restore)


from shoal.cluster.cli_support import support_bundle  # noqa: E402 - light: a command of its own

app.command()(support_bundle)

from shoal.cluster.cli_eval import evaluate  # noqa: E402 - light: a command of its own

app.command("eval")(evaluate)

from shoal.cluster.cli_erase import erase  # noqa: E402 - light: a command of its own

app.command()(erase)


from shoal.cluster.cli_cost import cost_app  # noqa: E402 - light: commands of their own

app.add_typer(cost_app, name="cost")
from shoal.cluster.cli_migrate import migrate_model  # noqa: E402 - light: a command of its own

app.command("migrate-model")(migrate_model)

from shoal.cluster.cli_keys import keys_app  # noqa: E402 - light: commands of their own

app.add_typer(keys_app, name="keys")

from shoal.cluster.cli_audit import audit  # noqa: E402 - light: a command of its own

app.command()(audit)
from shoal.cluster.cli_mcp import mcp  # noqa: E402 - light: a command of its own

app.command("mcp")(mcp)

from shoal.cluster.cli_deploy import deploy  # noqa: E402 - light: a command of its own

app.command()(deploy)

app.add_typer(dlq_app, name="dlq")
app.add_typer(index_app, name="index")


def _client(url: str) -> Shoal:
    from shoal.client import Shoal

    settings = settings_with()
    if not url:
        host = "127.0.0.1" if settings.http_host in ("0.0.0.0", "::") else settings.http_host  # noqa: S104
        url = f"http://{host}:{settings.http_port}"
    return Shoal(url, settings.api_key.get_secret_value() if settings.api_key else None)


def main() -> None:
    """Entry point: every error of ours is one line on stderr and an exit code, never a traceback."""
    from shoal.cluster.output import Exit, say

    try:
        app()
    except ConfigurationError as error:
        say(f"shoal: {error}")
        sys.exit(Exit.USAGE)
    except TransientError as error:
        say(f"shoal: {error}")
        sys.exit(Exit.UNREACHABLE)
    except ShoalError as error:
        say(f"shoal: {error}")
        sys.exit(Exit.FAILED)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
