"""`make bench-embedder` runs, and measures each figure that it has a budget for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import embedder
from bench.budgets import read_budgets

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def test_a_smoke_run_measures_every_figure_that_has_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report.json"
    monkeypatch.setattr(sys, "argv", ["embedder", "--smoke", "--save", str(report)])
    assert embedder.main() == 0
    figures = json.loads(report.read_text())["figures"]
    missing = {budget.figure for budget in read_budgets(embedder.BUDGETS)} - figures.keys()
    assert missing == {f"{tier}_first_minute" for tier in embedder.TIERS}, "which takes a minute"
    assert figures["tier1_refused_share"] == 0
    assert min(figures[name] for name in ("queries_queries", "cpu_cpu_vs_bare", "local_chunks_vs_plain")) > 0


def test_a_scenario_that_is_none_is_refused_with_the_names_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["embedder", "--only", "tier9"])
    with pytest.raises(SystemExit) as ended:
        embedder.main()
    assert ended.value.code == 2
    assert "tier1" in capsys.readouterr().err
