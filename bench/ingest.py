"""The ingest benchmark: a whole stack of its own, files published to it twice, and the same work in a straight line.

What is judged are mostly ratios of two figures of one run (see budgets.py): on a shared machine a throughput
alone says as much about the neighbours as about Shoal. Exit codes: 0 within budget, 1 over it, 2 wrong usage;
a stack that doesn't start or answer is a traceback with the end of its log.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import queries
from bench.budgets import Verdict, compare, passes, read_budgets, summary
from bench.processes import MIB, MemoryWatch, Snapshot, Tree
from shoal.cluster.samples import Sample, make_samples
from shoal.records import Outcome
from tests.fixtures.stack import Stack

ROOT = Path(__file__).parents[1]
BUDGETS = Path(__file__).with_name("budgets.toml")
WARM_UP_DOCUMENTS = 10  # enough that every fetch worker has started its extraction child
JUDGED_DOCUMENTS_MIN = 50  # below, the ratios are mostly of fixed times: the linger of a commit, a poll
STATUS_S = 60.0  # the supervisor publishes every 2 s where nothing else needs the cores
DESCRIPTION = """\
Measure the whole pipeline on this machine: a stack of its own (own data directory, own port, local model),
started, given files twice, searched, and stopped. Before and after it the same files are indexed by one process
in a straight line, without any guarantee, as the measure of what the machine can do."""
EPILOG = """\
what is printed
  start_up_s                from `shoal up` to /readyz saying `ready`
  documents_per_minute      first publication, from the first byte stored to the last durable outcome; the stack
                            was warmed up with ten other documents
  speed_vs_straight_line    throughput over that of the straight line: 1 is as fast as no guarantees at all
  cpu_vs_straight_line      CPU time of the whole stack over that of the straight line; neighbours disturb it little
  again_vs_first            time of the second publication, which changes nothing, over the first
  peak_memory_mib           PSS of all processes together, sampled every second
  stop_s                    from Ctrl-C to the end of the last process

budgets (bench/budgets.toml)
  `exact` and `ratio` budgets fail the run; `absolute` ones are of one machine and only warn, unless --strict.

examples
  make bench                                      100 generated files
  make bench ARGS='--documents 500 --strict'      a quiet machine: absolute figures count
  make bench ARGS='--data ../shared/data/scrapes' real files: a directory, with a MANIFEST.json or without
  make bench ARGS='-o json' > figures.json        progress goes to stderr
