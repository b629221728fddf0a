"""What the tables hold is found again by document and text, and anything odd means only that it is paid for."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest

from shoal.records import Embedded, Progress
from shoal.settings import Settings, load
from shoal.store.known_vectors import REST_S, KnownVectors
from shoal.store.writing import TableWriter
from tests.fixtures.documents import COLLECTED_AT, MODEL, WIDTH, document, vector

PROGRESS = (Progress("cluster", "topic", 0, 10),)
QUOTED = 'prod:nyiso_load:it\'s "here" -- ; DROP'


def written(settings: Settings, *items: Embedded) -> None:
    writer = TableWriter.open(settings.tables_uri, {}, MODEL, WIDTH, settings=settings, now=COLLECTED_AT)
    writer.apply(items, PROGRESS, COLLECTED_AT)
    writer.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(data_dir=tmp_path)


async def test_the_vectors_of_the_stored_version_are_found_by_text(settings: Settings) -> None:
    written(settings, document("prod:d:a", 1, content="old"), document(QUOTED, 2, content="quoted"))
    known = KnownVectors(settings, MODEL)
    found = await asyncio.gather(
        known.of("prod:d:a", ["old part 1", "new part"]),
        known.of(QUOTED, ["quoted part 0"]),
        known.of("prod:d:a", ["old part 0"]),
        known.of("prod:d:unseen", ["old part 0"]),
    )
    await known.close()
    assert found[0].keys() == {"old part 0", "old part 1"}, "both asked for the same document"
    np.testing.assert_allclose(found[0]["old part 1"], vector("old part 1"), atol=1e-6)
    assert found[1].keys() == {"quoted part 0"}
    assert found[3] == {}


async def test_vectors_of_another_model_are_nobodys(settings: Settings) -> None:
    written(settings, document("prod:d:a", 1, content="old"))
    known = KnownVectors(settings, "hash:16")
    assert await known.of("prod:d:a", ["old part 0"]) == {}
    await known.close()


async def test_a_vector_that_is_not_of_length_one_is_not_used(settings: Settings) -> None:
    item = document("prod:d:a", 1, content="old")
    assert item.vectors is not None
    item.vectors[0] *= 3
    written(settings, item)
    known = KnownVectors(settings, MODEL)
    assert (await known.of("prod:d:a", ["old part 0", "old part 1"])).keys() == {"old part 1"}
    await known.close()


async def test_tables_that_are_away_are_asked_again_only_after_a_while(settings: Settings) -> None:
    now = 100.0
    known = KnownVectors(settings, MODEL, clock=lambda: now)
    assert await known.of("prod:d:a", ["old part 0"]) == {}
    written(settings, document("prod:d:a", 1, content="old"))
    assert await known.of("prod:d:a", ["old part 0"]) == {}
    now += REST_S
    assert (await known.of("prod:d:a", ["old part 0"])).keys() == {"old part 0"}
    # And tables that go away do no harm either.
    shutil.rmtree(Path(settings.tables_uri))
    assert await known.of("prod:d:b", ["old part 0"]) == {}
    await known.close()


async def test_a_caller_that_leaves_takes_nothing_from_the_others(settings: Settings) -> None:
    written(settings, document("prod:d:a", 1, content="old"))
    known = KnownVectors(settings, MODEL)
    leaving, staying = (asyncio.create_task(known.of("prod:d:a", ["old part 0"])) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).keys() == {"old part 0"}
    await known.close()
