"""Budgets decide whether a benchmark run passes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bench.budgets import Budget, compare, parse_budgets, passes, read_budgets, summary

BUDGETS = Path(__file__).parents[3] / "bench" / "budgets.toml"
SPEED = Budget("speed", "ratio", at_least=0.5)
MEMORY = Budget("memory", "absolute", at_most=100, unit="MiB")
LOST = Budget("lost", "exact", at_most=0)


def status(budget: Budget, value: float | None, *, strict: bool = False) -> str:
    figures = {} if value is None else {budget.figure: value}
    return compare(figures, [budget], strict=strict)[0].status


@pytest.mark.parametrize(("value", "expected"), [(0.5, "ok"), (0.7, "ok"), (0.499, "exceeded")])
def test_a_lower_limit_includes_itself(value: float, expected: str) -> None:
    assert status(SPEED, value) == expected


@pytest.mark.parametrize(("value", "expected"), [(0, "ok"), (1, "exceeded")])
def test_an_upper_limit_of_zero_is_a_limit(value: float, expected: str) -> None:
    assert status(LOST, value) == expected


def test_a_broken_absolute_budget_warns_and_passes_unless_strict() -> None:
    verdicts = compare({"memory": 101.0}, [MEMORY])
    assert verdicts[0].status == "warning"
    assert passes(verdicts)
    assert not passes(compare({"memory": 101.0}, [MEMORY], strict=True))


@pytest.mark.parametrize("budget", [SPEED, MEMORY, LOST])
def test_what_was_not_measured_fails_whatever_its_kind(budget: Budget) -> None:
    assert status(budget, None) == "exceeded"


@pytest.mark.parametrize("budget", [SPEED, LOST])
def test_nan_keeps_to_no_budget(budget: Budget) -> None:
    assert status(budget, math.nan) == "exceeded"


def test_one_exceeded_budget_among_good_ones_fails_the_run_and_is_counted() -> None:
    verdicts = compare({"speed": 0.4, "memory": 120.0, "lost": 0.0}, [SPEED, MEMORY, LOST])
    assert not passes(verdicts)
    assert summary(verdicts) == "OVER BUDGET: 1 ok, 1 with a warning, 1 exceeded"
    assert verdicts[0].line == "exceeded: speed is 0.4, budget >= 0.5 (ratio)"
    assert verdicts[1].line == "warning: memory is 120 MiB, budget <= 100 MiB (absolute)"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"kind": "ratio"}, "give exactly one"),
        ({"kind": "ratio", "at_least": 1, "at_most": 2}, "give exactly one"),
        ({"kind": "relative", "at_most": 2}, "kind is one of"),
        ({"kind": "ratio", "at_most": 2, "maximum": 3}, "unknown field maximum"),
    ],
)
def test_a_malformed_budget_is_refused_by_its_name(table: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=rf"^\[speed\]: {told}"):
        parse_budgets({"speed": table})


def test_the_committed_budgets_fail_a_run_that_lost_a_document_or_is_slower_than_the_reference() -> None:
    budgets = read_budgets(BUDGETS)
    kept = {b.figure: (b.at_least if b.at_least is not None else b.at_most) for b in budgets}
    assert passes(compare(kept, budgets, strict=True))
    assert not passes(compare({**kept, "not_accounted_for": 1.0}, budgets))
    assert not passes(compare({**kept, "speed_vs_straight_line": 0.1}, budgets))
    assert passes(compare({**kept, "documents_per_minute": 99.0}, budgets))
