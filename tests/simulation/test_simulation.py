"""The whole flow, simulated: whatever a seed breaks, the tables end as the log says. Run beside the unit tests.

The simulations run in processes of their own, since they give the modules of `shoal` another clock. How many seeds is
for SHOAL_TEST_SIMULATION_SEEDS to say; `make simulate` runs thousands.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.breakages import BREAKAGES

ROOT = Path(__file__).parents[2]
SEEDS = int(os.environ.get("SHOAL_TEST_SIMULATION_SEEDS", "200"))
COVERED_FROM = 150  # so many seeds meet every kind of fault; fewer may miss a rare one
NOTICED_WITHIN = 200
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}


def simulate(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        env=CLEAN | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(60 + 2 * SEEDS)
def test_whatever_dies_the_tables_hold_what_the_log_says() -> None:
    arguments = ["--seeds", str(SEEDS)]
    if SEEDS >= COVERED_FROM:
        arguments.append("--coverage")
    done = simulate(*arguments)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert f"seeds={SEEDS} failed=0" in done.stdout


@pytest.mark.parametrize("seed", [7, 12])
def test_a_seed_replays_exactly_whatever_the_process(seed: int) -> None:
    runs = [simulate("--seed", str(seed), PYTHONHASHSEED=hash_seed) for hash_seed in ("1", "2")]
    digests = {re.findall(r"digest=(\w+) steps=(\d+)", run.stdout)[0] for run in runs}
    assert len(digests) == 1
    ((_, steps),) = digests
    assert int(steps) > 50, "something happened"


def test_another_seed_is_another_story() -> None:
    digests = {re.findall(r"digest=(\w+)", simulate("--seed", str(seed)).stdout)[0] for seed in (1, 2)}
    assert len(digests) == 2


def test_a_failing_seed_says_how_to_replay_it() -> None:
    done = simulate("--seeds", "40", "--jobs", "1", "--failures", "1", "--break", "commit-too-early")
    assert done.returncode == 1
    assert re.search(r"replay: python -m tests\.simulation --seed \d+ --trace", done.stdout)
    assert "is not durable" in done.stdout


@pytest.mark.timeout(600)
def test_each_guarantee_that_is_broken_on_purpose_is_noticed() -> None:
    done = simulate("--prove", "--seeds", str(NOTICED_WITHIN))
    assert done.returncode == 0, done.stdout[-6000:]
    assert f"breakages={len(BREAKAGES)} unnoticed=0" in done.stdout
