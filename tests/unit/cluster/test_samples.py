"""The sample scrapes: the same for a seed, of many formats, and each with the outcome it must have."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from pathlib import Path

import pytest

from shoal.cluster.samples import BOMB_BYTES, FEEDS, Sample, make_samples, prepared
from shoal.documents.pipeline import Context, Limits, TokenBudget, extract_document
from shoal.errors import BadDocument, DeadReason
from shoal.records import Announcement, Outcome, Position
from shoal.settings import Settings, load
from shoal.sources.messages import RawMessage, parse_message
from shoal.sources.objects import ObjectReader


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("samples")


@pytest.fixture(scope="module")
def samples(root: Path) -> list[Sample]:
    return make_samples(root)


def settings(root: Path) -> Settings:
    return load(allowed_roots=str(root))


def parsed(sample: Sample, root: Path) -> Announcement:
    message = prepared(sample)
    position = Position("test", "scraper-notifications", 0, 0, 0)
    (work,) = parse_message(RawMessage(position, message.key, message.value), settings(root))
    assert isinstance(work, Announcement)
    return work


def test_the_outcomes_are_as_many_as_announced(samples: list[Sample]) -> None:
    assert Counter(sample.expect for sample in samples) == {
        Outcome.INDEXED: 278,
        Outcome.UNCHANGED: 6,
        Outcome.SUPERSEDED: 6,
        Outcome.DEAD_LETTERED: 10,
    }
    assert all((sample.reason is not None) == (sample.expect is Outcome.DEAD_LETTERED) for sample in samples)


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    one, two, other = (make_samples(tmp_path / name, 60, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert [(sample.urn, sample.sha256, sample.version) for sample in one] == [
        (sample.urn, sample.sha256, sample.version) for sample in two
    ]
    assert [sample.sha256 for sample in one] != [sample.sha256 for sample in other]


@pytest.mark.parametrize("count", [1, 7, 24, 100])
def test_any_count_is_kept(count: int, tmp_path: Path) -> None:
    assert len(make_samples(tmp_path, count)) == count


def test_sizes_are_those_of_scrapes(samples: list[Sample]) -> None:
    sizes = sorted(sample.path.stat().st_size for sample in samples if sample.path)
    assert sum(1_000 <= size <= 1_000_000 for size in sizes) > 0.8 * len(sizes)
    assert 1_000_000 < sizes[-1] < 4_000_000
    assert sum(sizes) < 40_000_000


def test_what_is_announced_is_what_is_stored_but_for_the_altered_one(samples: list[Sample]) -> None:
    altered = []
    for sample in samples:
        if sample.path is not None:
            data = sample.path.read_bytes()
            assert (sample.size_bytes, sample.sha256) == (len(data), hashlib.sha256(data).hexdigest())
            if sample.md5 != hashlib.md5(data).hexdigest():
                altered.append(sample.urn)
    assert altered == ["altered_on_the_way.json"]


def test_a_document_comes_again_only_after_it_came_first(samples: list[Sample]) -> None:
    current: dict[bytes, Sample] = {}
    for sample in samples:
        key = prepared(sample).key
        before = current.get(key)
        if sample.expect is Outcome.UNCHANGED:
            assert before is not None
            assert (before.sha256, before.version < sample.version) == (sample.sha256, True)
        elif sample.expect is Outcome.SUPERSEDED:
            assert before is not None
            assert before.version > sample.version
        elif before is not None and sample.expect is Outcome.INDEXED:
            assert (before.version < sample.version, before.sha256 != sample.sha256) == (True, True)
        if sample.expect in (Outcome.INDEXED, Outcome.UNCHANGED):
            current[key] = sample


def test_the_bomb_is_small_and_valid(samples: list[Sample]) -> None:
    (bomb,) = (sample for sample in samples if sample.urn.startswith("bomb"))
    assert bomb.path is not None
    assert bomb.size_bytes < 300_000
    unzip = zlib.decompressobj(wbits=31)
    data, size = bomb.path.read_bytes(), 0
    while data and not unzip.eof:
        size += len(unzip.decompress(data, 16 * 1024 * 1024))
        data = unzip.unconsumed_tail
    assert (unzip.eof, size) == (True, BOMB_BYTES)


def test_each_broken_one_breaks_for_its_reason(samples: list[Sample], root: Path) -> None:
    found: dict[str, DeadReason | None] = {}
    reader = ObjectReader(settings(root))
    for sample in samples:
        if sample.expect is Outcome.DEAD_LETTERED:
            try:
                extract(reader.read(parsed(sample, root)).data, sample)
                found[sample.urn] = None
            except BadDocument as error:
                found[sample.urn] = error.reason
    assert found == {sample.urn: sample.reason for sample in samples if sample.expect is Outcome.DEAD_LETTERED}
    assert len(found) == 10


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.dataset)
def test_each_feed_can_be_read_and_described(feed: object, samples: list[Sample], root: Path) -> None:
    sample = next(sample for sample in samples if sample.dataset == feed.dataset and sample.reason is None)  # type: ignore[attr-defined]
    work = parsed(sample, root)
    assert (work.version, work.collected_at, work.urn) == (sample.version, sample.collected_at, sample.urn)
    assert "securityToken=0f1e" not in (work.source_url or "")
    extraction = extract(ObjectReader(settings(root)).read(work).data, sample)
    assert extraction.chunks  # type: ignore[attr-defined]


def extract(data: bytes, sample: Sample) -> object:
    context = Context(
        name=sample.urn,
        content_type=sample.content_type,
        source_url=sample.url,
        data_source=sample.source.upper(),
        data_type=sample.data_type,
        dataset=sample.dataset,
        collected_at=sample.collected_at,
    )
    limits = Limits(decompressed_bytes_max=load().decompressed_bytes_max, chunks_max=200)
    return extract_document(data, context, limits, TokenBudget(lambda text: len(text) // 4, 256, 32))
