"""The figures that the simulation computes with: read from figures.toml, each with its unit and its source.

A figure without a source is refused: what nobody measured, or published, does not become a number of a document.
"""

from __future__ import annotations

import math
import tomllib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).with_name("figures.toml")
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Figure:
    """One number. `kind`: measured, derived, published (by whoever provides it) or assumed."""

    name: str
    value: float
    unit: str
    kind: str
    source: str


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution by its quantiles at `SHARES`, straight lines between them, scaled to the measured mean."""

    mean: float
    quantiles: tuple[float, ...]

    def at(self, share: float) -> float:
        """The value below which this share of the documents lies."""
        place = min(len(SHARES) - 2, bisect_right(SHARES, share) - 1)
        low, high = SHARES[place], SHARES[place + 1]
        return self._scale * _between((low, self.quantiles[place]), (high, self.quantiles[place + 1]), share)

    @property
    def _scale(self) -> float:
        pieces = zip(pairwise(SHARES), pairwise(self.quantiles), strict=True)
        return self.mean / sum((high - low) * (a + b) / 2 for (low, high), (a, b) in pieces)


@dataclass(frozen=True, slots=True)
class Law:
    """How a cost grows with a table: measured points, by powers between them (lines in a log-log plot). Below the
    first it is that one's; above the last it grows as the rows do: what is written anew is as large as the table."""

    points: tuple[tuple[float, float], ...]

    def at(self, rows: float) -> float:
        if rows <= self.points[0][0]:
            return self.points[0][1]
        if rows >= self.points[-1][0]:
            return self.points[-1][1] * rows / self.points[-1][0]
        place = bisect_right([x for x, _ in self.points], rows) - 1
        (x, a), (y, b) = self.points[place], self.points[place + 1]
        return math.exp(_between((math.log(x), math.log(a)), (math.log(y), math.log(b)), math.log(rows)))


@dataclass(frozen=True, slots=True)
class Tier:
    """An account's published limits."""

    requests_per_minute: float
    tokens_per_minute: float


@dataclass(frozen=True, slots=True)
class Figures:
    """All of them. `value("reader_cpu_ms")` raises KeyError where there is none."""

    figures: Mapping[str, Figure]
    spreads: Mapping[str, Spread]
    laws: Mapping[str, Law]
    tiers: Mapping[str, Tier]

    def value(self, name: str) -> float:
        return self.figures[name].value

    def seconds(self, name: str) -> float:
        """Of a figure in milliseconds."""
        assert name.endswith("_ms"), f"{name} is in {self.figures[name].unit}"
        return self.figures[name].value / 1000


def read_figures(path: Path = FIGURES) -> Figures:
    """Raises ValueError naming the table that is wrong."""
    return parse_figures(tomllib.loads(path.read_text()))


def parse_figures(tables: Mapping[str, Any]) -> Figures:
    """Raises ValueError: a field is missing or odd."""
    return Figures(
        {name: _figure(name, table) for name, table in tables.get("figure", {}).items()},
        {name: _spread(name, table) for name, table in tables.get("spread", {}).items()},
        {name: _law(name, table) for name, table in tables.get("law", {}).items()},
        {
            name: Tier(float(table["requests_per_minute"]), float(table["tokens_per_minute"]))
            for name, table in tables.get("tier", {}).items()
            if _sourced(name, table)
        },
    )


KINDS = ("measured", "derived", "published", "assumed")


def _sourced(name: str, table: Mapping[str, Any]) -> bool:
    if not str(table.get("source", "")).strip():
        raise ValueError(f"[{name}]: say the source: who measured or published it, how, where")
    if table.get("kind") not in KINDS:
        raise ValueError(f"[{name}]: kind is one of {', '.join(KINDS)}")
    return True


def _figure(name: str, table: Mapping[str, Any]) -> Figure:
    _sourced(name, table)
    value = float(table["value"]) if isinstance(table.get("value"), int | float) else math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"[figure.{name}]: value is a number of at least 0")
    if not table.get("unit"):
        raise ValueError(f"[figure.{name}]: say the unit")
    return Figure(name, value, str(table["unit"]), str(table["kind"]), str(table["source"]))


def _spread(name: str, table: Mapping[str, Any]) -> Spread:
    _sourced(name, table)
    quantiles = tuple(map(float, table["quantiles"]))
    if len(quantiles) != len(SHARES) or list(quantiles) != sorted(quantiles) or quantiles[0] < 0 or not quantiles[-1]:
        raise ValueError(f"[spread.{name}]: {len(SHARES)} growing quantiles, at {SHARES}")
    return Spread(float(table["mean"]), quantiles)


def _law(name: str, table: Mapping[str, Any]) -> Law:
    _sourced(name, table)
    points = tuple((float(rows), float(cost)) for rows, cost in table["points"])
    if len(points) < 2 or any(b[0] <= a[0] for a, b in pairwise(points)) or min(map(min, points)) <= 0:
        raise ValueError(f"[law.{name}]: at least two points [rows, cost], rows growing, all above 0")
    return Law(points)


def _between(start: Sequence[float], end: Sequence[float], x: float) -> float:
    return start[1] + (end[1] - start[1]) * (x - start[0]) / (end[0] - start[0])