"""


def main() -> int:
    options = _options()
    directory = Path(tempfile.mkdtemp(prefix="shoal-bench-"))
    try:
        report = _run(directory, options)
    except Exception:
        _say(f"the run failed; its logs and tables are kept in {directory}")
        raise
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    shutil.rmtree(directory)
    verdicts = compare(report["figures"], read_budgets(options.budgets), strict=options.strict)
    if options.output == "json":
        print(json.dumps(report | {"verdicts": [_as_json(v) for v in verdicts], "passes": passes(verdicts)}, indent=2))
    else:
        _show(report)
        print(*(verdict.line for verdict in verdicts), sep="\n")
    print(summary(verdicts), file=sys.stderr if options.output == "json" else sys.stdout)
    return 0 if passes(verdicts) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m bench.ingest",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--documents", type=int, default=100, metavar="N", help="generated files (default: 100)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="publish this file or directory instead")
    parser.add_argument("--queries", type=int, default=200, metavar="N", help="searches, of four kinds (default: 200)")
    parser.add_argument("--budgets", type=Path, default=BUDGETS, metavar="FILE", help="other limits (TOML)")
    parser.add_argument("--strict", action="store_true", help="fail on absolute budgets too: for a quiet machine")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if options.documents < 1:
        parser.error("--documents: at least 1")
    if options.queries < 4:
        parser.error("--queries: at least 4, one of each kind")
    if options.data is not None and not options.data.exists():
        parser.error(f"--data: {options.data} does not exist")
    return options


# --- the run ----------------------------------------------------------------------------------


def _run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    began_load = os.getloadavg()[0]
    if options.data is None:
        _say(f"generating {options.documents} files")
        data = directory / "files"
        generate(data, options.documents)
    else:
        data = options.data.resolve()
    warm_up = directory / "warm-up"
    generate(warm_up, WARM_UP_DOCUMENTS, seed=7)

    _say("in a straight line, before")
    before = _straight_line(directory / "before", data)
    _say("starting the stack")
    with _started(directory) as (stack, start_up_s):
        tree = Tree(stack.pid)
        with MemoryWatch(tree) as watch:
            idle = tree.memory()
            _say("warming up")
            first_documents_s = stack.publish(str(warm_up), "--dataset", "warm_up")["took_s"]
            _say("first publication")
            first = _publication(stack, tree, data)
            _say(f"  {first['documents_per_minute']:.0f} documents a minute; second publication")
            again = _publication(stack, tree, data)
            _say("searches")
            latency = queries.measure(stack.url, options.queries)
            final = tree.memory()
            final_pss = sum(usage.pss for usage in final.values())
        _say("stopping")
        stop_s = stack.stop()
    _say("in a straight line, after")
    after = _straight_line(directory / "after", data)
    straight_took_s = (before["took_s"] + after["took_s"]) / 2
    straight_cpu_s = (before["cpu_s"] + after["cpu_s"]) / 2

    return {
        "figures": {
            "documents_per_minute": first["documents_per_minute"],
            "speed_vs_straight_line": straight_took_s / first["took_s"],
            "cpu_vs_straight_line": first["cpu_s"] / straight_cpu_s,
            "again_vs_first": again["took_s"] / first["took_s"],
            "not_accounted_for": float(first["not_accounted_for"] + again["not_accounted_for"]),
            "indexed_again": float(again["outcomes"][Outcome.INDEXED]),
            "tokens_embedded_again": float(again["tokens"]),
            "cpu_s_per_1000_documents": first["cpu_s_per_1000_documents"],
            "start_up_s": start_up_s,
            "stop_s": stop_s,
            "peak_memory_mib": max(watch.peak.total_pss, final_pss) / MIB,
            "final_memory_mib": final_pss / MIB,
            **{f"{kind}_p95_ms": times["p95_ms"] for kind, times in latency.items()},
        },
        "first_documents_s": first_documents_s,
        "first": first,
        "again": again,
        "straight_line": {"before": before, "after": after},
        "queries": latency,
        "memory_mib": _memory_table(idle, watch.peak.by_role, final),
        "machine": {"cores": os.cpu_count(), "load_before": began_load, "load_after": os.getloadavg()[0]},
    }


@contextmanager
def _started(directory: Path) -> Iterator[tuple[Stack, float]]:
    """A stack that is `ready`, and the seconds that took. It is killed where it doesn't start or the run fails."""
    stack = Stack(directory, {"SHOAL_EMBEDDING_PROVIDER": "local"})
    began = time.monotonic()
    try:
        stack.start()
        while stack.get("/readyz")["status"] != "ready":
            if time.monotonic() - began > 180:
                raise RuntimeError(f"the stack stays degraded: {stack.log()}")
            time.sleep(0.1)
        yield stack, time.monotonic() - began
    except BaseException:
        stack.kill()
        raise


def _publication(stack: Stack, tree: Tree, data: Path) -> dict[str, Any]:
    """Publish `data` and wait: its tally, times, CPU, and what the embedder was made to do."""
    tokens_before, cpu_before = _tokens(stack), tree.cpu_s()
    tally = stack.publish(str(data), timeout_s=3600)
    cpu_s = tree.cpu_s() - cpu_before
    announced, took_s = int(tally["announced"]), max(float(tally["took_s"]), 0.001)
    if not announced:
        raise RuntimeError(f"{data} holds nothing to publish")
    if announced < JUDGED_DOCUMENTS_MIN:
        _say(f"  only {announced} documents: below {JUDGED_DOCUMENTS_MIN} ratios of times say little")
    return {
        "announced": announced,
        "outcomes": tally["outcomes"],
        "not_accounted_for": announced - sum(tally["outcomes"].values()),
        "took_s": took_s,
        "documents_per_s": announced / took_s,
        "documents_per_minute": 60 * announced / took_s,
        "cpu_s": cpu_s,
        "cpu_s_per_1000_documents": 1000 * cpu_s / announced,
        "tokens": _tokens(stack) - tokens_before,
    }


def _tokens(stack: Stack) -> int:
    """Tokens that the ingest side sent to its model so far, from a status published after this call."""
    asked_at, status = time.time(), None
    while time.time() - asked_at < STATUS_S:
        status = stack.get("/api/v1/ingest")["ingest"]
        if status and status["embedder"] and datetime.fromisoformat(status["at"]).timestamp() > asked_at:
            return int(status["embedder"]["tokens"])
        time.sleep(0.2)
    known = f"the last is of {status['at']}, with problems {status['problems']}" if status else "there is none"
    raise RuntimeError(f"no ingest status with an embedder's figures within {STATUS_S:g} s; {known}")


