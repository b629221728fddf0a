"""What is indexed and what is asked: made-up scrapes of electricity markets, the same for every run. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random

SOURCES = (
    "AEMO",
    "CAISO",
    "EIA",
    "ENTSOE",
    "ERCOT",
    "IESO",
    "ISONE",
    "MISO",
    "NORDPOOL",
    "NYISO",
    "PJM",
    "SPP",
    "TEPCO",
)
KINDS = (
    ("load_forecast", "load forecast", "MW"), ("price", "day-ahead price", "EUR/MWh"),
    ("price", "five minute real-time price", "$/MWh"), ("generation", "generation by fuel type", "MW"),
    ("renewable_forecast", "wind and solar forecast", "MW"), ("outage", "planned outages of power plants", "MW"),
    ("flow", "cross-border physical flow", "MW"), ("capacity", "installed capacity by technology", "MW"),
    ("weather", "temperature and wind speed at weather stations", "degC"),
    ("notice", "notices to market participants", ""),
)  # fmt: skip
AREAS = ("zone north", "zone south", "the west coast", "the island grid", "hub nodes", "load zones", "bidding zone DK1")
QUESTIONS_SEEN = 200
"""As in life, few questions are asked again and again: agents repeat theirs word for word."""


@dataclass(frozen=True, slots=True)
class Topic:
    """What several thousand documents are about."""

    source: str
    data_type: str
    text: str
    endpoint: str


def topics() -> list[Topic]:
    """Every source with every kind and area: 910."""
    return [
        Topic(
            source, data_type, f"{source}: {name} for {area}{f', in {unit}' if unit else ''}, by the hour of the day",
            f"https://api.{source.lower()}.example.org/v1/{data_type}/{area.replace(' ', '-')}",
        )
        for source, (data_type, name, unit), area in product(SOURCES, KINDS, AREAS)
    ]  # fmt: skip


def sha256(number: int) -> str:
    """Of the bytes of document `number`."""
    return hashlib.sha256(f"document {number}".encode()).hexdigest()


def questions() -> list[str]:
    """The pool that most questions are from."""
    rng = Random(7)
    return [f"{rng.choice(KINDS)[1]} of {rng.choice(SOURCES)} for {rng.choice(AREAS)}" for _ in range(QUESTIONS_SEEN)]


def new_questions(seed: object) -> Iterator[str]:
    """Questions that nobody has asked before, for ever."""
    rng = Random(f"new {seed}")
    while True:
        kind, source, area = rng.choice(KINDS)[1], rng.choice(SOURCES), rng.choice(AREAS)
        yield f"{kind} {source} {area} revision {rng.randrange(10**9)}"
