"""Whose turn it is: queries first, then live documents, then backfills, each with a share that nobody can take.

Start-time fair queueing over tokens (Goyal, Vin and Cheng, 1996): a lane's account grows by what it was served over
its share, and who stands lowest is next; a lane that comes back after a pause starts at the account of the last one
served, so it saves up nothing. Guarantee: whatever the others bring, a lane that waits gets its share of the tokens
served meanwhile, but for one batch of each lane; a lane that uses less than its share is always next, queries first
where two are. What one leaves the others get. Pure: it holds no texts and reads no clock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from shoal.embeddings.purposes import Lane

LANES: tuple[Lane, ...] = ("query", "live", "backfill")
"""In the order they are served where accounts are equal."""

SHARES: Mapping[Lane, float] = {"query": 0.6, "live": 0.3, "backfill": 0.1}
"""Of the tokens while all three wait. Queries are short: a share they never use up is what makes them first. A backfill
with less would stand still for days beside a busy scraper; with more it would delay what is new for what is old."""


class FairShares:
    """The accounts of the lanes."""

    def __init__(self, shares: Mapping[Lane, float] = SHARES) -> None:
        self._shares = shares
        self._accounts = dict.fromkeys(LANES, 0.0)
        self._now = 0.0  # the account of the last one served, when it was its turn

    def first(self, waiting: Collection[Lane]) -> Lane:
        """Whose turn it is of those that wait; at least one does."""
        return min((lane for lane in LANES if lane in waiting), key=self._accounts.__getitem__)

    def began(self, lane: Lane) -> None:
        """Something waits in `lane`, where nothing did."""
        self._accounts[lane] = max(self._accounts[lane], self._now)

    def served(self, lane: Lane, tokens: int) -> None:
        """`lane` had its turn with so many tokens."""
        self._now = max(self._now, self._accounts[lane])
        self._accounts[lane] += max(1, tokens) / self._shares[lane]
