"""A short campaign of kills, as `make chaos` runs them: nothing is lost, nothing is twice, and everything recovers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 25
SEED = 20260301
TIMEOUT_S = 900.0  # a hang guard: on a quiet machine it takes about three minutes, beside all other tests six
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.usefixtures("kafka_server", "s3_server")  # their parts are built before; the campaign runs its own
def test_nothing_is_lost_and_nothing_is_twice_though_everything_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "campaign.log"
    arguments = ["--kills", str(KILLS), "--seed", str(SEED), "--log", str(log)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    told = done.stdout + done.stderr[-3000:]
    ended = done.stdout.splitlines()[-1] if done.stdout else ""
    found = re.match(r"kills=(\d+) missing=0 extra=0 duplicate=0 recovered_p95_s=[\d.]+ ", ended)
    assert found is not None, told
    assert int(found[1]) >= KILLS, "an armed point may be reached beside the last one: then it is more"
    assert done.returncode == 0, told + log.read_text()[-6000:]
