"""The soak: very many small commits with upkeep on, questions all along, and the tables looked over at the end.

One process commits (soak_processes.py), another asks, this one watches, kills the writer in the middle of upkeep as
often as it is told, and judges. Exit codes: 0 all held, 1 something did not, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bench import tables
from bench.soak_log import Log, audit, check
from bench.soak_processes import CONTEXT, SETTLED, UPKEEP, Plan, Shared, ask, write
from bench.soak_verdict import closing, growth, judge
from bench.store_queries import Questions
from shoal.faults import DIRECTORY_VARIABLE
from shoal.store.audit import Report

MIB = 1024 * 1024
RECALL_QUERIES = 200
POLL_S = 0.05
STUCK_S = 900.0  # without a commit or a step of upkeep
DEATHS_MAX = 5  # of the writer that nobody ordered
POINTS = ("writer.compacting", "writer.folding", "writer.cleaning")
POINT_WAIT_S = 60.0  # a step that is not due by then is not waited for: nothing is looked at meanwhile
"""Moments of upkeep at which it can be killed by name; half of the kills are, half come at random in its steps."""
DESCRIPTION = """\
Commit tens of thousands of times through the real writer with its upkeep on, ask questions of every kind all along
from another process, and look over what is left: no failed query, every chunk indexed, recall held, tables equal to
the log."""
EPILOG = """\
the last line
  commits=20000 query_errors=0 coverage=1.0 recall@10=0.99 disk_factor=4.1 rss_max_mb=812 findings=0
  query_errors  failed questions, and answers that showed a chunk beside another version's metadata
  coverage      the share of chunks in every index, once upkeep has come to its end
  recall@10     of the search core against an exact scan, at the end
  disk_factor   everything on the disk over the newest version's data and indexes: the most of the second half
  rss_max_mb    the larger of the two processes, at any time
  findings      differences between the tables and the log, and what `shoal check` calls an error

cleanup keeps versions for a minute here and for an hour in service: so many commits as an hour of service has.

examples
  make soak                                     20,000 commits; half an hour on a quiet machine
  make soak ARGS='--commits 300'                half a minute: does it still hold
  make soak ARGS='--kills 50 --seed 3'          the writer is killed 50 times in its upkeep
  make soak ARGS='--save soak.json'             with the series of memory, disk and throughput
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """The state at one moment. `disk` over `data` is the factor; 0 where it could not be had."""

    at_s: float
    commits: int
    queries: int
    writer_mib: float
    asker_mib: float
    disk_mib: float
    data_mib: float

    @property
    def factor(self) -> float:
        return self.disk_mib / self.data_mib if self.data_mib else 0.0


@dataclass(slots=True)
class Watch:
    """What was seen on the way."""

    samples: list[Sample] = field(default_factory=list)
    kills: dict[str, int] = field(default_factory=dict)
    deaths: int = 0  # that nobody ordered
    cpu_s: dict[str, float] = field(default_factory=lambda: {"writer": 0.0, "asker": 0.0})


