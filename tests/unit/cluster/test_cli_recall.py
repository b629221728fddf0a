"""`shoal recall`: the figures as a person and a script get them. The measuring itself: test_recall_on_tables.py."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner, Result

from shoal.cluster.cli import app
from shoal.errors import TransientError
from shoal.store import recall_measuring
from shoal.store.recall import IndexMark, Measurement, Rung, Setting

LOW, HIGH = Rung(Setting(20, 2), 0.91, 4.2), Rung(Setting(40, 2), 0.97, 6.0)
BAD = Rung(Setting(None, 16), 0.8, 90.0)
Measured = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Measured:
    """The command with arguments, where measuring finds `rungs`, the first in force, and chooses the last."""

    def command(*arguments: str, rungs: tuple[Rung, ...] = (LOW, HIGH)) -> Result:
        async def measure(settings: Any, now: datetime, *, queries: int, k: int) -> Measurement:
            index = IndexMark("IvfPq", 316, "x", 100_000) if rungs else None
            ends = (rungs[0], rungs[-1]) if rungs else (None, None)
            return Measurement(
                datetime(2026, 1, 20, tzinfo=UTC),
                7,
                index,
                settings.recall_target,
                k,
                256,
                queries - 4,
                4,
                *ends,
                rungs,
            )

        monkeypatch.setattr(recall_measuring, "measure", measure)
        return CliRunner().invoke(app, ["recall", "--data-dir", str(tmp_path), *arguments])

    return command


def test_each_setting_is_a_line_and_the_one_in_force_is_marked(run: Measured) -> None:
    result = run()
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["nprobes", "refine", "recall@10", "ms", "p50"]
    assert lines[1] == ["20", "2", "0.910", "4.2", "in", "force"]
    assert lines[2] == ["40", "2", "0.970", "6", "cheapest", "that", "holds"]
    assert "60 real and 4 made questions, 100000 rows indexed in 316 partitions" in result.stderr
    assert result.exit_code == 1  # what is in force is below the target


def test_json_says_the_same_for_scripts(run: Measured) -> None:
    result = run("-o", "json", "--k", "5", "--queries", "10", rungs=(HIGH,))
    value = orjson.loads(result.stdout)
    assert (value["k"], value["queries"], value["recall"]) == (5, {"real": 6, "made": 4}, 0.97)
    assert value["rungs"] == [{"nprobes": 40, "refine": 2, "recall": 0.97, "ms_p50": 6.0}]
    assert result.exit_code == 0


def test_an_index_that_nothing_helps_says_what_to_do(run: Measured) -> None:
    result = run(rungs=(LOW, BAD))
    assert "the best there is" in result.stdout
    assert "shoal index rebuild" in result.stderr
    assert result.exit_code == 1


def test_without_an_index_every_search_is_exact(run: Measured) -> None:
    result = run(rungs=())
    assert "every search is exact" in result.stderr
    assert result.exit_code == 0


def test_absent_tables_are_an_error_that_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["recall", "--data-dir", str(tmp_path)])
    assert isinstance(result.exception, TransientError)
    assert "no tables yet" in str(result.exception)
