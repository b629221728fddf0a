"""`make test` runs its two lanes to their ends, shows both, and fails if either does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.lanes import APART, TESTS, lanes, run


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_every_test_is_in_one_of_the_lanes() -> None:
    places = [Path(place) for lane in lanes() for place in lane]
    assert len(places) == len(set(places))
    for path in TESTS.rglob("test_*.py"):
        is_apart = path.relative_to(TESTS).parts[0] in APART
        assert sum(place in path.parents for place in places) == (0 if is_apart else 1), path


def test_what_is_apart_is_run_only_where_it_is_named(pytestconfig: pytest.Config) -> None:
    """`make test ARGS=-x` gives pytest no directory, so it looks through all of tests/."""
    assert set(APART) <= set(pytestconfig.getini("norecursedirs"))
    assert all((TESTS / name).is_dir() for name in APART)


@pytest.mark.parametrize(("quick", "long", "code"), [(0, 0, 0), (1, 0, 1), (0, 1, 1), (5, 2, 1), (0, -9, 1)])
def test_the_whole_fails_if_either_lane_does_and_both_are_shown(
    quick: int, long: int, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    ends = "import os, sys; print('the long one ended', flush=True); "
    ends += f"os.kill(os.getpid(), {-long})" if long < 0 else f"sys.exit({long})"
    assert run(python(f"import sys; print('the quick one ended'); sys.exit({quick})"), python(ends)) == code
    told = capfd.readouterr().out
    assert told.index("the quick one ended") < told.index("the long one ended")
    assert ("both lanes passed" in told) == (code == 0)
