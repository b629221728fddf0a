"""How many examples a property gets: `HYPOTHESIS_PROFILE` is quick (the default), ci or long.

A property states what it needs to be quick on a laptop; the other profiles multiply that. In `ci` the examples are
always the same, so that a red build is red again on the next machine; `long` is for a night.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_TIMES = {"quick": 1, "ci": 3, "long": 100}
PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") == "true" else "quick")


def examples(quick: int, steps: int = 40) -> settings:
    """Settings of a property or machine that runs `quick` examples (of at most `steps` steps) when in a hurry."""
    return settings(
        max_examples=quick * _TIMES[PROFILE],
        stateful_step_count=steps,
        derandomize=PROFILE == "ci",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
