"""`make load`: fill a Shoal, start it as its user would, ask it as many people do while files come in, and report.

Three looks, each by Locust: people who think for a second; callers who ask again at once (saturation); the first again
while the vector index is built anew. And, before the service starts, the search core alone in process, as the measure
of what this machine can give. The load generator runs on the same cores. Files are announced all along at a steady
rate, and each must have its outcome in the end. Exit codes: 0 within budget, 1 over it, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from bench.budgets import compare, passes, read_budgets, summary
from bench.processes import Tree
from loadtests.core import throughput
from loadtests.feeding import ingesting
from loadtests.fill import fill
from loadtests.looks import Figures, Look, read_rows, read_stages, spent
from loadtests.texts import questions
from shoal.errors import TransientError
from shoal.settings import Settings
from shoal.store.recall import FILE as RECALL_FILE
from shoal.store.recall import tuning_of
from shoal.store.state_files import read_state
from tests.fixtures.stack import Stack

ROOT = Path(__file__).parents[1]
BUDGETS = Path(__file__).with_name("budgets.toml")
SETTLED_S = 1200.0
CORE_S = 20.0
SATURATING = 32
"""Callers; four times what the search core takes at once, so that it is never idle."""
EPILOG = """\
what is measured (figures of the report, and of loadtests/budgets.toml)
  thinking.*      --users who wait a second between questions
  saturated.*     32 callers who ask again at once
  rebuilding.*    as thinking, while the vector index is built anew
  core_qps        questions a second by the search core in process
  ingest.*        the files announced meanwhile
Each look is a table: by kind of question the mean milliseconds of each stage, as the service tells them
(Server-Timing; `outside` is what it does not see), and the cores that each process used.

examples
  make load                                           100,000 documents, 100 users: half an hour on two cores
  make load ARGS='--documents 2000 --users 5 --seconds 10'   a try
  make load ARGS='--keep /tmp/load'                   keep the filled tables there for the next run
  make load ARGS='--looks saturated --seconds 60'     one look only; its neighbours' budgets are not judged
