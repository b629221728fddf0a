"""All tests as two pytest processes side by side: what `make test` does without ARGS.

The quick lane computes: unit tests, properties, simulations, then what single parts promise on a real server and keep
though they are killed. The long one mostly waits: for whole services to start, for leases to run out, for a replacement
of what was killed. They share no port, directory or server, since every fixture takes its own, and the quick lane is
the more polite of the two. It is shown while it runs, and then the long one from its beginning, each with pytest's own
last line. Whatever of the two fails, the whole fails. What stands in APART is in neither.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parent
QUICK = ("unit", "properties", "simulation", "contract", "parts")
APART = ("envtest",)  # `make envtest`: to build a Kubernetes the first time takes longer than all tests may
NICE = 5
LOOK_S = 0.2
INTERRUPTED = 130
SLOWEST = ("--durations=25", "--durations-min=10")  # said in the end: where a lane's hour went


def lanes() -> tuple[list[str], list[str]]:
    """The directories of the quick lane and of the long one: each that has tests, but for APART, is in one of them."""
    found = sorted(
        place
        for place in TESTS.iterdir()
        if place.name not in APART and place.is_dir() and any(place.rglob("test_*.py"))
    )
    quick = [str(place) for name in QUICK for place in found if place.name == name]
    return quick, [str(place) for place in found if place.name not in QUICK]


def run(quick: Sequence[str], long: Sequence[str]) -> int:
    """Run two commands side by side, and show the one after the other. 0 if both end well."""
    with tempfile.TemporaryFile() as said:
        beside = subprocess.Popen(long, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        try:
            code = subprocess.run(["nice", "-n", str(NICE), *quick], check=False).returncode
            print("\nmeanwhile, since the same moment:", flush=True)
            shown, has_ended = 0, False
            while not has_ended:
                has_ended = beside.poll() is not None  # looked at first, so that its last words are shown too
                shown += _show(said.fileno(), shown)
                time.sleep(0.0 if has_ended else LOOK_S)
        except KeyboardInterrupt:  # Ctrl-C reaches both, and they tidy up
            beside.wait()
            return INTERRUPTED
        finally:
            if beside.poll() is None:
                beside.terminate()
                beside.wait()
    failed = {name: code for name, code in (("quick", code), ("long", beside.returncode)) if code}
    print(f"FAILED, by exit code: {failed}" if failed else "both lanes passed", flush=True)
    return 1 if failed else 0


def _show(log: int, start: int) -> int:
    """Print a file from `start`; how many bytes that were."""
    part = os.pread(log, os.fstat(log).st_size - start, start)
    sys.stdout.buffer.write(part)
    sys.stdout.flush()
    return len(part)


if __name__ == "__main__":
    sys.exit(run(*([sys.executable, "-m", "pytest", *SLOWEST, *places] for places in lanes())))
