"""The embedder's benchmark: how much of a provider's limits is used, what a query waits, and what a vector costs us.

Against the repository's fake provider, which enforces the limits as OpenAI does (bench/embedder_load.py runs it). Exit
codes: 0 within budget, 1 over it, 2 wrong usage; whatever else fails is a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench.budgets import compare, passes, read_budgets, summary
from bench.embedder_load import Account, cpu_of_clients, local_model, under_limits

BUDGETS = Path(__file__).with_name("embedder_budgets.toml")
# Requests and tokens a minute of text-embedding-3-small.
TIERS = {"tier1": (3_000, 1_000_000), "tier3": (5_000, 5_000_000), "tier5": (10_000, 10_000_000)}
RIVAL_SHARE, RIVAL_EVERY_S = 0.3, 4.0
SECONDS, MINUTE_S = 75.0, 60.0
SMOKE_SECONDS, SMOKE_SETTLED_S, SMOKE_DOCUMENTS = 4.0, 1.0, 6
DESCRIPTION = """\
Measure the embedder's core on this machine: the real service, limiter and OpenAI client against a fake provider that
enforces an account's limits, and the local model against the plain loop of its libraries."""
EPILOG = """\
scenarios (name one or more with --only)
  tier1 tier3 tier5   a backlog that never ends, limits of that tier of OpenAI; the configuration says tier 1 always
  rival               tier 3, while another user takes 30 % of the tokens in bursts, without looking at what is left
  queries             tier 1, with 8 queries a second beside the backlog
  cpu                 CPU time per 1,000 embeddings of 200 tokens, ours over that of a bare HTTP client
  local               chunks a second of the local model, ours over the plain loop

figures
  share               of the tokens that the provider refilled after the first 5 s: used by all users of the key. What
                      was drawn from the bucket that is full at the start is subtracted, so it is never above 1
  first_minute        tokens that were accepted in the first 60 s, over the limit
  refused_share       requests answered 429, of all of ours
  query_added_p99_s   p99 of a query's time beside the backlog, less the same without it
  loop_late_p99_s     p99 of how late the service's event loop was while the local model computed

budgets (bench/embedder_budgets.toml)
  `exact` and `ratio` budgets fail the run; `absolute` ones are of one machine and only warn, unless --strict.

examples
  make bench-embedder                                     all of it: about eight minutes
  make bench-embedder ARGS='--only tier3 rival'           some of it, judged by the budgets of these
  make bench-embedder ARGS=--smoke                        seconds: does it still work; nothing is judged
  make bench-embedder ARGS='--save figures.json'          all figures into a file; `-o json` gives them on stdout
"""

Figures = Mapping[str, float | None]


def scenarios(options: argparse.Namespace) -> dict[str, Callable[[], Coroutine[Any, Any, Figures]]]:
    """What can be run, by name."""
    seconds = options.seconds
    smoke: dict[str, Any] = {"settled_s": SMOKE_SETTLED_S, "documents": SMOKE_DOCUMENTS} if options.smoke else {}
    rpm, tpm = TIERS["tier3"]
    return {
        **{tier: partial(under_limits, Account(*limits), seconds, **smoke) for tier, limits in TIERS.items()},
        "rival": partial(
            under_limits, Account(rpm, tpm, (RIVAL_SHARE * tpm, RIVAL_EVERY_S if not options.smoke else 0.5)),
            seconds, **smoke,
        ),
        "queries": partial(under_limits, Account(*TIERS["tier1"]), seconds, queries=True, **smoke),
        "cpu": partial(cpu_of_clients, 128 if options.smoke else 4_000),
        "local": partial(local_model, 32 if options.smoke else 512),
    }  # fmt: skip


async def _run(options: argparse.Namespace) -> dict[str, Figures]:
    """One after the other, but for a smoke run, whose figures nobody believes."""
    wanted = {name: run for name, run in scenarios(options).items() if name in (options.only or [name])}
    if options.smoke:
        return dict(zip(wanted, await asyncio.gather(*(run() for run in wanted.values())), strict=True))
    found = {}
    for name, run in wanted.items():
        _say(f"{name} ...")
        found[name] = await run()
    return found


def main() -> int:
    options = _options()
    load = os.getloadavg()[0]
    figures: dict[str, float | None] = {}
    for name, found in asyncio.run(_run(options)).items():
        figures |= {f"{name}_{figure}": value for figure, value in found.items()}
        if options.output == "table":
            _show(name, found)
    budgets = [
        budget for budget in read_budgets(options.budgets)
        if (not options.only or budget.figure.partition("_")[0] in options.only)
        and (options.seconds > MINUTE_S or not budget.figure.endswith("_first_minute"))
    ]  # fmt: skip
    verdicts = [] if options.smoke else compare(figures, budgets, strict=options.strict)
    report = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "load_before": load, "load_after": os.getloadavg()[0]},
        "seconds": options.seconds,
        "figures": figures,
        "budgets": [{**asdict(one.budget), "value": one.value, "status": one.status} for one in verdicts],
    }
    if options.save:
        options.save.write_text(json.dumps(report, indent=2) + "\n")
    if options.output == "json":
        print(json.dumps(report, indent=2))
    else:
        print(f"machine: {os.cpu_count()} cores, load {load:.1f} -> {os.getloadavg()[0]:.1f}")
    for verdict in verdicts:
        if verdict.status != "ok":
            _say(verdict.line)
    _say(summary(verdicts) if not options.smoke else "smoke: everything ran; nothing was judged")
    return 0 if passes(verdicts) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.embedder", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    names = [*TIERS, "rival", "queries", "cpu", "local"]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S",
                        help=f"under limits, each (default: {SECONDS:.0f}; first_minute needs 60)")  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="a few seconds of each, not judged")
    parser.add_argument("--budgets", type=Path, default=BUDGETS, metavar="FILE", help="other limits (TOML)")
    parser.add_argument("--strict", action="store_true", help="fail on absolute budgets too: for a quiet machine")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write all figures into this file (JSON)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if options.smoke:
        options.seconds = SMOKE_SECONDS
    elif options.seconds < 30:
        parser.error("--seconds: at least 30, or the start is all there is to see")
    if not options.budgets.exists():
        parser.error(f"--budgets: {options.budgets} does not exist")
    if options.save and not options.save.parent.is_dir():
        parser.error(f"--save: {options.save.parent} is no directory")
    return options


def _show(name: str, figures: Figures) -> None:
    print(name)
    for figure, value in figures.items():
        print(f"  {figure:32} {'not measured' if value is None else f'{value:12.4f}'}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
