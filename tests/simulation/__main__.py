"""`python -m tests.simulation --seeds 5000` or `--seed N --trace`."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from multiprocessing.connection import wait
from typing import Any

from tests.simulation.breakages import BREAKAGES, break_one
from tests.simulation.scenario import NOT_HERE, PER_CALL, PER_MINUTE, SEEN_OTHERWISE, Result, run


def required() -> list[str]:
    """Every kind of fault that a large run must have met."""
    per_call = [name for name in PER_CALL if not name.endswith(NOT_HERE)]
    return [*per_call, *PER_MINUTE, *SEEN_OTHERWISE]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay one seed")
    parser.add_argument("--trace", action="store_true", help="print every step of it")
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds (default 200)")
    parser.add_argument("--first", type=int, default=1, help="the first of them (default 1)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (default 2)")
    parser.add_argument("--failures", type=int, default=5, help="stop after so many failing seeds (default 5)")
    parser.add_argument("--coverage", action="store_true", help="fail where a kind of fault never happened")
    parser.add_argument("--break", dest="broken", choices=sorted(BREAKAGES), help="take one line of defence away")
    parser.add_argument("--prove", action="store_true", help="take each away: which seed notices, of --seeds?")
    asked = parser.parse_args()
    seeds = range(asked.first, asked.first + asked.seeds)
    if asked.prove:
        return prove(seeds, asked.jobs)
    if asked.seed is not None:
        break_one(asked.broken)
        result = run(asked.seed, trace=asked.trace)
        print(f"seed={result.seed} digest={result.digest} steps={result.steps} simulated_s={result.simulated_s:.1f}")
        if result.failure:
            print(result.failure)
        return 1 if result.failure else 0
    if asked.jobs == 1:
        break_one(asked.broken)
        return report(map(run, seeds), asked.failures, asked.coverage)
    with multiprocessing.get_context("spawn").Pool(asked.jobs, break_one, (asked.broken,)) as pool:
        return report(pool.imap_unordered(run, seeds, chunksize=4), asked.failures, asked.coverage)


def report(results: Iterable[Result], failures_max: int, coverage: bool) -> int:
    """Print what failed, how often each fault happened, and the last line; the exit code."""
    started, failed = time.monotonic(), 0
    happened: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    done = messages = 0
    simulated_s = 0.0
    for result in results:
        done += 1
        messages += result.messages
        simulated_s += result.simulated_s
        happened.update(result.happened)
        seen.update(dict.fromkeys(result.happened, 1))
        if result.failure:
            failed += 1
            print(f"seed {result.seed} FAILED: {result.failure}")
            print(f"  replay: python -m tests.simulation --seed {result.seed} --trace", flush=True)
            if failed >= failures_max:
                break
    took_s = time.monotonic() - started
    print(f"{'fault':<36}{'seeds':>8}{'times':>10}")
    for name in sorted({*required(), *happened}):
        print(f"{name:<36}{seen[name]:>8}{happened[name]:>10}")
    missing = [name for name in required() if not happened[name]]
    print(
        f"seeds={done} failed={failed} messages={messages} simulated_hours={simulated_s / 3600:.1f} "
        f"seeds_per_s={done / took_s:.1f} faults_never_met={','.join(missing) or 'none'}"
    )
    return 1 if failed or (coverage and missing) else 0


def prove(seeds: range, jobs: int) -> int:
    """Break each guarantee, in a process of its own and `jobs` at a time: every one must be noticed."""
    unnoticed = 0
    warnings.filterwarnings("ignore", "lance is not fork-safe")  # none of its code ever runs here
    waiting, running = list(BREAKAGES), list[Any]()
    while waiting or running:
        while waiting and len(running) < jobs:
            child = multiprocessing.get_context("fork").Process(target=_notice, args=(waiting.pop(0), seeds))
            child.start()
            running.append(child)
        wait([child.sentinel for child in running])
        for child in [child for child in running if not child.is_alive()]:
            child.join()
            running.remove(child)
            unnoticed += child.exitcode != 0
    print(f"breakages={len(BREAKAGES)} unnoticed={unnoticed}")
    return 1 if unnoticed else 0


def _notice(name: str, seeds: range) -> None:
    break_one(name)
    for seed in seeds:
        failure = run(seed).failure
        if failure:
            what = failure.strip().splitlines()[-1]
            print(f"{name}: noticed after {seed - seeds.start + 1} seeds: {what[:200]}", flush=True)
            os._exit(0)
    print(f"{name}: NOT NOTICED in {len(seeds)} seeds", flush=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
