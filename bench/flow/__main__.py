"""The flow at scale, in virtual time: where it saturates at 1, 10, 100 and 1,000 times the load, what carries it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.flow.capacity import bill, parts, plan
from bench.flow.deployment import ONE_NODE, Deployment, Load
from bench.flow.figures import FIGURES, Figures, read_figures
from bench.flow.looking import Look, calibrate, look

DOCUMENTS_PER_S, QUESTIONS_PER_S = 10.0, 5.0
TIMES = (1, 10, 100, 1_000)
TABLE_ROWS = 100_000
SIZES = (20_000, 100_000, 1_000_000, 10_000_000)
ONE_NODE_PROVIDED = replace(ONE_NODE, name="one node, with a provider", tier="tier5")
ONE_INSTALLATION = Deployment(
    "one installation on a cluster",
    partitions=32,
    readers=8,
    fetchers=24,
    flow_cores=32,
    core_cores=4,
    query_cores=16,
    tier="tier5",
    storage="s3",
    linger_s=1.0,
)
EPILOG = """\
commands
  sweep       each deployment under each load; then the deployment that arithmetic proposes, simulated too (default)
  calibrate   the run of `make bench` on real files, simulated, beside what was measured
  parts       what one of each serial part carries, by arithmetic, at several sizes of table
  figures     every figure that goes in, with its kind and its source

loads: x1 is 10 documents and 5 questions a second. Every number is of bench/flow/figures.toml or of Shoal's own code;
docs/scaling.md says what is modelled and what is not. Same seed, same numbers.

examples
  make flow
  make flow ARGS='sweep --times 100 --seed 7 -o json'
  make flow ARGS='sweep --table-rows 1000000'        larger tables: the writer's upkeep grows with them
  make flow ARGS='parts --figures my-figures.toml'   other measurements
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m bench.flow", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=("sweep", "calibrate", "parts", "figures"), default="sweep")
    parser.add_argument("--times", type=float, nargs="+", default=TIMES, metavar="K", help="loads, as factors")
    parser.add_argument(
        "--questions", type=float, default=QUESTIONS_PER_S, metavar="N", help="a second, at x1 (default: 5)"
    )
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help="measured (virtual; default: 120)")
    parser.add_argument("--warm-up", type=float, default=60.0, metavar="S", help="before that (default: 60)")
    parser.add_argument("--table-rows", type=int, default=TABLE_ROWS, metavar="N", help="chunks there are at the start")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of arrivals, documents and latencies")
    parser.add_argument("--figures", type=Path, default=FIGURES, metavar="FILE", help="other figures (TOML)")
    parser.add_argument("-o", "--output", choices=("markdown", "json"), default="markdown")
    options = parser.parse_args(arguments)
    if min(options.times) <= 0 or options.seconds <= 0:
        parser.error("--times and --seconds: above 0")
    if min(options.warm_up, options.table_rows, options.questions) < 0:
        parser.error("--warm-up, --table-rows and --questions: at least 0")
    try:
        figures = read_figures(options.figures)
    except (OSError, ValueError) as error:
        parser.error(f"--figures: {error}")
    report = COMMANDS[options.command](figures, options)
    if options.output == "json":
        print(json.dumps(report["json"], indent=2))
    else:
        print("\n".join(report["lines"]))
    return 0


