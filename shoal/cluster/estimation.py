"""What a sample says of the whole: totals with an interval that holds them in 19 of 20 cases.

Pure. Simple random sampling within strata, after W. G. Cochran, "Sampling Techniques" (3rd ed.), chapters 2, 5 and 6:
the mean of a stratum's sample times the stratum's size, or, where a sum is known that goes with what is asked for, the
ratio of the two in the sample times that sum. Intervals are normal (1.96 standard errors), with the finite population
correction: who samples everything has none. Of few items they are rough, and of an item that a sample of this size
misses (one huge file) they know nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Z = 1.96
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A total and its variance."""

    total: float
    variance: float = 0.0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.total + other.total, self.variance + other.variance)

    def scaled(self, factor: float) -> Estimate:
        return Estimate(self.total * factor, self.variance * factor**2)

    @property
    def low(self) -> float:
        return max(0.0, self.total - Z * math.sqrt(self.variance))

    @property
    def high(self) -> float:
        return self.total + Z * math.sqrt(self.variance)


def by_mean(size: int, sample: Sequence[float]) -> Estimate:
    """The sum over `size` items of which `sample` was drawn. One item of many says nothing of its like: it counts as
    if the rest could be nothing or twice as much."""
    count = len(sample)
    if not count:
        return Estimate(0.0)
    mean = sum(sample) / count
    if count == size:
        return Estimate(mean * size)
    if count == 1:
        return Estimate(mean * size, (mean * size / Z) ** 2)
    spread = sum((value - mean) ** 2 for value in sample) / (count - 1)
    return Estimate(mean * size, size**2 * (1 - count / size) * spread / count)


def by_ratio(size: int, known_total: float, known: Sequence[float], sample: Sequence[float]) -> Estimate:
    """The sum over `size` items of what `sample` measures, where the sum of what `known` measures is `known_total`."""
    count = len(sample)
    if not count or not sum(known) or not known_total:
        return by_mean(size, sample)
    ratio = sum(sample) / sum(known)
    if count in (1, size):
        return Estimate(ratio * known_total, 0.0 if count == size else (ratio * known_total / Z) ** 2)
    residuals = sum((y - ratio * x) ** 2 for x, y in zip(known, sample, strict=True)) / (count - 1)
    return Estimate(ratio * known_total, size**2 * (1 - count / size) * residuals / count)


@dataclass(slots=True)
class Stratum(Generic[Item]):
    """Items of one kind as they pass: how many, how large, and a random sample of them (Vitter's Algorithm R)."""

    rng: random.Random
    sample_max: int
    size: int = 0
    size_bytes: int = 0
    sample: list[Item] = field(default_factory=list)

    def add(self, item: Item, size_bytes: int) -> None:
        self.size += 1
        self.size_bytes += size_bytes
        if len(self.sample) < self.sample_max:
            self.sample.append(item)
        elif (place := self.rng.randrange(self.size)) < self.sample_max:
            self.sample[place] = item
