"""`shoal cost estimate`: a sample speaks for the whole, within the interval it names."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from shoal.cluster.cli import app
from shoal.cluster.estimation import Stratum, by_mean, by_ratio
from shoal.settings import Settings
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, document

LARGE = "openai:text-embedding-3-large"
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return lambda *arguments: CliRunner().invoke(app, ["cost", "estimate", "--data-dir", str(tmp_path), *arguments])


# --- the arithmetic -------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_who_samples_everything_knows_it_exactly(values: list[float]) -> None:
    whole = by_mean(len(values), values)
    assert whole.total == pytest.approx(sum(values))
    assert whole.low == whole.high


def test_the_interval_holds_the_truth_in_about_19_of_20_samples() -> None:
    """Seeded; the bounds are 4 standard deviations of 1,000 samples wide."""
    rng = random.Random(7)
    population = [rng.gauss(1000, 300) for _ in range(2000)]
    known = [value * rng.uniform(0.9, 1.1) for value in population]
    held = {"mean": 0, "ratio": 0}
    for _ in range(1000):
        drawn = rng.sample(range(2000), 50)
        sample = [population[place] for place in drawn]
        mean = by_mean(2000, sample)
        ratio = by_ratio(2000, sum(known), [known[place] for place in drawn], sample)
        held["mean"] += mean.low <= sum(population) <= mean.high
        held["ratio"] += ratio.low <= sum(population) <= ratio.high
        assert ratio.variance < mean.variance  # what is known helps
    assert 915 <= held["mean"] <= 980
    assert 915 <= held["ratio"] <= 980


def test_every_item_is_as_likely_to_be_drawn() -> None:
    drawn = [0] * 20
    for seed in range(2000):
        stratum: Stratum[int] = Stratum(random.Random(seed), 5)
        for item in range(20):
            stratum.add(item, 1)
        for item in stratum.sample:
            drawn[item] += 1
    assert sum(drawn) == 10_000
    assert all(410 <= times <= 590 for times in drawn)  # 500, 4.6 standard deviations either way


# --- a place --------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """60 texts of 100 words each, 3 CSV files, one that is no document, one hidden."""
    root = tmp_path / "place"
    root.mkdir()
    for number in range(60):
        (root / f"note-{number:02}.txt").write_text(f"note {number} " + "the wind blew from the north " * 16)
    for number in range(3):
        (root / f"load-{number}.csv").write_text("zone,mw\n" + "WEST,100\n" * 50)
    (root / "broken.pdf").write_bytes(b"%PDF-1.7 nothing follows")
    (root / ".hidden.txt").write_text("x " * 10_000)
    return root


def test_a_sample_of_a_directory_gives_tokens_money_and_hours(run: Run, place: Path) -> None:
    whole = orjson.loads(run("--path", str(place), "--to", LARGE, "--sample", "1000", "-o", "json").stdout)
    part = orjson.loads(run("--path", str(place), "--to", LARGE, "--sample", "10", "-o", "json").stdout)
    assert (whole["objects"], part["objects"]) == (64, 64)
    kinds = {row["kind"]: row for row in part["kinds"]}
    assert {kind: (row["objects"], row["sampled"]) for kind, row in kinds.items()} == {
        ".txt": (60, 10), ".csv": (3, 3), ".pdf": (1, 1),
    }  # fmt: skip
    assert kinds[".pdf"]["refused"] == 1
    assert whole["tokens"]["low"] == whole["tokens"]["high"] == whole["tokens"]["estimate"]
    assert part["tokens"]["estimate"] == pytest.approx(whole["tokens"]["estimate"], rel=0.1)
    assert whole["usd"]["estimate"] == pytest.approx(whole["tokens"]["estimate"] * 0.13 / 1e6, abs=1e-4)
    assert whole["hours"]["estimate"] == round(whole["tokens"]["estimate"] / 1e6 / 60, 3)
    assert any("dead letters" in note for note in whole["notes"])


def test_the_figures_are_read_by_a_person_too(run: Run, place: Path) -> None:
    result = run("--path", str(place), "--to", "openai:mystery", "--sample", "5")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    assert lines[".txt"][:3] == ["60", str(sum(p.stat().st_size for p in place.glob("note*"))), "5"]
    assert lines["usd"] == ["unknown"]
    assert "no price is known of openai:mystery" in result.stderr


# --- a collection ---------------------------------------------------------------------------------------------


def test_a_collection_is_counted_as_the_other_model_counts(run: Run, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    documents = [document(f"prod:ds:d{n}", n, content=f"content {n} " + "word " * (n % 7)) for n in range(30)]
    now = datetime.now(UTC)
    writer = TableWriter.open(settings.tables_uri, {}, MODEL, WIDTH, settings=settings, now=now)
    writer.apply(documents, (), now)
    everything = _estimate(run, "--collection", "scraper", "--to", LARGE, "--sample", "1000")
    assert everything["sampled"] == everything["chunks"] == 60
    assert everything["from"] == MODEL
    assert everything["tokens"]["low"] == everything["tokens"]["high"] > 0
    some = _estimate(run, "--collection", "scraper", "--to", LARGE, "--sample", "2")
    assert some["sampled"] == 20
    assert some["tokens"]["low"] <= everything["tokens"]["estimate"] <= some["tokens"]["high"]


def _estimate(run: Run, *arguments: str) -> dict[str, Any]:
    result = run(*arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = orjson.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "name one of the two"),
        (("--path", "x", "--collection", "y"), "name one of the two"),
        (("--path", "/nowhere/at/all"), "there is no such directory"),
        (("--path", "s3://"), "s3://"),
        (("--collection", "other"), "there is no collection 'other'"),
        (("--path", ".", "--to", "gpt"), "embedding model 'gpt' is unknown"),
    ],
)
def test_what_can_not_be_estimated_is_said(run: Run, arguments: tuple[str, ...], why: str) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert why in str(result.exception)
