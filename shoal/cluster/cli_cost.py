"""`shoal cost`: what embedding has cost, and what something would cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from shoal.cluster.cli_options import DataDir, settings_with
from shoal.errors import ConfigurationError

cost_app = typer.Typer(help="What embedding has cost; `shoal cost estimate`: what something would cost.")

CostOutput = Annotated[str, typer.Option("-o", "--output", help="table, json or csv.", metavar="table|json|csv")]
COUNTS = ("usd", "tokens", "requests", "texts", "failed_requests", "failed_tokens", "unpriced_tokens")


@cost_app.callback(invoke_without_command=True)
def cost(
    context: typer.Context,
    by: Annotated[
        str, typer.Option(help="Group by: day, month, collection, source, dataset, model, lane; several by commas.")
    ] = "day",
    since: Annotated[str, typer.Option(help="First day (UTC): 2025-01-20, or an age: 7d, 2w. Default: 30 days.")] = "",
    until: Annotated[str, typer.Option(help="Last day (UTC), or an age. Default: today.")] = "",
    collection: Annotated[str, typer.Option(help="Only this collection.")] = "",
    source: Annotated[str, typer.Option(help="Only this data source.")] = "",
    dataset: Annotated[str, typer.Option(help="Only this dataset.")] = "",
    model: Annotated[str, typer.Option(help="Only this model.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Rows at most; the rest is in the total.")] = 1000,
    output: CostOutput = "table",
    data_dir: DataDir = None,
) -> None:
    """What embedding has cost: tokens and money by day, source, dataset, model and more, from the ledger.

    Reads the table shoal_spend (LANCEDB_PATH), with or without a running Shoal: `shoal cost --by source,dataset
    --since 7d`. Money follows from the price table, which SHOAL_PRICES can replace; tokens without a price are told. A
    request that failed counts its tokens apart: it is not billed. docs/cost.md.
    """
    if context.invoked_subcommand is not None:
        return
    from datetime import UTC, datetime

    from shoal.serve_apps.cost import CostQuery, Costs
    from shoal.serve_apps.models import InvalidParameter

    if output not in ("table", "json", "csv"):
        raise ConfigurationError(f"-o {output}: choose table, json or csv")
    settings, now = settings_with(data_dir=data_dir), datetime.now(UTC)
    given = {
        "by": by, "since": _day(since, now), "until": _day(until, now), "collection": collection,
        "data_source": source, "dataset": dataset, "model": model, "limit": limit,
    }  # fmt: skip
    try:
        asked = CostQuery.read(given)
    except InvalidParameter as error:
        raise ConfigurationError(f"--{error.parameter}: {error.message}") from None
    costs = Costs(settings)
    try:
        _show(costs.read(asked, now), output)
    finally:
        costs.close()


@cost_app.command()
def estimate(
    path: Annotated[str, typer.Option(help="Of what a backfill would take: s3://bucket/prefix or a directory.")] = "",
    collection: Annotated[str, typer.Option(help="Of embedding this collection anew: scraper.")] = "",
    to: Annotated[
        str, typer.Option(help="By this model, e.g. openai:text-embedding-3-large; default: the one in use.")
    ] = "",
    sample: Annotated[
        int, typer.Option(min=1, max=10_000, help="Objects of each kind (chunks: 10 times as many).")
    ] = 40,
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.", metavar="table|json")] = "table",
    data_dir: DataDir = None,
) -> None:
    """Tokens, money and hours before a backfill or a change of model; nothing is embedded, nothing is paid.

    `shoal cost estimate --path s3://bucket/prefix` lists all and reads a random --sample of each kind of file, as
    ingest would; `shoal cost estimate --collection scraper --to openai:text-embedding-3-large` counts a sample of the
    chunks as that model counts. The interval holds in 19 of 20 cases. Hours are at the limits of the settings; of a
    local model, at the speed measured here.
    """
    from shoal.cluster.cli_options import format_of
    from shoal.cluster.estimating import estimate_collection, estimate_path
    from shoal.cluster.output import Format, emit_json, err
    from shoal.embeddings.models import default_model_name
    from shoal.store.place import current
    from shoal.store.writing import collection_model, storage_options

    if bool(path) == bool(collection):
        raise ConfigurationError("name one of the two: --path PLACE, or --collection NAME")
    form, settings = format_of(output), current(settings_with(data_dir=data_dir))
    options = storage_options(settings)
    stored = collection_model(settings.tables_uri, options, collection or "scraper")
    model = to or (stored[0] if stored is not None else default_model_name(settings))
    with err.status("counting") as status:
        if path:
            found = estimate_path(path, settings, model, sample=sample, say=status.update)
        else:
            found = estimate_collection(settings.tables_uri, options, collection, settings, model, sample=10 * sample)
    if form is Format.json:
        emit_json(found)
    else:
        _show_estimate(found)


def _show_estimate(found: dict[str, Any]) -> None:
    from shoal.cluster.output import emit_pairs, emit_rows, say

    if "kinds" in found:
        emit_rows(found["kinds"], ("kind", "objects", "bytes", "sampled", "refused", "tokens"))
        say("")
    heading: tuple[str, ...] = ("place", "collection", "from", "objects", "chunks", "model")
    pairs: dict[str, Any] = {name: found[name] for name in heading if name in found}
    for name, form in (
        ("texts", "{:,.0f}"), ("tokens", "{:,.0f}"), ("usd", "${:,.2f}"), ("usd_by_batch_api", "${:,.2f}"),
        ("hours", "{:,.2f}"),
    ):  # fmt: skip
        figures = found[name]
        if figures is None:
            pairs[name] = "unknown" if name != "usd_by_batch_api" else None
            continue
        low, high = form.format(figures["low"]), form.format(figures["high"])
        pairs[name] = form.format(figures["estimate"]) + (f"  ({low} to {high})" if low != high else "")
    pairs["limits"] = found["limits"]
    emit_pairs({name: value for name, value in pairs.items() if value is not None})
    for note in found["notes"]:
        say(note)


def _day(text: str, now: object) -> str:
    """An age (7d) as a day; anything else is left to the query's own check."""
    import re
    from datetime import datetime

    from shoal.sources.dead_letter_choice import moment

    assert isinstance(now, datetime)
    if not re.fullmatch(r"\s*\d+[smhdw]\s*", text):
        return text
    found = moment(text, now)
    return found.date().isoformat() if found is not None else text


