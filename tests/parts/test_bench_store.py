"""`make bench-store` measures each figure that it has a budget for; here on vectors so narrow that it takes seconds."""

from __future__ import annotations

import argparse
import asyncio
import tomllib
from pathlib import Path

import pytest

from bench import store
from bench.store_writer import WriterProcess

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def quiet_lance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANCE_LOG", "error")


def test_every_budget_is_of_a_figure_that_a_run_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "WIDTH", 32)
    budgets = tomllib.loads(store.BUDGETS.read_text())
    options = argparse.Namespace(queries=10, quick=True)
    measured = asyncio.run(store._measure(tmp_path, 2_000, "float16", options))
    figures = measured["figures"]
    assert not [name for name in budgets["each"] if figures[name] is None]
    assert budgets["float16"].keys() <= store._compared(figures, figures).keys()
    assert figures["recall_at_10"] >= 0.9
    assert {span["kind"] for span in measured["upkeep"]} >= {"build", "fold"}
    assert len(measured["probed"]) == 6


def test_a_failure_of_the_writer_is_told_in_its_own_words(tmp_path: Path) -> None:
    writer = WriterProcess()
    try:
        with pytest.raises(RuntimeError, match="vector_dtype"):
            writer.call("open", uri=str(tmp_path), width=8, corpus={}, settings={"vector_dtype": "float8"})
    finally:
        writer.close()
