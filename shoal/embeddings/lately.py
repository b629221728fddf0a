"""Which texts were finished lately: so that one who looked for a text before its end looks again after it.

Guarantee: `may_hold` is true of every key that was added after `since`; of others it may be, once more than `keys_max`
were added meanwhile. Pure and bounded.
"""

from __future__ import annotations


class Lately:
    """The last `keys_max` keys; `count` is how many there ever were."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._added_at: dict[bytes, int] = {}  # the latest last
        self.count = 0

    def add(self, key: bytes) -> None:
        self.count += 1
        self._added_at.pop(key, None)
        self._added_at[key] = self.count
        if len(self._added_at) > self._keys_max:
            del self._added_at[next(iter(self._added_at))]

    def may_hold(self, key: bytes, since: int) -> bool:
        """Whether `key` may have been added after `count` was `since`."""
        return self._added_at.get(key, 0) > since or self.count - since > self._keys_max
