"""The store's benchmark: tables of clustered vectors, written by the real writer and searched by the real core.

What is judged are mostly ratios of two figures of one run, CPU time before wall time (budgets.py says why). The
writer is a process of its own (store_writer.py), the questions are asked in this one (store_queries.py). Exit codes:
0 within budget, 1 over it, 2 wrong usage; whatever else fails is a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import tables
from bench.budgets import Verdict, compare, parse_budgets, passes, summary
from bench.corpus import Corpus
from bench.store_queries import CONCURRENCY, Latency, Questions, Sample, latency
from bench.store_writer import NEVER, Span, Work, WriterProcess

BUDGETS = Path(__file__).with_name("store_budgets.toml")
WIDTH = 1536
CORPUS = {"chunks": 8, "words": 220, "seed": 1}
BATCH_ROWS = 2_000  # the writer's commit_rows_max
SMALL_BATCH_ROWS = 96  # what a linger of 250 ms gathers of a quiet log
INDEXED_FROM = 256  # rows: so that small runs build indexes too
SAMPLES_MIN = 5  # answers during something, below which they say nothing of it
DESCRIPTION = """\
Measure the store on this machine: tables of clustered vectors written by the real writer, indexed by its own upkeep,
and searched by the real search core, in a temporary directory."""
EPILOG = """\
what is printed, for each number of rows
  upsert                 rows a second (the clock) and rows a CPU-second through the writer, upkeep included
  build                  CPU-seconds of the vector index, first at half the rows, then trained anew at all of them
  bytes per row          of the newest version's data files, of the vector index; and what lies on the disk in all
  recall@10, latency     for each (probes, refine): ten chunks against the exact scan of the same version
  queries                of the search core, ten documents: idle, during upserts, during a build, during compaction
  saturated              callers, queries a second, and what the CPU time of one query would allow on idle cores
  float16                the smallest number of rows once more, with vectors of half the width

budgets (bench/store_budgets.toml)
  `exact` and `ratio` budgets fail the run; `absolute` ones are of one machine and only warn, unless --strict.

examples
  make bench-store                               20,000 and 100,000 rows
  make bench-store ARGS=--quick                  2,000 rows: does it still work, and hold its ratios
  make bench-store ARGS='--rows 20000 --strict'  a quiet machine: absolute figures count
  make bench-store ARGS='--save figures.json'    all figures into a file; `-o json` gives them on stdout