def _sweep(figures: Figures, options: argparse.Namespace) -> dict[str, Any]:
    templates = [replace(one, table_rows=options.table_rows) for one in (ONE_NODE, ONE_NODE_PROVIDED, ONE_INSTALLATION)]
    looks: list[tuple[float, Look]] = []
    for times in options.times:
        load = Load(DOCUMENTS_PER_S * times, options.questions * times)
        for deployment in (*templates, plan(figures, load, templates[-1])):
            began = time.monotonic()
            found = look(
                figures, deployment, load, warm_up_s=options.warm_up, seconds=options.seconds, seed=options.seed
            )
            print(f"x{times:g}, {deployment.name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
            looks.append((times, found))
    lines = _table(
        (
            "load",
            "deployment",
            "documents/s",
            "questions/s",
            "searchable after, p50 / p95",
            "carried",
            "saturates first",
        ),
        [_row(times, one) for times, one in looks],
    )
    lines += ["", *_table(("load", "deployment", *COLUMNS), [_stage_row(*each) for each in looks])]
    carried = [(times, one) for times, one in looks if one.deployment.name == "what carries it"]
    lines += ["", *_wanted(carried), "", *_bills(figures, carried)]
    return {"lines": lines, "json": [{"times": times, **_as_json(one)} for times, one in looks]}


def _row(times: float, one: Look) -> tuple[str, ...]:
    return (
        f"x{times:g}",
        one.deployment.name,
        f"{one.documents_per_s:,.1f} of {one.announced_per_s:,.1f}",
        f"{one.questions_per_s:,.0f}",
        f"{_duration(one.latency_s[0])} / {_duration(one.latency_s[1])}",
        "yes" if one.is_carried else "no",
        one.saturates,
    )


def _stage_row(times: float, one: Look) -> tuple[str, ...]:
    found = {_column(stage.name): f"{stage.busy:.0%}, {stage.queue:,.0f}" for stage in one.stages}
    return (f"x{times:g}", one.deployment.name, *(found.get(name, "") for name in COLUMNS))


COLUMNS = ("cores", "cores of writer and embedder", "cores of queries", "readers", "extraction children", "fetch slots",
           "embedder", "model or tokens", "writer")  # fmt: skip


def _column(name: str) -> str:
    if name in ("cores of this machine", "cores of readers and fetchers"):
        return "cores"
    return "model or tokens" if name in ("local model", "tokens a minute") else name


def _wanted(carried: Sequence[tuple[float, Look]]) -> list[str]:
    def row(times: float, one: Look) -> tuple[str, ...]:
        wanted = one.deployment
        count = wanted.installations
        return (
            f"x{times:g}",
            f"{count:,}",
            f"{count * wanted.partitions:,}",
            f"{count * wanted.readers:,}",
            f"{count * wanted.fetchers:,}",
            f"{count * wanted.flow_cores:,} + {count * wanted.core_cores:,} + {count * wanted.query_cores:,}",
        )

    names = ("load", "installations (writers, pairs of tables, embedders, accounts)", "partitions", "readers",
             "fetch workers", "cores: flow + writers and embedders + queries")  # fmt: skip
    return _table(names, [row(*each) for each in carried])


def _bills(figures: Figures, carried: Sequence[tuple[float, Look]]) -> list[str]:
    def row(times: float, one: Look) -> tuple[str, ...]:
        found = bill(figures, Load(DOCUMENTS_PER_S * times), one.commits_per_s * one.deployment.installations)
        return (
            f"x{times:g}",
            f"{found.tokens_per_minute / 1e6:,.2f} M ({found.tier5_accounts:,.2f})",
            f"${found.usd_a_day:,.2f}",
            f"{found.gets_per_s:,.0f} ({found.prefixes_for_gets}) / {found.puts_per_s:,.0f}",
            f"{found.kafka_bytes_per_s / 1e6:,.2f}",
            f"{found.chunks_a_day / 1e6:,.1f} M",
            f"{found.table_bytes_a_day / 1e9:,.0f}",
            f"{found.object_bytes_a_day / 1e9:,.0f}",
        )

    names = ("load", "tokens a minute (accounts of tier 5)", "money a day", "S3 GETs (prefixes) / PUTs a second",
             "Kafka MB/s", "chunks a day", "table GB a day", "object GB a day")  # fmt: skip
    return _table(names, [row(*each) for each in carried])


def _calibrate(figures: Figures, options: argparse.Namespace) -> dict[str, Any]:
    measured, simulated = figures.value("measured_documents_per_minute"), calibrate(figures, options.seed)
    found = {"measured": measured, "simulated": simulated, "ratio": simulated / measured, "seed": options.seed}
    line = f"measured {measured:.0f} documents a minute, simulated {simulated:.0f}: {simulated / measured:.2f} times"
    return {"lines": [line], "json": found}


def _parts(figures: Figures, options: argparse.Namespace) -> dict[str, Any]:
    at = {rows: parts(figures, replace(ONE_INSTALLATION, table_rows=rows)) for rows in SIZES}
    local = [part for part in parts(figures, ONE_NODE) if part.name == "the local model"]
    others = [part for part in at[TABLE_ROWS] if not part.name.startswith("the writer")]
    writers = [part for found in at.values() for part in found if part.name.startswith("the writer")]
    rows = [(part.name, f"{part.documents_per_s:,.1f}", part.arithmetic) for part in (*local, *others, *writers)]
    return {"lines": _table(("part", "documents/s", "by"), rows), "json": rows}


def _figures(figures: Figures, _: argparse.Namespace) -> dict[str, Any]:
    rows = [(one.name, f"{one.value:g} {one.unit}", one.kind, one.source) for one in figures.figures.values()]
    return {"lines": _table(("figure", "value", "kind", "source"), rows), "json": rows}


COMMANDS: dict[str, Callable[[Figures, argparse.Namespace], dict[str, Any]]] = {
    "sweep": _sweep, "calibrate": _calibrate, "parts": _parts, "figures": _figures,
}  # fmt: skip


def _as_json(one: Look) -> dict[str, Any]:
    return {**asdict(one), "is_carried": one.is_carried, "saturates": one.saturates}


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names), *(f"| {' | '.join(row)} |" for row in rows)]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
