"""The real scrapes announced again and again, in any order, with older versions among them: the tables are the same.

What may differ is where a message stood in the log (`kafka_*`), when it was written (`indexed_at`), and the rows of
versions that are history. Everything else is compared as it lies on disk, vectors included. By default the vectors
are those of the hash model, since order is what is tested; SHOAL_TEST_EMBEDDER=local takes the model that users have.
And by default it is a fifth of the files, some of every kind; SHOAL_TEST_SHARE=1 (`make twice`) takes all of them.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import lance
import numpy as np
import orjson
import pytest

from shoal.cluster.announcing import Announcer, Tally
from shoal.settings import load
from shoal.sources.publishing import Prepared, prepare
from tests.fixtures.stack import Stack
from tests.integration.test_real_data import DATA

SEED = int(os.environ.get("SHOAL_TEST_SEED") or 3)
SHARE = float(os.environ.get("SHOAL_TEST_SHARE") or 0.2)
EMBEDDER = os.environ.get("SHOAL_TEST_EMBEDDER") or "hash"
IDLE_S = 120.0
OF_THE_LOG = ("kafka_cluster", "kafka_topic", "kafka_partition", "kafka_offset", "kafka_timestamp_ms", "indexed_at")
VECTORS = {"scraper_metadata": "schema_embedding", "scraper_vectors": "content_embedding"}

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not (DATA / "MANIFEST.json").exists(), reason=f"the real data set is not at {DATA}"),
]


def sample(messages: Sequence[Prepared]) -> list[Prepared]:
    """A SHARE of every kind of file by its suffix, at least one of each, in the order of `messages`."""
    rng, chosen, kinds = random.Random(SEED), set[str](), by_suffix(messages)
    for suffix in sorted(kinds):
        alike = kinds[suffix]
        chosen |= {message.document_id for message in rng.sample(alike, math.ceil(SHARE * len(alike)))}
    return [message for message in messages if message.document_id in chosen]


def by_suffix(messages: Sequence[Prepared]) -> dict[str, list[Prepared]]:
    found: dict[str, list[Prepared]] = {}
    for message in messages:
        found.setdefault(PurePath(message.urn).suffix, []).append(message)
    return found


def older(message: Prepared, body_of: Prepared) -> Prepared:
    """An earlier version of the document of `message`, whose bytes were those of another file."""
    mine, other = orjson.loads(message.value), orjson.loads(body_of.value)
    sizes = ("original_file_size", "original_file_md5sum", "content_type")
    metadata = {name: value for name, value in mine["metadata"].items() if name not in sizes}
    metadata |= {name: value for name, value in other["metadata"].items() if name in sizes}
    value = orjson.dumps(mine | {"location": other["location"], "version": "19990101T000000Z", "metadata": metadata})
    return Prepared(message.key, value, message.urn, message.document_id, body_of.location, body_of.size_bytes)


def index(directory: Path, shelf: Path, messages: Sequence[Prepared]) -> tuple[Tally, dict[str, Any]]:
    """The tally, and both tables, of a new Shoal that was told `messages` in this order."""
    environment = {"SHOAL_EMBEDDING_PROVIDER": EMBEDDER, "SHOAL_ALLOWED_ROOTS": str(shelf)}
    with Stack(directory, environment) as stack:
        with Announcer(load(data_dir=directory / "data"), listen=True) as announcer:
            announcer.send(messages)
            assert announcer.wait(IDLE_S), f"no outcome for {len(announcer.tally.waiting)}\n{stack.log()}"
        tally = announcer.tally
    return tally, {name: rows(directory / "data" / "lancedb" / f"{name}.lance", name) for name in VECTORS}


def rows(path: Path, table: str) -> dict[str, dict[str, Any]]:
    """Current rows by key, without what is the log's."""
    dataset = lance.dataset(path)
    current = "fence IS NULL" + (" AND superseded_at IS NULL" if "superseded_at" in dataset.schema.names else "")
    key = "revision" if table == "scraper_metadata" else "id"
    found = dataset.to_table(filter=current).to_pylist()
    by_key = {row[key]: {name: value for name, value in row.items() if name not in OF_THE_LOG} for row in found}
    assert len(by_key) == len(found), "a key stands once"
    return by_key


def test_the_real_data_announced_over_and_over_in_any_order_gives_the_tables_of_once(tmp_path: Path) -> None:
    problems: list[str] = []
    everything = list(prepare([DATA], load(data_dir=tmp_path / "shelf"), on_problem=problems.append))
    assert not problems
    messages = sample(everything)
    assert len(messages) >= SHARE * len(everything)
    shelf = tmp_path / "shelf" / "objects"
    once, tables_once = index(tmp_path / "once", shelf, messages)
    assert once.outcomes == {"indexed": len(messages)}

    rng = random.Random(SEED)
    again = [*messages, *messages, *rng.sample(messages, len(messages) // 5)]
    alike = by_suffix(messages)  # a name that belies its content may be refused
    for message in rng.sample(messages, len(messages) // 5):
        again.append(older(message, rng.choice(alike[PurePath(message.urn).suffix])))
    rng.shuffle(again)
    for message in rng.sample(messages, 20):  # the very same message, back to back
        place = again.index(message)
        again[place:place] = [message] * 3
    twice, tables_twice = index(tmp_path / "twice", shelf, again)
    assert twice.adds_up
    assert not twice.dead
    assert twice.outcomes["indexed"] >= len(messages)
    assert twice.outcomes["superseded"], "some older versions came late"
    assert twice.outcomes["unchanged"] >= len(messages)

    for name, vector in VECTORS.items():
        expected, found = tables_once[name], tables_twice[name]
        assert found.keys() == expected.keys(), name
        assert expected, "there is something to compare"
        for key, row in expected.items():
            other = found[key]
            assert {**other, vector: None} == {**row, vector: None}, key
            assert (other[vector] is None) == (row[vector] is None), key
            if row[vector] is not None:
                np.testing.assert_allclose(other[vector], row[vector], atol=1e-6, rtol=0, err_msg=key)