"""


def main() -> int:
    options = _options()
    budgets = tomllib.loads(options.budgets.read_text())
    directory = Path(tempfile.mkdtemp(prefix="shoal-bench-store-"))
    load = os.getloadavg()[0]
    sizes: dict[str, Any] = {}
    smallest = min(options.rows)
    try:
        for rows in options.rows:
            sizes[str(rows)] = asyncio.run(_measure(directory, rows, "float32", options))
            if options.save:  # a run of an hour that breaks off has told something
                options.save.write_text(json.dumps({"is_whole": False, "sizes": sizes}, indent=2) + "\n")
        half = asyncio.run(_measure(directory, smallest, "float16", options))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    whole = _compared(sizes[str(smallest)]["figures"], half["figures"])
    verdicts = {name: compare(one["figures"], parse_budgets(budgets["each"]), strict=options.strict)
                for name, one in sizes.items()}  # fmt: skip
    verdicts["float16"] = compare(whole, parse_budgets(budgets["float16"]), strict=options.strict)
    report = {
        "is_whole": True,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "load_before": load, "load_after": os.getloadavg()[0]},
        "width": WIDTH,
        "sizes": sizes,
        "float16": {"rows": smallest, "against_float32": whole, **half},
        "budgets": [{"of": of, **_as_json(one)} for of, some in verdicts.items() for one in some],
    }
    if options.save:
        options.save.write_text(json.dumps(report, indent=2) + "\n")
    if options.output == "json":
        print(json.dumps(report, indent=2))
    else:
        _show(report)
    for of, some in verdicts.items():
        for verdict in some:
            if verdict.status != "ok":
                _say(f"{of}: {verdict.line}")
    everything = [one for some in verdicts.values() for one in some]
    _say(summary(everything))
    return 0 if passes(everything) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.store", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000], metavar="N",
                        help="chunks (default: 20000 100000)")  # fmt: skip
    parser.add_argument("--queries", type=int, default=100, metavar="N", help="of each kind (default: 100)")
    parser.add_argument("--quick", action="store_true", help="2,000 rows and few queries: a minute of CPU")
    parser.add_argument("--budgets", type=Path, default=BUDGETS, metavar="FILE", help="other limits (TOML)")
    parser.add_argument("--strict", action="store_true", help="fail on absolute budgets too: for a quiet machine")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write all figures into this file (JSON)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.queries = [2_000], min(options.queries, 30)
    if min(options.rows) < 2_000:
        parser.error("--rows: at least 2000: below, there is no index worth measuring")
    if options.queries < 10:
        parser.error("--queries: at least 10")
    if not options.budgets.exists():
        parser.error(f"--budgets: {options.budgets} does not exist")
    if options.save and not options.save.parent.is_dir():
        parser.error(f"--save: {options.save.parent} is no directory")
    return options


# --- the run ----------------------------------------------------------------------------------


async def _measure(directory: Path, rows: int, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one pair of tables."""
    uri = str(directory / f"{rows}-{dtype}")
    documents, batch = rows // CORPUS["chunks"], BATCH_ROWS // CORPUS["chunks"]
    half = documents * 499 // 1000  # so that all are more than twice as many: the index is trained anew
    vectors, texts = Corpus(WIDTH, **CORPUS).queries(options.queries)
    writer = WriterProcess()
    try:
        _say(f"{rows} rows of {dtype}: writing half of them")
        _open(writer, uri, dtype, NEVER)
        writes = [writer.call("write", numbers=range(half), batch=batch, version=0, upkeep=True)]
        _say("  first index")
        _open(writer, uri, dtype, INDEXED_FROM, compact_commits=2)
        writer.call("write", numbers=[0, 1], batch=1, version=1, upkeep=False)  # two commits make upkeep due
        first = writer.call("settle", with_vectors=True)
        _say("  writing the other half")
        _open(writer, uri, dtype, NEVER)
        writes.append(writer.call("write", numbers=range(half, documents), batch=batch, version=0, upkeep=True))

        questions = Questions(uri, vectors, texts)
        await questions.open()
        _say("  queries before upkeep")
        before = await questions.serial("vector", options.queries)
        _open(writer, uri, dtype, INDEXED_FROM, compact_commits=2)
        writer.call("write", numbers=[2, 3], batch=1, version=1, upkeep=False)
        _say("  queries during compaction and during a build")
        writer.begin("settle", with_vectors=True)
        during_upkeep = await questions.until(lambda: writer.is_done)
        again = writer.end()
        size, chunks_size = tables.size(uri), tables.size(uri, ("scraper_vectors",))

        _say("  recall and latency per setting")
        probed = await questions.probe(options.queries)
        exact = await questions.exact(max(10, options.queries // 5))
        recall = await questions.core_recall(options.queries)
        _say("  queries, idle")
        idle = {kind: await questions.serial(kind, options.queries) for kind in questions.kinds()}
        _say("  saturated")
        cores = os.cpu_count() or 1
        saturated = [await questions.saturated(callers, 3 * options.queries, cores) for callers in CONCURRENCY]
        _say("  queries during upserts")
        _open(writer, uri, dtype, NEVER)
        count = 8 if options.quick else 60
        few = SMALL_BATCH_ROWS // CORPUS["chunks"]
        numbers = [at // 2 if at % 2 else documents + at for at in range(count * few)]  # as many new as there already
        writer.begin("write", numbers=numbers, batch=few, version=2, upkeep=True)
        during_upserts = await questions.until(lambda: writer.is_done)
        small = writer.end()
        await questions.close()
    finally:
        writer.close()
    before_build, build = _build(first), _build(again)
    busy = {
        "build": _during(during_upkeep, again.spans, "build"),
        "compaction": _during(during_upkeep, again.spans, "compaction"),
        "upserts": latency(*during_upserts) if len(during_upserts[0]) >= SAMPLES_MIN else None,
    }
    load = _sum(writes)
    chosen = next(one for one in probed if (one.probes, one.refine) == (20, 10))
    figures: dict[str, float | None] = {
        "upsert_rows_per_s": load.rows / load.took_s,
        "upsert_rows_per_cpu_s": load.rows / load.cpu_s,
        "upsert_small_rows_per_s": small.rows / small.took_s,
        "upsert_small_commit_cpu_ms": 1000 * small.cpu_s / small.commits,
        "upkeep_share_of_cpu": load.upkeep_cpu_s / load.cpu_s,
        "build_cpu_s": build.cpu_s,
        "build_took_s": build.ended - build.began,
        "build_cpu_growth": build.cpu_s / max(0.01, before_build.cpu_s),
        "writer_peak_rss_mib": max(one.peak_rss_mib for one in (first, again, small)),
        "data_bytes_per_row": chunks_size.data / rows,
        "index_bytes_per_row": chunks_size.vector_index / rows,
        "disk_vs_data": size.disk / (size.data + size.indexes),
        "recall_at_10": recall,
        "recall_at_10_refined": chosen.recall,
        "recall_at_10_unrefined": next(one.recall for one in probed if (one.probes, one.refine) == (20, 0)),
        "index_cpu_vs_exact": chosen.latency.cpu_ms / exact.cpu_ms,
        "query_cpu_ms": idle["vector"].cpu_ms,
        "exact_scan_cpu_ms": exact.cpu_ms,
        **{f"query_{kind}_p95_ms": one.p95_ms for kind, one in idle.items()},
        **{
            f"during_{what}_vs_idle": one.p50_ms / statistics.mean((before.p50_ms, idle["vector"].p50_ms))
            if one else None
            for what, one in busy.items()
        },
        "saturated_qps": max(one.qps for one in saturated),
        "saturated_cpu_vs_one_caller": saturated[-1].cpu_ms / saturated[0].cpu_ms,
    }  # fmt: skip
    return {
        "rows": rows,
        "dtype": dtype,
        "figures": figures,
        "probed": [asdict(one) for one in probed],
        "exact": asdict(exact),
        "queries": {
            **{kind: asdict(one) for kind, one in idle.items()},
            "vector, before upkeep": asdict(before),
            **{f"vector, during {what}": asdict(one) for what, one in busy.items() if one},
        },
        "saturated": [asdict(one) for one in saturated],
        "upkeep": [{"kind": one.kind, "text": one.text, "took_s": one.ended - one.began, "cpu_s": one.cpu_s}
                   for one in (*first.spans, *again.spans)],
        "size": {**asdict(size), "chunks": asdict(chunks_size)},
    }  # fmt: skip


def _open(writer: WriterProcess, uri: str, dtype: str, index_rows_min: int, **settings: Any) -> None:
    writer.call(
        "open", uri=uri, width=WIDTH, corpus=CORPUS,
        settings={"vector_dtype": dtype, "index_rows_min": index_rows_min, "index_interval_s": 0, **settings},
    )  # fmt: skip


def _during(asked: tuple[Sequence[Sample], float], spans: Sequence[Span], kind: str) -> Latency | None:
    """The answers that began while upkeep of a kind went on; None where they are too few to say anything."""
    samples, cpu_s = asked
    inside = [
        sample
        for sample in samples
        if any(span.kind == kind and span.began <= sample.began <= span.ended for span in spans)
    ]
    return latency(inside, cpu_s * len(inside) / len(samples)) if len(inside) >= SAMPLES_MIN else None


def _build(work: Work) -> Span:
    """The training of the vector index: of all builds, in the writer or beside it, the one that took most."""
    builds = [span for span in work.spans if span.kind == "build"]
    if not builds:
        raise RuntimeError(f"no index was built; upkeep did: {[span.text for span in work.spans]}")
    return max(builds, key=lambda span: span.cpu_s)


def _sum(works: Sequence[Work]) -> Work:
    total = Work()
    for name in ("rows", "commits", "took_s", "cpu_s", "upkeep_s", "upkeep_cpu_s"):
        setattr(total, name, sum(getattr(work, name) for work in works))
    return total


_RATIOS = ("data_bytes_per_row", "index_bytes_per_row", "build_cpu_s", "recall_at_10", "recall_at_10_refined",
           "query_cpu_ms", "exact_scan_cpu_ms", "upsert_rows_per_cpu_s")  # fmt: skip


def _compared(whole: dict[str, float | None], half: dict[str, float | None]) -> dict[str, float | None]:
    """Figures of float16 over those of float32."""
    found: dict[str, float | None] = {}
    for name in _RATIOS:
        one, other = whole[name], half[name]
        found[f"{name}_vs_float32"] = other / one if one and other is not None else None
    return found


# --- output -----------------------------------------------------------------------------------


def _show(report: dict[str, Any]) -> None:
    for name, one in [*report["sizes"].items(), ("float16", report["float16"])]:
        print(f"{one['rows']} rows of {report['width']}, {one['dtype']}")
        for figure, value in one["figures"].items():
            print(f"  {figure:32} {'not measured' if value is None else f'{value:12.3f}'}")
        print("  chunks by index         recall@10     p50 ms     p95 ms     CPU ms")
        for row in one["probed"]:
            print(
                f"    probes {row['probes']:3} refine {row['refine']:3}      {row['recall']:6.3f} "
                + _times(row["latency"])
            )
        print(f"    exact                      1.000 {_times(one['exact'])}")
        print("  search core, ten documents                p50 ms     p95 ms     CPU ms")
        for kind, row in one["queries"].items():
            print(f"    {kind:26} of {row['count']:5} {_times(row)}")
        print("  callers        queries/s   by CPU alone     p95 ms     CPU ms")
        for row in one["saturated"]:
            print(f"    {row['callers']:5} {row['qps']:16.1f} {row['qps_by_cpu']:14.1f} "
                  f"{row['p95_ms']:10.1f} {row['cpu_ms']:10.2f}")  # fmt: skip
        print("  upkeep")
        for row in one["upkeep"]:
            if row["cpu_s"] >= 0.1:
                print(f"    {row['cpu_s']:8.1f} CPU-s {row['took_s']:8.1f} s  {row['text']}")
        if name == "float16":
            print("  against float32")
            for figure, value in one["against_float32"].items():
                print(f"    {figure:40} {'not measured' if value is None else f'{value:8.3f}'}")
    machine = report["machine"]
    print(f"machine: {machine['cores']} cores, load {machine['load_before']:.1f} -> {machine['load_after']:.1f}")


def _times(row: dict[str, Any]) -> str:
    return f"{row['p50_ms']:10.1f} {row['p95_ms']:10.1f} {row['cpu_ms']:10.2f}"


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {**asdict(verdict.budget), "value": verdict.value, "status": verdict.status}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