"""


def main() -> int:
    options = _options()
    directory: Path = options.keep.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    figures, looks = run(directory, options)
    budgets = [each for each in read_budgets(options.budgets) if _is_of(each.figure, options.looks)]
    verdicts = compare(figures, budgets, strict=options.strict)
    report = directory / "report.json"
    told = {
        "figures": figures,
        "stages_ms": {name: look.stages_ms for name, look in looks.items()},
        "cpu_s": {name: look.cpu_s for name, look in looks.items()},
        "verdicts": [verdict.line for verdict in verdicts],
    }
    report.write_text(json.dumps(told, indent=2))
    for name, look in looks.items():
        print(f"\n{name}", *look.lines(), sep="\n")
    print()
    for name, value in figures.items():
        print(f"{name:32} {'-' if value is None else f'{value:.5g}'}")
    print(*(verdict.line for verdict in verdicts), sep="\n")
    print(f"plots: {directory}/*.html; figures: {report}", file=sys.stderr)
    print(summary(verdicts))
    return 0 if passes(verdicts) else 1


def _is_of(figure: str, looks: list[str]) -> bool:
    """Whether a budget is of what was looked at."""
    return (figure.partition(".")[0] if "." in figure else figure.partition("_")[0]) in (*looks, "ingest")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m loadtests.run", description=(__doc__ or "").partition("\n\n")[2], epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--documents", type=int, default=100_000, metavar="N")
    parser.add_argument("--users", type=int, default=100, metavar="N")
    parser.add_argument("--seconds", type=int, default=120, metavar="S", help="of each look")
    parser.add_argument("--files-per-minute", type=int, default=300, metavar="N", help="announced meanwhile")
    parser.add_argument(
        "--keep", type=Path, default=ROOT / ".load", metavar="DIR", help="where it works (default: .load)"
    )
    parser.add_argument(
        "--set", action="append", default=[], type=_setting, metavar="NAME=VALUE", help="a setting of Shoal's"
    )
    parser.add_argument("--looks", nargs="+", default=list(LOOKS), choices=LOOKS, metavar="LOOK")
    parser.add_argument("--budgets", type=Path, default=BUDGETS, metavar="FILE")
    parser.add_argument("--strict", action="store_true", help="fail on absolute budgets too: for a quiet machine")
    options = parser.parse_args()
    if min(options.documents, options.users, options.seconds, options.files_per_minute) < 1:
        parser.error("numbers are above 0")
    return options


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.startswith("SHOAL_"):
        raise argparse.ArgumentTypeError(f"{text!r} is not SHOAL_NAME=VALUE")
    return name, value


LOOKS = ("thinking", "saturated", "rebuilding")


def run(directory: Path, options: argparse.Namespace) -> tuple[Figures, dict[str, Look]]:
    """The figures, and what each look saw."""
    environment = {"SHOAL_EMBEDDING_PROVIDER": "local", **dict(options.set)}
    settings = Settings(data_dir=directory / "data", embedding_provider="local")
    _fill(directory, settings, options.documents)
    figures: Figures = {"documents": float(options.documents)}
    if options.documents >= settings.index_rows_min and not (directory / "settled").exists():
        with Stack(directory, environment) as stack:
            _say("waiting for the index and the first measuring of recall")
            _settled(stack, settings)
        (directory / "settled").touch()
    _say("the search core alone")
    figures["core_qps"] = asyncio.run(throughput(settings, min(CORE_S, options.seconds), options.documents))
    looks: dict[str, Look] = {}
    # As many files as the longest look may need.
    files = int(options.files_per_minute / 60 * (options.seconds + 60) * len(options.looks) * 2)
    with Stack(directory, environment) as stack:
        _warm(stack, questions()[: max(1, options.documents // 20)])
        with ingesting(settings, files, options.files_per_minute) as feed:
            for name in options.looks:
                look = LOOKERS[name](stack, directory, options, figures)
                looks[name] = look
                figures |= look.figures(name)
        figures |= feed.figures()
    qps, core = figures.get("saturated.qps"), figures["core_qps"]
    figures["saturated_vs_core"] = qps / core if qps and core else None
    return figures, looks


def _thinking(stack: Stack, directory: Path, options: argparse.Namespace, _: Figures) -> Look:
    _say(f"{options.users} users who think for a second")
    return _look(stack, directory, "thinking", options.users, 1.0, options)


def _saturated(stack: Stack, directory: Path, options: argparse.Namespace, _: Figures) -> Look:
    _say(f"{SATURATING} callers who ask again at once")
    return _look(stack, directory, "saturated", SATURATING, 0.0, options)


def _while_rebuilding(stack: Stack, directory: Path, options: argparse.Namespace, figures: Figures) -> Look:
    _say(f"{options.users} users who think for a second, while the index is built anew")
    with _rebuilding(stack) as builds:
        look = _look(stack, directory, "rebuilding", options.users, 1.0, options)
    figures["rebuilding.builds"] = float(len(builds))
    figures["rebuilding.build_s"] = max(builds, default=None)
    return look


LOOKERS = dict(zip(LOOKS, (_thinking, _saturated, _while_rebuilding), strict=True))


def _fill(directory: Path, settings: Settings, documents: int) -> None:
    """Once for a directory: a run of the same size finds it filled."""
    mark = directory / "filled.json"
    if mark.exists():
        found = json.loads(mark.read_text())["documents"]
        if found != documents:
            sys.exit(f"{directory} was filled with {found} documents: delete it, or choose another with --keep")
        return
    if (directory / "data").exists():
        sys.exit(f"{directory} holds half a filling: delete it")
    began = time.monotonic()
    fill(settings, documents, lambda done: _say(f"  filled {done} of {documents}"))
    mark.write_text(json.dumps({"documents": documents, "took_s": time.monotonic() - began}))


def _settled(stack: Stack, settings: Settings) -> None:
    """Until no build is due or under way, and the settings of searches are those that were measured to hold."""
    deadline = time.monotonic() + SETTLED_S
    told: object = None
    while time.monotonic() < deadline:
        told = stack.get("/api/v1/collections/scraper/index")
        due = [index for index in told["indexes"] if index["due"] != "nothing"]
        if told["indexes"] and not due and not told["build"] and _is_tuned(settings):
            return
        time.sleep(2.0)
    raise RuntimeError(f"not settled within {SETTLED_S:.0f} s: {told}\n{stack.log()}")


def _is_tuned(settings: Settings) -> bool:
    try:
        return tuning_of(read_state(settings, RECALL_FILE)) is not None
    except TransientError:
        return False


def _warm(stack: Stack, known: list[str]) -> None:
    """What people asked yesterday is known (in a try only some of it); the embedder is loaded."""
    deadline = time.monotonic() + 60
    while stack.get("/readyz")["status"] != "ready":
        if time.monotonic() > deadline:
            raise RuntimeError(f"the query embedder does not answer: {stack.log()}")
        time.sleep(0.2)
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        for text in known:
            client.get("/api/v1/scrapes/search", params={"query": text, "limit": 1}).raise_for_status()


def _look(stack: Stack, directory: Path, name: str, users: int, wait_s: float, options: argparse.Namespace) -> Look:
    """Locust, in a process of its own."""
    stages = directory / f"{name}_stages.json"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ, "SHOAL_LOAD_WAIT_S": str(wait_s), "SHOAL_LOAD_DOCUMENTS": str(options.documents),
        "SHOAL_LOAD_STAGES": str(stages), "SHOAL_LOAD_SEED": str(time.time_ns()), "PYTHONPATH": path,
    }  # fmt: skip
    command = [
        sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("users.py")), "--headless",
        "--host", stack.url, "-u", str(users), "-r", str(max(1, users // 5)), "-t", f"{options.seconds}s",
        "--reset-stats", "--csv", str(directory / name), "--html", str(directory / f"{name}.html"), "--only-summary",
        "--exit-code-on-error", "0", "--stop-timeout", "10",
    ]  # fmt: skip
    tree, began = Tree(stack.pid), time.monotonic()
    before, own = tree.cpu_by_role_s(), _children_cpu_s()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=options.seconds + 180)
    if done.returncode:
        raise RuntimeError(f"locust ended with {done.returncode}: {done.stderr[-2000:]}")
    (directory / f"{name}.log").write_text(done.stdout + done.stderr)
    used = spent(before, tree.cpu_by_role_s()) | {"locust": _children_cpu_s() - own}
    rows = read_rows(directory / f"{name}_stats.csv")
    return Look(rows, read_stages(stages), used, time.monotonic() - began)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def _rebuilding(stack: Stack) -> Iterator[list[float]]:
    """Builds the vector index anew, again and again; gives how long each took."""
    took: list[float] = []
    ended = threading.Event()

    def build() -> None:
        while not ended.is_set():
            began = time.monotonic()
            done = stack.run("index", "rebuild", "--column", "content_embedding", timeout_s=SETTLED_S)
            if done.returncode:
                _say(f"  a rebuild failed: {done.stderr[-500:]}")
                return
            took.append(time.monotonic() - began)

    thread = threading.Thread(target=build, name="rebuilding", daemon=True)
    thread.start()
    try:
        yield took
    finally:
        ended.set()
        thread.join(SETTLED_S)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