def _straight_line(directory: Path, data: Path) -> dict[str, Any]:
    """The reference in a process of its own, with data of its own in `directory`."""
    directory.mkdir()
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    own = {"SHOAL_DATA_DIR": str(directory), "SHOAL_EMBEDDING_PROVIDER": "local", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "bench.straight_line", str(data)],
        env=keep | own,
        cwd=directory,  # not the repository: its .env is not read
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the straight line ended with {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


# --- generated files --------------------------------------------------------------------------


def generate(directory: Path, count: int, seed: int = 20250120) -> None:
    """`count` files of the demo's kinds (none broken, no repetitions), with a manifest that describes them."""
    samples = [
        sample
        for sample in make_samples(directory, count=count * 4 // 3 + 8, seed=seed)
        if sample.expect is Outcome.INDEXED
    ]
    assert len(samples) >= count, "an eighth is broken and a twelfth repeats: a third more is enough"
    rows = [_row(sample, directory.resolve()) for sample in samples[:count]]
    (directory / "MANIFEST.json").write_text(json.dumps({"files": rows}))


def _row(sample: Sample, directory: Path) -> dict[str, Any]:
    assert sample.path is not None
    return {
        "file": sample.path.relative_to(directory).as_posix(),
        "sha256": hashlib.sha256(sample.path.read_bytes()).hexdigest(),
        "dataset": sample.dataset,
        "source": sample.source,
        "data_type": sample.data_type,
        "publish_time": sample.collected_at.isoformat(),
        "content_type": sample.content_type,
        "url": sample.url,
    }


# --- output -----------------------------------------------------------------------------------


def _memory_table(idle: Snapshot, peak: Mapping[str, int], final: Snapshot) -> dict[str, dict[str, float]]:
    """MiB by role, the largest first. Roles that ended before the end have a peak only."""
    table = {}
    for name in sorted(peak, key=lambda name: -peak[name]):
        now, then = final.get(name), idle.get(name)
        table[name] = {
            "processes": now.processes if now else 0,
            "idle_pss": then.pss / MIB if then else 0.0,
            "peak_pss": peak[name] / MIB,
            "final_pss": now.pss / MIB if now else 0.0,
            "final_uss": now.uss / MIB if now else 0.0,
        }
    return table


def _show(report: dict[str, Any]) -> None:
    print("figures")
    for name, value in report["figures"].items():
        print(f"  {name:28} {value:10.2f}")
    for name in ("first", "again"):
        one = report[name]
        tally = ", ".join(f"{count} {outcome}" for outcome, count in one["outcomes"].items() if count)
        print(
            f"{name}: {one['announced']} announced ({tally}) in {one['took_s']:.1f} s, "
            f"{one['documents_per_s']:.2f} documents/s, {one['cpu_s']:.1f} CPU-s, {one['tokens']} tokens embedded"
        )
    for when, line in report["straight_line"].items():
        print(
            f"straight line, {when}: {line['documents']} documents ({line['chunks']} chunks, {line['texts_embedded']} "
            f"texts) in {line['took_s']:.1f} s (extract {line['extract_s']:.1f}, embed {line['embed_s']:.1f}, write "
            f"{line['write_s']:.1f}), {60 * line['documents'] / line['took_s']:.0f} a minute, {line['cpu_s']:.1f} CPU-s"
        )
    print(f"first {WARM_UP_DOCUMENTS} documents after the start: {report['first_documents_s']:.1f} s")
    for kind, times in report["queries"].items():
        print(f"query {kind:20} p50 {times['p50_ms']:7.1f} ms   p95 {times['p95_ms']:7.1f} ms   of {times['count']}")
    print(f"{'memory, MiB':38} {'n':>3} {'idle PSS':>9} {'peak PSS':>9} {'final PSS':>9} {'final USS':>9}")
    for name, row in report["memory_mib"].items():
        sizes = (row["idle_pss"], row["peak_pss"], row["final_pss"], row["final_uss"])
        print(f"  {name:36} {row['processes']:3} " + " ".join(f"{size:9.0f}" for size in sizes))
    machine = report["machine"]
    print(f"machine: {machine['cores']} cores, load {machine['load_before']:.1f} -> {machine['load_after']:.1f}")


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {**asdict(verdict.budget), "value": verdict.value, "status": verdict.status}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
