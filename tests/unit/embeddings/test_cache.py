"""The cache gives back what was put, stays within its bound, and never fails its user."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest

from shoal.embeddings.cache import EmbeddingCache, cache_key

WIDTH = 64
MIB = 1024 * 1024


def unit(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)
    return vector / np.linalg.norm(vector)


def key(i: int) -> bytes:
    return cache_key("hash:64", WIDTH, "document", f"text {i}")


def test_a_hit_is_bit_for_bit_what_was_put_also_after_reopening(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "deep" / "c.sqlite", MIB)
    put = {key(i): unit(i) for i in range(1200)}
    cache.put_many(put)
    cache.close()
    cache = EmbeddingCache(tmp_path / "deep" / "c.sqlite", MIB)
    got = cache.get_many([key(-1), *put], WIDTH)
    assert got.keys() == put.keys()
    assert all(got[k].tobytes() == put[k].tobytes() for k in put)
    cache.close()


def test_the_key_tells_model_width_kind_and_text_apart() -> None:
    keys = [
        cache_key("a", 1, "document", "x"), cache_key("b", 1, "document", "x"), cache_key("a", 2, "document", "x"),
        cache_key("a", 1, "query", "x"), cache_key("a", 1, "document", "y"), cache_key("a", 1, "document", "\ud800"),
    ]  # fmt: skip
    assert len({*keys}) == len(keys)


def test_the_file_stays_within_its_bound_and_the_recently_used_stay(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "c.sqlite", MIB)
    favourite = key(0)
    for start in range(0, 12_000, 100):
        cache.put_many({key(i): unit(i) for i in range(start, start + 100)})
        assert favourite in cache.get_many([favourite], WIDTH), start
    assert (tmp_path / "c.sqlite").stat().st_size < 1.5 * MIB
    left = cache.get_many([key(i) for i in range(12_000)], WIDTH)
    assert 1000 < len(left) < 4000
    assert key(11_999) in left
    assert key(1) not in left
    cache.close()


def test_a_cache_in_memory_is_bounded_too() -> None:
    cache = EmbeddingCache(None, MIB)
    for start in range(0, 6000, 100):
        cache.put_many({key(i): unit(i) for i in range(start, start + 100)})
    assert 1000 < len(cache.get_many([key(i) for i in range(6000)], WIDTH)) < 4000
    cache.close()


@pytest.mark.parametrize(
    "content", [b"this is no database, however long it may be" * 100, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_file_that_is_no_database_is_made_anew_with_a_warning(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(content)
    cache = EmbeddingCache(path, MIB)
    cache.put_many({key(1): unit(1)})
    assert key(1) in cache.get_many([key(1)], WIDTH)
    assert "made anew" in caplog.text
    cache.close()


def test_a_database_of_somebody_else_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with sqlite3.connect(tmp_path / "c.sqlite") as other:
        other.execute("CREATE TABLE vectors (id, name)")
    other.close()
    cache = EmbeddingCache(tmp_path / "c.sqlite", MIB)
    cache.put_many({key(1): unit(1)})
    assert key(1) in cache.get_many([key(1)], WIDTH)
    assert "other columns" in caplog.text
    cache.close()


def test_pages_that_break_while_open_cost_entries_not_the_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.sqlite"
    cache = EmbeddingCache(path, 8 * MIB)
    cache.put_many({key(i): unit(i) for i in range(8000)})
    cache.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 8192))
    cache = EmbeddingCache(path, 8 * MIB)
    cache.get_many([key(i) for i in range(8000)], WIDTH)
    cache.put_many({key(1): unit(1)})
    assert key(1) in cache.get_many([key(1)], WIDTH)
    assert "made anew" in caplog.text
    cache.close()


def test_an_entry_that_is_no_unit_vector_of_the_width_is_a_miss(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "c.sqlite", MIB)
    cache.put_many({key(1): unit(1)[:32], key(2): unit(2) * 2, key(3): unit(3) * np.float32("nan"), key(4): unit(4)})
    assert [*cache.get_many([key(i) for i in range(1, 5)], WIDTH)] == [key(4)]
    cache.close()


def test_a_path_that_cannot_be_opened_means_caching_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "c.sqlite").mkdir()
    cache = EmbeddingCache(tmp_path / "c.sqlite", MIB)
    cache.put_many({key(1): unit(1)})
    assert key(1) in cache.get_many([key(1)], WIDTH)
    assert "in memory" in caplog.text
    cache.close()
    (tmp_path / "file").write_text("")
    below_a_file = EmbeddingCache(tmp_path / "file" / "c.sqlite", MIB)
    below_a_file.put_many({key(1): unit(1)})
    assert key(1) in below_a_file.get_many([key(1)], WIDTH)
    below_a_file.close()


def test_a_locked_file_costs_the_write_not_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shoal.embeddings.cache._BUSY_TIMEOUT_S", 0.01)
    cache = EmbeddingCache(tmp_path / "c.sqlite", MIB)
    other = sqlite3.connect(tmp_path / "c.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    cache.put_many({key(1): unit(1)})
    assert "locked" in caplog.text
    other.execute("ROLLBACK")
    other.close()
    cache.put_many({key(2): unit(2)})
    assert [*cache.get_many([key(1), key(2)], WIDTH)] == [key(2)]
    cache.close()


def test_two_caches_on_one_file_see_each_others_entries(tmp_path: Path) -> None:
    one, two = (EmbeddingCache(tmp_path / "c.sqlite", MIB) for _ in range(2))
    one.put_many({key(1): unit(1)})
    two.put_many({key(2): unit(2)})
    assert len(one.get_many([key(1), key(2)], WIDTH)) == len(two.get_many([key(1), key(2)], WIDTH)) == 2
    one.close()
    two.close()


def test_threads_may_share_a_cache(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "c.sqlite", 8 * MIB)

    def work(start: int) -> None:
        for i in range(start, start + 200, 20):
            cache.put_many({key(j): unit(j) for j in range(i, i + 20)})
            cache.get_many([key(j) for j in range(i + 20)], WIDTH)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 800, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache.get_many([key(i) for i in range(800)], WIDTH)) == 800
    cache.close()


def test_a_closed_cache_misses(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "c.sqlite", MIB)
    cache.close()
    cache.close()
    cache.put_many({key(1): unit(1)})
    assert cache.get_many([key(1)], WIDTH) == {}


def test_what_is_forgotten_is_overwritten_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    cache = EmbeddingCache(path, 1 << 20)
    vectors = {bytes([n]) * 32: np.eye(64, dtype=np.float32)[n] for n in range(3)}
    cache.put_many(vectors)
    key = bytes([1]) * 32
    assert cache.forget_many([key, b"\xff" * 32]) == 1
    assert list(cache.get_many(list(vectors), 64)) == [bytes([0]) * 32, bytes([2]) * 32]
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert bytes([2]) * 32 in left
    assert key not in left
    cache.close()
