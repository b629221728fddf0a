from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from shoal.sources.verification import Expected, mismatch

DATA = b"time,load\n" + b"2025-01-20,17\n" * 1000
EXPECTED = Expected(len(DATA), hashlib.md5(DATA).hexdigest())
LIMIT = 1024 * 1024


PACKED = {
    "stored": DATA,
    "gzip": gzip.compress(DATA),
    "gzip of two members": gzip.compress(DATA[:10]) + gzip.compress(DATA[10:]),
    "gzip with trailing zeros": gzip.compress(DATA) + b"\0" * 10,
    "bz2": bz2.compress(DATA),
    "xz": lzma.compress(DATA),
    "zst": zstandard.compress(DATA),
    "zst of two frames": zstandard.compress(DATA[:10]) + zstandard.compress(DATA[10:]),
}


@pytest.mark.parametrize("how", PACKED)
def test_what_unfolds_to_what_was_announced_fits(how):
    assert mismatch(PACKED[how], EXPECTED, LIMIT) is None


def test_nothing_announced_is_nothing_to_check():
    assert mismatch(b"whatever", Expected(), LIMIT) is None


@pytest.mark.parametrize(
    "packed", [gzip.compress(DATA), bz2.compress(DATA), lzma.compress(DATA), zstandard.compress(DATA)]
)
def test_a_truncated_archive_does_not_fit(packed):
    assert mismatch(packed[:-5], EXPECTED, LIMIT) is not None


def test_size_and_md5_must_fit_the_same_bytes():
    packed = gzip.compress(DATA)
    assert mismatch(packed, Expected(len(packed), EXPECTED.md5), LIMIT) is not None


def test_a_bomb_is_not_unfolded_past_the_limit():
    bomb = gzip.compress(b"\0" * 20_000_000)
    unfolded = Expected(20_000_000)
    assert mismatch(bomb, unfolded, 20_000_000) is None
    assert mismatch(bomb, unfolded, 1_000_000) == f"{len(bomb)} bytes stored, 20000000 announced"


def test_a_mismatch_says_what_was_found_and_what_was_announced():
    found = hashlib.md5(b"other").hexdigest()
    told = f"5 bytes stored, {len(DATA)} announced; md5 {found} stored, {EXPECTED.md5} announced"
    assert mismatch(b"other", EXPECTED, LIMIT) == told


@given(st.sampled_from([b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b""]), st.binary(max_size=200))
def test_no_bytes_break_the_check(magic, rest):
    assert mismatch(magic + rest, Expected(md5="0" * 32), LIMIT)
