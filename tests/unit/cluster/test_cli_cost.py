"""`shoal cost`: the ledger as a person and a script get it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner, Result

from shoal.cluster.cli import app
from shoal.spending import Counts, SpendKey, entry, spend_key
from tests.fixtures.ledger import tell

SMALL = "openai:text-embedding-3-small"
TODAY = datetime.now(UTC).date()
Run = Callable[..., Result]


def key(
    back: int = 0, source: str = "NYISO", dataset: str = "load", model: str = SMALL, lane: str = "live"
) -> SpendKey:
    return spend_key((TODAY - timedelta(days=back)).isoformat(), model, "scraper", source, dataset, lane)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return lambda *arguments: CliRunner().invoke(app, ["cost", "--data-dir", str(tmp_path), *arguments])


@pytest.fixture
def ledger(tmp_path: Path) -> None:
    counts = {
        key(): Counts(2, 0, 10, 50_000_000, 0),
        key(1, "CAISO", "=cmd|' /C calc'!A0"): Counts(3, 1, 10, 60_000_000, 10_000_000),
        key(1, lane="batch"): Counts(1, 0, 10, 50_000_000, 0),
        key(40): Counts(1, 0, 1, 7, 0),
    }
    tell(tmp_path / "lancedb", {"book": "b", "entries": [entry(*each) for each in counts.items()]})


def test_each_day_is_a_row_with_its_money_and_the_last_row_is_their_sum(run: Run, ledger: None) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][:3] == ["day", "usd", "tokens"]
    assert lines[1][:3] == [TODAY.isoformat(), "1.0000", "50000000"]
    assert lines[2][:3] == [(TODAY - timedelta(days=1)).isoformat(), "1.5000", "110000000"]  # half a dollar by batch
    assert lines[3][:3] == ["total", "2.5000", "160000000"]
    assert "as recorded through" in result.stderr


def test_it_groups_and_filters(run: Run, ledger: None) -> None:
    found = orjson.loads(run("--by", "month,source", "--since", "60d", "--source", "nyiso", "-o", "json").stdout)
    assert {row["source"] for row in found["rows"]} == {"NYISO"}
    assert found["total"]["tokens"] == 100_000_007
    assert found["by"] == ["month", "source"]


def test_csv_is_read_by_a_spreadsheet_and_runs_no_formula(run: Run, ledger: None) -> None:
    rows = list(csv.DictReader(io.StringIO(run("--by", "dataset", "-o", "csv").stdout)))
    assert {row["dataset"] for row in rows} == {"load", "'=cmd|' /C calc'!A0"}
    assert sum(float(row["usd"]) for row in rows) == pytest.approx(2.5)


def test_a_model_without_a_price_is_told_and_ones_own_table_gives_it_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = entry(key(model="openai:mystery"), Counts(1, 0, 1, 1_000_000, 0))
    tell(tmp_path / "lancedb", {"book": "b", "entries": [line]})
    result = run("--by", "model")
    assert result.stdout.splitlines()[1].split()[:2] == ["openai:mystery", "?"]
    assert "no price is known of openai:mystery" in result.stderr
    own = tmp_path / "prices.toml"
    own.write_text('[[price]]\nmodel = "openai:mystery"\nusd_per_million = 3\n')
    monkeypatch.setenv("SHOAL_PRICES", str(own))
    monkeypatch.setenv("SHOAL_BUDGET_DAY_USD", "4")
    result = run("--by", "model")
    assert result.stdout.splitlines()[1].split()[:2] == ["openai:mystery", "3.0000"]
    assert "budget of this day: $3.00 of $4.00" in result.stderr


def test_without_a_ledger_there_is_nothing_and_no_error(run: Run) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert "nothing is recorded" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--by", "week"), "--by: choose of day"),
        (("--since", "soon"), "--since: not a date"),
        (("-o", "xml"), "-o xml"),
    ],
)
def test_a_wrong_option_is_named(run: Run, arguments: tuple[str, ...], why: str) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert why in str(result.exception)
