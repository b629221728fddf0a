"""Budgets: what a run's figures must keep to, and whether they do. Pure but for reading the file.

Three kinds. `exact`: a count that no machine changes (documents without an outcome). `ratio`: two figures of
one run, so that a slow or busy machine cancels out. `absolute`: seconds, MiB; true of one machine only, so that
breaking one is a warning unless the caller is strict. A figure that was not measured breaks its budget: a
benchmark that measures nothing must not pass.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Kind = Literal["exact", "ratio", "absolute"]
Status = Literal["ok", "warning", "exceeded"]
_FIELDS = {"kind", "at_least", "at_most", "unit"}


@dataclass(frozen=True, slots=True)
class Budget:
    """The limit of one figure; one of `at_least` and `at_most` is set."""

    figure: str
    kind: Kind
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    def holds(self, value: float | None) -> bool:
        """Whether `value` keeps to it; a NaN or None does not."""
        if value is None:
            return False
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)

    @property
    def limit(self) -> str:
        """The limit as people read it."""
        bound = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return f"{bound} {self.unit}".rstrip()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one budget."""

    budget: Budget
    value: float | None
    status: Status

    @property
    def line(self) -> str:
        """One line that says it all."""
        value = "not measured" if self.value is None else f"{self.value:.4g} {self.budget.unit}".rstrip()
        return f"{self.status}: {self.budget.figure} is {value}, budget {self.budget.limit} ({self.budget.kind})"


def read_budgets(path: Path) -> list[Budget]:
    """The budgets of a TOML file, one table each. Raises ValueError naming the table that is wrong."""
    return parse_budgets(tomllib.loads(path.read_text()))


def parse_budgets(tables: Mapping[str, Any]) -> list[Budget]:
    """Raises ValueError: an unknown field or kind, or not exactly one limit."""
    budgets = []
    for figure, table in tables.items():
        if unknown := set(table) - _FIELDS:
            raise ValueError(f"[{figure}]: unknown field {', '.join(sorted(unknown))}")
        if table.get("kind") not in get_args(Kind):
            raise ValueError(f"[{figure}]: kind is one of {', '.join(get_args(Kind))}")
        if ("at_least" in table) == ("at_most" in table):
            raise ValueError(f"[{figure}]: give exactly one of at_least and at_most")
        budgets.append(Budget(figure, **table))
    return budgets


def compare(figures: Mapping[str, float | None], budgets: Sequence[Budget], *, strict: bool = False) -> list[Verdict]:
    """One verdict per budget, in order. A broken absolute budget is a warning unless `strict` or unmeasured."""
    verdicts = []
    for budget in budgets:
        value = figures.get(budget.figure)
        status: Status = "ok"
        if not budget.holds(value):
            forgiven = budget.kind == "absolute" and not strict and value is not None
            status = "warning" if forgiven else "exceeded"
        verdicts.append(Verdict(budget, value, status))
    return verdicts


def passes(verdicts: Sequence[Verdict]) -> bool:
    """Whether no budget was exceeded; warnings pass."""
    return all(verdict.status != "exceeded" for verdict in verdicts)


def summary(verdicts: Sequence[Verdict]) -> str:
    """The last line of a run."""
    count = {status: sum(verdict.status == status for verdict in verdicts) for status in get_args(Status)}
    word = "within budget" if passes(verdicts) else "OVER BUDGET"
    return f"{word}: {count['ok']} ok, {count['warning']} with a warning, {count['exceeded']} exceeded"
