"""The embedding cache against a dictionary: killed, cut off from power, truncated, shared, full."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.embeddings.cache import EmbeddingCache, cache_key
from tests.properties.profiles import examples

WIDTH = 128
KIB = 1024
VECTORS = np.random.default_rng(7).normal(size=(600, WIDTH)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
KEYS = [cache_key("m", WIDTH, "document", str(number)) for number in range(len(VECTORS))]


class CacheMachine(RuleBasedStateMachine):
    """`bytes_max` is either never reached, so that nothing may be missing, or soon."""

    @initialize(is_small=st.booleans())
    def begin(self, is_small: bool) -> None:
        self.is_small = is_small
        self.bytes_max = 128 * KIB if is_small else 64 * KIB * KIB
        self.home = Path(tempfile.mkdtemp(prefix="cache-"))
        self.lives = 0
        self.path = self.home / "0.sqlite"
        self.open()
        self.put_so_far: set[int] = set()  # numbers that must be there unless the file is small
        self.mark()

    def open(self) -> None:
        self.caches = [EmbeddingCache(self.path, self.bytes_max) for _ in range(2)]  # two processes

    def mark(self) -> None:
        """What a power cut spares: sqlite syncs its log when it is merged into the file, and not before."""
        self.marked_log, self.marked_file = self.size("-wal"), self.path.stat().st_mtime_ns
        self.unsynced: set[int] = set()

    def size(self, suffix: str) -> int:
        path = Path(f"{self.path}{suffix}")
        return path.stat().st_size if path.exists() else 0

    @rule(start=st.integers(0, len(KEYS) - 1), count=st.integers(1, 12), who=st.integers(0, 1))
    def put(self, start: int, count: int, who: int) -> None:
        numbers = range(start, min(start + count, len(KEYS)))
        self.mark()
        self.caches[who].put_many({KEYS[number]: VECTORS[number] for number in numbers})
        self.unsynced = set(numbers) - self.put_so_far
        self.put_so_far.update(numbers)

    @rule(start=st.integers(0, 200), who=st.integers(0, 1))
    def fill(self, start: int, who: int) -> None:
        """More than a small cache takes, in pieces far smaller than it: one write frees a tenth."""
        for first in range(start, start + 400, 8):
            self.put(first, 8, who)

    @rule(numbers=st.lists(st.integers(0, len(KEYS) - 1), max_size=80), who=st.integers(0, 1))
    def get(self, numbers: list[int], who: int) -> None:
        found = self.caches[who].get_many([KEYS[number] for number in numbers], WIDTH)
        for number in numbers:
            vector = found.get(KEYS[number])
            if vector is not None:
                assert number in self.put_so_far, "nothing comes from nowhere"
                assert vector.tobytes() == VECTORS[number].tobytes(), "bit for bit"
            elif not self.is_small:
                assert number not in self.put_so_far, "nothing is forgotten while there is room"

    @rule(torn=st.none() | st.floats(0, 1))
    def kill(self, torn: float | None) -> None:
        """kill -9 of both; with `torn`, the power goes too, and that share of the last write is on disk."""
        self.lives += 1
        new = self.home / f"{self.lives}.sqlite"
        log_bytes = self.size("-wal")
        for suffix in ("", "-wal"):
            if Path(f"{self.path}{suffix}").exists():
                shutil.copy(f"{self.path}{suffix}", f"{new}{suffix}")
        is_merged = self.path.stat().st_mtime_ns != self.marked_file
        if torn is not None and torn < 1 and not is_merged and log_bytes > self.marked_log:
            with Path(f"{new}-wal").open("r+b") as log:
                log.truncate(self.marked_log + int((log_bytes - self.marked_log) * torn))
            self.put_so_far -= self.unsynced
        self.close()
        self.path = new
        self.open()
        self.mark()

    @precondition(lambda self: self.lives < 6)
    @rule(share=st.floats(0, 1))
    def truncate(self, share: float) -> None:
        """The file system loses the end of the file: entries may be gone, and nothing else happens."""
        self.lives += 1
        self.close()
        with self.path.open("r+b") as file:
            file.truncate(int(self.path.stat().st_size * share))
        self.is_small = True
        self.open()
        self.mark()

    @invariant()
    def the_file_is_bounded(self) -> None:
        if hasattr(self, "caches"):
            assert self.size("") <= self.bytes_max * 1.3 + 60 * KIB
            assert self.size("-wal") <= 8 * KIB * KIB

    @rule()
    def it_still_works(self) -> None:
        for _ in range(3):  # the write that finds the damage is dropped, and so is what a read finds out of place
            self.put(5, 1, 0)
            self.caches[0].get_many([KEYS[5]], WIDTH)
        assert KEYS[5] in self.caches[0].get_many([KEYS[5]], WIDTH), "however it was hurt, it caches"

    def close(self) -> None:
        for cache in self.caches:
            cache.close()

    def teardown(self) -> None:
        if hasattr(self, "caches"):
            self.close()
            assert self.size("") <= self.bytes_max * 1.3 + 60 * KIB
            shutil.rmtree(self.home)


TestACacheIsBoundedExactAndNeverFailsItsUser = CacheMachine.TestCase
TestACacheIsBoundedExactAndNeverFailsItsUser.settings = examples(25, steps=30)