def main() -> int:
    options = _options()
    directory = Path(tempfile.mkdtemp(prefix="shoal-soak-"))
    try:
        report = run(directory, options)
    except BaseException:
        _say(f"the soak broke off; its tables are kept in {directory}")
        raise
    broken = report["broken"]
    if broken and not options.discard:
        _say(f"the tables are kept in {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    if options.save:
        options.save.write_text(json.dumps(report, indent=2) + "\n")
    if options.output == "json":
        print(json.dumps(report, indent=2))
    else:
        _show(report)
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--commits", type=int, default=20_000, metavar="N", help="(default: 20000)")
    parser.add_argument(
        "--kills", type=int, default=0, metavar="N", help="SIGKILL the writer in its upkeep (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the documents and the kills (default: 1)")
    parser.add_argument("--width", type=int, default=64, metavar="N", help="of the vectors (default: 64)")
    parser.add_argument("--pause-ms", type=float, default=100, metavar="N", help="between two questions (default: 100)")
    parser.add_argument("--cleanup-age-s", type=float, default=60, metavar="N", help="(default: 60)")
    parser.add_argument("--compact-commits", type=int, default=40, metavar="N", help="the setting (default: 40)")
    parser.add_argument("--index-rows-min", type=int, default=2_000, metavar="N", help="(default: 2000)")
    parser.add_argument("--sample-s", type=float, default=10, metavar="N", help="between two looks (default: 10)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write everything into this file (JSON)")
    parser.add_argument("--discard", action="store_true", help="remove the tables even where something did not hold")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    if options.commits < 10:
        parser.error("--commits: at least 10")
    if not 0 <= options.kills <= options.commits // 5:
        parser.error("--kills: at most a fifth of the commits")
    if options.index_rows_min < 256:
        parser.error("--index-rows-min: at least 256: no index can be trained on fewer rows")
    if options.save and not options.save.parent.is_dir():
        parser.error(f"--save: {options.save.parent} is no directory")
    return options


# --- the run ----------------------------------------------------------------------------------


def run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The whole soak in `directory`; its report, with what did not hold in `broken`."""
    plan = Plan(
        uri=str(directory / "lancedb"), commits=options.commits, seed=options.seed, width=options.width,
        cleanup_age_s=options.cleanup_age_s, compact_commits=options.compact_commits,
        index_rows_min=options.index_rows_min, pause_s=options.pause_ms / 1000,
    )  # fmt: skip
    shared = Shared(words=str(directory / "words.log"))
    began, load = time.monotonic(), os.getloadavg()[0]
    watch = _watched(plan, shared, options, directory / "faults")
    took_s = time.monotonic() - began
    _say("comparing the tables with the log")
    log = Log(plan.seed, plan.width)
    found = audit(log, plan.commits, plan.uri)
    errors = check(plan.uri, plan.index_rows_min, plan.cleanup_age_s)
    covered = tables.coverage(plan.uri)
    recall = asyncio.run(_recall(plan, log))
    size = tables.size(plan.uri)
    end = Sample(
        took_s, shared.acked.value, shared.queries.value, 0, 0, size.disk / MIB, (size.data + size.indexes) / MIB
    )
    report: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "load_before": load, "load_after": os.getloadavg()[0]},
        "plan": asdict(plan),
        "figures": _figures(watch, shared, end, covered, recall, found, errors),
        "coverage": asdict(covered),
        "size": asdict(size),
        "audit": dict(found.counts),
        "findings": [*errors, *(f"{one.kind}: {one.document_id} {one.detail}" for one in found.findings[:20])],
        "kills": watch.kills,
        "words": Path(shared.words).read_text().splitlines() if Path(shared.words).exists() else [],
        "series": [asdict(one) for one in watch.samples],
    }
    report["broken"] = judge(report["figures"])
    return report


def _figures(
    watch: Watch, shared: Shared, end: Sample, covered: tables.Coverage, recall: float, found: Report,
    errors: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    later = [one.factor for one in watch.samples if 2 * one.at_s >= end.at_s]
    return {
        "commits": end.commits,
        "took_s": end.at_s,
        "commits_per_s": end.commits / end.at_s,
        "writer_cpu_ms_per_commit": 1000 * watch.cpu_s["writer"] / max(1, end.commits),
        "upkeep_steps": shared.steps.value,
        "tried_again": shared.refused.value,
        "queries": end.queries,
        "query_errors": shared.errors.value + shared.torn.value,
        "query_cpu_ms": 1000 * watch.cpu_s["asker"] / max(1, end.queries),
        "slowest_query_ms": shared.slowest_ms.value,
        "rows": covered.rows,
        "coverage": covered.share,
        "recall@10": recall,
        "recall@10 on the way": shared.recall_sum.value / shared.recalls.value if shared.recalls.value else None,
        "disk_factor": max([*later, end.factor]),
        "disk_factor_at_the_end": end.factor,
        "disk_peak_mb": max([one.disk_mib for one in watch.samples] + [end.disk_mib]),
        "rss_max_mb": max([max(one.writer_mib, one.asker_mib) for one in watch.samples], default=0.0),
        "rss_growth_writer": growth([one.writer_mib for one in watch.samples]),
        "rss_growth_asker": growth([one.asker_mib for one in watch.samples]),
        "kills": sum(watch.kills.values()),
        "deaths": watch.deaths,
        "findings": found.differences + len(errors),
    }


async def _recall(plan: Plan, log: Log) -> float:
    vectors, texts = log.corpus.queries(RECALL_QUERIES, seed=10)
    questions = Questions(plan.uri, vectors, texts)
    await questions.open()
    try:
        return await questions.core_recall(RECALL_QUERIES)
    finally:
        await questions.close()


# --- watching ---------------------------------------------------------------------------------


def _watched(plan: Plan, shared: Shared, options: argparse.Namespace, faults: Path) -> Watch:
    """Run both processes to their end."""
    faults.mkdir()
    os.environ[DIRECTORY_VARIABLE] = str(faults)  # read when shoal.faults is imported: by the writers to come
    draw, watch, killed = random.Random(plan.seed), Watch(), set[int]()
    due = sorted(draw.sample(range(2, plan.commits - 2), options.kills))
    writer = _start(write, plan, shared)
    asker = _start(ask, plan, shared)
    began, sampled_at, told_at, moved = time.monotonic(), 0.0, 0.0, (time.monotonic(), -1)
    try:
        while shared.phase.value != SETTLED or writer.is_alive():
            writer.join(POLL_S)
            if not writer.is_alive():
                if shared.phase.value == SETTLED:
                    break
                if writer.pid not in killed:
                    watch.deaths += 1
                    _say(f"the writer died by itself, with {writer.exitcode}")
                    if watch.deaths > DEATHS_MAX:
                        raise RuntimeError(f"the writer died {watch.deaths} times: see the lines above")
                writer = _start(write, plan, shared)
            if not asker.is_alive():
                watch.deaths += 1
                _say(f"the asking process died, with {asker.exitcode}")
                if watch.deaths > DEATHS_MAX:
                    raise RuntimeError("the asking process dies over and over: see the lines above")
                asker = _start(ask, plan, shared)
            if due and shared.acked.value >= due[0]:
                by_name = draw.random() < 0.5
                name = draw.choice(POINTS) if by_name else "random"
                pid = _kill_at(faults / name, writer, shared, draw) if by_name else _kill_in_step(writer, shared, draw)
                if pid is not None:
                    killed.add(pid)
                    watch.kills[name] = watch.kills.get(name, 0) + 1
                    due.pop(0)
            now = time.monotonic()
            progress = shared.acked.value + shared.steps.value
            moved = moved if progress == moved[1] else (now, progress)
            if now - moved[0] > STUCK_S:
                raise RuntimeError(f"the writer stands still since {STUCK_S:g} s: {shared.acked.value} commits")
            _count_cpu(watch, writer, asker)
            if now - began - sampled_at >= options.sample_s:
                sampled_at = now - began
                watch.samples.append(_sample(plan, shared, sampled_at, writer, asker))
                if sampled_at - told_at >= 30 or sys.stderr.isatty():
                    told_at = sampled_at
                    _say(_progress(watch.samples, plan, shared))
        shared.stop.value = 1
        asker.join(60)
    finally:
        shared.stop.value = 1
        for process in (writer, asker):
            if process.is_alive():
                process.kill()
            process.join()
    return watch


def _start(target: Any, plan: Plan, shared: Shared) -> Any:
    process = CONTEXT.Process(target=target, args=(plan, shared), name=f"soak-{target.__name__}")
    process.start()
    return process


def _kill_at(point: Path, writer: Any, shared: Shared, draw: random.Random) -> int | None:
    """Arm a named moment and wait; the pid that it ended: the writer's, or an index build's beside it. None where the
    writer was done before."""
    point.write_text(str(draw.choice((0, 0, 5, 20, 60))))  # ms
    give_up_at = time.monotonic() + POINT_WAIT_S
    while writer.is_alive() and point.exists() and shared.phase.value != SETTLED and time.monotonic() < give_up_at:
        time.sleep(POLL_S)
    for taken in point.parent.glob(f"{point.name}.taken-*"):
        taken.unlink()
        pid = int(taken.name.rpartition("-")[2])
        if pid == writer.pid:
            writer.join()
        return pid
    point.unlink(missing_ok=True)
    return None


def _kill_in_step(writer: Any, shared: Shared, draw: random.Random) -> int | None:
    """SIGKILL the writer somewhere in a step of upkeep; its pid, or None where it was done before."""
    wait_s = draw.choice((0.0, 0.002, 0.01, 0.03, 0.1))
    while writer.is_alive() and shared.phase.value != SETTLED:
        if shared.phase.value == UPKEEP:
            time.sleep(wait_s)
            if shared.phase.value == UPKEEP:
                writer.kill()
                writer.join()
                return int(writer.pid)
        time.sleep(0.0005)
    return None


def _count_cpu(watch: Watch, writer: Any, asker: Any) -> None:
    for name, process in (("writer", writer), ("asker", asker)):
        try:
            used = psutil.Process(process.pid).cpu_times()
        except psutil.Error:
            continue
        spent = used.user + used.system + used.children_user + used.children_system
        key = f"{name} {process.pid}"
        before = watch.cpu_s.get(key, 0.0)
        watch.cpu_s[key] = max(before, spent)
        watch.cpu_s[name] += max(0.0, spent - before)


def _sample(plan: Plan, shared: Shared, at_s: float, writer: Any, asker: Any) -> Sample:
    try:
        size = tables.size(plan.uri)
        disk, data = size.disk / MIB, (size.data + size.indexes) / MIB
    except (OSError, ValueError, RuntimeError):  # not there yet, or moved on while it was looked at
        disk = data = 0.0
    return Sample(at_s, shared.acked.value, shared.queries.value, _rss_mib(writer), _rss_mib(asker), disk, data)


def _rss_mib(process: Any) -> float:
    try:
        return float(psutil.Process(process.pid).memory_info().rss) / MIB
    except psutil.Error:
        return 0.0


# --- output -----------------------------------------------------------------------------------


def _progress(samples: Sequence[Sample], plan: Plan, shared: Shared) -> str:
    last = samples[-1]
    return (
        f"{last.at_s:6.0f} s  commits {last.commits}/{plan.commits} ({last.commits / last.at_s:.1f}/s)  "
        f"queries {last.queries}, errors {shared.errors.value + shared.torn.value}  disk {last.disk_mib:.0f} MiB, "
        f"{last.factor:.1f} x  RSS writer {last.writer_mib:.0f}, asker {last.asker_mib:.0f} MiB"
    )


def _show(report: dict[str, Any]) -> None:
    figures = report["figures"]
    for name, value in figures.items():
        print(f"  {name:28} {'not measured' if value is None else f'{value:12.3f}'}")
    for name, column in (("writer", "writer_mib"), ("asker", "asker_mib")):
        series = [one[column] for one in report["series"]]
        every = max(1, len(series) // 20)
        print(f"  RSS {name:6} MiB: {' '.join(f'{one:.0f}' for one in series[::every])}")
    if report["kills"]:
        print(f"  kills: {', '.join(f'{count} {name}' for name, count in sorted(report['kills'].items()))}")
    machine = report["machine"]
    print(f"machine: {machine['cores']} cores, load {machine['load_before']:.1f} -> {machine['load_after']:.1f}")
    for line in [*report["findings"], *report["words"][:20]]:
        print(f"  {line}")
    for line in report["broken"]:
        print(f"did not hold: {line}")
    print(closing(figures))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