def _show(report: dict[str, Any], output: str) -> None:
    import csv
    import sys

    from shoal.cluster.output import emit_json, emit_rows, say
    from shoal.redaction import printable

    rows, by, total = report["rows"], report["by"], report["total"]
    if output == "json":
        emit_json(report)
        return
    if output == "csv":
        lines = csv.writer(sys.stdout, lineterminator="\n")
        lines.writerow([*by, *COUNTS])
        for row in rows:
            lines.writerow([*(_inert(printable(row[name])) for name in by), *(row[name] for name in COUNTS)])
    else:
        shown = [{**row, "usd": _usd(row["usd"]), **{name: row[name] or "(none)" for name in by}} for row in rows]
        whole = {**total, "usd": _usd(total["usd"]), by[0]: "total"}
        columns = [name for name in COUNTS if name in ("usd", "tokens", "requests", "texts") or total[name]]
        emit_rows([*shown, whole], (*by, *columns))
    for warning in report["warnings"]:
        say(warning)
    budget = report["budget"]
    for name in ("day", "month"):
        if budget[f"limit_{name}_usd"]:
            say(f"budget of this {name}: ${budget[f'spent_{name}_usd']:.2f} of ${budget[f'limit_{name}_usd']:.2f}")
    through = report["recorded_through"]
    say(f"as recorded through {through:%Y-%m-%d %H:%M:%S} UTC" if through else "nothing is recorded of these days")


def _usd(value: object) -> str:
    return "?" if value is None else f"{value:.4f}"


def _inert(text: str) -> str:
    """A name that a spreadsheet would take for a formula, as text."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
