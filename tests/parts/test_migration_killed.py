"""A change of the model that is killed at each of its moments goes on where it was, and nobody is harmed meanwhile.

Real processes, real SIGKILL: each run ends at the next point; between two runs the collection is written to, by
whoever is its writer then. At the end the one set holds what the other holds, and the drop is killed as well.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shoal import faults
from shoal.cluster.migrating import beside, in_use, uris
from shoal.records import Embedded, Outcome
from shoal.settings import Settings, load
from shoal.store.mirroring import difference, opened
from shoal.store.place import at
from shoal.store.state_files import read_state
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, command, deletion, document, failed
from tests.fixtures.migration_process import WIDER

ROOT = Path(__file__).parents[2]
IN_ORDER = (
    "migration.after_call", "mirror.before_chunks", "mirror.after_chunks", "mirror.after_metadata", "migration.holding",
    "handover.before", "handover.after",
)  # fmt: skip
LATE = "migration.dropping"


def run(settings: Settings, step: str, point: str = "") -> int:
    armed = settings.home / "faults"
    armed.mkdir(exist_ok=True)
    if point:
        (armed / point).write_text("0")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fixtures.migration_process", str(settings.home), step],
        cwd=ROOT, env=os.environ | {faults.DIRECTORY_VARIABLE: str(armed)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    print(step, point, done.returncode, done.stdout[-300:], done.stderr[-600:])
    return done.returncode


def write(settings: Settings, number: int, *more: Any) -> None:
    """As the writer of the collection, wherever that is; after any hold has run out."""
    used = in_use(settings)
    now = datetime.now(UTC) + timedelta(minutes=5)
    writer = TableWriter.open(
        used.uri, {}, used.facts.model, used.facts.width, settings=at(settings, used.uri), now=now, role=used.role
    )
    made = document(f"prod:ds:new{number}", 100 + number, content=f"brought {number}", width=used.facts.width)
    acks = writer.apply([Embedded(made.fetched, used.facts.model, made.vectors, made.schema_vector), *more], (), now)
    assert acks[0].outcome is Outcome.INDEXED
    writer.close()


def spent(settings: Settings) -> int:
    state = read_state(at(settings, f"{settings.tables_uri}/_generations/2"), "migration.json")
    return int(state["spent_tokens"]) if state else 0


@pytest.mark.timeout(300)
def test_a_migration_killed_at_each_of_its_moments_ends_with_the_same_tables(tmp_path: Path) -> None:
    assert {*IN_ORDER, LATE} == set(faults.MIGRATION_POINTS)
    settings = load(data_dir=tmp_path, embedding_provider="hash")
    writer = TableWriter.open(settings.tables_uri, {}, MODEL, WIDTH, settings=settings, now=datetime.now(UTC))
    writer.apply(
        [
            *(document(f"prod:ds:{at_}", at_, content=f"text {at_} " + 20 * "word ", chunks=3) for at_ in range(20)),
            document("prod:ds:0", 30, version="v2", content="newer"),
            deletion("prod:ds:1", 31),
            failed("prod:ds:x", 32, content="broken"),
            command("c1", "fix", {"scraper_name": "s", "summary": "use the other key"}, text="KeyError"),
        ],
        (),
        datetime.now(UTC),
    )
    writer.close()
    whole = 0
    for number, point in enumerate(IN_ORDER):
        before = spent(settings)
        assert run(settings, "switch", point) == -signal.SIGKILL, f"{point} was not reached"
        if point == "migration.after_call":
            whole = spent(settings)
        if point == "migration.holding":  # all but what came since was there: that is not paid for again
            assert 0 < spent(settings) - before < whole / 4
        assert in_use(settings).number == (2 if point == "handover.after" else 1), point
        write(settings, number, deletion(f"prod:ds:{10 + number}", 40 + number))
    assert run(settings, "switch") == 0  # it has moved: nothing to do
    used = in_use(settings)
    left = beside(settings, used)
    assert left is not None
    assert (used.number, used.facts.model, left.number) == (2, WIDER, 1)
    differing = difference(opened(uris(used.uri), {}), opened(uris(left.uri), {}), with_pending_jobs=True)
    assert set(differing.documents) == {"prod:ds:new6", "prod:ds:16"}, "but for what came after the switch"
    assert not differing.keys

    assert run(settings, "drop", LATE) == -signal.SIGKILL
    assert in_use(settings).number == 2
    write(settings, 7)
    assert run(settings, "drop") == 0
    assert beside(settings, in_use(settings)) is None
    write(settings, 8)
