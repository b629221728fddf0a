"""Alerts, runbooks and dashboards say what is so: metrics, commands and settings exist, and nothing is left out."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from shoal.cluster.cli import app
from shoal.cluster.configuration import environment_names
from shoal.metric_table import STAGES, TABLE
from shoal.settings import Settings

ROOT = Path(__file__).parents[2]
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "kuberay/alerts/shoal.rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text()
OPERATING = (ROOT / "docs" / "operating.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOKS, re.MULTILINE | re.DOTALL))
DASHBOARDS = sorted((ROOT / "kuberay" / "dashboards").glob("*.json"))
SERIES = {name: row for row in TABLE.values() for name in row.series}


def _renderer() -> Any:
    spec = importlib.util.spec_from_file_location("render", ROOT / "kuberay" / "dashboards" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["render"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def check_names(expression: str) -> None:
    """Every metric is in the table, and every label that is asked for by name is one of its own."""
    named = re.findall(r"shoal_\w+", expression)
    assert named, expression
    assert set(named) <= set(SERIES), expression
    for name, selector in re.findall(r"(shoal_\w+)\{([^}]*)\}", expression):
        labels = set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', selector))
        assert labels <= {*SERIES[name].labels, "namespace", "le"}, expression
    for stage in re.findall(r'stage="(\w+)"', expression):
        assert stage in dict(STAGES)
    for name in re.findall(r"(?:rate|increase)\((shoal_\w+)", expression):
        assert SERIES[name].kind != "gauge", f"a rate of a gauge: {expression}"
    for name in re.findall(r"(?<!rate\()(?<!increase\()\b(shoal_\w+)", expression):
        assert SERIES[name].kind == "gauge", f"a counter without a rate: {expression}"


# --- alerts and runbooks ----------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_has_names_that_exist_and_its_section(rule: dict[str, Any]) -> None:
    check_names(rule["expr"])
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{rule['alert'].lower()}"
    section = SECTIONS[rule["alert"]]
    assert re.findall(r"^\*\*(\w+)\.\*\*", section, re.MULTILINE) == ["Symptoms", "Meaning", "Action"]


def test_every_section_is_of_an_alert() -> None:
    assert list(SECTIONS) == [rule["alert"] for rule in RULES]


def _commands() -> list[str]:
    pages = RUNBOOKS + OPERATING
    inline = re.findall(r"`(shoal [^`]+)`", pages)
    blocks = [line for block in re.findall(r"```sh\n(.*?)```", pages, re.DOTALL) for line in block.splitlines()]
    return sorted({*inline, *(line for line in blocks if line.startswith("shoal "))})


@pytest.mark.parametrize("line", _commands())
def test_every_command_of_the_pages_for_operators_exists_with_its_options(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    assert words[0] in command.commands
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands") or command.invoke_without_command, line
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= options, line


def test_every_setting_that_they_name_exists() -> None:
    known = {name for field in Settings.model_fields for name in environment_names(field)}
    named = set(re.findall(r"\b((?:SHOAL|KAFKA)_[A-Z_]+|LANCEDB_PATH)\b", RUNBOOKS))
    assert named - {"SHOAL_URL"} <= known


# --- dashboards -------------------------------------------------------------------------------


def test_there_are_six_and_they_are_as_their_module_makes_them() -> None:
    render = _renderer()
    remedy = "run `.venv/bin/python kuberay/dashboards/render.py`"
    assert [path.stem for path in DASHBOARDS] == sorted(render.DASHBOARDS)
    assert len(DASHBOARDS) == 6
    for path in DASHBOARDS:
        assert path.read_text() == render.text_of(path.stem), remedy


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_what_grafana_takes(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["id"] is None
    assert re.fullmatch(r"[a-z0-9-]{1,40}", board["uid"])  # Grafana's bound
    assert board["schemaVersion"] == 39
    variables = {variable["name"]: variable["type"] for variable in board["templating"]["list"]}
    assert variables == {"datasource": "datasource", "namespace": "query"}
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in ("timeseries", "stat")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        assert set(place) == {"x", "y", "w", "h"}
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} lies on another"
        taken |= cells
        assert [target["refId"] for target in panel["targets"]] == [*"ABCDEF"][: len(panel["targets"])]
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert steps[0]["value"] is None
        assert [step["value"] for step in steps[1:]] == sorted(step["value"] for step in steps[1:])
        for target in panel["targets"]:
            check_names(target["expr"])
            by = set(re.findall(r"by \(([^)]*)\)", target["expr"])[:1])
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= set(", ".join(by).split(", ")), f"{panel['title']}: its legend names what is summed away"


def test_every_metric_of_the_table_is_on_a_dashboard() -> None:
    text = "".join(path.read_text() for path in DASHBOARDS)
    shown = set(re.findall(r"shoal_\w+", text))
    assert [name for name, row in TABLE.items() if not shown & set(row.series)] == []
