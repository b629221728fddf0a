"""Files that are announced at a steady rate while others ask, and what became of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from loadtests.looks import Figures
from shoal.cluster.announcing import Announcer
from shoal.cluster.samples import Sample, make_samples, prepared
from shoal.records import Outcome
from shoal.settings import Settings

OUTCOMES_S = 300.0


class Feed:
    """Announces `samples` one by one, from a thread of its own, until they are used up or it is closed."""

    def __init__(self, settings: Settings, samples: Sequence[Sample], per_minute: int) -> None:
        self._announcer = Announcer(settings, listen=True)
        self._samples, self._per_minute = samples, per_minute
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._announce, name="feed", daemon=True)
        self._took_s = self._drained_s = 0.0
        self._thread.start()

    def _announce(self) -> None:
        began = time.monotonic()
        for number, sample in enumerate(self._samples):
            if self._ended.wait(max(0.0, began + number * 60 / self._per_minute - time.monotonic())):
                break
            self._announcer.send([prepared(sample)])
        self._took_s = time.monotonic() - began

    def close(self) -> None:
        """Waits for every outcome."""
        self._ended.set()
        self._thread.join()
        began = time.monotonic()
        self._announcer.wait(OUTCOMES_S)
        self._drained_s = time.monotonic() - began
        self._announcer.__exit__()

    def figures(self) -> Figures:
        """Of the whole time; `drained_s`: from the last announcement to the last outcome."""
        tally = self._announcer.tally
        return {
            "ingest.files": float(tally.announced),
            "ingest.per_minute": 60 * tally.announced / self._took_s if self._took_s else None,
            "ingest.without_outcome": float(len(tally.waiting)),
            "ingest.dead": float(tally.outcomes[Outcome.DEAD_LETTERED]),
            "ingest.drained_s": self._drained_s,
        }


@contextmanager
def ingesting(settings: Settings, count: int, per_minute: int) -> Iterator[Feed]:
    """Announces `per_minute` files, at most `count`: new ones for each run, since an unchanged file is no work."""
    objects = settings.home / "objects"
    number = len(list(objects.glob("fed-*")))
    made = make_samples(objects / f"fed-{number}", count, seed=number + 1)
    feed = Feed(settings, [each for each in made if each.expect is Outcome.INDEXED], per_minute)
    try:
        yield feed
    finally:
        feed.close()
