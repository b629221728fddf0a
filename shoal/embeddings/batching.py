"""Which texts go to the model together: a pure queue that closes a batch by inputs, tokens or age.

Guarantee: items leave in the order they came, each exactly once; no batch passes `inputs_max` or, unless one
item alone does, `tokens_max`; no item waits longer than `linger_s` for company. It does not bound the queue
(`service` admits) and reads no clock: `now` is seconds of any monotonic clock.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Batcher(Generic[Item]):
    """Items waiting for a model's next free place."""

    def __init__(self, inputs_max: int, tokens_max: int, linger_s: float) -> None:
        self._inputs_max = inputs_max
        self._tokens_max = tokens_max
        self._linger_s = linger_s
        self._waiting: deque[tuple[Item, int, float]] = deque()
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: Item, tokens: int, now: float) -> None:
        self._waiting.append((item, tokens, now))
        self._tokens += tokens

    def withdraw(self, item: Item) -> bool:
        """Takes one item out again; False where it has left."""
        for i, (waiting, tokens, _) in enumerate(self._waiting):
            if waiting is item:
                del self._waiting[i]
                self._tokens -= tokens
                return True
        return False

    def due_at(self) -> float | None:
        """When `take` gives a batch though nothing more is added; None while nothing waits."""
        if not self._waiting:
            return None
        is_full = len(self._waiting) >= self._inputs_max or self._tokens >= self._tokens_max
        return self._waiting[0][2] + (0.0 if is_full else self._linger_s)

    def take(self, now: float) -> tuple[list[Item], int]:
        """The batch that is due, and its tokens; empty before `due_at`."""
        due = self.due_at()
        batch: list[Item] = []
        tokens = 0
        if due is None or now < due:
            return batch, tokens
        while self._waiting and len(batch) < self._inputs_max:
            if batch and tokens + self._waiting[0][1] > self._tokens_max:
                break
            item, item_tokens, _ = self._waiting.popleft()
            batch.append(item)
            tokens += item_tokens
        self._tokens -= tokens
        return batch, tokens
