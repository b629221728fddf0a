"""`python -m tests.chaos`: run a campaign of kills, and say whether anything was lost, doubled or left behind."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.campaign import WEIGHTS, Campaign, Result
from tests.chaos.places import Place
from tests.fixtures.parts import PartUnavailable

DESCRIPTION = """Kill Shoal's parts on a real Kafka and a real S3 server while messages flow, and compare the tables
with what the log says. Exits with 0 only if nothing is missing, extra or twice, and everything recovered."""


def main() -> int:
    options = _options()
    directory = Path(tempfile.mkdtemp(prefix="shoal-chaos-"))
    log_path = options.log or directory / "campaign.log"
    result = None
    began = time.time()
    with log_path.open("a") as log:

        def say(line: str) -> None:
            log.write(f"{time.strftime('%H:%M:%S')} {time.time() - began:8.1f} {line}\n")
            log.flush()

        say(f"seed={options.seed} kills={options.kills} tables={options.tables} directory={directory}")
        place = Place(directory, options.seed, tables_on_s3=options.tables == "s3")
        try:
            _show(f"seed {options.seed}: starting Kafka, S3, the provider and shoal up in {directory}, log {log_path}")
            place.start()
            campaign = Campaign(place, options.kills, options.seed, set(options.only), options.rate, say, _show)
            result = campaign.run()
            for line in result.ledger.table() + result.difference.lines() + result.notes:
                say(line)
        except PartUnavailable as error:
            print(f"a part is missing: {error}", file=sys.stderr)
            return 2
        except BaseException as error:
            say(f"the campaign failed: {type(error).__name__}: {error}")
            raise
        finally:
            place.close()
            _show("")
            if result is None or not result.is_good:
                print(f"\nkept: {directory}, log {log_path}", file=sys.stderr)
            elif not options.keep:
                shutil.rmtree(directory, ignore_errors=True)
    _tell(result)
    print(result.line(options.seed))
    return 0 if result.is_good else 1


def _tell(result: Result) -> None:
    print(*result.ledger.table(), sep="\n")
    for kill in result.unrecovered:
        print(f"not recovered: {kill}")
    for line in [*(f"note: {note}" for note in result.notes), *result.difference.lines()]:
        print(line)


def _show(line: str) -> None:
    """One line that is written over, on a terminal; else now and then a new one."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line[:150]}")
        sys.stderr.flush()
    elif line and time.monotonic() - _shown[0] > 15:
        _shown[0] = time.monotonic()
        print(line, file=sys.stderr, flush=True)


_shown = [-100.0]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.chaos", description=DESCRIPTION)
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="how many (default: 200)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="what decides the load and the kills")
    parser.add_argument("--tables", choices=("disk", "s3"), default="disk", help="where the tables are")
    parser.add_argument("--rate", type=float, default=5.0, metavar="N", help="messages per second (default: 5)")
    parser.add_argument("--only", nargs="+", default=[], choices=sorted(WEIGHTS), metavar="KIND", help="these kinds")
    parser.add_argument("--log", type=Path, metavar="FILE", help="every event; default: in the campaign's directory")
    parser.add_argument("--keep", action="store_true", help="keep the directory of a good end too")
    options = parser.parse_args()
    if options.kills < 1:
        parser.error("--kills: at least 1")
    return options


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that everything is stopped
    sys.exit(main())
