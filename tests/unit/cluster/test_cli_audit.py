"""`shoal audit`, and that `shoal keys` leaves its lines there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from shoal.cluster.cli import app
from shoal.errors import ConfigurationError


def run(tmp_path: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(app, [*arguments, "--data-dir", str(tmp_path)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_changes_of_keys_are_in_the_trail_without_the_key(tmp_path: Path) -> None:
    key = run(tmp_path, "keys", "create", "--name", "ci").stdout.strip()
    run(tmp_path, "keys", "rotate", "ci")
    run(tmp_path, "keys", "revoke", key.split("_")[1])
    found = json.loads(run(tmp_path, "audit", "-o", "json").stdout)
    assert [one["call"] for one in found["entries"]] == ["keys revoke", "keys rotate", "keys create"]
    assert {one["via"] for one in found["entries"]} == {"cli"}
    assert found["entries"][0]["about"]["key"] == key.split("_")[1]
    assert key not in json.dumps(found)
    table = run(tmp_path, "audit", "--call", "revoke").stdout
    assert "keys revoke" in table
    assert "keys create" not in table


def test_a_wrong_argument_is_said(tmp_path: Path) -> None:
    for wrong in (("--kind", "all"), ("--since", "soon"), ("--until", "soon")):
        with pytest.raises(ConfigurationError):
            run(tmp_path, "audit", *wrong)


def test_an_empty_trail_is_no_error(tmp_path: Path) -> None:
    assert json.loads(run(tmp_path, "audit", "-o", "json").stdout)["entries"] == []
