"""Our metrics at Ray's own port, which a cluster scrapes on every node: `ray_shoal_...`, beside Ray's.

Every value goes there as a gauge, counters and buckets too: they are sums already, kept through the deaths of who
counts. Ray forgets a gauge some 20 s after it was set, so that what nobody sets any more vanishes by itself; what is
still so must be set again and again (measured with Ray 2.60), which `keep` does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from prometheus_client.core import Metric

INTERVAL_S = 5.0

log = logging.getLogger("shoal.metrics")

Make = Callable[[str, str, tuple[str, ...]], Any]
"""(name, description, labels) -> something with `set(value, tags)`."""


def _ray_gauge(name: str, description: str, labels: tuple[str, ...]) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(name, description, labels)


class RayMirror:
    """One per process that is connected to Ray."""

    def __init__(self, make: Make = _ray_gauge) -> None:
        self._make = make
        self._gauges: dict[str, Any] = {}

    def show(self, families: Iterable[Metric]) -> None:
        """Set all of them."""
        for family in families:
            for sample in family.samples:
                gauge = self._gauges.get(sample.name)
                if gauge is None:
                    gauge = self._make(sample.name, family.documentation, tuple(sample.labels))
                    self._gauges[sample.name] = gauge
                gauge.set(sample.value, tags=dict(sample.labels))


async def keep(gather: Callable[[], Awaitable[Iterable[Metric]]], mirror: RayMirror | None = None) -> None:
    """Show what `gather` gives, for as long as this process lives; what goes wrong is told once in a row."""
    mirror, was_well = mirror or RayMirror(), True
    while True:
        try:
            await asyncio.to_thread(mirror.show, list(await gather()))
        except Exception as error:
            if was_well:
                log.warning("metrics can't be shown at Ray's port: %s: %s", type(error).__name__, error)
            was_well = False
        else:
            was_well = True
        await asyncio.sleep(INTERVAL_S)
